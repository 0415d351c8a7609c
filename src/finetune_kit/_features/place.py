"""Where the files of a feature cache lie: in a folder, or in a bucket with copies in a folder."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_kit import _buckets
from finetune_kit._buckets import THREADS
from finetune_kit._data.batches import WORKERS
from finetune_kit._urls import Url

_RESERVE = 256 << 20  # bytes of the disk that copies leave free


@dataclass(frozen=True)
class Copies:
    """A folder for copies of what lies in buckets: those used last, up to `limit` bytes."""

    folder: Path
    limit: int

    def make_room(self, needed: int) -> None:
        """Delete the chunks that were used longest ago, until `needed` bytes have room.

        A chunk that is mapped into memory can still be read after that.

        Raises:
            OSError: if the disk is too full even without them.
        """
        found = []
        for path in self.folder.glob("*/*/*.npy"):
            with suppress(OSError):  # another process has deleted it
                stat = path.stat()
                found.append((stat.st_atime_ns, stat.st_size, path))
        used = sum(size for _, size, _ in found)
        free = shutil.disk_usage(self.folder).free
        excess = max(used + needed - self.limit, needed + _RESERVE - free)
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            with suppress(OSError):
                path.unlink()
                excess -= size
        if needed > (free := shutil.disk_usage(self.folder).free):
            raise OSError(
                errno.ENOSPC,
                f"The copies of features from a bucket need {needed / 1e6:,.0f} MB more, and "
                f"{free / 1e6:,.0f} MB are free. Free space, or pass "
                "FeatureCache(url, local_folder=...) with a folder on another disk",
                str(self.folder),
            )


@dataclass(frozen=True)
class Place:
    """A folder of a feature cache.

    Files are read and written in `folder`. Of a cache in a bucket this holds copies: a file is
    downloaded when it is used first, and uploaded when it is written.

    Attributes:
        folder: the folder on this machine.
        url: the folder in the bucket, or None.
        copies: the folder for copies that `folder` lies in, or None.
    """

    folder: Path
    url: Url | None = None
    copies: Copies | None = None

    def __str__(self) -> str:
        return str(self.url or self.folder)

    def at(self, name: str) -> Place:
        """Return a folder in this one."""
        url = None if self.url is None else self.url / name
        return replace(self, folder=self.folder / name, url=url)

    @property
    def threads(self) -> int:
        """How many files are read at once."""
        return WORKERS if self.url is None else THREADS

    def folders(self) -> list[Place]:
        """Return the folders in this one."""
        if self.url is None:
            return [Place(folder) for folder in self.folder.glob("*/")]
        inside = [url for url in _buckets.listed(self.url) if _buckets.kind_of(url) == "directory"]
        return [self.at(url.name) for url in inside]

    def files(self) -> dict[str, tuple[int, float]]:
        """Return size and time of last change, in seconds, of each file by its name."""
        if self.url is None:
            stats = {path.name: path.stat() for path in self.folder.iterdir()}
            return {name: (stat.st_size, stat.st_mtime) for name, stat in stats.items()}
        listed = [url for url in _buckets.listed(self.url) if _buckets.kind_of(url) == "file"]
        facts = {url.name: url.facts or {} for url in listed}
        return {name: (int(f["size"] or 0), _buckets.modified(f)) for name, f in facts.items()}

    def chunks(self) -> list[Path]:
        """Return the chunks, sorted: where they lie in `folder`, or would."""
        if self.url is None:
            return sorted(self.folder.glob("*.npy"))
        return [self.folder / name for name in sorted(self.files()) if name.endswith(".npy")]

    def get(self, path: Path) -> Path:
        """Return the path of a file, which is downloaded if it is not here.

        Raises:
            FileNotFoundError: if it is not in the bucket either.
            OSError: if it cannot be read, or the disk is full.
        """
        if self.url is None:
            return path
        if path.exists():
            if path.suffix == ".npy":  # note when it was used, for `make_room`
                with suppress(OSError):
                    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with draft(self.folder) as part:
            _buckets.download(self.url / path.name, part)
            os.replace(part, path)
        return path

    def make_room(self, sizes: Mapping[Path, int]) -> None:
        """Delete copies until chunks of some sizes, in bytes, have room."""
        if self.copies is not None:
            self.copies.make_room(sum(n for path, n in sizes.items() if not path.exists()))

    def put(self, path: Path) -> None:
        """Upload a file that was written here."""
        if self.url is not None:
            _buckets.upload(path, self.url / path.name)

    def remove(self, *paths: Path) -> None:
        """Delete files, here and in the bucket."""
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if self.url is not None:
            _buckets.delete(self.url / path.name for path in paths)

    def clear(self) -> None:
        """Delete the folder and all files in it."""
        if self.url is not None:
            self.remove(*(self.folder / name for name in self.files()))
        shutil.rmtree(self.folder, ignore_errors=self.url is not None)


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """Provide the path of a new file, which is deleted unless it was renamed."""
    path = folder / f"{uuid.uuid4().hex}.part"
    try:
        yield path
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            error.filename = str(folder)  # which disk is full
        raise
    finally:
        path.unlink(missing_ok=True)
