"""Where the features of frozen prefixes are kept: `FeatureCache`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_kit._checks import check_choice, check_folder
from finetune_kit._features.engine import BACKENDS, check_backend
from finetune_kit._features.store import count_rows, entry_folders
from finetune_kit._files import make_folder

DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class CacheEntry:
    """One entry of a feature cache: the output of one frozen prefix for some images.

    Attributes:
        key: name of its folder. It depends on the graph and weights of the prefix, the
            preprocessing, the image size and the storage type.
        model: name of the model that the prefix was cut from.
        shapes: shape of the features of one image, for each tensor that crosses the cut.
        dtype: storage type, such as `"float32"`.
        images: number of images (or augmented copies).
        bytes: size on disk.
        folder: path of its folder.
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
    """A folder in which the output of the frozen prefix is kept for each image.

    Pass it as `fine_tune(..., features=...)`. A later run with the same frozen prefix, image size
    and images starts to train at once. A path alone is a short form of `FeatureCache(path)`, None
    of `FeatureCache()`, and False switches the cache off.

    Args:
        folder: created if it does not exist. None (default): a temporary folder, removed after the
            run; with `run_dir` it lies there, so that it survives an interruption.
        dtype: how features are stored: `"float32"` (default) or `"float16"`, which takes half the
            space and rounds them to three decimal digits.
        backend: the Keras backend that computes the features, in a process of its own:
            `"openvino"` (for CPUs), `"tensorflow"`, `"jax"` or `"torch"`. Defaults to None: the
            backend of the training. Layers of your own must be defined in a module that can be
            imported. The outputs for two images are compared with those of the training backend.
            Features of different backends are different entries.

    Raises:
        ValueError: if `folder` is a file, or `dtype` or `backend` has another value.

    Example:
        >>> cache = FeatureCache("never-used")
        >>> cache.entries(), cache.size
        ((), 0)
    """

    folder: str | os.PathLike[str] | None = None
    dtype: str = "float32"
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            check_folder("folder", self.folder)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("backend", self.backend, (None, *BACKENDS))

    def entries(self) -> tuple[CacheEntry, ...]:
        """Return what the cache holds, the entry used last at the end."""
        if self.folder is None:
            return ()
        folders = entry_folders(Path(self.folder).expanduser())
        used = {folder: (folder / "entry.json").stat().st_mtime for folder in folders}
        return tuple(_entry(folder) for folder in sorted(folders, key=lambda f: used[f]))

    @property
    def size(self) -> int:
        """Size on disk, in bytes."""
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
        entries = self.entries()
        chosen = [entry for entry in entries if key in (None, entry.key)]
        if key is not None and not chosen:
            raise ValueError(
                f"`key` must be that of an entry of {str(self.folder)!r}, one of "
                f"{[entry.key for entry in entries]}. Received: key={key!r}"
            )
        for entry in chosen:
            shutil.rmtree(entry.folder)
        return sum(entry.bytes for entry in chosen)


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
    check_folder("features", features, or_else=options)
    return FeatureCache(features)


@contextmanager
def opened(
    cache: FeatureCache | None, run_dir: str | os.PathLike[str] | None
) -> Iterator[Path | None]:
    """Provide the folder to keep features in; None if there is no cache.

    Without a folder of its own, a cache lies in `run_dir`, where it survives an interruption, or
    else in a temporary folder. Both are removed when the run has ended.
    """
    if cache is None:
        yield None
    elif cache.folder is not None:
        yield make_folder("features", cache.folder)
    elif run_dir is not None:
        folder = make_folder("run_dir", Path(run_dir) / "features")
        yield folder
        shutil.rmtree(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="finetune-kit-") as temporary:
            yield Path(temporary)


def _entry(folder: Path) -> CacheEntry:
    about = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    return CacheEntry(
        key=folder.name,
        model=about["model"],
        shapes=tuple(tuple(shape) for shape in about["shapes"]),
        dtype=about["dtype"],
        images=count_rows(folder),
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        folder=str(folder),
    )
