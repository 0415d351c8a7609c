"""Run a frozen model on another Keras backend, in a process of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any

import keras
import numpy as np

from finetune_kit._data.batches import ahead
from finetune_kit._features import store
from finetune_kit._features.engine import outputs_once
from finetune_kit._features.process import Ended, Worker, working
from finetune_kit._features.writing import Batch, Seconds, Writer, Written, timed
from finetune_kit._model.surgery import with_all_outputs
from finetune_kit._text import listed, plural

# Accepted difference to the training backend, as a share of the largest value.
TOLERANCE = 1e-3
# Batches that are sent to a worker ahead of the one that it computes.
_AHEAD = 2


def filled_elsewhere(
    backend: str,
    model: keras.Model,
    inputs: Any,
    batches: Sequence[Batch],
    writer: Writer,
    batch_size: int,
    verbose: str | int,
) -> Generator[Written, None, None]:
    """Compute batches on another backend and write them, as `Writer.write` does.

    The process of the backend loads the images itself if they are files; otherwise they are loaded
    here and sent. A process that dies is started again once, and computes what is not on disk yet.
    The outputs for two images are compared with those of the training backend.

    Args:
        backend: name of the Keras backend.
        model: the model, which does not change.
        inputs: loads the inputs of the model.
        batches: the images.
        writer: writes their rows.
        batch_size: images that are computed at once.
        verbose: 0: print nothing.

    Raises:
        ValueError: if the backend cannot compute the model, or computes something else.
        RuntimeError: if its process ends, also at the second attempt.
    """
    on_disk, done, died_at = 0, 0, -1  # batches on disk, images in them, `on_disk` at a death
    shown, is_checked = 0, False  # images, and whether the outputs have been compared
    while on_disk < len(batches):
        left = batches[on_disk:]
        try:
            with working(backend, model, batch_size) as worker:
                loaded = _loaded(inputs, left)
                if is_checked:
                    worker.receive()
                else:
                    first = next(loaded)
                    few = keras.tree.map_structure(lambda x: x[:2], first[0])
                    _check(worker, model, few, verbose)
                    loaded, is_checked = chain([first], loaded), True
                answers = _written(worker, inputs, left, loaded, writer)
                for number, (count, chunk, seconds) in enumerate(answers, start=on_disk + 1):
                    if chunk is not None:
                        store.trust(chunk.path)
                        on_disk = number
                    shown = done + count
                    yield Written(shown, chunk, seconds)
        except Ended as error:
            if died_at == on_disk:
                raise
            died_at = on_disk
            done = sum(len(batch.names) for batch in batches[:on_disk])
            if verbose:
                print("\n" * (shown > 0), error.what, ". It is started again.", sep="", flush=True)


def _loaded(inputs: Any, batches: Sequence[Batch]) -> Iterator[tuple[Any, float]]:
    """Yield what is loaded in this process: each batch, or two images if they are files.

    It comes with the seconds that this took.
    """
    load = partial(timed, inputs.load)
    if inputs.is_portable:
        return iter([load(batches[0].positions[:2])])
    return ahead(load, [batch.positions for batch in batches], inputs.threads)


def _written(
    worker: Worker,
    inputs: Any,
    batches: Sequence[Batch],
    loaded: Iterator[tuple[Any, float]],
    writer: Writer,
) -> Iterator[Written]:
    """Yield the answer of a worker for each batch."""
    if inputs.is_portable:
        worker.send("fill", (writer, inputs, batches))
        for _ in batches:
            yield worker.receive()
        return
    worker.send("fill", (writer, None, batches))
    waiting: deque[Seconds] = deque()
    for batch, seconds in loaded:
        worker.send("batch", batch)
        waiting.append(Seconds(loading=seconds / inputs.threads))
        if len(waiting) > _AHEAD:
            yield _received(worker, waiting.popleft())
    for loading in waiting:
        yield _received(worker, loading)


def _received(worker: Worker, loading: Seconds) -> Written:
    written: Written = worker.receive()
    return Written(written.images, written.chunk, written.seconds + loading)


def _check(worker: Worker, model: keras.Model, images: Any, verbose: str | int) -> None:
    """Check that a worker computes what the training backend computes."""
    own = keras.tree.flatten(outputs_once(model, images))  # while the worker loads the model
    kept = worker.receive()
    if kept and verbose:
        _say_kept(worker.backend, kept)
    worker.send("compute", images)
    found = worker.receive()
    if _difference(own, found) > TOLERANCE:
        raise _differs(worker.backend, model, images, own, found)


@cache  # once for all passes of a program
def _say_kept(backend: str, kept: tuple[str, ...]) -> None:
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


def _differs(
    backend: str, model: keras.Model, images: Any, own: list[Any], found: list[Any]
) -> ValueError:
    """Return the error for other outputs, which says up to which layer they are equal."""
    names, probe = with_all_outputs(model)
    image = keras.tree.map_structure(lambda x: x[:1], images)
    with working(backend, probe, 1) as worker:
        worker.receive()
        worker.send("compute", image)
        theirs = worker.receive()
    ours = keras.tree.flatten(outputs_once(probe, image))
    equal = [_difference([a], [b]) <= TOLERANCE for a, b in zip(ours, theirs, strict=True)]
    where = "; on one image, all layers are equal"
    if not all(equal):
        first = equal.index(False)
        before = f"the last equal layer is {names[first - 1]!r}, " if first else ""
        where = f": {before}the first other one {names[first]!r}"
    return ValueError(
        "`backend` must compute what the training backend computes, to "
        f"{TOLERANCE:g} of the largest value; leave it out for this backbone. Received: "
        f"backend={backend!r}, whose outputs differ by {_difference(own, found):.2g} from those of "
        f"{keras.backend.backend()!r}{where}"
    )
