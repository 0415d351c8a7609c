"""Workers of a Ray cluster that fill a feature cache, and what they need."""

from __future__ import annotations

import logging
import math
import os
import pickle
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import finetune_kit
from finetune_kit._data.decoding import DECODING
from finetune_kit._features.engine import engine_key
from finetune_kit._model.graph import layers_within
from finetune_kit._text import plural
from finetune_kit._train.filling import Filling
from finetune_kit._train.setup import Setup

# A part is what a worker computes at a time, and a step of the progress bar. It has at most 2,048
# images, or more if there are over a million, because opening a cache takes time for each part.
_PART_IMAGES, _MOST_PARTS = 2048, 512
_SHARES, _LEAST_BATCHES = 3, 2
_PATIENCE = 60  # seconds without news from any worker, before the nodes are looked at
_MOST_LOSSES = 10  # workers that one part may lose: its images are the reason then, not chance

_SHARED_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "NPROC")  # the last one is XLA's


def import_ray() -> Any:
    """Return the package Ray, which is imported when it is first used."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "finetune_kit.ray needs Ray; pip install 'finetune-kit[ray]' installs it. "
            f"Received: {error}"
        ) from error
    return ray


@contextmanager
def connected(ray: Any, address: str | None) -> Iterator[bool]:
    """Connect to a cluster, unless Ray is connected to one, and disconnect at the end.

    Provides whether other nodes may join it.
    """
    if ray.is_initialized():
        yield True
        return
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield address not in (None, "local") or len(ray.nodes()) > 1
    finally:
        ray.shutdown()


def environment(cpus: int | None, gpus: float = 0) -> dict[str, str]:
    """Return the environment of a worker: its backend, and how many threads it computes with.

    As many as it has CPUs; None: as in this process, because the sums that a training computes
    depend on it in their last digit. With a part of a GPU, it leaves memory to the others:
    TensorFlow and JAX take most of it otherwise.
    """
    threads = {} if cpus is None else dict.fromkeys(THREADS, str(cpus))
    return {
        "KERAS_BACKEND": keras.backend.backend(),
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        **{name: os.environ[name] for name in THREADS if name in os.environ},
        **(_SHARED_GPU if gpus % 1 else {}),
        **threads,
    }


def room_for(ray: Any, needs: Mapping[str, float], *, grows: bool = True) -> int:
    """Return how many workers the cluster has room for, at least one.

    Raises:
        ValueError: if it has room for none, and no node can join.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(node.get(name, 0) / need) for name, need in needs.items() if need) for node in nodes
    )
    if not room:
        wanted = ", ".join(f"{need:g} {name}" for name, need in needs.items() if need)
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in needs}
        there = ", ".join(f"{count:g} {name}" for name, count in most.items())
        if not grows:
            raise ValueError(
                "`cpus_per_worker` and `gpus_per_worker` must fit on this machine; lower them, or "
                f"pass the address of a cluster. Received: workers that need {wanted}, where there "
                f"are {there}"
            )
        warnings.warn(
            f"No node of the cluster has room for a worker, which needs {wanted}: the largest have "
            f"{there}. Ray waits until one joins",
            stacklevel=3,
        )
    return max(1, room)


def parts_of(images: int, workers: int, batch_size: int) -> list[range]:
    """Return parts of the images, as indices: whole batches, first large and then smaller parts.

    Small ones at the end let all workers end at the same time, wherever they began (guided
    self-scheduling: Polychronopoulos and Kuck, 1987).
    """
    parts: list[range] = []
    most, start = max(_PART_IMAGES, images // _MOST_PARTS), 0
    while start < images:
        share = (images - start) / (_SHARES * workers)
        size = max(_LEAST_BATCHES, math.ceil(min(share, most) / batch_size)) * batch_size
        parts.append(range(start, min(start + size, images)))
        start += size
    return parts


def _conditions(backend: str | None) -> dict[str, Any]:
    """Return the versions that must be the same in all processes, or features would differ."""
    return {
        "finetune-kit": finetune_kit.__version__,
        "decoding": DECODING,
        "backend": backend,
        **engine_key(backend),
    }


@dataclass(frozen=True, eq=False)
class Team:
    """Workers that fill a cache.

    Attributes:
        ray: the package.
        needs: CPUs and GPUs of a worker.
        actor: the class of the workers, as an actor of Ray.
        start: what a worker needs: the versions, a reference to settings and images, and threads.
        expected: the versions that it must have.
    """

    ray: Any
    needs: Mapping[str, float]
    actor: Any
    start: tuple[Any, ...]
    expected: Mapping[str, Any]

    @classmethod
    def of(cls, ray: Any, setup: Setup, needs: Mapping[str, float]) -> Team:
        """Put settings and images into Ray's object store, from where each worker gets them."""
        cpus, gpus = int(needs["CPU"]), needs["GPU"]
        actor = ray.remote(_worker_class()).options(
            num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": environment(cpus, gpus)}
        )
        expected = _conditions(None if setup.cache is None else setup.cache.backend)
        start = (expected, ray.put(_packed(ray, setup)), cpus)
        return cls(ray, needs, actor, start, expected)

    def run(self, parts: Sequence[range], workers: int) -> Generator[dict[str, int], None, None]:
        """Yield the counts of each part, as it is ready.

        The part of a lost worker goes to another one. (If Ray itself repeated the call, the part
        would wait for room for a new worker, which there may not be after a node is lost.)
        """
        waiting, free, losses = deque(parts), deque[Any](), Counter[Any]()
        running = dict(self._new() for _ in range(workers))  # what each call is: worker and part
        team = [worker for worker, _ in running.values()]
        try:
            for _ in parts:
                counts = None
                while counts is None:
                    while waiting and free:
                        worker, part = free.popleft(), waiting.popleft()
                        running[worker.fill.remote(part)] = worker, part
                    ready, _ = self.ray.wait(list(running), timeout=_PATIENCE)
                    if not ready:
                        room_for(self.ray, self.needs)  # warns where there is none any more
                        continue
                    ref = ready[0]
                    worker, part = running.pop(ref)
                    try:
                        counts = self._result(ref)
                    except self.ray.exceptions.RayTaskError as error:
                        raise cause(error) from error
                    except self.ray.exceptions.RayError as error:
                        losses[part] += 1
                        _check_losses(losses[part], workers, part, error)
                        self.ray.kill(worker)
                        running.update([self._new()])
                        team = [*free, *(worker for worker, _ in running.values())]
                        waiting.extendleft([] if part is None else [part])
                    else:
                        free.append(worker)
                yield counts
        finally:
            for worker in team:  # by name: the traceback of an error keeps references
                self.ray.kill(worker)

    def _new(self) -> tuple[Any, tuple[Any, None]]:
        worker = self.actor.remote()
        return worker.start.remote(*self.start), (worker, None)

    def _result(self, ref: Any) -> dict[str, int] | None:
        """Return the counts of a part, or None if a worker has started."""
        found = self.ray.get(ref)
        if "images" in found:
            return found
        differ = [name for name in self.expected if found[name] != self.expected[name]]
        if differ:
            raise ValueError(
                "All nodes of the cluster must have the versions of this process, "
                f"{ {name: self.expected[name] for name in differ} }. Received: a worker with "
                f"{ {name: found[name] for name in differ} }"
            )
        return None


def _worker_class() -> type:
    """Return the class of the workers. Ray sends its code: a node may not have this package."""

    class Worker:
        def start(self, expected: Any, packed: Any, threads: int) -> Any:
            from finetune_kit._train.on_ray import _conditions, _filling

            found = _conditions(expected["backend"])
            if found == expected:
                self.filling = _filling(packed, threads)
            return found

        def fill(self, part: range) -> dict[str, int]:
            return self.filling.fill(part)

    return Worker


def _packed(ray: Any, setup: Setup) -> tuple[tuple[bytes, bytes], list[NDArray[np.uint8]]]:
    """Return as bytes the layers' classes that are not Keras' own, and the settings.

    Classes of the main program are sent as code, those of modules by their name. Pixels in memory
    are buffers of their own, which the workers of a node share.
    """
    models = [model for model in (setup.backbone, setup.head, setup.preprocessing) if model]
    layers = [layer for model in models for layer in (model, *layers_within(model))]
    own = {type(layer) for layer in layers if not type(layer).__module__.startswith("keras.")}
    named = {
        name: each
        for each in own
        for name in (each.__name__, keras.saving.get_registered_name(each))
    }
    buffers: list[Any] = []
    content = (
        ray.cloudpickle.dumps(named),
        ray.cloudpickle.dumps(replace(setup, callbacks=(), verbose=0), 5, buffers.append),
    )
    return content, [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def _filling(packed: Any, threads: int) -> Filling:
    """Return what fills the cache, in a worker."""
    (named, settings), buffers = packed
    with keras.saving.custom_object_scope(pickle.loads(named)):
        return Filling(pickle.loads(settings, buffers=buffers), threads)


def _check_losses(lost: int, workers: int, part: range | None, error: Exception) -> None:
    """Check that it is not a part of the images that ends the workers, or starting them."""
    if part is None and lost > _MOST_LOSSES * workers:
        raise RuntimeError(f"The workers must be able to start. Received: {error}") from error
    if part is not None and lost > _MOST_LOSSES:
        which = f"{plural(lost, 'worker')} lost with the images {part.start} to {part.stop - 1}"
        raise RuntimeError(
            "A worker must be able to compute each part of the images; if memory is short, pass a "
            f"smaller batch_size. Received: {which}, the last one because: {error}"
        ) from error


def cause(error: Any) -> Exception:
    """Return the error of a call in a worker, without what Ray adds."""
    found = getattr(error, "cause", None)
    if not isinstance(found, Exception):
        return error
    if isinstance(found, ModuleNotFoundError):
        module = (found.name or "").split(".")[0]
        return ImportError(
            "All nodes of the cluster must have the packages of this process; install them there, "
            "or call ray.init(runtime_env={'pip': ['finetune-kit[tensorflow]'], 'working_dir': "
            f"'.'}}) before. Received: a worker without {module!r}"
        )
    return found
