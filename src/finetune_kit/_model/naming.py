"""Propose, for each operation of a graph, the name of its block.

Layers that are named as in `keras.applications` and keras-hub say it themselves. For other models,
and for layers that were added behind a named backbone (the decoder of a U-Net), it is derived from
the graph. `blocks` decides where a block may end.
"""

from __future__ import annotations

import re

from finetune_kit._model.graph import Graph, is_composite

# How the builders of keras.applications name the layers of a repeating unit, and the name of the
# block. Layers that match no pattern (stems, top convolutions, shortcuts, additions) are placed by
# the graph.
_FAMILIES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(stage_\d+_block_\d+)_", "{}"),  # ConvNeXt
        (r"(downsampling_block_\d+)$", "{}"),  # ConvNeXt
        (r"(conv\d+_block\d+)_", "{}"),  # ResNet, ResNetV2, DenseNet
        (r"(stack\d+_block\d+|transition\d+)_", "{}"),  # ResNet, DenseNet in keras-hub
        # DenseNet's transitions; its pool1 belongs to the stem.
        (r"(pool[2-9])_(?:bn|relu|conv|pool)$", "{}"),
        # MobileNetV3, and the first block of MobileNetV2.
        (r"(expanded_conv(?:_\d+)?)_(?=[a-z])", "{}"),
        (r"(block_\d+)_(?=[a-z])", "{}"),  # MobileNetV2
        # MobileNet: a depthwise and a pointwise convolution.
        (r"(?:^|_)conv_(?:pad|dw|pw)_(\d+)(?:_|$)", "block_{}"),
        # InceptionV3, InceptionResNetV2. Not mixed9_1: it is a branch of mixed10.
        (r"(mixed_?\d+[a-z]?)$", "{}"),
        (r"(block\d+_\d+)_(?:mixed|conv|ac)", "{}"),  # InceptionResNetV2
        (r"(?:normal|reduction|adjust)_.*?((?:stem|reduce)_\d+|(?<=_)\d+)$", "cell_{}"),  # NASNet
        (r"(block\d+[a-z])_", "{}"),  # EfficientNet, EfficientNetV2
        (r"(block\d+)_(?:conv|sepconv|pool)", "{}"),  # VGG, Xception
    )
)


def proposed_names(graph: Graph) -> list[str | None]:
    """Return the name of each operation's block, or None where neither name nor graph decides."""
    names = [name_of_block(op.name) for op in graph.operations]
    if len(set(names) - {None}) < 2:
        names = [None] * len(names)
    named_end = max((i + 1 for i, name in enumerate(names) if name), default=0)
    return [*names[:named_end], *_names_from_graph(graph, named_end)[named_end:]]


def name_of_block(layer_name: str) -> str | None:
    """Return the name of the block that a layer's name contains, or None."""
    matches = ((pattern.search(layer_name), block) for pattern, block in _FAMILIES)
    return next((block.format(match[1]) for match, block in matches if match), None)


def _names_from_graph(graph: Graph, start: int) -> list[str | None]:
    """Propose names from the structure of the graph alone, from position `start` on.

    Between two bottlenecks lies either one operation or a branching unit (a residual or inception
    block). Each unit is a block, and so is each run of plain operations between two units. Without
    any unit, or where a branch spans an upsampling (the skips of a U-Net), a block begins with each
    convolution that changes the resolution. If the resolution never changes, each convolution is a
    block.
    """
    proposals: list[str | None] = [None] * len(graph.operations)
    segments = [[i for i in segment if i >= start] for segment in _segments(graph)]
    is_unit = [_is_unit(graph, segment) for segment in segments]
    no_units = not any(is_unit)
    kernel_sizes = {graph.sizes[i] for i, has in enumerate(graph.has_kernel) if has and i >= start}
    one_resolution = no_units and len(kernel_sizes) == 1
    current: str | None = None  # the block that the next convolution may continue
    by_resolution, size = no_units, None
    for segment, unit in zip(segments, is_unit, strict=True):
        by_resolution = not unit and (by_resolution or _upsamples(graph, segment))
        current = None if unit else current
        for i in (i for i in segment if graph.has_kernel[i]):
            changes = one_resolution or graph.sizes[i] != size
            if current is None or (by_resolution and changes):
                current = graph.operations[i].name
            proposals[i], size = current, graph.sizes[i]
        if unit:
            proposals[segment[0] : segment[-1] + 1] = [current] * len(segment)
            current = None
    return proposals


def _is_unit(graph: Graph, segment: list[int]) -> bool:
    has_kernel = any(graph.has_kernel[i] for i in segment)
    several = len(segment) > 1 or (has_kernel and is_composite(graph.operations[segment[0]]))
    return has_kernel and several and not _upsamples(graph, segment)


def _upsamples(graph: Graph, segment: list[int]) -> bool:
    """Return whether a segment at least doubles the size of a feature map, as decoders do."""
    return any(
        # Squeeze-and-excite spreads a map of one value over a larger one: no upsampling.
        before > 1 and after >= 2 * before
        for i in segment
        for j in graph.sources[i]
        for before, after in zip(graph.sizes[j], graph.sizes[i], strict=False)
        if before is not None and after is not None
    )


def _segments(graph: Graph) -> list[list[int]]:
    """Split the positions of a graph behind each bottleneck."""
    segments, current = [], []
    for i, is_bottleneck in enumerate(graph.bottlenecks()):
        current.append(i)
        if is_bottleneck:
            segments.append(current)
            current = []
    return [*segments, current] if current else segments
