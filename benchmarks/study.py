"""Time the study's three models: plain Keras, finetune-kit, and a lower bound.

    python benchmarks/study.py --data FOLDER [--images all] [--ways plain ours] [--out study.json]

All times come from one machine and one backend, so their ratios can be compared; seconds and
processor seconds (of all processes and threads). For N = 0, 1 and 2 trailing blocks, and for the
pooled and the flattened head, 20 epochs without validation are timed in these ways:

- plain: `fit` of the whole model, frozen by `trainable` flags, on decoded images that are already
  in memory (the strongest opponent). A few epochs are measured and the rest is extrapolated: the
  first epoch, which compiles, plus 19 times the median of the others. With `--plain-images`, these
  epochs have fewer images, and their time is extrapolated too.
- tf.data: the same with a `tf.data` pipeline that decodes the files in the first epoch and keeps
  the decoded images in memory (`cache()`); TensorFlow only.
- by hand: decode the files, `predict` of the frozen backbone and pooling, and `fit` of the rest of
  the head on the arrays, as it is often written; N = 0 only.
- ours: `fine_tune` from the image files, all 20 epochs, with all that it does, hashing included.
- engine: the same, with the frozen part computed by OpenVINO.
- warm: ours again, with the features that another run kept.
- floor: `predict` of the frozen part once, then `fit` of the rest on arrays in memory. This is the
  time of the two computations without a library. Building the models is not counted.
- sweep: `sweep` over the three models, compared with the three plain runs.

With `--out`, each result is written when it is there, and a later call with the same file measures
what is missing: `--blocks` and `--ways` divide a long measurement into pieces. A small plain run
comes first and is not counted, because the first run in a process is slower.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
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
from finetune_kit._features import process

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "chest_xray"))
from phantoms import write_phantoms

UNITS = (1024, 512)  # the study's head
WAYS = ("plain", "tf.data", "by hand", "ours", "engine", "warm", "floor", "sweep")
SIZE = (224, 224)
COMMON = ("epochs", "weights", "batch_size", "plain_epochs", "plain_images")  # of all pieces

Cost = np.ndarray  # seconds and processor seconds


def now() -> Cost:
    """Return the time, and the processor seconds of this process and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)])


def cost(call: Callable[[], Any]) -> tuple[Cost, Any]:
    """Return the cost of a call, and its result."""
    started = now()
    result = call()
    return now() - started, result


class Epochs(keras.callbacks.Callback):
    """Measure the cost of each epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.costs: list[Cost] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started = now()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.costs.append(now() - self._started)


class Bench:
    """One backbone, one set of images, one batch size."""

    def __init__(self, args: argparse.Namespace, images: ftk.ImageSet, folder: Path) -> None:
        self.args, self.images, self.folder = args, images, folder
        self.hashing, _ = cost(images.digests)  # once in a process
        self.x = images.load(size=SIZE)
        self.y = images.labels

    def backbone(self) -> keras.Model:
        weights = None if self.args.weights == "none" else self.args.weights
        return keras.applications.MobileNetV2(
            alpha=0.5, include_top=False, weights=weights, input_shape=(*SIZE, 3)
        )

    def head(self, pooling: str) -> keras.Sequential:
        return ftk.classification_head(self.images.class_names, units=UNITS, pooling=pooling)

    def fit(self, model: keras.Model, x: Any, y: Any, epochs: int) -> list[Cost]:
        """Return the cost of each epoch. The first one includes what `fit` does before it."""
        timer = Epochs()
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        options = {"epochs": epochs, "verbose": 0, "callbacks": [timer]}
        if y is None:
            options["shuffle"] = False  # the data set does that
        else:
            options["batch_size"] = self.args.batch_size
        total, _ = cost(lambda: model.fit(x, y, **options))
        return [timer.costs[0] + total - sum(timer.costs), *timer.costs[1:]]

    def whole(self, blocks: int, pooling: str) -> keras.Model:
        backbone = self.backbone()
        ftk.FineTuneSpec(blocks).apply(backbone)
        inputs = keras.Input((*SIZE, 3))
        x = backbone(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
        return keras.Model(inputs, self.head(pooling)(x))

    def extrapolated(self, epochs: list[Cost], share: float = 1.0) -> dict[str, Any]:
        """Return the cost of all epochs; `share`: of the images, that these epochs had."""
        first, *rest = epochs
        epoch = np.array([statistics.median(values) for values in zip(*rest, strict=True)])
        total = first - epoch + self.args.epochs * epoch / share
        return {**entry(total), "epoch": list(epoch / share), "epochs measured": len(epochs)}

    def plain(self, blocks: int, pooling: str) -> dict[str, Any]:
        count = min(self.args.plain_images or len(self.x), len(self.x))
        x = self.x[:count].astype("float32")
        epochs = self.fit(self.whole(blocks, pooling), x, self.y[:count], self.args.plain_epochs)
        return {**self.extrapolated(epochs, count / len(self.x)), "images measured": count}

    def tf_data(self, blocks: int, pooling: str) -> dict[str, Any]:
        import tensorflow as tf

        def decoded(path: Any, label: Any) -> tuple[Any, Any]:
            pixels = tf.io.decode_image(tf.io.read_file(path), 3, expand_animations=False)
            return tf.image.resize(pixels, SIZE), label

        source: Any = self.images.source
        paths = [source.paths[row] for row in self.images.rows.tolist()]
        data = tf.data.Dataset.from_tensor_slices((paths, self.y))
        data = data.map(decoded, tf.data.AUTOTUNE).cache().shuffle(1000)
        data = data.batch(self.args.batch_size).prefetch(tf.data.AUTOTUNE)
        return self.extrapolated(
            self.fit(self.whole(blocks, pooling), data, None, self.args.plain_epochs)
        )

    def by_hand(self, blocks: int, pooling: str) -> dict[str, Any]:
        def run() -> None:
            backbone, head = self.backbone(), self.head(pooling)
            pooling_layer, *rest = head.layers
            rescaling = keras.layers.Rescaling(1 / 127.5, -1.0)
            front = keras.Sequential([rescaling, backbone, pooling_layer])
            kept = front.predict(self.images.load(size=SIZE), self.args.batch_size, verbose=0)
            self.fit(keras.Sequential(rest), kept, self.y, self.args.epochs)

        return entry(cost(run)[0])

    def floor(self, blocks: int, pooling: str) -> dict[str, Any]:
        """Return the cost of the two computations alone, and of one pass of the frozen part."""
        backbone = self.backbone()
        ftk.FineTuneSpec(blocks).apply(backbone)
        prefix, suffix = ftk.cut(backbone, blocks)
        head = self.head(pooling)
        inputs = keras.Input((*SIZE, 3))
        x = prefix(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
        if blocks == 0:  # the features are pooled before they are kept
            prefix, suffix = keras.Model(inputs, head.layers[0](x)), None
            head = keras.Sequential(head.layers[1:])
        else:
            prefix = keras.Model(inputs, x)
        features = keras.Input(prefix.output_shape[1:])
        rest = keras.Model(features, head(suffix(features) if suffix else features))
        size = self.args.batch_size
        once, kept = cost(lambda: prefix.predict(self.x, size, verbose=0))
        total = once + sum(self.fit(rest, kept, self.y, self.args.epochs))
        batches = [self.x[i : i + size] for i in range(0, len(self.x), size)]
        one_pass, _ = cost(lambda: [prefix.predict_on_batch(batch) for batch in batches])
        return {**entry(total), "pass": list(one_pass)}

    def ours(self, blocks: int, pooling: str, backend: str | None = None) -> dict[str, Any]:
        def run() -> ftk.FineTuned:
            features = ftk.FeatureCache(self.features(blocks, pooling, backend), backend=backend)
            spec = ftk.FineTuneSpec(blocks, epochs=self.args.epochs)
            options = {"batch_size": self.args.batch_size, "features": features, "verbose": 0}
            backbone, head = self.backbone(), self.head(pooling)
            tuned = ftk.fine_tune(backbone, head, spec, self.images, **options)
            process._end_waiting()  # so that the seconds of the worker count
            return tuned

        spent, tuned = cost(run)
        return {**entry(spent + self.hashing), "timings": dict(tuned.timings)}

    def features(self, blocks: int, pooling: str, backend: str | None) -> Path:
        return self.folder / f"features-{pooling}-{blocks}-{backend}"

    def engine(self, blocks: int, pooling: str) -> dict[str, Any]:
        return self.ours(blocks, pooling, "openvino")

    def warm(self, blocks: int, pooling: str) -> dict[str, Any]:
        spec, folder = ftk.FineTuneSpec(blocks), self.features(blocks, pooling, None)
        options = {"head": self.head(pooling), "batch_size": self.args.batch_size, "verbose": 0}
        ftk.compute_features(self.backbone(), spec, self.images, folder, **options)
        return self.ours(blocks, pooling)

    def sweep(self, blocks: int, pooling: str) -> dict[str, Any]:
        def run() -> None:
            specs = [ftk.FineTuneSpec(n, epochs=self.args.epochs) for n in (0, 1, 2)]
            options = {"batch_size": self.args.batch_size, "verbose": 0}
            ftk.sweep(self.backbone(), self.head(pooling), specs, self.images, **options)

        return entry(cost(run)[0] + self.hashing)


def entry(total: Cost) -> dict[str, Any]:
    return {"seconds": float(total[0]), "processor": float(total[1])}


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


def applies(way: str, blocks: int) -> bool:
    """Return whether a way is measured here for a number of blocks."""
    if way == "tf.data":
        return keras.backend.backend() == "tensorflow"
    if way == "engine":
        return importlib.util.find_spec("openvino") is not None
    return blocks == 0 if way in ("by hand", "sweep") else True


def measure(bench: Bench, runs: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure what is missing of all combinations of head, number of blocks and way."""
    args = bench.args
    todo = [
        (pooling, blocks, way, f"{pooling} {'all' if way == 'sweep' else blocks} {way}")
        for pooling in args.heads
        for blocks in args.blocks
        for way in WAYS  # in this order: the features that `warm` keeps would be there for `ours`
        if way in args.ways and applies(way, blocks)
    ]
    todo = [each for each in todo if each[3] not in runs]
    if todo:  # not counted: the first run is slower
        few = bench.x[: 2 * args.batch_size].astype("float32")
        bench.fit(bench.whole(0, todo[0][0]), few, bench.y[: len(few)], 2)
    for pooling, blocks, way, key in todo:
        call = getattr(bench, way.replace(".", "_").replace(" ", "_"))
        runs[key] = call(blocks, pooling)
        save()
        shown = runs[key]
        print(f"{key}: {shown['seconds']:.1f} s, {shown['processor']:.1f} processor s", flush=True)
        keras.backend.clear_session()


def table(runs: dict[str, Any]) -> str:
    """Return a line for each result, with how many times faster it is than plain Keras."""
    title = f"{'head':8} {'N':3} {'way':8} {'seconds':>9} {'processor':>10} {'times faster':>20}"
    lines = ["", title]
    for key, run in runs.items():
        pooling, blocks, way = key.split(" ", 2)
        counted = (0, 1, 2) if blocks == "all" else (blocks,)
        plain = [runs.get(f"{pooling} {n} plain") for n in counted]
        spent = run["seconds"], run["processor"]
        ratios = ""
        if all(plain):
            whole = [sum(each[unit] for each in plain) for unit in ("seconds", "processor")]
            ratios = f"{whole[0] / spent[0]:9.1f} {whole[1] / spent[1]:10.1f}"
        lines.append(f"{pooling:8} {blocks:3} {way:8} {spent[0]:9.1f} {spent[1]:10.1f} {ratios}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="a folder with one folder per class (default: draw phantoms)")
    add("--weights", default="imagenet", help="imagenet or none (default: imagenet)")
    add("--images", default="512", help="a number, or all (default: 512)")
    add("--epochs", type=int, default=20, help="default: 20")
    add("--plain-epochs", type=int, default=4, help="measured epochs of plain Keras (default: 4)")
    add("--plain-images", type=int, help="images of these epochs (default: all that are used)")
    add("--batch-size", type=int, default=64, help="default: 64")
    add("--heads", nargs="+", default=["avg", "flatten"], help="default: avg flatten")
    add("--blocks", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--ways", nargs="+", default=WAYS, choices=WAYS, help="default: all of them")
    add("--out", type=Path, help="JSON file for the results, also those of earlier calls")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_phantoms(Path(folder) / "phantoms")
        images = ftk.read_image_folder(data)
        count = len(images) if args.images == "all" else int(args.images)
        if count < len(images):
            images, _, _ = images.split((count, len(images) - count, 0))
        source = data.name if args.data else "phantoms"
        about = {"machine": machine(), "data": source, "images": len(images)}
        about |= {name: getattr(args, name) for name in COMMON}
        results: dict[str, Any] = {**about, "runs": {}}
        if args.out and args.out.exists():
            results = json.loads(args.out.read_text(encoding="utf-8"))
            there = {name: results[name] for name in about}
            if there != about:
                sys.exit(f"{args.out} holds another measurement: {there}. This one: {about}")
        print(f"{machine()}, {len(images)} images, {args.epochs} epochs", flush=True)

        def save() -> None:
            if args.out:
                args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

        measure(Bench(args, images, Path(folder)), results["runs"], save)
        print(table(results["runs"]))


if __name__ == "__main__":
    main()
