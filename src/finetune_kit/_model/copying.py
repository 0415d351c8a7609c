"""Copy models and layers, weights included."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from finetune_kit._model.graph import free_name, is_layer, layers_within

_OF_EACH_LAYER = ("name", "trainable", "dtype")  # in the config of any layer
# Layers that compute what their config does not say.
_WRAPPERS = (
    keras.layers.JaxLayer,
    keras.layers.Lambda,
    keras.layers.TFSMLayer,
    keras.layers.TorchModuleWrapper,
)


def copy(layer: keras.Layer, taken: set[str] | None = None) -> keras.Layer:
    """Return the same model or layer with variables of its own and the same weights.

    A functional model is copied layer by layer along its graph, as `keras.models.clone_model` does:
    the arguments of a subclass's constructor may not be known. The copy of a layer that is not
    built yet is not built either: it gets its initial weights when it is.

    Args:
        layer: the model or layer.
        taken: names that the copied layers must not have; theirs are added. A layer whose name is
            taken gets another one, and so do its variables' paths.

    Raises:
        ValueError: if a layer has no config, or a copy with layers or functions that are not Keras'
            own has other outputs than the original.
    """
    names = set() if taken is None else taken
    pairs: list[tuple[keras.Layer, keras.Layer]] = []

    def copied(original: keras.Layer) -> keras.Layer:
        pairs.append((original, _unbuilt_copy(original, names)))
        return pairs[-1][1]

    if isinstance(layer, keras.Sequential) or hasattr(layer, "operations"):
        twin = keras.models.clone_model(layer, clone_function=copied, recursive=True)
    else:
        twin = copied(layer)
    for original, other in pairs:
        if is_layer(original) and original.built and original.weights:
            if not other.built:
                other.build_from_config(original.get_build_config())
            other.set_weights(original.get_weights())
    for inner in layers_within(twin):
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()  # it keeps what it computed from its first weights
    own = not all(map(_is_of_keras, [layer, *layers_within(layer)]))
    if own and layer.built and getattr(layer, "inputs", None):
        _check_outputs(layer, twin)
    return twin


def _is_of_keras(layer: keras.Layer) -> bool:
    """Return whether a layer comes with Keras, and its config says all that it computes."""
    if type(layer).__module__.split(".")[0] != "keras" or isinstance(layer, _WRAPPERS):
        return False
    return isinstance(layer, keras.Model) or not _has_function(layer.get_config())


def _has_function(config: Any) -> bool:
    """Return whether a config names a function of the user, such as an activation."""
    if isinstance(config, Mapping):
        return config.get("class_name") == "function" or _has_function([*config.values()])
    return isinstance(config, (list, tuple)) and any(map(_has_function, config))


def _unbuilt_copy(layer: keras.Layer, taken: set[str]) -> keras.Layer:
    try:
        config = layer.get_config()
    except NotImplementedError as error:
        raise ValueError(
            "Each layer must have a config, because `fine_tune` works on a copy of the model. Give "
            f"its class a `get_config` method. Received: {layer.name!r} of type "
            f"{type(layer).__name__}"
        ) from error
    config = {**config, "name": free_name(layer.name, taken)}
    taken.add(config["name"])
    try:
        return layer.__class__.from_config(config)
    except TypeError:  # configs of some layers of keras-hub hold more than the constructor takes
        accepted = {*inspect.signature(type(layer).__init__).parameters, *_OF_EACH_LAYER}
        return layer.__class__.from_config({k: v for k, v in config.items() if k in accepted})


def _check_outputs(model: keras.Model, twin: keras.Model) -> None:
    """Check that a copy computes what the original computes, on one small random input."""
    random = np.random.default_rng(0)
    inputs = keras.tree.map_structure(
        # Where an axis is open: large enough for any architecture.
        lambda x: keras.ops.cast(random.random([1, *(n or 256 for n in x.shape[1:])]), x.dtype),
        model.input if hasattr(model, "operations") else model.inputs[0],  # of a Sequential
    )
    expected, received = (
        [
            keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))
            for x in keras.tree.flatten(each(inputs, training=False))
        ]
        for each in (model, twin)
    )
    for one, other in zip(expected, received, strict=True):
        if not np.allclose(one, other, rtol=1e-2, atol=1e-2 * np.abs(one).max(initial=0)):
            raise ValueError(
                "A copy of the model must have the same outputs. Check the `get_config` of its own "
                "layers, and that its `call` does what its graph does. Received: a copy of "
                f"{model.name!r} whose outputs differ by up to {np.abs(one - other).max():.2g}"
            )
