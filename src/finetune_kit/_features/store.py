"""Chunks of features on disk.

A cache holds one folder for each entry (prefix graph and weights, decoding, image size, storage
type). An entry holds chunks, a chunk holds rows, and a row is an image's digest with its features.
A chunk is a plain `.npy` file named by the SHA-256 of its own bytes: it is whole or it is not used,
and processes that write the same rows write the same file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import WORKERS

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


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk, mapped into memory. It is pickled as its path, so another process maps it too."""

    path: Path
    rows: NDArray[Any]
    names: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_chunk, (self.path,)


def open_chunk(path: Path) -> Chunk | None:
    """Map a chunk into memory; None if the file is not one."""
    try:
        rows: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    if not rows.dtype.names:
        return None
    names = tuple(name.decode(errors="replace") for name in rows["image"].tolist())
    # A plain array is indexed in a third of the time that a np.memmap takes.
    return Chunk(path, rows.view(np.ndarray), names)


def open_chunks(folder: Path, wanted: set[str], record: np.dtype[Any]) -> list[Chunk]:
    """Map the chunks that hold wanted rows; files that are not chunks are deleted."""

    def read(path: Path) -> Chunk | None:
        chunk = open_chunk(path)
        if chunk is None or chunk.rows.dtype != record:
            path.unlink(missing_ok=True)
            return None
        return None if wanted.isdisjoint(chunk.names) else chunk

    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(read, sorted(folder.glob("*.npy")))
        return [chunk for chunk in found if chunk is not None]


def without_damaged(chunks: list[Chunk]) -> list[Chunk]:
    """Return the chunks whose bytes match their name, and delete the others.

    Each chunk is read once in a process.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        whole = list(pool.map(_is_whole, [chunk.path for chunk in chunks]))
    for chunk, good in zip(chunks, whole, strict=True):
        if not good:
            chunk.path.unlink(missing_ok=True)
    return [chunk for chunk, good in zip(chunks, whole, strict=True) if good]


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


def write_chunk(folder: Path, rows: NDArray[Any]) -> Chunk:
    """Write a chunk under the name of its own digest, whole or not at all, and map it."""
    draft = folder / f"{uuid.uuid4().hex}.part"
    try:
        with draft.open("wb") as file:
            hashing = _Hashing(file)
            np.save(hashing, rows, allow_pickle=False)
        path = folder / f"{hashing.digest.hexdigest()}.npy"
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    _verified.add(_state(path))
    chunk = open_chunk(path)
    if chunk is None:
        raise OSError(f"The file system does not keep what is written to it: {path}")
    return chunk


def remove_abandoned(folder: Path) -> None:
    """Delete the unfinished files of processes that have died."""
    for draft in folder.glob("*.part"):
        with suppress(FileNotFoundError):  # its process has finished it in the meantime
            if time.time() - draft.stat().st_mtime > _ABANDONED_AFTER:
                draft.unlink()


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
