"""Program that computes a saved model on a backend of its own.

`remote.py` starts it, and sends a `Job`, then batches. The program answers each with `("done",
value)` or `("failed", reason)`: to the job, the names of the layers that run channels-last; to a
batch, the list of its outputs. It ends when its input does, which also happens when the process
that started it dies.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import keras

from finetune_kit._features.engine import outputs_of
from finetune_kit._model.twin import channels_first


@dataclass(frozen=True)
class Job:
    """What a worker computes.

    Attributes:
        model: path of the saved model.
        custom: classes of the model's layers that are not Keras' own, as module and name.
        channels_first: whether its convolutions take the channels first.
    """

    model: str
    custom: tuple[tuple[str, str], ...]
    channels_first: bool


def main() -> None:
    """Answer what arrives on the standard input, until it ends."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    tasks: queue.Queue[Any] = queue.Queue()
    # A thread, so that the next batch arrives while this one is computed.
    threading.Thread(target=_receive, args=(sys.stdin.buffer, tasks), daemon=True).start()
    models: list[keras.Model] = []

    def start(job: Job) -> tuple[str, ...]:
        model, kept = _loaded(job)
        models.append(model)
        return kept

    def compute(batch: Any) -> list[Any]:
        count = len(keras.tree.flatten(batch)[0])
        return keras.tree.flatten(outputs_of(models[0], batch, count))

    _answer(results, start, tasks.get())
    while True:
        _answer(results, compute, tasks.get())


def _receive(stream: IO[bytes], tasks: queue.Queue[Any]) -> None:
    while True:
        try:
            tasks.put(pickle.load(stream))
        except EOFError:
            signal.raise_signal(signal.SIGTERM)  # also within a batch, whose outputs nobody reads


def _answer(results: IO[bytes], function: Callable[[Any], Any], task: Any) -> None:
    try:
        answer = "done", function(task)
    except Exception as error:  # whatever a backend raises is reported by the other process
        # What Keras cannot load is at the end of its message, behind the config of the model.
        reason = " ".join(str(error).rpartition("Exception encountered: ")[2].split())
        answer = "failed", f"{type(error).__name__}: {reason[:300]}"
    pickle.dump(answer, results, protocol=5)
    results.flush()


def _loaded(job: Job) -> tuple[keras.Model, tuple[str, ...]]:
    modules = [(importlib.import_module(module), name) for module, name in job.custom]
    custom = {name: getattr(module, name) for module, name in modules if hasattr(module, name)}
    if keras.backend.backend() == "openvino":
        _compute_in_float32()
    # The file was written by the process that started this one, so its code is trusted.
    model = keras.saving.load_model(job.model, custom, compile=False, safe_mode=False)
    return channels_first(model) if job.channels_first else (model, ())


def _compute_in_float32() -> None:
    """Keep OpenVINO from rounding to bfloat16, as it does where the processor has it.

    Keras passes no options to OpenVINO's compiler (3.15), so they are added here.
    """
    openvino: Any = sys.modules["openvino"]  # Keras has imported it
    compile_model = openvino.compile_model

    def exact(model: Any, device: str) -> Any:
        return compile_model(model, device, {"INFERENCE_PRECISION_HINT": "f32"})

    openvino.compile_model = exact


if __name__ == "__main__":
    main()
