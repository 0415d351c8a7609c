"""Measure how long `fit` on TensorFlow waits for its data iterator after the last epoch.

    python benchmarks/iterators.py [--epochs 20]

A head (1024 and 512 units) trains ten times on 512 features in batches of 64, which an iterator
without an end supplies. Each line shows the seconds of the training, and the seconds from its end
until `fit` returned.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import keras
import numpy as np

STEPS, BATCH = 8, 64


class Features(keras.utils.PyDataset):
    """Batches of random features, without an end."""

    num_batches = None

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self._x = rng.random((STEPS * BATCH, 1280), np.float32)
        self._y = rng.integers(0, 3, STEPS * BATCH)

    def __getitem__(self, item: int) -> tuple[Any, Any]:
        rows = slice(item % STEPS * BATCH, (item % STEPS + 1) * BATCH)
        return self._x[rows], self._y[rows]


class End(keras.callbacks.Callback):
    """Record when the training ended."""

    def on_train_end(self, logs: Any = None) -> None:
        self.at = time.perf_counter()


def main() -> None:
    """Train ten times and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    epochs = parser.parse_args().epochs
    dense = keras.layers.Dense
    head = keras.Sequential(
        [keras.Input((1280,)), dense(1024, "relu"), dense(512, "relu"), dense(3, "softmax")]
    )
    head.compile("adam", "sparse_categorical_crossentropy")
    for _ in range(10):
        end, begun = End(), time.perf_counter()
        head.fit(Features(), steps_per_epoch=STEPS, epochs=epochs, verbose=0, callbacks=[end])
        waited = time.perf_counter() - end.at
        print(f"trained {end.at - begun:6.2f} s, then waited {waited:5.2f} s", flush=True)


if __name__ == "__main__":
    main()
