"""Write features as chunks of an entry."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune_kit._features import store
from finetune_kit._features.place import Place


class Batch(NamedTuple):
    """Images that are computed together: where they are read, and the names of their rows."""

    positions: NDArray[np.int64]
    names: NDArray[np.bytes_]


class Chunk(NamedTuple):
    """A chunk on disk, and the names of its rows."""

    path: Path
    names: NDArray[np.bytes_]


@dataclass(frozen=True)
class Seconds:
    """How long two parts of a pass take, which overlap.

    Attributes:
        loading: of the inputs: the seconds of all threads, divided by their number.
        computing: of the outputs.
    """

    loading: float = 0.0
    computing: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.loading + other.loading, self.computing + other.computing)


class Written(NamedTuple):
    """How far the writing is: images up to a batch, and what came with that batch.

    Attributes:
        images: up to the batch and with it.
        chunk: the chunk that was written with it, if one was full.
        seconds: of the batch.
    """

    images: int
    chunk: Chunk | None
    seconds: Seconds


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Return the result of a call, and its seconds."""
    started = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class Writer:
    """What another process needs to write rows of an entry.

    Attributes:
        place: of the entry.
        record: the fields of a row: `"image"`, then a field for each tensor.
        rows: of a chunk.
    """

    place: Place
    record: np.dtype[Any]
    rows: int

    def write(
        self, batches: Sequence[Batch], outputs: Iterable[tuple[Sequence[Any], Seconds]]
    ) -> Generator[Written, None, None]:
        """Write the outputs for each batch, which come with their seconds."""
        done, total = 0, sum(len(batch.names) for batch in batches)
        chunk, names = np.empty(min(self.rows, total), self.record), list[Any]()
        for batch, (tensors, seconds) in zip(batches, outputs, strict=True):
            begin, count = sum(map(len, names)), len(batch.names)
            part = chunk[begin : begin + count]
            part["image"] = _hexadecimal(batch.names)
            for i, tensor in enumerate(tensors):
                part[f"f{i}"] = tensor[:count]
            names.append(batch.names)
            done += count
            if begin + count < len(chunk) and done < total:
                yield Written(done, None, seconds)
                continue
            path = store.write_chunk(self.place, chunk[: begin + count])
            yield Written(done, Chunk(path, np.concatenate(names)), seconds)
            names.clear()


def _hexadecimal(names: NDArray[Any]) -> NDArray[Any]:
    return np.frombuffer(names.tobytes().hex().encode(), "S64")
