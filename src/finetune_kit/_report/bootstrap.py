"""Stratified bootstrap of classification metrics.

Each resample draws as many images of each class as there are, with replacement (Efron and
Tibshirani 1993). Metrics that are sums over images are one matrix product for many resamples;
metrics of a ranking are cumulative sums over images sorted by score. The same seed resamples the
same images for every model, so differences between models are paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

BINS = 15  # of the expected calibration error, as in Guo et al., ICML 2017
_STEPS = 8192  # distinct ranks at most; far finer than any interval
_WEIGHTS_AT_ONCE = 4_000_000  # 16 MB
_RANKED_AT_MOST = 2_500_000_000  # scores that are ranked again in all resamples together
_CALIBRATED_AT_MOST = 2_500_000_000  # predictions that are drawn for the calibration error
_ROWS_AT_ONCE = 4096  # of scores, in computations that need copies of them


def bootstrap(
    labels: NDArray[np.int64], scores: NDArray[np.float64], *, resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return each metric in each resample.

    Args:
        labels: class indices `(n,)`, or 0 or 1 for each label `(n, k)`.
        scores: probabilities `(n, k)`.
        resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        By name, `(resamples, 1)`; for metrics of classes (`class_f1`), `(resamples, k)`. ROC AUC
        and average precision have fewer rows where images times classes are more than 2.5 million.
    """
    n, k = scores.shape
    multi_label = labels.ndim == 2
    truth = one_hot(labels, k)
    counts, terms = _counts(labels, truth, scores), _terms(labels, truth, scores)
    rankings, left = _Rankings(truth, scores), ranked_resamples(n * k, resamples)
    strata = np.zeros(n, np.int64) if multi_label else labels
    found: dict[str, list[NDArray[np.float64]]] = {}
    for weights in _weights(strata, resamples, seed):
        sums = np.concatenate([(counts @ weights.T).T, weights @ terms], axis=1, dtype=np.float64)
        metrics = _from_sums(sums, n, k, multi_label=multi_label)
        metrics |= rankings.metrics(weights[:left]) if left else {}
        left = max(0, left - len(weights))
        for name, values in metrics.items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def one_hot(labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Return whether each image has each class or label, `(n, k)`."""
    if labels.ndim == 2:
        return labels == 1
    truth = np.zeros((len(labels), k), bool)
    truth[np.arange(len(labels)), labels] = True
    return truth


def ranked_resamples(scores: int, resamples: int) -> int:
    """Return in how many of the resamples a number of scores is ranked, at least 20.

    The intervals of ROC AUC and average precision need the standard deviation alone.
    """
    return min(resamples, max(20, _RANKED_AT_MOST // scores))


def calibrated_errors(
    labels: NDArray[np.int64], scores: NDArray[np.float64], *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the calibration errors `(resamples,)` of a perfectly calibrated model.

    Each prediction is made correct with its predicted probability (consistency resampling: Bröcker
    and Smith 2007, doi:10.1175/WAF993.1).
    """
    confidence, _ = confidences(labels, scores)
    bins, rng = bins_of(confidence), np.random.default_rng((seed, 1))
    errors = []
    for _ in range(min(resamples, max(20, _CALIBRATED_AT_MOST // len(confidence)))):
        correct = rng.random(len(confidence)) < confidence
        errors.append(np.abs(np.bincount(bins, correct - confidence, BINS)).sum() / len(confidence))
    return np.array(errors)


def bins_of(confidence: NDArray[Any], bins: int = BINS) -> NDArray[np.int64]:
    """Return the bin of each probability, for bins of equal width."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def confidences(
    labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return predicted probabilities, and whether each prediction was correct.

    One value for each image: the probability of the predicted class. For multi-label images one
    value for each image and label: the probability of the label.
    """
    if labels.ndim == 2:
        return scores.ravel(), labels.ravel() == 1
    return scores.max(axis=1), scores.argmax(axis=1) == labels


def losses(
    truth: NDArray[np.bool_], scores: NDArray[np.float64], *, multi_label: bool
) -> NDArray[np.float64]:
    """Return the log loss and Brier score of each image, `(n, 2)`.

    The Brier score is the squared distance summed over the classes (Brier 1950: from 0 to 2),
    halved for two classes and averaged over labels, as in scikit-learn.
    """
    starts = range(0, len(scores), _ROWS_AT_ONCE)
    pairs = [(truth[i : i + _ROWS_AT_ONCE], scores[i : i + _ROWS_AT_ONCE]) for i in starts]
    return np.concatenate([_losses(true, score, multi_label=multi_label) for true, score in pairs])


def _losses(
    truth: NDArray[np.bool_], scores: NDArray[np.float64], *, multi_label: bool
) -> NDArray[np.float64]:
    present = np.clip(scores, np.finfo(np.float64).eps, 1.0)
    squares = (scores - truth) ** 2
    if multi_label:
        absent = np.clip(1 - scores, np.finfo(np.float64).eps, 1.0)
        logs = np.where(truth, np.log(present), np.log(absent)).mean(axis=1)
        return np.stack([-logs, squares.mean(axis=1)], axis=1)
    half = 0.5 if scores.shape[1] == 2 else 1.0
    logs = np.log(present[truth])
    return np.stack([-logs, half * squares.sum(axis=1)], axis=1)


def _weights(strata: NDArray[np.int64], resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield how often each resample holds each image, `(rows, n)`, for some resamples at a time."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    at_once = max(1, _WEIGHTS_AT_ONCE // len(strata))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        weights = np.empty((rows, len(strata)), np.float32)
        for group in groups:
            size = len(group)
            picks = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            counts = np.bincount(picks.ravel(), minlength=rows * size)
            weights[:, group] = counts.reshape(rows, size)
        yield weights


def _counts(
    labels: NDArray[np.int64], truth: NDArray[np.bool_], scores: NDArray[np.float64]
) -> Any:
    """Return, for each class, which images are correct, predicted and true: sparse `(3 k, n)`."""
    predicted = (
        scores >= 0.5 if labels.ndim == 2 else one_hot(scores.argmax(axis=1), truth.shape[1])
    )
    rows = [sparse.csr_array(each.T, dtype=np.float32) for each in (truth & predicted, predicted)]
    return sparse.vstack([*rows, sparse.csr_array(truth.T, dtype=np.float32)], "csr")


def _terms(
    labels: NDArray[np.int64], truth: NDArray[np.bool_], scores: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the terms of each image that the metrics sum up, in the order of `_from_sums`."""
    n, multi_label = len(truth), labels.ndim == 2
    confidence, correct = (x.reshape(n, -1) for x in confidences(labels, scores))
    gaps = np.zeros((n, BINS))  # accuracy minus confidence, in the bin of the confidence
    columns = bins_of(confidence)
    np.add.at(gaps, (np.arange(n)[:, None], columns), (correct - confidence) / confidence.shape[1])
    all_correct = ((scores >= 0.5) == truth).all(axis=1, keepdims=True) if multi_label else correct
    return np.concatenate(
        [all_correct, losses(truth, scores, multi_label=multi_label), gaps], axis=1
    ).astype(np.float32)


def _from_sums(
    sums: NDArray[np.float64], n: int, k: int, *, multi_label: bool
) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of each resample from its sums of `_counts` and `_terms`."""
    correct, predicted, true = (sums[:, i * k : (i + 1) * k] for i in range(3))
    precision, recall = _ratio(correct, predicted), _ratio(correct, true)
    f1 = _ratio(2 * correct, predicted + true)
    shares = true / true.sum(axis=1, keepdims=True).clip(1)
    found = {"class_f1": f1, "class_precision": precision}
    for name, each in (("precision", precision), ("recall", recall), ("f1", f1)):
        found[f"macro_{name}"] = each.mean(axis=1, keepdims=True)
        found[f"weighted_{name}"] = (shares * each).sum(axis=1, keepdims=True)
    all_correct, log_loss, brier = (sums[:, [3 * k + i]] for i in range(3))
    if multi_label:
        specificity = _ratio(n - true - predicted + correct, n - true)
        both = np.where(
            true == 0, specificity, np.where(true == n, recall, (recall + specificity) / 2)
        )
        balanced = both.mean(axis=1, keepdims=True)
    else:
        balanced = recall.sum(axis=1, keepdims=True) / (true > 0).sum(axis=1, keepdims=True)
    return found | {
        "accuracy": all_correct / n,
        "balanced_accuracy": balanced,
        "log_loss": log_loss / n,
        "brier_score": brier / n,
        "expected_calibration_error": np.abs(sums[:, 3 * k + 3 :]).sum(axis=1, keepdims=True) / n,
    }


class _Rankings:
    """The images sorted by the score of each class, for ROC AUC and average precision.

    Images with the same score share a rank. If there are more than `_STEPS` distinct scores,
    neighbours share a rank too.
    """

    def __init__(self, truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        self._cells, self._counts = [], []
        for true, score in zip(truth.T, scores.T, strict=True):
            ranks = np.unique(-score, return_inverse=True)[1]
            count = int(ranks.max()) + 1
            if count > _STEPS:
                ranks, count = ranks * _STEPS // count, _STEPS
            self._cells.append((2 * ranks + true).astype(np.int16))
            self._counts.append(count)

    def metrics(self, weights: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Return ROC AUC and average precision; nan where a resample has only one kind of label."""
        columns = [
            _ranking_metrics(cells, count, weights)
            for cells, count in zip(self._cells, self._counts, strict=True)
        ]
        found = {}
        for i, name in enumerate(("roc_auc", "average_precision")):
            each = found[f"class_{name}"] = np.stack([column[i] for column in columns], axis=1)
            defined = ~np.isnan(each)
            total = np.where(defined, each, 0.0).sum(axis=1, keepdims=True)
            found[name] = _ratio(total, defined.sum(axis=1, keepdims=True), math.nan)
        return found


def _ranking_metrics(
    cells: NDArray[np.int16], count: int, weights: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ROC AUC and average precision of one class in each resample."""
    by_cell = np.stack([np.bincount(cells, row, 2 * count) for row in weights])
    by_rank = by_cell.reshape(len(weights), count, 2)
    false, true = np.cumsum(by_rank, axis=1).transpose(2, 0, 1)
    positives, negatives = true[:, -1], false[:, -1]
    area = np.trapezoid(true, false, axis=1) + true[:, 0] * false[:, 0] / 2
    precision = (by_cell[:, 1::2] * _ratio(true, true + false)).sum(axis=1)
    average = np.where(negatives > 0, _ratio(precision, positives, math.nan), math.nan)
    return _ratio(area, positives * negatives, math.nan), average


def _ratio(
    above: NDArray[np.float64], below: NDArray[np.float64], otherwise: float = 0.0
) -> NDArray[np.float64]:
    """Return the quotient, and `otherwise` where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), otherwise), where=below != 0)
