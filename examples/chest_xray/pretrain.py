"""Train MobileNetV2 x0.5 from scratch on images drawn from formulas, without any photograph.

    python examples/chest_xray/pretrain.py --out out/pretrain

Each drawn image belongs to one of 96 classes (`drawings.py`), and the backbone learns to tell them
apart: formula-driven supervised learning (Kataoka et al., "Pre-training without Natural Images",
ACCV 2020). Three softmax heads at three depths train together, because a head at the end alone does
not begin to learn. The images are drawn once and kept in `--out`, as is the state after each epoch,
so an interrupted training resumes and ends with the same weights as one that was not interrupted.

At the end, `--out` holds `drawn_weights.npz`, which `drawn.load_drawn` reads, and
`drawn_weights.json` with the settings, the duration and the accuracy on drawn images that were not
trained on. Both are copied beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drawings
import keras
import numpy as np
from drawn import write_drawn
from numpy.typing import NDArray
from progress import ended

CANVAS = 80  # pixels of a drawn image
CROP = 64  # pixels of the part that is trained on; fewer leave BatchNorm too few positions
HELD_OUT = 10  # images of each class that are not trained on
TAPS = (
    "block_6_expand_relu",
    "block_13_expand_relu",
    "out_relu",
)  # depths with a head of their own


def draw_images(
    file: Path, per_class: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw the images of all classes, or read them if they have been drawn before."""
    labels = np.tile(np.arange(drawings.CLASSES), per_class)
    if not file.exists():
        images = np.stack(
            [
                drawings.draw(label, CANVAS, np.random.default_rng([seed, label, number]))
                for number, label in enumerate(labels.tolist())
            ]
        )
        _replace(file, lambda draft: np.save(draft, images))
    images = np.load(file)
    if images.shape != (len(labels), CANVAS, CANVAS):
        raise ValueError(
            f"{file} must hold {len(labels):,} images of {CANVAS} x {CANVAS} pixels; use another "
            f"--out. Received: an array of shape {images.shape}"
        )
    return images, labels


def crops(images: NDArray[np.uint8], rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """Return a part of each image: mirrored and at a random place, or the middle without `rng`."""
    if rng is None:
        start = (CANVAS - CROP) // 2
        return images[:, start : start + CROP, start : start + CROP]
    corners = rng.integers(0, CANVAS - CROP + 1, (len(images), 2)).tolist()
    flips = rng.choice((-1, 1), (len(images), 2)).tolist()
    parts = [
        image[y : y + CROP, x : x + CROP][::up, ::left]
        for image, (y, x), (up, left) in zip(images, corners, flips, strict=True)
    ]
    return np.stack(parts)


def build(steps: int, learning_rate: float, seed: int) -> keras.Model:
    """Return the backbone with three heads, compiled, on gray images from 0 to 255."""
    keras.utils.set_random_seed(seed)
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=(CROP, CROP, 3)
    )
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            # Keras counts all channels as the inputs of each, so its kernels start too small.
            kernel = layer.kernel
            kernel.assign(keras.random.normal(kernel.shape, stddev=(2 / 9) ** 0.5))
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.99  # with 0.999 the moving averages lag behind the weights
    gray = keras.Input((CROP, CROP), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(gray)
    pixels = keras.layers.Reshape((CROP, CROP, 1))(scaled)
    pixels = keras.layers.Concatenate()([pixels] * 3)
    taps = keras.Model(backbone.input, [backbone.get_layer(n).output for n in TAPS], name="taps")
    scores = [
        keras.layers.Dense(drawings.CLASSES, name=f"head_{number}")(
            keras.layers.GlobalAveragePooling2D()(output)
        )
        for number, output in enumerate(taps(pixels))
    ]
    model = keras.Model(gray, scores)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.05)
    model.compile(
        keras.optimizers.Adam(schedule),
        loss=[loss] * len(TAPS),
        metrics=[["accuracy"]] * len(TAPS),
        jit_compile=False,
    )
    return model


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, resuming where an earlier call stopped. Return the content of the JSON file."""
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels = draw_images(args.out / "training.npy", args.images_per_class, args.seed)
    targets = keras.utils.to_categorical(labels, drawings.CLASSES)
    model = build(args.epochs * -(-len(images) // args.batch_size), args.learning_rate, args.seed)
    state, log = args.out / "state.keras", args.out / "log.json"
    history: list[dict[str, float]] = []
    if state.exists():
        history = json.loads(log.read_text(encoding="utf-8"))
        model = keras.models.load_model(state)
        # The log is written first, so it may be one epoch ahead of the state.
        history = history[: int(model.optimizer.iterations) // -(-len(images) // args.batch_size)]
    for epoch in range(len(history), args.epochs):
        started = time.perf_counter()
        rng = np.random.default_rng([args.seed, epoch])
        order = rng.permutation(len(images))
        found = model.fit(
            crops(images[order], rng),
            [targets[order]] * len(TAPS),
            batch_size=args.batch_size,
            shuffle=False,
            verbose=0,
        ).history
        history.append({name: round(values[0], 4) for name, values in found.items()})
        history[-1]["seconds"] = round(time.perf_counter() - started, 1)
        _replace(log, lambda draft: draft.write_text(json.dumps(history), encoding="utf-8"))
        _replace(state, model.save)
        print(f"epoch {epoch + 1}/{args.epochs}: {history[-1]}", flush=True)
    return finish(args, model, history)


def finish(
    args: argparse.Namespace, model: keras.Model, history: list[dict[str, float]]
) -> dict[str, Any]:
    """Write the weights and what is known of them."""
    images, labels = draw_images(args.out / "held_out.npy", HELD_OUT, args.seed + 1)
    scores = model.predict(crops(images, None), batch_size=args.batch_size, verbose=0)
    accuracies = [float(np.mean(score.argmax(axis=1) == labels)) for score in scores]
    about = {
        "command": f"python examples/chest_xray/pretrain.py --epochs {args.epochs} "
        f"--images-per-class {args.images_per_class} --batch-size {args.batch_size} "
        f"--learning-rate {args.learning_rate:g} --seed {args.seed}",
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "classes": drawings.CLASSES,
        "training_images": args.images_per_class * drawings.CLASSES,
        "held_out_images": len(images),
        "held_out_accuracy": dict(zip(TAPS, (round(a, 3) for a in accuracies), strict=True)),
        "minutes": round(sum(epoch["seconds"] for epoch in history) / 60, 1),
    }
    write_drawn(args.out / "drawn_weights.npz", model.get_layer("taps"))
    (args.out / "drawn_weights.json").write_text(json.dumps(about, indent=2) + "\n")
    return about


def _replace(file: Path, write: Any) -> None:
    """Write a file completely or not at all."""
    draft = file.with_name(f"draft-{file.name}")
    write(draft)
    os.replace(draft, file)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=24, help="default: 24")
    add("--images-per-class", type=int, default=100, help="images to draw (default: 100)")
    add("--batch-size", type=int, default=32, help="images per step (default: 32)")
    add("--learning-rate", type=float, default=1e-3, help="at the start (default: 0.001)")
    add("--seed", type=int, default=0, help="seed of images, weights and order (default: 0)")
    add("--out", type=Path, default=Path("out/pretrain"),
        help="folder for images, state and weights (default: out/pretrain)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write the weights; print an error in the input without its traceback."""
    return ended(lambda: print(json.dumps(train(parse(argv)), indent=2)))


if __name__ == "__main__":
    sys.exit(main())
