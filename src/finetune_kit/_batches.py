"""Indices and a way to load them come in, the batches of each epoch go out.

The order of epoch e is drawn from (seed, e) alone, so it is the same on every backend, whether
pixels or features are loaded, and after a pause. This room does not know what it loads.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

WORKERS = min(8, os.cpu_count() or 1)

# Indices and the number of an epoch come in, what the model takes goes out.
Load = Callable[[NDArray[np.int64], int], Any]


class Batches(keras.utils.PyDataset):
    """What `fit`, `evaluate` and `predict` draw batches from.

    Each item is `(load(indices, epoch), labels[indices])`. With a `seed` the order of epoch e is
    drawn from (seed, e); without one it is that of `indices`.
    """

    def __init__(
        self,
        load: Load,
        labels: NDArray[Any],
        indices: NDArray[np.int64],
        batch_size: int,
        seed: int | None = None,
        workers: int = WORKERS,
    ) -> None:
        # Pillow decodes outside Python's lock, so threads are enough; a short queue bounds memory.
        super().__init__(workers=workers, max_queue_size=8)
        self._load, self._labels, self._indices = load, labels, indices
        self._batch_size, self._seed, self._epoch = batch_size, seed, 0
        self._shuffle()

    def __len__(self) -> int:
        return math.ceil(len(self._indices) / self._batch_size)

    def __getitem__(self, item: int) -> tuple[Any, NDArray[Any]]:
        chosen = self._order[item * self._batch_size : (item + 1) * self._batch_size]
        return self._load(chosen, self._epoch), self._labels[chosen]

    def on_epoch_end(self) -> None:
        """Draw the order of the next epoch."""
        self._epoch += 1
        self._shuffle()

    def _shuffle(self) -> None:
        self._order = self._indices
        if self._seed is not None:
            self._order = np.random.default_rng((self._seed, self._epoch)).permutation(
                self._indices
            )


def ahead(
    load: Callable[[NDArray[np.int64]], Any], batches: Sequence[NDArray[np.int64]]
) -> Iterator[Any]:
    """What `load` makes of each batch, in order, a few batches ahead of their use."""
    with ThreadPoolExecutor(WORKERS) as pool:
        pending: deque[Any] = deque()
        for batch in batches:
            pending.append(pool.submit(load, batch))
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
