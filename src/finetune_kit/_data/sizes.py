"""Checks of the sizes of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import is_count


def shares_of(sizes: Sequence[float], count: int, noun: str) -> NDArray[np.float64]:
    """Return sizes, which may be counts of `count` samples, as shares that sum to 1."""
    try:
        shares = np.asarray(sizes, np.float64)
    except (TypeError, ValueError):  # not numbers
        shares = np.empty(0)
    good = shares.ndim == 1 and bool((shares >= 0).all())
    if good and len(shares) == 3 and abs(shares.sum() - 1) <= 1e-6:
        return shares / shares.sum()
    if good and len(shares) == 3 and _are_counts(sizes, count):
        return shares / count
    remedy = _remedy(sizes, shares, count)
    received = f"sizes={sizes!r}"
    if good and len(shares) == 3 and not remedy:
        of_counts = f", not {count:,}" if shares.sum() > 1.5 else ""
        received += f", which sum to {shares.sum():.6g}{of_counts}"
    raise ValueError(
        "`sizes` must be three shares from 0 to 1 (train, validation, test) that sum to 1, or "
        f"three counts that sum to the number of {noun}s, {count:,}{remedy}. Received: {received}"
    )


def _remedy(sizes: Sequence[float], shares: NDArray[np.float64], count: int) -> str:
    """Offer sizes for the two common slips: two shares, and percentages."""
    if shares.ndim != 1 or len(shares) not in (2, 3) or not (shares >= 0).all():
        return ""
    if _are_counts(sizes, count) or abs(shares.sum() - 1) <= 1e-6:
        offered = shares
    elif abs(shares.sum() - 100) <= 1e-4:
        offered = shares / 100
    else:
        return ""
    three = [*offered.tolist(), 0.0][:3]
    return f"; pass ({', '.join(f'{size:.6g}' for size in three)})"


def _are_counts(sizes: Sequence[float], count: int) -> bool:
    return all(is_count(size, 0) for size in sizes) and sum(sizes) == count
