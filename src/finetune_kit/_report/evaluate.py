"""Evaluation of a model on a set of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras

from finetune_kit._checks import check_choice, check_count, check_kind, check_outputs, image_size
from finetune_kit._data.duplicates import Duplicates
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache, as_cache
from finetune_kit._hints import hints
from finetune_kit._quiet import quiet
from finetune_kit._report.examples import (
    can_draw_heat_maps,
    examples_of,
    most_telling,
    with_heat_maps,
)
from finetune_kit._report.provenance import about, check_duplicates
from finetune_kit._report.report import Report
from finetune_kit._text import plural
from finetune_kit._train.classifier import Classifier, as_classifier
from finetune_kit._train.scores import classifier_scores
from finetune_kit._train.tuned import FineTuned


@hints()
@quiet()
def evaluate(
    model: keras.Model | FineTuned | str | os.PathLike[str],
    images: ImageSet,
    *,
    flip: bool = False,
    batch_size: int = 32,
    features: FeatureCache | str | os.PathLike[str] | None = None,
    duplicates: Duplicates | None = None,
    examples: int = 12,
    heat_maps: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    verbose: str | int = 0,
) -> Report:
    """Measure how well a model classifies images, and report on it.

    Use it on images that the model was not trained on. For the result of `fine_tune` the report
    also says which blocks were trained and how, and whether any of the images, or a near duplicate,
    was trained on.

    Args:
        model: the result of `fine_tune`, the path of a file that `FineTuned.save` wrote, or any
            `keras.Model` that takes raw RGB pixels from 0 to 255 and returns probabilities.
        images: the images, such as the test set of `ImageSet.split`.
        flip: whether to predict each image and its mirror image (left and right exchanged), and use
            the mean of the two, which takes twice the time. Use it where a mirror image has the
            same class. Defaults to False.
        batch_size: images per step. Defaults to 32.
        features: a `FeatureCache`, or a folder, such as the training had: the features of the
            frozen part are read from there, or computed and kept. For a model of `fine_tune` or its
            file. The probabilities are the same up to the rounding of the cache's `dtype` and
            `backend`, which the report names. Use it to evaluate several models with one frozen
            part, or one model again. Defaults to None: the model computes the images as a whole.
        duplicates: the result of `find_duplicates(train, validation, images)`. The report then
            counts the images that have a near duplicate among the training images. Defaults to
            None.
        examples: how many images of each cell of the confusion matrix the report's page shows at
            most, the most confident ones. Defaults to 12.
        heat_maps: how many of these are shown with a Grad-CAM map, misclassified images first; it
            needs the extra `plots`. Defaults to 0.
        resamples: number of bootstrap resamples for the intervals. Defaults to 1000.
        seed: seed of the bootstrap. Defaults to 0.
        verbose: 0 (default) for silence; `"auto"`, 1 or 2 to print what is computed, with a
            progress bar as in `predict`.

    Returns:
        A `Report`. It holds the learning curves if the model was trained in this process.

    Raises:
        ValueError: if an argument does not fit the others, or the model's outputs are not
            probabilities.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 6)
        >>> model = keras.Sequential([
        ...     keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(2, activation="softmax")])
        >>> evaluate(model, images).confusion_matrix.sum()
        np.int64(12)
    """
    _check_counts(1, batch_size=batch_size, resamples=resamples)
    _check_counts(0, examples=examples, heat_maps=heat_maps, seed=seed)
    check_choice("verbose", verbose, ("auto", 0, 1, 2))
    check_choice("flip", flip, (False, True))
    _check_images(images, model)
    classifier = as_classifier(model)
    network, tuned = classifier.network, classifier.tuned
    cache = None if features is None else as_cache(features)
    _check_features(cache, classifier, flip=flip)
    _check_classes(images, classifier)
    check_duplicates(duplicates, images, tuned)
    size = image_size("model", network)
    _say(verbose, f"Predicting {plural(len(images), 'image')}")
    report = Report.from_scores(
        images.labels,
        classifier_scores(classifier, images, cache, batch_size, verbose, flip=flip),
        images.class_names,
        samples=images.digests(),
        resamples=resamples,
        seed=seed,
        history=_history(network, tuned),
        plans=() if tuned is None else tuned.plans,
        about=about(classifier, images, duplicates, cache, flip=flip),
        manifest=images.manifest,
    )
    shown, rows = examples_of(report, images, size, examples)
    chosen = most_telling(report, shown, heat_maps)
    if chosen and can_draw_heat_maps():
        _say(verbose, f"Heat maps of {plural(len(chosen), 'image')}")
        pixels = images.load(rows[chosen], size)
        shown = with_heat_maps(report, network, pixels, shown, chosen)
    return replace(report, examples=shown)


def _check_counts(least: int, **counts: int) -> None:
    for name, value in counts.items():
        check_count(name, value, least)


def _check_images(images: Any, model: Any) -> None:
    if isinstance(model, ImageSet):
        raise ValueError(
            "`model` must come first, then the images: evaluate(model, images). "
            "Received: an ImageSet as `model`"
        )
    check_kind("images", images, ImageSet, "see read_image_folder or ImageSet.from_arrays")
    if not len(images):
        raise ValueError("`images` must hold at least one image. Received: none")


def _check_features(cache: FeatureCache | None, classifier: Classifier, *, flip: bool) -> None:
    if cache is None:
        return
    if flip:
        raise ValueError(
            "`flip` must be False where features are kept, because those of mirror images are "
            "not. Received: flip=True with a feature cache"
        )
    if classifier.plan is None:
        raise ValueError(
            "`features` needs a model whose frozen part is known: the result of fine_tune, or a "
            "file that FineTuned.save wrote; leave it out for others. "
            f"Received: features=... with {classifier.network.name!r}"
        )


def _check_classes(images: ImageSet, classifier: Classifier) -> None:
    known = classifier.class_names
    if known and known != images.class_names:
        raise ValueError(
            "`images` must have the classes that the model was trained on, in their order: "
            f"{list(known)}; pass class_names= when you read them. "
            f"Received: {list(images.class_names)}"
        )
    shape = classifier.network.output_shape
    check_outputs("model", shape, images.class_names, multi_label=images.multi_label)


def _history(network: keras.Model, tuned: FineTuned | None) -> dict[str, list[float]]:
    """Return the learning curves, as Keras' `fit` also leaves them at the model."""
    recorded: Mapping[str, Any] = getattr(getattr(network, "history", None), "history", {})
    curves = recorded if tuned is None else tuned.history
    return {name: [float(value) for value in values] for name, values in curves.items()}


def _say(verbose: str | int, text: str) -> None:
    if verbose:
        print(text, flush=True)
