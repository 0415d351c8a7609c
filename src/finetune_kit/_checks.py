"""Checks of arguments. Each raises a ValueError with what was expected and what was received."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._text import listed, plural, shortened


def is_count(value: Any, least: int = 1) -> bool:
    """Return whether the value is a whole number (not a bool) of at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Return whether the value is a real number, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Check that the value is a whole number of at least `least`."""
    if not is_count(value, least):
        raise ValueError(
            f"`{name}` must be a whole number of at least {least}. Received: {name}={value!r}"
        )


def positive(name: str, value: Any, most: float) -> float:
    """Return a number above 0 as a float."""
    if is_number(value) and 0 < value <= most and value != math.inf:
        return float(value)
    limit = "a number above 0" + ("" if most == math.inf else f" and up to {most:g}")
    hint = ", a text (YAML reads 1e-3 as text, 1.0e-3 as a number)" * isinstance(value, str)
    raise ValueError(f"`{name}` must be {limit}. Received: {name}={value!r}{hint}")


def check_kind(name: str, value: Any, kind: type, hint: str) -> None:
    """Check the type of a value; `hint` says how to get one of the right type."""
    if not isinstance(value, kind):
        raise ValueError(
            f"`{name}` must be of type {kind.__name__} ({hint}). "
            f"Received: {name}={shortened(value)} of type {type(value).__name__}"
        )


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Check that the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {tuple(choices)}. Received: {name}={value!r}")


def check_folder(name: str, path: Any, or_else: str = "") -> None:
    """Check that the value is the path of a folder, which need not exist yet."""
    is_path = isinstance(path, (str, os.PathLike)) and path != ""
    if not is_path or (Path(path).exists() and not Path(path).is_dir()):
        raise ValueError(
            f"`{name}` must be a folder{or_else}. Received: {name}={shortened(path)}"
            f"{', which is a file' if is_path else ''}"
        )


def check_indices(name: str, indices: NDArray[Any], count: int) -> None:
    """Check that an array holds indices of `count` images."""
    whole = np.issubdtype(indices.dtype, np.integer)
    if indices.ndim != 1 or (len(indices) and not whole):
        raise ValueError(
            f"`{name}` must be a one-dimensional array of indices (np.flatnonzero makes one from a "
            f"mask). Received: dtype {indices.dtype}, shape {indices.shape}"
        )
    outside = np.unique(indices[(indices < 0) | (indices >= count)])
    if len(outside):
        accepted = f"hold indices from 0 to {count - 1}" if count else "be empty"
        raise ValueError(
            f"`{name}` must {accepted}, because the set has {plural(count, 'image')}. "
            f"Received: {listed(list(map(str, outside.tolist())))}"
        )


def check_outputs(name: str, shape: Any, class_names: Sequence[str], *, multi_label: bool) -> None:
    """Check that a model's output shape is one probability for each class (or label)."""
    count = len(class_names)
    binary = count == 2 and not multi_label  # one probability is enough for two classes
    fits = (
        isinstance(shape, tuple)
        and len(shape) == 2
        and (shape[1] == count or (shape[1] == 1 and binary))
    )
    if not fits:
        builder = f"classification_head({count}{', multi_label=True' if multi_label else ''})"
        raise ValueError(
            f"`{name}` must give one probability for each of the {count} "
            f"{'labels' if multi_label else 'classes'} {list(class_names)}, as {builder} does"
            f"{' (or a single one)' if binary else ''}. Received: output shape {shape}"
            f"{'; pooling is missing' if isinstance(shape, tuple) and len(shape) > 2 else ''}"
        )


def image_size(name: str, model: Any, channels: Sequence[int] = (3,)) -> tuple[int, int]:
    """Return height and width of the images that a model takes; they must be fixed."""
    shape: Any = getattr(model, "input_shape", None)
    remedy = _remedy(shape, channels)
    if remedy:
        raise ValueError(
            f"`{name}` must take RGB images of a fixed size, shape (None, height, width, 3). "
            f"{remedy}. Received: input shape {shape}"
        )
    return int(shape[1]), int(shape[2])


def _remedy(shape: Any, channels: Sequence[int]) -> str:
    """Return what to do about the input of a model that takes no images; "" if it does."""
    if isinstance(shape, (list, dict)) and len(shape) > 1:
        return (
            "Give it one input: inputs = keras.Input((224, 224, 3)), and keras.Model(inputs, "
            "model(...)) with the other inputs made from it"
        )
    if not isinstance(shape, tuple) or len(shape) != 4:
        return "Pass a model for images, such as keras.applications.MobileNetV2"
    if shape[1] in (1, 3) and shape[3] not in (1, 3):
        return (
            "It takes the channels first: build it with data_format='channels_last', or after "
            "keras.config.set_image_data_format('channels_last')"
        )
    if None in shape[1:3]:
        return (
            "Fix the size: build it with input_shape=(224, 224, 3), or pass keras.Model(inputs, "
            "model(inputs)) with inputs = keras.Input((224, 224, 3))"
        )
    if shape[3] not in channels:
        return (
            "Put a layer in front that makes its channels from RGB: inputs = keras.Input((224, "
            "224, 3)), and keras.Model(inputs, model(layer(inputs)))"
        )
    return ""
