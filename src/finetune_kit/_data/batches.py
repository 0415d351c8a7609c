"""Indices and a way to load them come in, the batches of each epoch go out.

The order of epoch e is drawn from (seed, e) alone, so it is the same on every backend, whether
pixels or features are loaded, and after a pause. This room does not know what it loads.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
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
    """What `fit` and `predict` draw batches from, each `(load(indices, epoch), targets(indices))`.

    Without a `seed` it is one pass over `indices`, in their order. With one it has no end: item i
    is batch `i % steps` of epoch `i // steps`, whose order is drawn from (seed, epoch). `fit`, told
    `steps_per_epoch=steps`, then draws all epochs from one iterator; a new one for each costs
    TensorFlow some 50 ms, more than the steps of a head. What an item is depends on its number
    alone, so it does no harm that Keras looks at the first ones beforehand.

    With Keras' own threads (`workers` above 1) that look shifts the batches on PyTorch (3.15), so
    the threads here are ours.
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
        self._batch_size, self._seed, self._first = batch_size, seed, epoch
        self.steps = math.ceil(len(indices) / batch_size)
        # Pillow decodes outside Python's lock, so threads are enough.
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._ahead = threads
        self._pending: dict[int, Future[Any]] = {}
        # Batches that are loaded ahead may be of the next epoch.
        self._order = lru_cache(maxsize=2)(self._drawn)

    @property
    def num_batches(self) -> int | None:
        """How many items there are; None: no end."""
        return self.steps if self._seed is None else None

    def __getitem__(self, item: int) -> tuple[Any, Any]:
        chosen, epoch = self._chosen(item)
        if self._pool is None:
            return self._load(chosen, epoch), self._targets(chosen)
        end = item + 1 + self._ahead
        for i in range(item, end if self.num_batches is None else min(end, self.num_batches)):
            if i not in self._pending:
                self._pending[i] = self._pool.submit(self._load, *self._chosen(i))
        return self._pending.pop(item).result(), self._targets(chosen)

    def close(self) -> None:
        """Let go of what is loaded from: TensorFlow 2.21 keeps generators (its #123530)."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._order.cache_clear()
        del self._load, self._targets, self._indices, self._pending

    def _chosen(self, item: int) -> tuple[NDArray[np.int64], int]:
        epoch, item = divmod(item, self.steps)
        epoch += self._first
        return self._order(epoch)[item * self._batch_size : (item + 1) * self._batch_size], epoch

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        if self._seed is None:
            return self._indices
        return np.random.default_rng((self._seed, epoch)).permutation(self._indices)


@contextmanager
def let_go(model: keras.Model, *drawn: Batches) -> Iterator[None]:
    """Let go of the batches that a `fit` of the model in here has drawn, as it ends.

    On TensorFlow, letting go of a data iterator may take up to as long as it has lived
    (`benchmarks/iterators.py`), so the last hold of it is kept here, and given up by a thread that
    nobody waits for. Windows does not delete the files that are mapped until then, so it waits.
    """
    aside = keras.backend.backend() == "tensorflow"
    held: list[Any] = []

    def holding(iterator: Any) -> Any:
        held[:] = [iterator]
        return step(iterator)

    def end() -> None:
        held.clear()
        for batches in drawn:
            batches.close()

    if aside:
        model.make_train_function()
        step, model.train_function = model.train_function, holding
    try:
        yield
    finally:
        if aside:
            model.train_function = step
        ending = threading.Thread(target=end, name="let_go")
        ending.start()
        if not aside or os.name == "nt":
            ending.join()


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
