"""Assignment of units (samples or groups) to parts, so that each class gets its share of each part.

A unit is never divided. It is described by the number of its samples of each class. Units of the
same kind, which have equal numbers, are interchangeable: only how many of each kind go to each part
is computed, and the units of a kind are shuffled. So a million samples cost little, unless they lie
in groups that all differ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, vstack

_CANDIDATES = 100  # units of each of two parts that are considered for an exchange
_TRIES = 3  # searches without an improvement before it stops
_MISSING_PENALTY = 1e9  # of a class that is missing from a part, in samples
# Several starts find better assignments of few units. Above this number of units times classes the
# first one is near enough.
_STARTS, _FEW = 10, 3000


def deal(
    kind: NDArray[np.int64], counts: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return a random part for each unit, with `counts[k, p]` units of kind k in part p."""
    order = rng.permutation(len(kind))
    order = order[np.argsort(kind[order], kind="stable")]  # sorted by kind, shuffled within it
    part = np.empty(len(kind), np.int64)
    part[order] = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    return part


def rounded(exact: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Round each cell up or down. Row sums (whole numbers) stay, column sums change by less than 1.

    This is controlled rounding, a transportation problem, all vertices of which are whole numbers.
    The costs favor vertices where few cells become 0, and choose one of these at random.
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
    """Return a part for each unit, such that classes are near their shares and no part lacks one.

    The first assignment is greedy, which is near the optimum if units are many and small. Then
    units are moved and exchanged. Further starts shuffle some units of the best assignment.

    Args:
        tally: samples of each class in each unit, `(units, classes)`.
        shares: share of each part.
        rng: source of random numbers.
        sizes: samples of each unit, if they are not the sums of the rows (multi-label). The greedy
            assignment balances them too.
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
        part = _improved(part, tally, wanted, rng)
        cost = float(_cost(class_counts(tally, part, len(shares)), wanted))
        if cost < least:
            best, least = part, cost
        if least < 1 or tally.shape[0] * tally.shape[1] > _FEW:
            break
    return best


def class_counts(tally: csr_array, part: NDArray[np.int64], parts: int) -> NDArray[np.float64]:
    """Count the samples of each class in each part, `(parts, classes)`."""
    ones = (np.ones(len(part)), (part, np.arange(len(part))))
    return (csr_array(ones, shape=(parts, len(part))) @ tally).toarray()


def _greedy(
    tally: csr_array, shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Assign whole shares of each kind at once, then the remaining units, the largest first."""
    # Equal rows have equal hashes; different rows share one with a probability of about 1e-8.
    hashed = tally.astype(np.uint64) @ rng.integers(0, 2**63, tally.shape[1], np.uint64)
    kind, sizes = np.unique(hashed, return_inverse=True, return_counts=True)[1:]
    whole = np.floor(sizes[:, None] * shares + 1e-9).astype(np.int64)
    left = sizes - whole.sum(axis=1)
    part = deal(kind, np.column_stack([whole, left]), rng)
    rest = np.flatnonzero(part == len(shares))
    total = tally.sum(axis=0)
    missing = shares[:, None] * total - class_counts(tally, part, len(shares) + 1)[:-1]
    weight = 1 / np.maximum(total, 1) ** 2  # a rare class counts as much as a common one
    allowed = np.flatnonzero(shares > 0)
    rest = rest[rng.permutation(len(rest))]
    rest = rest[np.argsort(-tally[rest].sum(axis=1), kind="stable")]
    starts, classes, numbers = tally.indptr.tolist(), tally.indices, tally.data
    for unit in rest.tolist():
        here = slice(starts[unit], starts[unit + 1])
        columns, samples = classes[here], numbers[here]
        # The part whose squared gaps shrink most.
        gaps = missing[:, columns]
        gain = (2 * gaps[allowed] - samples) @ (samples * weight[columns])
        chosen = allowed[gain.argmax()]
        part[unit] = chosen
        missing[chosen, columns] -= samples
    return part


def _improved(
    part: NDArray[np.int64],
    tally: csr_array,
    wanted: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Move or exchange units while this improves the worst part and some class is not near.

    An exchange between two parts is an improvement if they lack fewer classes, or else if the
    largest deviation of a class in the two is smaller.
    """
    counts = class_counts(tally, part, len(wanted))
    parts = np.flatnonzero(wanted.any(axis=1)).tolist()
    tries = _TRIES
    while tries:
        tries -= 1
        costs = _cost(counts[:, None], wanted[:, None])  # of each part alone
        if costs.max() < 1:
            break
        one = int(costs.argmax())
        found = [
            _exchange([one, other], part, tally, counts, wanted, rng)
            for other in parts
            if other != one
        ]
        gain, given, taken, other = max(found, default=(0.0, [], [], one))
        if gain > 1e-9:
            part[given], part[taken] = other, one
            change = tally[given].sum(axis=0) - tally[taken].sum(axis=0)
            counts[one] -= change
            counts[other] += change
            tries = _TRIES
    return part


def _exchange(
    two: list[int],
    part: NDArray[np.int64],
    tally: csr_array,
    counts: NDArray[np.float64],
    wanted: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[float, list[int], list[int], int]:
    """Find the best exchange of a unit (or none) of one part for a unit (or none) of another.

    Returns:
        The improvement, the units that go from the first part to the second, those that go back,
        and the second part.
    """
    most = min(_CANDIDATES, int(np.sqrt(3e5 / len(wanted[0]))))
    units = [np.flatnonzero(part == which) for which in two]
    units = [u if len(u) <= most else u[rng.integers(0, len(u), most)] for u in units]
    given, taken = (np.concatenate([tally[u].toarray(), 0 * counts[:1]]) for u in units)
    change = given[:, None] - taken
    after = np.stack([counts[two[0]] - change, counts[two[1]] + change], axis=2)
    costs = _cost(after, wanted[two])
    i, j = np.unravel_index(costs.argmin(), costs.shape)
    gain = float(_cost(counts[two], wanted[two]) - costs[i, j])
    return gain, units[0][i : i + 1].tolist(), units[1][j : j + 1].tolist(), two[1]


def _cost(counts: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest deviation of a class in some parts (the last two axes), and penalties."""
    missing = ((counts == 0) & (wanted > 0)).sum(axis=(-2, -1))
    return np.abs(counts - wanted).max(axis=(-2, -1)) + _MISSING_PENALTY * missing
