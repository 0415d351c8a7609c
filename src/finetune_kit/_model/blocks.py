"""A backbone comes in, its blocks go out, at one of three grains: stage, block or layer.

Names propose where a block begins (see `_naming`), the graph decides: whatever they say, every
boundary is downward-closed (nothing before it depends on anything after it). This room knows
nothing of training: it reads the graph.

Three words used below. A *kernel* is an operation with a weight matrix (a convolution or a dense
layer). A *join* reads two or more operations. A *follower* has no kernel and reads one operation.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import keras

from finetune_kit._checks import check_choice
from finetune_kit._model.graph import Graph, functional, is_layer, read
from finetune_kit._model.naming import name_of_block, proposed_names

LEVELS = ("stage", "block", "layer")


@dataclass(frozen=True)
class Block:
    """A run of consecutive operations of a backbone: the unit that freezes or trains.

    Attributes:
        name: the name that its layers share, or that of its first convolution; `"stem"` for what
            comes before the first repeating unit.
        layers: names of its layers and operations, in topological order.
        params: number of parameters (scalars), BatchNorm's moving statistics included.
        output_shape: shape of its last operation's output, batch axis first: `(None, 7, 7, 1280)`.
    """

    name: str
    layers: tuple[str, ...]
    params: int
    output_shape: tuple[int | None, ...]


def conv_blocks(backbone: keras.Model, level: str = "block") -> tuple[Block, ...]:
    """List the blocks of a backbone, from the input to the output.

    Use it to see what `FineTuneSpec(trainable_blocks=N)` counts. The blocks hold every layer once,
    in topological order. The layers of a classifier (`include_top=True`: what follows a global
    pooling or flattening and has weights) belong to no block.

    Args:
        backbone: any functional model or built Sequential, for example of `keras.applications`.
        level: `"stage"` (the blocks between two changes of spatial resolution), `"block"`
            (default: the architecture's repeating unit; a stem, a transition and a top
            convolution are blocks of their own) or `"layer"` (one weighted convolution with the
            normalisation and activation that follow it). Each level is finer than the one before.
            A stage is named by the block it begins with, a layer by its convolution.

    Returns:
        A tuple of `Block`.

    Raises:
        ValueError: if `level` is not one of the three or `backbone` is not a functional model.

    Example:
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.5, include_top=False, weights=None, input_shape=(96, 96, 3))
        >>> blocks = conv_blocks(backbone)
        >>> len(blocks), blocks[0].name, blocks[-1].name
        (19, 'stem', 'Conv_1')
        >>> len(conv_blocks(backbone, "layer"))
        52
    """
    return tuple(map(as_block, partition(backbone, level).parts))


@dataclass(frozen=True)
class Part:
    """A block as the objects it is made of."""

    name: str
    operations: tuple[Any, ...]
    output_shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Partition:
    """All operations of a backbone: its blocks, and the classifier on top where there is one."""

    parts: tuple[Part, ...]
    top: tuple[Any, ...]


def partition(backbone: keras.Model, level: str = "block") -> Partition:
    """Split the operations of a backbone into blocks; see `conv_blocks`."""
    check_choice("level", level, LEVELS)
    graph = read(functional(backbone))
    body = graph.without_top()
    blocks = _group(_drop_empty(body, _block_numbers(body)), range(len(body.operations)))
    if level == "layer":
        blocks = [layer for block in blocks for layer in _layers(body, block)]
        names = [_kernel_name(body, layer) for layer in blocks]
    else:
        names = [_block_name(body, block) for block in blocks]
    if level == "stage":
        starts = _stage_starts(body, blocks)
        names = [names[i] for i in starts]
        blocks = [list(chain(*blocks[i:j])) for i, j in pairwise([*starts, len(blocks)])]
    parts = tuple(
        Part(_unique(names, i), tuple(body.operations[p] for p in block), body.shapes[block[-1]])
        for i, block in enumerate(blocks)
    )
    return Partition(parts, tuple(graph.operations[len(body.operations) :]))


def as_block(part: Part) -> Block:
    """What a user may know of a part."""
    return Block(
        name=part.name,
        layers=tuple(op.name for op in part.operations),
        params=sum(op.count_params() for op in part.operations if is_layer(op)),
        output_shape=part.output_shape,
    )


def chosen_blocks(
    argument: str, wanted: Any, parts: Sequence[Part], model: str, level: str
) -> tuple[bool, ...]:
    """For each block, whether `wanted` means it: a number of trailing ones, `"all"`, or names."""
    names = [part.name for part in parts]
    count = len(names)
    if wanted == "all":
        return (True,) * count
    if isinstance(wanted, int):
        if not 0 <= wanted <= count:
            raise ValueError(
                f"`{argument}` must be between 0 and {count}, the number of blocks of {model!r} "
                f"at level {level!r}. Received: {argument}={wanted}"
            )
        return tuple(i >= count - wanted for i in range(count))
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[-3:]
            around = [part.name for part in parts if name in (op.name for op in part.operations)]
            raise ValueError(
                f"`{argument}` must name blocks of {model!r} at level {level!r}; near to what was "
                f"given: {', '.join(around or near)}. Received: {name!r}"
                f"{', a layer inside ' + repr(around[0]) if around else ''}"
            )
    return tuple(name in wanted for name in names)


def _block_numbers(graph: Graph) -> list[int]:
    """A block number for each operation, never falling along an edge of the graph."""
    names = proposed_names(graph)
    order = {name: i for i, name in enumerate(dict.fromkeys(n for n in names if n), start=1)}
    anchors = _anchor([order.get(name) for name in names], graph)  # type: ignore[arg-type]
    first_named = next((i for i, name in enumerate(names) if name), 0)
    stem_end = max(
        (i for i, alone in enumerate(graph.bottlenecks()[:first_named]) if alone), default=-1
    )
    numbers = [0] * len(names)
    for i in reversed(range(len(names))):
        if i <= stem_end:
            numbers[i] = 0
        elif anchors[i] is not None:
            numbers[i] = anchors[i]  # type: ignore[assignment]
        else:  # as late as its readers allow; what nobody reads is a top of its own
            numbers[i] = min((numbers[j] for j in graph.feeds[i] if j > i), default=len(order) + 1)
    return _monotone(numbers, graph)


def _anchor(named: list[int | None], graph: Graph) -> list[int | None]:
    """Give joins and followers of a named operation its number; None for what stays open.

    A join belongs where its named branch ends (a residual addition closes its block), a follower
    to what it follows unless others read that too (then it begins a branch of a later block).
    """
    anchors = list(named)
    for i, sources in enumerate(graph.reads):
        if anchors[i] is None and not graph.kernels[i] and sources:
            follows = len(sources) > 1 or len(graph.feeds[next(iter(sources))]) == 1
            known = [anchors[j] for j in sources if anchors[j] is not None]
            anchors[i] = max(known, default=None) if follows else None  # type: ignore[type-var]
    return anchors


def _monotone(numbers: list[int], graph: Graph) -> list[int]:
    """The nearest numbering that never falls along an edge; a layer used twice closes a range."""
    numbers = list(numbers)
    loops = []
    for i, sources in enumerate(graph.reads):
        numbers[i] = max([numbers[i], *(numbers[j] for j in sources if j < i)])
        loops += [(i, j) for j in sources if j > i]
    for first, last in loops:
        low, high = numbers[first], numbers[last]
        numbers = [low if low <= n <= high else n for n in numbers]
    return numbers


def _drop_empty(graph: Graph, numbers: list[int]) -> list[int]:
    """Join each block without a kernel to the block before it (the first ones to the next)."""
    weighted = sorted({n for n, kernel in zip(numbers, graph.kernels, strict=True) if kernel})
    if not weighted:
        return [0] * len(numbers)
    return [weighted[max(0, bisect_right(weighted, n) - 1)] for n in numbers]


def _group(numbers: list[int], positions: Iterable[int]) -> list[list[int]]:
    """The positions that have the same number, from the lowest number to the highest."""
    groups: dict[int, list[int]] = {}
    for i in positions:
        groups.setdefault(numbers[i], []).append(i)
    return [groups[number] for number in sorted(groups)]


def _stage_starts(graph: Graph, blocks: list[list[int]]) -> list[int]:
    """The blocks that change the spatial resolution, and the first."""
    starts: list[int] = []
    before = None
    for number, block in enumerate(blocks):
        spatial = [size for size in (graph.sizes[i] for i in block) if size]
        after = spatial[-1] if spatial else before
        if not starts or after != before:
            starts.append(number)
        before = after
    return starts


def _layers(graph: Graph, block: list[int]) -> list[list[int]]:
    """Split a block at its kernels: each takes what follows it, the first what precedes it."""
    count = 0
    number: dict[int, int] = {}
    for i in block:
        if graph.kernels[i]:
            number[i] = count
            count += 1
        else:
            number[i] = max((number[j] for j in graph.reads[i] if j in number), default=0)
    ranks = _monotone([number.get(i, -1) for i in range(len(graph.operations))], graph)
    return _group(ranks, block)


def _block_name(graph: Graph, block: list[int]) -> str:
    proposed = (name_of_block(graph.operations[i].name) for i in block)
    default = "stem" if block[0] == 0 else _kernel_name(graph, block)
    return next((name for name in proposed if name), default)


def _kernel_name(graph: Graph, group: list[int]) -> str:
    first = next((i for i in group if graph.kernels[i]), group[0])
    return str(graph.operations[first].name)


def _unique(names: list[str], i: int) -> str:
    return names[i] if names.count(names[i]) == 1 else f"{names[i]}_{names[:i].count(names[i]) + 1}"
