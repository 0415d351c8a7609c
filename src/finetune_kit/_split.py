"""Labels and groups come in, a `Split` goes out: which sample trains, validates, tests.

It knows nothing of images or models: labels may belong to anything.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

from finetune_kit._checks import is_count

PARTS = ("train", "validation", "test")

_log = logging.getLogger("finetune_kit")


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint index arrays, sorted, that hold every sample once.

    Attributes:
        train: int array of the samples to train on.
        validation: int array of the samples to choose by.
        test: int array of the samples to report on.
        deviation: how far a class is from what was asked, at most: the largest difference between
            its count in a part and its share of the part's size, in samples. Below 1 without
            groups; nan where the split was not made by `stratified_split`.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    deviation: float = float("nan")

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

    Each class's count in each part, and each part's size, are within one sample of what was asked,
    which two rounds of `sklearn.model_selection.train_test_split` do not promise (the rounding is
    a transportation problem, solved by scipy). With `groups`, no group is on two sides, and the
    shares are as near as a greedy assignment from the largest group to the smallest gets them
    (the method of scikit-learn's `StratifiedGroupKFold`). Multi-label samples are split by their
    combinations of labels, and what each combination leaves over by the same greedy assignment;
    the shares of the labels come nearer than by iterative stratification (Sechidis, Tsoumakas and
    Vlahavas, ECML PKDD 2011), whose purpose it shares.

    Args:
        labels: class of each sample, any values, `(n,)`; or 0 and 1 for each label, `(n, k)`.
        sizes: shares of train, validation and test, which sum to 1; or whole counts, which sum to
            the number of samples. Each may be 0. Defaults to 70, 15 and 15 %.
        groups: group of each sample (such as the patient), any values, `(n,)`.
        seed: of the shuffle; the same seed gives the same split. Defaults to 0.

    Returns:
        A `Split`; its `deviation` tells how near the shares are. One above 5 % of a class (and
        above one sample) is logged as a warning.

    Raises:
        ValueError: if the sizes do not sum up, or a class has fewer samples (or groups) than there
            are parts to fill.

    Example:
        >>> split = stratified_split(["a"] * 40 + ["b"] * 20, sizes=(0.5, 0.25, 0.25))
        >>> split
        Split(train: 30, validation: 15, test: 15)
    """
    labels = _labels(labels)
    part, deviation = _parted(labels, _shares(sizes, len(labels)), groups, seed)
    train, validation, test = (np.flatnonzero(part == i) for i in range(len(PARTS)))
    return Split(train, validation, test, deviation)


def stratified_folds(
    labels: ArrayLike, k: int = 5, *, groups: ArrayLike | None = None, seed: int = 0
) -> tuple[Split, ...]:
    """Split samples in k folds for cross-validation, stratified as in `stratified_split`.

    Each fold is the test part of one split, and the validation part of the one before it: what
    chooses the epoch is not what is reported.

    Args:
        labels: see `stratified_split`.
        k: number of folds, at least 3. Defaults to 5.
        groups: see `stratified_split`.
        seed: see `stratified_split`.

    Returns:
        k splits. As pairs of train and test they are what scikit-learn's `cv=` takes.

    Raises:
        ValueError: if a class has fewer samples (or groups) than there are folds.

    Example:
        >>> folds = stratified_folds(["a"] * 40 + ["b"] * 20, k=5)
        >>> folds[0]
        Split(train: 36, validation: 12, test: 12)
        >>> cv = [(np.append(fold.train, fold.validation), fold.test) for fold in folds]
    """
    if not is_count(k, 3):
        raise ValueError(
            "`k` must be a whole number from 3 up: one fold tests, one validates, the rest trains. "
            f"Received: k={k!r}"
        )
    part, deviation = _parted(_labels(labels), np.full(k, 1 / k), groups, seed)

    def fold(i: int) -> Split:
        test, validation = part == i, part == (i + 1) % k
        train = np.flatnonzero(~(test | validation))
        return Split(train, np.flatnonzero(validation), np.flatnonzero(test), deviation)

    return tuple(fold(i) for i in range(k))


def _parted(
    labels: NDArray[Any], shares: NDArray[np.float64], groups: ArrayLike | None, seed: int
) -> tuple[NDArray[np.int64], float]:
    """Part of each sample, and how far a class is from its share at most."""
    count = len(labels)
    units = np.arange(count) if groups is None else _group_numbers(groups, count)
    if labels.ndim == 1:
        names, classes = np.unique(labels, return_inverse=True)
        row, column = np.arange(count), classes
    else:
        names, classes = np.arange(labels.shape[1]), None
        row, column = np.nonzero(labels)
    _check_counts(names, column, units[row], shares, "samples" if groups is None else "groups")
    rng = np.random.default_rng(seed)
    if groups is None and classes is not None:
        part = _assign_samples(classes, shares, rng)
    elif groups is None:
        part = _assign_combinations(labels, shares, rng)
    else:
        part = _assign_groups(_tally(units[row], column, units, classes is None), shares, rng)[
            units
        ]
    held = np.zeros((len(shares), len(names)))
    np.add.at(held, (part[row], column), 1)
    away = np.abs(held - shares[:, None] * held.sum(axis=0))
    _tell(names, away, held.sum(axis=0))
    return part, float(away.max())


def _tell(names: NDArray[Any], away: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
    far = away.max(axis=0)
    worst = int(np.argmax(np.where(far > 1, far / counts, 0)))
    if far[worst] > 1 and far[worst] > 0.05 * counts[worst]:
        _log.warning(
            "the groups keep class %s %.1f samples (%.0f %% of it) away from its share of a part",
            names[worst],
            far[worst],
            100 * far[worst] / counts[worst],
        )


def _shares(sizes: Sequence[float], count: int) -> NDArray[np.float64]:
    shares = np.asarray(sizes, np.float64)
    good = shares.shape == (3,) and bool((shares >= 0).all())
    if good and abs(shares.sum() - 1) <= 1e-6:
        return shares / shares.sum()
    if good and all(is_count(size, 0) for size in sizes) and shares.sum() == count:
        return shares / count
    raise ValueError(
        "`sizes` must be three shares (train, validation, test) from 0 up that sum to 1, or three "
        f"counts that sum to the number of samples, {count}. Received: sizes={sizes!r}"
    )


def _labels(labels: ArrayLike) -> NDArray[Any]:
    values = np.asarray(labels)
    if values.ndim != 2:
        return _column("labels", values)
    if not values.size or not np.isin(values, (0, 1)).all():
        raise ValueError(
            "`labels` of shape (n, k) must hold 0 or 1 for each label. Received: shape "
            f"{values.shape}, values {np.unique(values)[:5].tolist()}"
        )
    empty = np.flatnonzero(values.sum(axis=0) == 0)
    if len(empty):
        raise ValueError(
            "`labels` must hold each label at least once. Received none in columns "
            f"{empty.tolist()}"
        )
    return values.astype(np.int64)


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
    counts = _rounded(np.bincount(classes)[:, None] * shares, rng)
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]  # class by class, each shuffled
    part = np.empty(len(classes), np.int64)
    part[order] = np.repeat(np.tile(np.arange(len(shares)), len(counts)), counts.ravel())
    return part


def _rounded(exact: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Round each cell up or down, so that rows keep their (whole) sums and columns theirs within 1.

    This is controlled rounding, a transportation problem: its vertices are whole numbers. Random
    costs choose one of them.
    """
    whole = np.floor(exact + 1e-9).astype(np.int64)
    rest = exact - whole
    rows, columns = np.nonzero(rest > 1e-9)
    if not len(rows):
        return whole
    cells = np.arange(len(rows))
    by_row = csr_array((np.ones(len(rows)), (rows, cells)), shape=(len(exact), len(rows)))
    by_column = csr_array((np.ones(len(rows)), (columns, cells)), shape=(exact.shape[1], len(rows)))
    sums = rest.sum(axis=0)
    solved = linprog(
        rng.random(len(rows)),
        A_ub=vstack([by_column, -by_column]),
        b_ub=np.concatenate([np.ceil(sums - 1e-6), -np.floor(sums + 1e-6)]),
        A_eq=by_row,
        b_eq=np.rint(rest.sum(axis=1)),
        bounds=(0, 1),
        method="highs-ds",  # the simplex method ends in a vertex
    )
    whole[rows, columns] += np.rint(solved.x).astype(np.int64)
    return whole


def _assign_combinations(
    labels: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Whole shares of each combination of labels at once; what is left over, one by one."""
    packed = np.packbits(labels.astype(bool), axis=1)  # eight times less to sort
    kind = np.unique(packed, axis=0, return_inverse=True)[1].ravel()
    order = rng.permutation(len(labels))
    order = order[np.argsort(kind[order], kind="stable")]
    sizes = np.bincount(kind)
    counts = np.floor(sizes[:, None] * shares + 1e-9).astype(np.int64)
    left = sizes - counts.sum(axis=1)
    slots = np.column_stack([counts, left])  # the last column: those to be assigned one by one
    part = np.empty(len(labels), np.int64)
    part[order] = np.repeat(np.tile(np.arange(slots.shape[1]), len(slots)), slots.ravel())
    rest = np.flatnonzero(part == len(shares))
    tally = np.column_stack([labels, np.ones(len(labels))])
    missing = shares[:, None] * tally.sum(axis=0)
    missing -= [tally[part == i].sum(axis=0) for i in range(len(shares))]
    part[rest] = _assign_groups(tally[rest], shares, rng, missing)
    return part


def _tally(
    units: NDArray[np.int64], columns: NDArray[np.int64], all_units: NDArray[np.int64], many: bool
) -> NDArray[np.float64]:
    """Samples of each class in each group; of multi-label ones, their number too."""
    tally = np.zeros((all_units.max() + 1, columns.max() + 1))
    np.add.at(tally, (units, columns), 1)
    if many:
        tally = np.column_stack([tally, np.bincount(all_units)])
    return tally


def _assign_groups(
    tally: NDArray[np.float64],
    shares: NDArray[np.float64],
    rng: np.random.Generator,
    missing: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Part of each group; `missing`: the samples of each class that each part still lacks."""
    if missing is None:
        missing = shares[:, None] * tally.sum(axis=0)
    weight = 1 / np.maximum(missing.sum(axis=0), 1)  # a rare class counts as much as a common one
    order = rng.permutation(len(tally))
    order = order[np.argsort(-tally[order].sum(axis=1), kind="stable")]
    part = np.empty(len(tally), np.int64)
    allowed = np.flatnonzero(shares > 0)
    for group in order:
        # The part that misses most of what this group has, by the fall of the squared gap.
        gain = ((2 * missing[allowed] - tally[group]) * tally[group] * weight**2).sum(axis=1)
        part[group] = allowed[np.argmax(gain)]
        missing[part[group]] -= tally[group]
    return part
