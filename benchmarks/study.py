"""Time the study's three models: plain Keras, finetune-kit, and a lower bound.

    python benchmarks/study.py --data FOLDER [--weights imagenet] [--out study.json]

All times come from one run on one backend, so their ratios can be compared. For N = 0, 1 and 2
trailing blocks, and for the pooled and the flattened head, 20 epochs without validation are timed:

- plain: `fit` of the whole model, frozen by `trainable` flags, on decoded images that are already
  in memory (the strongest opponent). A few epochs are measured and the rest is extrapolated: the
  first epoch, which compiles, plus 19 times the median of the others.
- ours: `fine_tune` from the image files, all 20 epochs, with all that it does.
- warm: the same again, with the features that the first run kept.
- floor: `predict` of the frozen part once, then `fit` of the rest on arrays in memory. This is the
  time of the two computations without a library. Building the models is not counted.
- study: `sweep` over the three models, compared with the three plain runs.

The JSON file also holds what limits the ratio: the median `epoch` of plain training, and one `pass`
through the frozen part, batch after batch, already compiled; and the `timings` of ours.

One plain run comes first and is not counted, because the first run in a process is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

import finetune_kit as ftk

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "chest_xray"))
from phantoms import write_phantoms

UNITS = (1024, 512)  # the study's head


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the time that a call takes, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


class Epochs(keras.callbacks.Callback):
    """Measure the seconds of each epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._started)


class Bench:
    """One backbone, one set of images, one batch size."""

    def __init__(self, args: argparse.Namespace, images: ftk.ImageSet) -> None:
        self.args, self.images = args, images
        self.x = images.load().astype("float32")
        self.y = images.labels

    def backbone(self) -> keras.Model:
        weights = None if self.args.weights == "none" else self.args.weights
        return keras.applications.MobileNetV2(
            alpha=0.5, include_top=False, weights=weights, input_shape=(224, 224, 3)
        )

    def head(self, pooling: str) -> keras.Sequential:
        return ftk.classification_head(self.images.class_names, units=UNITS, pooling=pooling)

    def fit(self, model: keras.Model, x: Any, epochs: int) -> list[float]:
        """Return the seconds of each epoch. The first one includes what `fit` does before it."""
        timer = Epochs()
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        total, _ = seconds(
            lambda: model.fit(x, self.y, self.args.batch_size, epochs, verbose=0, callbacks=[timer])
        )
        return [timer.seconds[0] + total - sum(timer.seconds), *timer.seconds[1:]]

    def plain(self, blocks: int, pooling: str) -> tuple[float, float]:
        """Return the seconds of plain training, and of one of its epochs."""
        backbone = self.backbone()
        ftk.FineTuneSpec(blocks).apply(backbone)
        inputs = keras.Input((224, 224, 3))
        x = backbone(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
        model = keras.Model(inputs, self.head(pooling)(x))
        first, *rest = self.fit(model, self.x, self.args.plain_epochs)
        epoch = statistics.median(rest)
        return first + (self.args.epochs - 1) * epoch, epoch

    def floor(self, blocks: int, pooling: str) -> tuple[float, float]:
        """Return the seconds of the two computations alone, and of one pass of the frozen part."""
        backbone = self.backbone()
        ftk.FineTuneSpec(blocks).apply(backbone)
        prefix, suffix = ftk.cut(backbone, blocks)
        head = self.head(pooling)
        inputs = keras.Input((224, 224, 3))
        x = prefix(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
        if blocks == 0:  # the features are pooled before they are kept
            prefix, suffix = keras.Model(inputs, head.layers[0](x)), None
            head = keras.Sequential(head.layers[1:])
        else:
            prefix = keras.Model(inputs, x)
        features = keras.Input(prefix.output_shape[1:])
        rest = keras.Model(features, head(suffix(features) if suffix else features))
        once, kept = seconds(lambda: prefix.predict(self.x, self.args.batch_size, verbose=0))
        total = once + sum(self.fit(rest, kept, self.args.epochs))
        batches = range(0, len(self.x), self.args.batch_size)
        prefix.predict_on_batch(self.x[: self.args.batch_size])
        one_pass, _ = seconds(
            lambda: [prefix.predict_on_batch(self.x[i : i + self.args.batch_size]) for i in batches]
        )
        return total, one_pass

    def ours(self, blocks: int, pooling: str, features: Path) -> tuple[float, ftk.FineTuned]:
        """Return the seconds of `fine_tune`, and its result."""
        backbone, head = self.backbone(), self.head(pooling)
        spec = ftk.FineTuneSpec(blocks, epochs=self.args.epochs)
        options = {"batch_size": self.args.batch_size, "features": features, "verbose": 0}
        return seconds(lambda: ftk.fine_tune(backbone, head, spec, self.images, **options))

    def sweep(self, pooling: str) -> float:
        """Return the seconds of `sweep` over the three models."""
        backbone, head = self.backbone(), self.head(pooling)
        specs = [ftk.FineTuneSpec(blocks, epochs=self.args.epochs) for blocks in (0, 1, 2)]
        options = {"batch_size": self.args.batch_size, "verbose": 0}
        return seconds(lambda: ftk.sweep(backbone, head, specs, self.images, **options))[0]


def machine() -> dict[str, Any]:
    """Return what the times were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
    }


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Time all combinations of head and number of blocks; print a line for each."""
    args, results = bench.args, {"runs": []}
    print("head     N   plain s   ours s   warm s  floor s  plain/ours plain/warm ours/floor")
    bench.plain(args.blocks[0], args.heads[0])  # not counted: the first run is slower
    for pooling in args.heads:
        plains = []
        for blocks in args.blocks:
            features = folder / f"features-{pooling}-{blocks}"
            plain, epoch = bench.plain(blocks, pooling)
            ours, tuned = bench.ours(blocks, pooling, features)
            warm, _ = bench.ours(blocks, pooling, features)
            floor, one_pass = bench.floor(blocks, pooling)
            plains.append(plain)
            run = {"head": pooling, "blocks": blocks, "plain": plain, "ours": ours}
            run |= {"warm": warm, "floor": floor, "epoch": epoch, "pass": one_pass}
            run["timings"] = dict(tuned.timings)
            results["runs"].append(run)
            print(
                f"{pooling:8} {blocks} {plain:9.1f} {ours:8.1f} {warm:8.1f} {floor:8.1f}"
                f" {plain / ours:10.1f}x {plain / warm:9.1f}x {ours / floor:9.2f}x",
                flush=True,
            )
            keras.backend.clear_session()
        if args.blocks == [0, 1, 2]:
            study = bench.sweep(pooling)
            results[f"study_{pooling}"] = {"plain": sum(plains), "ours": study}
            print(
                f"{pooling:8} all {sum(plains):7.1f} {study:8.1f} {'':26}"
                f"{sum(plains) / study:5.1f}x",
                flush=True,
            )
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="a folder with one folder per class (default: draw phantoms)")
    add("--weights", default="imagenet", help="imagenet or none (default: imagenet)")
    add("--images", type=int, default=512, help="default: 512")
    add("--epochs", type=int, default=20, help="default: 20")
    add("--plain-epochs", type=int, default=4, help="measured epochs of plain Keras (default: 4)")
    add("--batch-size", type=int, default=64, help="default: 64")
    add("--heads", nargs="+", default=["avg", "flatten"], help="default: avg flatten")
    add("--blocks", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_phantoms(Path(folder) / "phantoms")
        images = ftk.read_image_folder(data)
        if args.images < len(images):
            images, _, _ = images.split((args.images, len(images) - args.images, 0))
        print(f"{machine()}, {len(images)} images, {args.epochs} epochs")
        results = {"machine": machine(), "images": len(images)}
        results |= measure(Bench(args, images), Path(folder))
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
