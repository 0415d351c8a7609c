"""Cross-validation: each image is predicted by a model that was not trained on it."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from finetune_kit._checks import check_count, check_folder, check_kind
from finetune_kit._data.folds import stratified_folds
from finetune_kit._data.images import ImageSet
from finetune_kit._data.split import Split
from finetune_kit._features.cache import as_cache, opened
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._report.estimate import Estimate
from finetune_kit._report.provenance import data_name, environment
from finetune_kit._report.report import Report
from finetune_kit._train.classifier import as_classifier
from finetune_kit._train.fine_tune import fine_tune
from finetune_kit._train.scores import classifier_scores
from finetune_kit._train.tuned import FineTuned


def cross_validate(
    backbone: keras.Model | FineTuned | str | os.PathLike[str],
    head: keras.Layer | None,
    spec: FineTuneSpec | Sequence[FineTuneSpec],
    images: ImageSet,
    *,
    k: int = 5,
    groups: ArrayLike | None = None,
    batch_size: int = 32,
    seed: int = 0,
    resamples: int = 1000,
    **options: Any,
) -> Report:
    """Train k models, and report on the images that each of them was not trained on.

    Use it where there are too few images to keep a test set aside. The folds are those of
    `stratified_folds`: each model is trained on k - 2 folds, keeps the epoch that is best on one,
    and predicts the last. Together the models predict each image once. They share one pass over
    the images.

    Args:
        backbone: see `fine_tune`.
        head: a new head, see `fine_tune`. Each model starts from initial weights of its own. A head
            that was fitted to these images, as that of `recommend`, makes the report too good.
        spec: one spec, or a list of them for the phases of each model, see `fine_tune`.
        images: all images.
        k: number of folds, at least 3. Defaults to 5.
        groups: group of each image, `(n,)`, such as `Duplicates.groups`; the images of a group are
            in one fold. Defaults to `ImageSet.groups`.
        batch_size: images in each step. Defaults to 32.
        seed: of the folds and of each training. Defaults to 0.
        resamples: number of bootstrap resamples for the metrics of each class. Defaults to 1000.
        **options: other keyword arguments of `fine_tune`. In `run_dir` each fold has a folder of
            its own.

    Returns:
        A `Report` on all images. The intervals of its overall metrics come from the differences
        between the folds, by the corrected resampled t-test (Nadeau and Bengio, Machine Learning
        52, 2003), which allows for the images that the trainings share. `about["folds"]` has the
        accuracy and the kept epoch of each fold.

    Raises:
        ValueError: if a class has fewer images (or groups) than there are folds, or an argument
            does not fit; see `fine_tune`.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (18, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 9)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> head = classification_head(2)
        >>> report = cross_validate(backbone, head, FineTuneSpec(), images, k=3, verbose=0)
        >>> report.confusion_matrix.sum()
        np.int64(18)
    """
    check_kind("images", images, ImageSet, "see read_image_folder")
    check_count("batch_size", batch_size)
    check_count("resamples", resamples)
    if head is not None and getattr(head, "weights", None):
        warnings.warn(
            "`head` has weights already. If they were fitted to these images, as those of "
            "`recommend`, the metrics are too good; pass a new head, see classification_head",
            stacklevel=2,
        )
    groups = images.groups if groups is None else groups
    folds = stratified_folds(images.labels, k, groups=groups, seed=seed)
    cache, run_dir = as_cache(options.get("features")), options.get("run_dir")
    if run_dir is not None:
        check_folder("run_dir", run_dir)
    parts, about = [], []
    with opened(cache, run_dir) as kept:
        for number, fold in enumerate(folds, start=1):
            if options.get("verbose", "auto"):
                print(f"Fold {number} of {k}", flush=True)
            own: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
            own["features"] = False if kept is None else kept
            if run_dir is not None:
                own["run_dir"] = os.path.join(run_dir, str(number))
            sets = images.take(fold.train), images.take(fold.validation)
            tuned = fine_tune(backbone, head, spec, *sets, **{**options, **own})
            classifier, test = as_classifier(tuned), images.take(fold.test)
            parts.append(classifier_scores(classifier, test, kept, batch_size))
            about.append({"kept_epoch": tuned.settings["kept_epoch"], "images": len(fold.test)})
    return _pooled(images, folds, parts, tuned, about, resamples)


def _pooled(
    images: ImageSet,
    folds: Sequence[Split],
    parts: Sequence[NDArray[np.float64]],
    tuned: FineTuned,
    about: Sequence[dict[str, Any]],
    resamples: int,
) -> Report:
    """Return the report on all images, given the scores of each fold and its last model."""
    order = np.concatenate([fold.test for fold in folds])
    scores = np.empty((len(images), parts[0].shape[1]))
    scores[order] = np.concatenate(parts)
    single = [
        Report.from_scores(images.labels[fold.test], part, images.class_names, resamples=1)
        for fold, part in zip(folds, parts, strict=True)
    ]
    by_fold = {
        f"fold {i}": {"accuracy": report.accuracy, **each}
        for i, (report, each) in enumerate(zip(single, about, strict=True), start=1)
    }
    training = {name: value for name, value in tuned.settings.items() if name != "kept_epoch"}
    pooled = Report.from_scores(
        images.labels,
        scores,
        images.class_names,
        samples=images.digests(),
        resamples=resamples,
        plans=tuned.plans,
        manifest=images.manifest,
        about={
            "model": {"name": f"{tuned.model.name}, {len(folds)}-fold cross-validation"},
            "data": {"name": data_name(images), "test_images": len(images)},
            "training": training,
            "folds": by_fold,
            "environment": environment(),
            "cautions": [
                f"These are predictions of {len(folds)} models, each for the images of one fold. "
                "A model that is trained on all images is another one, probably a better one."
            ],
        },
    )
    share = len(folds[0].test) / len(folds[0].train)
    return replace(pooled, metrics=_over_folds(pooled.metrics, single, share))


def _over_folds(
    pooled: Mapping[str, Estimate], single: Sequence[Report], share: float
) -> dict[str, Estimate]:
    """Return metrics with intervals from the differences between the folds.

    Args:
        pooled: the metrics of all images.
        single: a report on each fold.
        share: images of a fold for each image that its model was trained on.
    """
    count = len(single)
    method = f"corrected resampled t over {count} folds"
    found = {}
    for name, estimate in pooled.items():
        values = np.array([report.metrics[name].value for report in single])
        spread = math.sqrt((1 / count + share) * values.var(ddof=1))
        if not spread > 0:  # all folds agree, or the metric is undefined in one
            found[name] = Estimate(estimate.value, method=method)
            continue
        half = float(student.ppf(0.975, count - 1)) * spread
        most = math.inf if name in ("log_loss", "brier_score") else 1.0
        ends = max(0.0, estimate.value - half), min(most, estimate.value + half)
        found[name] = Estimate(estimate.value, *ends, method)
    return found
