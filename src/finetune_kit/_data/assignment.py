"""Units that stay whole, each with its samples of each class, come in; the part of each goes out.

Units of one kind (the same samples of the same classes) are alike: it is enough to know how many of
each kind go to each part, and chance deals them out. So a million samples are a few numbers, unless
they lie in groups that are all different. It knows nothing of names, groups or splits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, vstack

_LOOKED_AT = 100  # units of a part, and of another, that are tried in each other's place
_TRIES = 3  # in vain, before it is left
_EMPTY = 1e9  # what a part without a class is worth, in samples
_STARTS, _FEW = 10, 3000  # of more units times classes, one start is enough


def deal(
    kind: NDArray[np.int64], counts: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Part of each unit, by chance, so that `counts[k, p]` of kind k are in part p."""
    order = rng.permutation(len(kind))
    order = order[np.argsort(kind[order], kind="stable")]  # kind by kind, each shuffled
    part = np.empty(len(kind), np.int64)
    part[order] = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    return part


def rounded(exact: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Round each cell up or down, so that rows keep their (whole) sums and columns theirs within 1.

    This is controlled rounding, a transportation problem: its vertices are whole numbers. Costs
    choose one of them: nothing is rounded to nothing where that can be, and beyond that by chance.
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
        rng.random(len(rows)) - 9.0 * (whole[rows, columns] == 0),
        A_ub=vstack([by_column, -by_column]),
        b_ub=np.concatenate([np.ceil(sums - 1e-6), -np.floor(sums + 1e-6)]),
        A_eq=by_row,
        b_eq=np.rint(rest.sum(axis=1)),
        bounds=(0, 1),
        method="highs-ds",  # the simplex method ends in a vertex
    )
    whole[rows, columns] += np.rint(solved.x).astype(np.int64)
    return whole


def assign(
    tally: csr_array,
    shares: NDArray[np.float64],
    rng: np.random.Generator,
    sizes: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Part of each unit (row of `tally`: its samples of each class): near the shares, none empty.

    `sizes`: samples of each unit where they are not the row's sum; they are balanced at first too.

    Greedily, which is as good as can be where units are many and small. Otherwise units are moved
    and exchanged, from there and then from what is best so far, some of it shuffled.
    """
    first = tally if sizes is None else hstack([tally, sizes[:, None]], format="csr")
    best = _greedy(first, shares, rng)
    wanted = shares[:, None] * tally.sum(axis=0)
    least = np.inf
    for _ in range(_STARTS):
        part = best.copy()
        if least < np.inf:
            moved = rng.random(len(part)) < rng.random()
            part[moved] = rng.permutation(part[moved])
        part = _mended(part, tally, wanted, rng)
        worst = float(_badness(held(tally, part, len(shares)), wanted))
        if worst < least:
            best, least = part, worst
        if least < 1 or tally.shape[0] * tally.shape[1] > _FEW:
            break
    return best


def held(tally: csr_array, part: NDArray[np.int64], parts: int) -> NDArray[np.float64]:
    """Samples of each class in each part, `(parts, classes)`."""
    ones = (np.ones(len(part)), (part, np.arange(len(part))))
    return (csr_array(ones, shape=(parts, len(part))) @ tally).toarray()


def _greedy(
    tally: csr_array, shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Whole shares of each kind at once; what is left over one by one, the largest first."""
    # Rows are equal where this number is, which no two others share but by a chance of 1e-8.
    hashed = tally.astype(np.uint64) @ rng.integers(0, 2**63, tally.shape[1], np.uint64)
    kind, sizes = np.unique(hashed, return_inverse=True, return_counts=True)[1:]
    whole = np.floor(sizes[:, None] * shares + 1e-9).astype(np.int64)
    left = sizes - whole.sum(axis=1)
    part = deal(kind, np.column_stack([whole, left]), rng)
    rest = np.flatnonzero(part == len(shares))
    total = tally.sum(axis=0)
    missing = shares[:, None] * total - held(tally, part, len(shares) + 1)[:-1]
    weight = 1 / np.maximum(total, 1) ** 2  # a rare class counts as much as a common one
    allowed = np.flatnonzero(shares > 0)
    rest = rest[rng.permutation(len(rest))]
    rest = rest[np.argsort(-tally[rest].sum(axis=1), kind="stable")]
    starts, classes, numbers = tally.indptr.tolist(), tally.indices, tally.data
    for unit in rest.tolist():
        here = slice(starts[unit], starts[unit + 1])
        columns, samples = classes[here], numbers[here]
        # The part that misses most of what this unit has, by the fall of the squared gap.
        gaps = missing[:, columns]
        gain = (2 * gaps[allowed] - samples) @ (samples * weight[columns])
        chosen = allowed[gain.argmax()]
        part[unit] = chosen
        missing[chosen, columns] -= samples
    return part


def _mended(
    part: NDArray[np.int64],
    tally: csr_array,
    wanted: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Move or exchange units while that makes the worst part better, or till all are near.

    Of two parts those are better that lack fewer classes, and then whose farthest class is nearer
    to its share; no exchange makes another class as far away as that.
    """
    there = held(tally, part, len(wanted))
    parts = np.flatnonzero(wanted.any(axis=1)).tolist()
    tries = _TRIES
    while tries:
        tries -= 1
        bad = _badness(there[:, None], wanted[:, None])  # part by part
        if bad.max() < 1:
            break
        one = int(bad.argmax())
        found = [
            _exchange([one, other], part, tally, there, wanted, rng)
            for other in parts
            if other != one
        ]
        gain, given, taken, other = max(found, default=(0.0, [], [], one))
        if gain > 1e-9:
            part[given], part[taken] = other, one
            change = tally[given].sum(axis=0) - tally[taken].sum(axis=0)
            there[one] -= change
            there[other] += change
            tries = _TRIES
    return part


def _exchange(
    two: list[int],
    part: NDArray[np.int64],
    tally: csr_array,
    there: NDArray[np.float64],
    wanted: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[float, list[int], list[int], int]:
    """The best exchange of a unit (or none) for a unit (or none), among those looked at."""
    most = min(_LOOKED_AT, int(np.sqrt(3e5 / len(wanted[0]))))
    units = [np.flatnonzero(part == which) for which in two]
    units = [u if len(u) <= most else u[rng.integers(0, len(u), most)] for u in units]
    given, taken = (np.concatenate([tally[u].toarray(), 0 * there[:1]]) for u in units)
    change = given[:, None] - taken
    after = np.stack([there[two[0]] - change, there[two[1]] + change], axis=2)
    bad = _badness(after, wanted[two])
    i, j = np.unravel_index(bad.argmin(), bad.shape)
    gain = float(_badness(there[two], wanted[two]) - bad[i, j])
    return gain, units[0][i : i + 1].tolist(), units[1][j : j + 1].tolist(), two[1]


def _badness(there: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of parts together (the last two axes): the farthest class, and how many are empty."""
    empty = ((there == 0) & (wanted > 0)).sum(axis=(-2, -1))
    return np.abs(there - wanted).max(axis=(-2, -1)) + _EMPTY * empty
