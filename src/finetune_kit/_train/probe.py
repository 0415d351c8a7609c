"""Logistic regression on frozen features, validated: the best head where no block trains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from finetune_kit._train.calibration import losses

Parts = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]  # to train on, and to validate on

# Inverse strengths of the L2 penalty, the strongest first. Few of them are needed: on the
# development sets the validation loss is flat over a factor of three around its minimum.
_STRENGTHS = tuple(float(c) for c in np.logspace(-5, 1, 13))
_ITERATIONS = 200
_RISES = 2  # of the validation loss, before weaker penalties are left out


@dataclass(frozen=True, eq=False)
class Probe:
    """Weights of a dense layer on raw features, `(features, classes)` and `(classes,)`."""

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]

    def scores(self, features: NDArray[Any], *, multi_label: bool) -> NDArray[np.float64]:
        """Return probabilities, `(n, classes)`."""
        logits = features @ self.kernel + self.bias
        return expit(logits) if multi_label else np.exp(log_softmax(logits, axis=1))


@dataclass(frozen=True, eq=False)
class Validated:
    """A probe of each part, and how well they predict the images they were not trained on."""

    strength: float
    probes: tuple[Probe, ...]
    scores: NDArray[np.float64]  # of the validation images of all parts, in their order


def validated(
    features: NDArray[Any], labels: NDArray[np.int64], parts: Parts, count: int
) -> Validated:
    """Fit a probe on each part, with the penalty that has the lowest validation loss.

    The penalties are tried from the strongest on, each from the weights of the one before it, until
    two have not lowered the loss.

    Args:
        features: `(n, features)`.
        labels: class of each image `(n,)`, or 0 and 1 for each label `(n, classes)`.
        parts: the indices to train on and to validate on, one pair for each part.
        count: number of classes.
    """
    truth = np.concatenate([labels[after] for _, after in parts])
    paths = [_Path(features[before], labels[before], count) for before, _ in parts]
    found: list[tuple[float, Validated]] = []
    for strength in _STRENGTHS:
        probes = tuple(path.fit(strength) for path in paths)
        scores = np.concatenate(
            [
                probe.scores(features[after], multi_label=labels.ndim == 2)
                for probe, (_, after) in zip(probes, parts, strict=True)
            ]
        )
        found.append((losses(scores, truth).mean(), Validated(strength, probes, scores)))
        means = [loss for loss, _ in found]
        if len(means) - means.index(min(means)) > _RISES:
            break
    return min(found, key=lambda pair: pair[0])[1]


def fitted(features: NDArray[Any], labels: NDArray[np.int64], count: int, strength: float) -> Probe:
    """Fit a probe on all images."""
    return _Path(features, labels, count).fit(strength)


class _Path:
    """Fits with one penalty after another, each from the weights of the one before it."""

    def __init__(self, features: NDArray[Any], labels: NDArray[np.int64], count: int) -> None:
        self._mean = features.mean(axis=0, dtype=np.float64)
        spread = features.std(axis=0, dtype=np.float64)
        # Features that vary less than the mean are not scaled up. Their weights would be large, and
        # decide alone once blocks train.
        least = spread.mean()
        self._spread = np.maximum(spread, least if least > 0 else 1.0)
        self._features = (features - self._mean) / self._spread
        self._labels, self._count = labels, count
        columns = [labels] if labels.ndim == 1 else list(labels.T)
        self._models = [
            LogisticRegression(max_iter=_ITERATIONS, tol=1e-5, warm_start=True) for _ in columns
        ]
        self._columns = columns

    def fit(self, strength: float) -> Probe:
        """Fit, and return the weights for features that are not scaled."""
        found = [
            self._weights(model.set_params(C=strength), column)
            for model, column in zip(self._models, self._columns, strict=True)
        ]
        kernel = np.concatenate([kernel for kernel, _ in found], axis=1)
        bias = np.concatenate([bias for _, bias in found])
        kernel = kernel / self._spread[:, None]
        return Probe(kernel, bias - self._mean @ kernel)

    def _weights(
        self, model: LogisticRegression, column: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return kernel and bias for scaled features; rare classes may be missing in a part."""
        present, counts = np.unique(column, return_counts=True)
        single = self._labels.ndim == 2
        classes = 1 if single else self._count
        kernel = np.zeros((self._features.shape[1], classes))
        if len(present) == 1:
            share = (counts[0] + 0.5) / (counts[0] + 1)  # nothing to learn but that all are alike
            bias = np.full(classes, np.log1p(-share) - np.log(share))
            if single:
                return kernel, bias if present[0] == 0 else -bias
            bias[present[0]] = 0.0
            return kernel, bias
        # One thread: these products are small, and several threads wait for each other. On two busy
        # cores they take ten times as long.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is a start, not an end
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            model.fit(self._features, column)
        if single:
            return model.coef_.T.copy(), model.intercept_.copy()
        # Two classes have one column of weights: half of it for each side of the softmax.
        pair = len(present) == 2
        weights = np.concatenate([-model.coef_, model.coef_]) / 2 if pair else model.coef_
        offsets = (
            np.concatenate([-model.intercept_, model.intercept_]) / 2 if pair else model.intercept_
        )
        bias = np.full(classes, offsets.min() - np.log(len(column) + 1.0))
        kernel[:, present], bias[present] = weights.T, offsets
        return kernel, bias
