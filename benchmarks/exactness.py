"""Compare training on kept features with training on pixels: losses, and accuracy on test images.

    KERAS_BACKEND=tensorflow|jax|torch python benchmarks/exactness.py FOLDER
        [--images 1000] [--epochs 10] [--seeds 3] [--backend openvino] [--dtype float16]
        [--without-pixels]

FOLDER holds a folder for each class. MobileNetV2 (x0.5, ImageNet weights) is trained on four fifths
of the images, with no block and with two blocks, in batches of 32 with Adam at 1e-3, and tested on
the others: with `features=False`, with kept features, with features that the named backend
computes, and with features of the named type. A seed decides the split, the order of the images and
dropout. The script prints how far the losses of each way are from those of the first one, relative
to their size and at most over the seeds, the accuracies, and how many predicted classes differ.
`--without-pixels` leaves out `features=False`, which takes most of the time; the first way is then
that with kept features.
"""

from __future__ import annotations

import argparse
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import finetune_kit as ftk


def trained(
    blocks: int, seed: int, epochs: int, images: ftk.ImageSet, features: ftk.FeatureCache | bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the loss of each epoch, and the true and the predicted classes of the test images."""
    keras.utils.set_random_seed(seed)
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights="imagenet", input_shape=(224, 224, 3)
    )
    head = ftk.classification_head(images.class_names)
    train, _, test = images.split((0.8, 0, 0.2), seed=seed)
    spec = ftk.FineTuneSpec(blocks, epochs=epochs)
    tuned = ftk.fine_tune(
        backbone, head, spec, train, features=features, seed=seed, batch_size=32, verbose=0
    )
    predicted = ftk.predict(tuned, test).probabilities.argmax(axis=1)
    return np.array(tuned.history["loss"]), test.labels, predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=1000, help="default: 1000")
    parser.add_argument("--epochs", type=int, default=10, help="default: 10")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--backend", help="computes the frozen part too, such as openvino")
    parser.add_argument("--dtype", help="keeps the features too, such as float16")
    parser.add_argument("--without-pixels", action="store_true", help="only kept features")
    args = parser.parse_args()
    images = ftk.read_image_folder(args.folder)
    images = images.take(np.linspace(0, len(images) - 1, args.images).astype(int))
    print(f"{keras.backend.backend()}, {len(images)} images, {args.epochs} epochs")
    print("| blocks | features | losses: epoch 1 | last epoch | accuracy | other classes |")
    print("|---|---|---:|---:|---:|---:|")
    for blocks in (0, 2):
        with tempfile.TemporaryDirectory() as folder:
            ways: dict[str, ftk.FeatureCache | bool]
            ways = {} if args.without_pixels else {"False": False}
            ways["kept"] = ftk.FeatureCache(folder)
            if args.dtype:
                ways[args.dtype] = ftk.FeatureCache(folder, dtype=args.dtype)
            if args.backend:
                ways[args.backend] = ftk.FeatureCache(folder, backend=args.backend)
            found = {
                way: [trained(blocks, s, args.epochs, images, kept) for s in range(args.seeds)]
                for way, kept in ways.items()
            }
        first = next(iter(found.values()))
        for way, runs in found.items():
            pairs = list(zip(runs, first, strict=True))
            apart = np.max([np.abs(one[0] / other[0] - 1) for one, other in pairs], axis=0)
            accuracies = ", ".join(f"{np.mean(run[1] == run[2]):.3f}" for run in runs)
            others = sum(int((one[2] != other[2]).sum()) for one, other in pairs)
            tested = sum(len(run[1]) for run in runs)
            print(
                f"| {blocks} | {way} | {apart[0]:.1g} | {apart[-1]:.1g} | {accuracies} "
                f"| {others} of {tested} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
