"""Write `docs/preprocessing.md`: the pixel scaling of each of keras.applications.

    python docs/preprocessing_table.py > docs/preprocessing.md

NASNetMobile cannot be built on torch. `tests/test_applications.py` checks each row, and that the
scaled pixels are those of Keras' own `preprocess_input`.
"""

from __future__ import annotations

import keras
import numpy as np
from blocks_table import NAMES, build

import finetune_kit as ftk

HEAD = """# Pixels of keras.applications

How raw RGB pixels must be scaled for each of the 40 `keras.applications`, as `preprocessing`
finds it. The last two columns show what black and white pixels become, for each channel in the
order that the weights expect. *By the model* means that the model scales raw pixels itself, so
nothing is added. `docs/preprocessing_table.py` writes this page, and the tests check each row,
and each convention against Keras' own `preprocess_input`.

| application | scaled | channels | black | white |
|---|---|---|---|---|"""


def row(name: str, backbone: keras.Model) -> str:
    """Return the application's row of the table."""
    layer = ftk.preprocessing(backbone)
    pixels = np.array([[[[0.0] * 3, [255.0] * 3, [255.0, 0.0, 0.0]]]], "float32")
    black, white, red = keras.ops.convert_to_numpy(layer(pixels))[0, 0]
    order = "RGB" if red[0] == white[0] else "BGR"
    inside = isinstance(layer, keras.layers.Identity)
    cells = [
        name,
        "by the model" if inside else "by `preprocessing`",
        order,
        _shown(black),
        _shown(white),
    ]
    return f"| {' | '.join(cells)} |"


def _shown(channels: np.ndarray) -> str:
    values = [f"{value:.4g}" for value in channels]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


if __name__ == "__main__":
    print(HEAD)
    for name in NAMES:
        print(row(name, build(name)), flush=True)
        keras.backend.clear_session()
