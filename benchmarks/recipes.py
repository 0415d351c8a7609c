"""Compare `recommend` with the recipes that people use, on several sets of images.

    python benchmarks/recipes.py FOLDER... --out out/recipes [--seeds 5] [--alpha 0.5]
        [--methods probe recommend ...]

Each FOLDER holds a folder for each class. For each seed, a fifth of its images is the test set;
every method gets the others and nothing else:

- keras: the recipe of Keras' guide "Transfer learning & fine-tuning": average pooling, dropout of
  0.2, 20 epochs of the head with Adam at 1e-3, then 10 epochs of the whole model at 1e-5, with
  BatchNormalization in inference mode.
- fastai: the schedule of fastai's `fine_tune(5)`: its head (average and maximum pooling, a hidden
  layer of 512, BatchNormalization, dropout), one epoch of the head at 2e-3, then five of all at
  rates from 1e-5 to 1e-3 by depth, both one-cycle, AdamW, BatchNormalization training. Images are
  not augmented, as for the other methods.
- probe: scikit-learn's logistic regression on scaled, average-pooled features, C chosen by
  cross-validation on the log loss.
- recommend: `recommend`, and `fine_tune` with what it returns.

Each result is a JSON file in `--out` with the test scores; what is there already is not repeated.
`--table` prints a table from them: accuracy / log loss / expected calibration error of each method,
and paired differences over the sets.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from scipy.stats import t as student

import finetune_kit as ftk

SIZE = 224
BATCH = 32


def backbone_of(alpha: float) -> keras.Model:
    return keras.applications.MobileNetV2(
        alpha=alpha, include_top=False, weights="imagenet", input_shape=(SIZE, SIZE, 3)
    )


def pixels_of(images: ftk.ImageSet) -> np.ndarray:
    x = np.concatenate([images.load(np.arange(i, i + 1)) for i in range(len(images))])
    return x.astype(np.float32) / 127.5 - 1


def fit(model: keras.Model, x: Any, y: Any, epochs: int, optimizer: keras.Optimizer) -> None:
    model.compile(optimizer, loss="sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)


def keras_guide(alpha: float, train: ftk.ImageSet, test: ftk.ImageSet, seed: int) -> np.ndarray:
    keras.utils.set_random_seed(seed)
    backbone = backbone_of(alpha)
    backbone.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(backbone(inputs, training=False))
    x = keras.layers.Dropout(0.2)(x)
    outputs = keras.layers.Dense(len(train.class_names), activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    pixels = pixels_of(train)
    fit(model, pixels, train.labels, 20, keras.optimizers.Adam(1e-3))
    backbone.trainable = True
    fit(model, pixels, train.labels, 10, keras.optimizers.Adam(1e-5))
    return model.predict(pixels_of(test), batch_size=BATCH, verbose=0)


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A quarter of the steps up along a cosine from a 25th, then down to almost nothing."""

    def __init__(self, rate: float, steps: int) -> None:
        super().__init__()
        self.rate, self.steps = rate, steps

    def __call__(self, step: Any) -> Any:
        ops = keras.ops
        done = ops.cast(step, "float32") / self.steps
        up = 0.5 - 0.5 * ops.cos(math.pi * ops.minimum(done / 0.25, 1.0))
        down = 0.5 + 0.5 * ops.cos(math.pi * ops.clip((done - 0.25) / 0.75, 0.0, 1.0))
        return ops.where(
            done < 0.25, self.rate * (0.04 + 0.96 * up), self.rate * (1e-5 + (1 - 1e-5) * down)
        )


def one_cycle(rate: float, steps: int) -> keras.Optimizer:
    return keras.optimizers.AdamW(
        OneCycle(rate, steps), weight_decay=0.01, beta_2=0.99, epsilon=1e-5
    )


def fastai(alpha: float, train: ftk.ImageSet, test: ftk.ImageSet, seed: int) -> np.ndarray:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    backbone = backbone_of(alpha)
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # PyTorch's 0.1; Keras' 0.999 takes thousands of steps
    norms = [
        w for x in backbone.layers if isinstance(x, layers.BatchNormalization) for w in x.weights
    ]
    x = backbone.output
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    for units, rate, activation in ((512, 0.25, "relu"), (len(train.class_names), 0.5, "softmax")):
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.Dropout(rate)(x)
        x = layers.Dense(units, activation=activation, use_bias=activation == "softmax")(x)
    model = keras.Model(backbone.input, x)
    pixels, steps = pixels_of(train), math.ceil(len(train) / BATCH)
    for layer in backbone.layers:
        layer.trainable = isinstance(layer, layers.BatchNormalization)
    fit(model, pixels, train.labels, 1, one_cycle(2e-3, steps))
    for layer in backbone.layers:
        layer.trainable = True
    known = {id(w) for w in backbone.trainable_weights}
    body = list(backbone.trainable_weights)
    half = len(body) // 2
    # Three groups of layers, their rates a factor of ten apart, as slice(1e-5, 1e-3) does.
    groups = [one_cycle(rate, 5 * steps) for rate in (1e-5, 1e-4, 1e-3)]
    by_path = {w.path: groups[0 if i < half else 1] for i, w in enumerate(body)}
    by_path |= {w.path: groups[2] for w in model.trainable_weights if id(w) not in known}
    norm_ids = {id(w) for w in norms}
    for group in groups:
        mine = [w for w in model.trainable_weights if by_path[w.path] is group]
        group.exclude_from_weight_decay([w for w in mine if id(w) in norm_ids or len(w.shape) < 2])
    several = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(groups[2], by_path))
    fit(model, pixels, train.labels, 5, several)
    return model.predict(pixels_of(test), batch_size=BATCH, verbose=0)


def probe(alpha: float, train: ftk.ImageSet, test: ftk.ImageSet, seed: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = [
        ftk.extract_features(backbone_of(alpha), images, verbose=0) for images in (train, test)
    ]
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=np.logspace(-5, 1, 13), cv=ftk.StratifiedFolds(5, seed=seed),
            scoring="neg_log_loss", max_iter=500, l1_ratios=(0.0,), use_legacy_attributes=False,
        ),
    )  # fmt: skip
    return model.fit(features[0], train.labels).predict_proba(features[1])


def recommended(alpha: float, train: ftk.ImageSet, test: ftk.ImageSet, seed: int) -> np.ndarray:
    backbone = backbone_of(alpha)
    found = ftk.recommend(backbone, train, seed=seed, verbose=0)
    print(found, flush=True)
    tuned = ftk.fine_tune(backbone, found.head, found.specs, train, **found.keywords, verbose=0)
    return ftk.predict(tuned, test).probabilities


METHODS = {"keras": keras_guide, "fastai": fastai, "probe": probe, "recommend": recommended}


def run(folder: Path, alpha: float, seed: int, out: Path, methods: list[str]) -> None:
    images = ftk.read_image_folder(folder)
    train, validation, test = images.split((0.6, 0.2, 0.2), seed=seed)
    for name in methods:
        method = METHODS[name]
        file = out / f"{folder.name}-{alpha}-{seed}-{name}.json"
        if file.exists():
            continue
        started, processor = time.perf_counter(), time.process_time()
        scores = np.asarray(method(alpha, train + validation, test, seed), np.float64)
        result = {
            "set": folder.name, "alpha": alpha, "seed": seed, "method": name,
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - processor,
            "labels": test.labels.tolist(), "scores": scores.round(7).tolist(),
            "class_names": list(test.class_names), "digests": list(test.digests()),
            "keras": [keras.__version__, keras.backend.backend()],
        }  # fmt: skip
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps(result))
        draft.replace(file)
        print(name, folder.name, seed, f"{result['seconds']:.0f} s", flush=True)


def measures(result: dict[str, Any]) -> dict[str, float]:
    """Return accuracy, log loss and calibration error on the test images, and the seconds."""
    scores, labels = np.array(result["scores"]), np.array(result["labels"])
    scores /= scores.sum(axis=1, keepdims=True)
    report = ftk.Report.from_scores(labels, scores, result["class_names"], resamples=1)
    names = ("accuracy", "log_loss", "expected_calibration_error")
    return {name: report.metrics[name].value for name in names} | {
        "seconds": result["processor_seconds"]
    }


def table(out: Path, methods: list[str]) -> str:
    """Return a Markdown table: means over seeds, and paired differences over the sets."""
    found: dict[str, dict[tuple[str, int], dict[str, float]]] = defaultdict(dict)
    for file in sorted(out.glob("*.json")):
        result = json.loads(file.read_text())
        found[result["method"]][result["set"], result["seed"]] = measures(result)
    shared = sorted(set.intersection(*({*found[name]} for name in methods)))
    sets = sorted({name for name, _ in shared})
    lines = [
        f"| set | seeds | {' | '.join(methods)} |",
        f"|---|---:|{'---:|' * len(methods)}",
    ]
    means = defaultdict(list)
    for name in sets:
        runs = [run for run in shared if run[0] == name]
        cells = []
        for method in methods:
            mean = {
                key: np.mean([found[method][run][key] for run in runs])
                for key in found[method][runs[0]]
            }
            means[method].append(mean)
            cells.append(
                f"{mean['accuracy']:.3f} / {mean['log_loss']:.2f} / "
                f"{mean['expected_calibration_error']:.2f}"
            )
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    lines += [
        "",
        "| `recommend` minus | accuracy | log loss | processor time, ratio |",
        "|---|---:|---:|---:|",
    ]
    for method in methods:
        if method == "recommend":
            continue
        cells = []
        for key in ("accuracy", "log_loss"):
            pairs = zip(means["recommend"], means[method], strict=True)
            differences = np.array([ours[key] - theirs[key] for ours, theirs in pairs])
            error = differences.std(ddof=1) / math.sqrt(len(sets))
            half = student.ppf(0.975, len(sets) - 1) * error
            mean = differences.mean()
            cells.append(f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})")
        pairs = zip(means["recommend"], means[method], strict=True)
        ratio = np.exp(np.mean([math.log(ours["seconds"] / o["seconds"]) for ours, o in pairs]))
        lines.append(f"| {method} | {' | '.join(cells)} | {ratio:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD"
    )
    parser.add_argument("--table", action="store_true", help="print the table and end")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        for seed in range(args.seeds):
            for folder in args.folders:
                run(folder, args.alpha, seed, args.out, args.methods)
    print(table(args.out, args.methods))


if __name__ == "__main__":
    main()
