"""Run a frozen model on another Keras backend, in a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._features.engine import CHANNELS_FIRST, outputs_of, padded
from finetune_kit._features.worker import Job
from finetune_kit._model.graph import layers_within
from finetune_kit._model.surgery import with_all_outputs
from finetune_kit._text import listed, plural

# Accepted difference to the training backend, as a share of the largest value.
TOLERANCE = 1e-3

# The processes that are kept, by backend and model; None: each ends with the call it was made for.
_kept: dict[tuple[str, Any], tuple[_Worker, ExitStack]] | None = None


@dataclass(frozen=True, eq=False)
class _Worker:
    """A process that computes a model, and what it has printed."""

    backend: str
    model: str
    process: subprocess.Popen[bytes]
    log: Path

    def send(self, task: Any) -> None:
        """Send a task, without waiting for its answer."""
        stream = self.process.stdin
        try:
            pickle.dump(task, stream, protocol=5)  # type: ignore[arg-type]
            stream.flush()  # type: ignore[union-attr]
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        """Wait for the answer to the earliest task that has none yet."""
        try:
            state, value = pickle.load(self.process.stdout)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError, OSError) as error:
            raise self._ended() from error
        if state == "failed":
            raise ValueError(
                f"`backend` must be able to load and compute the frozen part, {self.model!r}. "
                "Leave `backend` out, or, if a layer of your own is not found, define it in a "
                f"module that can be imported. Received: backend={self.backend!r}, which fails "
                f"with {value}"
            )
        return value

    def _ended(self) -> RuntimeError:
        code = self.process.wait()
        last = self.log.read_text("utf-8", errors="replace").strip().splitlines()[-3:]
        printed = f" It printed: {' | '.join(last)}" if last else ""
        return RuntimeError(
            f"The process that computes the frozen part with {self.backend!r} must run until all "
            "images are computed. Call again to compute the rest; if memory is short, with a "
            f"smaller batch_size. Received: a process that ended with code {code}.{printed}"
        )


def outputs_elsewhere(
    backend: str, model: keras.Model, batches: Iterable[Any], batch_size: int, verbose: str | int
) -> Iterator[list[NDArray[Any]]]:
    """Yield the outputs for each batch, computed by another backend.

    The next batch is loaded and sent while one is computed. The outputs for the first batch are
    compared with those of the training backend.

    Args:
        backend: name of the Keras backend.
        model: the model, which does not change.
        batches: inputs of the model.
        batch_size: rows of a batch; a shorter one is padded, and so are its outputs.
        verbose: 0: print nothing.

    Raises:
        ValueError: if the backend cannot compute the model, or computes something else.
        RuntimeError: if its process has ended.
    """
    with _provided(backend, model) as (worker, is_new):
        # Batches that are sent and not received; -1: none was ever sent.
        waiting = -1 if is_new else 0
        for batch in batches:
            worker.send(padded(batch, batch_size))
            if waiting < 0:
                own = outputs_of(model, batch, batch_size)  # while the process starts
                _say_kept(backend, worker.receive(), verbose)
                found = worker.receive()
                if _difference(keras.tree.flatten(own), found) > TOLERANCE:
                    raise _differs(backend, model, batch, own, found)
                waiting = 0
                yield found
                continue
            waiting += 1
            if waiting > 1:
                yield worker.receive()
                waiting -= 1
        for _ in range(waiting):
            yield worker.receive()


@contextmanager
def kept_open() -> Iterator[None]:
    """Keep the processes that compute models, and use them again, while this context lasts."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        for _, stack in _kept.values():
            stack.close()
        _kept = None


@contextmanager
def _provided(backend: str, model: keras.Model) -> Iterator[tuple[_Worker, bool]]:
    """Provide a process that computes a model, and whether it is new."""
    if _kept is None:
        with _started(backend, model) as worker:
            yield worker, True
        return
    key, is_new = (backend, model), (backend, model) not in _kept
    if is_new:
        stack = ExitStack()
        _kept[key] = stack.enter_context(_started(backend, model)), stack
    worker, stack = _kept[key]
    try:
        yield worker, is_new
    except BaseException:  # batches may be on their way
        _kept.pop(key)
        stack.close()
        raise


@contextmanager
def _started(backend: str, model: keras.Model) -> Iterator[_Worker]:
    """Start a process that computes a model; it is killed at the end, because it writes nothing."""
    with tempfile.TemporaryDirectory(prefix="finetune-kit-") as folder:
        path, log = Path(folder) / "prefix.keras", Path(folder) / "log.txt"
        model.save(path)
        with log.open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune_kit._features.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                env=_environment(backend),
                start_new_session=True,  # so that Ctrl-C reaches this process alone
            )
        worker = _Worker(backend, model.name.removesuffix("_prefix"), process, log)
        try:
            worker.send(Job(str(path), _custom(model), backend in CHANNELS_FIRST))
            yield worker
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not sent yet is not sent any more
                    stream.close()  # type: ignore[union-attr]


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


def _say_kept(backend: str, kept: tuple[str, ...], verbose: str | int) -> None:
    if kept and verbose:
        layers = f"{plural(len(kept), 'layer')} with channels last, between two transpositions"
        print(f"{backend} computes {layers}: {listed(kept)}", flush=True)


def _difference(expected: list[Any], found: list[Any]) -> float:
    """Return the largest difference, as a share of the largest value of its tensor."""
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if np.array_equal(one, other, equal_nan=True):
            continue
        scale = np.abs(one).max()
        share = np.abs(one - other).max() / scale if scale else np.inf
        largest = max(largest, share if np.isfinite(share) else np.inf)
    return largest


def _differs(backend: str, model: keras.Model, batch: Any, own: Any, found: Any) -> ValueError:
    """Return the error for other outputs, which says up to which layer they are equal."""
    share = _difference(keras.tree.flatten(own), found)
    names, probe = with_all_outputs(model)
    image = keras.tree.map_structure(lambda x: x[:1], batch)
    with _started(backend, probe) as worker:
        worker.send(image)
        worker.receive()
        theirs = worker.receive()
    ours = keras.tree.flatten(outputs_of(probe, image, 1))
    equal = [_difference([a], [b]) <= TOLERANCE for a, b in zip(ours, theirs, strict=True)]
    where = "; on one image, all layers are equal"
    if not all(equal):
        first = equal.index(False)
        before = f"the last equal layer is {names[first - 1]!r}, " if first else ""
        where = f": {before}the first other one {names[first]!r}"
    return ValueError(
        "`backend` must compute what the training backend computes, to "
        f"{TOLERANCE:g} of the largest value; leave it out for this backbone. Received: "
        f"backend={backend!r}, whose outputs differ by {share:.2g} from those of "
        f"{keras.backend.backend()!r}{where}"
    )
