"""Stratified splits of labels into train, validation and test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array

from finetune_kit._checks import check_count
from finetune_kit._data.assignment import assign, class_counts, deal, rounded
from finetune_kit._data.labels import as_groups, as_text, as_values, missing, shown
from finetune_kit._data.sheets import of_split
from finetune_kit._data.sizes import shares_of
from finetune_kit._hints import hints
from finetune_kit._text import listed, plural, shortened

PARTS = ("train", "validation", "test")

_SIZES = "sizes=(train, validation, test), such as sizes=(0.8, 0, 0.2)"
SPLIT_HINTS = {
    "random_state": "`seed`",
    **dict.fromkeys((*PARTS, "val", "train_size", "val_size", "test_size"), _SIZES),
}

_log = logging.getLogger("finetune_kit")


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of the samples for training, validation and test.

    `stratified_split` and `stratified_folds` return it. Make one yourself if the parts are fixed
    already. No sample may be in two parts.

    Attributes:
        train: samples to train on, sorted int array.
        validation: samples to choose the model and the epoch by, sorted int array.
        test: samples to evaluate on, sorted int array.
        deviation: the largest difference between the count of a class in a part and the count that
            its share asks for, in samples. It is below 1 without groups, and nan if the split was
            not made by `stratified_split` or `stratified_folds`.

    Raises:
        ValueError: if a part is not an array of indices, or a sample occurs twice.
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
                    "(np.flatnonzero converts a mask). "
                    f"Received: dtype {given.dtype}, shape {given.shape}"
                )
            object.__setattr__(self, part, given.astype(np.int64))
        found, counts = np.unique(
            np.concatenate([getattr(self, part) for part in PARTS]), return_counts=True
        )
        if (counts > 1).any():
            twice = found[counts > 1]
            raise ValueError(
                "A sample may be in one part of a Split only, and once. "
                f"Received: {plural(len(twice), 'sample')} more than once, such as "
                f"{shown(twice.tolist(), 5)}"
            )

    def __repr__(self) -> str:
        return f"Split({', '.join(f'{part}: {len(getattr(self, part)):,}' for part in PARTS)})"

    def _repr_html_(self) -> str:
        return of_split(repr(self), [(p, len(getattr(self, p))) for p in PARTS], self.deviation)


@hints(**SPLIT_HINTS)
def stratified_split(
    labels: ArrayLike,
    sizes: Sequence[float] = (0.70, 0.15, 0.15),
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Split:
    """Split samples into train, validation and test parts with the same class shares.

    Use `ImageSet.split` for images. This function takes labels of anything and returns indices.

    Without groups, the count of each class in each part and the size of each part are within one
    sample of what the sizes ask for. Two calls of `sklearn.model_selection.train_test_split` do not
    guarantee this. (The rounding is a transportation problem, which scipy solves.)

    With `groups`, each group stays whole. Groups are assigned greedily, the largest first, as in
    scikit-learn's `StratifiedGroupKFold`. Then groups are moved and exchanged until each class is
    in each part and within one sample of its share, or no exchange improves the split.

    Multi-label samples are assigned in the same way. The labels come nearer to their shares than
    with iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011).

    Args:
        labels: class of each sample, any values, `(n,)`; or 0 and 1 for each label, `(n, k)`.
        sizes: shares of train, validation and test, which sum to 1, or counts, which sum to the
            number of samples. Each may be 0. Defaults to `(0.70, 0.15, 0.15)`.
        groups: group of each sample (such as the patient), any values, `(n,)`. Values with the same
            text are one group, and so are 1 and 1.0.
        seed: seed of the shuffle. The same seed gives the same split. Defaults to 0.

    Returns:
        A `Split`. A class that deviates by more than 5 % of its samples (and more than one sample)
        is logged as a warning, and so is a class that is missing from a part.

    Raises:
        ValueError: if the sizes do not sum up, or a class has fewer samples (or groups) than there
            are parts to fill.

    Example:
        >>> split = stratified_split(["a"] * 40 + ["b"] * 20, sizes=(0.5, 0.25, 0.25))
        >>> split
        Split(train: 30, validation: 15, test: 15)
    """
    return stratified(labels, sizes, groups, seed)


def stratified(
    labels: ArrayLike,
    sizes: Sequence[float],
    groups: ArrayLike | None,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> Split:
    """Split as `stratified_split` does; messages use `class_names`, and say images."""
    values = checked_labels(labels)
    shares = shares_of(sizes, len(values), _noun(class_names))
    part, deviation = assign_parts(values, shares, groups, seed, PARTS, class_names)
    train, validation, test = (np.flatnonzero(part == i) for i in range(len(PARTS)))
    return Split(train, validation, test, deviation)


def assign_parts(
    labels: NDArray[Any],
    shares: NDArray[np.float64],
    groups: ArrayLike | None,
    seed: int,
    part_names: Sequence[str],
    class_names: Sequence[str] | None = None,
) -> tuple[NDArray[np.int64], float]:
    """Return the part of each sample, and the largest deviation of a class from its share."""
    check_count("seed", seed, least=0)
    noun = _noun(class_names)
    rng = np.random.default_rng(seed)
    units = np.arange(len(labels)) if groups is None else _group_numbers(groups, len(labels), noun)
    multi_label = labels.ndim == 2
    if multi_label:
        classes: NDArray[Any] = np.arange(labels.shape[1])
        row, column = np.nonzero(labels)
    else:
        classes, column = np.unique(labels, return_inverse=True)
        row = np.arange(len(labels))
    names = [str(name if class_names is None else class_names[name]) for name in classes.tolist()]
    tally = _tally(units[row], column, int(units.max()) + 1, len(names))
    _check_class_sizes(names, tally, shares, f"{noun}s" if groups is None else "groups")
    if groups is None and not multi_label:
        part = deal(column, rounded(np.bincount(column)[:, None] * shares, rng), rng)
    else:
        part = assign(tally, shares, rng, np.bincount(units) if multi_label else None)
    counts = class_counts(tally, part, len(shares))
    deviations = np.abs(counts - shares[:, None] * counts.sum(axis=0))
    _warn_of_missing(names, counts, shares, part_names, noun)
    _warn_of_deviation(names, counts.sum(axis=0), deviations.max(axis=0), noun)
    return part[units], float(deviations.max())


def _warn_of_missing(
    names: Sequence[str],
    counts: NDArray[np.float64],
    shares: NDArray[np.float64],
    part_names: Sequence[str],
    noun: str,
) -> None:
    absent = [
        f"{part} has no {noun} of class {names[i]}"
        for part, share, row in zip(part_names, shares, counts, strict=True)
        if share > 0
        for i in np.flatnonzero(row == 0).tolist()
    ]
    if absent:
        _log.warning("Some classes are too small for every part: %s", listed(absent, 10))


def _warn_of_deviation(
    names: Sequence[str], totals: NDArray[np.float64], deviations: NDArray[np.float64], noun: str
) -> None:
    worst = int(np.argmax(np.where(deviations > 1, deviations / totals, 0)))
    if deviations[worst] > 1 and deviations[worst] > 0.05 * totals[worst]:
        _log.warning(
            "Class %s deviates from its share of a part by %.1f %ss (%.0f%% of the class), "
            "because groups stay whole",
            names[worst],
            deviations[worst],
            noun,
            100 * deviations[worst] / totals[worst],
        )


def _noun(class_names: Sequence[str] | None) -> str:
    """Return what messages call a sample; only an image set names its classes."""
    return "sample" if class_names is None else "image"


def checked_labels(labels: ArrayLike) -> NDArray[Any]:
    """Return labels as an array `(n,)` of values or `(n, k)` of 0 and 1."""
    values = np.empty(()) if hasattr(labels, "labels") else as_values(labels)
    if not values.ndim:
        raise ValueError(
            "`labels` must hold a label for each sample, such as images.labels. "
            f"Received: {shortened(labels)}"
        )
    if values.ndim != 2:
        return _column("labels", values)
    if not values.size or not np.isin(values, (0, 1)).all():
        raise ValueError(
            "`labels` of shape (n, k) must hold 0 or 1 for each label"
            f"{'; pass labels[:, 0]' if values.shape[1] == 1 else ''}. Received: shape "
            f"{values.shape}, values {shown(np.unique(values).tolist(), 5)}"
        )
    return values.astype(np.int8)


def _column(name: str, values: ArrayLike) -> NDArray[Any]:
    column = as_values(values)
    if column.ndim != 1 or not len(column):
        raise ValueError(
            f"`{name}` must be one-dimensional and not empty. Received: shape {column.shape}"
        )
    gaps = missing(column)
    if gaps:
        raise ValueError(
            f"`{name}` must hold a value for each sample. Received: none for {shown(gaps)}"
        )
    return np.array([*map(as_text, column)]) if column.dtype == object else column


def _group_numbers(groups: ArrayLike, count: int, noun: str) -> NDArray[np.int64]:
    if hasattr(groups, "groups"):
        kind = type(groups).__name__
        raise ValueError(
            f"`groups` must hold one group for each of the {count:,} {noun}s; pass "
            f"{'duplicates' if kind == 'Duplicates' else 'images'}.groups. Received: type {kind}"
        )
    column = _column("groups", as_groups(groups))
    if len(column) != count:
        raise ValueError(
            f"`groups` must hold one group for each of the {count:,} {noun}s. "
            f"Received: {len(column):,} groups"
        )
    return np.unique(column, return_inverse=True)[1]


def _tally(
    units: NDArray[np.int64], classes: NDArray[np.int64], count: int, width: int
) -> csr_array:
    """Count the samples of each class in each unit, `(units, classes)`."""
    return coo_array((np.ones(len(units)), (units, classes)), shape=(count, width)).tocsr()


def _check_class_sizes(
    names: Sequence[str], tally: csr_array, shares: NDArray[np.float64], noun: str
) -> None:
    parts = int((shares > 0).sum())
    counts = np.bincount(tally.indices, minlength=len(names))
    small = [f"class {name} with {n}" for name, n in zip(names, counts, strict=True) if n < parts]
    if small:
        raise ValueError(
            f"Each class must have at least {parts} {noun}"
            f"{' (which stay whole)' if noun == 'groups' else ''}, one for each part with a size "
            "above 0; add more, leave the class out, or give a part the size 0. "
            f"Received: {listed(small, 10)}"
        )
