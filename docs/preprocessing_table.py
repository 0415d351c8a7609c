"""Write `docs/preprocessing.md`: the preprocessing of each model of keras.applications.

    python docs/preprocessing_table.py > docs/preprocessing.md

Run it on TensorFlow or JAX: NASNetMobile cannot be built on PyTorch. `tests/test_applications.py`
checks each row, and compares the pixels with those of Keras' own `preprocess_input`.
"""

from __future__ import annotations

import keras
import numpy as np
from blocks_table import NAMES, build

import finetune_kit as ftk

HEAD = """# Preprocessing for keras.applications

How `preprocessing` scales raw pixels for each of the 40 models of `keras.applications`: the order
of the channels, and the values of a black and a white pixel in that order. "Inside" means that the
model rescales raw pixels itself, so nothing is added.

Two things decide. What the weights expect is known from the names of a family's layers. What the
model does to pixels itself, before its first layer with weights, is measured on images of one color
each, whether layers, operations or a nested model do it. `preprocessing` adds what is missing:

- a DenseNet behind `preprocess_input` as operations, or behind a `Normalization` layer with the
  same numbers, gets raw pixels; one behind a front for pixels from 0 to 1 gets these;
- a model of an unknown family that scales raw pixels itself gets raw pixels.

Where this cannot be known, `preprocessing` raises an error, and `fine_tune` asks for its argument
`preprocessing`: a model of an unknown family that does not scale raw pixels, a front that does not
fit the family, one that standardizes each image by itself, or branches that scale differently.

The page is written by `docs/preprocessing_table.py`; the tests check each row, and compare each
model's pixels with those of Keras' own `preprocess_input`.

| application | scaled | channels | black | white |
|---|---|---|---|---|"""


def row(name: str, backbone: keras.Model) -> str:
    """Return the line of the table for one model."""
    layer = ftk.preprocessing(backbone)
    pixels = np.array([[[[0.0] * 3, [255.0] * 3, [255.0, 0.0, 0.0]]]], "float32")
    black, white, red = keras.ops.convert_to_numpy(layer(pixels))[0, 0]
    order = "RGB" if red[0] == white[0] else "BGR"
    inside = isinstance(layer, keras.layers.Identity)
    cells = [name, "inside" if inside else "in front", order, _shown(black), _shown(white)]
    return f"| {' | '.join(cells)} |"


def _shown(channels: np.ndarray) -> str:
    values = [f"{value:.4g}" for value in channels]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


if __name__ == "__main__":
    print(HEAD)
    for name in NAMES:
        print(row(name, build(name)), flush=True)
        keras.backend.clear_session()
