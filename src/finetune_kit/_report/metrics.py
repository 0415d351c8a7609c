"""Classification metrics with 95% intervals.

scikit-learn computes the values. Proportions have Wilson intervals, other metrics have bootstrap
intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from finetune_kit._report.bootstrap import (
    BINS,
    bins_of,
    bootstrap,
    calibrated_errors,
    confidences,
    losses,
    one_hot,
)
from finetune_kit._report.estimate import (
    Estimate,
    calibration_estimate,
    percentile_estimate,
    precision,
    proportion,
)

OVERALL = {  # metrics of all images and their names in tables, in the order of the tables
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "weighted_f1": "weighted F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "brier_score": "Brier score",
    "expected_calibration_error": "expected calibration error (ECE)",
}
PER_CLASS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
}


@dataclass(frozen=True, eq=False)
class Measured:
    """All metrics of a set of labels and scores, see `Report`."""

    metrics: Mapping[str, Estimate]
    class_metrics: Mapping[str, Mapping[str, Estimate]]
    support: Mapping[str, int]
    confusion_matrix: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Bins:
    """Predictions in bins of equal width of the predicted probability.

    Attributes:
        confidence: mean predicted probability of each bin; 0 for an empty bin.
        correct: number of correct predictions in each bin.
        counts: number of predictions in each bin.
    """

    confidence: NDArray[np.float64]
    correct: NDArray[np.int64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Bootstrapped:
    """The values of all metrics, and their values in the bootstrap resamples."""

    values: Mapping[str, Sequence[float]]
    resampled: Mapping[str, NDArray[np.float64]]
    calibrated: NDArray[np.float64]
    support: NDArray[np.int64]
    images: int
    method: str

    def estimate(self, name: str, index: int | None = None) -> Estimate:
        """Return a metric of all images, or of the class with this index."""
        column = index or 0
        value, resampled = float(self.values[name][column]), self.resampled[name][:, column]
        if math.isnan(value):
            return Estimate(value, method=self._why_undefined(index))
        if name == "expected_calibration_error":
            return calibration_estimate(value, resampled, self.calibrated, self.method)
        ranking = name.endswith(("roc_auc", "average_precision"))
        return percentile_estimate(value, resampled, self.method, ranking=ranking)

    def of_class(self, index: int, correct: int, predicted: int) -> dict[str, Estimate]:
        """Return the metrics of one class, given its numbers of (correct) predictions."""
        resampled = self.resampled["class_precision"][:, index]
        recall = proportion(correct, int(self.support[index]), "no image of the class")
        found = {"precision": precision(correct, predicted, resampled, self.images)}
        found["recall"] = recall
        for name in ("f1", "roc_auc", "average_precision"):
            found[name] = self.estimate(f"class_{name}", index)
        return found

    def _why_undefined(self, index: int | None) -> str:
        if index is None:
            return "no class has images of it and images of other classes"
        return "no image of another class" if self.support[index] else "no image of the class"


def predictions(scores: NDArray[np.float64], *, multi_label: bool) -> NDArray[np.int64]:
    """Return the most probable class `(n,)`, or each label of at least one half `(n, k)`."""
    return (scores >= 0.5).astype(np.int64) if multi_label else scores.argmax(axis=1)


def measure(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    class_names: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> Measured:
    """Compute all metrics of labels and scores.

    Args:
        labels: true class indices `(n,)`, or 0 or 1 for each label `(n, k)`.
        scores: probabilities `(n, k)`.
        class_names: name of each class.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """
    multi_label, classes = labels.ndim == 2, range(len(class_names))
    predicted = predictions(scores, multi_label=multi_label)
    truth, chosen = (one_hot(x, len(classes)) for x in (labels, predicted))
    support, called, correct = truth.sum(axis=0), chosen.sum(axis=0), (truth & chosen).sum(axis=0)
    found = _Bootstrapped(
        values=_values(labels, predicted, truth, scores),
        resampled=bootstrap(labels, scores, resamples=resamples, seed=seed),
        calibrated=calibrated_errors(labels, scores, resamples=resamples, seed=seed),
        support=support,
        images=len(labels),
        method="bootstrap" if multi_label else "stratified bootstrap",
    )
    accuracy = proportion(int((truth == chosen).all(axis=1).sum()), len(labels))
    overall = {name: accuracy if name == "accuracy" else found.estimate(name) for name in OVERALL}
    if not multi_label:  # the two are equal, so they have the same interval
        overall["weighted_recall"] = accuracy
    matrix = (
        metrics.multilabel_confusion_matrix(labels, predicted)
        if multi_label
        else metrics.confusion_matrix(labels, predicted, labels=classes)
    )
    by_class = [found.of_class(i, int(correct[i]), int(called[i])) for i in classes]
    return Measured(
        metrics=overall,
        class_metrics=dict(zip(class_names, by_class, strict=True)),
        support=dict(zip(class_names, support.tolist(), strict=True)),
        confusion_matrix=matrix,
    )


def calibration_bins(
    labels: NDArray[np.int64], scores: NDArray[np.float64], bins: int = BINS
) -> Bins:
    """Count predictions by predicted probability: of the predicted class, or of every label."""
    confidence, correct = confidences(labels, scores)
    rows = bins_of(confidence, bins)
    counts = np.bincount(rows, minlength=bins)
    total = np.bincount(rows, confidence, bins)
    right = np.bincount(rows[correct], minlength=bins)
    return Bins(total / np.maximum(counts, 1), right, counts)


def _calibration_error(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Return the expected calibration error over 15 bins of equal width.

    Naeini et al., AAAI 2015; Guo et al., ICML 2017, arXiv:1706.04599.
    """
    bins = calibration_bins(labels, scores)
    accuracy = bins.correct / np.maximum(bins.counts, 1)
    weights = bins.counts / bins.counts.sum()
    return float(np.sum(weights * np.abs(bins.confidence - accuracy)))


def _values(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    truth: NDArray[np.bool_],
    scores: NDArray[np.float64],
) -> dict[str, list[float]]:
    """Return the value of each metric; nan where undefined, 0 where scikit-learn divides 0 by 0."""
    classes = range(scores.shape[1])
    values: dict[str, list[float]] = {}
    for average in ("macro", "weighted"):
        rows = metrics.precision_recall_fscore_support(
            labels, predicted, labels=classes, average=average, zero_division=0.0
        )
        for name, value in zip(("precision", "recall", "f1"), rows, strict=False):
            values[f"{average}_{name}"] = [value]
    values["class_f1"] = metrics.f1_score(
        labels, predicted, labels=classes, average=None, zero_division=0.0
    ).tolist()
    defined = [0 < truth[:, i].sum() < len(truth) for i in classes]
    for name, measure in (
        ("roc_auc", metrics.roc_auc_score),
        ("average_precision", metrics.average_precision_score),
    ):
        each = [measure(truth[:, i], scores[:, i]) if defined[i] else math.nan for i in classes]
        values[f"class_{name}"] = each
        values[name] = [float(np.mean([v for v in each if v == v])) if any(defined) else math.nan]
    log_loss, brier = losses(truth, scores, multi_label=labels.ndim == 2).mean(axis=0)
    return values | {
        "balanced_accuracy": [_balanced_accuracy(labels, predicted)],
        "log_loss": [float(log_loss)],
        "brier_score": [float(brier)],
        "expected_calibration_error": [_calibration_error(labels, scores)],
    }


def _balanced_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Return the mean recall of the classes that have images.

    For multi-label images: the mean over the labels of the mean of sensitivity and specificity.
    """
    pairs = zip(labels.T, predicted.T, strict=True) if labels.ndim == 2 else [(labels, predicted)]
    return float(
        np.mean(
            [
                metrics.recall_score(y, p, labels=np.unique(y), average="macro", zero_division=0.0)
                for y, p in pairs
            ]
        )
    )
