"""Flatten nested models into one functional graph."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras

from finetune_kit._model.graph import (
    TO_VECTOR,
    count_kernels,
    direct_sublayers,
    fresh_inputs,
    functional,
    is_composite,
    is_layer,
    own_statistics,
    own_weights,
    rewire,
)


def plain(model: Any) -> keras.Model:
    """Return a functional model with a plain class, which shares its layers.

    A single tensor is an input or output by itself, not a list of one, as in
    `keras.Model(model.inputs, model.outputs)` and in the graph of a Sequential.

    Raises:
        ValueError: if the model has no graph, such as a subclass model.
    """
    inputs = getattr(model, "inputs", None)
    if not isinstance(model, keras.Model) or not inputs or not hasattr(model, "outputs"):
        raise ValueError(
            "`backbone` must be a functional Keras model, or a Sequential with a known input "
            "shape, because its blocks are read from its graph. A subclass model has no graph: "
            "rebuild it with the functional API. "
            f"Received: {getattr(model, 'name', model)!r} of type {type(model).__name__}"
        )
    owner = next(each for each in type(model).__mro__ if "call" in vars(each))
    if not owner.__module__.startswith("keras."):
        raise ValueError(
            "`backbone` must do what its graph does. A class with a `call` of its own, which the "
            "graph does not show, cannot be split into blocks: pass keras.Model(model.input, "
            f"model.output). Received: {model.name!r} of type {owner.__name__}"
        )
    has_graph = hasattr(model, "operations")  # a Sequential does not show its own
    tensors = (model.input, model.output) if has_graph else (model.inputs, model.outputs)
    bare = [_bare(each) for each in tensors]
    if has_graph and type(model).__module__.startswith("keras.") and _same(bare, tensors):
        return model
    return functional(bare[0], bare[1], model.name)


def _bare(tensors: Any) -> Any:
    flat = keras.tree.flatten(tensors)
    return flat[0] if len(flat) == 1 else tensors


def _same(ones: Any, others: Any) -> bool:
    return all(one is other for one, other in zip(ones, others, strict=True))


def flattened(model: Any) -> keras.Model:
    """Return a model as one flat graph that shares its layers.

    A model that contains another as one layer (a backbone, a head) is opened, and so is a layer
    that is a stack of repeating units (keras-hub's ViT encoder). The small models of which an
    architecture consists (a stem, a residual unit written as a Sequential) stay one operation.
    Layers inside opened models whose name another layer has are renamed.

    Raises:
        ValueError: if the model has no graph, such as a subclass model.
    """
    model = plain(model)
    nested = [op for op in model.operations if _is_model(op)]
    heads = [op for op in nested if any(isinstance(layer, TO_VECTOR) for layer in op.layers)]
    large = [op for op in nested if op not in heads and count_kernels(op) > 1]
    opened = frozenset(id(op) for op in heads + (large if len(large) == 1 else []))
    stacks = frozenset(id(op) for op in model.operations if _is_stack(op))
    if not opened | stacks:
        return model
    inputs = fresh_inputs(model.input)
    call = partial(_open_or_call, opened, stacks)
    outputs = rewire(model.input, inputs, model.output, call)
    return flattened(functional(inputs, outputs, model.name))


def _open_or_call(
    opened: frozenset[int], stacks: frozenset[int], operation: Any, *args: Any, **kwargs: Any
) -> Any:
    if id(operation) in opened:
        inner = flattened(operation)
        return rewire(inner.input, args[0], inner.output)
    if id(operation) in stacks:
        # `__call__` would record one operation; `call` records one for each layer of the stack.
        return operation.call(*args, **kwargs)
    return operation(*args, **kwargs)


def _is_stack(operation: Any) -> bool:
    """Return whether an operation consists of two or more composite layers of one kind."""
    if not is_layer(operation) or isinstance(operation, keras.Model):
        return False
    if own_weights(operation) or own_statistics(operation):
        return False
    units = [x for x in direct_sublayers(operation) if is_composite(x) and not _is_model(x)]
    kinds = {type(unit) for unit in units}
    inside = sum(map(count_kernels, units))
    return len(units) > 1 and len(kinds) == 1 and inside == count_kernels(operation)


def _is_model(operation: Any) -> bool:
    return isinstance(operation, keras.Model) and bool(getattr(operation, "inputs", None))
