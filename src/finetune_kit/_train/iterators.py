"""Release the data iterators of `fit` without waiting for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from finetune_kit._data.batches import Batches


@contextmanager
def released(model: keras.Model, *batches: Batches) -> Iterator[None]:
    """Release the batches that `model.fit` read within this context, when the context ends.

    On TensorFlow, dropping a data iterator may take up to as long as it has lived
    (`benchmarks/iterators.py`). The last reference to it is therefore kept here and dropped in a
    thread that nobody waits for. Windows cannot delete files that are still mapped, so it waits.
    """
    if keras.backend.backend() != "tensorflow":
        try:
            yield
        finally:
            _release([], batches)
        return
    held: list[Any] = []
    model.make_train_function()
    step = model.train_function

    def holding(iterator: Any) -> Any:
        held[:] = [iterator]
        return step(iterator)

    model.train_function = holding
    try:
        yield
    finally:
        model.train_function = step
        thread = threading.Thread(target=_release, args=(held, batches), name="release_iterators")
        thread.start()
        if os.name == "nt":
            thread.join()


def _release(held: list[Any], batches: tuple[Batches, ...]) -> None:
    held.clear()
    for part in batches:
        part.close()
