"""Labels and scores come in, what figures they would give in other test sets like this one go out.

The bootstrap (Efron and Tibshirani 1993) draws as many images with replacement, class by class, so
that each class keeps its number. Figures that are sums over images are one matrix product for many
draws, those of ranks a running sum over images in the order of their scores. Drawn with the same
seed, two models are drawn the same images: differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of the calibration error, as in Guo et al., ICML 2017
_STEPS = 8192  # of a ranking: finer than any interval
_CELLS = 4_000_000  # weights held at a time: 16 MB


def bootstrap(
    labels: NDArray[np.int64], scores: NDArray[np.float64], *, draws: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Each figure in each draw: `(draws, 1)`, or `(draws, k)` for those of classes (`class_f1`)."""
    n, k = scores.shape
    many = labels.ndim == 2
    truth = labels if many else np.eye(k, dtype=np.int64)[labels]
    sums, ranks = _sums(labels, truth, scores), _Ranks(truth, scores)
    strata = np.zeros(n, np.int64) if many else labels
    found: dict[str, list[NDArray[np.float64]]] = {}
    for weights in _weights(strata, draws, seed):
        figures = _from_sums((weights @ sums).astype(np.float64), n, k, many=many)
        for name, value in (figures | ranks.figures(weights)).items():
            found.setdefault(name, []).append(value)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def calibrated_errors(
    labels: NDArray[np.int64], scores: NDArray[np.float64], *, draws: int, seed: int
) -> NDArray[np.float64]:
    """The calibration errors, `(draws,)`, that a calibrated model of these scores would show.

    Each answer is drawn right with the probability that was told (consistency resampling: Bröcker
    and Smith 2007, doi:10.1175/WAF993.1).
    """
    told, _ = confidence(labels, scores)
    bins, rng = bins_of(told), np.random.default_rng((seed, 1))
    found = []
    for _ in range(draws):
        gaps = np.bincount(bins, (rng.random(len(told)) < told) - told, BINS)
        found.append(np.abs(gaps).sum() / len(told))
    return np.array(found)


def bins_of(told: NDArray[Any]) -> NDArray[np.int64]:
    """The bin of each probability."""
    return np.minimum((told * BINS).astype(np.int64), BINS - 1)


def confidence(
    labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How sure the model was, and whether it was right: of each image, or of each of its labels."""
    if labels.ndim == 2:
        return scores.ravel(), labels.ravel() == 1
    return scores.max(axis=1), scores.argmax(axis=1) == labels


def losses(
    truth: NDArray[np.int64], scores: NDArray[np.float64], *, many: bool
) -> NDArray[np.float64]:
    """Log loss and Brier score of each image, `(n, 2)`.

    Brier's score is the squared distance summed over the classes (Brier 1950: from 0 to 2), halved
    for two classes and averaged over labels, as scikit-learn has it.
    """
    sure = np.clip(scores, np.finfo(np.float64).eps, 1.0)
    squares = (scores - truth) ** 2
    if many:
        unsure = np.clip(1 - scores, np.finfo(np.float64).eps, 1.0)
        logs = np.where(truth == 1, np.log(sure), np.log(unsure)).mean(axis=1)
        return np.stack([-logs, squares.mean(axis=1)], axis=1)
    half = 0.5 if scores.shape[1] == 2 else 1.0
    logs = np.log(sure[truth == 1])
    return np.stack([-logs, half * squares.sum(axis=1)], axis=1)


def _weights(strata: NDArray[np.int64], draws: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """How often each image is drawn, for some draws at a time: `(some, n)`."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    rows = max(1, _CELLS // len(strata))
    for begun in range(0, draws, rows):
        some = min(rows, draws - begun)
        weights = np.empty((some, len(strata)), np.float32)
        for group in groups:
            size = len(group)
            picks = rng.integers(size, size=(some, size)) + size * np.arange(some)[:, None]
            counts = np.bincount(picks.ravel(), minlength=some * size)
            weights[:, group] = counts.reshape(some, size)
        yield weights


def _sums(
    labels: NDArray[np.int64], truth: NDArray[np.int64], scores: NDArray[np.float64]
) -> NDArray[np.float32]:
    """What is summed over the images: hits, predicted and true of each class, losses, bins."""
    n, k = truth.shape
    many = labels.ndim == 2
    both = truth.astype(bool)
    chosen = scores >= 0.5 if many else np.eye(k, dtype=bool)[scores.argmax(axis=1)]
    told, right = (x.reshape(n, -1) for x in confidence(labels, scores))
    bins = bins_of(told)
    all_right = (chosen == both).all(axis=1, keepdims=True)
    gaps = np.zeros((n, BINS))  # by how much the share that is right exceeds what was told
    np.add.at(gaps, (np.arange(n)[:, None], bins), (right - told) / told.shape[1])
    return np.concatenate(
        [both & chosen, chosen, both, all_right, losses(truth, scores, many=many), gaps],
        axis=1,
    ).astype(np.float32)


def _from_sums(
    sums: NDArray[np.float64], n: int, k: int, *, many: bool
) -> dict[str, NDArray[np.float64]]:
    hits, called, true = (sums[:, i * k : (i + 1) * k] for i in range(3))
    precision, recall = _ratio(hits, called), _ratio(hits, true)
    f1 = _ratio(2 * hits, called + true)
    shares = true / true.sum(axis=1, keepdims=True).clip(1)
    found = {"class_f1": f1, "class_precision": precision}
    for name, each in (("precision", precision), ("recall", recall), ("f1", f1)):
        found[f"macro_{name}"] = each.mean(axis=1, keepdims=True)
        found[f"weighted_{name}"] = (shares * each).sum(axis=1, keepdims=True)
    right, log_loss, brier = (sums[:, [3 * k + i]] for i in range(3))
    if many:
        absent = _ratio(n - true - called + hits, n - true)
        both = np.where(true == 0, absent, np.where(true == n, recall, (recall + absent) / 2))
        balanced = both.mean(axis=1, keepdims=True)
    else:
        balanced = recall.sum(axis=1, keepdims=True) / (true > 0).sum(axis=1, keepdims=True)
    return found | {
        "accuracy": right / n,
        "balanced_accuracy": balanced,
        "log_loss": log_loss / n,
        "brier_score": brier / n,
        "calibration_error": np.abs(sums[:, 3 * k + 3 :]).sum(axis=1, keepdims=True) / n,
    }


class _Ranks:
    """Images in steps of each class's score, from the highest down, for figures of ranks.

    Images of one score are one step; where there are more than `_STEPS`, neighbours share one.
    """

    def __init__(self, truth: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        self._places, self._counts = [], []
        for true, score in zip(truth.T, scores.T, strict=True):
            steps = np.unique(-score, return_inverse=True)[1]
            count = int(steps.max()) + 1
            if count > _STEPS:
                steps, count = steps * _STEPS // count, _STEPS
            self._places.append(2 * steps + true)
            self._counts.append(count)

    def figures(self, weights: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Area under the ROC curve and average precision; nan where a draw has one kind only."""
        areas, precisions = [], []
        for places, count in zip(self._places, self._counts, strict=True):
            drawn = np.stack([np.bincount(places, row, 2 * count) for row in weights])
            false, true = np.cumsum(drawn.reshape(len(weights), count, 2), axis=1).transpose(
                2, 0, 1
            )
            positives, negatives = true[:, -1], false[:, -1]
            area = np.trapezoid(true, false, axis=1) + true[:, 0] * false[:, 0] / 2
            told = (drawn[:, 1::2] * _ratio(true, true + false)).sum(axis=1)
            areas.append(_ratio(area, positives * negatives, math.nan))
            precisions.append(np.where(negatives > 0, _ratio(told, positives, math.nan), math.nan))
        found = {}
        for name, columns in (("roc_auc", areas), ("average_precision", precisions)):
            each = found[f"class_{name}"] = np.stack(columns, axis=1)
            defined = ~np.isnan(each)
            total = np.where(defined, each, 0.0).sum(axis=1, keepdims=True)
            found[name] = _ratio(total, defined.sum(axis=1, keepdims=True), math.nan)
        return found


def _ratio(
    above: NDArray[np.float64], below: NDArray[np.float64], otherwise: float = 0.0
) -> NDArray[np.float64]:
    """The quotient, and `otherwise` where that is 0 by 0."""
    return np.divide(above, below, out=np.full(np.shape(above), otherwise), where=below != 0)
