"""Cut a model in two at a block boundary, and stitch two models together.

`cut` and `stitch` are inverse to each other. Both share the layers of the models they are given, so
training one part trains the same layers in the whole.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import compress
from typing import Any

import keras

from finetune_kit._model.blocks import partition
from finetune_kit._model.choosing import chosen_blocks
from finetune_kit._model.flattening import flattened
from finetune_kit._model.graph import fresh_inputs, functional, is_layer, made_by, read, rewire
from finetune_kit._model.state import is_stochastic

DEPTHS = "depths"  # the layer that joins the outputs of several depths


def cut(
    model: keras.Model, at: int | str, *, level: str = "block"
) -> tuple[keras.Model, keras.Model]:
    """Cut a model in two at a block boundary.

    Use it to compute a frozen prefix once and to train the suffix on its outputs. Both parts share
    their layers with the model.

    Args:
        model: any functional model, see `conv_blocks`. A classifier on top becomes part of the
            suffix.
        at: the name of the first block of the suffix, or the number of trailing blocks in the
            suffix.
        level: granularity of the blocks, see `conv_blocks`. Defaults to `"block"`.

    Returns:
        `(prefix, suffix)`, two plain models. The prefix takes the inputs of the model and returns
        the tensors that cross the boundary: one, or several where the graph needs it, as in NASNet.
        The suffix takes these tensors and returns the outputs of the model.

    Raises:
        ValueError: if the model has no such block.

    Example:
        >>> model = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> prefix, suffix = cut(model, 2)
        >>> prefix.output_shape, suffix.output_shape
        ((None, 1, 1, 56), (None, 1, 1, 1280))
    """
    parts = partition(model, level).parts
    chosen = chosen_blocks("at", at, parts, model.name, level)
    first = chosen.index(True) if True in chosen else len(chosen)
    return cut_after(model, {op.name for part in parts[:first] for op in part.operations})


def cut_after(model: keras.Model, names: Container[str]) -> tuple[keras.Model, keras.Model]:
    """Cut a model behind the operations of these names, which must be downward-closed."""
    graph = flattened(model)
    crossing = _crossing(graph, names)
    # A tuple: `fit` on TensorFlow takes no list of tensors from a generator.
    boundary = tuple(crossing) if len(crossing) > 1 else crossing[0]
    prefix = functional(graph.input, boundary, f"{model.name}_prefix")
    inputs = fresh_inputs(boundary)
    outputs = rewire(boundary, inputs, graph.output)
    return prefix, functional(inputs, outputs, f"{model.name}_suffix")


def _crossing(graph: keras.Model, names: Container[str]) -> list[Any]:
    """Return the tensors that operations of these names make and others read, in their order."""
    crossing, pending, seen = [], list(graph.outputs), set()
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, node = made_by(tensor)
        if operation.name in names or isinstance(operation, keras.layers.InputLayer):
            crossing.append(tensor)
        else:
            pending += node.input_tensors
    order = {id(operation): i for i, operation in enumerate(graph.operations)}
    return sorted(crossing, key=lambda tensor: order[id(made_by(tensor)[0])])


def extend_prefix(prefix: keras.Model, suffix: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Move the first operations of the suffix without weights or randomness to the prefix.

    Global pooling above all: a pooled feature map takes a fraction of the space when it is kept.
    """
    suffix = flattened(suffix)
    graph = read(suffix)
    movable: list[bool] = []
    for operation, sources in zip(graph.operations, graph.sources, strict=True):
        varies = is_layer(operation) and (operation.weights or is_stochastic(operation))
        movable.append(not varies and all(movable[i] for i in sources))
    names = {op.name for op, moves in zip(graph.operations, movable, strict=True) if moves}
    front, rest = cut_after(suffix, names)
    features = rewire(front.input, prefix.output, front.output)
    return functional(prefix.input, features, prefix.name), rest


def stitch(prefix: keras.Model, suffix: keras.Model) -> keras.Model:
    """Join two models, one after the other: the inverse of `cut`.

    Args:
        prefix: a functional model.
        suffix: a functional model that takes the outputs of the prefix.

    Returns:
        A plain, flat model that shares its layers with both.

    Raises:
        ValueError: if the suffix does not take the outputs of the prefix.

    Example:
        >>> model = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> stitch(*cut(model, "block_13")).count_params() == model.count_params()
        True
    """
    returned = [tuple(x.shape) for x in prefix.outputs]
    expected = [tuple(x.shape) for x in suffix.inputs]
    if returned != expected:
        raise ValueError(
            f"`suffix` must take the outputs of `prefix`, tensors of the shapes {returned}. "
            f"Received: suffix={suffix.name!r}, which takes the shapes {expected}"
        )
    prefix, suffix = flattened(prefix), flattened(suffix)
    inputs = fresh_inputs(prefix.input)
    boundary = rewire(prefix.input, inputs, prefix.output)
    outputs = rewire(suffix.input, boundary, suffix.output)
    return functional(inputs, outputs, prefix.name.removesuffix("_prefix"))


def with_all_outputs(model: keras.Model) -> tuple[list[str], keras.Model]:
    """Return a model that returns the outputs of all operations, and the name of each's operation.

    They are in topological order. The layers are shared.
    """
    names: list[str] = []
    tensors: list[Any] = []

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = operation(*args, **kwargs)
        for tensor in keras.tree.flatten(outputs):
            names.append(operation.name)
            tensors.append(tensor)
        return outputs

    inputs = fresh_inputs(model.input)
    rewire(model.input, inputs, model.output, call)
    return names, functional(inputs, tensors, model.name)


def rgb_inputs(taken: Any) -> tuple[Any, Any]:
    """Return the inputs of a model for RGB images, and the tensors that its backbone takes."""
    inputs = fresh_inputs(taken)
    if len(getattr(taken, "shape", ())) != 4 or taken.shape[-1] != 1:
        return inputs, inputs
    rgb = keras.Input((*taken.shape[1:3], 3), dtype=taken.dtype)
    return rgb, keras.ops.image.rgb_to_grayscale(rgb, data_format="channels_last")


def features_model(
    backbone: keras.Model, preprocessing: keras.Layer | None, at: Any, pooling: str | None
) -> tuple[tuple[str, ...], keras.Model]:
    """Return the names of blocks, and a model from pixels to their pooled outputs.

    Args:
        backbone: the model, whose layers are shared.
        preprocessing: a layer for the raw pixels, or None.
        at: the names of the blocks, `"all"`, or None for the output of the backbone.
        pooling: see `classification_head`.
    """
    graph, parts = flattened(backbone), partition(backbone).parts
    chosen = chosen_blocks("at", 1 if at is None else at, parts, backbone.name, "block")
    tensors = [*compress(_outputs(graph, parts), chosen)]
    inputs, pixels = rgb_inputs(graph.input)
    pixels = preprocessing(pixels) if preprocessing else pixels
    outputs = [_pooled(x, pooling) for x in rewire(graph.input, pixels, tensors)]
    names = tuple(part.name for part, is_chosen in zip(parts, chosen, strict=True) if is_chosen)
    boundary = tuple(outputs) if len(outputs) > 1 else outputs[0]
    return names, functional(inputs, boundary, f"{backbone.name}_features")


def with_depths(backbone: keras.Model) -> keras.Model:
    """Return a model with the pooled outputs of the second half of a backbone's blocks, joined.

    It shares its layers with the backbone and has the same blocks, each with its own pooling. So
    what crosses a boundary is that of the backbone, and a vector for each block before it.
    """
    graph, parts = flattened(backbone), partition(backbone).parts
    pairs = [*zip(parts, _outputs(graph, parts), strict=True)][len(parts) // 2 :]
    kinds = {4: keras.layers.GlobalAveragePooling2D, 3: keras.layers.GlobalAveragePooling1D}
    kinds[2] = keras.layers.Identity
    vectors = [
        kinds[len(x.shape)](name=f"{part.name}_depth")(x) for part, x in pairs if len(x.shape) < 5
    ]
    joined = keras.layers.Concatenate(name=DEPTHS)(vectors) if len(vectors) > 1 else vectors[0]
    return functional(graph.input, joined, f"{backbone.name}_depths")


def _outputs(graph: keras.Model, parts: Sequence[Any]) -> list[Any]:
    """Return the output of each block."""
    before: set[str] = set()
    tensors = []
    for part in parts:
        before |= {operation.name for operation in part.operations}
        tensors.append(_crossing(graph, before)[-1])
    return tensors


def _pooled(x: Any, pooling: str | None) -> Any:
    """Return a feature map `(n, h, w, c)`, or tokens `(n, t, c)`, as a vector for each image."""
    if pooling is None or len(x.shape) == 2:
        return x
    if pooling == "flatten":
        return keras.layers.Flatten()(x)
    axes = tuple(range(1, len(x.shape) - 1))
    kinds = {"avg": [keras.ops.mean], "max": [keras.ops.max]}
    chosen = kinds.get(pooling, [keras.ops.mean, keras.ops.max])
    vectors = [reduce(x, axis=axes) for reduce in chosen]
    return vectors[0] if len(vectors) == 1 else keras.ops.concatenate(vectors, axis=-1)
