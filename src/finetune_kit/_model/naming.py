"""A graph comes in, the name of a block is proposed for each operation whose place is plain.

Where layers are named as `keras.applications` and keras-hub do it, their names tell; the graph
alone tells the rest: a model whose names say nothing, or what was put behind a named backbone (the
decoder of a U-Net). This room proposes; where a block may end is `_blocks`' to decide.
"""

from __future__ import annotations

import re

from finetune_kit._model.graph import Graph, is_composite

# The repeating units of keras.applications: how their builders name the layers, and what a block
# is called here. What no pattern matches (stems, top convolutions, shortcuts, unnamed joins) is
# placed by the graph.
_FAMILIES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(stage_\d+_block_\d+)_", "{}"),  # ConvNeXt
        (r"(downsampling_block_\d+)$", "{}"),  # ConvNeXt
        (r"(conv\d+_block\d+)_", "{}"),  # ResNet, ResNetV2, DenseNet
        (r"(stack\d+_block\d+|transition\d+)_", "{}"),  # the same in keras-hub
        (r"(pool[2-9])_(?:bn|relu|conv|pool)$", "{}"),  # DenseNet's transitions; pool1 is its stem
        (r"(expanded_conv(?:_\d+)?)_(?=[a-z])", "{}"),  # MobileNetV2's first block, MobileNetV3
        (r"(block_\d+)_(?=[a-z])", "{}"),  # MobileNetV2
        (r"(?:^|_)conv_(?:pad|dw|pw)_(\d+)(?:_|$)", "block_{}"),  # MobileNet: separable pairs
        (r"(mixed_?\d+[a-z]?)(?:_\d+)?$", "{}"),  # InceptionV3, InceptionResNetV2
        (r"(block\d+_\d+)_(?:mixed|conv|ac)", "{}"),  # InceptionResNetV2
        (r"(?:normal|reduction|adjust)_.*?((?:stem|reduce)_\d+|(?<=_)\d+)$", "cell_{}"),  # NASNet
        (r"(block\d+[a-z])_", "{}"),  # EfficientNet, EfficientNetV2
        (r"(block\d+)_(?:conv|sepconv|pool)", "{}"),  # VGG, Xception
    )
)


def proposed_names(graph: Graph) -> list[str | None]:
    """For each operation the name of its block; None where neither its name nor the graph tells."""
    names = [name_of_block(op.name) for op in graph.operations]
    if len(set(names) - {None}) < 2:
        names = [None] * len(names)
    behind = max((i + 1 for i, name in enumerate(names) if name), default=0)
    return [*names[:behind], *_names_from_graph(graph, behind)[behind:]]


def name_of_block(name: str) -> str | None:
    """The name of the block that a layer's name speaks of, if it speaks of any."""
    matches = ((pattern.search(name), block) for pattern, block in _FAMILIES)
    return next((block.format(match[1]) for match, block in matches if match), None)


def _names_from_graph(graph: Graph, first: int) -> list[str | None]:
    """Propose blocks for what no name speaks of, from one position on.

    Between two bottlenecks lies either one operation or a branching unit (a residual or inception
    block): each unit is a block, and so is each run of plain operations between two units. Where
    nothing branches, or where a branch spans what is made large again (the skips of a U-Net), a
    block begins with the convolution that changes the resolution; where that does not happen
    either, every convolution is a block.
    """
    proposals: list[str | None] = [None] * len(graph.operations)
    segments = [[i for i in segment if i >= first] for segment in _segments(graph)]
    units = [_is_unit(graph, segment) for segment in segments]
    kernels = [i for i, kernel in enumerate(graph.kernels) if kernel and i >= first]
    flat = not any(units)
    every = flat and len({graph.sizes[i] for i in kernels}) == 1
    run: str | None = None
    by_size, size = flat, None
    for segment, unit in zip(segments, units, strict=True):
        by_size = not unit and (by_size or _enlarges(graph, segment))
        weighted = [i for i in segment if graph.kernels[i]]
        run = None if unit else run
        for i in weighted:
            begins = run is None or (by_size and (every or graph.sizes[i] != size))
            run, size = (graph.operations[i].name if begins else run), graph.sizes[i]
            proposals[i] = run
        if unit:
            proposals[segment[0] : segment[-1] + 1] = [run] * len(segment)
            run = None
    return proposals


def _is_unit(graph: Graph, segment: list[int]) -> bool:
    weighted = any(graph.kernels[i] for i in segment)
    several = len(segment) > 1 or (weighted and is_composite(graph.operations[segment[0]]))
    return weighted and several and not _enlarges(graph, segment)


def _enlarges(graph: Graph, segment: list[int]) -> bool:
    """Does it make a map larger again, at least twofold, as decoders do?"""
    return any(
        before > 1 and after >= 2 * before  # a map of one value (squeeze and excite) is spread
        for i in segment
        for j in graph.reads[i]
        for before, after in zip(graph.sizes[j], graph.sizes[i], strict=False)
        if before is not None and after is not None
    )


def _segments(graph: Graph) -> list[list[int]]:
    segments, current = [], []
    for i, alone in enumerate(graph.bottlenecks()):
        current.append(i)
        if alone:
            segments.append(current)
            current = []
    return [*segments, current] if current else segments
