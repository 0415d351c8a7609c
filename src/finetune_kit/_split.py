"""Labels and groups come in, a `Split` goes out: which sample trains, validates, tests.

It knows nothing of images or models: labels may belong to anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint index arrays, sorted, that hold every sample once.

    Attributes:
        train: int array of the samples to train on.
        validation: int array of the samples to choose by.
        test: int array of the samples to report on.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"Split({', '.join(f'{part}: {len(getattr(self, part)):,}' for part in PARTS)})"


def stratified_split(
    labels: ArrayLike,
    sizes: Sequence[float] = (0.70, 0.15, 0.15),
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Split:
    """Split samples in three parts in which each class has the same share.

    Each class's count in each part is within one sample of what was asked, which two rounds of
    `sklearn.model_selection.train_test_split` do not promise; what rounding gives and takes is
    balanced over the classes. With `groups`, no group is on two sides, and the shares are as near
    as a greedy assignment from the largest group to the smallest gets them (the method of
    scikit-learn's `StratifiedGroupKFold`).

    Args:
        labels: class of each sample, any values, `(n,)`.
        sizes: shares of train, validation and test; they sum to 1, and each may be 0.
            Defaults to 70, 15 and 15 %.
        groups: group of each sample (such as the patient), any values, `(n,)`.
        seed: of the shuffle; the same seed gives the same split. Defaults to 0.

    Returns:
        A `Split`.

    Raises:
        ValueError: if the sizes do not sum to 1, or a class has fewer samples (or groups) than
            there are parts to fill.

    Example:
        >>> split = stratified_split(["a"] * 40 + ["b"] * 20, sizes=(0.5, 0.25, 0.25))
        >>> split
        Split(train: 30, validation: 15, test: 15)
    """
    shares = _shares(sizes)
    names, classes = np.unique(_column("labels", labels), return_inverse=True)
    units = np.arange(len(classes)) if groups is None else _group_numbers(groups, len(classes))
    _check_counts(names, classes, units, shares, "samples" if groups is None else "groups")
    rng = np.random.default_rng(seed)
    if groups is None:
        part = _assign_samples(classes, shares, rng)
    else:
        part = _assign_groups(classes, units, shares, rng)
    return Split(*(np.flatnonzero(part == i) for i in range(len(PARTS))))


def _shares(sizes: Sequence[float]) -> NDArray[np.float64]:
    shares = np.asarray(sizes, np.float64)
    if shares.shape != (3,) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            "`sizes` must be three shares (train, validation, test) from 0 up that sum to 1. "
            f"Received: sizes={sizes!r}"
        )
    return shares / shares.sum()


def _column(name: str, values: ArrayLike) -> NDArray[Any]:
    column = np.asarray(values)
    if column.ndim != 1 or not len(column):
        raise ValueError(
            f"`{name}` must be one-dimensional and not empty. Received: shape {column.shape}"
        )
    return column


def _group_numbers(groups: ArrayLike, count: int) -> NDArray[np.int64]:
    column = _column("groups", groups)
    if len(column) != count:
        raise ValueError(
            f"`groups` must be one for each of {count} labels. Received: {len(column)} groups"
        )
    return np.unique(column, return_inverse=True)[1]


def _check_counts(
    names: NDArray[Any],
    classes: NDArray[np.int64],
    units: NDArray[np.int64],
    shares: NDArray[np.float64],
    what: str,
) -> None:
    """Refuse classes that cannot be in every part."""
    parts = int((shares > 0).sum())
    held = np.unique(np.stack([classes, units]), axis=1)[0]
    counts = np.bincount(held, minlength=len(names))
    small = [f"{name} ({n})" for name, n in zip(names, counts, strict=True) if n < parts]
    if small:
        raise ValueError(
            f"Each class must have at least {parts} {what}, one for each part with a share above "
            f"0. Received too few of: {', '.join(small[:10])}"
        )


def _assign_samples(
    classes: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    part = np.empty(len(classes), np.int64)
    owed = np.zeros(len(shares))  # what rounding has kept from each part so far
    for label in rng.permutation(classes.max() + 1):
        members = rng.permutation(np.flatnonzero(classes == label))
        exact = len(members) * shares
        counts = np.floor(exact + 1e-9).astype(np.int64)
        owed += exact - counts
        # Round up where most is owed, but nowhere by a whole sample: a share that came out even
        # (or is 0) stays as it is.
        open_parts = [i for i in np.argsort(-owed, kind="stable") if exact[i] - counts[i] > 1e-9]
        for i in open_parts[: len(members) - counts.sum()]:
            counts[i] += 1
            owed[i] -= 1
        part[members] = np.repeat(np.arange(len(shares)), counts)
    return part


def _assign_groups(
    classes: NDArray[np.int64],
    groups: NDArray[np.int64],
    shares: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    tally = np.zeros((groups.max() + 1, classes.max() + 1))
    np.add.at(tally, (groups, classes), 1)
    missing = shares[:, None] * tally.sum(axis=0)  # samples of each class that each part lacks
    weight = 1 / tally.sum(axis=0)  # a rare class counts as much as a common one
    order = rng.permutation(len(tally))
    order = order[np.argsort(-tally[order].sum(axis=1), kind="stable")]
    part = np.empty(len(tally), np.int64)
    allowed = np.flatnonzero(shares > 0)
    for group in order:
        # The part that misses most of what this group has, by the fall of the squared gap.
        gain = ((2 * missing[allowed] - tally[group]) * tally[group] * weight**2).sum(axis=1)
        part[group] = allowed[np.argmax(gain)]
        missing[part[group]] -= tally[group]
    return part[groups]
