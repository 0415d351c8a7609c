"""Measure which options of a training help, one at a time, on several sets of images.

    python benchmarks/options.py FOLDER... --out out/options [--seeds 3] [--alpha 0.5]
        [--blocks 4] [--options cosine smoothing ...] [--table]

Each FOLDER holds a folder for each class. For each seed, 60 % of its images are trained on, 20 %
choose what an option needs to have chosen, and 20 % are the test set. The training is that of
`linear_probe_then_fine_tune` on cached features: from a fitted head, the last four blocks of a
MobileNetV2 (`--blocks`) are trained for 12 epochs with Adam at 3e-4 and batches of 32, with
BatchNormalization in inference mode; the last epoch is kept. What options it is compared with:

- constant: the rate stays the same; cosine: it falls along a cosine; one_cycle: it rises along a
  cosine from a 25th in the first quarter of the steps, and falls (Smith and Topin,
  arXiv:1708.07120); warmup: it rises linearly in the first tenth, then falls along a cosine.
- ema: averages of the weights, with a momentum of 0.95, at a constant rate (arXiv:2411.18704).
- interpolation: weights between the fitted head and the trained model (WiSE-FT, arXiv:2109.01903),
  with the share of 0, 0.2, 0.4, 0.6, 0.8, 0.9 or 1 that has the lowest validation loss.
- soup: the greedy mean of the weights of five runs (arXiv:2203.05482): rates of 1e-4 and 3e-4, and
  1e-3, constant or falling. It is compared with the one of them with the lowest validation loss.
- affine: scales and offsets of BatchNormalization alone train, and the head (arXiv:2102.05543), at
  3e-3.
- mixup: features at the cut and labels are mixed, with Beta(0.2, 0.2) (arXiv:1806.05236).
- l2sp: a penalty of 0.1 / 2 on the squared distance to the pretrained weights (arXiv:1802.01483).
- smoothing: labels smoothed by 0.1 (arXiv:1512.00567).
- flip: the mean of the probabilities of each test image and of its mirror image.
- range: at the rate that `learning_rate_range` suggests.
- new head, new head range: from a new head, at 1e-3 and at the rate that `learning_rate_range`
  suggests for it.

All but the first five rows have a rate that falls along a cosine. The steps run in one
`tf.function`, so the script needs TensorFlow. Each result is a JSON file in `--out`; what is there
already is not repeated. `--table` prints a table: differences of accuracy and log loss on the test
images in the mean over seeds, and on how many sets an option is better. The log loss is given as it
is and at the best temperature of each model, which sets apart what only changes its confidence. A
second table has calibration errors, and those of labels that are drawn from the probabilities.
`--options` trains some of the options only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from recipes import calibration_error, of_calibrated

import finetune_kit as ftk
from finetune_kit._train.calibration import best_temperature, losses, tempered
from finetune_kit._train.probe import validated

SIZE, BATCH, EPOCHS, RATE = (224, 224), 32, 12, 3e-4
SHARES = (0.2, 0.4, 0.6, 0.8, 0.9)  # of the way from the start to the trained weights
SOUP = {
    "constant at 1e-4": ("constant", 1e-4), "constant": ("constant", RATE),
    "cosine at 1e-4": ("cosine", 1e-4), "cosine": ("cosine", RATE),
    "cosine at 1e-3": ("cosine", 1e-3),
}  # fmt: skip
TRAININGS = {  # arguments of `Trainer.train`
    **{name: {"schedule": schedule, "rate": rate} for name, (schedule, rate) in SOUP.items()},
    "ema": {"schedule": "constant", "momentum": 0.95}, "one_cycle": {"schedule": "one_cycle"},
    "warmup": {"schedule": "warmup"}, "affine": {"rate": 3e-3, "trains": "affine"},
    "mixup": {"mixup": 0.2}, "l2sp": {"penalty": 0.1}, "smoothing": {"smoothing": 0.1},
}  # fmt: skip
OF_OTHERS = {  # what is made of trainings, and of which
    "range": (), "new head": (), "new head range": (), "flip": ("cosine",),
    "interpolation": ("cosine",), "soup": tuple(SOUP),
}  # fmt: skip
COMPARED = {  # an option, and what it is compared with
    "cosine": "constant", "one_cycle": "constant", "one_cycle ": "cosine", "warmup": "cosine",
    "ema": "constant", "ema ": "cosine", "interpolation": "cosine", "soup": "best single run",
    "affine": "cosine", "mixup": "cosine", "l2sp": "cosine", "smoothing": "cosine",
    "flip": "cosine", "range": "cosine", "new head range": "new head",
}  # fmt: skip


def shares_of_rate(schedule: str, steps: int) -> np.ndarray:
    step = np.arange(steps)
    if schedule == "constant":
        return np.ones(steps)
    if schedule == "one_cycle":
        done = step / steps
        up = 0.5 - 0.5 * np.cos(np.pi * np.minimum(done / 0.25, 1))
        down = 0.5 + 0.5 * np.cos(np.pi * np.clip((done - 0.25) / 0.75, 0, 1))
        return np.where(done < 0.25, 0.04 + 0.96 * up, down)
    warmup = round(0.1 * steps) if schedule == "warmup" else 0
    falling = 0.5 + 0.5 * np.cos(np.pi * np.clip((step - warmup) / (steps - warmup), 0, 1))
    return np.where(step < warmup, (step + 1) / (warmup + 1), falling)


class Trainer:
    """The trailing blocks and a head, which one compiled step trains in all ways."""

    def __init__(self, suffix: keras.Model, features: np.ndarray, labels: np.ndarray) -> None:
        classes = int(labels.max()) + 1
        inputs = keras.Input(suffix.input_shape[1:])
        pooled = keras.layers.GlobalAveragePooling2D()(suffix(inputs))
        self.head = keras.layers.Dense(classes)
        self.model = keras.Model(inputs, self.head(pooled))
        self.pooled = keras.Model(inputs, pooled)
        norms = [x for x in suffix.layers if isinstance(x, keras.layers.BatchNormalization)]
        held = {id(w) for norm in norms for w in norm.weights}
        self.affine = [w for norm in norms for w in (norm.gamma, norm.beta)]
        self.kernels = [w for w in suffix.weights if id(w) not in held]
        self.weights = [*suffix.weights, *self.head.weights]
        self.pretrained = [w.numpy() for w in suffix.weights]
        self._features = tf.constant(features)
        self._targets = tf.one_hot(labels, classes)
        self._classes = classes
        self._predict = tf.function(lambda x: self.model(x, training=False))
        trained = {"blocks": self.kernels, "affine": self.affine}
        self.steps = {kind: self._step([*ws, *self.head.weights]) for kind, ws in trained.items()}

    def _step(self, variables: Sequence[Any]) -> tuple[Any, keras.Optimizer, list[Any]]:
        """Return a training step, its optimizer and the averages of the weights."""
        optimizer = keras.optimizers.Adam()
        optimizer.build(list(variables))
        averages, values = [tf.Variable(v.value) for v in variables], [v.value for v in variables]
        count = len(values) - len(self.head.weights)
        begun = [tf.constant(v.numpy()) for v in variables[:count]]

        @tf.function
        def step(chosen, partners, share, rate, penalty, smoothing, momentum):
            x, y = (tf.gather(part, chosen) for part in (self._features, self._targets))
            x = share * x + (1 - share) * tf.gather(x, partners)
            y = share * y + (1 - share) * tf.gather(y, partners)
            y = y * (1 - smoothing) + smoothing / self._classes
            with tf.GradientTape() as tape:
                logits = self.model(x, training=False)
                loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y, logits))
                pairs = zip(values[:count], begun, strict=True)
                far = tf.add_n([tf.reduce_sum((value - start) ** 2) for value, start in pairs])
                loss += 0.5 * penalty * far
            gradients = tape.gradient(loss, values)
            optimizer.learning_rate.assign(rate)
            optimizer.apply(gradients)
            for average, value in zip(averages, values, strict=True):
                average.assign(momentum * average + (1 - momentum) * value)

        return step, optimizer, averages

    def set(self, weights: Sequence[Any]) -> None:
        for variable, value in zip(self.weights, weights, strict=True):
            variable.assign(value)

    def scores(self, features: np.ndarray) -> np.ndarray:
        logits = [self._predict(features[i : i + 64]) for i in range(0, len(features), 64)]
        return tf.nn.softmax(tf.cast(tf.concat(logits, 0), "float64")).numpy()

    def train(
        self,
        start: Sequence[np.ndarray],
        rows: np.ndarray,
        seed: int,
        schedule: str = "cosine",
        *,
        rate: float = RATE,
        trains: str = "blocks",
        mixup: float = 0.0,
        penalty: float = 0.0,
        smoothing: float = 0.0,
        momentum: float = 0.0,
    ) -> list[np.ndarray]:
        """Train from a start, and return the weights; with a momentum their averages."""
        self.set(start)
        step, optimizer, averages = self.steps[trains]
        for variable in optimizer.variables:
            variable.assign(tf.zeros_like(variable.value))
        for average, value in zip(averages, self._trained(trains), strict=True):
            average.assign(value.value)
        total = EPOCHS * math.ceil(len(rows) / BATCH)
        rates = iter(rate * shares_of_rate(schedule, total))
        rng = np.random.default_rng((seed, 77))
        for epoch in range(EPOCHS):
            order = np.random.default_rng((seed, epoch)).permutation(rows)
            for i in range(0, len(order), BATCH):
                chosen = order[i : i + BATCH]
                share = rng.beta(mixup, mixup) if mixup else 1.0
                partners = rng.permutation(len(chosen))
                values = (share, next(rates), penalty, smoothing, momentum)
                given = [tf.constant(value, tf.float32) for value in values]
                step(tf.constant(chosen), tf.constant(partners), *given)
        if momentum:
            for average, variable in zip(averages, self._trained(trains), strict=True):
                variable.assign(average)
        return [w.numpy() for w in self.weights]

    def _trained(self, trains: str) -> list[Any]:
        return [*(self.affine if trains == "affine" else self.kernels), *self.head.weights]


def features_of(folder: Path, backbone: keras.Model, at: str, kept: Path) -> tuple[Any, Any]:
    """Return the features of the images of a folder, and those of their mirror images."""
    images = ftk.read_image_folder(folder)
    pixels = np.concatenate([images.load(np.arange(i, i + 1), SIZE) for i in range(len(images))])
    return tuple(
        ftk.extract_features(
            backbone,
            ftk.ImageSet.from_arrays(x, images.labels, images.class_names),
            at=at,
            pooling=None,
            features=kept,
            verbose=0,
        )
        for x in (pixels, np.ascontiguousarray(pixels[:, :, ::-1]))
    )


def suggested(
    backbone: keras.Model,
    blocks: int,
    images: ftk.ImageSet,
    kept: Path,
    weights: Any,
    rows: np.ndarray,
) -> float:
    """Return the rate that the range test suggests, from a head with some weights."""
    head = ftk.classification_head(images.class_names, pooling="avg")
    head.build(backbone.output_shape)
    head.layers[-1].set_weights(weights)
    spec = ftk.FineTuneSpec(blocks)
    train = images.take(rows)
    found = ftk.learning_rate_range(backbone, head, spec, train, features=kept, verbose=0)
    print(found, flush=True)
    return found.suggestion


def measure(
    trainer: Trainer,
    rate_for: Callable[[Any, np.ndarray], float],
    both: tuple[Any, Any],
    images: ftk.ImageSet,
    seed: int,
    options: Sequence[str],
) -> Any:
    """Return the scores of options: of the test and the validation images."""
    features, mirrored = both
    sets = images.split((0.6, 0.2, 0.2), seed=seed)
    rows, after, test = (np.asarray(part.rows) for part in sets)
    labels, classes = images.labels, len(images.class_names)
    trainer.set([*trainer.pretrained, *trainer.head.get_weights()])
    pooled = trainer.pooled.predict(features, batch_size=64, verbose=0)
    probe = validated(pooled, labels, [(rows, after)], classes).probes[0]
    start = [*trainer.pretrained, probe.kernel.astype("float32"), probe.bias.astype("float32")]
    found: dict[str, Any] = {}

    def note(name: str, weights: Sequence[Any]) -> float:
        trainer.set(weights)
        found[name] = [trainer.scores(features[part]) for part in (test, after)]
        return float(losses(found[name][1], labels[after]).mean())

    note("probe", start)
    needed = {*options, *(each for name in options for each in OF_OTHERS.get(name, ()))}
    kept, loss_of = {}, {}
    for name in [name for name in TRAININGS if name in needed]:
        kept[name] = trainer.train(start, rows, seed, **TRAININGS[name])
        loss_of[name] = note(name, kept[name])
    rng = np.random.default_rng(seed)
    limit = math.sqrt(6 / (pooled.shape[1] + classes))
    new = [rng.uniform(-limit, limit, start[-2].shape).astype("float32"), np.zeros_like(start[-1])]
    for name, head in (("range", start[-2:]), ("new head range", new)):
        if name in options:
            rate = rate_for(head, rows)
            note(name, trainer.train([*trainer.pretrained, *head], rows, seed, rate=rate))
    if "new head" in options:
        note("new head", trainer.train([*trainer.pretrained, *new], rows, seed, rate=1e-3))
    if "flip" in options:
        trainer.set(kept["cosine"])
        mirror = [trainer.scores(mirrored[part]) for part in (test, after)]
        found["flip"] = [(a + b) / 2 for a, b in zip(found["cosine"], mirror, strict=True)]
    if "interpolation" in options:
        between = {0.0: start, 1.0: kept["cosine"]}
        for share in SHARES:
            pairs = zip(start, kept["cosine"], strict=True)
            between[share] = [a + share * (b - a) for a, b in pairs]
        best = min(between.values(), key=lambda each: note("interpolation", each))
        note("interpolation", best)
    if "soup" in options:
        first, *others = sorted(SOUP, key=lambda name: loss_of[name])
        found["best single run"] = found[first]
        lowest, chosen = loss_of[first], [kept[first]]
        for name in others:
            loss = note("soup", mean_of([*chosen, kept[name]]))
            if loss <= lowest:
                lowest, chosen = loss, [*chosen, kept[name]]
        note("soup", mean_of(chosen))
    return {
        "labels": [labels[part].tolist() for part in (test, after)],
        "scores": {name: [x.round(7).tolist() for x in pair] for name, pair in found.items()},
    }


def mean_of(runs: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.mean(values, axis=0) for values in zip(*runs, strict=True)]


def measures(result: Any, name: str) -> np.ndarray:
    """Return accuracy, log loss, and the log loss at the best temperature, on the test images."""
    test, truth = np.array(result["scores"][name][0]), np.array(result["labels"][0])
    scaled = tempered(test, best_temperature(test, truth), softmax=True)
    accuracy = (test.argmax(1) == truth).mean()
    return np.array([accuracy, losses(test, truth).mean(), losses(scaled, truth).mean()])


def results_in(out: Path) -> dict[str, list[Any]]:
    """Return the results of each set of images."""
    results: dict[str, list[Any]] = {}
    for file in sorted(out.glob("*.json")):
        results.setdefault(file.stem.rsplit("-", 1)[0], []).append(json.loads(file.read_text()))
    if not results:
        sys.exit(f"--out must hold results; name folders of images to make some. Received: {out}")
    return results


def table(results: Mapping[str, Sequence[Any]]) -> str:
    """Return a Markdown table of the paired differences."""
    runs = sum(map(len, results.values()))
    lines = [
        f"{len(results)} sets, {runs} runs. Log loss: as it is / at the best temperature.",
        "",
        "| option | compared with | accuracy | higher on | log loss | lower on |",
        "|---|---|---:|---:|---:|---:|",
    ]
    measured = set.intersection(*({*r["scores"]} for of_set in results.values() for r in of_set))
    for option, other in COMPARED.items():
        if not {option.strip(), other} <= measured:
            continue
        differences = np.array([
            np.mean([measures(r, option.strip()) - measures(r, other) for r in of_set], axis=0)
            for of_set in results.values()
        ])  # fmt: skip
        better = (differences * [1, -1, -1] > 0).sum(axis=0)
        mean = differences.mean(axis=0)
        lines.append(
            f"| {option.strip()} | {other} | {mean[0]:+.3f} | {better[0]} | "
            f"{mean[1]:+.3f} / {mean[2]:+.3f} | {better[1]} / {better[2]} |"
        )
    return "\n".join(lines)


def calibration(results: Mapping[str, Sequence[Any]]) -> str:
    """Return a Markdown table of calibration errors, of all seeds of a set together."""
    measured = set.intersection(*({*r["scores"]} for of_set in results.values() for r in of_set))
    lines = [
        "| option | calibration error | at the validation images' temperature | if calibrated |",
        "|---|---:|---:|---:|",
    ]
    for option in sorted(measured):
        values = []
        for of_set in results.values():
            labels = np.concatenate([result["labels"][0] for result in of_set])
            plain = np.concatenate([result["scores"][option][0] for result in of_set])
            scaled = np.concatenate([at_validation(result, option) for result in of_set])
            errors = [calibration_error(labels, scores) for scores in (plain, scaled)]
            values.append([*errors, of_calibrated(scaled)])
        mean = " | ".join(f"{value:.3f}" for value in np.mean(values, axis=0))
        lines.append(f"| {option} | {mean} |")
    return "\n".join(lines)


def at_validation(result: Any, option: str) -> np.ndarray:
    """Return the test scores at the temperature that is best for the validation images."""
    test, validation = (np.array(scores) for scores in result["scores"][option])
    temperature = best_temperature(validation, np.array(result["labels"][1]))
    return tempered(test, temperature, softmax=True)


def about(args: argparse.Namespace) -> dict[str, Any]:
    return {"alpha": args.alpha, "blocks": args.blocks, "options": sorted(args.options)}


def check_options(file: Path, args: argparse.Namespace) -> None:
    """End if a result was measured with other options."""
    known = json.loads(file.read_text()).get("about")
    if known != about(args):
        sys.exit(f"--out must hold results of {about(args)}; use another --out. "
                 f"Received: {file} with {known}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--blocks", type=int, default=4)
    known = sorted({*TRAININGS, *OF_OTHERS})
    parser.add_argument("--options", nargs="+", choices=known, default=known, metavar="OPTION")
    parser.add_argument("--table", action="store_true", help="print the table and end")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in [] if args.table else range(args.seeds):
        for folder in args.folders:
            file = args.out / f"{folder.name}-{seed}.json"
            if file.exists():
                check_options(file, args)
                continue
            backbone = keras.applications.MobileNetV2(
                input_shape=(*SIZE, 3), alpha=args.alpha, include_top=False, weights="imagenet"
            )
            blocks = ftk.conv_blocks(backbone)
            suffix = ftk.cut(backbone, blocks[-args.blocks].name)[1]
            at = blocks[-args.blocks - 1].name
            both = features_of(folder, backbone, at, args.out / "features")
            images = ftk.read_image_folder(folder)
            trainer = Trainer(suffix, both[0], images.labels)
            rate_for = partial(suggested, backbone, args.blocks, images, args.out / "features")
            result = measure(trainer, rate_for, both, images, seed, args.options)
            draft = file.with_suffix(".part")
            draft.write_text(json.dumps({**result, "about": about(args)}))
            draft.replace(file)
            print(file.name, flush=True)
    results = results_in(args.out)
    print(table(results))
    print(f"\n{calibration(results)}")


if __name__ == "__main__":
    main()
