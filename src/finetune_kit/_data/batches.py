"""The batches that `fit` and `predict` read.

The order of epoch e depends on (seed, e) alone, so it is the same on every backend, whether pixels
or features are loaded, and after an interruption.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._processes import share

WORKERS = min(8, os.cpu_count() or 1)

# From indices and the number of an epoch to what the model takes.
Load = Callable[[NDArray[np.int64], int], Any]
# From indices to what the loss compares the outputs with.
Targets = Callable[[NDArray[np.int64]], Any]


class Batches(keras.utils.PyDataset):
    """Batches `(load(indices, epoch), targets(indices))` for `fit` and `predict`.

    Without a `seed` it is one pass over `indices`, in their order. With a seed it is endless: item
    i is batch `i % steps` of epoch `i // steps`, whose order is drawn from (seed, epoch). With
    `steps_per_epoch=steps`, `fit` then reads all epochs from one iterator; a new one for each epoch
    costs TensorFlow some 50 ms, more than the steps of a head. An item depends on its number alone,
    so it does no harm that Keras looks at the first items beforehand.

    The threads are our own: with those of Keras (`workers` above 1) that look shifts the batches on
    PyTorch (Keras 3.15).
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
        mixup: float = 0.0,
    ) -> None:
        super().__init__(workers=1)
        self._load, self._targets, self._indices = load, targets, indices
        self._batch_size, self._seed, self._first = batch_size, seed, epoch
        self._mixup = mixup
        # Of each batch, where several processes train. Threads do not see the distribution.
        self._share, self._shares = share()
        self.steps = math.ceil(len(indices) / batch_size)
        # Pillow releases Python's lock while it decodes, so threads are enough.
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._ahead = threads
        self._pending: dict[int, Future[Any]] = {}
        # Batches that are loaded ahead may belong to the next epoch.
        self._order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def num_batches(self) -> int | None:
        """Number of items; None if they are endless."""
        return self.steps if self._seed is None else None

    def __getitem__(self, item: int) -> tuple[Any, Any]:
        batch = self._batch(item)
        if self._seed is None or not self._mixup:
            return batch
        epoch, number = divmod(item, self.steps)
        rng = np.random.default_rng((self._seed, self._first + epoch, 3, number))
        return mixed(batch, self._mixup, rng)

    def _batch(self, item: int) -> tuple[Any, Any]:
        chosen, epoch = self._chosen(item)
        if self._pool is None:
            return self._load(chosen, epoch), self._targets(chosen)
        end = item + 1 + self._ahead
        for i in range(item, end if self.num_batches is None else min(end, self.num_batches)):
            if i not in self._pending:
                self._pending[i] = self._pool.submit(self._load, *self._chosen(i))
        return self._pending.pop(item).result(), self._targets(chosen)

    def close(self) -> None:
        """Drop all references to the data: TensorFlow 2.21 keeps generators (its #123530)."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._order.cache_clear()
        del self._load, self._targets, self._indices, self._pending

    def _chosen(self, item: int) -> tuple[NDArray[np.int64], int]:
        epoch, item = divmod(item, self.steps)
        epoch += self._first
        batch = self._order(epoch)[item * self._batch_size : (item + 1) * self._batch_size]
        return np.array_split(batch, self._shares)[self._share], epoch

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        if self._seed is None:
            return self._indices
        return np.random.default_rng((self._seed, epoch)).permutation(self._indices)


def mixed(batch: tuple[Any, Any], alpha: float, rng: np.random.Generator) -> tuple[Any, Any]:
    """Mix each image of a batch, and its labels, with another one, by a share of Beta(alpha)."""
    part = np.float32(rng.beta(alpha, alpha))
    partners = rng.permutation(len(batch[1]))

    def mix(values: NDArray[Any]) -> NDArray[Any]:
        return part * values + (1 - part) * values[partners]

    inputs, targets = batch
    return keras.tree.map_structure(mix, inputs), mix(targets)


def ahead(
    load: Callable[[NDArray[np.int64]], Any],
    batches: Sequence[NDArray[np.int64]],
    threads: int = WORKERS,
) -> Iterator[Any]:
    """Yield `load(batch)` for each batch, in order, loaded by threads a few batches ahead."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Any] = deque()
        for batch in batches:
            pending.append(pool.submit(load, batch))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
