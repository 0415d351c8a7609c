"""Values come in; those that an argument cannot be leave as a ValueError in words.

Below all other rooms: it knows nothing of what the arguments mean.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_count(value: Any, least: int = 1) -> bool:
    """Is it a whole number (no bool) of at least `least`?"""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`."""
    if not is_count(value, least):
        raise ValueError(
            f"`{name}` must be a whole number from {least} up. Received: {name}={value!r}"
        )


def check_kind(name: str, value: Any, kind: type, hint: str) -> None:
    """Refuse what is of another type; `hint` says where one comes from."""
    if not isinstance(value, kind):
        raise ValueError(
            f"`{name}` must be of type {kind.__name__} ({hint}). "
            f"Received: {name}={_brief(value)} of type {type(value).__name__}"
        )


def _brief(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:57]}..."


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse what is not among the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {tuple(choices)}. Received: {name}={value!r}")


def check_folder(name: str, path: Any, or_else: str = "") -> None:
    """Refuse what is no path of a folder, there or to be made."""
    good = isinstance(path, (str, os.PathLike)) and path != ""
    if not good or (Path(path).exists() and not Path(path).is_dir()):
        raise ValueError(
            f"`{name}` must be a folder{or_else}. Received: {name}={path!r}"
            f"{', which is a file' if good else ''}"
        )


def check_indices(name: str, indices: NDArray[np.int64], count: int) -> None:
    """Refuse what are no indices of `count` things."""
    whole = np.issubdtype(indices.dtype, np.integer)
    if indices.ndim != 1 or (len(indices) and not whole):
        raise ValueError(
            f"`{name}` must be a one-dimensional array of indices, such as split.test "
            "(np.flatnonzero makes one of a mask). "
            f"Received: dtype {indices.dtype}, shape {indices.shape}"
        )
    if len(indices) and not (indices.min() >= 0 and indices.max() < count):
        raise ValueError(
            f"`{name}` must be indices from 0 to {count - 1}, as there are {count} images. "
            f"Received: {indices.min()} to {indices.max()}"
        )


def check_outputs(name: str, shape: Any, class_names: Sequence[str], *, many: bool) -> None:
    """Refuse a model whose output shape is not one probability a class; `many`: a label."""
    count = len(class_names)
    one = count == 2 and not many  # a single probability tells two classes
    fits = (
        isinstance(shape, tuple)
        and len(shape) == 2
        and (shape[1] == count or (shape[1] == 1 and one))
    )
    if not fits:
        raise ValueError(
            f"`{name}` must give one probability for each of the {count} "
            f"{'labels' if many else 'classes'} {list(class_names)}, as "
            f"{'multilabel_head' if many else 'classification_head'}({count}) does"
            f"{' (or one in all)' if one else ''}. Received: output shape {shape}"
            f"{'; it lacks pooling' if isinstance(shape, tuple) and len(shape) > 2 else ''}"
        )


def image_size(name: str, model: Any) -> tuple[int, int]:
    """Height and width of the images that a model takes; refuse one that takes others."""
    shape = getattr(model, "input_shape", None)
    if not (
        isinstance(shape, tuple) and len(shape) == 4 and shape[3] == 3 and None not in shape[1:]
    ):
        raise ValueError(
            f"`{name}` must take RGB images of a fixed size, shape (None, height, width, 3); build "
            f"it with input_shape=(224, 224, 3) or the like. Received: input shape {shape}"
        )
    return int(shape[1]), int(shape[2])
