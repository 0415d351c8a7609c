"""The folder of a features cache comes in, what it holds goes out, and can be deleted."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune_kit._checks import check_folder
from finetune_kit._features.store import entry_folders, mapped, row_names


@dataclass(frozen=True)
class CachedFeatures:
    """One entry of a features cache: what one frozen prefix put out for some images.

    Attributes:
        key: name of its folder; changes with the prefix's graph and weights, the preprocessing,
            the image size and the storage type.
        model: name of the model that the prefix was cut from.
        shapes: shape of the features of one image, for each tensor that crosses the cut.
        dtype: storage type, such as `"float32"`.
        images: number of images (or augmented views) it holds.
        bytes: its size on disk.
        folder: where it lies.
    """

    key: str
    model: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    images: int
    bytes: int
    folder: str


def cached_features(cache_dir: str | os.PathLike[str]) -> tuple[CachedFeatures, ...]:
    """List what a features cache holds, the entry used last at the end.

    Args:
        cache_dir: the folder that was given to `fine_tune(cache_dir=...)`.

    Returns:
        A tuple of `CachedFeatures`; empty if there is no such folder.

    Raises:
        ValueError: if that is no path of a folder.

    Example:
        >>> cached_features("never-used")
        ()
    """
    check_folder("cache_dir", cache_dir)
    found = []
    for folder in entry_folders(Path(cache_dir)):
        about = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        chunks = [chunk for path in folder.glob("*.npy") if (chunk := mapped(path)) is not None]
        entry = CachedFeatures(
            key=folder.name,
            model=about["model"],
            shapes=tuple(tuple(shape) for shape in about["shapes"]),
            dtype=about["dtype"],
            images=len({name for chunk in chunks for name in row_names(chunk)}),
            bytes=sum(path.stat().st_size for path in folder.iterdir()),
            folder=str(folder),
        )
        found.append(((folder / "entry.json").stat().st_mtime, entry))
    return tuple(entry for _, entry in sorted(found, key=lambda pair: pair[0]))


def clear_cached_features(cache_dir: str | os.PathLike[str], key: str | None = None) -> int:
    """Delete the entries of a features cache, and nothing else that lies in its folder.

    Args:
        cache_dir: the folder that was given to `fine_tune(cache_dir=...)`.
        key: of the entry to delete, see `cached_features`. Defaults to all.

    Returns:
        How many bytes that freed.

    Raises:
        ValueError: if there is no entry of that key, or `cache_dir` is no path of a folder.
    """
    entries = cached_features(cache_dir)
    chosen = [entry for entry in entries if key in (None, entry.key)]
    if key is not None and not chosen:
        raise ValueError(
            f"`key` must be that of an entry of {str(cache_dir)!r}, one of "
            f"{[entry.key for entry in entries]}. Received: key={key!r}"
        )
    for entry in chosen:
        shutil.rmtree(entry.folder)
    return sum(entry.bytes for entry in chosen)
