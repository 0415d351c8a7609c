"""Where the pixels of an image come from: a file, or an array in memory."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_kit._data.decoding import decode, resize, undecodable


class Source(Protocol):
    """What an `ImageSet` needs to know of image i."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return RGB pixels, uint8 `(height, width, 3)`."""
        ...

    def digest(self, i: int) -> str:
        """Return the SHA-256 of the content, in hexadecimal."""
        ...

    def name(self, i: int) -> str:
        """Return the path of the file, or a name made up for an array."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files, decoded on demand."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Decode file i."""
        return decode(self.paths[i], size)

    def digest(self, i: int) -> str:
        """Hash file i, once in a process."""
        return file_digest(self.paths[i])

    def name(self, i: int) -> str:
        """Return the path as it was given."""
        return self.paths[i]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images in memory, uint8 `(n, height, width, 3)`."""

    pixels: NDArray[np.uint8]
    _digests: dict[int, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Resize image i."""
        return resize(Image.fromarray(self.pixels[i]), size)

    def digest(self, i: int) -> str:
        """Hash shape and pixels of image i, once."""
        if i not in self._digests:
            image = np.ascontiguousarray(self.pixels[i])
            content = str(image.shape).encode() + image.tobytes()
            self._digests[i] = hashlib.sha256(content).hexdigest()
        return self._digests[i]

    def name(self, i: int) -> str:
        """Return a name for messages and reports."""
        return f"image {i}"


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
        """Load image i from the source that holds it."""
        source, row = self._find(i)
        return source.load(row, size)

    def digest(self, i: int) -> str:
        """Return the digest that the source gives."""
        source, row = self._find(i)
        return source.digest(row)

    def name(self, i: int) -> str:
        """Return the name that the source gives."""
        source, row = self._find(i)
        return source.name(row)

    def _find(self, i: int) -> tuple[Source, int]:
        number = bisect_right(self._ends, i)
        return self.sources[number], i - (self._ends[number - 1] if number else 0)


def joined(sources: Sequence[Source]) -> Source:
    """Return one source that holds the images of several; nested joins are flattened."""
    flat: list[Source] = []
    for source in sources:
        flat += source.sources if isinstance(source, Joined) else [source]
    return Joined(tuple(flat))


_KNOWN: dict[str, tuple[int, int, str]] = {}  # by path: size, time of last change in ns, SHA-256


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file. It is read again only after its size or time has changed."""
    where = os.path.abspath(path)
    try:
        state = os.stat(where)
        size, changed, digest = _KNOWN.get(where, (-1, -1, ""))
        if (size, changed) == (state.st_size, state.st_mtime_ns):
            return digest
        with open(where, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise undecodable(path, error) from error
    _KNOWN[where] = (state.st_size, state.st_mtime_ns, digest)
    return digest
