"""Checks of the pixels, labels, class names and groups that users pass."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_kit._data.decoding import SUFFIXES
from finetune_kit._text import listed, plural, shortened


def rgb_pixels(x: ArrayLike, labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels as a read-only array, uint8 RGB `(n, height, width, 3)`."""
    try:
        pixels = np.asarray(x)
    except ValueError as error:  # NumPy's error for arrays of different shapes
        raise ValueError(
            "The images in `x` must have one size; resize them, or save them as files and use "
            "read_image_folder or read_image_table. Received: images of different shapes"
        ) from error
    _check_kind_of_pixels(pixels)
    if pixels.dtype != np.uint8:
        raise ValueError(f"`x` must hold uint8 pixels from 0 to 255{remedy(pixels)}")
    single = pixels.ndim == 2 or (
        pixels.ndim == 3 and pixels.shape[-1] in (1, 3) and labels.shape[:1] != pixels.shape[:1]
    )
    if pixels.ndim == 3 and not single:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise ValueError(
            "`x` must have the shape (n, h, w, 3), (n, h, w, 1) or (n, h, w)"
            f"{'; for one image pass x[None] and one label' if single else ''}. "
            f"Received: shape {np.shape(x)}"
        )
    if pixels.size and pixels.max() <= 1:
        warnings.warn(
            "`x` should hold pixels from 0 to 255, but holds none above 1. If it was made from "
            "floats from 0 to 1, pass (x * 255).round().astype('uint8')",
            stacklevel=3,
        )
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    elif pixels.flags.writeable:  # the digests of the images are kept, so nobody may change them
        pixels = pixels.copy()
    pixels.flags.writeable = False
    return pixels


def _check_kind_of_pixels(pixels: NDArray[Any]) -> None:
    """Check that pixels are not paths or labels."""
    if pixels.ndim > 1 or not pixels.size:
        return
    first = pixels.ravel()[0]
    is_text = isinstance(first, (str, os.PathLike))
    if is_text and os.path.splitext(first)[1].lower() in SUFFIXES:
        hint = "; use read_image_table for files"
        received = f"{shortened(str(first))}, which looks like a path"
    else:
        hint = "; pixels come first, then labels"
        received = f"shape {pixels.shape}, dtype {pixels.dtype}, which looks like labels"
    raise ValueError(f"`x` must hold pixels{hint}. Received: {received}")


def remedy(pixels: NDArray[Any]) -> str:
    """Say how to convert pixels that are not uint8, and what was received."""
    if not pixels.size or not np.issubdtype(pixels.dtype, np.number):
        return f". Received: dtype {pixels.dtype}"
    gaps = int((~np.isfinite(pixels)).sum())
    if gaps:
        return (
            "; replace those that are nan or infinite. "
            f"Received: dtype {pixels.dtype}, with {gaps:,} values that are nan or infinite"
        )
    low, high = pixels.min(), pixels.max()
    remedy = "scale them to that range"
    if low >= 0 and high <= 255:
        scaled = "x.round().astype('uint8')" if high > 1 else "(x * 255).round().astype('uint8')"
        remedy = f"pass {scaled}"
    return f"; {remedy}. Received: dtype {pixels.dtype}, from {low:.4g} to {high:.4g}"


def group_names(groups: NDArray[Any], count: int) -> NDArray[np.str_]:
    """Return the group of each image as text."""
    if groups.ndim != 1 or len(groups) != count:
        raise ValueError(
            f"`groups` must hold one value for each of the {count:,} images, such as the patient. "
            f"Received: shape {groups.shape}"
        )
    gaps = missing(groups)
    if gaps:
        raise ValueError(
            "`groups` must hold a value for each image, such as the patient. "
            f"Received: none for images {shown(gaps)}"
        )
    return np.array(list(map(as_text, groups.tolist())), np.str_)


def as_text(value: Any) -> str:
    """Return a value as text: equal values of different types, such as 1 and 1.0, are one."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    whole = isinstance(value, (float, np.floating)) and value.is_integer()
    return str(int(value) if whole else value)


def class_indices(
    labels: NDArray[Any], class_names: Sequence[str] | None, count: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels as class indices (or a matrix of 0 and 1), and the class names."""
    if class_names is not None:
        class_names = unique_names(class_names)
    if labels.ndim == 2 and labels.shape[1] == 1 and len(class_names or ()) != 1:
        raise ValueError(
            "`labels` must have the shape (n,), or (n, num_labels) for multi-label images; pass "
            f"labels[:, 0]. Received: shape {labels.shape}"
        )
    if labels.ndim == 2 and len(labels) == count:
        return _matrix(labels, class_names)
    if labels.shape != (count,):
        raise ValueError(
            f"`labels` must hold one label for each of the {count:,} images. "
            f"Received: shape {labels.shape}"
        )
    gaps = missing(labels)
    if gaps:
        raise ValueError(
            f"`labels` must hold a label for each image. Received: none for images {shown(gaps)}"
        )
    labels = _names_or_indices(labels)
    found = np.unique(labels)
    by_index = np.issubdtype(labels.dtype, np.integer) and class_names is not None
    known = tuple(map(str, found.tolist())) if class_names is None else class_names
    bad = [n for n in found.tolist() if not (0 <= n < len(known) if by_index else str(n) in known)]
    if bad:
        expected = f"must be among the classes {list(known)}"
        if by_index:
            expected = f"that are whole numbers must be indices from 0 to {len(known) - 1}"
        raise ValueError(f"`labels` {expected}. Received: {shown(bad)}")
    rank = {name: i for i, name in enumerate(known)}
    indices = labels if by_index else [rank[str(name)] for name in labels.tolist()]
    return np.array(indices, np.int64), known


def _names_or_indices(labels: NDArray[Any]) -> NDArray[Any]:
    """Return objects as text and whole floats as integers."""
    if labels.dtype.kind != "f":
        return labels.astype(str) if labels.dtype == object else labels
    broken = labels[labels % 1 != 0]
    if len(broken):
        raise ValueError(
            "`labels` must be class names or class indices, which are whole numbers. "
            f"Received: {shown(np.unique(broken).tolist(), 5)}"
        )
    return labels.astype(np.int64)


def unique_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return class names as a tuple, after a check that they differ."""
    names = tuple(map(str, class_names))
    if isinstance(class_names, str) or len(set(names)) != len(names):
        raise ValueError(
            "`class_names` must be a sequence of different names. "
            f"Received: class_names={shortened(class_names)}"
        )
    return names


def as_values(values: ArrayLike) -> NDArray[Any]:
    """Return values as an array in which a nan among texts is still a nan."""
    array = np.asarray(values)
    if array.dtype.kind == "U" and (array == "nan").any():  # NumPy turns a nan into text
        return np.asarray(values, object)
    return array


def as_groups(groups: ArrayLike) -> NDArray[Any]:
    """Return groups as an array, those of several types as objects: NumPy makes "1.0" of 1.0."""
    array = as_values(groups)
    given = array.dtype.kind in "US" and not isinstance(groups, np.ndarray)
    mixed = given and not all(isinstance(value, str) for value in iter(groups))  # type: ignore[arg-type]
    return np.asarray(groups, object) if mixed else array


def shown(values: Sequence[Any], count: int = 10) -> str:
    """Return the first values of a list as text, and the number of the others."""
    return f"[{listed(list(map(repr, values)), count)}]"


def missing(values: NDArray[Any]) -> list[int]:
    """Return the indices of values that are None, nan, empty text or a missing value of pandas."""
    if values.dtype.kind == "U":
        return np.flatnonzero(values == "").tolist()
    if values.dtype.kind == "O":
        return [i for i, value in enumerate(values) if _is_missing(value)]
    return np.flatnonzero(values != values).tolist()


def _is_missing(value: Any) -> bool:
    # A comparison with pandas' NA has no truth value, and pandas may not be installed.
    return type(value).__name__ in ("NoneType", "NAType", "NaTType") or bool(
        value != value or value == ""
    )


def _matrix(
    labels: NDArray[Any], class_names: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    width = labels.shape[1]
    names = tuple(map(str, range(width))) if class_names is None else class_names
    if not width or len(names) != width or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            "`labels` of shape (n, num_labels) must be 0 or 1, one column for each name in "
            f"`class_names`. Received: shape {labels.shape}, {plural(len(names), 'name')}, values "
            f"{shown(np.unique(labels).tolist(), 5)}"
        )
    return labels.astype(np.int64), names
