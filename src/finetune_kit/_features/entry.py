"""One entry of a feature cache while it is read and filled."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import WORKERS, ahead
from finetune_kit._features import store
from finetune_kit._features.engine import is_other, outputs_of
from finetune_kit._features.remote import outputs_elsewhere
from finetune_kit._files import write_whole

_CHUNK_BYTES, _CHUNK_ROWS = 64 << 20, 512


class Inputs(Protocol):
    """What a prefix is computed from: picklable, so that another process can load it too."""

    @property
    def threads(self) -> int:
        """How many threads may load at once."""
        ...

    def load(self, positions: NDArray[np.int64]) -> Any:
        """Return the inputs of the prefix for some positions."""
        ...


@dataclass(frozen=True, eq=False)
class Features:
    """The features of images, read from memory-mapped chunks."""

    rows: Mapping[int, str]
    where: Mapping[str, tuple[int, int]]  # by row name: number of the chunk, row in it
    chunks: tuple[store.Chunk, ...]
    shapes: Mapping[str, tuple[int, ...]]  # of the tensors, by their field in a chunk
    dtype: str
    threads: int = WORKERS

    def load(self, positions: NDArray[np.int64]) -> Any:
        """Return the features of some images: an array, or a tuple if several tensors are cut."""
        found = [self.where[self.rows[i]] for i in positions.tolist()]
        loaded = []
        for field, shape in self.shapes.items():
            tensor = np.empty((len(found), *shape), self.dtype)
            for target, (chunk, row) in zip(tensor, found, strict=True):
                target[...] = self.chunks[chunk].rows[field][row]
            loaded.append(tensor)
        return tuple(loaded) if len(loaded) > 1 else loaded[0]


class Entry:
    """The rows of one entry that a run needs, and which of them are missing.

    Args:
        cache: folder of the cache.
        key: what the features depend on besides the images, as plain values.
        about: what `entry.json` shows: model, names of the layers, shapes, dtype.
        rows: name of the row behind each position that will be read.
    """

    def __init__(
        self, cache: Path, key: Mapping[str, Any], about: Mapping[str, Any], rows: Mapping[int, str]
    ) -> None:
        self._about = {"format": store.FORMAT, **about}
        self._dtype = np.dtype(about["dtype"])
        fields = [(f"f{i}", self._dtype, shape) for i, shape in enumerate(about["shapes"])]
        self._record = np.dtype([("image", "S64"), *fields])
        self._rows = rows
        text = json.dumps({**key, "format": store.FORMAT, "dtype": about["dtype"]}, sort_keys=True)
        self.folder = cache / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._chunks = store.open_chunks(self.folder, set(rows.values()), self._record)

    @property
    def missing(self) -> NDArray[np.int64]:
        """One position for each row that is not there."""
        there = {name for chunk in self._chunks for name in chunk.names}
        absent = {name: i for i, name in self._rows.items() if name not in there}
        return np.array(list(absent.values()), np.int64)

    def is_complete(self) -> bool:
        """Return whether all rows are there and undamaged; damaged chunks are deleted."""
        if len(self.missing):
            return False
        before = len(self._chunks)
        self._chunks = store.without_damaged(self._chunks)
        return len(self._chunks) == before

    def features(self) -> Features:
        """Return what can be read, once the entry is complete."""
        where = {
            name: (number, row)
            for number, chunk in enumerate(self._chunks)
            for row, name in enumerate(chunk.names)
        }
        shapes = {f"f{i}": tuple(shape) for i, shape in enumerate(self._about["shapes"])}
        load_as = "uint8" if self._dtype == np.uint8 else "float32"
        return Features(self._rows, where, tuple(self._chunks), shapes, load_as)

    def fill(
        self,
        model: keras.Model | None,
        inputs: Inputs,
        batch_size: int,
        verbose: str | int,
        backend: str | None = None,
    ) -> None:
        """Compute what is missing, chunk by chunk; each is on disk before the next begins.

        `model` takes what `inputs` loads; None stores that as it is. `backend` computes it.
        """
        missing = self.missing
        store.check_space(self.folder.parent, len(missing) * self._record.itemsize)
        self.folder.mkdir(exist_ok=True)
        store.remove_abandoned(self.folder)
        write_whole(self.folder / "entry.json", json.dumps(self._about, indent=2) + "\n")
        rows = self._chunk_rows(len(missing), batch_size)
        bar = keras.utils.Progbar(
            len(missing), verbose=1 if verbose == "auto" else verbose, unit_name="image"
        )
        batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
        chunk, filled, done = np.empty(min(rows, len(missing)), self._record), 0, 0
        loaded = ahead(inputs.load, batches, inputs.threads)
        with closing(_computed(model, loaded, batch_size, verbose, backend)) as computed:
            for batch, outputs in zip(batches, computed, strict=True):
                part = chunk[filled : filled + len(batch)]
                part["image"] = [self._rows[i].encode() for i in batch.tolist()]
                for i, output in enumerate(keras.tree.flatten(outputs)):
                    part[f"f{i}"] = output[: len(batch)]
                filled += len(batch)
                done += len(batch)
                if filled == len(chunk) or done == len(missing):
                    self._chunks.append(store.write_chunk(self.folder, chunk[:filled]))
                    filled = 0
                bar.update(done)

    def _chunk_rows(self, count: int, batch_size: int) -> int:
        """Return the rows of a chunk: whole batches, at most 64 MB, and not too many files."""
        rows = max(_CHUNK_ROWS, count // 64)
        rows = min(rows, max(1, _CHUNK_BYTES // self._record.itemsize))
        return math.ceil(rows / batch_size) * batch_size


def _computed(
    model: keras.Model | None,
    loaded: Iterator[Any],
    batch_size: int,
    verbose: str | int,
    backend: str | None,
) -> Generator[Any, None, None]:
    """Yield the outputs for each batch of inputs, from the backend that computes them."""
    if model is None:
        yield from loaded
    elif backend is not None and is_other(backend):
        yield from outputs_elsewhere(backend, model, loaded, batch_size, verbose)
    else:
        for given in loaded:
            yield outputs_of(model, given, batch_size)
