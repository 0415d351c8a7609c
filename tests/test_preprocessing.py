"""Raw pixels are scaled once, and as the weights of a backbone expect."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._model.preprocessing import preprocessing, warn_of_pixel_range

L = keras.layers
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype("float32")


def test_the_family_of_a_renamed_model_is_known():
    backbone = keras.applications.MobileNet(
        weights=None, alpha=0.25, include_top=False, input_shape=(32, 32, 3), name="mine"
    )
    assert np.allclose(ftk.preprocessing(backbone)(PIXELS), PIXELS / 127.5 - 1, atol=1e-5)


def test_a_model_that_rescales_pixels_itself_gets_raw_pixels():
    shape = {"weights": None, "include_top": False, "input_shape": (32, 32, 3)}
    inside = keras.applications.MobileNetV3Small(**shape)
    outside = keras.applications.MobileNetV3Small(**shape, include_preprocessing=False)
    assert np.array_equal(ftk.preprocessing(inside)(PIXELS), PIXELS)
    assert np.allclose(ftk.preprocessing(outside)(PIXELS), PIXELS / 127.5 - 1, atol=1e-5)


def test_an_unknown_family_is_an_error_with_the_remedy():
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs), name="mine")
    with pytest.raises(ValueError, match=r"(?s)Rescaling\(1 / 255\).*Received: 'mine'"):
        ftk.preprocessing(backbone)


@pytest.fixture(scope="module")
def families() -> dict[str, keras.Model]:
    options = {"weights": None, "include_top": False, "input_shape": (32, 32, 3)}
    return {
        "EfficientNetB0": keras.applications.EfficientNetB0(**options),
        "MobileNet": keras.applications.MobileNet(**options, alpha=0.25),
    }


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("EfficientNetB0", keras.layers.Rescaling(1 / 255), "from 0 to 255 and .* from 0 to 1 "),
        ("MobileNet", None, "from -1 to 1 and .* from 0 to 255 with preprocessing=None"),
        ("MobileNet", keras.layers.Rescaling(1 / 255**2), "scales them once"),
        ("MobileNet", keras.layers.Rescaling(1 / 255), "from -1 to 1 and .* from 0 to 1 "),
    ],
)
def test_pixels_on_another_scale_cause_a_warning(families, family, given, message):
    with pytest.warns(UserWarning, match=rf"expects pixels .*{message}"):
        warn_of_pixel_range(given, families[family])


def test_pixels_on_nearly_the_expected_scale_cause_no_warning(families):
    warn_of_pixel_range(keras.layers.Rescaling(1 / 128, offset=-1), families["MobileNet"])
    warn_of_pixel_range(preprocessing(families["MobileNet"]), families["MobileNet"])
    warn_of_pixel_range(None, families["EfficientNetB0"])


def test_a_backbone_of_an_unknown_family_causes_no_warning(small_backbone):
    warn_of_pixel_range(None, small_backbone)


def test_training_on_pixels_on_another_scale_causes_a_warning(families, tiny_images):
    backbone, head = families["MobileNet"], ftk.classification_head(3)
    with pytest.warns(UserWarning, match="expects pixels from -1 to 1"):
        ftk.fine_tune(
            backbone, head, ftk.FineTuneSpec(), tiny_images, preprocessing=None, verbose=0
        )


def test_pixels_from_0_to_1_cause_a_warning():
    with pytest.warns(UserWarning, match="holds none above 1"):
        ftk.ImageSet.from_arrays(np.ones((2, 4, 4, 3), np.uint8), [0, 1])


# What weights expect of pixels, the name of a layer by which a family is known, and the same as
# layers. "raw": weights of an unknown family, behind a front that scales raw pixels.
MEAN, STD = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
CAFFE = np.array([103.939, 116.779, 123.68])
CONVENTIONS = {
    "raw": ("mine", lambda x: x / 255, lambda: [L.Rescaling(1 / 255)]),
    "tf": ("bn_Conv1", lambda x: x / 127.5 - 1, lambda: [L.Rescaling(1 / 127.5, offset=-1)]),
    "torch": (
        "conv2_block1_concat", lambda x: (x - MEAN) / STD,
        lambda: [L.Normalization(mean=MEAN, variance=STD**2)],
    ),
    "caffe": (
        "block1_conv1", lambda x: x[..., ::-1] - CAFFE,
        lambda: [
            L.Lambda(lambda x: keras.ops.flip(x, -1), output_shape=lambda shape: shape),
            L.Rescaling(1.0, offset=-CAFFE),
        ],
    ),
}  # fmt: skip


def weights(convention: str) -> keras.Model:
    """Return a convolution whose name says what it expects, behind padding as in ResNet."""
    inputs = keras.Input((8, 8, 3))
    x = L.ZeroPadding2D(1)(inputs)
    x = L.Conv2D(2, 3, name=CONVENTIONS[convention][0])(x)
    return keras.Model(inputs, L.ReLU()(x), name="weights")


def behind(front, base, *, nested=False) -> keras.Model:
    """Return a model that applies a front to its pixels before the layers of another."""
    inputs = keras.Input((8, 8, 3))
    x = front(inputs)
    if nested:
        return keras.Model(inputs, base(x), name="nested")
    for layer in base.layers[1:]:
        x = layer(x)
    return keras.Model(inputs, x, name="flat")


def as_operations(convention):
    ops = keras.ops
    return {
        "raw": lambda x: ops.clip(ops.divide(x, 255.0), 0, 1),
        "tf": lambda x: x / 127.5 - 1,
        "torch": lambda x: (x - MEAN.astype("float32")) / STD.astype("float32"),
        "caffe": lambda x: ops.flip(x, axis=-1) - CAFFE.astype("float32"),
    }[convention]


def in_sequence(convention):
    return keras.Sequential([keras.Input((8, 8, 3)), *CONVENTIONS[convention][2]()])


def in_layers(convention):
    layers = CONVENTIONS[convention][2]()
    return lambda x: layers[0](x) if len(layers) == 1 else layers[1](layers[0](x))


FRONTS = {
    "none": lambda c: weights(c),
    "nested without one": lambda c: behind(lambda x: x, weights(c), nested=True),
    "layers": lambda c: behind(in_layers(c), weights(c)),
    "operations": lambda c: behind(as_operations(c), weights(c)),
    "a nested model": lambda c: behind(in_sequence(c), weights(c)),
    "operations before a nested model": lambda c: behind(
        as_operations(c), weights(c), nested=True
    ),
    "what preprocessing returns": lambda c: behind(
        ftk.preprocessing(weights(c)), weights(c), nested=True
    ),
    "Sequential": lambda c: keras.Sequential(
        [keras.Input((8, 8, 3)), *CONVENTIONS[c][2](), weights(c)]
    ),
    "inside two models": lambda c: behind(lambda x: x, behind(as_operations(c), weights(c)),
                                          nested=True),
    "for pixels from 0 to 1": lambda c: behind(lambda x: as_operations(c)(x * 255.0), weights(c)),
    "with a random layer": lambda c: behind(
        lambda x: as_operations(c)(L.RandomFlip()(x)), weights(c)
    ),
}  # fmt: skip


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_front_of_a_model_and_what_is_added_scale_pixels_once(convention, front):
    unknown = {"none", "nested without one", "what preprocessing returns", "for pixels from 0 to 1"}
    if convention == "raw" and front in unknown:
        pytest.skip("that an unknown family scales pixels from 0 to 1 cannot be known")
    backbone = FRONTS[front](convention)
    convolution = next(x for x in backbone._flatten_layers() if isinstance(x, L.Conv2D))
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype("float32")
    expected = L.ReLU()(convolution(np.pad(CONVENTIONS[convention][1](images).astype("float32"),
                                           [(0, 0), (1, 1), (1, 1), (0, 0)])))  # fmt: skip
    found = backbone(ftk.preprocessing(backbone)(images), training=False)
    found, expected = map(keras.ops.convert_to_numpy, (found, expected))
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def standardized(x):
    return (x - keras.ops.mean(x, axis=(1, 2), keepdims=True)) / (
        keras.ops.std(x, axis=(1, 2), keepdims=True) + 1.0
    )


def two_branches(second):
    inputs = keras.Input((8, 8, 3))
    x = inputs / 255.0
    branches = [L.Conv2D(2, 1)(x), L.Conv2D(2, 1)(second(x))]
    return keras.Model(inputs, L.Concatenate()(branches), name="mine")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: behind(standardized, weights("raw")), "not a scaling of pixels"),
        (lambda: behind(standardized, weights("tf")), "not a scaling of pixels"),
        (lambda: two_branches(lambda x: x * 2.0 - 1.0), "not a scaling of pixels"),
        (lambda: behind(lambda x: x / 255.0, weights("torch")), "-2.12 to 2.64 .* 0 to 1 itself"),
        (lambda: behind(lambda x: x - 100.0, weights("tf")), "-1 to 1 .* -100 to 155 itself"),
        (lambda: behind(lambda x: x * 2.0 - 1.0, weights("raw")), "unknown .* -1 to 509 itself"),
        (
            lambda: behind(lambda x: keras.ops.flip(x, -1), weights("raw")),
            "order of the channels itself$",
        ),
        (lambda: behind(L.BatchNormalization(), weights("raw")), "family is unknown$"),
        (lambda: behind(lambda x: keras.ops.log(x - 10.0), weights("raw")), "not only scale"),
    ],
)
def test_what_cannot_be_known_is_an_error_with_the_remedy(build, reason):
    backbone = build()
    with pytest.raises(ValueError, match=rf"preprocessing=None for .*{reason}"):
        ftk.preprocessing(backbone)
    warn_of_pixel_range(None, backbone)  # whoever passes it explicitly knows


@pytest.mark.parametrize(
    "build",
    [
        lambda: two_branches(lambda x: L.MaxPooling2D(3, 1, "same")(x)),
        lambda: behind(lambda x: L.Resizing(16, 16)(x) / 255.0, weights("raw")),
        lambda: keras.Sequential(
            [keras.Input((8, 8, 3)), L.Rescaling(1 / 255), L.Reshape((4, 48)), L.Dense(2)]
        ),
        lambda: keras.Sequential(
            [keras.Input((8, 8, 3)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(2)]
        ),
        lambda: keras.Sequential(
            [keras.Input((None, None, 3)), L.Rescaling(1 / 255), L.Conv2D(2, 3)]
        ),
        lambda: keras.Sequential([keras.Input((8, 8, 1)), L.Rescaling(1 / 255), L.Conv2D(2, 3)]),
    ],
    ids=["branches", "resized", "patches", "flattened", "open size", "gray"],
)
def test_a_model_that_scales_pixels_in_its_own_way_gets_raw_pixels(build):
    assert isinstance(ftk.preprocessing(build()), L.Identity)


def test_scaling_by_operations_inside_is_right_and_scaling_again_is_warned_of():
    backbone = FRONTS["operations"]("tf")
    warn_of_pixel_range(None, backbone)
    with pytest.warns(UserWarning, match="expects pixels from 0 to 255 and gets .* from -1 to 1"):
        warn_of_pixel_range(L.Rescaling(1 / 127.5, offset=-1), backbone)


def test_real_weights_give_the_same_features_with_scaling_inside_or_added(imagenet_weights, xrays):
    base = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=imagenet_weights, input_shape=(224, 224, 3)
    )
    inputs = keras.Input((224, 224, 3))
    scaled = keras.applications.mobilenet_v2.preprocess_input(inputs)
    inside = keras.Model(inputs, base(scaled))
    pixels = ftk.read_image_folder(xrays).take([0, 2000]).load(size=(224, 224)).astype("float32")
    expected, found = (
        keras.ops.convert_to_numpy(model(ftk.preprocessing(model)(pixels)))
        for model in (base, inside)
    )
    assert np.abs(expected).max() > 1
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)
