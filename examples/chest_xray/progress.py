"""What the example shows while it works, and how it ends: progress bars with the time left."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras


def bar_kind() -> int:
    """Return `verbose` of a bar: 1, or 2 (its end alone) where the output is not a terminal."""
    return 1 if sys.stdout.isatty() else 2


def bar(target: int, unit: str) -> keras.utils.Progbar:
    """Return a bar of `target` steps."""
    return keras.utils.Progbar(target, verbose=bar_kind(), unit_name=unit)


def ended(work: Callable[[], object]) -> int:
    """Do the work and return the exit code; bad input and Ctrl-C are printed without traceback."""
    try:
        work()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Let a logger report errors only."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


class TrainingBars(keras.callbacks.Callback):
    """One bar of epochs for each of several trainings that follow each other.

    Args:
        names: the trainings in their order.
        epochs: epochs of each.
    """

    def __init__(self, names: Sequence[str], epochs: int) -> None:
        super().__init__()
        self._names, self._epochs = iter(names), epochs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        print(f"   {next(self._names)}", flush=True)
        self._bar = bar(self._epochs, "epoch")
        self._bar.stateful_metrics = {"val_accuracy"}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._bar.update(epoch + 1, [("val_accuracy", (logs or {}).get("val_accuracy", 0.0))])
