"""The preprocessing of raw pixels that the weights of a backbone expect.

The numbers are those of the `preprocess_input` functions in `keras.applications`. What the weights
expect is known from the names of a family's layers, so renaming a model does no harm. What the
backbone does to pixels itself is measured, see `front`.
"""

from __future__ import annotations

import warnings

import keras
import numpy as np

from finetune_kit._model.front import Values, channels, front, image
from finetune_kit._model.graph import layers_within

# Mean and standard deviation of ImageNet for the channels RGB, on a scale from 0 to 1.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What models from Caffe subtract from the channels BGR, on a scale from 0 to 255.
_CAFFE_MEAN = (103.939, 116.779, 123.68)

# The ending of one layer's name, and what models with such a layer expect. The first match counts:
# more specific endings come first.
_FAMILIES = (
    ("conv2_block1_preact_bn", "tf"),  # ResNetV2
    ("bn_Conv1", "tf"),  # MobileNetV2
    ("conv_dw_1", "tf"),  # MobileNet
    ("block2_sepconv1", "tf"),  # Xception
    ("mixed0", "tf"),  # InceptionV3
    ("mixed_5b", "tf"),  # InceptionResNetV2
    ("normal_concat_0", "tf"),  # NASNet
    ("expanded_conv_project", "tf"),  # MobileNetV3 with include_preprocessing=False
    ("conv2_block1_concat", "torch"),  # DenseNet
    ("stage_0_block_0_depthwise_conv", "torch"),  # ConvNeXt with include_preprocessing=False
    ("conv2_block1_out", "caffe"),  # ResNet
    ("block1_conv1", "caffe"),  # VGG
)


# Colors by which scalings are compared: black, white, gray, red, green, blue.
_COLORS = np.array(
    [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)], "float32"
)
# What pixels a backbone may take: raw, from 0 to 1, or as one of the families does.
_CONVENTIONS = ("raw", "unit", "tf", "torch", "caffe")


def preprocessing(backbone: keras.Model) -> keras.Layer:
    """Return the layer that scales raw pixels as the weights of a backbone expect.

    Use it wherever a model is built without `fine_tune`, which calls it by default. Dividing by 255
    where the weights expect [-1, 1], or scaling twice where the model has a rescaling layer of its
    own, raises no error and costs accuracy. The architecture decides: a model with random weights
    gets the preprocessing of the pretrained one.

    What the backbone itself does to pixels before its first layer with weights is measured on
    images of one color, whether layers, operations or a nested model do it. The result adds what
    is still missing.

    Args:
        backbone: a model of `keras.applications`, renamed or not, with or without its weights and
            with or without scaling of its own; or any model that scales raw pixels itself.

    Returns:
        A plain Keras layer (or model) that takes raw RGB pixels from 0 to 255, of any size,
        `(n, h, w, 3)`, and returns them

        - scaled to [-1, 1] for MobileNet, MobileNetV2, ResNetV2, Inception, Xception and NASNet;
        - normalized by ImageNet's mean and standard deviation for DenseNet;
        - as BGR minus ImageNet's mean for VGG and ResNet;
        - unchanged for models that scale raw pixels themselves: EfficientNet, EfficientNetV2,
          MobileNetV3, ConvNeXt, and any other model with such a front.

    Raises:
        ValueError: if it cannot be known: a model of another family that does not scale pixels, a
            front that does not fit the family, that standardizes each image, or whose branches
            differ.

    Example:
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(96, 96, 3))
        >>> float(preprocessing(backbone)(255.0))
        1.0
    """
    see = front(backbone)
    if see is None:
        raise _unknown(
            backbone, "whose first layers with weights get values that are not a scaling of pixels"
        )
    colors = _COLORS[:, : channels(backbone)]
    expected = _expected(backbone)
    seen = _pixels([see(color) for color in colors])
    if expected is None:
        if seen is not None and _scales_raw_pixels(seen, colors):
            return _layer("raw")
        raise _unknown(backbone, f"whose family is unknown{_changes(seen, colors)}")
    for convention in _CONVENTIONS:
        given = _scaled(convention, colors)
        if given.shape == colors.shape:
            found = _pixels([see(color) for color in given])
            if found is not None and _alike(found, _scaled(expected, colors)):
                return _layer(convention)
    low, high = _range(_scaled(expected, colors))
    raise _unknown(
        backbone, f"whose family expects {low:.3g} to {high:.3g}{_changes(seen, colors)}"
    )


def warn_of_pixel_range(given: keras.Layer | None, backbone: keras.Model) -> None:
    """Warn if a backbone of a known family gets pixels on another scale than it expects."""
    try:
        expected = preprocessing(backbone)
    except ValueError:  # an unknown family
        return
    low, high = pixel_range(expected, backbone)
    lowest, highest = pixel_range(given, backbone)
    if max(abs(lowest - low), abs(highest - high)) > (high - low) / 6:
        name = "None" if given is None else repr(given.name)
        warnings.warn(
            f"{backbone.name!r} expects pixels from {low:.3g} to {high:.3g} and gets pixels from "
            f"{lowest:.3g} to {highest:.3g} with preprocessing={name}. Pass preprocessing='auto', "
            "or a layer that takes raw pixels from 0 to 255 and scales them once",
            stacklevel=7,  # the line that calls `fine_tune`
        )


def pixel_range(given: keras.Layer | None, backbone: keras.Model) -> tuple[float, float]:
    """Return the least and the greatest value of black and white pixels after preprocessing."""
    probe = image(backbone, 0, 0)
    probe[:, ::2] = 255
    return _range(keras.ops.convert_to_numpy(probe if given is None else given(probe)))


def _expected(backbone: keras.Model) -> str | None:
    """Return what the weights of a backbone expect; None for an unknown family."""
    names = [layer.name for layer in layers_within(backbone)]
    found = (c for ending, c in _FAMILIES if any(name.endswith(ending) for name in names))
    convention = next(found, None)
    return convention if channels(backbone) == 3 or convention == "tf" else None


def _scaled(convention: str, colors: Values) -> Values:
    """Return colors as a convention has them."""
    if convention == "raw":
        return colors
    if convention == "unit":
        return colors / 255
    if convention == "tf":
        return colors / 127.5 - 1
    if convention == "torch":
        return (colors / 255 - np.array(_MEAN, "float32")) / np.array(_STD, "float32")
    return colors[:, ::-1] - np.array(_CAFFE_MEAN, "float32")


def _pixels(values: list[Values]) -> Values | None:
    """Return colors from what a layer gets: their channels, or those of equal pixels of a patch."""
    found = np.stack(values)
    if not np.isfinite(found).all():
        return None
    if found.shape[1] > 3 and found.shape[1] % 3 == 0:
        patches = found.reshape(len(found), -1, 3)
        found = patches[:, 0]
        if not all(_alike(patches[:, i], found) for i in range(patches.shape[1])):
            return None
    return found


def _alike(found: Values, expected: Values) -> bool:
    """Return whether colors are the same, up to 2 % of their range."""
    low, high = _range(expected)
    return found.shape == expected.shape and bool(
        np.abs(found - expected).max() <= 0.02 * (high - low)
    )


def _scales_raw_pixels(seen: Values, colors: Values) -> bool:
    """Return whether a front turns pixels from 0 to 255 into what weights of any family expect."""
    if _alike(seen, colors) or _alike(seen, colors[:, ::-1]):
        return False
    spans = np.abs(seen[1] - seen[0])
    shifted = bool((seen[0] < -50).all()) and spans.max() <= 256
    return bool(spans.min() > 1e-3) and (shifted or bool(spans.max() <= 200))


def _changes(seen: Values | None, colors: Values) -> str:
    """Return what a front does to pixels, for an error message."""
    if seen is None:
        return " and which does not only scale pixels"
    if _alike(seen, colors):
        return ""
    if _alike(seen, colors[:, ::-1]):
        return " and which changes the order of the channels itself"
    low, high = _range(seen)
    return f" and which turns pixels from 0 to 255 into {low:.3g} to {high:.3g} itself"


def _range(values: Values) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _unknown(backbone: keras.Model, reason: str) -> ValueError:
    return ValueError(
        "`backbone` must belong to a family of keras.applications, or scale raw pixels itself, for "
        "its preprocessing to be known: wrongly scaled pixels cost accuracy without an error. Pass "
        "preprocessing=a Keras layer that takes raw 0-255 RGB, such as keras.layers.Rescaling"
        "(1 / 255), or preprocessing=None for a model that takes raw pixels. "
        f"Received: {backbone.name!r}, {reason}"
    )


def _layer(convention: str) -> keras.Layer:
    name = "preprocessing"
    if convention == "raw":
        return keras.layers.Identity(name=name)
    if convention == "unit":
        return keras.layers.Rescaling(1 / 255, name=name)
    if convention == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name=name)
    if convention == "torch":
        return keras.layers.Rescaling(
            [1 / (255 * std) for std in _STD],
            offset=[-mean / std for mean, std in zip(_MEAN, _STD, strict=True)],
            name=name,
        )
    rgb = keras.Input((None, None, 3))
    bgr = keras.ops.flip(rgb, axis=-1)
    offset = [-mean for mean in _CAFFE_MEAN]
    return keras.Model(rgb, keras.layers.Rescaling(1.0, offset=offset)(bgr), name=name)
