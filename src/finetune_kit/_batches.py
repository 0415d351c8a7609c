"""Indices and a way to load them come in, the batches of each epoch go out.

The order of epoch e is drawn from (seed, e) alone, so it is the same on every backend, whether
pixels or features are loaded, and after a pause. This room does not know what it loads.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

WORKERS = min(8, os.cpu_count() or 1)

# Indices and the number of an epoch come in, what the model takes goes out.
Load = Callable[[NDArray[np.int64], int], Any]
# Indices come in, what the loss compares with goes out.
Targets = Callable[[NDArray[np.int64]], Any]


class Batches(keras.utils.PyDataset):
    """What `fit`, `evaluate` and `predict` draw batches from.

    Each item is `(load(indices, epoch), targets(indices))`. With a `seed` the order of epoch e is
    drawn from (seed, e); without one it is that of `indices`.

    Two habits of Keras 3.15 are kept out. It looks at a first batch before the first epoch and then
    calls `on_epoch_end`, so the callback `turn` tells which epoch it is. And with its own threads
    (`workers` above 1), on PyTorch that look shifts the batches: an epoch begins with its second
    batch and ends with one of the next order. So the threads here are ours.
    """

    def __init__(
        self,
        load: Load,
        targets: Targets,
        indices: NDArray[np.int64],
        batch_size: int,
        seed: int | None = None,
        threads: int = WORKERS,
        epoch: int = 0,
    ) -> None:
        super().__init__(workers=1)
        self._load, self._targets, self._indices = load, targets, indices
        self._batch_size, self._seed = batch_size, seed
        # Pillow decodes outside Python's lock, so threads are enough.
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._ahead = threads
        self.turn = keras.callbacks.LambdaCallback(on_epoch_begin=self._begin)
        self._begin(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self._indices) / self._batch_size)

    def __getitem__(self, item: int) -> tuple[Any, Any]:
        chosen = self._chosen(item)
        if self._pool is None:
            return self._load(chosen, self._epoch), self._targets(chosen)
        for i in range(item, min(item + 1 + self._ahead, len(self))):
            if i not in self._pending:
                self._pending[i] = self._pool.submit(self._load, self._chosen(i), self._epoch)
        return self._pending.pop(item).result(), self._targets(chosen)

    def _chosen(self, item: int) -> NDArray[np.int64]:
        return self._order[item * self._batch_size : (item + 1) * self._batch_size]

    def _begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._order = epoch, self._indices
        self._pending: dict[int, Future[Any]] = {}
        if self._seed is not None:
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self._indices)


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
