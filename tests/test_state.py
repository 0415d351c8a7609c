"""A plan names the variables that move, whatever the layers of a backbone keep as their state."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

import finetune_kit as ftk

L = keras.layers


@keras.saving.register_keras_serializable("test_state")
class Counter(L.Layer):
    """Counts its calls in training."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.fixed = self.add_weight(shape=(), initializer="ones", trainable=False, name="fixed")

    def call(self, x, training=False):
        if training:
            self.calls.assign_add(1.0)
        return x * self.scale * self.fixed


@keras.saving.register_keras_serializable("test_state")
class Codebook(L.Layer):
    """Moves its codes toward the values that are nearest to them (as VQ-VAE does)."""

    def build(self, shape):
        self.codes = self.add_weight(
            shape=(4, shape[-1]), initializer="random_normal", trainable=False, name="codes"
        )

    def call(self, x, training=False):
        if training:
            mean = keras.ops.mean(x, axis=tuple(range(len(x.shape) - 1)))
            self.codes.assign(0.9 * self.codes + 0.1 * keras.ops.cast(mean, "float32"))
        return x + keras.ops.mean(self.codes, axis=0)


@keras.saving.register_keras_serializable("test_state")
class Composite(L.Layer):
    """A convolution that trains, and one that its author has frozen, with norms and Dropout."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = L.Conv2D(4, 1, name="first")
        self.second = L.SpectralNormalization(L.Conv2D(4, 1, name="second"))
        self.norm = L.BatchNormalization(name="norm")

    def build(self, shape):
        for layer in (self.first, self.second, self.norm):
            layer.build((*shape[:-1], 4))
        self.first.trainable = False

    def call(self, x, training=False):
        return self.norm(self.second(self.first(x), training=training), training=training)


def with_lora(layer: keras.Layer) -> keras.Layer:
    """Return a layer for four channels with LoRA; only the frozen kernel is left out of training."""
    layer.build((None, 6, 6, 4))
    layer.enable_lora(2)
    return layer


def quantized(layer: keras.Layer) -> keras.Layer:
    layer.build((None, 6, 6, 4))
    layer.quantize("int8")
    return layer


def adapted() -> keras.Layer:
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(0).random((8, 6, 6, 4)))
    return layer


def tokens(layer: keras.Layer) -> Callable:
    """Return a function that applies a layer for sequences to the rows of a feature map."""
    back = L.Reshape((6, 6, 4))
    return lambda x: back(layer(L.Reshape((36, 4))(x)))


def attention(x):
    return L.MultiHeadAttention(2, 4, name="attention", dropout=0.1)(x, x)


LAYERS: dict[str, Callable[[], Callable]] = {
    "SpectralNormalization": lambda: L.SpectralNormalization(L.Conv2D(4, 1, name="inside")),
    "LoRA of a convolution": lambda: with_lora(L.Conv2D(4, 1)),
    "LoRA of a dense layer": lambda: with_lora(L.Dense(4)),
    "LoRA of EinsumDense": lambda: with_lora(
        L.EinsumDense("abcd,de->abce", output_shape=(None, None, 4), bias_axes="e")
    ),
    "int8": lambda: quantized(L.Dense(4)),
    "BatchNormalization": L.BatchNormalization,
    "renorm": lambda: L.BatchNormalization(renorm=True),
    "synchronized": lambda: L.BatchNormalization(synchronized=True),
    "Normalization": adapted,
    "UnitNormalization": L.UnitNormalization,
    "LayerNormalization": L.LayerNormalization,
    "GroupNormalization": lambda: L.GroupNormalization(2),
    "RMSNormalization": L.RMSNormalization,
    "PReLU": L.PReLU,
    "LSTM": lambda: tokens(L.LSTM(4, return_sequences=True, dropout=0.1)),
    "Bidirectional": lambda: tokens(L.Bidirectional(L.GRU(2, return_sequences=True))),
    "TimeDistributed": lambda: L.TimeDistributed(
        L.SpectralNormalization(L.Dense(4, name="inside"))
    ),
    "attention": lambda: attention,
    "Counter": Counter,
    "Codebook": Codebook,
    "Composite": Composite,
    "GaussianNoise": lambda: L.GaussianNoise(0.1),
}
# These change variables in every training call, frozen or not.
MOVES = {"SpectralNormalization", "TimeDistributed", "Counter", "Codebook", "Composite"}


def backbone_with(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(4, 1, name="block1_conv")(L.Rescaling(1 / 255)(inputs))
    x = L.Conv2D(4, 1, name="block2_conv")(x)
    x = LAYERS[name]()(x)
    x = L.Conv2D(4, 1, name="block3_conv")(x)
    return keras.Model(inputs, x, name="odd")


@pytest.fixture(scope="module")
def images() -> ftk.ImageSet:
    x = np.random.default_rng(0).integers(0, 256, (6, 6, 6, 3), np.uint8)
    return ftk.ImageSet.from_arrays(x, [0, 1, 2] * 2, ["a", "b", "c"])


def trained(backbone, spec, images, **options) -> tuple[set[str], ftk.FreezePlan]:
    """Train, and return the paths of the variables that moved, with the plan."""
    plan = spec.plan(backbone)
    before = [keras.ops.convert_to_numpy(v) for v in backbone.weights]
    head = ftk.classification_head(3)
    tuned = ftk.fine_tune(
        backbone, head, spec, images, preprocessing=None, batch_size=6, verbose=0, **options
    )
    after = [keras.ops.convert_to_numpy(v) for v in tuned.model.weights[: len(before)]]
    pairs = zip(backbone.weights, before, after, strict=True)
    return {v.path for v, old, new in pairs if not np.array_equal(old, new)}, plan


def moving(plan: ftk.FreezePlan) -> set[str]:
    assert not {*plan.trainable_variables} & {*plan.moving_statistics}
    assert len(plan.trainable_variables) == len({*plan.trainable_variables})
    return {*plan.trainable_variables, *plan.moving_statistics}


@pytest.mark.parametrize("name", LAYERS)
def test_the_plan_names_exactly_what_moves(name, images):
    spec = ftk.FineTuneSpec(("block2", "block3"), batch_norm="train", epochs=2)
    moved, plan = trained(backbone_with(name), spec, images)
    assert moved == moving(plan)
