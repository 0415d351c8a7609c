"""Program that computes a saved model on a backend of its own, and writes its outputs.

`remote.py` starts it and sends tasks as pairs of a name and a value:

- `"load"`, a `Job`: load a model. The answer holds the names of the layers that run channels-last.
- `"compute"`, a batch: the answer holds the list of its outputs.
- `"fill"`, `(writer, inputs, batches)`: load batches of images, compute them and write chunks. One
  answer for each batch is what `Writer.write` yields. Where `inputs` is None, a task `"batch"`
  follows for each batch.
- `"rest"`: there is no answer, and perhaps no further task.

An answer is a pair too: `("done", value)`; `("failed", reason)` if the backend fails; `("raised",
error)` if images cannot be loaded or features not be written. The program ends when its input does,
because the process that started it has died, and deletes its folder, which is its argument. It also
ends when it has rested for a minute.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import shutil
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib.machinery import ModuleSpec
from typing import IO, Any

IDLE = 60  # seconds
# On OpenVINO, Keras imports these where they are installed, which takes seconds, and its layers do
# not need them.
UNUSED = {"jax", "matplotlib", "pandas", "sklearn", "tensorflow", "torch"}


class _Hidden:
    """Finds some packages, and fails to import them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return a spec for a hidden package."""
        return ModuleSpec(name, self) if name in UNUSED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Raise the error for a package that is not installed."""
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: there is no module."""


class _BackendError(Exception):
    """A backend cannot load or compute a model."""


def main() -> None:
    """Answer what arrives on the standard input, until it ends."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    hidden = _import_keras()
    tasks: queue.Queue[Any] = queue.Queue()
    # A thread, so that the next batch arrives while this one is computed.
    threading.Thread(target=_receive, args=(sys.stdin.buffer, tasks), daemon=True).start()
    from finetune_kit._data.batches import ahead
    from finetune_kit._features import computing
    from finetune_kit._features.writing import Seconds, timed

    compute: Any = None

    def load(job: Any) -> Iterator[Any]:
        nonlocal compute
        os.chdir(job.folder)
        if job.custom:  # its module may import anything
            with suppress(ValueError):
                sys.meta_path.remove(hidden)
        compute, kept = _or_failed(computing.prepared, job)
        yield kept

    def fill(task: Any) -> Iterator[Any]:
        writer, inputs, batches = task
        threads = 1 if inputs is None else inputs.threads
        loaded: Iterable[Any] = ((tasks.get()[1], 0.0) for _ in batches)
        if inputs is not None:
            positions = [batch.positions for batch in batches]
            loaded = ahead(partial(timed, inputs.load), positions, threads)

        def outputs() -> Iterator[Any]:
            for batch, loading in loaded:
                found, seconds = timed(_or_failed, compute, batch)
                yield found, Seconds(loading / threads, seconds)

        return writer.write(batches, outputs())

    def answers(name: str, value: Any) -> Iterator[Any]:
        if name == "compute":
            return iter([_or_failed(compute, value)])
        return load(value) if name == "load" else fill(value)

    for name, value in _until_rested(tasks):
        _answer(results, partial(answers, name, value))


def _import_keras() -> _Hidden:
    hidden = _Hidden()
    if os.environ.get("KERAS_BACKEND") == "openvino":
        sys.meta_path.insert(0, hidden)
        # Half of the rest is this module, which SciPy imports when an audio layer uses it.
        sys.modules["scipy.signal"] = types.ModuleType("scipy.signal")
        importlib.import_module("keras")
        del sys.modules["scipy.signal"]
    return hidden


def _receive(stream: IO[bytes], tasks: queue.Queue[Any]) -> None:
    try:
        while True:
            tasks.put(pickle.load(stream))
    except EOFError:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
    except Exception:  # such as a class that cannot be imported here
        traceback.print_exc()
    finally:
        os._exit(1)  # also within a batch, whose outputs nobody reads


def _until_rested(tasks: queue.Queue[Any]) -> Iterator[tuple[str, Any]]:
    """Yield tasks. End the program if a rest is too long."""
    timeout = None
    while True:
        try:
            name, value = tasks.get(timeout=timeout)
        except queue.Empty:
            os._exit(0)  # Python aborts if it ends by itself while a thread waits for input
        timeout = IDLE if name == "rest" else None
        if name != "rest":
            yield name, value


def _or_failed(function: Callable[[Any], Any], value: Any) -> Any:
    try:
        return function(value)
    except Exception as error:  # whatever a backend raises
        # What Keras cannot load is at the end of its message, behind the config of the model.
        reason = " ".join(str(error).rpartition("Exception encountered: ")[2].split())
        reason = reason.partition(" Full object config: ")[0]
        raise _BackendError(f"{type(error).__name__}: {reason[:300]}") from error


def _answer(results: IO[bytes], answers: Callable[[], Iterator[Any]]) -> None:
    def send(*answer: Any) -> None:
        pickle.dump(answer, results, protocol=5)
        results.flush()

    try:
        for value in answers():
            send("done", value)
    except _BackendError as error:
        send("failed", str(error))
    except Exception as error:
        send("raised", error)


if __name__ == "__main__":
    main()
