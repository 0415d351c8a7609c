"""A model and a block come in, the two models on either side of the boundary go out, and back.

`cut` and `stitch` are an inverse pair. Layers are shared: what trains in one trains in the other.
"""

from __future__ import annotations

from collections.abc import Container

import keras

from finetune_kit._model.blocks import chosen_blocks, partition
from finetune_kit._model.graph import (
    fresh_inputs,
    functional,
    is_layer,
    is_stochastic,
    made_by,
    read,
    rewire,
)


def cut(
    model: keras.Model, at: int | str, *, level: str = "block"
) -> tuple[keras.Model, keras.Model]:
    """Cut a model in two at a block boundary.

    Use it to compute a frozen prefix once and train the suffix on its outputs. The parts share
    their layers with the model.

    Args:
        model: any functional model, see `conv_blocks`; a classifier on top goes with the suffix.
        at: the name of the block that the suffix begins with, or how many trailing blocks are in
            the suffix.
        level: what a block is, see `conv_blocks`. Defaults to `"block"`.

    Returns:
        `(prefix, suffix)`, two plain models: the prefix takes the model's inputs and gives the
        tensors that cross the boundary (several where the graph needs it, as in NASNet), the
        suffix takes those and gives the model's outputs.

    Raises:
        ValueError: if there is no such block.

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
    """Cut a model behind the operations of these names, which together are downward-closed."""
    graph = functional(model)
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
    crossing.sort(key=lambda tensor: order[id(made_by(tensor)[0])])
    boundary = crossing if len(crossing) > 1 else crossing[0]
    prefix = keras.Model(graph.input, boundary, name=f"{model.name}_prefix")
    inputs = fresh_inputs(boundary)
    outputs = rewire(boundary, inputs, graph.output)
    return prefix, keras.Model(inputs, outputs, name=f"{model.name}_suffix")


def shift_pure_front(prefix: keras.Model, suffix: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Move what the suffix begins with to the prefix, as far as it has no weights and is no draw.

    Pooling a feature map before it is kept makes it smaller by the size of the map.
    """
    suffix = functional(suffix)
    graph = read(suffix)
    pure: list[bool] = []
    for operation, sources in zip(graph.operations, graph.reads, strict=True):
        plain = not (is_layer(operation) and (operation.weights or is_stochastic(operation)))
        pure.append(plain and all(pure[i] for i in sources))
    names = {op.name for op, is_pure in zip(graph.operations, pure, strict=True) if is_pure}
    front, rest = cut_after(suffix, names)
    features = rewire(front.input, prefix.output, front.output)
    return keras.Model(prefix.input, features, name=prefix.name), rest


def stitch(prefix: keras.Model, suffix: keras.Model) -> keras.Model:
    """Put two models together, one after the other: the inverse of `cut`.

    Args:
        prefix: a functional model.
        suffix: a functional model that takes what the prefix gives.

    Returns:
        A plain, flat model that shares its layers with both.

    Raises:
        ValueError: if the suffix does not take what the prefix gives.

    Example:
        >>> model = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> stitch(*cut(model, "block_13")).count_params() == model.count_params()
        True
    """
    given = [tuple(x.shape) for x in prefix.outputs]
    taken = [tuple(x.shape) for x in suffix.inputs]
    if given != taken:
        raise ValueError(
            f"`suffix` must take what `prefix` gives, tensors of the shapes {given}. "
            f"Received: {suffix.name!r}, which takes {taken}"
        )
    prefix, suffix = functional(prefix), functional(suffix)
    inputs = fresh_inputs(prefix.input)
    boundary = rewire(prefix.input, inputs, prefix.output)
    outputs = rewire(suffix.input, boundary, suffix.output)
    return keras.Model(inputs, outputs, name=prefix.name.removesuffix("_prefix"))
