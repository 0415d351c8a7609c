"""The pixel convention of a backbone's weights is found, and used once."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import finetune_kit as ftk

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype("float32")


def test_a_renamed_model_is_still_known():
    backbone = keras.applications.MobileNet(
        weights=None, alpha=0.25, include_top=False, input_shape=(32, 32, 3), name="mine"
    )
    assert np.allclose(ftk.preprocessing(backbone)(PIXELS), PIXELS / 127.5 - 1, atol=1e-5)


def test_a_model_that_rescales_by_itself_gets_raw_pixels():
    shape = {"weights": None, "include_top": False, "input_shape": (32, 32, 3)}
    inside = keras.applications.MobileNetV3Small(**shape)
    outside = keras.applications.MobileNetV3Small(**shape, include_preprocessing=False)
    assert np.array_equal(ftk.preprocessing(inside)(PIXELS), PIXELS)
    assert np.allclose(ftk.preprocessing(outside)(PIXELS), PIXELS / 127.5 - 1, atol=1e-5)


def test_an_unknown_family_is_an_error_that_tells_what_to_say():
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs), name="mine")
    with pytest.raises(ValueError, match=r"(?s)Rescaling\(1 / 255\).*Received: 'mine'"):
        ftk.preprocessing(backbone)


@pytest.mark.parametrize(
    ("family", "given", "says"),
    [
        ("EfficientNetB0", keras.layers.Rescaling(1 / 255), "as 0 to 1 .*expect 0 to 255"),
        ("MobileNet", None, "as 0 to 255 through preprocessing=None.*expect -1 to 1"),
        ("MobileNet", keras.layers.Rescaling(1 / 255**2), "does not scale twice"),
        ("MobileNet", keras.layers.Rescaling(1 / 255), "as 0 to 1 .*expect -1 to 1"),  # the study's
        ("MobileNet", keras.layers.Rescaling(1 / 128, offset=-1), None),
    ],
)
def test_pixels_on_another_scale_are_warned_of(family, given, says, tiny_images, recwarn):
    backbone = getattr(keras.applications, family)(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    split = ftk.stratified_split(tiny_images.labels, (0.5, 0.0, 0.5))

    def tune():
        ftk.fine_tune(backbone, ftk.classification_head(3), ftk.FineTuneSpec(), tiny_images,
                      split, preprocessing=given, verbose=0)  # fmt: skip

    if says is None:
        tune()
    else:
        with pytest.warns(UserWarning, match=rf"(?s){says}"):
            tune()


def test_pixels_from_0_to_1_are_warned_of():
    with pytest.warns(UserWarning, match="holds none above 1"):
        ftk.ImageSet.from_arrays(np.ones((2, 4, 4, 3), np.uint8), [0, 1])
