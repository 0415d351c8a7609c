"""What a backbone does to pixels before its first layer with weights.

The operations there are run on images of one color each, rather than recognized by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._model.graph import fresh_inputs, is_layer, rewire
from finetune_kit._model.state import is_stochastic

Values: TypeAlias = NDArray[Any]

# Layers with weights that only scale: they belong to the front.
_SCALING = (keras.layers.Normalization, keras.layers.BatchNormalization)

# Stands for a tensor that depends on a weight.
_LEARNED = object()


def front(backbone: keras.Model) -> Callable[[Values], Values] | None:
    """Return what the first layers with weights get for a color; None if that cannot be known.

    It cannot where a model has several inputs, where the branches of a model scale differently, or
    where a pixel's value depends on the other pixels (standardization of each image).
    """
    inputs = getattr(backbone, "inputs", None) or []
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        return None
    source = fresh_inputs(inputs[0])

    def see(color: Any, top: Any) -> list[Values]:
        pixels = keras.ops.cast(image(backbone, color, top), source.dtype)
        tensors = rewire(source, pixels, targets, _call)
        return [_middle(keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))) for x in tensors]

    try:
        targets = _first_read(backbone, [source])
        contexts = [*see(100, 0), *see(100, 255)]
    except Exception:  # an operation of any library may fail on images of one color
        return None
    return (lambda color: see(color, color)[0]) if _equal(contexts) else None


def channels(backbone: keras.Model) -> int:
    """Return the number of channels of the images that a backbone takes."""
    shape = backbone.inputs[0].shape
    return int(shape[_channel_axis()] or 3)


def image(backbone: keras.Model, color: Any, top: Any) -> Values:
    """Return a batch of images of one color, whose upper quarter has another one."""
    first, *shape = backbone.inputs[0].shape
    shape[_channel_axis() - 1] = channels(backbone)
    size = [64 if n is None else n for n in shape]
    pixels = np.zeros((first or 1, *size), "float32")
    pixels = np.moveaxis(pixels, _channel_axis(), -1)
    pixels[:] = color
    pixels[:, : pixels.shape[1] // 4] = top
    return np.moveaxis(pixels, -1, _channel_axis())


def _channel_axis() -> int:
    return 1 if keras.config.image_data_format() == "channels_first" else 3


def _first_read(model: keras.Model, sources: Sequence[Any]) -> list[Any]:
    """Return the symbolic tensors that the first layers with weights read, made from `sources`."""
    found: dict[int, Any] = {}
    outputs = _open(model, sources, found)
    return list(found.values()) or [x for x in outputs if x is not _LEARNED]


def _open(model: keras.Model, sources: Sequence[Any], found: dict[int, Any]) -> list[Any]:
    """Call the front of a model again, nested models opened, and collect what its layers read."""

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        given = keras.tree.flatten((args, kwargs))
        known = not any(x is _LEARNED for x in given)
        if is_layer(operation) and operation.weights and not isinstance(operation, _SCALING):
            if known and isinstance(operation, keras.Model) and getattr(operation, "inputs", None):
                inner = _open(operation, keras.tree.flatten(args), found)
                return inner[0] if len(inner) == 1 else inner
            found.update({id(x): x for x in given if isinstance(x, keras.KerasTensor)})
            known = False
        if not known:
            return keras.tree.map_structure(lambda _: _LEARNED, operation.output)
        if is_stochastic(operation) and len(args) == 1 and operation.output.shape == args[0].shape:
            return args[0]
        return operation(*args, **kwargs)

    return list(rewire(model.inputs, sources, model.outputs, call))


def _call(operation: Any, *args: Any, **kwargs: Any) -> Any:
    options = {"training": False} if is_layer(operation) else {}
    return operation(*args, **{**kwargs, **options})


def _middle(values: Values) -> Values:
    """Return the channels in the middle of an image, of a sequence of patches or of a vector."""
    first = values[0]
    if first.ndim == 1:  # flattened pixels
        start = len(first) // 6 * 3
        return first[start : start + 3]
    if first.ndim == 3:
        first = np.moveaxis(first, _channel_axis() - 1, -1)
    return first[tuple(n // 2 for n in first.shape[:-1])]


def _equal(values: list[Values]) -> bool:
    """Return whether pixels of several branches have the same value."""
    scale = max(float(np.abs(v).max()) for v in values)
    return all(
        v.shape == values[0].shape and np.allclose(v, values[0], atol=0.01 * scale) for v in values
    )
