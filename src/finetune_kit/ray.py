"""Compute features, and run the trainings of a sweep, on a Ray cluster.

It needs the extra `ray` (`pip install 'finetune-kit[ray]'`). Ray starts the processes, on this
machine or on others, and starts new ones where some were lost. Features do not travel through Ray:
the workers write them to the cache, a folder that all nodes reach by the same path.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import os
import pickle
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras

import finetune_kit
from finetune_kit._checks import check_count
from finetune_kit._data.decoding import DECODING
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache
from finetune_kit._features.engine import engine_key
from finetune_kit._model.graph import layers_within
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._text import plural
from finetune_kit._train.filling import Filling, filling_setup
from finetune_kit._train.setup import Setup
from finetune_kit._train.tuned import FineTuned

__all__ = ["Executor", "compute_features"]

# A worker that is slow or lost holds up one part alone. A part is also a step of the progress bar.
_PARTS_PER_WORKER, _PART_IMAGES, _MOST_PARTS = 8, 2048, 512
_MOST_LOSSES = 10  # workers that one part may lose: its images are the reason then, not chance


def compute_features(
    backbone: keras.Model | FineTuned | str | os.PathLike[str],
    specs: FineTuneSpec | Sequence[FineTuneSpec],
    images: ImageSet,
    features: FeatureCache | str | os.PathLike[str],
    *,
    workers: int | None = None,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    address: str | None = None,
    head: keras.Layer | None = None,
    preprocessing: str | keras.layers.Layer | None = "auto",
    batch_size: int = 32,
    verbose: str | int = "auto",
) -> dict[str, int]:
    """Compute what the frozen part of a backbone puts out for images, on a Ray cluster.

    It does what `finetune_kit.compute_features` does, with several processes. Each of them builds
    the frozen part once, decodes images in threads ahead of it, and writes to the cache. Where
    workers or nodes are lost, others take over from the last whole chunk. Ctrl-C ends the workers;
    the next call computes the rest.

    It uses the cluster that Ray is connected to. If there is none, it connects as
    `ray.init(address=address)` does, until the features are computed.

    Args:
        backbone: see `fine_tune`.
        specs: what will be trained: one spec or several.
        images: the images. Files must have the same path on all nodes; pixels in memory are sent to
            each node once.
        features: a folder that all nodes reach by the same path, or a `FeatureCache` with one. Its
            `backend` computes the features, as it does without Ray.
        workers: how many processes. Those that the cluster has no room for join when it has.
            Defaults to as many as it has room for now.
        cpus_per_worker: CPUs of a worker; it decodes images in as many threads. Defaults to 1.
        gpus_per_worker: GPUs of a worker, also a fraction. With a GPU, give it the CPUs that its
            decoding needs. Defaults to 0.
        address: of a cluster, such as `"auto"` (the one that runs on this machine); see `ray.init`.
            Defaults to the one that Ray finds, or a new one on this machine.
        head: see `finetune_kit.compute_features`.
        preprocessing: see `fine_tune`.
        batch_size: images in each step. Defaults to 32.
        verbose: `"auto"` (default), 0, 1 or 2, as in `fit`.

    Returns:
        `{"images": ..., "computed": ...}`: the number of images, and how many rows of features this
        call computed, over all specs.

    Raises:
        ImportError: if Ray, or what the workers need, is not installed.
        ValueError: if an argument does not fit the others, or the workers have other versions.
        OSError: if the features need more space than is free, or the folder cannot be written.
        RuntimeError: if a part of the images ends one worker after the other.

    Example:
        ```python
        import finetune_kit.ray

        finetune_kit.ray.compute_features(
            backbone, specs, train + validation, "/shared/features", workers=8, cpus_per_worker=4)
        ```
    """
    ray = _ray()
    check_count("cpus_per_worker", cpus_per_worker)
    if workers is not None:
        check_count("workers", workers)
    _check_gpus("gpus_per_worker", gpus_per_worker)
    setup = filling_setup(
        backbone, specs, images, features, head, preprocessing, batch_size, verbose
    )
    with _connected(ray, address):
        room = _room(ray, {"CPU": cpus_per_worker, "GPU": gpus_per_worker})
        parts = _parts(len(images), workers or room, batch_size)
        count = min(workers or room, len(parts))
        if verbose:
            who = f"{plural(len(images), 'image')}, by {plural(count, 'worker')}"
            print(f"Computing the frozen part, once for each of {who}:", flush=True)
        shown = 1 if verbose == "auto" else verbose
        bar = keras.utils.Progbar(len(images), verbose=shown, unit_name="image")
        total = {"images": 0, "computed": 0}
        team = _Team.of(ray, setup, cpus_per_worker, gpus_per_worker)
        with closing(team.run(parts, count)) as found:
            for counts in found:
                total = {name: total[name] + counts[name] for name in total}
                bar.update(total["images"])
    return total


class Executor(concurrent.futures.Executor):
    """Runs calls on a Ray cluster, for `sweep(..., executor=)`.

    Ray runs a call again if its process or node was lost; a training with a `run_dir` in a shared
    folder then resumes. It uses the cluster that Ray is connected to. If there is none, it connects
    as `ray.init(address=address)` does, until `shutdown`.

    Args:
        cpus: CPUs of a call. Defaults to 1.
        gpus: GPUs of a call, also a fraction. Defaults to 0.
        address: of a cluster, see `compute_features`.

    Raises:
        ImportError: if Ray is not installed.

    Example:
        ```python
        with finetune_kit.ray.Executor(cpus=4) as executor:
            runs = ftk.sweep(backbone, head, specs, train, validation, executor=executor)
        ```
    """

    def __init__(self, *, cpus: int = 1, gpus: float = 0, address: str | None = None) -> None:
        check_count("cpus", cpus)
        _check_gpus("gpus", gpus)
        self._ray = _ray()
        self._lock, self._futures, self._open = threading.Lock(), set[Any](), True
        self._connection = _connected(self._ray, address)
        self._connection.__enter__()

        def call(content: bytes) -> Any:  # local, so that Ray sends its code
            function, args, kwargs = pickle.loads(content)
            return function(*args, **kwargs)

        self._call = self._ray.remote(call).options(
            num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": _environment(cpus)}
        )

    def submit(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        """Run a call in a process of the cluster; see `concurrent.futures.Executor`."""
        if not self._open:
            raise RuntimeError("`submit` must be called before `shutdown`")
        ref = self._call.remote(self._ray.cloudpickle.dumps((function, args, kwargs)))
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(lambda done: self._forget(done, ref))
        ref.future().add_done_callback(lambda found: self._settle(future, found))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no further calls; see `concurrent.futures.Executor`."""
        self._open = False
        with self._lock:
            futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            concurrent.futures.wait(futures)
            self._connection.__exit__(None, None, None)

    def _settle(self, future: Any, found: Any) -> None:
        """Pass on a result, or the error of the call itself."""
        if not future.set_running_or_notify_cancel():
            return
        error = found.exception()
        if error is None:
            future.set_result(found.result())
        else:
            future.set_exception(_cause(error))

    def _forget(self, future: Any, ref: Any) -> None:
        with self._lock:
            self._futures.discard(future)
        if future.cancelled():
            self._ray.cancel(ref)


def _ray() -> Any:
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
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, unless Ray is connected to one, and disconnect at the end."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _check_gpus(name: str, gpus: Any) -> None:
    if isinstance(gpus, bool) or not isinstance(gpus, (int, float)) or gpus < 0:
        raise ValueError(
            f"`{name}` must be a number of at least 0, such as 1 or 0.5. Received: {name}={gpus!r}"
        )


def _environment(cpus: int) -> dict[str, str]:
    """Return the environment of a worker: its backend, and no more threads than it has CPUs."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "NPROC")  # the last one is XLA's
    return {
        "KERAS_BACKEND": keras.backend.backend(),
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        **dict.fromkeys(names, str(cpus)),
    }


def _room(ray: Any, needs: Mapping[str, float]) -> int:
    """Return how many workers the cluster has room for, at least one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(node.get(name, 0) / need) for name, need in needs.items() if need) for node in nodes
    )
    if not room:
        wanted = ", ".join(f"{need:g} {name}" for name, need in needs.items() if need)
        largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in needs}
        warnings.warn(
            f"No node of the cluster has room for a worker, which needs {wanted}: the largest have "
            f"{', '.join(f'{most:g} {name}' for name, most in largest.items())}. Ray waits until "
            "one joins",
            stacklevel=3,
        )
    return max(1, room)


def _parts(images: int, workers: int, batch_size: int) -> list[range]:
    """Return parts of the images, as indices: whole batches, several parts for each worker."""
    size = min(
        math.ceil(images / (workers * _PARTS_PER_WORKER)),
        max(_PART_IMAGES, images // _MOST_PARTS),
    )
    size = math.ceil(size / batch_size) * batch_size
    return [range(i, min(i + size, images)) for i in range(0, images, size)]


def _conditions(backend: str | None) -> dict[str, Any]:
    """Return the versions that must be the same in all processes, or features would differ."""
    return {
        "finetune-kit": finetune_kit.__version__,
        "decoding": DECODING,
        "backend": backend,
        **engine_key(backend),
    }


@dataclass(frozen=True, eq=False)
class _Team:
    """Workers that fill a cache.

    Attributes:
        ray: the package.
        actor: the class of the workers, as an actor of Ray.
        start: what a worker needs: the settings, and by reference the images.
        expected: the versions that it must have.
    """

    ray: Any
    actor: Any
    start: tuple[Any, ...]
    expected: Mapping[str, Any]

    @classmethod
    def of(cls, ray: Any, setup: Setup, cpus: int, gpus: float) -> _Team:
        """Put settings and images into Ray's object store, from where each worker gets them."""
        actor = ray.remote(_worker_class(ray)).options(
            num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": _environment(cpus)}
        )
        expected = _conditions(None if setup.cache is None else setup.cache.backend)
        start = (expected, ray.put(_packed(ray, setup)), [ray.put(setup.train)], cpus)
        return cls(ray, actor, start, expected)

    def run(self, parts: Sequence[range], workers: int) -> Generator[dict[str, int], None, None]:
        """Yield the counts of each part, as it is ready.

        The part of a lost worker goes to another one. (If Ray itself repeated the call, the part
        would wait for room for a new worker, which there may not be after a node is lost.)
        """
        waiting, free, losses = deque(parts), deque[Any](), Counter[Any]()
        running = dict(self._new() for _ in range(workers))  # what each call is: worker and part
        try:
            for _ in parts:
                counts = None
                while counts is None:
                    while waiting and free:
                        worker, part = free.popleft(), waiting.popleft()
                        running[worker.fill.remote(part)] = worker, part
                    (ref, *_), _ = self.ray.wait(list(running))
                    worker, part = running.pop(ref)
                    try:
                        counts = self._result(ref)
                    except self.ray.exceptions.RayError as error:
                        losses[part] += 1
                        _check_losses(losses[part], workers, part, error)
                        self.ray.kill(worker)
                        running.update([self._new()])
                        waiting.extendleft([] if part is None else [part])
                    else:
                        free.append(worker)
                yield counts
        finally:
            for worker in (*free, *(worker for worker, _ in running.values())):
                self.ray.kill(worker)

    def _new(self) -> tuple[Any, tuple[Any, None]]:
        worker = self.actor.remote()
        return worker.start.remote(*self.start), (worker, None)

    def _result(self, ref: Any) -> dict[str, int] | None:
        """Return the counts of a part, or None if a worker has started."""
        try:
            found = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
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


def _worker_class(ray: Any) -> type:
    """Return the class of the workers. Ray sends its code: a node may not have this package."""

    class Worker:
        def start(self, expected: Any, settings: bytes, images: list[Any], threads: int) -> Any:
            from finetune_kit._features.remote import kept_open
            from finetune_kit.ray import _conditions, _filling

            found = _conditions(expected["backend"])
            if found == expected:
                self.kept = kept_open()  # until this process ends
                self.kept.__enter__()
                self.filling = _filling(settings, ray.get(images[0]), threads)
            return found

        def fill(self, part: range) -> dict[str, int]:
            return self.filling.fill(part)

    return Worker


def _packed(ray: Any, setup: Setup) -> bytes:
    """Return the settings without images as bytes, with the layers' classes that are not Keras'."""
    models = [model for model in (setup.backbone, setup.head, setup.preprocessing) if model]
    layers = [layer for model in models for layer in (model, *layers_within(model))]
    own = {type(layer) for layer in layers if not type(layer).__module__.startswith("keras.")}
    named = {
        name: each
        for each in own
        for name in (each.__name__, keras.saving.get_registered_name(each))
    }
    nothing: Any = None  # the images travel by themselves
    settings = replace(setup, train=nothing, callbacks=(), verbose=0)
    # Classes of the main program are sent as code, those of modules by their name.
    return pickle.dumps([ray.cloudpickle.dumps(each) for each in (named, settings)])


def _filling(content: bytes, images: ImageSet, threads: int) -> Filling:
    """Return what fills the cache, in a worker."""
    named, settings = pickle.loads(content)
    with keras.saving.custom_object_scope(pickle.loads(named)):
        setup = pickle.loads(settings)
    return Filling(replace(setup, train=images), threads)


def _check_losses(lost: int, workers: int, part: range | None, error: Exception) -> None:
    """Check that it is not a part of the images that ends the workers, or starting them."""
    if part is None and lost > _MOST_LOSSES * workers:
        raise RuntimeError(f"The workers must be able to start. Received: {error}") from error
    if part is not None and lost > _MOST_LOSSES:
        raise RuntimeError(
            "A worker must be able to compute each part of the images; if memory is short, pass a "
            f"smaller batch_size. Received: {lost} workers lost with the images {part.start} to "
            f"{part.stop - 1}, the last one because: {error}"
        ) from error


def _cause(error: Any) -> Exception:
    """Return the error of a call in a worker, without what Ray adds."""
    found = getattr(error, "cause", None)
    if not isinstance(found, Exception):
        return error
    if isinstance(found, ModuleNotFoundError):
        return ImportError(
            "All nodes of the cluster must have the packages of this process; install them there, "
            "or call ray.init(runtime_env={'pip': ['finetune-kit[tensorflow]'], 'working_dir': "
            f"'.'}}) before. Received: a worker without the module {found.name!r}"
        )
    return found
