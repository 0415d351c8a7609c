"""A folder or arrays come in, an `ImageSet` goes out: where the images are and what they show.

Pixels are decoded only when asked for, batch by batch, so a data set may be far larger than memory.
Whatever the file holds, what leaves this room is 8-bit RGB. It knows no model and no split.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from PIL import __version__ as pillow

from finetune_kit._checks import check_choice

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# How a file becomes pixels: part of the key of whatever is computed from them and kept.
DECODING = {"colours": "RGB", "resize": "bilinear, antialiased", "pillow": pillow, "version": 1}

_log = logging.getLogger("finetune_kit")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and what they show: a frozen value that decodes nothing until `load` is called.

    Made by `read_image_folder` or `ImageSet.from_arrays`.

    Attributes:
        paths: the image files, or names made up for images in memory.
        labels: class index of each image, int array `(n,)`.
        class_names: the classes in the order of their indices.
        groups: group number of each image (such as the patient), int array `(n,)`, or None.
        skipped: files and folders that were found but are no samples.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None
    skipped: tuple[str, ...] = field(default=(), repr=False)
    _pixels: NDArray[np.uint8] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        classes = ", ".join(f"{n}: {c:,}" for n, c in zip(self.class_names, counts, strict=True))
        return f"ImageSet({len(self):,} images; {classes})"

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
            ValueError: if a file cannot be decoded; names it.
        """
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        batch = np.empty((len(chosen), *size, 3), np.uint8)
        for row, index in enumerate(chosen):
            if self._pixels is None:
                batch[row] = _decode(self.paths[index], size)
            else:
                batch[row] = _resize(Image.fromarray(self._pixels[index]), size)
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
            labels: class index of each image, or its class name, `(n,)`.
            class_names: the classes in the order of their indices. Defaults to the sorted names
                found in `labels` (or the indices, as text).
            groups: a group (such as the patient) for each image, any values, `(n,)`.

        Returns:
            An `ImageSet`.

        Raises:
            ValueError: if shapes, dtype or labels are not as above.

        Example:
            >>> x = np.zeros((4, 32, 32, 3), np.uint8)
            >>> ImageSet.from_arrays(x, ["cat", "dog", "cat", "dog"])
            ImageSet(4 images; cat: 2, dog: 2)
        """
        pixels = np.asarray(x)
        if pixels.dtype != np.uint8:
            raise ValueError(
                "`x` must hold uint8 pixels from 0 to 255; for floats from 0 to 1 pass "
                f"(x * 255).round().astype('uint8'). Received: dtype {pixels.dtype}"
            )
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
            raise ValueError(
                "`x` must have the shape (n, h, w, 3), (n, h, w, 1) or (n, h, w). "
                f"Received: shape {np.shape(x)}"
            )
        if pixels.size and pixels.max() == 1:
            warnings.warn(
                "`x` should hold pixels from 0 to 255, and holds none above 1; if it was made from "
                "floats from 0 to 1, pass (x * 255).round().astype('uint8')",
                stacklevel=2,
            )
        names = np.asarray(labels)
        if names.shape != (len(pixels),):
            raise ValueError(
                f"`labels` must be one for each of the {len(pixels)} images. "
                f"Received: shape {names.shape}"
            )
        found = np.unique(names)
        by_index = np.issubdtype(names.dtype, np.integer) and class_names is not None
        known = [str(n) for n in (found if class_names is None else class_names)]
        bad = [
            n for n in found.tolist() if not (0 <= n < len(known) if by_index else str(n) in known)
        ]
        if bad:
            raise ValueError(f"`labels` must be among the classes {known}. Received: {bad[:10]}")
        rank = {name: i for i, name in enumerate(known)}
        indices = names if by_index else [rank[str(name)] for name in names]
        return cls(
            paths=tuple(f"image {i}" for i in range(len(pixels))),
            labels=np.asarray(indices, np.int64),
            class_names=tuple(known),
            groups=None if groups is None else _numbered(np.asarray(groups).tolist(), len(pixels)),
            _pixels=np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels,
        )


def read_image_folder(
    path: str | os.PathLike[str],
    *,
    groups: Callable[[str], Hashable] | None = None,
    on_error: str = "raise",
) -> ImageSet:
    """Find the images below a folder that holds one folder a class.

    Takes `ROOT/CLASS/*.png` (jpg, jpeg, bmp, gif, tif, tiff, webp) and the layout of the COVID-19
    Radiography Database: `ROOT/CLASS/images/*.png` with lung masks in `ROOT/CLASS/masks/` and
    tables beside the folders: only what lies in a class folder or its `images/` is a sample. What
    is skipped is logged once and kept in `ImageSet.skipped`. Hidden files are not looked at.

    Args:
        path: the folder that holds the class folders.
        groups: tells the group (such as the patient) of an image from its path relative to `path`.
            Defaults to no groups.
        on_error: what to do with files that are no readable image: `"raise"` (default) or
            `"skip"`. Only headers are read here; a file that is damaged further on is reported by
            `ImageSet.load`.

    Returns:
        An `ImageSet`, classes in alphabetical order (as scikit-learn's `LabelEncoder`), images of
        a class in the order of their names.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no class folders, or holds files that are no images.
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(
            f"`path` must be a folder that holds one folder a class. Received: {str(root)!r}, "
            f"which {'is a file' if root.exists() else 'does not exist'}"
        )
    classes: dict[str, list[Path]] = {}
    skipped: list[Path] = []
    for entry in _visible(root):
        found = _class_images(entry, skipped) if entry.is_dir() and entry.name != "masks" else []
        if found:
            classes[entry.name] = found
        else:
            skipped.append(entry)
    if not classes or set(classes) == {"images"}:
        raise ValueError(
            f"`path` must hold one folder a class with images in it, such as {root / 'CLASS'} or "
            f"{root / 'CLASS' / 'images'}. Received: {str(root)!r}, which holds "
            f"{[p.name for p in _visible(root)][:10]}"
        )
    files = [file for found in classes.values() for file in found]
    bad = {file: why for file in files if (why := _unreadable(file))}
    if bad and on_error == "raise":
        lines = "\n".join(f"  {file}: {why}" for file, why in list(bad.items())[:20])
        raise ValueError(
            f"All image files below {str(root)!r} must be readable; on_error='skip' leaves them "
            f"out. Received {len(bad)} that are not:\n{lines}{_more(len(bad) - 20)}"
        )
    samples = [
        (file, i) for i, found in enumerate(classes.values()) for file in found if file not in bad
    ]
    images = ImageSet(
        paths=tuple(str(file) for file, _ in samples),
        labels=np.array([label for _, label in samples], np.int64),
        class_names=tuple(classes),
        groups=groups
        and _numbered(
            [groups(file.relative_to(root).as_posix()) for file, _ in samples], len(samples)
        ),
        skipped=tuple(str(file) for file in [*skipped, *bad]),
    )
    if images.skipped:
        shown = [Path(file).relative_to(root).as_posix() for file in images.skipped[:4]]
        _log.warning(
            "%s: %r; skipped what is no sample: %s%s",
            root,
            images,
            ", ".join(shown),
            _more(len(images.skipped) - 4),
        )
    return images


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
            raise _undecodable(images.paths[index], error) from error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, np.asarray(indices).tolist(), chunksize=16))


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _class_images(folder: Path, skipped: list[Path]) -> list[Path]:
    """Image files of a class folder and of its `images/`; the rest is added to `skipped`."""
    found: list[Path] = []
    for entry in _visible(folder):
        if entry.name == "images" and entry.is_dir():
            found += _class_images(entry, skipped)
        elif entry.suffix.lower() in SUFFIXES and entry.is_file():
            found.append(entry)
        else:
            skipped.append(entry)
    return found


def _unreadable(file: Path) -> str:
    try:
        with Image.open(file):
            return ""
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{type(error).__name__}: {error}"


def _decode(file: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            # A JPEG can be decoded at an eighth of its size; twice the target loses no detail.
            image.draft(None, (2 * max(size), 2 * max(size)))
            return _resize(_to_rgb(ImageOps.exif_transpose(image)), size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _undecodable(file, error) from error


def _undecodable(file: str, error: Exception) -> ValueError:
    return ValueError(
        "Each image must be a file that Pillow can decode; remove it or repair it. "
        f"Received: {file!r}, which fails with {type(error).__name__}: {error}"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits are scaled, not clipped; what is transparent turns white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray((deep / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def _resize(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _numbered(groups: list[Any], count: int) -> NDArray[np.int64]:
    """Group numbers from 0, in the order in which the groups appear."""
    if len(groups) != count:
        raise ValueError(
            f"`groups` must be one for each of {count} images. Received: {len(groups)}"
        )
    rank = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.array([rank[group] for group in groups], np.int64)


def _more(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""
