"""Classification heads: plain Keras layers that turn features into predicted probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import keras

from finetune_kit._checks import check_choice, is_count
from finetune_kit._text import shortened

POOLING = ("avg", "max", "avgmax", "flatten", None)


def classification_head(
    classes: int | Sequence[str],
    *,
    units: Sequence[int] = (),
    pooling: str | None = "avg",
    dropout: float = 0.0,
    activation: str = "relu",
    multi_label: bool = False,
) -> keras.Sequential:
    """Build a classifier to put on a backbone: pooling, dense layers, a softmax.

    Args:
        classes: the number of classes, at least 1, or their names, of which only the number is
            used: the outputs are in the order of `ImageSet.class_names`. A single class means one
            sigmoid output (binary classification).
        units: widths of the hidden dense layers, for example `(1024, 512)`. Defaults to none.
        pooling: how a feature map becomes a vector: `"avg"` (default), `"max"`, `"avgmax"` (both,
            concatenated), `"flatten"`, or None for a backbone with pooling of its own.
        dropout: rate of the Dropout before each dense layer, from 0 (default: no Dropout) to below
            1.
        activation: activation of the hidden dense layers. Defaults to `"relu"`.
        multi_label: True for images that may have several labels at once. Each label then has a
            sigmoid of its own, trained on labels of shape `(n, classes)`, each 0 or 1. Defaults to
            False.

    Returns:
        An unbuilt `keras.Sequential` named `head`. It takes features of shape `(n, h, w, c)`, or
        `(n, c)` with `pooling=None`, and returns probabilities of shape `(n, classes)`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> head = classification_head(["COVID", "Normal"], units=(1024, 512))
        >>> head.compute_output_shape((None, 7, 7, 1280))
        (None, 2)
    """
    count = _count(classes)
    if isinstance(units, (str, Integral)) or not all(map(is_count, units)):
        raise ValueError(
            f"`units` must be a sequence of whole numbers from 1 up. Received: units={units!r}"
        )
    check_choice("pooling", pooling, POOLING)
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be from 0 to below 1. Received: dropout={dropout!r}")
    layers = [] if pooling is None else _pooling(pooling)
    for width in units:
        layers += [*_dropout(dropout), keras.layers.Dense(width, activation=activation)]
    last = "sigmoid" if multi_label or count == 1 else "softmax"
    # In float32 under mixed precision too: the loss needs precise probabilities.
    predictions = keras.layers.Dense(count, activation=last, dtype="float32", name="predictions")
    return keras.Sequential([*layers, *_dropout(dropout), predictions], name="head")


def check_not_swapped(backbone: Any, head: Any) -> None:
    """Check that `backbone` and `head` were not passed in the wrong order."""
    if _takes_images(head) and not _takes_images(backbone):
        raise ValueError(
            "`backbone` must come before `head`; the two seem to be swapped. "
            f"Received: backbone={backbone.name!r}, which takes no RGB images, and "
            f"head={head.name!r}, which does"
        )


def misfit(head: keras.Layer, backbone: keras.Model, error: Exception) -> ValueError:
    """Return the error for a head that cannot take the output of a backbone."""
    shape = backbone.output_shape
    remedies = {
        2: "It is pooled already: use classification_head(..., pooling=None)",
        3: "It is a sequence of tokens: use a head that begins with GlobalAveragePooling1D",
    }
    remedy = "See classification_head"
    if isinstance(shape, tuple):
        remedy = remedies.get(len(shape), remedy)
    elif len(shape) > 1:
        remedy = (
            "A backbone with several outputs needs a head that takes them all; or pass "
            "keras.Model(backbone.input, backbone.outputs[0])"
        )
    return ValueError(
        f"`head` must take the output of `backbone` ({backbone.name!r}), of shape {shape}. "
        f"{remedy}. Received: head={head.name!r}, for which Keras reports: {error}"
    )


def _takes_images(model: Any) -> bool:
    shape = getattr(model, "input_shape", None)
    channels = 1 if keras.config.image_data_format() == "channels_first" else 3
    return isinstance(shape, tuple) and len(shape) == 4 and shape[channels] == 3


def _count(classes: Any) -> int:
    """Return the number of classes, given as a number or as their names."""
    if is_count(classes):
        return int(classes)
    if isinstance(classes, Sequence) and not isinstance(classes, (str, bytes)):
        distinct = all(isinstance(name, str) for name in classes) and len(set(classes))
        if distinct and distinct == len(classes):
            return distinct
    raise ValueError(
        "`classes` must be the number of classes, from 1 up, or a sequence of their names, each "
        f"a different text. Received: classes={shortened(classes)} of type "
        f"{type(classes).__name__}"
    )


def _pooling(pooling: str) -> list[keras.Layer]:
    if pooling == "avg":
        return [keras.layers.GlobalAveragePooling2D(name="pooling")]
    if pooling == "max":
        return [keras.layers.GlobalMaxPooling2D(name="pooling")]
    if pooling == "flatten":
        return [keras.layers.Flatten(name="pooling")]
    features = keras.Input((None, None, None))
    both = [keras.layers.GlobalAveragePooling2D(), keras.layers.GlobalMaxPooling2D()]
    vector = keras.layers.Concatenate()([pool(features) for pool in both])
    # A Sequential that begins with a model is built at once, here with an unknown number of
    # channels. Behind a layer without weights it waits for its first input.
    return [keras.layers.Identity(), keras.Model(features, vector, name="pooling")]


def _dropout(rate: float) -> list[keras.Layer]:
    return [keras.layers.Dropout(rate)] if rate else []
