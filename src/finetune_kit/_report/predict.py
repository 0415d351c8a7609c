"""Predict the classes of new images: `predict`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from numbers import Real
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import check_choice, check_count, check_outputs, image_size
from finetune_kit._data.decoding import reason
from finetune_kit._data.inputs import Load, as_inputs
from finetune_kit._hints import hints
from finetune_kit._quiet import quiet
from finetune_kit._report.predictions import Predictions
from finetune_kit._text import plural
from finetune_kit._train.classifier import as_classifier
from finetune_kit._train.scores import scores_of
from finetune_kit._train.tuned import FineTuned

_log = logging.getLogger("finetune_kit")


@hints()
@quiet()
def predict(
    model: keras.Model | FineTuned | str | os.PathLike[str],
    images: Any,
    *,
    class_names: Sequence[str] | None = None,
    top: int | None = None,
    threshold: float = 0.5,
    flip: bool = False,
    batch_size: int = 32,
) -> Predictions:
    """Predict the classes of images, which are decoded and resized as in training.

    An image that cannot be read does not stop the others: the result holds the reason.

    Args:
        model: the result of `fine_tune`; the path of a file that `FineTuned.save` wrote; a model
            that `push_to_hub` uploaded, as `"hf://user/name"` or `"hf://user/name@revision"`, which
            is downloaded once and kept in the Hub's cache; or any `keras.Model` that takes raw RGB
            pixels from 0 to 255 and returns probabilities.
        images: a path; a folder, in which images are found at any depth; a pattern such as
            `"new/*.png"`; an open binary file; a PIL image; uint8 pixels `(n, h, w, 3)` or
            `(h, w, 3)`, or gray `(n, h, w, 1)` or `(h, w)`; an `ImageSet`; or a list of paths,
            files, PIL images and arrays.
        class_names: the classes in the order of the outputs, for a model that has none with it: a
            `keras.Model`, or a file that Keras wrote. Such a model is multi-label if it has two
            outputs or more and its last layer is a sigmoid. Defaults to those of `model`.
        top: how many classes each `Prediction` lists, the most probable ones. Defaults to all.
        threshold: probability from which a label of a multi-label model is predicted, from 0 to 1.
            Other models predict the most probable class. Defaults to 0.5.
        flip: whether to predict each image and its mirror image (left and right exchanged), and use
            the mean of the two, which takes twice the time. Use it where a mirror image has the
            same class. Defaults to False.
        batch_size: images per step. Defaults to 32.

    Returns:
        `Predictions`, in the order of the images; those of a folder are sorted by path.

    Raises:
        FileNotFoundError: if the path of a model or of one image, or a model on the Hub, does not
            exist.
        OSError: if a model cannot be downloaded.
        ValueError: if an argument does not fit the others, or class names are missing.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
        >>> model = keras.Sequential([
        ...     keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(2, activation="softmax")])
        >>> predictions = predict(model, x, class_names=["cat", "dog"])
        >>> predictions
        Predictions(4 images)
        >>> predictions[0].label in ("cat", "dog")
        True
    """
    check_count("batch_size", batch_size)
    check_choice("flip", flip, (False, True))
    if top is not None:
        check_count("top", top)
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise ValueError(
            f"`threshold` must be a number from 0 to 1. Received: threshold={threshold!r}"
        )
    names, loads = as_inputs(images)
    classifier = as_classifier(model, class_names, named=True)
    network, classes = classifier.network, classifier.class_names
    check_outputs("model", network.output_shape, classes, multi_label=classifier.multi_label)
    size = image_size("model", network)
    scores, errors = _scores(network, loads, size, batch_size, flip=flip)
    if scores.shape[1] < len(classes):  # one probability, of the second class
        scores = np.concatenate([1 - scores, scores], axis=1)
    if errors:
        i, error = next(iter(errors.items()))
        _log.warning(
            "%s of %s could not be read, such as %s, which %s",
            f"{len(errors):,}",
            plural(len(names), "image"),
            names[i],
            error,
        )
    return Predictions(
        names, classes, scores, errors, classifier.multi_label, top, float(threshold), flip
    )


def _scores(
    network: keras.Model,
    loads: Sequence[Load],
    size: tuple[int, int],
    batch_size: int,
    *,
    flip: bool,
) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Return the outputs, nan for images that cannot be read, and why these cannot be read."""
    errors: dict[int, str] = {}

    def load(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        pixels = np.zeros((len(indices), *size, 3), np.uint8)
        for place, i in enumerate(indices.tolist()):
            try:
                pixels[place] = loads[i](size)
            except Exception as error:  # a decoder may raise anything on a broken file
                errors[i] = reason(error.__cause__ or error)
        return pixels

    scores = scores_of(network, load, range(len(loads)), batch_size, flip=flip)
    read = np.delete(scores, list(errors), axis=0)
    if not ((read >= -1e-6) & (read <= 1 + 1e-6)).all():  # also if one is nan
        raise ValueError(
            "`model` must return probabilities from 0 to 1; it must end in a softmax or a sigmoid. "
            f"Received: values from {read.min():.4g} to {read.max():.4g}"
        )
    scores[list(errors)] = np.nan
    return scores, dict(sorted(errors.items()))
