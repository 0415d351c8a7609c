"""The channels-first form of a model computes what the model computes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from strategies import build_graph, graphs

import finetune_kit as ftk
from finetune_kit._model.graph import layers_within
from finetune_kit._model.twin import channels_first

layers = keras.layers
HERE = keras.backend.backend()

APPLICATIONS = [
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2",
    "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50",
    "ResNet50V2", "VGG16", "Xception",
]  # fmt: skip


@pytest.fixture
def exact(name):
    """Models are built and computed in float64, which on a CPU only PyTorch convolves with the
    channels first. Keras has no NASNetMobile there."""
    on_torch = name != "NASNetMobile"
    if on_torch != (HERE == "torch") or HERE == "jax":
        pytest.skip("one backend is enough")
    _compute_in("float64" if on_torch else "float32")
    yield
    _compute_in("float32")


def _compute_in(floatx):
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)


def with_varied_weights(model: keras.Model) -> keras.Model:
    """Give the layers that scale channels weights that differ between the channels."""
    rng = np.random.default_rng(0)
    for layer in layers_within(model):
        if isinstance(layer, (layers.BatchNormalization, layers.LayerNormalization)):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def check_twin(model: keras.Model) -> tuple[keras.Model, tuple[str, ...]]:
    twin, kept = channels_first(with_varied_weights(model))
    shape = (2, *model.input_shape[1:])
    floatx = keras.config.floatx()
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(floatx)
    expected, found = (
        [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(each(pixels, training=False))]
        for each in (model, twin)
    )
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert np.abs(one).max() > 0
        assert one.dtype == floatx
        share = {"float32": 1e-4, "float64": 1e-10}[floatx]
        assert np.abs(one - other).max() <= share * np.abs(one).max()
    return twin, kept


def takes_first(model: keras.Model, name: str) -> bool:
    return model.get_layer(name).data_format == "channels_first"


def test_convolutions_take_the_channels_first(small_backbone):
    twin, kept = check_twin(keras.models.clone_model(small_backbone))
    assert all(takes_first(twin, f"block{i}_conv") for i in range(1, 5))
    assert kept == ()
    transpositions = [op for op in twin.operations if type(op).__name__ == "Transpose"]
    assert len(transpositions) == 2


def test_the_model_stays_as_it_is(small_backbone):
    operations = list(small_backbone.operations)
    before = [operation.name for operation in operations], small_backbone.get_weights()
    channels_first(small_backbone)
    assert small_backbone.operations == operations
    assert [operation.name for operation in operations] == before[0]
    for one, other in zip(small_backbone.get_weights(), before[1], strict=True):
        assert np.array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_twins_of_applications_compute_the_same_at_each_stage(name, exact):
    """With random weights, deep models enlarge the rounding of float32 a thousand times and more.
    `benchmarks/twins.py` does the same for all 40."""
    keras.utils.set_random_seed(0)
    shape = (96, 96, 3) if name[0] in "IX" else (64, 64, 3)
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=shape)
    stages = ftk.conv_blocks(model, level="stage")
    outputs = [x for stage in stages[1:]
               for x in ftk.cut(model, stage.name, level="stage")[0].outputs]  # fmt: skip
    assert len(outputs) >= 2
    _, kept = check_twin(keras.Model(model.input, [*outputs, model.output]))
    assert all("layernorm" in layer or "layer_norm" in layer for layer in kept)
    assert bool(kept) == (name == "ConvNeXtTiny")


@pytest.mark.once
@pytest.mark.slow
@settings(max_examples=25)
@given(graphs)
def test_twins_of_random_graphs_compute_the_same(graph):
    keras.utils.set_random_seed(0)
    _, kept = check_twin(build_graph(graph))
    assert kept == ()


def between(*parts, shape=(8, 8, 3)):
    """A model with a convolution before and after some layers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, padding="same", name="before")(inputs)
    for part in parts:
        x = part(x)
    if len(x.shape) == 4:
        x = layers.Conv2D(4, 1, name="after")(x)
    return keras.Model(inputs, x)


def squeeze_and_excite(x):
    y = layers.GlobalAveragePooling2D()(x)
    y = layers.Reshape((1, 1, 4))(y)
    return x * layers.Conv2D(4, 1, activation="sigmoid")(layers.Conv2D(2, 1)(y))


class PlusPosition(layers.Layer):
    """Adds to each value its number along the last axis."""

    def call(self, x):
        return x + keras.ops.arange(x.shape[-1], dtype=x.dtype)


CONVERTED = {
    "squeeze": squeeze_and_excite,
    "kept axes": lambda x: x * layers.GlobalMaxPooling2D(keepdims=True)(x),
    "concatenation": lambda x: layers.Concatenate(axis=3)([x, layers.ReLU()(x)]),
    "rows": lambda x: layers.Concatenate(axis=1)([x, x]),
    "columns": lambda x: layers.Concatenate(axis=-2)([x, x]),
    "groups": layers.GroupNormalization(2),
    "padding": layers.ZeroPadding2D(((0, 1), (2, 3))),
    "cropping": layers.Cropping2D(((0, 1), (2, 3))),
    "strides": layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu6"),
    "separable": layers.SeparableConv2D(6, 3, depth_multiplier=2),
    "transposed": layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
    "average": layers.AveragePooling2D(3, 2, "same"),
    "up": layers.UpSampling2D(interpolation="bilinear"),
    "arithmetic": lambda x: keras.ops.relu6(2 * x + 1) / 6 - x,
    "activation": layers.Activation("hard_swish"),
    "rescaling": layers.Rescaling(2.0, offset=1.0),
    "nested": keras.Sequential([layers.Conv2D(4, 1), layers.BatchNormalization(), layers.ELU()]),
    "dropout": layers.SpatialDropout2D(0.5),
    "mean": lambda x: keras.ops.reshape(keras.ops.mean(x, axis=(1, 2)), (-1, 1, 1, 4)),
}
KEPT = {
    "channel scale": layers.Rescaling([1.0, 2.0, 3.0, 4.0]),
    "softmax": layers.Softmax(),
    "softmax of a convolution": layers.Conv2D(4, 1, activation="softmax"),
    "channels first": layers.Conv2D(8, 3, padding="same", data_format="channels_first"),
    "rectifier": layers.PReLU(alpha_initializer="uniform"),
    "layer norm": layers.LayerNormalization(),
    "dense": layers.Dense(5),
    "reshape": layers.Reshape((4, 16, 4)),
    "flattened": layers.Flatten(),
    "transposition": layers.Permute((2, 1, 3)),
    "array": lambda x: x * np.arange(4, dtype=np.float32),
    "mean of rows": lambda x: keras.ops.mean(x, axis=1),
    "mean of all": lambda x: keras.ops.mean(x, axis=(1, 2, 3), keepdims=True),
    "tokens": lambda x: layers.MultiHeadAttention(2, 3)(*[layers.Reshape((64, 4))(x)] * 2),
    "custom": PlusPosition(),
}


@pytest.mark.parametrize("part", CONVERTED)
def test_a_layer_takes_the_channels_first(part):
    if part == "up" and keras.backend.backend() == "openvino":
        pytest.skip("Keras' OpenVINO backend has no bilinear UpSampling2D")
    twin, kept = check_twin(between(CONVERTED[part]))
    assert kept == ()
    assert takes_first(twin, "before")
    assert takes_first(twin, "after")


@pytest.mark.parametrize("part", KEPT)
def test_a_layer_whose_meaning_would_change_runs_channels_last(part):
    model = between(KEPT[part])
    twin, kept = check_twin(model)
    assert len(kept) == 1
    assert takes_first(twin, "before")
    assert len(model.output_shape) < 4 or takes_first(twin, "after")


def test_a_shared_layer_stays_shared():
    shared = layers.Conv2D(4, 3, padding="same")
    model = between(shared, layers.ReLU(), shared)
    twin, _ = check_twin(model)
    assert twin.count_params() == model.count_params()


def test_pixels_are_scaled_before_they_are_transposed():
    inputs = keras.Input((8, 8, 3))
    scale = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0])
    x = layers.Rescaling([1 / 255, 1 / 127, 1 / 100])(scale(layers.Rescaling(2.0)(inputs)))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(x))
    _, kept = check_twin(model)
    assert kept == ()


def test_a_model_of_vectors_has_no_transposition():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(4)(inputs)))
    twin, kept = check_twin(model)
    assert len(twin.operations) == 3
    assert kept == ()
