"""A functional model comes in, the same layers wired another way go out.

The wall between this library and the inside of Keras' functional graphs: everything that calls a
model's operations again, on other inputs or skipping some, does it here. It knows nothing of
blocks, training or images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def rewire(
    model: keras.Model,
    inputs: Any,
    call: Callable[..., Any] = lambda operation, *args, **kwargs: operation(*args, **kwargs),
) -> Any:
    """Call every operation of a functional model again, in order, on other inputs.

    Layers are shared, not copied.

    Args:
        model: a functional model.
        inputs: symbolic tensors in the structure of `model.input`.
        call: what to do for one operation; receives it with its arguments, returns its outputs.

    Returns:
        Symbolic tensors in the structure of `model.output`.
    """
    # `clone_model` does the same, but returns a model of its own instead of tensors to go on with.
    return model._run_through_graph(inputs, operation_fn=lambda op: op, call_fn=call)


def copy(layer: keras.Layer) -> keras.Layer:
    """The same model or layer with variables of its own, and the weights where it has them.

    A layer that was not built yet stays so: it draws its initial weights when it is.
    """
    if isinstance(layer, keras.Model):
        twin = keras.models.clone_model(layer)
    else:
        twin = layer.__class__.from_config(layer.get_config())
    if layer.built and layer.weights:
        if not twin.built:
            twin.build_from_config(layer.get_build_config())
        twin.set_weights(layer.get_weights())
    return twin


def is_stochastic(layer: Any) -> bool:
    """Does it, or a layer inside it, draw random numbers in training (Dropout, noise)?

    Keras keeps the state of a random generator among `variables`, but not among `weights`.
    """
    return isinstance(layer, keras.Layer) and len(layer.variables) > len(layer.weights)
