"""Weights of MobileNetV2 x0.5 that were trained on drawn images alone (`pretrain.py`)."""

from __future__ import annotations

import io
from pathlib import Path

import keras
import numpy as np

FILE = Path(__file__).with_name("drawn_weights.npz")
NAMES = {
    "drawn": "weights that were trained on drawn images",
    "imagenet": "ImageNet weights",
    "random": "random weights",
}


def described(weights: str) -> str:
    """Return a phrase for the weights of the option `--weights`: a name, or a file."""
    return NAMES.get(weights, f"weights from {weights}")


def write_drawn(file: Path, backbone: keras.Model) -> None:
    """Write the weights of a backbone as float16, by the names of layer and variable."""
    weights = {
        _name(variable): np.asarray(keras.ops.convert_to_numpy(variable))
        for variable in backbone.weights
    }
    with np.errstate(over="raise"):
        np.savez_compressed(file, **{n: w.astype(np.float16) for n, w in weights.items()})


def load_drawn(backbone: keras.Model, file: Path = FILE) -> keras.Model:
    """Give a MobileNetV2 x0.5 of any image size the weights learned on drawn images.

    Args:
        backbone: `keras.applications.MobileNetV2(alpha=0.5, include_top=False, weights=None)`. It
            is changed in place.
        file: the weights. Defaults to those beside this module.

    Returns:
        The backbone.

    Raises:
        ValueError: if the file is damaged, or its weights are not those of this backbone.
        FileNotFoundError: if the file does not exist.
    """
    content = io.BytesIO(file.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as stored:
            weights = {name: stored[name].astype(np.float32) for name in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy raise their own kinds
        raise ValueError(
            f"`file` must be an .npz file of weights, complete and undamaged; restore it or run "
            f"pretrain.py again. Received: {file}, which cannot be read: {error}"
        ) from error
    expected = {_name(variable): tuple(variable.shape) for variable in backbone.weights}
    found = {name: array.shape for name, array in weights.items()}
    if expected != found:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise ValueError(
            "`backbone` must be a MobileNetV2 with alpha=0.5 and include_top=False; other widths "
            "and other models have no weights trained on drawn images. Received: "
            f"{backbone.name}, whose {wrong[0]} has the shape {expected.get(wrong[0])} and not "
            f"{found.get(wrong[0])} ({len(wrong)} of {len(expected)} arrays differ)"
        )
    for variable in backbone.weights:
        variable.assign(weights[_name(variable)])
    return backbone


def _name(variable: keras.Variable) -> str:
    """Return the name of layer and variable, without the names of models around the layer."""
    return "/".join(variable.path.split("/")[-2:])
