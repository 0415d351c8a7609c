"""Where the features of frozen prefixes are kept: `FeatureCache`."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_kit._buckets import check_url
from finetune_kit._checks import check_choice, check_count, check_folder
from finetune_kit._features.engine import BACKENDS, check_backend
from finetune_kit._features.place import Copies, Place
from finetune_kit._features.store import count_rows, entry_places
from finetune_kit._files import make_folder
from finetune_kit._processes import is_first
from finetune_kit._urls import Url, is_url

DTYPES = ("float32", "float16")
_LOCAL_BYTES = 50 * 10**9


@dataclass(frozen=True)
class CacheEntry:
    """One entry of a feature cache: the output of one frozen prefix for some images.

    Attributes:
        key: name of its folder. It depends on the graph and weights of the prefix, the
            preprocessing, the image size, the storage type, and the backend with its version.
        model: name of the model that the prefix was cut from; `"?"` if its `entry.json` is lost;
            `shapes` is then empty and `dtype` `"?"`. Its features can still be used.
        shapes: shape of the features of one image, for each tensor that crosses the cut.
        dtype: storage type, such as `"float32"`.
        images: number of images (or augmented copies).
        bytes: size on disk, or in the bucket.
        folder: path or URL of its folder.
    """

    key: str
    model: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    images: int
    bytes: int
    folder: str


@dataclass(frozen=True)
class FeatureCache:
    """A folder, or a bucket, in which the output of the frozen prefix is kept for each image.

    Pass it as `fine_tune(..., features=...)`. A later run with the same frozen prefix, image size
    and images starts to train at once. A path alone is a short form of `FeatureCache(path)`, None
    of `FeatureCache()`, and False switches the cache off.

    Args:
        folder: created if it does not exist. None (default): a temporary folder, removed after the
            run; with `run_dir` it lies there, so that it survives an interruption. A URL such as
            `"s3://bucket/features"` keeps the features in a bucket (with the extra `cloud`).
        dtype: how features are stored: `"float32"` (default) or `"float16"`, which takes half the
            space and rounds them to three decimal digits.
        backend: the Keras backend that computes the features, in a process of its own:
            `"openvino"` (for CPUs), `"tensorflow"`, `"jax"` or `"torch"`. Defaults to None: the
            backend of the training. Layers of your own must be defined in a module that can be
            imported. The outputs for two images are compared with those of the training backend.
            Features of different backends, or versions of them, are different entries.
        local_folder: with a URL, the folder for copies of what was read from the bucket. Several
            caches may share it. Defaults to None: `finetune-kit` in the user's cache folder
            (`$XDG_CACHE_HOME`, or `~/.cache`).
        local_bytes: the most that the copies in `local_folder` take, in bytes; those that were used
            longest ago are deleted. Defaults to 50 GB. A training that reads more than this
            downloads features again in each epoch.

    Raises:
        ValueError: if `folder` is a file or a URL with a password, or another argument has another
            value.
        ImportError: if `folder` is a URL, and fsspec or its package for such URLs is missing.

    Example:
        >>> cache = FeatureCache("never-used")
        >>> cache.entries(), cache.size
        ((), 0)
    """

    folder: str | os.PathLike[str] | None = None
    dtype: str = "float32"
    backend: str | None = None
    local_folder: str | os.PathLike[str] | None = None
    local_bytes: int = _LOCAL_BYTES

    def __post_init__(self) -> None:
        if is_url(self.folder):
            check_url("folder", self.folder)
        elif self.folder is not None:
            check_folder("folder", self.folder)
        if self.local_folder is not None:
            check_folder("local_folder", self.local_folder)
        check_count("local_bytes", self.local_bytes)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("backend", self.backend, (None, *BACKENDS))

    def entries(self) -> tuple[CacheEntry, ...]:
        """Return what the cache holds, the entry used last at the end."""
        return tuple(entry for _, entry in self._found())

    def _found(self) -> list[tuple[Place, CacheEntry]]:
        if self.folder is None:
            return []
        places = [(*found, found[0].files()) for found in entry_places(place_of(self))]
        places.sort(key=lambda found: found[2].get("entry.json", (0, 0.0))[1])  # its last change
        return [(place, _entry(place, about, files)) for place, about, files in places]

    @property
    def size(self) -> int:
        """Size on disk, or in the bucket, in bytes."""
        return sum(entry.bytes for entry in self.entries())

    def clear(self, key: str | None = None) -> int:
        """Delete entries of the cache, and nothing else in its folder.

        Args:
            key: of the entry to delete, see `entries`. Defaults to all entries.

        Returns:
            The number of bytes that were freed.

        Raises:
            ValueError: if there is no entry with that key.
        """
        found = self._found()
        chosen = [(place, entry) for place, entry in found if key in (None, entry.key)]
        if key is not None and not chosen:
            raise ValueError(
                f"`key` must be that of an entry of {str(self.folder)!r}, one of "
                f"{[entry.key for _, entry in found]}. Received: key={key!r}"
            )
        for place, _ in chosen:
            place.clear()
        return sum(entry.bytes for _, entry in chosen)


def as_cache(features: Any) -> FeatureCache | None:
    """Return the cache for what a user passed; None if features are switched off.

    Raises:
        ValueError: if it is none of what `features` accepts.
        ImportError: if the backend of the cache is not installed.
    """
    if features is False:
        return None
    if features is None:
        return FeatureCache()
    if isinstance(features, FeatureCache):
        check_backend(features.backend)
        return features
    options = ", a FeatureCache, None (a temporary folder) or False (off)"
    if not is_url(features):
        check_folder("features", features, or_else=options)
    return FeatureCache(features)


def place_of(cache: FeatureCache) -> Place:
    """Return where a cache lies that has a folder."""
    if not is_url(cache.folder):
        return Place(Path(cache.folder or "").expanduser())
    url = Url(cache.folder or "")
    copies = Copies(_local_folder(cache), cache.local_bytes)
    name = hashlib.sha256(str(url).encode()).hexdigest()[:16]
    return Place(copies.folder / name, url, copies)


def _local_folder(cache: FeatureCache) -> Path:
    folder = cache.local_folder
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "finetune-kit"
    return Path(folder).expanduser()


def kept_cache(features: Any) -> FeatureCache:
    """Return the cache for what a user passed, where features must be kept; errors as above."""
    cache = as_cache(features)
    if cache is None:
        raise ValueError(
            "`features` must be a FeatureCache, a folder or None (a temporary folder), because "
            "features are kept here. Received: features=False"
        )
    return cache


@contextmanager
def opened(
    cache: FeatureCache | None, run_dir: str | os.PathLike[str] | None
) -> Iterator[FeatureCache | None]:
    """Provide the cache with a folder that exists; None if there is no cache.

    Without a folder of its own, a cache lies in `run_dir`, where it survives an interruption, or
    else in a temporary folder. Both are removed when the run has ended.
    """
    if cache is None:
        yield None
    elif is_url(cache.folder):
        make_folder("local_folder", _local_folder(cache))
        yield cache
    elif cache.folder is not None:
        yield replace(cache, folder=make_folder("features", cache.folder))
    elif run_dir is not None:
        folder = make_folder("run_dir", Path(run_dir) / "features")
        yield replace(cache, folder=folder)
        if is_first():
            shutil.rmtree(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="finetune-kit-") as temporary:
            yield replace(cache, folder=temporary)


def _entry(
    place: Place, about: Mapping[str, Any], files: Mapping[str, tuple[int, float]]
) -> CacheEntry:
    return CacheEntry(
        key=place.folder.name,
        model=about.get("model", "?"),
        shapes=tuple(tuple(shape) for shape in about.get("shapes", ())),
        dtype=about.get("dtype", "?"),
        images=count_rows(place),
        bytes=sum(size for size, _ in files.values()),
        folder=str(place),
    )
