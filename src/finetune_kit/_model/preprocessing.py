"""A backbone comes in, the pixel convention its weights were trained with goes out.

The conventions are those of `keras.applications`; its `preprocess_input` functions are the source
of the numbers. This room recognises a family by its layer names, so a renamed model is still known,
and knows nothing of images, blocks or training.
"""

from __future__ import annotations

import warnings

import keras
import numpy as np

# Per channel, RGB, on a scale of 0-1: mean and standard deviation of ImageNet.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Per channel, BGR, on a scale of 0-255: what Caffe's models subtract.
_CAFFE_MEAN = (103.939, 116.779, 123.68)

# How the name of one layer ends, and what that family expects. First match counts: the more
# particular families stand before those whose names they share.
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
    """Find what raw pixels must pass through before they enter a backbone.

    Dividing by 255 where the weights expect [-1, 1], or twice where the model rescales by itself,
    trains without any error and costs accuracy. The convention is found from the layer names of
    the architecture, so random weights get that of the pretrained ones.

    Args:
        backbone: a model of `keras.applications`, renamed or not, with or without its weights.

    Returns:
        A plain Keras layer (or model) that takes raw RGB pixels from 0 to 255, of any size,
        `(n, h, w, 3)`:

        - `"tf"`, to [-1, 1]: MobileNet, MobileNetV2, ResNetV2, Inception, Xception, NASNet;
        - `"torch"`, by ImageNet's mean and standard deviation: DenseNet;
        - `"caffe"`, BGR minus ImageNet's mean: VGG, ResNet;
        - nothing, where the model rescales inside: EfficientNet, EfficientNetV2, MobileNetV3,
          ConvNeXt.

    Raises:
        ValueError: if the family is not known.

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
        "The pixel convention of `backbone` must be known, because pixels scaled otherwise train "
        "without an error and cost accuracy. Say it: preprocessing=a Keras layer that takes raw "
        "0-255 RGB, such as keras.layers.Rescaling(1 / 255), or preprocessing=None if the model "
        f"takes raw pixels. Received: {backbone.name!r}, which is like no family of "
        "keras.applications"
    )


def warn_of_pixels(given: keras.Layer | None, backbone: keras.Model) -> None:
    """Warn where the pixels that reach a known backbone are on another scale than it expects."""
    try:
        expected = preprocessing(backbone)
    except ValueError:  # nobody knows what it expects
        return
    low, high = pixel_range(expected, backbone)
    lowest, highest = pixel_range(given, backbone)
    if not 2 / 3 < (highest - lowest) / (high - low) < 3 / 2:
        name = "None" if given is None else repr(given.name)
        warnings.warn(
            f"Raw pixels from 0 to 255 reach {backbone.name!r} as {lowest:.3g} to {highest:.3g} "
            f"through preprocessing={name}; its weights expect {low:.3g} to {high:.3g}. Pass "
            "preprocessing='auto', or a layer that does not scale twice",
            stacklevel=3,
        )


def pixel_range(given: keras.Layer | None, backbone: keras.Model) -> tuple[float, float]:
    """What black and white become in front of the backbone, the least and the most."""
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
