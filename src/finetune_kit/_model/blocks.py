"""Split a backbone into blocks at one of three levels: stage, block or layer.

`naming` proposes where blocks begin. The boundaries are then moved so that each is downward-closed:
nothing before it depends on anything after it.

Three terms are used below. A *kernel* is an operation with a weight matrix (a convolution or a
dense layer). A *join* reads two or more operations. A *follower* has no kernel and reads one
operation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import keras

from finetune_kit._checks import check_choice
from finetune_kit._model.flattening import flattened
from finetune_kit._model.graph import TO_VECTOR, Graph, functional, is_layer, read
from finetune_kit._model.naming import name_of_block, proposed_names

LEVELS = ("stage", "block", "layer")


@dataclass(frozen=True)
class Block:
    """A run of consecutive operations of a backbone, which is frozen or trained as a whole.

    Attributes:
        name: the name that its layers share, or the name of its first convolution. The operations
            before the first repeating unit are the `"stem"`.
        layers: names of its layers and operations, in topological order.
        params: number of parameters (scalars), moving statistics of BatchNormalization included.
        output_shape: shape of its last operation's output, batch axis first: `(None, 7, 7, 1280)`.
    """

    name: str
    layers: tuple[str, ...]
    params: int
    output_shape: tuple[int | None, ...]


def conv_blocks(backbone: keras.Model, level: str = "block") -> tuple[Block, ...]:
    """List the blocks of a backbone, from the input to the output.

    Use it to see what `FineTuneSpec(trainable_blocks=N)` counts. The blocks contain each layer
    once, in topological order. The layers of a classifier (with `include_top=True`: the weighted
    layers behind a global pooling or flattening) belong to no block.

    Args:
        backbone: any functional model or built Sequential, for example of `keras.applications`.
        level: the granularity, from coarse to fine:

            - `"stage"`: the blocks between two changes of the spatial resolution, named after the
              first of them;
            - `"block"` (default): the repeating unit of the architecture. A stem, a transition and
              a top convolution are blocks of their own;
            - `"layer"`: one weighted layer with the normalization and activation that follow it,
              named after the weighted layer.

    Returns:
        A tuple of `Block`.

    Raises:
        ValueError: if `level` is not one of the three, or `backbone` is not a functional model.

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
    """A block with its operations themselves, where `Block` has their names."""

    name: str
    operations: tuple[Any, ...]
    output_shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Partition:
    """All operations of a backbone: its blocks, and those of a classifier on top, if any."""

    parts: tuple[Part, ...]
    top: tuple[Any, ...]


def partition(backbone: keras.Model, level: str = "block") -> Partition:
    """Split the operations of a backbone into blocks, see `conv_blocks`."""
    check_choice("level", level, LEVELS)
    graph = read(flattened(backbone))
    if joined := _joined_poolings(graph):
        return _with_poolings(graph, joined, backbone, level)
    body = graph.without_top()
    positions = _group(_drop_empty(body, _block_numbers(body)), range(len(body.operations)))
    if level == "layer":
        positions = [layer for block in positions for layer in _layers(body, block)]
        names = [_kernel_name(body, layer) for layer in positions]
    else:
        names = [_block_name(body, block) for block in positions]
    if level == "stage":
        starts = _stage_starts(body, positions)
        names = [names[i] for i in starts]
        positions = [list(chain(*positions[i:j])) for i, j in pairwise([*starts, len(positions)])]
    parts = tuple(
        Part(_unique(names, i), tuple(body.operations[p] for p in block), body.shapes[block[-1]])
        for i, block in enumerate(positions)
    )
    return Partition(parts, tuple(graph.operations[len(body.operations) :]))


def _joined_poolings(graph: Graph) -> list[int]:
    """Return the poolings that the last operation joins: features of several depths.

    Empty if it joins anything else.
    """
    last = len(graph.operations) - 1
    sources = sorted(graph.sources[last])
    poolings = all(
        isinstance(graph.operations[i], (*TO_VECTOR, keras.layers.Identity))
        and len(graph.sources[i]) == 1
        and graph.readers[i] == [last]
        for i in sources
    )
    joins = isinstance(graph.operations[last], keras.layers.Concatenate) and len(sources) > 1
    return sources if joins and poolings else []


def _with_poolings(
    graph: Graph, poolings: list[int], backbone: keras.Model, level: str
) -> Partition:
    """Return the blocks of a backbone up to its last pooling, each with its own poolings."""
    pooled = {i: next(iter(graph.sources[i])) for i in poolings}
    last = max(poolings, key=lambda i: pooled[i])
    inside = functional(flattened(backbone).input, graph.operations[last].input, backbone.name)
    found = partition(inside, level)
    parts = []
    for part in found.parts:
        own = {id(operation) for operation in part.operations}
        mine = [i for i in poolings if id(graph.operations[pooled[i]]) in own]
        operations = (*part.operations, *(graph.operations[i] for i in mine))
        parts.append(replace(part, operations=operations))
    operations = (*parts[-1].operations, graph.operations[-1])
    parts[-1] = Part(parts[-1].name, operations, graph.shapes[-1])
    return Partition(tuple(parts), found.top)


def as_block(part: Part) -> Block:
    """Return a part as the value that users see."""
    return Block(
        name=part.name,
        layers=tuple(op.name for op in part.operations),
        params=sum(op.count_params() for op in part.operations if is_layer(op)),
        output_shape=part.output_shape,
    )


def _block_numbers(graph: Graph) -> list[int]:
    """Return a block number for each operation that never falls along an edge of the graph."""
    names = proposed_names(graph)
    order = {name: i for i, name in enumerate(dict.fromkeys(n for n in names if n), start=1)}
    anchors = _anchored([order[name] if name else None for name in names], graph)
    first_named = next((i for i, name in enumerate(names) if name), 0)
    bottlenecks = graph.bottlenecks()[:first_named]
    stem_end = max((i for i, is_bottleneck in enumerate(bottlenecks) if is_bottleneck), default=-1)
    numbers = [0] * len(names)
    for i in reversed(range(stem_end + 1, len(names))):
        anchor = anchors[i]
        if anchor is None:
            # As late as its readers allow. An operation without readers closes the graph.
            later = (numbers[j] for j in graph.readers[i] if j > i)
            anchor = min(later, default=len(order) + 1)
        numbers[i] = anchor
    return _monotone(numbers, graph)


def _anchored(numbers: list[int | None], graph: Graph) -> list[int | None]:
    """Extend the block numbers of named operations to joins and followers; None where undecided.

    A join belongs to the block of its latest source (a residual addition closes its block). A
    follower belongs to the block of its source, unless other operations read that source too: then
    it begins a branch of a later block.
    """
    anchors = list(numbers)
    for i, sources in enumerate(graph.sources):
        if anchors[i] is None and not graph.has_kernel[i] and sources:
            follows = len(sources) > 1 or len(graph.readers[next(iter(sources))]) == 1
            known = [anchor for anchor in (anchors[j] for j in sources) if anchor is not None]
            anchors[i] = max(known, default=None) if follows else None
    return anchors


def _monotone(numbers: list[int], graph: Graph) -> list[int]:
    """Return the nearest numbers that never fall along an edge of the graph.

    A layer that is called twice closes a loop: all blocks between its calls become one.
    """
    numbers = list(numbers)
    loops = []
    for i, sources in enumerate(graph.sources):
        numbers[i] = max([numbers[i], *(numbers[j] for j in sources if j < i)])
        loops += [(i, j) for j in sources if j > i]
    for first, last in loops:
        low, high = numbers[first], numbers[last]
        numbers = [low if low <= n <= high else n for n in numbers]
    return numbers


def _drop_empty(graph: Graph, numbers: list[int]) -> list[int]:
    """Merge each block without a kernel into the block before it, or else into the next."""
    weighted = sorted({n for n, has in zip(numbers, graph.has_kernel, strict=True) if has})
    if not weighted:
        return [0] * len(numbers)
    return [weighted[max(0, bisect_right(weighted, n) - 1)] for n in numbers]


def _group(numbers: list[int], positions: Iterable[int]) -> list[list[int]]:
    """Return the positions grouped by their number, from the lowest number to the highest."""
    groups: dict[int, list[int]] = {}
    for i in positions:
        groups.setdefault(numbers[i], []).append(i)
    return [groups[number] for number in sorted(groups)]


def _stage_starts(graph: Graph, blocks: list[list[int]]) -> list[int]:
    """Return the numbers of the first block and of those that change the spatial resolution."""
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
    """Split a block at its kernels.

    Each kernel takes the operations that follow it, the first also those that precede it.
    """
    count = 0
    number: dict[int, int] = {}
    for i in block:
        if graph.has_kernel[i]:
            number[i] = count
            count += 1
        else:
            number[i] = max((number[j] for j in graph.sources[i] if j in number), default=0)
    ranks = _monotone([number.get(i, -1) for i in range(len(graph.operations))], graph)
    return _group(ranks, block)


def _block_name(graph: Graph, block: list[int]) -> str:
    proposed = (name_of_block(graph.operations[i].name) for i in block)
    default = "stem" if block[0] == 0 else _kernel_name(graph, block)
    return next((name for name in proposed if name), default)


def _kernel_name(graph: Graph, positions: list[int]) -> str:
    first = next((i for i in positions if graph.has_kernel[i]), positions[0])
    return str(graph.operations[first].name)


def _unique(names: list[str], i: int) -> str:
    """Return name `i`, numbered if other blocks have the same name."""
    return names[i] if names.count(names[i]) == 1 else f"{names[i]}_{names[:i].count(names[i]) + 1}"
