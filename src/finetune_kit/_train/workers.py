"""Run the trainings of a sweep on an executor, such as a pool of processes."""

from __future__ import annotations

import importlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from finetune_kit._features.engine import engine_key
from finetune_kit._files import make_folder
from finetune_kit._train.fine_tune import fine_tune
from finetune_kit._train.tuned import FineTuned

# Random seeds belong to a process, so trainings in threads of one take turns.
_alone = threading.Lock()


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
    executor: Any,
    calls: Sequence[tuple[str, tuple[Any, ...], Mapping[str, Any]]],
    folder: str | os.PathLike[str] | None,
) -> list[FineTuned]:
    """Run one `fine_tune` for each call, and return the results in their order.

    The processes write a line for each epoch to files, which are printed here. An error of one run
    is raised at once.

    Args:
        executor: runs the calls.
        calls: for each training its name in messages, and the arguments of `fine_tune`.
        folder: where the lines are written, one that other machines reach too; None: a temporary
            folder. A process that does not find its file prints the lines itself.
    """
    place = None if folder is None else make_folder("run_dir", folder)
    with tempfile.TemporaryDirectory(prefix="progress-", dir=place) as lines:
        files = [Path(lines) / f"{i}.txt" for i in range(len(calls))]
        for file in files:
            file.touch()
        here = engine_key(None)
        futures = [
            executor.submit(_run, *call, str(file), here)
            for call, file in zip(calls, files, strict=True)
        ]
        try:
            printed = dict.fromkeys(files, 0)
            while not _ended(futures):
                _print_lines(printed)
                time.sleep(0.1)
            _print_lines(printed)
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def _ended(futures: Sequence[Any]) -> bool:
    """Return whether all runs have ended; raises the error of one that failed."""
    done = [future for future in futures if future.done()]
    for future in done:
        future.result()
    return len(done) == len(futures)


def _print_lines(printed: dict[Path, int]) -> None:
    """Print what was added to files; `printed` holds the bytes of each that were printed before."""
    for file, start in printed.items():
        with file.open("rb") as opened:
            opened.seek(start)
            text = opened.read()
        printed[file] += len(text)
        if text:
            print(text.decode(), end="", flush=True)


def _run(
    name: str,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
    lines: str,
    expected: Mapping[str, Any],
) -> FineTuned:
    """Run one training in a process of the executor."""
    found = engine_key(None)
    if found != expected:
        raise ValueError(
            "`executor` must run the trainings with the Keras and the backend of this process, "
            f"{expected['keras']}; install that version there and set KERAS_BACKEND. "
            f"Received: a process with {found['keras']}"
        )
    shown = options.get("verbose", "auto") != 0
    callbacks = options.get("callbacks", ())
    several = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else [*callbacks]
    own = {"callbacks": [*several, _Progress(name, lines)] if shown else several, "verbose": 0}
    with _alone, _own_randomness():
        return fine_tune(*args, **{**options, **own})


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Give Keras random numbers of its own, while a training runs.

    Keras draws the seeds of initial weights from Python's `random`, from which other threads of a
    worker draw too, such as those of Dask: the weights would depend on when they do.
    """
    own = _OfThisThread()
    places = [
        (importlib.import_module("keras.src.utils.rng_utils"), "random"),
        (importlib.import_module("keras.src.random.seed_generator"), "python_random"),
    ]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, own)
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


class _OfThisThread:
    """Python's `random` with a state of its own for one thread, and the common one for others."""

    def __init__(self) -> None:
        self._own, self._thread = random.Random(), threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own if threading.get_ident() == self._thread else random, name)


class _Progress(keras.callbacks.Callback):
    """Writes a line for each epoch of a run, whose bars would mix with those of the others."""

    def __init__(self, name: str, file: str) -> None:
        super().__init__()
        self._name, self._file = name, file

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch and its metrics in one piece."""
        values = ", ".join(f"{key} {value:.4f}" for key, value in (logs or {}).items())
        line = f"{self._name}, epoch {epoch + 1}: {values}\n".encode()
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND)
        except OSError:  # a machine that does not reach the folder
            os.write(1, line)
        else:
            os.write(descriptor, line)
            os.close(descriptor)
