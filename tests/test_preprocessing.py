"""Raw pixels are scaled once, and as the weights of a backbone expect."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._model.preprocessing import preprocessing, warn_of_pixel_range

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
