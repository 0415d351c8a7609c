"""Predict the classes of new images: `predict`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import check_count, check_outputs, image_size
from finetune_kit._data.batches import ahead
from finetune_kit._data.decoding import reason
from finetune_kit._data.inputs import Load, as_inputs
from finetune_kit._data.labels import unique_names
from finetune_kit._hints import hints
from finetune_kit._model.archive import read_facts
from finetune_kit._quiet import quiet
from finetune_kit._report.predictions import Predictions
from finetune_kit._report.transfer import PREFIX, downloaded
from finetune_kit._text import plural, shortened
from finetune_kit._train.tuned import FineTuned

_log = logging.getLogger("finetune_kit")


class _Classifier(NamedTuple):
    network: keras.Model
    class_names: tuple[str, ...]
    multi_label: bool


@hints()
@quiet()
def predict(
    model: keras.Model | FineTuned | str | os.PathLike[str],
    images: Any,
    *,
    class_names: Sequence[str] | None = None,
    top: int | None = None,
    threshold: float = 0.5,
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
    if top is not None:
        check_count("top", top)
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise ValueError(
            f"`threshold` must be a number from 0 to 1. Received: threshold={threshold!r}"
        )
    names, loads = as_inputs(images)
    network, classes, multi_label = _classifier(model, class_names)
    check_outputs("model", network.output_shape, classes, multi_label=multi_label)
    size = image_size("model", network)
    scores, errors = _scores(network, loads, size, min(batch_size, len(loads)))
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
    return Predictions(names, classes, scores, errors, multi_label, top, float(threshold))


def _classifier(model: Any, class_names: Sequence[str] | None) -> _Classifier:
    """Return the network of any kind of model, with its classes. A file is loaded last."""
    given = None if class_names is None else unique_names(class_names)
    facts: dict[str, Any] = {}
    if isinstance(model, str) and model.startswith(PREFIX):
        model = downloaded(model)
    if isinstance(model, FineTuned):
        facts = {"class_names": model.class_names, "multi_label": model.train.multi_label}
    elif isinstance(model, (str, os.PathLike)):
        facts = _facts(Path(model).expanduser())
    elif not isinstance(model, keras.Model):
        raise ValueError(
            "`model` must be the result of fine_tune, the path of a saved model, or a keras.Model; "
            "it comes first, then the images. "
            f"Received: model={shortened(model)} of type {type(model).__name__}"
        )
    known = tuple(facts.get("class_names", ()))
    if known and given not in (None, known):
        raise ValueError(
            "`class_names` must be left out for a model that knows its classes, "
            f"{list(known)}. Received: class_names={list(given or ())}"
        )
    names = known or given
    if not names:
        raise ValueError(
            "`model` has no class names with it; pass class_names=[...] in the order of its "
            "outputs. (FineTuned.save keeps them in the file, keras.Model.save does not.) "
            f"Received: {shortened(model)}"
        )
    network = model.model if isinstance(model, FineTuned) else model
    if not isinstance(network, keras.Model):
        network = _loaded(Path(network).expanduser())
    multi_label = facts["multi_label"] if known else _is_multi_label(network)
    return _Classifier(network, names, multi_label)


def _facts(path: Path) -> dict[str, Any]:
    """Return the facts in the file of a model, which may be none."""
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            "`model` must be a .keras file, such as FineTuned.save writes. "
            f"Received: {str(path)!r}, which {state}"
        )
    return {} if path.suffix == ".h5" else read_facts(path) or {}


def _loaded(path: Path) -> keras.Model:
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever a layer raises
        raise ValueError(
            "`model` must be a file that Keras can load; if it has layers of your own, load it "
            "with keras.saving.load_model(path, custom_objects=...) and pass the model with "
            f"class_names=. Received: {str(path)!r}, which fails with {type(error).__name__}: "
            f"{error}"
        ) from error


def _is_multi_label(network: keras.Model) -> bool:
    """Return whether a model without facts has several outputs that are sigmoids."""
    last: Any = network
    while getattr(last, "layers", None):
        last = last.layers[-1]
    name = getattr(getattr(last, "activation", None), "__name__", type(last).__name__.lower())
    return name == "sigmoid" and network.output_shape[-1] > 1


def _scores(
    network: keras.Model, loads: Sequence[Load], size: tuple[int, int], batch_size: int
) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Return the outputs, nan for images that cannot be read, and why these cannot be read.

    All batches have one size, so that the backend traces the model once.
    """
    starts = range(0, len(loads), batch_size)
    batches = [np.arange(start, min(start + batch_size, len(loads))) for start in starts]
    scores = np.full((len(loads), network.output_shape[1]), np.nan)
    errors: dict[int, str] = {}

    def load(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        pixels = np.zeros((batch_size, *size, 3), np.uint8)
        for place, i in enumerate(indices.tolist()):
            try:
                pixels[place] = loads[i](size)
            except Exception as error:  # a decoder may raise anything on a broken file
                errors[i] = reason(error.__cause__ or error)
        return pixels

    for indices, pixels in zip(batches, ahead(load, batches), strict=True):
        scores[indices] = np.asarray(network.predict_on_batch(pixels))[: len(indices)]
    read = np.delete(scores, list(errors), axis=0)
    if not ((read >= -1e-6) & (read <= 1 + 1e-6)).all():  # also if one is nan
        raise ValueError(
            "`model` must return probabilities from 0 to 1; it must end in a softmax or a sigmoid. "
            f"Received: values from {read.min():.4g} to {read.max():.4g}"
        )
    scores[list(errors)] = np.nan
    return scores, dict(sorted(errors.items()))
