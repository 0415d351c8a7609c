"""Compute features, and run the trainings of a sweep, on a Ray cluster.

It needs the extra `ray` (`pip install 'finetune-kit[ray]'`). Ray starts the processes, on this
machine or on others, and starts new ones where some were lost. Features do not travel through Ray:
the workers write them to the cache, a bucket or a folder that all nodes reach by the same path.
"""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import keras

from finetune_kit._checks import check_count
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._text import plural
from finetune_kit._train.filling import filling_setup
from finetune_kit._train.on_ray import (
    THREADS,
    Team,
    cause,
    connected,
    environment,
    import_ray,
    parts_of,
    room_for,
)
from finetune_kit._train.tuned import FineTuned

__all__ = ["Executor", "compute_features"]


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
        features: a folder that all nodes reach by the same path, the URL of a bucket, or a
            `FeatureCache` with one. Its `backend` computes the features, as it does without Ray.
        workers: how many processes. Those that the cluster has no room for join when it has.
            Defaults to as many as the nodes have room for.
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
        >>> import finetune_kit.ray
        >>> finetune_kit.ray.compute_features(  # doctest: +SKIP
        ...     backbone, specs, train + validation, "/shared/features", workers=8)
        {'images': 3788, 'computed': 7576}
    """
    ray = import_ray()
    check_count("cpus_per_worker", cpus_per_worker)
    if workers is not None:
        check_count("workers", workers)
    _check_gpus("gpus_per_worker", gpus_per_worker)
    setup = filling_setup(
        backbone, specs, images, features, head, preprocessing, batch_size, verbose
    )
    with connected(ray, address) as grows:
        needs = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
        room = room_for(ray, needs, grows=grows)
        parts = parts_of(len(images), workers or room, batch_size)
        count = min(workers or room, len(parts))
        if verbose:
            who = f"{plural(len(images), 'image')}, by {plural(count, 'worker')}"
            print(f"Computing the features that are missing, of {who}:", flush=True)
        shown = 1 if verbose == "auto" else verbose
        bar = keras.utils.Progbar(len(images), verbose=shown, unit_name="image")
        total = {"images": 0, "computed": 0}
        team = Team.of(ray, setup, needs)
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

    A call computes with as many threads as this process does (`OMP_NUM_THREADS` and so on), so that
    its results are the same; the CPUs only say how many calls run on a node at the same time.

    Args:
        cpus: CPUs of a call. Defaults to 1.
        gpus: GPUs of a call, also a fraction. Defaults to 0.
        address: of a cluster, see `compute_features`.

    Raises:
        ImportError: if Ray is not installed.

    Example:
        >>> with finetune_kit.ray.Executor(cpus=4) as executor:  # doctest: +SKIP
        ...     runs = sweep(backbone, head, specs, train, validation, executor=executor)
    """

    def __init__(self, *, cpus: int = 1, gpus: float = 0, address: str | None = None) -> None:
        check_count("cpus", cpus)
        _check_gpus("gpus", gpus)
        self._ray = import_ray()
        given = THREADS[0] in os.environ
        self._lock, self._futures, self._open = threading.Lock(), set[Any](), True
        self._connection = connected(self._ray, address)
        self._connection.__enter__()

        def call(content: bytes) -> Any:  # local, so that Ray sends its code
            if not given:
                os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it to the CPUs of the call
            function, args, kwargs = pickle.loads(content)
            return function(*args, **kwargs)

        self._call = self._ray.remote(call).options(
            num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": environment(None, gpus)}
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
            future.set_exception(cause(error))

    def _forget(self, future: Any, ref: Any) -> None:
        with self._lock:
            self._futures.discard(future)
        if future.cancelled():
            self._ray.cancel(ref)


def _check_gpus(name: str, gpus: Any) -> None:
    if isinstance(gpus, bool) or not isinstance(gpus, (int, float)) or gpus < 0:
        raise ValueError(
            f"`{name}` must be a number of at least 0, such as 1 or 0.5. Received: {name}={gpus!r}"
        )
