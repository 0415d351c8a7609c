"""Processes that compute models on a backend of their own."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from finetune_kit._features.computing import Job
from finetune_kit._features.engine import CHANNELS_FIRST
from finetune_kit._model.graph import layers_within


class Ended(RuntimeError):
    """A worker has ended before it has answered: its backend, exit code and last lines."""

    @property
    def what(self) -> str:
        """The process and how it has ended."""
        return f"The process that computes the frozen part with {self.args[0]!r} {self._how}"

    @property
    def _how(self) -> str:
        code = self.args[1]
        if code < 0:
            return f"was killed by signal {-code} ({signal.strsignal(-code)})"
        return f"ended with code {code}"

    def __str__(self) -> str:
        backend, code, printed = self.args
        remedy = "Call again to compute the rest; if memory is short, with a smaller batch_size"
        if code > 0:
            remedy = f"Check that `KERAS_BACKEND={backend} python -c 'import keras'` works"
        return (
            f"The process that computes the frozen part with {backend!r} must run until all images "
            f"are computed. {remedy}. Received: a process that {self._how}.{printed}"
        )


@dataclass(frozen=True, eq=False)
class Worker:
    """A process that computes a model, and the folder of what is passed to it and printed."""

    backend: str
    process: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str]
    started_by: int = field(default_factory=os.getpid)

    def send(self, name: str, value: Any) -> None:
        """Send a task, without waiting for its answer."""
        stream = self.process.stdin
        try:
            pickle.dump((name, value), stream, protocol=5)  # type: ignore[arg-type]
            stream.flush()  # type: ignore[union-attr]
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        """Wait for the answer to the earliest task that has none yet."""
        try:
            state, value = pickle.load(self.process.stdout)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError, OSError) as error:
            raise self._ended() from error
        if state == "raised":
            raise value
        if state == "failed":
            raise ValueError(
                "`backend` must be able to load and compute the frozen part. "
                "Leave `backend` out, or, if a layer of your own is not found, define it in a "
                f"module that can be imported. Received: backend={self.backend!r}, which fails "
                f"with {value}"
            )
        return value

    def end(self) -> None:
        """Kill the process. What it has not renamed yet is not used."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what was not sent yet is not sent any more
                stream.close()  # type: ignore[union-attr]
        self.folder.cleanup()

    def _ended(self) -> Ended:
        code = self.process.wait()
        log = Path(self.folder.name, "log.txt").read_text("utf-8", errors="replace")
        last = [line.strip() for line in log.strip().splitlines()[-3:]]
        return Ended(self.backend, code, f" It printed: {' | '.join(last)}" if last else "")


# Workers that wait for another model. They end by themselves after a minute.
_waiting: list[Worker] = []
_lock = threading.Lock()


@atexit.register
def _end_waiting() -> None:
    while _waiting:
        _waiting.pop().end()


@contextmanager
def working(backend: str, model: keras.Model, batch_size: int) -> Iterator[Worker]:
    """Provide a process that loads a model. It is kept for another one, unless there is an error.

    A process that has imported a module of the user is not kept, because the module may change.
    """
    custom = _custom(model)
    worker = (None if custom else _taken(backend)) or _started(backend)
    try:
        path = Path(worker.folder.name, "prefix.keras")
        model.save(path)
        first = backend in CHANNELS_FIRST
        worker.send("load", Job(str(path), custom, first, batch_size, os.getcwd()))
        yield worker
    except BaseException:
        worker.end()
        raise
    if custom:
        worker.end()
    else:
        with suppress(Ended):  # it is found when it is taken
            worker.send("rest", None)
        _waiting.append(worker)


def _taken(backend: str) -> Worker | None:
    """Return a process that waits, if there is one, and forget those that have ended."""
    with _lock:
        for worker in [w for w in _waiting if w.process.poll() is not None]:
            _waiting.remove(worker)
            worker.end()
        fitting = [w for w in _waiting if (w.backend, w.started_by) == (backend, os.getpid())]
        if not fitting:
            return None
        _waiting.remove(fitting[0])
        return fitting[0]


def _started(backend: str) -> Worker:
    folder = tempfile.TemporaryDirectory(prefix="finetune-kit-")
    with Path(folder.name, "log.txt").open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "finetune_kit._features.worker", folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            env=_environment(backend),
            start_new_session=True,  # so that Ctrl-C reaches this process alone
        )
    return Worker(backend, process, folder)


def _environment(backend: str) -> dict[str, str]:
    """Return the environment of a process: its backend, and the modules of this process."""
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        # Threads that wait must not take the processor from those that decode images.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
    }


def _custom(model: keras.Model) -> tuple[tuple[str, str], ...]:
    """Return the classes of custom layers that another process can import."""
    found = {(type(layer).__module__, type(layer).__name__) for layer in layers_within(model)}
    return tuple(sorted(c for c in found if c[0].split(".")[0] not in ("keras", "__main__")))
