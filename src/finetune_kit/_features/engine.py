"""Run a frozen model on batches, and say which Keras backend does."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import keras
import numpy as np

from finetune_kit._model.copying import copy
from finetune_kit._model.twin import channels_first
from finetune_kit._processes import alone, share

# Each is also the name of its package, and of the extra that installs it.
BACKENDS = ("openvino", "tensorflow", "jax", "torch")
# These compute convolutions faster with the channels first.
CHANNELS_FIRST = ("openvino", "torch")


def check_backend(backend: str | None) -> None:
    """Check that a backend is installed.

    Raises:
        ImportError: if it is not.
    """
    if backend is not None and importlib.util.find_spec(backend) is None:
        raise ImportError(
            "`backend` must be a Keras backend that is installed; "
            f"pip install 'finetune-kit[{backend}]' installs this one. "
            f"Received: backend={backend!r}"
        )


def is_other(backend: str | None) -> bool:
    """Return whether a backend is another one than that of the training."""
    return backend not in (None, keras.backend.backend())


def engine_key(backend: str | None) -> dict[str, Any]:
    """Return what the outputs of a model depend on besides the model and its inputs."""
    if backend is None or not is_other(backend):
        name = keras.backend.backend()
        return {"keras": [keras.__version__, name, _release(sys.modules[name].__version__)]}
    layout = "channels_first" if backend in CHANNELS_FIRST else "channels_last"
    return {
        "keras": [keras.__version__, backend, *_releases(backend)],
        "engine": {"precision": "float32", "layout": layout},
    }


@cache
def _releases(package: str) -> list[str]:
    """Return the versions of what provides a package that is not imported here."""
    found = importlib.metadata.packages_distributions().get(package, [])
    return sorted({_release(importlib.metadata.version(name)) for name in found})


def _release(version: str) -> str:
    """Return a version without its build, such as `+cpu`."""
    return version.partition("+")[0]


@contextmanager
def in_this_process(model: keras.Model | None) -> Iterator[Any]:
    """Provide a model that this process computes alone: a copy, where several train together."""
    several = share()[1] > 1
    with alone():
        yield copy(model) if several and model is not None else model


def _padded(batch: Any, batch_size: int) -> Any:
    """Return a batch that repeats its last row where it is too short."""
    missing = batch_size - len(keras.tree.flatten(batch)[0])
    if not missing:
        return batch
    return keras.tree.map_structure(
        lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]), batch
    )


def outputs_of(model: keras.Model, batch: Any, batch_size: int) -> Any:
    """Return the outputs for a batch, in inference mode, as NumPy arrays.

    A batch that is too short is padded, so that nothing is compiled twice; the outputs of the
    padding come last.
    """
    batch = _padded(batch, batch_size)
    if keras.backend.backend() != "torch":
        return model.predict_on_batch(batch)
    # From Keras 3.16 on, `predict_on_batch` wraps the model in DistributedDataParallel where
    # torch.distributed is set up, which rejects a model without trainable weights. PyTorch runs
    # eagerly, so a plain call does the same without the trainer.
    return _called(model, batch)


def outputs_once(model: keras.Model, batch: Any) -> Any:
    """Return the outputs as `outputs_of` does, without compiling where that takes longer."""
    if keras.backend.backend() == "jax":
        return model.predict_on_batch(batch)
    return _called(model, batch)


def faster(model: keras.Model, batch: Any, outputs: Any) -> keras.Model:
    """Return a model that computes the same faster, if there is one: on PyTorch, channels-first.

    Its outputs for the batch must be the given ones, bit for bit.
    """
    if keras.backend.backend() != "torch":
        return model
    twin, _ = channels_first(model)
    pairs = zip(keras.tree.flatten(outputs), keras.tree.flatten(_called(twin, batch)), strict=True)
    return twin if all(np.array_equal(*pair) for pair in pairs) else model


def _called(model: keras.Model, batch: Any) -> Any:
    outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, batch), training=False)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)
