"""What a worker process computes: a saved model, on the backend of the process."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from finetune_kit._features.engine import outputs_of
from finetune_kit._model.graph import layers_within
from finetune_kit._model.twin import channels_first

# From a batch to the outputs for it.
Compute = Callable[[Any], list[Any]]

# OpenVINO rounds to bfloat16 where the processor has it, unless it is asked for float32.
_OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}


@dataclass(frozen=True)
class Job:
    """What a worker computes.

    Attributes:
        model: path of the saved model.
        custom: classes of the model's layers that are not Keras' own, as module and name.
        channels_first: whether its convolutions take the channels first.
        batch_size: images that are computed at once, except on OpenVINO.
        folder: that relative paths start from.
    """

    model: str
    custom: tuple[tuple[str, str], ...]
    channels_first: bool
    batch_size: int
    folder: str


def prepared(job: Job) -> tuple[Compute, tuple[str, ...]]:
    """Load a model. Return what computes it, and its layers that run channels-last."""
    modules = [(importlib.import_module(module), name) for module, name in job.custom]
    custom = {name: getattr(module, name) for module, name in modules if hasattr(module, name)}
    # The file was written by the process that started this one, so its code is trusted.
    model = keras.saving.load_model(job.model, custom, compile=False, safe_mode=False)
    model, kept = channels_first(model) if job.channels_first else (model, ())
    # Keras compiles no model with a layer that does not support it.
    compiles = all(layer.supports_jit for layer in layers_within(model))
    if keras.backend.backend() == "openvino" and compiles:
        return _OnOpenVINO(model), kept
    return partial(_in_batches, model, job.batch_size), kept


def _in_batches(model: keras.Model, batch_size: int, batch: Any) -> list[Any]:
    count = len(keras.tree.flatten(batch)[0])
    return [x[:count] for x in keras.tree.flatten(outputs_of(model, batch, batch_size))]


class _OnOpenVINO:
    """Computes a model with OpenVINO, one image at a time on each core.

    The tensors of one image stay in the cache of a core, so this takes less processor time than
    batches. The model is compiled with the first batch.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._compiled: Any = None
        self._requests = threading.local()

    def __call__(self, batch: Any) -> list[Any]:
        tensors = keras.tree.flatten(batch)
        if self._compiled is None:
            self._compiled = _compiled(self._model, keras.tree.map_structure(_first, batch))
            threads = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._pool = ThreadPoolExecutor(threads)
        images = [[x[i : i + 1] for x in tensors] for i in range(len(tensors[0]))]
        outputs = zip(*self._pool.map(self._image, images), strict=True)
        return [np.concatenate(each) for each in outputs]

    def _image(self, tensors: list[Any]) -> list[Any]:
        if not hasattr(self._requests, "own"):  # one for each thread
            self._requests.own = self._compiled.create_infer_request()
        found = self._requests.own.infer(tensors).to_tuple()
        return [x.copy() for x in found[: len(self._model.outputs)]]


def _first(x: Any) -> Any:
    return x[:1]


def _compiled(model: keras.Model, image: Any) -> Any:
    """Return a model that OpenVINO has compiled for one image.

    Keras passes no options to OpenVINO's compiler and keeps the graph to itself (3.15), so both
    happen where it calls the compiler.
    """
    openvino: Any = sys.modules["openvino"]  # Keras has imported it
    compile_model = openvino.compile_model
    found = []

    def compile_for_one(graph: Any, device: str) -> Any:
        graph.reshape({x: [1, *list(x.partial_shape)[1:]] for x in graph.inputs})
        found.append(compile_model(graph, device, _OPTIONS))
        return found[0]

    openvino.compile_model = compile_for_one
    try:
        model.predict_on_batch(image)
    finally:
        openvino.compile_model = compile_model
    return found[0]
