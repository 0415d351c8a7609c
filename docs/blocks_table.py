"""Write `docs/blocks.md`: the blocks of each model of keras.applications.

    python docs/blocks_table.py > docs/blocks.md

Run it on TensorFlow or JAX: NASNetMobile cannot be built on PyTorch. `tests/test_applications.py`
checks each row.
"""

from __future__ import annotations

import keras

import finetune_kit as ftk

HEAD = """# Blocks of keras.applications

The number of stages, blocks and layers that `conv_blocks` finds in each of the 40 models of
`keras.applications` (with `include_top=False`), and the names of the first and last blocks. The
stages are counted for images of 64 x 64 pixels, or the smallest that the architecture accepts.

The page is written by `docs/blocks_table.py`; the tests check each row.

| application | stages | blocks | layers | first blocks | last blocks |
|---|---|---|---|---|---|"""

# The smallest images that these architectures accept; NASNetMobile accepts one size only.
SIZES = {"InceptionV3": 96, "InceptionResNetV2": 96, "Xception": 96, "NASNetMobile": 224}
LEVELS = ("stage", "block", "layer")
NAMES = sorted(name for name in dir(keras.applications) if name[0].isupper())


def build(name: str) -> keras.Model:
    """Return one model with random weights, for small images."""
    side = SIZES.get(name, 64)
    return getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(side, side, 3)
    )


def row(name: str, backbone: keras.Model) -> str:
    """Return the line of the table for one model."""
    stages, blocks, layers = (ftk.conv_blocks(backbone, level) for level in LEVELS)
    first, last = blocks[:3], blocks[-2:]
    cells = [
        name,
        *(str(len(level)) for level in (stages, blocks, layers)),
        *(", ".join(f"`{block.name}`" for block in shown) for shown in (first, last)),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(HEAD)
    for name in NAMES:
        print(row(name, build(name)), flush=True)
        keras.backend.clear_session()
