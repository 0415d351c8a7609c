"""Labels and scores come in, figures with intervals go out; scikit-learn and scipy count.

The interval of a figure holds the true value in 95 of 100 test sets of this size and kind: Wilson's
for proportions, the bootstrap's for the rest. It knows no model, no image and no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binomtest, norm
from sklearn import metrics

from finetune_kit._report.bootstrap import (
    BINS,
    bins_of,
    bootstrap,
    calibrated_errors,
    confidence,
    losses,
)

OVERALL = {  # what each is called in tables, in their order
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
    "calibration_error": "calibration error",
}
PER_CLASS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
}


@dataclass(frozen=True)
class Figure:
    """A measured value and its 95 % interval.

    Attributes:
        value: nan where it is undefined.
        low: lower end of the interval; nan where there is none.
        high: upper end.
        method: how the interval was found, or why there is none.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    method: str = ""

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        if math.isnan(self.low):
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON: None in the place of nan."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        plain = {k: None if math.isnan(v) else v for k, v in numbers.items()}
        return {**plain, "method": self.method}


@dataclass(frozen=True, eq=False)
class Counted:
    """All that is counted of some labels and scores, see `Report`."""

    figures: Mapping[str, Figure]
    class_figures: Mapping[str, Mapping[str, Figure]]
    support: Mapping[str, int]
    confusion_matrix: NDArray[np.int64]


def predictions(scores: NDArray[np.float64], *, many: bool) -> NDArray[np.int64]:
    """The most probable class `(n,)`, or each label of at least one half `(n, k)` where `many`."""
    return (scores >= 0.5).astype(np.int64) if many else scores.argmax(axis=1)


def count(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    class_names: Sequence[str],
    draws: int,
    seed: int,
) -> Counted:
    """Count how well scores tell the classes.

    Args:
        labels: true class indices `(n,)`, or 0 or 1 for each label `(n, k)`.
        scores: probabilities `(n, k)`.
        class_names: one for each class.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    many = labels.ndim == 2
    predicted = predictions(scores, many=many)
    truth = labels if many else np.eye(len(class_names), dtype=np.int64)[labels]
    chosen = predicted if many else np.eye(len(class_names), dtype=np.int64)[predicted]
    support, called = truth.sum(axis=0), chosen.sum(axis=0)
    values = _values(labels, predicted, truth, scores)
    drawn = bootstrap(labels, scores, draws=draws, seed=seed)
    calibrated = calibrated_errors(labels, scores, draws=draws, seed=seed)
    method = f"{'' if many else 'stratified '}bootstrap, {draws:,} draws"

    def figure(name: str, i: int | None = None) -> Figure:
        value, draw = float(values[name][i or 0]), drawn[name][:, i or 0]
        if math.isnan(value):
            return Figure(value, method=_why(support, i))
        if name == "calibration_error":
            return _error_interval(value, draw, calibrated, method)
        low, high = np.nanpercentile(draw, (2.5, 97.5))
        if low == high:  # such as without a single mistake: no draw can tell more
            return Figure(value, method="none: each draw of the bootstrap gives the same")
        if name.endswith(("roc_auc", "average_precision")) and 0 < value < 1:
            return _rank_interval(value, draw, method)
        return Figure(value, float(low), float(high), method)

    def of_class(i: int) -> dict[str, Figure]:
        hits = int((truth[:, i] * chosen[:, i]).sum())
        return {
            "precision": _precision(
                hits, int(called[i]), drawn["class_precision"][:, i], len(labels)
            ),
            "recall": _proportion(hits, int(support[i]), "no image of it"),
            **{name: figure(f"class_{name}", i) for name in list(PER_CLASS)[2:]},
        }

    right = (predicted == labels).all(axis=1) if many else predicted == labels
    figures = {name: figure(name) for name in OVERALL if name != "accuracy"}
    accuracy = _proportion(int(right.sum()), len(right), "")
    if not many:  # the two are one
        figures["weighted_recall"] = accuracy
    return Counted(
        figures={"accuracy": accuracy, **figures},
        class_figures={name: of_class(i) for i, name in enumerate(class_names)},
        support=dict(zip(class_names, support.tolist(), strict=True)),
        confusion_matrix=metrics.multilabel_confusion_matrix(labels, predicted)
        if many
        else metrics.confusion_matrix(labels, predicted, labels=range(len(class_names))),
    )


def _values(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    truth: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> dict[str, list[float]]:
    """The figures themselves; nan where undefined, 0 where scikit-learn divides 0 by 0."""
    classes = range(scores.shape[1])
    values: dict[str, list[float]] = {}
    for average in ("macro", "weighted"):
        rows = metrics.precision_recall_fscore_support(
            labels, predicted, labels=classes, average=average, zero_division=0.0
        )
        names = (f"{average}_{name}" for name in ("precision", "recall", "f1"))
        values |= {name: [row] for name, row in zip(names, rows[:3], strict=True)}
    values["class_f1"] = metrics.f1_score(
        labels, predicted, labels=classes, average=None, zero_division=0.0
    ).tolist()
    told = [0 < truth[:, i].sum() < len(truth) for i in classes]  # both kinds are there to be told
    for name, measure in (
        ("roc_auc", metrics.roc_auc_score),
        ("average_precision", metrics.average_precision_score),
    ):
        each = [measure(truth[:, i], scores[:, i]) if told[i] else math.nan for i in classes]
        values[f"class_{name}"] = each
        values[name] = [float(np.mean([v for v in each if v == v])) if any(told) else math.nan]
    log_loss, brier = losses(truth, scores, many=labels.ndim == 2).mean(axis=0)
    return values | {
        "balanced_accuracy": [_balanced(labels, predicted)],
        "log_loss": [float(log_loss)],
        "brier_score": [float(brier)],
        "calibration_error": [calibration(labels, scores)[3]],
    }


def _balanced(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """The mean recall of the classes there are; of labels, of being there and not being there."""
    pairs = zip(labels.T, predicted.T, strict=True) if labels.ndim == 2 else [(labels, predicted)]
    return float(
        np.mean(
            [
                metrics.recall_score(y, p, labels=np.unique(y), average="macro", zero_division=0.0)
                for y, p in pairs
            ]
        )
    )


def calibration(
    labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Reliability: mean probability, share that is right and share of all, for each bin; the error.

    The expected calibration error over 15 bins of equal width (Naeini et al., AAAI 2015; Guo et
    al., ICML 2017, arXiv:1706.04599): of the most probable class, or of all labels.
    """
    told, right = confidence(labels, scores)
    bins = bins_of(told)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, x, minlength=BINS) for x in (told, right)]
    mean, share = (x / np.maximum(counts, 1) for x in sums)
    weights = counts / len(told)
    return mean, share, weights, float(np.sum(weights * np.abs(mean - share)))


def _proportion(hits: int, count: int, why_none: str) -> Figure:
    if not count:
        return Figure(0.0 if why_none == "never predicted" else math.nan, method=why_none)
    ends = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return Figure(hits / count, ends.low, ends.high, "Wilson score")


def _precision(hits: int, called: int, drawn: NDArray[np.float64], count: int) -> Figure:
    """Wilson's interval for as many images as tell as much.

    Where each class keeps its number, wrong predictions vary less than by chance, so the images
    called so tell as much as more of them would; the bootstrap says how many (an effective sample
    size: Korn and Graubard 1998, Survey Methodology 24).
    """
    found = _proportion(hits, called, "never predicted")
    spread = float(np.var(drawn))
    if not called or not spread or not 0 < found.value < 1:
        return found
    effective = min(max(called, found.value * (1 - found.value) / spread), count)
    low, high = _wilson(found.value, effective)
    return Figure(found.value, low, high, "Wilson score, effective sample size")


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Of a count that need not be whole, which scipy does not take (Wilson 1927)."""
    z = float(norm.ppf(0.975))
    middle = share + z * z / (2 * count)
    margin = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return (middle - margin) / scale, (middle + margin) / scale


def _rank_interval(value: float, drawn: NDArray[np.float64], method: str) -> Figure:
    """1.96 standard errors to both sides on the scale of log-odds, where they are alike.

    Near 1 the percentiles of the draws lie too high: they held the true value less often (Pepe
    2003, The Statistical Evaluation of Medical Tests, 5.2; for the average precision Boyd, Eng and
    Page 2013, doi:10.1007/978-3-642-40994-3_55).
    """
    error = float(np.nanstd(drawn)) / (value * (1 - value))
    middle, margin = math.log(value / (1 - value)), float(norm.ppf(0.975)) * error
    low, high = expit((middle - margin, middle + margin))
    return Figure(value, float(low), float(high), f"{method}, log-odds")


def _error_interval(
    value: float, drawn: NDArray[np.float64], calibrated: NDArray[np.float64], method: str
) -> Figure:
    """From the value corrected for its bias down, from the value itself up, two standard errors.

    The calibration error is biased upwards, and each draw by about as much again. Where a
    calibrated model would show as much, the interval begins at 0.
    """
    margin = 1.96 * float(drawn.std())
    low = 2 * value - float(drawn.mean()) - margin
    if value <= np.percentile(calibrated, 97.5):
        low = 0.0
    return Figure(value, max(0.0, low), value + margin, f"{method}, corrected for bias")


def _why(support: NDArray[np.int64], i: int | None) -> str:
    if i is None:
        return "no class that is both there and not there"
    return "no image of it" if not support[i] else "no image of another class"
