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

    def compute_output_shape(self, shape):
        return shape

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
    """Return a layer for four channels whose kernel LoRA holds back."""
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
    return L.MultiHeadAttention(2, 4, name="attention")(x, x)


def synchronized() -> keras.Layer:
    tensorflow = keras.backend.backend() == "tensorflow"  # Keras has it there alone
    return L.BatchNormalization(synchronized=tensorflow)


# In groups, so that few models are compiled.
LAYERS: dict[str, Callable[[], list[Callable]]] = {
    "norms": lambda: [
        L.BatchNormalization(), L.BatchNormalization(renorm=True), synchronized(), adapted(),
        L.UnitNormalization(), L.LayerNormalization(), L.GroupNormalization(2),
        L.RMSNormalization(), L.PReLU(), L.GaussianNoise(0.1), attention,
    ],
    "LoRA": lambda: [
        with_lora(L.Conv2D(4, 1)), with_lora(L.Dense(4)),
        with_lora(L.EinsumDense("abcd,de->abce", output_shape=(None, None, 4), bias_axes="e")),
    ],
    "int8": lambda: [quantized(L.Dense(4))],
    "sequences": lambda: [
        tokens(L.LSTM(4, return_sequences=True)),
        tokens(L.Bidirectional(L.SimpleRNN(2, return_sequences=True))),
    ],
    "Counter": lambda: [L.TimeDistributed(Counter())],
    "Codebook": lambda: [Codebook()],
    "SpectralNormalization": lambda: [L.SpectralNormalization(L.Conv2D(4, 1, name="inside"))],
    "Composite": lambda: [Composite()],
}  # fmt: skip
# Layers in these change variables in every training call, frozen or not.
MOVES = ["Counter", "Codebook", "SpectralNormalization", "Composite"]


def backbone_with(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(4, 1, name="block1_conv")(L.Rescaling(1 / 255)(inputs))
    x = L.Conv2D(4, 1, name="block2_conv")(x)
    for layer in LAYERS[name]():
        x = layer(x)
    x = L.Conv2D(4, 1, name="block3_conv")(x)
    return keras.Model(inputs, x, name="odd")


def plain_backbone() -> keras.Model:
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(4, 1, name="block1_conv")(inputs)
    return keras.Model(inputs, L.Conv2D(4, 1, name="block2_conv")(x), name="plain")


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
    states = {path.split("/")[-1] for path in plan.moving_statistics}
    expected = {"Counter": {"calls"}, "Codebook": {"codes"}, "SpectralNormalization": {"vector_u"}}
    assert states == expected.get(name, states)


@pytest.mark.parametrize("name", MOVES)
def test_frozen_layers_with_a_state_stay_as_they_are_in_the_prefix(name, images):
    moved, plan = trained(backbone_with(name), ftk.FineTuneSpec(0), images)
    assert moved == moving(plan) == set()


@pytest.mark.parametrize("name", ["norms", "LoRA", "int8", "sequences"])
def test_frozen_layers_behind_a_trainable_block_stay_as_they_are(name, images):
    moved, plan = trained(backbone_with(name), ftk.FineTuneSpec("block1"), images)
    assert moved == moving(plan) == {"block1_conv/kernel", "block1_conv/bias"}


@pytest.mark.parametrize("name", MOVES)
def test_frozen_layers_that_would_move_are_an_error_before_training(name, images, rejected):
    backbone, head = backbone_with(name), ftk.classification_head(3)
    with rejected(r"no frozen layer that changes its own variables.*Train its block too"):
        ftk.FineTuneSpec("block1").plan(backbone)
    with rejected("no frozen layer that changes its own variables.*pass no features=False"):
        ftk.fine_tune(backbone, head, ftk.FineTuneSpec(0), images, features=False)


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"recurrent_dropout": 0.5}])
def test_a_frozen_recurrent_layer_with_dropout_is_an_error_before_training(rates, images):
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(4, 1, name="block1_conv")(inputs)
    x = L.LSTM(4, return_sequences=True, **rates)(L.Reshape((36, 4))(x))
    backbone = keras.Model(inputs, L.Conv2D(4, 1, name="block2_conv")(L.Reshape((6, 6, 4))(x)))
    with pytest.raises(ValueError, match="built with a dropout rate of 0"):
        ftk.fine_tune(
            backbone, ftk.classification_head(3), ftk.FineTuneSpec("block1"), images,
            preprocessing=None,
        )  # fmt: skip


@pytest.mark.parametrize("features", [None, False])
@pytest.mark.parametrize(
    "layer", [L.BatchNormalization, lambda: L.EinsumDense("abcd,de->abce", (None, None, 3))]
)
def test_preprocessing_stays_as_it_is(layer, features, images):
    layer = layer()
    layer(np.zeros((1, 6, 6, 3)))
    spec, head = ftk.FineTuneSpec("all", epochs=2), ftk.classification_head(3)
    options = {"preprocessing": layer, "features": features, "batch_size": 6, "verbose": 0}
    tuned = ftk.fine_tune(plain_backbone(), head, spec, images, **options)
    trained = next(x for x in tuned.model.layers if isinstance(x, type(layer)))
    pairs = zip(layer.get_weights(), trained.get_weights(), strict=True)
    assert all(np.array_equal(old, new) for old, new in pairs)


@pytest.mark.parametrize("layer", [Counter, Codebook])
def test_preprocessing_that_would_move_needs_features(layer, images):
    backbone, head = plain_backbone(), ftk.classification_head(3)
    layer = layer()
    layer(np.zeros((1, 6, 6, 3)))
    options = {"preprocessing": layer, "batch_size": 6, "verbose": 0}
    with pytest.raises(ValueError, match="`preprocessing` must not change its own variables"):
        ftk.fine_tune(backbone, head, ftk.FineTuneSpec(1), images, features=False, **options)
    tuned = ftk.fine_tune(backbone, head, ftk.FineTuneSpec(1), images, **options)
    trained = next(x for x in tuned.model.layers if isinstance(x, type(layer)))
    assert all(map(np.array_equal, layer.get_weights(), trained.get_weights()))


@pytest.mark.parametrize("layer", [Counter, L.BatchNormalization])
def test_augmentation_that_changes_its_own_variables_is_an_error(layer, images):
    with pytest.raises(ValueError, match="`augmentation` must not change its own variables"):
        ftk.fine_tune(
            plain_backbone(), ftk.classification_head(3), ftk.FineTuneSpec(1), images,
            preprocessing=None, augmentation=layer(), verbose=0,
        )  # fmt: skip


def test_a_layer_that_changes_its_state_in_inference_is_an_error_before_training(rejected):
    inputs = keras.Input(batch_shape=(2, 6, 4))
    x = L.LSTM(4, return_sequences=True, stateful=True, name="memory")(inputs)
    backbone = keras.Model(inputs, L.Dense(2, name="last")(x))
    with rejected("stateful=False.*Received: the layer 'memory'"):
        ftk.FineTuneSpec(0).plan(backbone)


def test_planning_changes_no_variable():
    backbone = backbone_with("SpectralNormalization")
    before = backbone.get_weights()
    ftk.FineTuneSpec("all").plan(backbone)
    assert all(map(np.array_equal, before, backbone.get_weights()))


def test_lora_holds_its_kernel_back_in_a_phase_after_one_that_froze_it(images):
    backbone = backbone_with("LoRA")
    for blocks in ("all", 0, "all"):
        plan = ftk.FineTuneSpec(blocks).apply(backbone)
        assert {v.path for v in backbone.trainable_variables} == moving(plan)
    kernels = {v.path for layer in backbone.layers if getattr(layer, "lora_enabled", False)
               for v in layer.weights if v.path.endswith("/kernel")}  # fmt: skip
    assert len(kernels) == 3
    assert not kernels & moving(plan)


def test_flags_inside_composite_layers_are_overwritten_on_every_backend():
    backbone = backbone_with("Composite")
    for _ in range(2):
        plan = ftk.FineTuneSpec("all", batch_norm="train").apply(backbone)
        assert {v.path for v in backbone.trainable_variables} == {*plan.trainable_variables}
        assert any(path.endswith("first/kernel") for path in plan.trainable_variables)
        for layer in backbone.layers:
            layer.trainable = False


@keras.saving.register_keras_serializable("test_state")
class Borrower(L.Layer):
    """Uses a layer that another block uses too."""

    def __init__(self, lent, **options):
        super().__init__(**options)
        self.lent = lent

    def call(self, x):
        return self.lent(x)


def test_a_layer_that_blocks_share_is_frozen_or_trained_as_one(rejected):
    lent, inputs = L.Conv2D(4, 1, name="lent"), keras.Input((6, 6, 4))
    x = Borrower(lent, name="block1_conv")(inputs)
    x = L.Conv2D(4, 1, name="block2_conv")(x)
    x = Borrower(lent, name="block3_conv")(x)
    backbone = keras.Model(inputs, x)
    with rejected("share a layer, or none of them.*'block1_conv', which shares"):
        ftk.FineTuneSpec(1).plan(backbone)
    assert len(ftk.FineTuneSpec(0).plan(backbone).trainable_variables) == 0


def test_a_copied_normalization_scales_as_the_original(images):
    inputs = keras.Input((6, 6, 3))
    norm = L.Normalization()
    norm.adapt(images.load(size=(6, 6)).astype("float32"))
    backbone = keras.Model(inputs, L.Conv2D(4, 1, name="block1_conv")(norm(inputs)))
    tuned = ftk.fine_tune(
        backbone, ftk.classification_head(3), ftk.FineTuneSpec(0), images, verbose=0
    )
    pixels = images.load(size=(6, 6)).astype("float32")
    pooled = keras.ops.convert_to_numpy(backbone(pixels)).mean(axis=(1, 2))
    kernel, bias = tuned.model.get_weights()[-2:]
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(pooled @ kernel + bias))
    assert np.allclose(tuned.model.predict(pixels, verbose=0), expected, atol=1e-5)
