"""Rebuild a model so that its convolutions take the channels first.

OpenVINO's convolutions, and on a CPU those of PyTorch, are several times faster on tensors
`(n, channels, height, width)` than on the `(n, height, width, channels)` of a Keras backbone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras

from finetune_kit._model.graph import fresh_inputs, functional, is_layer, rewire

_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_AXIS = {0: 0, 1: 2, 2: 3, 3: 1, -1: 1, -2: 3, -3: 2, -4: 0}  # of channels-last tensors -> first

# Layers with an argument `data_format`, which computes the same on transposed tensors.
_FORMATTED = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.AveragePooling2D,
    keras.layers.MaxPooling2D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    keras.layers.UpSampling2D,
)
# Layers with an argument `axis`.
_ALONG_AXIS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.Concatenate,
)
# Layers and operations that compute each value by itself, or combine those at the same position.
_ELEMENTWISE = frozenset(
    {"Abs", "Absolute", "Add", "Average", "Cast", "Clip", "Divide", "Dropout", "ELU", "Elu", "Exp"}
    | {"CustomScaleLayer"}  # of InceptionResNetV2: a + scale * b
    | {"GaussianDropout", "GaussianNoise", "Gelu", "HardSigmoid", "HardSilu", "HardSwish"}
    | {"Identity", "LeakyReLU", "LeakyRelu", "Maximum", "Minimum", "Multiply", "Negative", "ReLU"}
    | {"Relu", "Relu6", "Sigmoid", "Silu", "Softplus", "SpatialDropout2D", "Sqrt", "Square"}
    | {"Subtract", "Swish", "Tanh", "TrueDivide"}
)
_REDUCTIONS = {"Mean": keras.ops.mean, "Max": keras.ops.max}
_ACTIVATIONS = frozenset(
    {"elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "leaky_relu", "linear", "mish"}
    | {"relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh"}
)


def channels_first(model: keras.Model) -> tuple[keras.Model, tuple[str, ...]]:
    """Return a model with the same outputs, whose convolutions take the channels first.

    It takes and returns the same tensors as the model: they are transposed where the first layer
    with channels first reads them, and back at the outputs. A layer whose meaning depends on the
    order of the axes (a custom layer, a reshape, attention over patches) runs channels-last,
    between two transpositions.

    Args:
        model: a functional model with channels-last inputs. It does not change. Layers that are
            not rebuilt are shared.

    Returns:
        `(twin, kept)`: the other model, and the names of the layers that run channels-last
        although their inputs have the channels first.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
        >>> twin, kept = channels_first(model)
        >>> twin.layers[-1].output.shape, twin.output_shape, kept
        ((None, 4, 6, 6), (None, 6, 6, 4), ())
    """
    layout = _Layout()
    inputs = fresh_inputs(model.input)
    outputs = rewire(model.input, inputs, model.output, layout.call)
    outputs = keras.tree.map_structure(layout.as_last, outputs)
    return functional(inputs, outputs, model.name), tuple(dict.fromkeys(layout.kept))


@dataclass(eq=False)
class _Layout:
    """Which tensors of a graph that is being rebuilt have their channels first."""

    first: dict[int, Any] = field(default_factory=dict)  # by the `id` of a tensor, itself
    last: dict[int, Any] = field(default_factory=dict)  # its transposition to channels last
    turned: dict[int, Any] = field(default_factory=dict)  # a channels-last one, and as first
    rebuilt: dict[int, Any] = field(default_factory=dict)  # layers, so that shared ones stay shared
    kept: list[str] = field(default_factory=list)

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """Call an operation, or its channels-first form, on the tensors of the new graph."""
        tensors = [x for x in keras.tree.flatten([args, kwargs]) if _is_tensor(x)]
        if type(operation).__module__.startswith("keras.src.models"):  # functional or Sequential
            return rewire(operation.inputs, tensors, operation.outputs, self.call)
        changed = self._changed(operation, tensors, [*args, *kwargs.values()])
        if changed is None:
            if any(id(x) in self.first for x in tensors) and not _is_pooled(tensors):
                self.kept.append(operation.name)
            args, kwargs = keras.tree.map_structure(self.as_last, (args, kwargs))
            return operation(*args, **kwargs)
        args, kwargs = keras.tree.map_structure(self._as_first, (args, kwargs))
        outputs = changed(*args, **kwargs)
        if changed is not operation and is_layer(operation) and operation.weights:
            changed.set_weights(operation.get_weights())  # the call has built it
        self.first |= {id(x): x for x in keras.tree.flatten(outputs) if len(x.shape) == 4}
        return outputs

    def as_last(self, tensor: Any) -> Any:
        """Return a tensor of the new graph with its channels last; anything else as it is."""
        if id(tensor) not in self.first:
            return tensor
        if id(tensor) not in self.last:
            turned = keras.ops.transpose(tensor, _TO_LAST)
            self.last[id(tensor)], self.turned[id(turned)] = turned, (turned, tensor)
        return self.last[id(tensor)]

    def _as_first(self, tensor: Any) -> Any:
        if not _is_tensor(tensor) or len(tensor.shape) != 4 or id(tensor) in self.first:
            return tensor
        if id(tensor) not in self.turned:
            # The pair keeps the tensor alive, so that no other one gets its `id`.
            self.turned[id(tensor)] = tensor, keras.ops.transpose(tensor, _TO_FIRST)
        return self.turned[id(tensor)][1]

    def _changed(self, operation: Any, tensors: list[Any], arguments: list[Any]) -> Any:
        """Return what computes the same with channels first; None to compute it channels-last."""
        ranks = {len(x.shape) for x in tensors}
        if _makes_vector_a_map(operation, ranks):
            return self._rebuilt(operation, {"target_shape": (operation.target_shape[2], 1, 1)})
        if ranks != {4}:
            return None
        kind = type(operation)
        if _reduces_maps(operation):
            return partial(_REDUCTIONS[kind.__name__], axis=(2, 3))
        if kind in _FORMATTED and _is_plain(operation):
            return self._rebuilt(operation, {"data_format": "channels_first"})
        if not any(id(x) in self.first for x in tensors):
            return None  # what scales the pixels runs before the first transposition
        if kind in _ALONG_AXIS and isinstance(operation.axis, int):
            return self._rebuilt(operation, {"axis": _AXIS[operation.axis]})
        return operation if _is_elementwise(operation, arguments) else None

    def _rebuilt(self, layer: keras.Layer, changes: dict[str, Any]) -> keras.Layer:
        """Return a layer with another config, the same one for each call of a shared layer."""
        if id(layer) not in self.rebuilt:
            config = {**layer.get_config(), **changes}
            self.rebuilt[id(layer)] = type(layer).from_config(config)
        return self.rebuilt[id(layer)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _is_pooled(tensors: list[Any]) -> bool:
    """Return whether all tensors are maps of one pixel, for which a transposition is free."""
    return all(tuple(x.shape[1:]).count(1) >= 2 for x in tensors)


def _makes_vector_a_map(operation: Any, ranks: set[int]) -> bool:
    """Return whether a reshape makes a map of one pixel from a vector, as in squeeze-and-excite."""
    shape = operation.target_shape if type(operation) is keras.layers.Reshape else ()
    return ranks == {2} and len(shape) == 3 and tuple(shape[:2]) == (1, 1)


def _reduces_maps(operation: Any) -> bool:
    """Return whether a bare operation makes a vector from each feature map, as pooling does."""
    if is_layer(operation) or type(operation).__name__ not in _REDUCTIONS:
        return False
    axis, is_kept = operation.axis, operation.keepdims
    return not is_kept and isinstance(axis, (list, tuple)) and sorted(axis) == [1, 2]


def _is_plain(layer: keras.Layer) -> bool:
    """Return whether a layer computes channels-last and has nothing that depends on the axes."""
    if layer.data_format != "channels_last" or getattr(layer, "lora_enabled", False):
        return False
    return _is_elementwise_function(getattr(layer, "activation", None))


def _is_elementwise_function(function: Any) -> bool:
    is_keras = getattr(function, "__module__", "").startswith("keras.")
    return function is None or (is_keras and getattr(function, "__name__", "") in _ACTIVATIONS)


def _is_elementwise(operation: Any, arguments: list[Any]) -> bool:
    if not type(operation).__module__.startswith("keras."):
        return False
    if any(
        len(getattr(x, "shape", ())) for x in keras.tree.flatten(arguments) if not _is_tensor(x)
    ):
        return False  # an array has its channels last
    if isinstance(operation, keras.layers.Activation):
        return _is_elementwise_function(operation.activation)
    if isinstance(operation, keras.layers.Rescaling):
        return all(not hasattr(x, "__len__") for x in (operation.scale, operation.offset))
    return type(operation).__name__ in _ELEMENTWISE and not (
        is_layer(operation) and operation.weights
    )
