"""Run the trainings of a sweep on an executor, such as a pool of processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import keras

from finetune_kit._train.fine_tune import fine_tune
from finetune_kit._train.tuned import FineTuned


def check_executor(executor: Any) -> None:
    """Check that an executor runs its tasks in processes of their own.

    Raises:
        ValueError: if it has threads, or processes that are forked.
    """
    if not isinstance(executor, Executor) and not hasattr(executor, "submit"):
        raise ValueError(
            "`executor` must have the method `submit` of concurrent.futures.Executor, such as "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn')). "
            f"Received: a {type(executor).__name__}"
        )
    context = getattr(executor, "_mp_context", None)
    forks = context is not None and context.get_start_method() == "fork"
    if isinstance(executor, ThreadPoolExecutor) or forks:
        reason = (
            "processes that are forked, in which TensorFlow, JAX and PyTorch may hang"
            if forks
            else "threads, which share one random seed"
        )
        raise ValueError(
            "`executor` must start processes of its own: "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn')). "
            f"Received: a {type(executor).__name__} with {reason}"
        )


def run_all(
    executor: Any, calls: Sequence[tuple[str, tuple[Any, ...], Mapping[str, Any]]]
) -> list[FineTuned]:
    """Run one `fine_tune` for each call, and return the results in their order.

    Args:
        executor: runs the calls.
        calls: for each training its name in messages, and the arguments of `fine_tune`.
    """
    futures = [executor.submit(_run, name, args, options) for name, args, options in calls]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _run(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> FineTuned:
    """Run one training in a process of the executor."""
    shown = options.get("verbose", "auto") != 0
    callbacks = options.get("callbacks", ())
    several = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else [*callbacks]
    own = {"callbacks": [*several, _Progress(name)] if shown else several, "verbose": 0}
    return fine_tune(*args, **{**options, **own})


class _Progress(keras.callbacks.Callback):
    """Prints a line for each epoch of a run, whose bars would mix with those of the others."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Print the epoch and its metrics in one piece."""
        values = ", ".join(f"{key} {value:.4f}" for key, value in (logs or {}).items())
        os.write(1, f"{self._name}, epoch {epoch + 1}: {values}\n".encode())
