"""The preprocessing of raw pixels that the weights of a backbone expect.

The numbers are those of the `preprocess_input` functions in `keras.applications`. A family is
recognized by the names of its layers, so renaming a model does no harm.
"""

from __future__ import annotations

import warnings

import keras
import numpy as np

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


def preprocessing(backbone: keras.Model) -> keras.Layer:
    """Return the layer that scales raw pixels as the weights of a backbone expect.

    Use it wherever a model is built without `fine_tune`, which calls it by default. Dividing by 255
    where the weights expect [-1, 1], or scaling twice where the model has a rescaling layer of its
    own, raises no error and costs accuracy. The architecture decides: a model with random weights
    gets the preprocessing of the pretrained one.

    Args:
        backbone: a model of `keras.applications`, renamed or not, with or without its weights.

    Returns:
        A plain Keras layer (or model) that takes raw RGB pixels from 0 to 255, of any size,
        `(n, h, w, 3)`, and returns them

        - scaled to [-1, 1] for MobileNet, MobileNetV2, ResNetV2, Inception, Xception and NASNet;
        - normalized by ImageNet's mean and standard deviation for DenseNet;
        - as BGR minus ImageNet's mean for VGG and ResNet;
        - unchanged for models that rescale pixels themselves: EfficientNet, EfficientNetV2,
          MobileNetV3 and ConvNeXt.

    Raises:
        ValueError: if the family is unknown.

    Example:
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(96, 96, 3))
        >>> float(preprocessing(backbone)(255.0))
        1.0
    """
    names = [layer.name for layer in backbone.layers]
    if _rescales_itself(backbone):
        return keras.layers.Identity(name="preprocessing")
    for ending, convention in _FAMILIES:
        if any(name.endswith(ending) for name in names):
            return _layer(convention)
    raise ValueError(
        "`backbone` must belong to a family of keras.applications for its preprocessing to be "
        "known, and wrongly scaled pixels cost accuracy without an error. Pass preprocessing=a "
        "Keras layer that takes raw 0-255 RGB, such as keras.layers.Rescaling(1 / 255), or "
        "preprocessing=None for a model that takes raw pixels. "
        f"Received: {backbone.name!r}, whose family is unknown"
    )


def warn_of_pixel_range(given: keras.Layer | None, backbone: keras.Model) -> None:
    """Warn if a backbone of a known family gets pixels on another scale than it expects."""
    try:
        expected = preprocessing(backbone)
    except ValueError:  # an unknown family
        return
    low, high = pixel_range(expected, backbone)
    lowest, highest = pixel_range(given, backbone)
    if not 2 / 3 < (highest - lowest) / (high - low) < 3 / 2:
        name = "None" if given is None else repr(given.name)
        warnings.warn(
            f"{backbone.name!r} expects pixels from {low:.3g} to {high:.3g} and gets pixels from "
            f"{lowest:.3g} to {highest:.3g} with preprocessing={name}. Pass preprocessing='auto', "
            "or a layer that takes raw pixels from 0 to 255 and scales them once",
            stacklevel=7,  # the line that calls `fine_tune`
        )


def pixel_range(given: keras.Layer | None, backbone: keras.Model) -> tuple[float, float]:
    """Return the least and the greatest value of black and white pixels after preprocessing."""
    probe = np.zeros((1, *backbone.input_shape[1:]), "float32")
    probe[:, ::2] = 255
    values = keras.ops.convert_to_numpy(probe if given is None else given(probe))
    return float(values.min()), float(values.max())


def _layer(convention: str) -> keras.Layer:
    name = "preprocessing"
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


def _rescales_itself(backbone: keras.Model) -> bool:
    first = [x for x in backbone.layers if not isinstance(x, keras.layers.InputLayer)][:1]
    return isinstance(first[0], (keras.layers.Rescaling, keras.layers.Normalization))
