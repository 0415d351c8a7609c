"""Labels and groups come in, a `Split` goes out: which sample trains, validates, tests.

It knows nothing of images or models: labels may belong to anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array

from finetune_kit._checks import check_count, is_count
from finetune_kit._data.assignment import assign, deal, held, rounded

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

    Raises:
        ValueError: if a part is no array of indices, or a sample stands twice.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    deviation: float = float("nan")

    def __post_init__(self) -> None:
        for part in PARTS:
            given = np.asarray(getattr(self, part))
            whole = np.issubdtype(given.dtype, np.integer)
            if given.ndim != 1 or (len(given) and not (whole and given.min() >= 0)):
                raise ValueError(
                    f"`{part}` must be a one-dimensional array of indices from 0 up "
                    "(np.flatnonzero makes one of a mask). "
                    f"Received: dtype {given.dtype}, shape {given.shape}"
                )
            object.__setattr__(self, part, given.astype(np.int64))
        found, counts = np.unique(
            np.concatenate([getattr(self, p) for p in PARTS]), return_counts=True
        )
        if (counts > 1).any():
            twice = found[counts > 1]
            raise ValueError(
                "The parts of a Split must share no sample and hold none twice, or what is "
                f"reported on was trained on. Received {len(twice)} twice, such as "
                f"{twice[:5].tolist()}"
            )

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
    a transportation problem, solved by scipy). With `groups`, no group is on two sides:
    they are assigned greedily from the largest to the smallest (the method of scikit-learn's
    `StratifiedGroupKFold`), then moved and exchanged until each class is in each part and within a
    sample of its share, or no exchange helps. Multi-label samples are split likewise, which brings
    the labels nearer to their shares than iterative stratification (Sechidis, Tsoumakas and
    Vlahavas, ECML PKDD 2011), whose purpose it shares.

    Args:
        labels: class of each sample, any values, `(n,)`; or 0 and 1 for each label, `(n, k)`.
        sizes: shares of train, validation and test, which sum to 1; or whole counts, which sum to
            the number of samples. Each may be 0. Defaults to 70, 15 and 15 %.
        groups: group of each sample (such as the patient), any values, `(n,)`.
        seed: of the shuffle; the same seed gives the same split. Defaults to 0.

    Returns:
        A `Split`; its `deviation` tells how near the shares are. One above 5 % of a class (and
        above one sample) is logged as a warning, and so is a class that a part has none of: without
        groups that can be where its share is less than one sample.

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
        k splits; `StratifiedFolds` makes the same ones where scikit-learn is to ask for them.

    Raises:
        ValueError: if a class has fewer samples (or groups) than there are folds.

    Example:
        >>> folds = stratified_folds(["a"] * 40 + ["b"] * 20, k=5)
        >>> folds[0]
        Split(train: 36, validation: 12, test: 12)
    """
    if not is_count(k, 3):
        raise ValueError(
            "`k` must be a whole number from 3 up: one fold tests, one validates, the rest trains. "
            f"Received: k={k!r}"
        )
    part, deviation = _fold_of(labels, k, groups, seed)

    def fold(i: int) -> Split:
        test, validation = part == i, part == (i + 1) % k
        train = np.flatnonzero(~(test | validation))
        return Split(train, np.flatnonzero(validation), np.flatnonzero(test), deviation)

    return tuple(fold(i) for i in range(k))


@dataclass(frozen=True)
class StratifiedFolds:
    """The folds of `stratified_folds` for scikit-learn: what its `cv=` takes.

    Use it with `cross_val_score`, `GridSearchCV` and the like, on features or on anything else that
    has labels. Unlike scikit-learn's own it takes multi-label labels, and groups along with them.

    Args:
        k: number of folds, at least 2. Defaults to 5.
        seed: of the shuffle; the same seed gives the same folds. Defaults to 0.

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
        if not is_count(self.k, 2):
            raise ValueError(f"`k` must be a whole number from 2 up. Received: k={self.k!r}")

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds, whatever the samples are."""
        return self.k

    def split(
        self, X: Any, y: ArrayLike, groups: ArrayLike | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the indices to train on and those to test on, fold by fold.

        Args:
            X: not looked at.
            y: labels, as of `stratified_split`.
            groups: group of each sample, as of `stratified_split`.

        Yields:
            Two index arrays: the other folds, and the fold.
        """
        part, _ = _fold_of(y, self.k, groups, self.seed)
        for i in range(self.k):
            yield np.flatnonzero(part != i), np.flatnonzero(part == i)


def _fold_of(
    labels: ArrayLike, k: int, groups: ArrayLike | None, seed: int
) -> tuple[NDArray[np.int64], float]:
    return _parted(_labels(labels), np.full(k, 1 / k), groups, seed)


def _parted(
    labels: NDArray[Any], shares: NDArray[np.float64], groups: ArrayLike | None, seed: int
) -> tuple[NDArray[np.int64], float]:
    """Part of each sample, and how far a class is from its share at most."""
    check_count("seed", seed, least=0)
    rng = np.random.default_rng(seed)
    count = len(labels)
    units = np.arange(count) if groups is None else _group_numbers(groups, count)
    many = labels.ndim == 2
    if many:
        names = np.arange(labels.shape[1])
        row, column = np.nonzero(labels)
    else:
        names, column = np.unique(labels, return_inverse=True)
        row = np.arange(count)
    tally = _tally(units[row], column, int(units.max()) + 1, len(names))
    _check_counts(names, tally, shares, "samples" if groups is None else "groups")
    if groups is None and not many:
        part = deal(column, rounded(np.bincount(column)[:, None] * shares, rng), rng)
    else:
        part = assign(tally, shares, rng, np.bincount(units) if many else None)
    there = held(tally, part, len(shares))
    away = np.abs(there - shares[:, None] * there.sum(axis=0))
    _tell(names, there, away, shares)
    return part[units], float(away.max())


def _tell(
    names: NDArray[Any],
    there: NDArray[np.float64],
    away: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> None:
    """Log what a user would not expect of a split."""
    lacking = [
        f"{part} has none of class {names[i]}"
        for part, share, counts in zip(_part_names(len(shares)), shares, there, strict=True)
        if share > 0
        for i in np.flatnonzero(counts == 0)
    ]
    if lacking:
        _log.warning("classes too small to be in every part: %s", "; ".join(lacking[:10]))
    counts, far = there.sum(axis=0), away.max(axis=0)
    worst = int(np.argmax(np.where(far > 1, far / counts, 0)))
    if far[worst] > 1 and far[worst] > 0.05 * counts[worst]:
        _log.warning(
            "the groups keep class %s %.1f samples (%.0f %% of it) away from its share of a part",
            names[worst],
            far[worst],
            100 * far[worst] / counts[worst],
        )


def _part_names(count: int) -> Sequence[str]:
    return PARTS if count == len(PARTS) else [f"fold {i}" for i in range(count)]


def _shares(sizes: Sequence[float], count: int) -> NDArray[np.float64]:
    try:
        shares = np.asarray(sizes, np.float64)
    except (TypeError, ValueError):  # no numbers
        shares = np.empty(0)
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
    if not values.ndim:
        raise ValueError(
            "`labels` must be one for each sample, such as images.labels. "
            f"Received: a {type(labels).__name__}"
        )
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
    return values.astype(np.int8)


def _column(name: str, values: ArrayLike) -> NDArray[Any]:
    column = np.asarray(values)
    if column.ndim != 1 or not len(column):
        raise ValueError(
            f"`{name}` must be one-dimensional and not empty. Received: shape {column.shape}"
        )
    nothing = (
        [_is_missing(value) for value in column] if column.dtype == object else column != column
    )
    if np.any(nothing):
        raise ValueError(
            f"`{name}` must hold a value for each sample. Received: none for "
            f"{np.flatnonzero(nothing)[:10].tolist()}"
        )
    return column.astype(str) if column.dtype == object else column


def _is_missing(value: Any) -> bool:
    """None, a nan, or one of the marks of pandas."""
    return type(value).__name__ in ("NoneType", "NAType", "NaTType") or value != value


def _group_numbers(groups: ArrayLike, count: int) -> NDArray[np.int64]:
    column = _column("groups", groups)
    if len(column) != count:
        raise ValueError(
            f"`groups` must be one for each of {count} labels. Received: {len(column)} groups"
        )
    return np.unique(column, return_inverse=True)[1]


def _tally(
    units: NDArray[np.int64], classes: NDArray[np.int64], count: int, width: int
) -> csr_array:
    """Samples of each class in each unit, `(units, classes)`."""
    return coo_array((np.ones(len(units)), (units, classes)), shape=(count, width)).tocsr()


def _check_counts(
    names: NDArray[Any], tally: csr_array, shares: NDArray[np.float64], what: str
) -> None:
    """Refuse classes that cannot be in every part."""
    parts = int((shares > 0).sum())
    counts = np.bincount(tally.indices, minlength=len(names))
    small = [f"class {name} with {n}" for name, n in zip(names, counts, strict=True) if n < parts]
    if small:
        raise ValueError(
            f"Each class must have at least {parts} {what}, one for each part with a share above "
            "0; find more, leave the class out, or give a part the size 0. "
            f"Received: {', '.join(small[:10])}"
        )
