"""Chunks of features on disk.

A cache holds one folder for each entry (prefix graph and weights, decoding, image size, storage
type). An entry holds chunks, a chunk holds rows, and a row is an image's digest with its features.
A chunk is a plain `.npy` file named by the SHA-256 of its own bytes: it is whole or it is not used,
and processes that write the same rows write the same file. An index beside each chunk holds the
digests alone, so that an entry opens without reading features; it can be made from the chunk again.
In a bucket a chunk is one object, and its index another one, which is put after it.
"""

from __future__ import annotations

import binascii
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._buckets import RemoteError
from finetune_kit._features.place import Place, draft
from finetune_kit._features.rows import NAME
from finetune_kit._files import write_whole

FORMAT = "finetune-kit features 1"
# The name of an entry, and of each file in it.
_KEY = re.compile("[0-9a-f]{32}")
_CHUNK = re.compile(r"[0-9a-f]{64}\.npy")
_OWN = re.compile(r"entry\.json|[0-9a-f]{64}\.(npy|index)|[0-9a-f]{32}\.part")
_ABANDONED_AFTER = 3600  # seconds; an older unfinished file belongs to a process that has died

# Chunks whose content was verified in this process: path, size, time of last change in ns.
_verified: set[tuple[str, int, int]] = set()


def entry_places(cache: Place) -> list[tuple[Place, dict[str, Any]]]:
    """Return the entries of a cache, and what their `entry.json` says: nothing if it is lost."""
    places = cache.folders()
    with ThreadPoolExecutor(cache.threads) as pool:
        found = list(pool.map(_about, places))
    return [(place, about) for place, about in zip(places, found, strict=True) if about is not None]


def _about(place: Place) -> dict[str, Any] | None:
    """Return what an `entry.json` of our format says; None if the folder is not an entry."""
    try:
        path = place.get(place.folder / "entry.json")
        about = json.loads(path.read_text(encoding="utf-8"))
    except RemoteError:
        raise
    except (ValueError, OSError):
        return {} if _looks_like_ours(place) else None
    return about if isinstance(about, dict) and about.get("format") == FORMAT else None


def _looks_like_ours(place: Place) -> bool:
    """Return whether a folder without its `entry.json` holds chunks of features and no more."""
    try:
        files = place.files() if _KEY.fullmatch(place.folder.name) else {}
    except FileNotFoundError:  # another process has just begun or removed an entry
        return False
    return any(map(_CHUNK.fullmatch, files)) and all(map(_OWN.fullmatch, files))


def names_in(place: Place) -> Iterator[tuple[Path, NDArray[Any] | None]]:
    """Yield each chunk of an entry with the names of its rows; None if it is not a chunk."""
    paths = place.chunks()
    with ThreadPoolExecutor(place.threads) as pool:
        yield from zip(paths, pool.map(partial(_read_names, place), paths), strict=True)


def count_rows(place: Place) -> int:
    """Return how many rows an entry holds."""
    found = [names for _, names in names_in(place) if names is not None]
    return len(np.unique(np.concatenate(found))) if found else 0


def open_rows(place: Place, path: Path, record: np.dtype[Any]) -> NDArray[Any] | None:
    """Map the rows of a chunk into memory.

    The bytes of a chunk are compared with its name once in a process. Those of a damaged one are
    not used: it is deleted, and the result is None.
    """
    rows = _whole_rows(place, path)
    if rows is None and place.url is not None:  # perhaps the copy is damaged, and the object whole
        path.unlink(missing_ok=True)
        rows = _whole_rows(place, path)
    if rows is None or rows.dtype != record:
        remove(place, path)
        return None
    return rows


def write_chunk(place: Place, rows: NDArray[Any]) -> Path:
    """Write a chunk under the name of its own digest, whole or not at all, then its index."""
    with draft(place.folder) as part:
        place.make_room({part: rows.nbytes})
        with part.open("wb") as file:
            hashing = _Hashing(file)
            np.save(hashing, rows, allow_pickle=False)
        path = place.folder / f"{hashing.digest.hexdigest()}.npy"
        os.replace(part, path)
    _verified.add(_state(path))
    place.put(path)
    names = names_of(rows)
    if names is not None:
        _write_index(place, path, names)
    return path


def write_about(place: Place, about: Mapping[str, Any]) -> None:
    """Write the `entry.json` of an entry. In a bucket, this shows whether it can be written."""
    place.folder.mkdir(parents=place.url is not None, exist_ok=True)
    path = place.folder / "entry.json"
    write_whole(path, json.dumps(about, indent=2) + "\n")
    place.put(path)


def trust(path: Path) -> None:
    """Note that another process of the same run has written a chunk, so it is not read again."""
    with suppress(OSError):
        _verified.add(_state(path))


def remove(place: Place, path: Path) -> None:
    """Delete a chunk, then its index."""
    place.remove(path, _index_of(path))


def remove_abandoned(place: Place) -> None:
    """Delete what processes that have died left: unfinished files, and indexes without a chunk."""
    for part in place.folder.glob("*.part"):
        with suppress(FileNotFoundError):  # its process has finished it in the meantime
            if time.time() - part.stat().st_mtime > _ABANDONED_AFTER:
                part.unlink()
    if place.url is None:  # in a bucket, a chunk that is not here may be there
        for index in place.folder.glob("*.index"):
            if not index.with_suffix(".npy").exists():
                place.remove(index)


def check_space(place: Place, needed: int) -> None:
    """Check that `needed` bytes are free. In a bucket there is always room."""
    if place.url is not None:
        return
    free = shutil.disk_usage(place.folder.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The features need {needed / 1e9:,.2f} GB and {free / 1e9:,.2f} GB are free. Pass "
            "features=FeatureCache(folder) on another disk, FeatureCache(folder, dtype='float16') "
            "(half as much), or features=False",
            str(place.folder.parent),
        )


def names_of(rows: NDArray[Any]) -> NDArray[Any] | None:
    """Return the names of rows; None if one of them is not a SHA-256."""
    try:
        names = np.frombuffer(binascii.unhexlify(rows["image"].tobytes()), NAME)
    except ValueError:
        return None
    return names if len(names) == len(rows) else None


def _read_names(place: Place, path: Path) -> NDArray[Any] | None:
    """Return the names of a chunk's rows; without a good index, that is made from the chunk."""
    try:
        content = place.get(_index_of(path)).read_bytes()
    except RemoteError:
        raise
    except OSError:
        content = b""
    if _seal(path, content[32:]) == content[:32]:
        return np.frombuffer(content, NAME, offset=32)
    try:
        rows = _mapped(place.get(path))
    except FileNotFoundError:  # another process has deleted it
        return None
    names = None if rows is None else names_of(rows)
    if names is not None:
        with suppress(OSError):  # it can be made again
            _write_index(place, path, names)
    return names


def _write_index(place: Place, path: Path, names: NDArray[Any]) -> None:
    content = names.tobytes()
    with suppress(OSError), draft(path.parent) as part:  # it can be made again
        part.write_bytes(_seal(path, content) + content)
        os.replace(part, _index_of(path))
    if place.url is not None and _index_of(path).exists():
        place.put(_index_of(path))


def _index_of(path: Path) -> Path:
    return path.with_suffix(".index")


def _seal(path: Path, content: bytes) -> bytes:
    """Return the digest that an index begins with; that of another chunk has another one."""
    digest = hashlib.sha256(path.stem.encode())
    digest.update(content)
    return digest.digest()


def _whole_rows(place: Place, path: Path) -> NDArray[Any] | None:
    try:
        path = place.get(path)
    except FileNotFoundError:
        return None
    return _mapped(path) if _is_whole(path) else None


def _mapped(path: Path) -> NDArray[Any] | None:
    try:
        rows: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    # A plain array is indexed in a third of the time that a np.memmap takes.
    return rows.view(np.ndarray) if "image" in (rows.dtype.names or ()) else None


def _is_whole(path: Path) -> bool:
    try:
        state = _state(path)
        if state in _verified:
            return True
        with path.open("rb") as file:
            good = hashlib.file_digest(file, "sha256").hexdigest() == path.stem
    except OSError:
        return False
    if good:
        _verified.add(state)
    return good


def _state(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path.absolute()), found.st_size, found.st_mtime_ns


class _Hashing:
    """A file that computes the digest of what is written to it."""

    def __init__(self, file: Any) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, content: Any) -> None:
        self.digest.update(content)
        self._file.write(content)
