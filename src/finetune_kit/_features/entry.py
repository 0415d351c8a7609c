"""One entry of a feature cache while it is read and filled."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import WORKERS, ahead
from finetune_kit._features import store
from finetune_kit._features.engine import faster, in_this_process, is_other, outputs_of
from finetune_kit._features.place import Place
from finetune_kit._features.remote import filled_elsewhere
from finetune_kit._features.rows import Rows
from finetune_kit._features.writing import Batch, Seconds, Writer, timed
from finetune_kit._text import listed, plural

_log = logging.getLogger("finetune_kit")
_CHUNK_BYTES, _CHUNK_ROWS = 64 << 20, 512
_WORTH_A_TWIN = 8  # batches, from which on building another form of the model takes less time


class Inputs(Protocol):
    """What a prefix is computed from: picklable, so that another process can load it too."""

    @property
    def threads(self) -> int:
        """How many threads may load at once."""
        ...

    @property
    def is_portable(self) -> bool:
        """Whether another process should load them: they are read from files."""
        ...

    def load(self, positions: NDArray[np.int64]) -> Any:
        """Return the inputs of the prefix for some positions."""
        ...


def entry_place(cache: Place, key: Mapping[str, Any]) -> Place:
    """Return the folder of an entry, by all that its features depend on besides the images."""
    text = json.dumps({**key, "format": store.FORMAT}, sort_keys=True)
    return cache.at(hashlib.sha256(text.encode()).hexdigest()[:32])


class Entry:
    """The rows of one entry that a run needs, and which of them are missing.

    Opening it reads the indexes of the chunks alone. A chunk is mapped into memory and verified
    when one of its rows is read first. An entry is pickled as what it was opened from.

    Args:
        place: where its chunks lie.
        about: what `entry.json` shows: model, names of the layers, shapes, dtype.
        rows: the rows that will be read.
    """

    def __init__(self, place: Place, about: Mapping[str, Any], rows: Rows) -> None:
        self.place, self.lock = place, threading.Lock()
        self._about, self._rows = about, rows
        self._fields = {f"f{i}": tuple(shape) for i, shape in enumerate(about["shapes"])}
        fields = [(name, np.dtype(about["dtype"]), shape) for name, shape in self._fields.items()]
        self._record = np.dtype([("image", "S64"), *fields])
        self._chunks: list[Path] = []
        self._bytes: list[int] = []
        self._mapped: dict[int, NDArray[Any]] = {}  # by number of the chunk, used last at the end
        # Number of the chunk, and row in it, for each name; -1 if it is missing.
        self._where = np.full((len(rows.names), 2), -1, np.int32)
        damaged = []
        for path, names in store.names_in(place):
            if names is None:
                store.remove(place, path)
                damaged.append(path.name)
            else:
                self._add(path, names)
        self._report(damaged)

    def __reduce__(self) -> tuple[Any, ...]:
        return Entry, (self.place, self._about, self._rows)

    @property
    def missing(self) -> Rows:
        """The rows that are not there, each at one position."""
        return self._rows.only(self._where[:, 0] < 0)

    def fill(
        self,
        model: keras.Model | None,
        inputs: Inputs,
        batch_size: int,
        verbose: str | int,
        backend: str | None = None,
    ) -> Seconds:
        """Compute what is missing, chunk by chunk; each is on disk before the next begins.

        `model` takes what `inputs` loads; None stores that as it is. `backend` computes it.
        """
        missing = self.missing
        count, bar = len(missing), _progress_bar(len(missing), verbose)
        store.check_space(self.place, count * self._record.itemsize)
        store.write_about(self.place, self._about)
        store.remove_abandoned(self.place)
        names = missing.names[missing.at(missing.positions)]
        batches = [
            Batch(missing.positions[i : i + batch_size], names[i : i + batch_size])
            for i in range(0, count, batch_size)
        ]
        writer = Writer(self.place, self._record, self._chunk_rows(count, batch_size))
        spent = Seconds()
        with in_this_process(model) as local:
            if local is not None and backend is not None and is_other(backend):
                options = writer, batch_size, verbose
                written = filled_elsewhere(backend, local, inputs, batches, *options)
            else:
                written = writer.write(batches, _outputs(local, inputs, batches, batch_size))
            with closing(written):
                for done, chunk, seconds in written:
                    if chunk is not None:
                        self._add(*chunk)
                    spent += seconds
                    bar.update(done)
        return spent

    def read(self, positions: NDArray[np.int64]) -> Any | None:
        """Return the features of some images: an array, or a tuple if several tensors are cut.

        None: some of them are missing, or they were in a damaged chunk.
        """
        where = self._where[self._rows.at(positions)]
        if not self._map(np.unique(where[:, 0])):
            return None
        # In the order in which the rows lie on disk.
        order = np.lexsort((where[:, 1], where[:, 0]))
        found = [(i, *where[i].tolist()) for i in order.tolist()]
        loaded = []
        for name, shape in self._fields.items():
            tensor = np.empty((len(found), *shape), _loaded_as(self._record[name].base))
            for i, chunk, row in found:
                tensor[i] = self._mapped[chunk][name][row]
            loaded.append(tensor)
        return tuple(loaded) if len(loaded) > 1 else loaded[0]

    def _map(self, chunks: NDArray[np.int32]) -> bool:
        """Map chunks into memory, and return whether all of them are there and undamaged."""
        new = [chunk for chunk in chunks.tolist() if chunk >= 0 and chunk not in self._mapped]
        if new:
            self.place.make_room({self._chunks[chunk]: self._bytes[chunk] for chunk in new})
            with ThreadPoolExecutor(self.place.threads) as pool:
                opened = list(pool.map(self._open, new))
            for chunk, rows in zip(new, opened, strict=True):
                if rows is None:
                    self._where[self._where[:, 0] == chunk] = -1
                else:
                    self._mapped[chunk] = rows
            self._report([self._chunks[c].name for c in new if c not in self._mapped])
        if self.place.copies is not None:
            self._unmap(chunks.tolist(), self.place.copies.limit)
        return all(chunk in self._mapped for chunk in chunks.tolist())

    def _report(self, damaged: list[str]) -> None:
        if damaged:
            _log.warning(
                "Damaged or missing, and not used: %s of features in %s: %s",
                plural(len(damaged), "file"),
                self.place,
                listed(damaged),
            )

    def _unmap(self, used: list[int], limit: int) -> None:
        """Drop the chunks that were used longest ago: the disk has no room for a mapped file."""
        for chunk in used:
            if chunk in self._mapped:
                self._mapped[chunk] = self._mapped.pop(chunk)
        held = sum(self._bytes[chunk] for chunk in self._mapped)
        if held <= limit:
            return
        for chunk in [chunk for chunk in self._mapped if chunk not in used]:
            if held > limit:
                del self._mapped[chunk]
                held -= self._bytes[chunk]
        self.place.make_room({})

    def _open(self, chunk: int) -> NDArray[Any] | None:
        """Return the rows of a chunk, if they are those that its index names."""
        path = self._chunks[chunk]
        rows = store.open_rows(self.place, path, self._record)
        names = None if rows is None else store.names_of(rows)
        here = np.flatnonzero(self._where[:, 0] == chunk)
        row = self._where[here, 1]
        if names is None or row.max() >= len(names) or (names[row] != self._rows.names[here]).any():
            store.remove(self.place, path)
            return None
        return rows

    def _add(self, path: Path, names: NDArray[Any]) -> None:
        """Note where the rows of a chunk are; one that holds none of them is left out."""
        numbers = self._rows.find(names)
        row = np.flatnonzero(numbers >= 0)
        if len(row):
            self._where[numbers[row], 0] = len(self._chunks)
            self._where[numbers[row], 1] = row
            self._chunks.append(path)
            self._bytes.append(len(names) * self._record.itemsize)

    def _chunk_rows(self, count: int, batch_size: int) -> int:
        """Return the rows of a chunk: whole batches, at most 64 MB, and not too many files."""
        rows = max(_CHUNK_ROWS, count // 64)
        rows = min(rows, max(1, _CHUNK_BYTES // self._record.itemsize))
        return math.ceil(rows / batch_size) * batch_size


@dataclass(frozen=True, eq=False)
class Features:
    """The features of an entry. Rows of damaged chunks are computed again when they are read.

    In another process `inputs` is None, and a damaged chunk is an error.
    """

    entry: Entry
    model: keras.Model | None
    inputs: Inputs | None
    batch_size: int
    backend: str | None = None
    threads: int = WORKERS
    is_portable: bool = True

    def __reduce__(self) -> tuple[Any, ...]:
        return Features, (self.entry, None, None, self.batch_size, self.backend, self.threads)

    def load(self, positions: NDArray[np.int64]) -> Any:
        """Return the features of some images: an array, or a tuple if several tensors are cut."""
        with self.entry.lock:
            for _ in range(3):
                found = self.entry.read(positions)
                if found is not None:
                    return found
                if self.inputs is not None:
                    self.entry.fill(self.model, self.inputs, self.batch_size, 0, self.backend)
        raise OSError(f"The feature cache does not keep what is written to it: {self.entry.place}")


def _loaded_as(dtype: np.dtype[Any]) -> str:
    return "uint8" if dtype == np.uint8 else "float32"


def _progress_bar(count: int, verbose: str | int) -> keras.utils.Progbar:
    shown = 1 if verbose == "auto" else verbose
    return keras.utils.Progbar(count, verbose=shown, unit_name="image")


def _outputs(
    model: keras.Model | None, inputs: Inputs, batches: Sequence[Batch], batch_size: int
) -> Iterator[tuple[list[Any], Seconds]]:
    """Yield the outputs for each batch, as a list of arrays; without a model, its inputs."""
    positions = [batch.positions for batch in batches]
    loaded = ahead(partial(timed, inputs.load), positions, inputs.threads)
    for number, (given, loading) in enumerate(loaded):
        found, computing = given, 0.0
        if model is not None:
            found, computing = timed(outputs_of, model, given, batch_size)
        if model is not None and number == 0 and len(batches) >= _WORTH_A_TWIN:
            model = faster(model, given, found)
        yield keras.tree.flatten(found), Seconds(loading / inputs.threads, computing)
