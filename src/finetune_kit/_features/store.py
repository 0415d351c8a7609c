"""Chunks of features on disk.

A cache holds one folder for each entry (prefix graph and weights, decoding, image size, storage
type). An entry holds chunks, a chunk holds rows, and a row is an image's digest with its features.
A chunk is a plain `.npy` file named by the SHA-256 of its own bytes: it is whole or it is not used,
and processes that write the same rows write the same file. An index beside each chunk holds the
digests alone, so that an entry opens without reading features; it can be made from the chunk again.
"""

from __future__ import annotations

import binascii
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import WORKERS
from finetune_kit._features.rows import NAME

FORMAT = "finetune-kit features 1"
_ABANDONED_AFTER = 3600  # seconds; an older unfinished file belongs to a process that has died

# Chunks whose content was verified in this process: path, size, time of last change in ns.
_verified: set[tuple[str, int, int]] = set()


def entry_folders(cache: Path) -> list[Path]:
    """Return the entries of a cache: folders whose `entry.json` has our format."""
    folders = []
    for about in cache.glob("*/entry.json"):
        try:
            if json.loads(about.read_text(encoding="utf-8"))["format"] == FORMAT:
                folders.append(about.parent)
        except (ValueError, KeyError, TypeError, OSError):
            continue
    return folders


def names_in(folder: Path) -> Iterator[tuple[Path, NDArray[Any] | None]]:
    """Yield each chunk of an entry with the names of its rows; None if it is not a chunk."""
    paths = sorted(folder.glob("*.npy"))
    with ThreadPoolExecutor(WORKERS) as pool:
        yield from zip(paths, pool.map(_read_names, paths), strict=True)


def count_rows(folder: Path) -> int:
    """Return how many rows an entry holds."""
    found = [names for _, names in names_in(folder) if names is not None]
    return len(np.unique(np.concatenate(found))) if found else 0


def open_rows(path: Path, record: np.dtype[Any]) -> NDArray[Any] | None:
    """Map the rows of a chunk into memory.

    The bytes of a chunk are compared with its name once in a process. Those of a damaged one are
    not used: it is deleted, and the result is None.
    """
    rows = _mapped(path) if _is_whole(path) else None
    if rows is None or rows.dtype != record:
        remove(path)
        return None
    return rows


def write_chunk(folder: Path, rows: NDArray[Any]) -> Path:
    """Write a chunk under the name of its own digest, whole or not at all, then its index."""
    with _draft(folder) as draft:
        with draft.open("wb") as file:
            hashing = _Hashing(file)
            np.save(hashing, rows, allow_pickle=False)
        path = folder / f"{hashing.digest.hexdigest()}.npy"
        os.replace(draft, path)
    _verified.add(_state(path))
    names = names_of(rows)
    if names is not None:
        _write_index(path, names)
    return path


def trust(path: Path) -> None:
    """Note that another process of the same run has written a chunk, so it is not read again."""
    with suppress(OSError):
        _verified.add(_state(path))


def remove(path: Path) -> None:
    """Delete a chunk, then its index."""
    for file in (path, _index_of(path)):
        with suppress(OSError):
            file.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Delete what processes that have died left: unfinished files, and indexes without a chunk."""
    for draft in folder.glob("*.part"):
        with suppress(FileNotFoundError):  # its process has finished it in the meantime
            if time.time() - draft.stat().st_mtime > _ABANDONED_AFTER:
                draft.unlink()
    for index in folder.glob("*.index"):
        if not index.with_suffix(".npy").exists():
            remove(index)


def check_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The features need {needed / 1e9:,.2f} GB and {free / 1e9:,.2f} GB are free. Pass "
            "features=FeatureCache(folder) on another disk, FeatureCache(folder, dtype='float16') "
            "(half as much), or features=False",
            str(folder),
        )


def names_of(rows: NDArray[Any]) -> NDArray[Any] | None:
    """Return the names of rows; None if one of them is not a SHA-256."""
    try:
        names = np.frombuffer(binascii.unhexlify(rows["image"].tobytes()), NAME)
    except ValueError:
        return None
    return names if len(names) == len(rows) else None


def _read_names(path: Path) -> NDArray[Any] | None:
    """Return the names of a chunk's rows; without a good index, that is made from the chunk."""
    try:
        content = _index_of(path).read_bytes()
    except OSError:
        content = b""
    if _seal(path, content[32:]) == content[:32]:
        return np.frombuffer(content, NAME, offset=32)
    rows = _mapped(path)
    names = None if rows is None else names_of(rows)
    if names is not None:
        _write_index(path, names)
    return names


def _write_index(path: Path, names: NDArray[Any]) -> None:
    content = names.tobytes()
    with suppress(OSError), _draft(path.parent) as draft:  # it can be made again
        draft.write_bytes(_seal(path, content) + content)
        os.replace(draft, _index_of(path))


def _index_of(path: Path) -> Path:
    return path.with_suffix(".index")


def _seal(path: Path, content: bytes) -> bytes:
    """Return the digest that an index begins with; that of another chunk has another one."""
    digest = hashlib.sha256(path.stem.encode())
    digest.update(content)
    return digest.digest()


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


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Provide the path of a new file, which is deleted unless it was renamed."""
    draft = folder / f"{uuid.uuid4().hex}.part"
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


class _Hashing:
    """A file that computes the digest of what is written to it."""

    def __init__(self, file: Any) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, content: Any) -> None:
        self.digest.update(content)
        self._file.write(content)
