"""Compare the losses of training on kept features with those of training on pixels.

    KERAS_BACKEND=tensorflow|jax|torch python benchmarks/exactness.py FOLDER [--images 160]

FOLDER holds a folder for each class. MobileNetV2 (x0.35, ImageNet weights) is trained for three
epochs, with no block and with two blocks, in batches of 32 with Adam at 1e-3. It prints the losses
of each epoch, and how far those with `features=False` are from them, relative to their size.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import finetune_kit as ftk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=160)
    args = parser.parse_args()
    images = ftk.read_image_folder(args.folder)
    images = images.take(np.linspace(0, len(images) - 1, args.images).astype(int))
    backbone = keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights="imagenet", input_shape=(224, 224, 3)
    )
    head = ftk.classification_head(images.class_names)
    print(f"{keras.backend.backend()}, {len(images)} images")
    for blocks in (0, 2):
        spec = ftk.FineTuneSpec(blocks, epochs=3)
        kept, computed = (
            ftk.fine_tune(backbone, head, spec, images, features=features, seed=3, verbose=0)
            for features in (None, False)
        )
        pairs = zip(kept.history["loss"], computed.history["loss"], strict=True)
        for epoch, (one, other) in enumerate(pairs, start=1):
            print(f"{blocks} blocks, epoch {epoch}: {one:.9f}, {abs(one / other - 1):.0e} apart")


if __name__ == "__main__":
    main()
