"""Images and what they show, as one frozen value: `ImageSet`.

Pixels are decoded only when asked for, batch by batch, so a data set may be far larger than memory.
It knows no model and no split.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from finetune_kit._checks import check_indices, is_count
from finetune_kit._data.decoding import decode, resize, undecodable


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and what they show: a frozen value that decodes nothing until `load` is called.

    Made by `read_image_folder`, `read_image_table`, `read_manifest` or `ImageSet.from_arrays`.

    Attributes:
        paths: the image files, or names made up for images in memory.
        labels: class index of each image, int array `(n,)`; or, for multi-label images, 0 or 1 for
            each label, int array `(n, num_labels)`.
        class_names: the classes (or labels) in the order of their indices.
        groups: group number of each image (such as the patient), int array `(n,)`, or None.
        skipped: files and folders that were found but are no samples.
        manifest: fingerprint of the manifest that it was read from, or None.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None
    skipped: tuple[str, ...] = field(default=(), repr=False)
    manifest: str | None = None
    _pixels: NDArray[np.uint8] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        count = len(self.paths)
        labels, names = _labelled(np.asarray(self.labels), self.class_names, count)
        known: dict[str, Any] = {
            "paths": tuple(map(os.fspath, self.paths)),
            "labels": labels,
            "class_names": names,
        }
        if self.groups is not None and np.asarray(self.groups).dtype != np.int64:
            known["groups"] = numbered(np.asarray(self.groups).tolist(), count)
        for name, value in known.items():  # frozen: set once, here
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        counts = zip(self.class_names, self.counts(), strict=True)
        many = "multi-label; " if self.labels.ndim == 2 else ""
        return (
            f"ImageSet({len(self):,} images; {many}{', '.join(f'{n}: {c:,}' for n, c in counts)})"
        )

    def counts(self, indices: ArrayLike | None = None) -> NDArray[np.int64]:
        """How many images show each class, int array `(num_classes,)`.

        Args:
            indices: which images to count; None (default): all.
        """
        labels = self.labels if indices is None else self.labels[np.asarray(indices, np.int64)]
        if labels.ndim == 2:
            return labels.sum(axis=0)
        return np.bincount(labels, minlength=len(self.class_names))

    def load(
        self, indices: ArrayLike | None = None, size: tuple[int, int] = (224, 224)
    ) -> NDArray[np.uint8]:
        """Decode images.

        Args:
            indices: which images, in this order; None (default): all.
            size: height and width in pixels that each image is resized to (bilinear, with
                antialiasing), aspect ratio not kept. Defaults to 224 x 224.

        Returns:
            RGB pixels from 0 to 255, uint8 `(n, height, width, 3)`.

        Raises:
            ValueError: if a file cannot be decoded (names it), or there is no such index.
        """
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices)
        check_indices("indices", chosen, len(self))
        if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(is_count, size)):
            raise ValueError(
                "`size` must be height and width, whole numbers such as (224, 224). "
                f"Received: size={size!r}"
            )
        batch = np.empty((len(chosen), *size, 3), np.uint8)
        for row, index in enumerate(chosen):
            if self._pixels is None:
                batch[row] = decode(self.paths[index], size)
            else:
                batch[row] = resize(Image.fromarray(self._pixels[index]), size)
        return batch

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike,
        labels: ArrayLike,
        class_names: Sequence[str] | None = None,
        groups: ArrayLike | None = None,
    ) -> ImageSet:
        """Images that are in memory already.

        Args:
            x: pixels from 0 to 255, uint8 `(n, h, w, 3)` RGB, `(n, h, w, 1)` or `(n, h, w)` gray.
            labels: class index of each image, or its class name, `(n,)`; or, for multi-label
                images, 0 or 1 for each label, `(n, num_labels)`.
            class_names: the classes (or labels) in the order of their indices. Defaults to the
                sorted names found in `labels` (or the indices, as text).
            groups: a group (such as the patient) for each image, any values, `(n,)`.

        Returns:
            An `ImageSet`.

        Raises:
            ValueError: if shapes, dtype or labels are not as above.

        Example:
            >>> x = np.full((4, 32, 32, 3), 128, np.uint8)
            >>> ImageSet.from_arrays(x, ["cat", "dog", "cat", "dog"])
            ImageSet(4 images; cat: 2, dog: 2)
        """
        pixels = np.asarray(x)
        if pixels.dtype != np.uint8:
            raise ValueError(f"`x` must hold uint8 pixels from 0 to 255{_mending(pixels)}")
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
            raise ValueError(
                "`x` must have the shape (n, h, w, 3), (n, h, w, 1) or (n, h, w). "
                f"Received: shape {np.shape(x)}"
            )
        if pixels.size and pixels.max() <= 1:
            warnings.warn(
                "`x` should hold pixels from 0 to 255, and holds none above 1; if it was made from "
                "floats from 0 to 1, pass (x * 255).round().astype('uint8')",
                stacklevel=2,
            )
        indices, names = _labelled(np.asarray(labels), class_names, len(pixels))
        if indices.ndim == 2 and (indices.sum(axis=1) == 1).all():
            warnings.warn(
                "`labels` of shape (n, k) are those of images with several labels, and each of "
                "these has one; if they are one-hot, pass labels.argmax(axis=1)",
                stacklevel=2,
            )
        return cls(
            paths=tuple(f"image {i}" for i in range(len(pixels))),
            labels=indices,
            class_names=names,
            groups=None if groups is None else numbered(np.asarray(groups).tolist(), len(pixels)),
            _pixels=np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels,
        )


def _mending(pixels: NDArray[Any]) -> str:
    """What to do with pixels that are no uint8, and what they are."""
    if not pixels.size or not np.issubdtype(pixels.dtype, np.number):
        return f". Received: dtype {pixels.dtype}"
    low, high = pixels.min(), pixels.max()
    pass_on = "scale them to that range"
    if low >= 0 and high <= 255:
        pass_on = "x.round().astype('uint8')" if high > 1 else "(x * 255).round().astype('uint8')"
        pass_on = f"pass {pass_on}"
    return f"; {pass_on}. Received: dtype {pixels.dtype}, from {low:.4g} to {high:.4g}"


def content_digests(images: ImageSet, indices: ArrayLike) -> list[str]:
    """SHA-256 of what each image holds: of its file, or of its pixels in memory, as hexadecimal."""

    def digest(index: int) -> str:
        if images._pixels is not None:
            pixels = np.ascontiguousarray(images._pixels[index])
            return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        try:
            with open(images.paths[index], "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise undecodable(images.paths[index], error) from error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, np.asarray(indices).tolist(), chunksize=16))


def numbered(groups: Sequence[Any], count: int) -> NDArray[np.int64]:
    """Group numbers from 0, in the order in which the groups appear."""
    if len(groups) != count:
        raise ValueError(
            f"`groups` must be one for each of {count} images. Received: {len(groups)}"
        )
    if any(isinstance(group, list) or group is None or group != group for group in groups):
        raise ValueError(
            "`groups` must be one value for each image, such as the patient, and none missing. "
            f"Received: {[g for g in groups if isinstance(g, list) or g is None or g != g][:3]}"
        )
    rank = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.array([rank[group] for group in groups], np.int64)


def _labelled(
    labels: NDArray[Any], class_names: Sequence[str] | None, count: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as class indices (or a matrix of 0 and 1), and the names of the classes."""
    if labels.ndim == 2 and len(labels) == count:
        return _matrix(labels, class_names)
    if labels.shape != (count,):
        raise ValueError(
            f"`labels` must be one for each of the {count} images. Received: shape {labels.shape}"
        )
    if labels.dtype == object or np.issubdtype(labels.dtype, np.floating):
        nothing = [i for i, label in enumerate(labels) if label is None or label != label]
        if nothing:
            raise ValueError(
                f"`labels` must hold no gaps. Received: none for images {nothing[:10]}"
            )
        labels = labels.astype(str) if labels.dtype == object else labels
    found = np.unique(labels)
    by_index = np.issubdtype(labels.dtype, np.integer) and class_names is not None
    known = [str(n) for n in (found if class_names is None else class_names)]
    bad = [n for n in found.tolist() if not (0 <= n < len(known) if by_index else str(n) in known)]
    if bad:
        raise ValueError(f"`labels` must be among the classes {known}. Received: {bad[:10]}")
    rank = {name: i for i, name in enumerate(known)}
    indices = labels if by_index else [rank[str(name)] for name in labels]
    return np.asarray(indices, np.int64), tuple(known)


def _matrix(
    labels: NDArray[Any], class_names: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    width = labels.shape[1]
    names = tuple(map(str, range(width) if class_names is None else class_names))
    if not width or len(names) != width or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            "`labels` of shape (n, num_labels) must be 0 or 1, one column for each name in "
            f"`class_names`. Received: shape {labels.shape}, {len(names)} names, values "
            f"{np.unique(labels)[:5].tolist()}"
        )
    return labels.astype(np.int64), names
