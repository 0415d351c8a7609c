"""Write `docs/blocks.md`: the blocks of each of keras.applications.

    python docs/blocks_table.py > docs/blocks.md

NASNetMobile cannot be built on torch. `tests/test_applications.py` checks each row.
"""

from __future__ import annotations

import keras

import finetune_kit as ftk

HEAD = """# Blocks of keras.applications

The blocks that `conv_blocks` finds in each of the 40 `keras.applications`, without their
classifier: the number of blocks at each level, and the names of the first three and the last two
at the default level. `docs/blocks_table.py` writes this page, and the tests check each row.

Stages are counted on small images, 64 x 64 pixels where the architecture accepts them.

| application | stages | blocks | layers | first blocks | last blocks |
|---|---|---|---|---|---|"""

# The smallest size that each architecture accepts; NASNetMobile accepts only one.
SIZES = {"InceptionV3": 96, "InceptionResNetV2": 96, "Xception": 96, "NASNetMobile": 224}
LEVELS = ("stage", "block", "layer")
NAMES = sorted(name for name in dir(keras.applications) if name[0].isupper())


def build(name: str) -> keras.Model:
    """Build an application with random weights for small images."""
    side = SIZES.get(name, 64)
    return getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(side, side, 3)
    )


def row(name: str, backbone: keras.Model) -> str:
    """Return the application's row of the table."""
    stages, blocks, layers = (ftk.conv_blocks(backbone, level) for level in LEVELS)
    first, last = blocks[:3], blocks[-2:]
    cells = [
        name,
        *(str(len(level)) for level in (stages, blocks, layers)),
        *(", ".join(f"`{block.name}`" for block in some) for some in (first, last)),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(HEAD)
    for name in NAMES:
        print(row(name, build(name)), flush=True)
        keras.backend.clear_session()
