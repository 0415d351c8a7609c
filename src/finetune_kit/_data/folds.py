"""Stratified folds for cross-validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_kit._checks import check_count, is_count
from finetune_kit._data.split import Split, assign_parts, checked_labels


def stratified_folds(
    labels: ArrayLike, k: int = 5, *, groups: ArrayLike | None = None, seed: int = 0
) -> tuple[Split, ...]:
    """Split samples into k folds for cross-validation, stratified as in `stratified_split`.

    Fold i is the test part of split i and the validation part of split i - 1. So each split has a
    validation part to choose the epoch by, apart from the test part.

    Args:
        labels: class of each sample, any values, `(n,)`; or 0 and 1 for each label, `(n, k)`.
        k: number of folds, at least 3. Defaults to 5.
        groups: group of each sample (such as the patient), any values, `(n,)`.
        seed: seed of the shuffle. The same seed gives the same folds. Defaults to 0.

    Returns:
        k instances of `Split`. `StratifiedFolds` yields the same folds to scikit-learn.

    Raises:
        ValueError: if a class has fewer samples (or groups) than there are folds.

    Example:
        >>> folds = stratified_folds(["a"] * 40 + ["b"] * 20, k=5)
        >>> folds[0]
        Split(train: 36, validation: 12, test: 12)
    """
    if not is_count(k, 3):
        raise ValueError(
            "`k` must be a whole number from 3 up: one fold is the test part, one the validation "
            f"part, and the others are for training. Received: k={k!r}"
        )
    fold, deviation = _fold_of_each(labels, k, groups, seed)
    splits = []
    for i in range(k):
        test, validation = fold == i, fold == (i + 1) % k
        train = np.flatnonzero(~(test | validation))
        splits.append(Split(train, np.flatnonzero(validation), np.flatnonzero(test), deviation))
    return tuple(splits)


@dataclass(frozen=True)
class StratifiedFolds:
    """Cross-validator for scikit-learn with the folds of `stratified_folds`.

    Pass it as `cv=` to `cross_val_score`, `GridSearchCV` and others. Unlike scikit-learn's own
    cross-validators, it stratifies multi-label samples, with or without groups.

    Args:
        k: number of folds, at least 2. Defaults to 5.
        seed: seed of the shuffle. The same seed gives the same folds. Defaults to 0.

    Example:
        >>> from sklearn.dummy import DummyClassifier
        >>> from sklearn.model_selection import cross_val_score
        >>> x, y, patients = np.eye(60), ["a"] * 40 + ["b"] * 20, np.arange(60) // 2
        >>> cross_val_score(DummyClassifier(), x, y, cv=StratifiedFolds(4), groups=patients).shape
        (4,)
    """

    k: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("k", self.k, least=2)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return self.k

    def split(
        self, X: Any, y: ArrayLike, groups: ArrayLike | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the train and test indices of each fold.

        Args:
            X: ignored.
            y: labels, as for `stratified_split`.
            groups: group of each sample, as for `stratified_split`.

        Yields:
            The indices of the samples outside the fold, and of those in the fold.
        """
        fold, _ = _fold_of_each(y, self.k, groups, self.seed)
        for i in range(self.k):
            yield np.flatnonzero(fold != i), np.flatnonzero(fold == i)


def _fold_of_each(
    labels: ArrayLike, k: int, groups: ArrayLike | None, seed: int
) -> tuple[NDArray[np.int64], float]:
    names = [f"fold {i}" for i in range(k)]
    return assign_parts(checked_labels(labels), np.full(k, 1 / k), groups, seed, names)
