"""Which variables of a layer move in training: by the optimizer, or by the layer itself.

Layers such as SpectralNormalization change variables of their own when they are called in training.
Which ones is not read from the kind of the layer: it is called once, in a scope in which nothing
changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from finetune_kit._model.graph import (
    call_arguments,
    held_back,
    is_layer,
    layers_within,
    made_by,
    own_statistics,
    own_weights,
)
from finetune_kit._text import listed


def updated_variables(operations: Iterable[Any], batch_norm: str) -> tuple[list[Any], list[Any]]:
    """Return the variables that move when these operations train.

    First those that the optimizer updates, then those that the layers themselves update: the
    statistics of BatchNormalization, the vectors of SpectralNormalization.
    """
    weights: dict[int, Any] = {}
    states: dict[int, Any] = {}
    for layer in filter(is_layer, operations):
        for inner in layers_within(layer):
            if not stays_frozen(inner, batch_norm):
                held = held_back(inner)
                weights |= {id(v): v for v in own_weights(inner) if id(v) not in held}
                if _is_batch_norm(inner):
                    states |= {id(v): v for v in own_statistics(inner)}
        states |= {id(v): v for v in moved_by_layer(layer)}
    return list(weights.values()), [v for key, v in states.items() if key not in weights]


def stays_frozen(layer: keras.Layer, batch_norm: str) -> bool:
    """Return whether a layer in a trainable block is frozen nevertheless."""
    return batch_norm == "frozen" and _is_batch_norm(layer)


def set_trainable(layer: keras.Layer, trains: bool, batch_norm: str) -> None:
    """Set the flags of a layer, of all layers in it, and of their variables."""
    for inner in layers_within(layer):
        value = trains and not stays_frozen(inner, batch_norm)
        inner.trainable = value
        held = held_back(inner)
        # Each variable too: on TensorFlow, a flag that a layer has already is not passed on.
        for variable in own_weights(inner):
            variable.trainable = value and id(variable) not in held


def moved_by_layer(layer: keras.Layer) -> list[Any]:
    """Return the variables that a layer itself changes in training, BatchNormalization left out.

    Raises:
        ValueError: if it changes variables in inference too, or cannot be called on its own.
    """
    inside = layers_within(layer)
    # The states of a stateful RNN belong to no list of variables.
    always = [f"{x.name}/rnn_state" for x in inside if getattr(x, "stateful", False)]
    if not always and not any(map(_may_move, inside)):
        return []
    known = {id(v) for norm in filter(_is_batch_norm, inside) for v in norm.weights}
    candidates = [v for v in layer.weights if id(v) not in known]
    always = always or [v.path for v in _assigned(layer, candidates, training=False)]
    if always:
        raise ValueError(
            "`backbone` must have no layer that changes its state in inference, because what it "
            "returns for an image would depend on the images before it. Rebuild the backbone "
            f"without that state (an RNN with stateful=False). Received: the layer {layer.name!r}, "
            f"which changes {listed(always)}"
        )
    return _assigned(layer, candidates, training=True)


def check_frozen(operations: Iterable[Any], moving: frozenset[int], remedy: str | None) -> None:
    """Check that layers of a frozen block stay as they are.

    Args:
        operations: those of the block.
        moving: `id` of the variables that move.
        remedy: what to do about a layer that changes its variables in training; None where the
            block runs in inference mode.
    """
    for layer in filter(is_layer, operations):
        shared = [v.path for v in layer.weights if id(v) in moving]
        if shared:
            raise ValueError(
                "`trainable_blocks` must hold all blocks that share a layer, or none of them. "
                f"Received: the frozen layer {layer.name!r}, which shares {listed(shared)} with a "
                "trainable block"
            )
        moved = moved_by_layer(layer)
        if moved and remedy:
            raise ValueError(
                "`backbone` must have no frozen layer that changes its own variables in training, "
                f"because Keras cannot keep it in inference mode in `fit`. {remedy}. "
                f"Received: the frozen layer {layer.name!r} ({type(layer).__name__}), which "
                f"changes {listed([v.path for v in moved])}"
            )


def is_stochastic(operation: Any) -> bool:
    """Return whether an operation or a layer in it uses random numbers in training (Dropout).

    Recurrent layers have a random generator that they only use if one of their rates is above 0.
    """
    if not is_layer(operation):
        return False
    states = {id(state) for state in random_states(operation)}
    for layer in layers_within(operation):
        if [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")] == [0, 0]:
            states -= {id(state) for state in random_states(layer)}
    return bool(states)


def random_states(layer: keras.Layer) -> list[Any]:
    """Return the states of a layer's random generators: in its `variables`, not its `weights`."""
    weights = {id(weight) for weight in layer.weights}
    return [variable for variable in layer.variables if id(variable) not in weights]


def _is_batch_norm(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _may_move(layer: keras.Layer) -> bool:
    """Return whether a layer alone may change variables: one of unknown kind, or with a state."""
    if isinstance(layer, (keras.layers.BatchNormalization, keras.layers.Normalization)):
        return False
    known = type(layer).__module__.split(".")[0] in ("keras", "keras_hub")
    return bool(own_statistics(layer) or (own_weights(layer) and not known))


def _assigned(layer: keras.Layer, variables: list[Any], *, training: bool) -> list[Any]:
    """Return the variables that a call of a layer assigns; none of them changes."""
    with keras.StatelessScope() as scope:
        try:
            args, kwargs = _example(layer)
            layer(*args, **{**kwargs, "training": training})
        except Exception as error:
            if not any(own_statistics(inner) for inner in layers_within(layer)):
                return []
            raise ValueError(
                "The layers of `backbone` must run on random inputs of the shape that they were "
                "built for, to know which of their variables move. Give `backbone` inputs of a "
                f"fixed shape. Received: the layer {layer.name!r} ({type(layer).__name__}), for "
                f"which Keras reports: {error}"
            ) from error
    return [v for v in variables if scope.get_current_value(v) is not None]


def _example(layer: keras.Layer) -> tuple[Any, Any]:
    """Return random arguments for a call of a layer, like those of its call in the model."""
    _, node = made_by(keras.tree.flatten(layer.output)[0])
    rng = np.random.default_rng(0)
    tensors = {}
    for tensor in node.input_tensors:
        first, *others = tensor.shape
        values = rng.random((first or 2, *(n or 32 for n in others)))  # below 1: valid as indices
        tensors[id(tensor)] = keras.ops.cast(keras.ops.convert_to_tensor(values), tensor.dtype)
    return call_arguments(node, tensors)
