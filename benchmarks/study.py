"""Time the study's three models: plain Keras, finetune-kit, and the floor under both.

    python benchmarks/study.py --data FOLDER [--weights imagenet] [--out study.json]

All in one run on one backend, so that ratios can be told. For N = 0, 1 and 2 trailing blocks and
the pooled and the flattened head, over 20 epochs without validation:

- plain: `fit` of the whole model, frozen by `trainable` flags, on decoded images that are already
  in memory (the strongest opponent). A few epochs are measured, the rest is extrapolated: the first
  epoch, which compiles, plus 19 times the median of the others.
- ours: `fine_tune` from the image files, all 20 epochs, everything included.
- warm: the same again, on the features that the first run kept.
- floor: `predict` of the frozen part once and `fit` of the rest on arrays in memory: what the two
  computations cost without a library around them. Its models are built beforehand.
- study: `sweep` over the three models against the three plain runs.

The JSON also has what bounds the ratio: the median `epoch` of plain training, and one `pass`
through the frozen part, batch after batch, compiled already; and the `timings` of ours.

One plain run comes before them, uncounted: whatever is first in a process is slower.
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
import numpy as np

import finetune_kit as ftk

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "chest_xray"))
from phantoms import write_phantoms

UNITS = (1024, 512)  # the study's head


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


class Epochs(keras.callbacks.Callback):
    """Seconds of each epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._started)


class Bench:
    """One backbone, one set of images, one batch size."""

    def __init__(self, args: argparse.Namespace, images: ftk.ImageSet, indices: Any) -> None:
        self.args, self.images, self.indices = args, images, indices
        self.nobody = np.arange(0)
        self.split = ftk.Split(indices, self.nobody, self.nobody)
        self.x = images.load(indices).astype("float32")
        self.y = images.labels[indices]

    def backbone(self) -> keras.Model:
        weights = None if self.args.weights == "none" else self.args.weights
        return keras.applications.MobileNetV2(
            alpha=0.5, include_top=False, weights=weights, input_shape=(224, 224, 3)
        )

    def head(self, pooling: str) -> keras.Sequential:
        return ftk.classification_head(len(self.images.class_names), units=UNITS, pooling=pooling)

    def fit(self, model: keras.Model, x: Any, epochs: int) -> list[float]:
        """Seconds of each epoch; what `fit` spends outside of them is in the first."""
        timer = Epochs()
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        total, _ = seconds(
            lambda: model.fit(x, self.y, self.args.batch_size, epochs, verbose=0, callbacks=[timer])
        )
        return [timer.seconds[0] + total - sum(timer.seconds), *timer.seconds[1:]]

    def plain(self, blocks: int, pooling: str) -> tuple[float, float]:
        backbone = self.backbone()
        ftk.FineTuneSpec(blocks).apply(backbone)
        inputs = keras.Input((224, 224, 3))
        x = backbone(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
        model = keras.Model(inputs, self.head(pooling)(x))
        first, *rest = self.fit(model, self.x, self.args.plain_epochs)
        epoch = statistics.median(rest)
        return first + (self.args.epochs - 1) * epoch, epoch

    def floor(self, blocks: int, pooling: str) -> tuple[float, float]:
        backbone = self.backbone()
        ftk.FineTuneSpec(blocks).apply(backbone)
        prefix, suffix = ftk.cut(backbone, blocks)
        head = self.head(pooling)
        inputs = keras.Input((224, 224, 3))
        x = prefix(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
        if blocks == 0:  # pooled before it is kept, as anyone would
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

    def ours(self, blocks: int, pooling: str, cache_dir: str) -> tuple[float, ftk.FineTuned]:
        backbone, head = self.backbone(), self.head(pooling)
        spec = ftk.FineTuneSpec(blocks, epochs=self.args.epochs)
        return seconds(
            lambda: ftk.fine_tune(
                backbone,
                head,
                spec,
                self.images,
                self.split,
                batch_size=self.args.batch_size,
                cache_dir=cache_dir,
                verbose=0,
            )
        )

    def sweep(self, pooling: str) -> float:
        backbone, head = self.backbone(), self.head(pooling)
        specs = [ftk.FineTuneSpec(blocks, epochs=self.args.epochs) for blocks in (0, 1, 2)]
        return seconds(
            lambda: ftk.sweep(
                backbone,
                head,
                specs,
                self.images,
                self.split,
                batch_size=self.args.batch_size,
                verbose=0,
            )
        )[0]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="a folder of class folders (default: drawn phantoms)")
    add("--weights", default="imagenet", help="imagenet or none (default: imagenet)")
    add("--images", type=int, default=512, help="default: 512")
    add("--epochs", type=int, default=20, help="default: 20")
    add("--plain-epochs", type=int, default=4, help="measured of the plain fit (default: 4)")
    add("--batch-size", type=int, default=64, help="default: 64")
    add("--heads", nargs="+", default=["avg", "flatten"], help="default: avg flatten")
    add("--blocks", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--out", type=Path, help="where to write the figures as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_phantoms(Path(folder) / "phantoms", size=224, seed=0)
        images = ftk.read_image_folder(data)
        share = min(1.0, args.images / len(images))
        bench = Bench(
            args, images, ftk.stratified_split(images.labels, (share, 1 - share, 0)).train
        )
        results: dict[str, Any] = {"machine": machine(), "images": len(bench.indices), "runs": []}
        print(f"{results['machine']}, {len(bench.indices)} images, {args.epochs} epochs")
        print("head     N   plain s   ours s   warm s  floor s  plain/ours plain/warm ours/floor")
        bench.plain(args.blocks[0], args.heads[0])  # what is first in a process is slower: no count
        for pooling in args.heads:
            plains = []
            for blocks in args.blocks:
                cache = str(Path(folder) / f"cache-{pooling}-{blocks}")
                plain, epoch = bench.plain(blocks, pooling)
                ours, tuned = bench.ours(blocks, pooling, cache)
                warm, _ = bench.ours(blocks, pooling, cache)
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
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
