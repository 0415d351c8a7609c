"""Models of any structure: colliding names, lists of one tensor, several tensors, subclasses."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import pytest

import finetune_kit as ftk

IMAGES = ftk.ImageSet.from_arrays(
    np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8), ["a", "b"] * 4
)
PIXELS = IMAGES.load(range(3), (16, 16)).astype(np.float32)


def outputs(model: keras.Model, inputs: np.ndarray = PIXELS) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def backbone(names: str | None = None) -> keras.Model:
    """Three convolutions, each followed by an activation; all layers get this name, numbered."""

    def numbered() -> Iterator[str | None]:
        yield names
        for i in range(1, 9):
            yield names and f"{names}_{i}"

    name = numbered()
    x = inputs = keras.Input((16, 16, 3))
    for width in (4, 6, 8):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", name=next(name))(x)
        x = keras.layers.ReLU(name=next(name))(x)
    return keras.Model(inputs, x, name="small")


def reloaded(model: keras.Model, folder) -> keras.Model:
    """The model from its file, in what Keras takes for a new session."""
    model.save(folder / "model.keras")
    keras.backend.clear_session()
    return keras.models.load_model(folder / "model.keras")


def train(model, head=None, spec=None, **options) -> ftk.FineTuned:
    options = {"preprocessing": None, "batch_size": 4, "verbose": 0, **options}
    head = head or ftk.classification_head(2)
    return ftk.fine_tune(model, head, spec or ftk.FineTuneSpec(1), IMAGES, **options)


# Names are no identity.


@pytest.mark.parametrize(
    ("name", "features"),
    [("rescaling", None), ("dense", None), ("pooling", False), ("predictions", None)],
)
def test_layers_of_backbone_head_and_preprocessing_may_have_the_same_names(name, features):
    keras.backend.clear_session()
    head = keras.Sequential(
        [
            keras.layers.GlobalAveragePooling2D(name="pooling"),
            keras.layers.Dense(4, name="dense"),
            keras.layers.Dropout(0.1, name="dropout"),
            keras.layers.Dense(2, activation="softmax", name="predictions"),
        ],
        name="rescaling",
    )
    preprocessing = keras.layers.Rescaling(1 / 255, name="rescaling")
    specs = [ftk.FineTuneSpec(), ftk.FineTuneSpec(2, layer_decay=0.5)]
    model = backbone(name)
    tuned = train(model, head, specs, features=features, preprocessing=preprocessing)
    assert [layer.name for layer in head.layers] == ["pooling", "dense", "dropout", "predictions"]
    assert len({v.path for v in tuned.model.weights}) == len(tuned.model.weights) == 10
    assert ftk.grad_cam(tuned, PIXELS, at=ftk.conv_blocks(model)[0].name).shape == (3, 16, 16)


def test_a_model_from_another_session_trains_and_is_saved_and_loaded(tmp_path):
    keras.backend.clear_session()
    model = reloaded(backbone(), tmp_path)
    keras.backend.clear_session()
    extra = keras.Sequential([keras.layers.Conv2D(8, 1), keras.layers.ReLU()])
    inputs = keras.Input((16, 16, 3))
    joined = keras.Model(inputs, extra(model(inputs)))  # its inner names collide
    tuned = train(joined, spec=ftk.FineTuneSpec("all"), preprocessing=keras.layers.ReLU())
    expected = outputs(tuned.model)
    np.testing.assert_allclose(outputs(reloaded(tuned.model, tmp_path)), expected, atol=1e-6)


def test_nested_models_whose_inner_names_are_equal_have_a_plan_and_train():
    x = inputs = keras.Input((16, 16, 3))
    for _ in range(2):
        inner = keras.Input(x.shape[1:])
        x = keras.Model(inner, keras.layers.Conv2D(3, 3, name="conv")(inner))(x)
    model = keras.Model(inputs, x, name="twins")
    paths = ftk.FineTuneSpec("all").plan(model).trainable_variables
    assert paths == ("conv/kernel", "conv/bias", "conv/kernel_x2", "conv/bias_x2")
    tuned = train(model, spec=ftk.FineTuneSpec("all"))
    moved = {v.path for v in tuned.model.weights[:4]}
    assert moved == {*tuned.plans[0].trainable_variables}
    assert len(moved) == 4


def test_parts_with_equal_names_are_stitched():
    keras.backend.clear_session()
    first = backbone()
    keras.backend.clear_session()
    inputs = keras.Input((2, 2, 8))
    second = keras.Model(inputs, keras.layers.Conv2D(5, 1)(keras.layers.ReLU()(inputs)))
    expected = outputs(second, outputs(first))
    whole = ftk.stitch(first, second)
    np.testing.assert_allclose(outputs(whole), expected, atol=1e-6)
    assert len({layer.name for layer in whole.layers}) == len(whole.layers)


def test_two_weights_of_one_name_in_a_layer_are_an_error_with_the_remedy():
    class Twice(keras.layers.Layer):
        def build(self, shape):
            self.scales = [self.add_weight(shape=(shape[-1],), name="scale") for _ in range(2)]

        def call(self, x):
            return x * self.scales[0] * self.scales[1]

    model = backbone()
    doubled = keras.Model(model.input, Twice(name="twice")(model.output))
    with pytest.raises(ValueError, match=r"different names to `add_weight`.*: twice/scale"):
        train(doubled)


# Copies compute what the original computes.


class Wide(keras.Model):
    """A functional subclass whose width its config does not tell."""

    def __init__(self, width: int = 4, activation: str = "relu") -> None:
        inputs = keras.Input((16, 16, 3))
        x = keras.layers.Conv2D(8, 3, strides=2, activation=activation)(inputs)
        x = keras.layers.Conv2D(width, 3, strides=2)(x)
        super().__init__(inputs, x, name="wide")

    def get_config(self):
        return {}


class Required(Wide):
    def __init__(self, *, width: int) -> None:
        super().__init__(width)


@pytest.mark.parametrize("model", [lambda: Wide(4, "tanh"), lambda: Required(width=6)])
def test_a_functional_subclass_is_copied_along_its_graph(model):
    model = model()
    tuned = train(model, spec=ftk.FineTuneSpec())
    expected = outputs(tuned.model.get_layer("head"), outputs(model))
    np.testing.assert_allclose(outputs(tuned.model), expected, atol=1e-5)
    assert not {*model.layers} & {*tuned.model.layers}  # it is a copy


class Forgetful(keras.layers.Layer):
    """A layer whose config loses what it does."""

    def __init__(self, factor: float = 1.0, **options) -> None:
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config()


class Nameless(Forgetful):
    def __init__(self, table: object) -> None:  # no argument that JSON could hold
        super().__init__()
        self.table = table

    def get_config(self):
        raise NotImplementedError("no config")


class Talkative(Forgetful):
    """A layer whose config holds more than its constructor takes, as some of keras-hub's do."""

    def get_config(self):
        return {**super().get_config(), "factor": self.factor, "patches": 16}


def test_a_layer_whose_config_holds_more_than_its_constructor_takes_is_copied():
    model = backbone()
    model = keras.Model(model.input, Talkative(2.0)(model.output), name="small")
    tuned = train(model, spec=ftk.FineTuneSpec())
    expected = outputs(tuned.model.get_layer("head"), outputs(model))
    np.testing.assert_allclose(outputs(tuned.model), expected, atol=1e-5)


class Overridden(keras.Model):
    """A functional model whose call does more than its graph."""

    def call(self, x, training=None, mask=None):
        return 3 * super().call(x, training=training)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: Forgetful(2.0)(x), r"the same outputs\. Check the `get_config`.*'small'"),
        (lambda x: Nameless(object())(x), r"must have a config.*'nameless.*' of type Nameless"),
    ],
)
def test_a_layer_that_cannot_be_copied_is_an_error_with_the_remedy(make, message):
    model = backbone()
    model = keras.Model(model.input, make(model.output), name="small")
    with pytest.raises(ValueError, match=message):
        train(model)


def test_a_model_that_computes_more_than_its_graph_is_an_error():
    model = backbone()
    with pytest.raises(ValueError, match=r"`call` of its own, which .* 'small' of type Overridden"):
        train(Overridden(model.input, model.output, name="small"))


# Inputs and outputs of any structure.


def layers_on(inputs, **options):
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", **options)(inputs)
    return keras.layers.Conv2D(6, 3, **options)(x)


def functional(*shape: int | None, outputs=lambda x: x) -> keras.Model:
    inputs = keras.Input(shape)
    return keras.Model(inputs, outputs(layers_on(inputs)), name="small")


def as_lists() -> keras.Model:
    model = functional(16, 16, 3)
    return keras.Model(model.inputs, model.outputs)


def with_input_list() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    return keras.Model([inputs], {"features": layers_on(inputs)})


def with_input_tensor() -> keras.Model:
    return keras.applications.MobileNet(
        alpha=0.25, include_top=False, weights=None, input_tensor=keras.Input((32, 32, 3))
    )


def with_batch_size() -> keras.Model:
    inputs = keras.Input(batch_shape=(3, 16, 16, 3))
    return keras.Model(inputs, layers_on(inputs))


def of_integers() -> keras.Model:
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    return keras.Model(inputs, layers_on(keras.ops.cast(inputs, "float32") / 255))


def sequential() -> keras.Model:
    return keras.Sequential([keras.Input((16, 16, 3)), *(keras.layers.Conv2D(4, 3) for _ in "ab")])


def unet() -> keras.Model:
    x = inputs = keras.Input((16, 16, 3))
    skips = []
    for width in (4, 6):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = keras.layers.MaxPooling2D()(x)
    for width, skip in zip((6, 4), reversed(skips), strict=True):
        x = keras.layers.Concatenate()([keras.layers.UpSampling2D()(x), skip])
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, x)


def sized() -> keras.Model:
    """What the error about an open size proposes."""
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, functional(None, None, 3)(inputs))


@pytest.mark.parametrize(
    ("make", "blocks", "features"),
    [
        (as_lists, 1, None),
        (with_input_list, 1, False),
        (with_input_tensor, 2, None),
        (with_batch_size, 1, None),
        (of_integers, 1, False),
        (sequential, 1, None),
        (sized, 1, None),
        (lambda: functional(16, 16, 1), 1, None),  # gray
        (unet, 1, None),
        (unet, 2, None),  # two tensors cross the cut
        (unet, 2, False),
    ],
)
def test_a_backbone_of_any_structure_trains_as_its_plain_form(make, blocks, features):
    model = make()
    before = model.get_weights()
    scale = keras.layers.Rescaling(1.0 if model.inputs[0].dtype == "uint8" else 1 / 255)
    scale = ftk.preprocessing(model) if make is with_input_tensor else scale
    plan = ftk.FineTuneSpec(blocks).plan(model)
    tuned = train(model, spec=ftk.FineTuneSpec(blocks), preprocessing=scale, features=features)
    assert sum(plan.trainable) == blocks == sum(tuned.plan.trainable)
    assert all(map(np.array_equal, before, model.get_weights()))  # a copy was trained
    size = tuned.model.input_shape[1:3]
    pixels = IMAGES.load(range(5), size).astype(np.float32)
    assert tuned.model.input_shape == (None, *size, 3)
    built = ftk.FineTuneSpec(blocks).build(model, ftk.classification_head(2), preprocessing=scale)
    built.set_weights(tuned.model.get_weights())
    np.testing.assert_allclose(outputs(built, pixels), outputs(tuned.model, pixels), atol=1e-5)


def several_inputs() -> keras.Model:
    inputs = [keras.Input((16, 16, 3)), keras.Input((16, 16, 3))]
    return keras.Model(inputs, layers_on(keras.layers.Add()(inputs)))


def channels_first() -> keras.Model:
    inputs = keras.Input((3, 16, 16))
    return keras.Model(inputs, layers_on(inputs, data_format="channels_first"))


def tokens_in() -> keras.Model:
    inputs = keras.Input((10,), dtype="int32")
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Embedding(10, 4)(inputs)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (several_inputs, r"Give it one input.*\[\(None, 16, 16, 3\), \(None, 16, 16, 3\)\]"),
        (tokens_in, r"Pass a model for images.*\(None, 10\)"),
        (lambda: functional(16, 16, 4), r"makes its channels from RGB.*\(None, 16, 16, 4\)"),
        (lambda: functional(None, None, 3), "Fix the size.*None, None, None, 3"),
        (channels_first, r"channels first.*\(None, 3, 16, 16\)"),
        (lambda: functional(16, 16, 3, outputs=lambda x: [x, x + 1]), "a head that takes them all"),
        (
            lambda: functional(16, 16, 3, outputs=lambda x: {"a": x, "b": x + 1}),
            "backbone.outputs",
        ),
        (
            lambda: functional(16, 16, 3, outputs=keras.layers.Reshape((-1, 6))),
            "a sequence of tokens.*GlobalAveragePooling1D",
        ),
        (
            lambda: functional(16, 16, 3, outputs=keras.layers.GlobalMaxPooling2D()),
            "pooled already.*pooling=None",
        ),
        (lambda: keras.Sequential([keras.layers.Conv2D(4, 3)]), "a known input shape"),
    ],
)
def test_a_backbone_that_does_not_fit_is_an_error_with_cause_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        train(make())


def test_a_head_for_tokens_and_one_for_several_outputs_train():
    tokens = functional(16, 16, 3, outputs=keras.layers.Reshape((-1, 6)))
    head = keras.Sequential(
        [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(2, activation="softmax")]
    )
    assert outputs(train(tokens, head).model).shape == (3, 2)
    pair = functional(16, 16, 3, outputs=lambda x: [x, keras.layers.Conv2D(3, 1)(x)])
    both = [keras.Input(shape[1:]) for shape in pair.output_shape]
    vector = keras.layers.Concatenate()([keras.layers.GlobalMaxPooling2D()(x) for x in both])
    head = keras.Model(both, keras.layers.Dense(2, activation="softmax")(vector), name="head")
    assert outputs(train(pair, head).model).shape == (3, 2)
