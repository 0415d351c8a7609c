"""Images to predict on, in whatever form people have them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_kit._data.decoding import decode, decode_image, decode_stream, resize
from finetune_kit._data.folders import ClassFolders, images_in
from finetune_kit._data.images import ImageSet
from finetune_kit._data.labels import remedy
from finetune_kit._data.paths import absence, as_path, exists, is_archive, is_folder
from finetune_kit._text import shortened
from finetune_kit._urls import is_url, shown_url

# From height and width to RGB pixels of that size.
Load = Callable[[tuple[int, int]], NDArray[np.uint8]]

_ACCEPTED = (
    "a path, a folder, a pattern such as 'new/*.png', an open binary file, a PIL image, uint8 "
    "pixels (n, h, w, 3) or (h, w, 3), an ImageSet, or a list of these except sets"
)


def as_inputs(images: Any) -> tuple[tuple[str, ...], tuple[Load, ...]]:
    """Return the name of each image, and a function that loads it.

    No image is read here. A file of a list, folder or pattern that cannot be read fails when it is
    loaded.

    Raises:
        FileNotFoundError: if the path of a file or folder does not exist.
        ValueError: if there is no image, or the type or the pixels do not fit.
    """
    pairs: list[tuple[str, Load]]
    if isinstance(images, ImageSet):
        source = images.source
        pairs = [
            (path, partial(source.load, row))
            for path, row in zip(images.paths, images.rows.tolist(), strict=True)
        ]
    elif isinstance(images, (str, os.PathLike)):
        pairs = [_one(file, 0) for file in _files(images)]
    elif isinstance(images, np.ndarray):
        pairs = [_one(each, i) for i, each in enumerate(_separate(images))]
    elif isinstance(images, Sequence) and not isinstance(images, (bytes, bytearray)):
        pairs = [pair for i, each in enumerate(images) for pair in _each(each, i)]
    else:
        pairs = [_one(images, 0)]
    if not pairs:
        raise ValueError("`images` must hold at least one image. Received: none")
    names, loads = zip(*pairs, strict=True)
    return names, loads


def _each(image: Any, i: int) -> Iterator[tuple[str, Load]]:
    """Yield the images of an element of a list: those in a folder, or a single one."""
    if isinstance(image, (str, os.PathLike)):
        path = _expanded(image)
        if is_folder(path) or is_archive(path):
            yield from (_one(file, 0) for file in _files(path))
            return
    yield _one(image, i)


def _one(image: Any, i: int) -> tuple[str, Load]:
    """Return name and load function of one image."""
    if isinstance(image, (str, os.PathLike)):
        path = _expanded(image)
        return path, partial(decode, path)
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or f"image {i}", partial(decode_image, image)
    if isinstance(image, np.ndarray):
        pixels = _separate(image)
        if len(pixels) != 1:
            raise ValueError(
                "Each array in the list `images` must be one image (h, w, 3); pass the array alone "
                f"if it holds several. Received: shape {image.shape}"
            )
        return f"image {i}", partial(_resized, pixels[0])
    if hasattr(image, "read"):
        name = getattr(image, "name", None)
        return name if isinstance(name, str) else f"image {i}", partial(decode_stream, image)
    hint = "; pass io.BytesIO(content)" if isinstance(image, (bytes, bytearray)) else ""
    raise ValueError(
        f"`images` must be {_ACCEPTED}{hint}. "
        f"Received: {shortened(image)} of type {type(image).__name__}"
    )


def _files(path: str | os.PathLike[str]) -> list[str]:
    """Return the file of a path, or all image files in a folder or of a pattern."""
    if re.match(r"https?://", str(path)):
        raise ValueError(
            "`images` must be files on this machine or in a bucket; download them first. "
            f"Received: images={shown_url(path)!r}"
        )
    text = _expanded(path)
    if is_folder(text) or is_archive(text):
        folder = as_path("images", text)
        found = ClassFolders(folder, {}, [], {})
        files = [str(file) for file in [*images_in(folder, found, set()), *found.closed]]
    elif os.path.lexists(text) or exists(text):
        files = [text]
    elif glob.has_magic(text) and not is_url(text):
        files = sorted(file for file in glob.glob(text, recursive=True) if os.path.isfile(file))
    else:
        raise FileNotFoundError(
            "`images` must be a file, a folder or a pattern such as 'new/*.png'. "
            f"Received: images={text!r}, which {absence(text)}"
        )
    if not files:
        kind = "a folder without image files" if exists(text) else "which matches no file"
        raise ValueError(f"`images` must hold at least one image. Received: {text!r}, {kind}")
    return files


def _expanded(path: str | os.PathLike[str]) -> str:
    return str(as_path("images", path)) if is_url(path) else os.path.expanduser(os.fspath(path))


def _separate(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an array of one or several images as uint8 `(n, h, w)` or `(n, h, w, 1 or 3)`."""
    one = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3))
    several = pixels[None] if one else pixels
    if several.ndim not in (3, 4) or (several.ndim == 4 and several.shape[-1] not in (1, 3)):
        raise ValueError(
            "`images` must have the shape (n, h, w, 3) or (h, w, 3), or gray (n, h, w, 1) or "
            f"(h, w). Received: shape {pixels.shape}"
        )
    if pixels.dtype != np.uint8:
        raise ValueError(f"`images` must hold uint8 pixels from 0 to 255{remedy(pixels)}")
    return several


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    gray = pixels.ndim == 3 and pixels.shape[-1] == 1
    return resize(Image.fromarray(pixels[..., 0] if gray else pixels), size)
