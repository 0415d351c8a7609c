"""Names of rows of features, as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = np.dtype("S32")  # a SHA-256; NumPy pads with zero bytes what it takes for shorter


@dataclass(frozen=True, eq=False)
class Rows:
    """Which row is read at each position.

    Attributes:
        names: the names of the rows, sorted, each once.
        positions: where rows are read, ascending.
        numbers: the number of a name, for each position.
    """

    names: NDArray[np.bytes_]
    positions: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def named(cls, positions: NDArray[np.int64], digests: Iterable[str]) -> Rows:
        """Return the rows of some positions, by the SHA-256 in hexadecimal that names each."""
        packed = np.fromiter(map(bytes.fromhex, digests), NAME, len(positions))
        # As np.unique(packed, return_inverse=True), in half its memory.
        order = np.argsort(packed)
        names = packed[order]
        del packed
        new = np.append(True, names[1:] != names[:-1])[: len(names)]
        numbers = np.empty(len(names), np.int64)
        numbers[order] = np.cumsum(new) - 1
        return cls(names if new.all() else names[new], positions, numbers)

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the names that are read at some positions."""
        return self.numbers[np.searchsorted(self.positions, positions)]

    def find(self, names: NDArray[Any]) -> NDArray[np.int64]:
        """Return the numbers of names, -1 for those that are not among the rows."""
        if not len(self.names):
            return np.full(len(names), -1)
        numbers = np.searchsorted(self.names, names)
        numbers[numbers == len(self.names)] = 0
        return np.where(self.names[numbers] == names, numbers, -1)

    def share(self, number: int, count: int) -> Rows:
        """Return the part of the names that one of several processes computes."""
        last = self.names.view(np.uint8).reshape(-1, NAME.itemsize)[:, -1]
        return self.only(last % count == number)

    def only(self, chosen: NDArray[np.bool_]) -> Rows:
        """Return the chosen names, each at the first position where it is read."""
        wanted = np.flatnonzero(chosen[self.numbers])
        _, first = np.unique(self.numbers[wanted], return_index=True)
        order = np.argsort(first)
        return Rows(self.names[chosen], self.positions[wanted[first[order]]], order)
