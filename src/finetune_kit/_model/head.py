"""Numbers come in, a head goes out: plain Keras layers that turn features into predictions.

It knows no backbone, no images and no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import keras

from finetune_kit._checks import check_choice, check_count, is_count

POOLING = ("avg", "max", "avgmax", "flatten", None)


def classification_head(
    num_classes: int,
    *,
    units: Sequence[int] = (),
    pooling: str | None = "avg",
    dropout: float = 0.0,
    activation: str = "relu",
) -> keras.Sequential:
    """Build a classifier to put on a backbone: pooling, dense layers, a softmax.

    Args:
        num_classes: number of classes, at least 1. One means a single sigmoid output (binary).
        units: widths of the dense layers before the last, for example `(1024, 512)`. Defaults to
            none.
        pooling: how a feature map becomes a vector: `"avg"` (default), `"max"`, `"avgmax"` (both,
            concatenated), `"flatten"`, or None for a backbone that pools by itself.
        dropout: rate of the Dropout before each dense layer, from 0 (default: none) to below 1.
        activation: of the dense layers before the last. Defaults to `"relu"`.

    Returns:
        An unbuilt `keras.Sequential` named `head`; it takes `(n, h, w, c)` features (or `(n, c)`
        with `pooling=None`) and gives probabilities `(n, num_classes)`.

    Raises:
        ValueError: for a value outside what is said above.

    Example:
        >>> head = classification_head(4, units=(1024, 512))
        >>> head.compute_output_shape((None, 7, 7, 1280))
        (None, 4)
    """
    check_count("num_classes", num_classes)
    last = "sigmoid" if num_classes == 1 else "softmax"
    return _head(num_classes, last, units, pooling, dropout, activation)


def multilabel_head(
    num_labels: int,
    *,
    units: Sequence[int] = (),
    pooling: str | None = "avg",
    dropout: float = 0.0,
    activation: str = "relu",
) -> keras.Sequential:
    """Build a head for images that may show several findings at once: a sigmoid for each label.

    Args:
        num_labels: number of labels, at least 1.
        units: see `classification_head`.
        pooling: see `classification_head`.
        dropout: see `classification_head`.
        activation: see `classification_head`.

    Returns:
        An unbuilt `keras.Sequential` named `head`; it gives a probability for each label by
        itself, `(n, num_labels)`. It is trained on labels of that shape, 0 or 1.

    Raises:
        ValueError: for a value outside what is said above.

    Example:
        >>> head = multilabel_head(14, dropout=0.2)
        >>> head.compute_output_shape((None, 7, 7, 1280))
        (None, 14)
    """
    check_count("num_labels", num_labels)
    return _head(num_labels, "sigmoid", units, pooling, dropout, activation)


def _head(
    outputs: int,
    last: str,
    units: Sequence[int],
    pooling: str | None,
    dropout: float,
    activation: str,
) -> keras.Sequential:
    if isinstance(units, (str, Integral)) or not all(map(is_count, units)):
        raise ValueError(
            f"`units` must be a sequence of whole numbers from 1 up. Received: {units!r}"
        )
    check_choice("pooling", pooling, POOLING)
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be from 0 to below 1. Received: dropout={dropout!r}")
    layers = [] if pooling is None else _pooling(pooling)
    for width in units:
        layers += [*_dropout(dropout), keras.layers.Dense(width, activation=activation)]
    # float32 whatever the policy: probabilities in half precision spoil the loss.
    predictions = keras.layers.Dense(outputs, activation=last, dtype="float32", name="predictions")
    return keras.Sequential([*layers, *_dropout(dropout), predictions], name="head")


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
    # A Sequential that began with a model would be built at once, for its unknown channels.
    return [keras.layers.Identity(), keras.Model(features, vector, name="pooling")]


def _dropout(rate: float) -> list[keras.Layer]:
    return [keras.layers.Dropout(rate)] if rate else []
