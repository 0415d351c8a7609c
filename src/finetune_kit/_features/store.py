"""A frozen prefix and images come in, its outputs for each image go out: computed once, and kept.

The only writer of that cache. A folder holds one entry for each key (prefix graph and weights,
decoding, image size, storage type), an entry holds chunks, a chunk holds rows, a row is an image's
digest with its features. A chunk is a plain `.npy` file named by the SHA-256 of its own bytes: it
is whole or it is not used, and processes that write the same rows write the same file. This room
knows nothing of blocks or training.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import WORKERS, ahead
from finetune_kit._files import write_whole
from finetune_kit._model.digest import described

FORMAT = "finetune-kit features 1"
DTYPES = ("float32", "float16")
_CHUNK_BYTES, _CHUNK_ROWS = 64 << 20, 512
_ABANDONED_AFTER = 3600  # seconds: an unfinished file older than this belongs to a dead process

CacheDir: TypeAlias = str | os.PathLike[str] | Literal[False] | None


@contextmanager
def opened(cache_dir: CacheDir) -> Iterator[Path | None]:
    """The folder to keep features in: the user's, or a temporary one; None where it is False."""
    if cache_dir is False:
        yield None
    elif cache_dir is None:
        with tempfile.TemporaryDirectory(prefix="finetune-kit-") as folder:
            yield Path(folder)
    else:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        yield Path(cache_dir)


@dataclass(frozen=True, eq=False)
class Features:
    """The features of images, read from memory-mapped chunks."""

    _rows: Mapping[int, str]
    _where: Mapping[str, tuple[int, int]]
    _tensors: tuple[tuple[NDArray[Any], ...], ...]  # for each tensor, that of each chunk
    _dtype: str

    def load(self, positions: NDArray[np.int64]) -> Any:
        """The features of some images: an array, or a list where several tensors cross the cut."""
        found = [self._where[self._rows[i]] for i in positions.tolist()]
        loaded = []
        for chunks in self._tensors:
            tensor = np.empty((len(found), *chunks[0].shape[1:]), self._dtype)
            for target, (chunk, row) in zip(tensor, found, strict=True):
                target[...] = chunks[chunk][row]
            loaded.append(tensor)
        return loaded if len(loaded) > 1 else loaded[0]


class Entry:
    """One entry while it is read and filled: opened for some rows, it knows which are missing.

    `rows` names the image (by its digest) behind each position that will be asked for; `about` is
    all that features depend on besides the image and the prefix, whose operations have these
    `names`. `prefix` None stands for the decoded pixels themselves, of the shape `pixels`.
    """

    def __init__(
        self,
        folder: Path,
        prefix: keras.Model | None,
        names: frozenset[str],
        pixels: tuple[int, int, int],
        about: Mapping[str, Any],
        rows: Mapping[int, str],
        dtype: str,
    ) -> None:
        outputs = [pixels] if prefix is None else [tuple(x.shape[1:]) for x in prefix.outputs]
        if any(None in shape for shape in outputs):
            raise ValueError(
                "The frozen part of `backbone` must put out features of a fixed size to keep them; "
                f"pass cache_dir=False. Received: output shapes {outputs} of {prefix.name!r}"  # type: ignore[union-attr]
            )
        self._dtype = np.dtype("uint8" if prefix is None else dtype)
        fields = [(f"f{i}", self._dtype, shape) for i, shape in enumerate(outputs)]
        self._record = np.dtype([("image", "S64"), *fields])
        self._rows = rows
        key = _key(prefix, {**about, "dtype": self._dtype.name})
        self.folder = folder / key
        self._about = {
            "format": FORMAT,
            "model": "pixels" if prefix is None else prefix.name.removesuffix("_prefix"),
            "layers": sorted(names),
            "shapes": outputs,
            "dtype": self._dtype.name,
        }
        self._chunks: list[NDArray[Any]] = []
        self._where: dict[str, tuple[int, int]] = {}
        wanted = set(rows.values())
        for chunk in _intact(self.folder, wanted, self._record):
            self._add(chunk, row_names(chunk))

    @property
    def missing(self) -> NDArray[np.int64]:
        """A position for each image whose features are not there."""
        found = {name: i for i, name in self._rows.items() if name not in self._where}
        return np.array(list(found.values()), np.int64)

    def features(self) -> Features:
        """What can be read, once nothing is missing."""
        names = [name for name in self._record.names or () if name != "image"]
        tensors = tuple(tuple(chunk[name] for chunk in self._chunks) for name in names)
        load_as = "uint8" if self._dtype == np.uint8 else "float32"
        return Features(self._rows, self._where, tensors, load_as)

    def fill(
        self,
        model: keras.Model | None,
        load: Callable[[NDArray[np.int64]], Any],
        batch_size: int,
        verbose: str | int,
    ) -> None:
        """Compute what is missing, chunk by chunk: each is on disk before the next begins.

        `model` takes what `load` gives for positions; None keeps that as it is.
        """
        missing = self.missing
        if not len(missing):
            return
        _check_space(self.folder.parent, len(missing) * self._record.itemsize)
        self.folder.mkdir(exist_ok=True)
        _remove_abandoned(self.folder)
        write_whole(self.folder / "entry.json", json.dumps(self._about, indent=2) + "\n")
        rows = max(_CHUNK_ROWS, len(missing) // 64)
        rows = min(rows, max(1, _CHUNK_BYTES // self._record.itemsize))
        rows = math.ceil(rows / batch_size) * batch_size
        bar = keras.utils.Progbar(
            len(missing), verbose=1 if verbose == "auto" else verbose, unit_name="image"
        )
        batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
        chunk, filled = np.empty(min(rows, len(missing)), self._record), 0
        for number, (batch, given) in enumerate(
            zip(batches, ahead(load, batches), strict=True), start=1
        ):
            outputs = given if model is None else _predict(model, given, batch_size)
            part = chunk[filled : filled + len(batch)]
            part["image"] = [self._rows[i].encode() for i in batch.tolist()]
            for i, output in enumerate(keras.tree.flatten(outputs)):
                part[f"f{i}"] = output[: len(batch)]
            filled += len(batch)
            if filled == len(chunk) or number == len(batches):
                self._add(written := _write_chunk(self.folder, chunk[:filled]), row_names(written))
                filled = 0
            bar.update(min(number * batch_size, len(missing)))

    def _add(self, chunk: NDArray[Any], names: list[str]) -> None:
        self._chunks.append(chunk)
        number = len(self._chunks) - 1
        self._where.update({name: (number, row) for row, name in enumerate(names)})


def earlier_cuts(cache_dir: Path) -> set[frozenset[str]]:
    """What the entries of a cache are behind, by the names of operations: a hint, no promise."""
    found = (json.loads((f / "entry.json").read_text("utf-8")) for f in entry_folders(cache_dir))
    return {frozenset(about["layers"]) for about in found}


def row_name(digest: str, augmentation: str, seed: int, view: int) -> str:
    """The name of an augmented view of an image: all that it depends on."""
    return hashlib.sha256(f"{digest} {augmentation} {seed} {view}".encode()).hexdigest()


def _key(prefix: keras.Model | None, about: Mapping[str, Any]) -> str:
    parts = {
        **about,
        "format": FORMAT,
        "prefix": None if prefix is None else described(prefix),
        "keras": None if prefix is None else [keras.__version__, keras.backend.backend()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _predict(model: keras.Model, given: Any, batch_size: int) -> Any:
    """The outputs for a batch; one that falls short is filled up: nothing is compiled twice."""
    short = batch_size - len(keras.tree.flatten(given)[0])
    if short:
        given = keras.tree.map_structure(
            lambda x: np.concatenate([x, np.repeat(x[-1:], short, axis=0)]), given
        )
    return model.predict_on_batch(given)


def entry_folders(cache_dir: Path) -> list[Path]:
    """Only what this room made: a folder whose `entry.json` says so."""
    folders = []
    for about in cache_dir.glob("*/entry.json"):
        try:
            if json.loads(about.read_text(encoding="utf-8"))["format"] == FORMAT:
                folders.append(about.parent)
        except (ValueError, KeyError, TypeError, OSError):
            continue
    return folders


def row_names(chunk: NDArray[Any]) -> list[str]:
    """The names of a chunk's rows."""
    return [name.decode(errors="replace") for name in chunk["image"].tolist()]


def mapped(path: Path) -> NDArray[Any] | None:
    """A chunk as it lies on disk; None where it is none."""
    try:
        chunk: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    return chunk if chunk.dtype.names else None


def _intact(folder: Path, wanted: set[str], record: np.dtype[Any]) -> list[NDArray[Any]]:
    """The chunks that hold wanted rows; what is damaged is deleted, to be computed again."""

    def read(path: Path) -> NDArray[Any] | None:
        chunk = mapped(path)
        if chunk is not None and chunk.dtype == record:
            if wanted.isdisjoint(row_names(chunk)):
                return None
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == path.stem:
                    return chunk
        path.unlink(missing_ok=True)
        return None

    with ThreadPoolExecutor(WORKERS) as pool:
        chunks = pool.map(read, sorted(folder.glob("*.npy")))
        return [chunk for chunk in chunks if chunk is not None]


class _Hashing:
    """A file to write to that knows the digest of what was written."""

    def __init__(self, file: Any) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, content: Any) -> None:
        self.digest.update(content)
        self._file.write(content)


def _write_chunk(folder: Path, rows: NDArray[Any]) -> NDArray[Any]:
    """Write a chunk under the name of its own digest, whole or not at all; map it."""
    draft = folder / f"{uuid.uuid4().hex}.part"
    try:
        with draft.open("wb") as file:
            hashing = _Hashing(file)
            np.save(hashing, rows, allow_pickle=False)
        final = folder / f"{hashing.digest.hexdigest()}.npy"
        os.replace(draft, final)
    finally:
        draft.unlink(missing_ok=True)
    mapped: NDArray[Any] = np.load(final, mmap_mode="r", allow_pickle=False)
    return mapped


def _remove_abandoned(folder: Path) -> None:
    for draft in folder.glob("*.part"):
        with suppress(FileNotFoundError):  # its process has finished it in the meantime
            if time.time() - draft.stat().st_mtime > _ABANDONED_AFTER:
                draft.unlink()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"Keeping the features needs {needed / 1e9:,.2f} GB and {free / 1e9:,.2f} GB are free. "
            "Pass another cache_dir, cache_dtype='float16' (half as much), or cache_dir=False",
            str(folder),
        )
