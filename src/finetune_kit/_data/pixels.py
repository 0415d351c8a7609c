"""Sources of images: files, arrays in memory, and several sources joined."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_kit._buckets import RemoteError
from finetune_kit._data.decoding import decode, decode_original, resize, undecodable
from finetune_kit._data.paths import digest_of
from finetune_kit._data.threads import in_threads
from finetune_kit._urls import is_url


class Source(Protocol):
    """The images of an `ImageSet`, by number. Implementations can be pickled."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the RGB pixels of image i, resized: uint8 `(height, width, 3)`."""
        ...

    def original(self, i: int) -> NDArray[np.uint8]:
        """Return the RGB pixels of image i in its original size."""
        ...

    def digest(self, i: int) -> str:
        """Return the SHA-256 of the content of image i, in hexadecimal."""
        ...

    def file(self, i: int) -> str | None:
        """Return the path of image i, or None if it is not a file."""
        ...

    def place(self, i: int) -> Hashable:
        """Return where image i lies: equal for two sets that share it, not for equal copies."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files, which are decoded on demand.

    Attributes:
        paths: the files.
        known: their digests, if a manifest names them; a file is compared when it is decoded.
    """

    paths: tuple[str, ...]
    known: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Decode and resize file i."""
        return decode(self._unchanged(i), size)

    def original(self, i: int) -> NDArray[np.uint8]:
        """Decode file i in its original size."""
        return decode_original(self._unchanged(i))

    def digest(self, i: int) -> str:
        """Return the known digest of file i, or hash it, once in a process."""
        return file_digest(self.paths[i]) if self.known is None else self.known[i]

    def file(self, i: int) -> str | None:
        """Return the path as it was given."""
        return self.paths[i]

    def place(self, i: int) -> Hashable:
        """Return the file behind links."""
        return os.path.realpath(self.paths[i])

    def _unchanged(self, i: int) -> str:
        path = self.paths[i]
        if self.known is not None and file_digest(path) != self.known[i]:
            raise ValueError(
                "Each image must be unchanged since its manifest was written; read_manifest(file) "
                "lists all that have changed. Restore them, or write the manifest again. "
                f"Received: {path!r}, which has changed"
            )
        return path


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images in memory, uint8 `(n, height, width, 3)`. The pixels must not change."""

    pixels: NDArray[np.uint8]
    _digests: dict[int, str] = field(init=False, repr=False, default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Resize image i."""
        return resize(Image.fromarray(self.pixels[i]), size)

    def original(self, i: int) -> NDArray[np.uint8]:
        """Return image i as it is."""
        return self.pixels[i]

    def digest(self, i: int) -> str:
        """Hash the shape and the pixels of image i, once."""
        if i not in self._digests:
            self._digests[i] = pixel_digest(self.pixels[i])
        return self._digests[i]

    def file(self, i: int) -> str | None:
        """Return None."""
        return None

    def place(self, i: int) -> Hashable:
        """Return the address of the pixels."""
        address: int = self.pixels[i].__array_interface__["data"][0]
        return address


@dataclass(frozen=True, eq=False)
class Joined:
    """The images of several sources, one source after the other."""

    sources: tuple[Source, ...]
    _ends: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", tuple(accumulate(map(len, self.sources))))

    def __len__(self) -> int:
        return self._ends[-1]

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Load image i from its source."""
        source, row = self.find(i)
        return source.load(row, size)

    def original(self, i: int) -> NDArray[np.uint8]:
        """Return image i of its source in its original size."""
        source, row = self.find(i)
        return source.original(row)

    def digest(self, i: int) -> str:
        """Return the digest of image i of its source."""
        source, row = self.find(i)
        return source.digest(row)

    def file(self, i: int) -> str | None:
        """Return the path of image i of its source, or None."""
        source, row = self.find(i)
        return source.file(row)

    def place(self, i: int) -> Hashable:
        """Return where image i of its source lies."""
        source, row = self.find(i)
        return source.place(row)

    def find(self, i: int) -> tuple[Source, int]:
        """Return the source that holds image i, and its number there."""
        number = bisect_right(self._ends, i)
        return self.sources[number], i - (self._ends[number - 1] if number else 0)


def joined(sources: Sequence[Source]) -> Source:
    """Return one source with the images of several. Nested joins are flattened."""
    flat: list[Source] = []
    for source in sources:
        flat += source.sources if isinstance(source, Joined) else [source]
    return flat[0] if len(flat) == 1 else Joined(tuple(flat))


def has_files_only(source: Source) -> bool:
    """Return whether all images of a source are files."""
    parts = source.sources if isinstance(source, Joined) else (source,)
    return all(isinstance(part, Files) for part in parts)


def origins(source: Source, rows: Sequence[int]) -> set[Hashable]:
    """Return what identifies each image without reading it: its file, or its place in an array."""
    parts = [source.find(row) if isinstance(source, Joined) else (source, row) for row in rows]
    return {part.file(row) or (id(part), row) for part, row in parts}


def pixel_digest(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of the shape and the pixels of an image."""
    content = str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()
    return hashlib.sha256(content).hexdigest()


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file. It is read again only after its size or a time has changed."""
    try:
        return digest_of(path)
    except RemoteError:
        raise
    except (OSError, ValueError) as error:
        raise undecodable(path, error) from error


def load_pixels(
    source: Source, rows: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Load images: uint8 `(n, height, width, 3)`."""
    batch = np.empty((len(rows), *size, 3), np.uint8)
    load, numbers = partial(source.load, size=size), rows.tolist()
    loaded = in_threads(load, numbers, remote=True) if is_remote(source) else map(load, numbers)
    for i, pixels in enumerate(loaded):
        batch[i] = pixels
    return batch


def is_remote(source: Source) -> bool:
    """Return whether images lie in a bucket: reading them waits for the network."""
    parts = source.sources if isinstance(source, Joined) else (source,)
    return any(len(part) and is_url(part.file(0)) for part in parts)
