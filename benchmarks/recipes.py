"""Compare `recommend` with the recipes that people use, on several sets of images.

    python benchmarks/recipes.py FOLDER... --out out/recipes [--seeds 5] [--alpha 0.5 0.35]
        [--methods probe recommend ...] [--table]

Each FOLDER holds a folder for each class. For each seed, a fifth of its images is the test set;
every method gets the others and nothing else:

- keras: the recipe of Keras' guide "Transfer learning & fine-tuning": average pooling, dropout of
  0.2, 20 epochs of the head with Adam at 1e-3, then 10 epochs of the whole model at 1e-5, with
  BatchNormalization in inference mode. The frozen backbone is computed once, not in each epoch.
- fastai: the schedule of fastai's `fine_tune(5)`: its head (average and maximum pooling, a hidden
  layer of 512, BatchNormalization, dropout), one epoch of the head at 2e-3, then five of all at
  rates from 1e-5 to 1e-3 by depth, both one-cycle, AdamW, BatchNormalization training. Images are
  not augmented, as for the other methods.
- probe: scikit-learn's logistic regression on scaled, average-pooled features, C chosen by
  cross-validation on the log loss.
- depths: the same on the pooled features of the second half of the blocks, joined.
- recommend: `recommend`, and `fine_tune` with what it returns. Afterwards each of the recipes that
  it chose from is trained too, for the comparison with the best one in hindsight.
- deep: `recommend(depths=True)`, and `fine_tune`.
- thorough: `recommend(budget="thorough")`, and `fine_tune`.
- lp-ft: what `finetune-kit train --recipe lp-ft` does, with 18 % of the images to validate on. By
  default it does what is called recommend here.

Each result is a JSON file in `--out` with the test scores; what is there already is not repeated.
All sets and methods come with seed 0 first, then with seed 1, and so on. With seed 0 each method
starts without features and is called a second time with them, for the seconds of a cold and of a
warm start. With the other seeds features are kept in `--out`, and no seconds are compared.

`--table` prints tables from the results, writes them to `tables.md` and draws `recipes.svg` from
them, in `--out`. It compares the runs that all `--methods` (default: all that have results) have.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from scipy.stats import t as student

import finetune_kit as ftk
from finetune_kit._report.metrics import calibration_bins
from finetune_kit._train.calibration import losses, tempered
from finetune_kit._train.trials import candidates

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


def keras_guide(alpha: float, train: ftk.ImageSet, test: ftk.ImageSet, seed: int, kept: str) -> Any:
    keras.utils.set_random_seed(seed)
    backbone = backbone_of(alpha)
    backbone.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(inputs, training=False))
    given = keras.Input(pooled.shape[1:])
    x = keras.layers.Dropout(0.2)(given)
    head = keras.Model(given, keras.layers.Dense(len(train.class_names), "softmax")(x))
    pixels = pixels_of(train)
    features = keras.Model(inputs, pooled).predict(pixels, batch_size=BATCH, verbose=0)
    fit(head, features, train.labels, 20, keras.optimizers.Adam(1e-3))
    backbone.trainable = True
    model = keras.Model(inputs, head(pooled))
    fit(model, pixels, train.labels, 10, keras.optimizers.Adam(1e-5))
    return model.predict(pixels_of(test), batch_size=BATCH, verbose=0), {}


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


def fastai(alpha: float, train: ftk.ImageSet, test: ftk.ImageSet, seed: int, kept: str) -> Any:
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
    return model.predict(pixels_of(test), batch_size=BATCH, verbose=0), {}


def probe(
    alpha: float,
    train: ftk.ImageSet,
    test: ftk.ImageSet,
    seed: int,
    kept: str,
    *,
    depths: bool = False,
) -> Any:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    backbone = backbone_of(alpha)
    names = [block.name for block in ftk.conv_blocks(backbone)]
    at = names[len(names) // 2 :] if depths else None
    found = [
        ftk.extract_features(backbone, images, at=at, features=kept, verbose=0)
        for images in (train, test)
    ]
    x, others = (np.hstack([*each.values()]) if isinstance(each, dict) else each for each in found)
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=np.logspace(-5, 1, 13), cv=ftk.StratifiedFolds(5, seed=seed),
            scoring="neg_log_loss", max_iter=500, l1_ratios=(0.0,), use_legacy_attributes=False,
        ),
    )  # fmt: skip
    return model.fit(x, train.labels).predict_proba(others), {"features": x.shape[1]}


def recommended(
    alpha: float,
    train: ftk.ImageSet,
    test: ftk.ImageSet,
    seed: int,
    kept: str,
    **options: Any,
) -> Any:
    backbone = backbone_of(alpha)
    found = ftk.recommend(backbone, train, features=kept, seed=seed, verbose=0, **options)
    print(found, flush=True)
    tuned = ftk.fine_tune(
        found.backbone, found.head, found.specs, train, **found.keywords, verbose=0
    )
    about = {
        "backbone": found.backbone.name,
        "recipe": next(row.recipe for row in found.evidence if row.recommended),
        "temperature": found.keywords["calibrate"],
        "found": found,
    }
    return ftk.predict(tuned, test).probabilities, about


def lp_ft(alpha: float, train: ftk.ImageSet, test: ftk.ImageSet, seed: int, kept: str) -> Any:
    keras.utils.set_random_seed(seed)
    train, validation, _ = train.split((0.82, 0.18, 0), seed=seed)
    head = ftk.classification_head(train.class_names)
    specs = ftk.linear_probe_then_fine_tune(2, probe_epochs=10, epochs=10)
    stop = keras.callbacks.EarlyStopping(patience=5)
    options: dict[str, Any] = {"features": kept, "seed": seed, "verbose": 0, "callbacks": [stop]}
    tuned = ftk.fine_tune(backbone_of(alpha), head, specs, train, validation, **options)
    return ftk.predict(tuned, test).probabilities, {}


def in_hindsight(
    alpha: float,
    train: ftk.ImageSet,
    test: ftk.ImageSet,
    found: ftk.Recommendation,
    known: dict[str, Any],
) -> dict[str, Any]:
    """Return the test scores of all recipes that `recommend` chose from, without a temperature.

    The scores in `known` are of the one that it chose.
    """
    backbone = backbone_of(alpha)
    chosen = candidates(len(ftk.conv_blocks(backbone)), "fast")
    specs = {"the head alone": ftk.FineTuneSpec(0, learning_rate=1e-6)}
    specs |= {candidate.name: candidate.spec for candidate in chosen}
    scores = {}
    for name, spec in specs.items():
        if name in known:
            scores[name] = known[name]
            continue
        options = {**found.keywords, "calibrate": False, "verbose": 0}
        tuned = ftk.fine_tune(backbone, found.head, spec, train, **options)
        scores[name] = ftk.predict(tuned, test).probabilities.round(7).tolist()
    return scores


METHODS: dict[str, Callable[..., Any]] = {
    "keras": keras_guide,
    "fastai": fastai,
    "probe": probe,
    "depths": partial(probe, depths=True),
    "recommend": recommended,
    "deep": partial(recommended, depths=True),
    "thorough": partial(recommended, budget="thorough"),
    "lp-ft": lp_ft,
}
OTHERS = ("keras", "fastai", "probe")  # what `recommend` is compared with


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return a result, the seconds it took, and those of the processors."""
    started, before = time.perf_counter(), processor_seconds()
    result = call()
    return result, time.perf_counter() - started, processor_seconds() - before


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def run(folder: Path, alpha: float, seed: int, out: Path, methods: list[str]) -> None:
    files = {name: out / f"{folder.name}-{alpha}-{seed}-{name}.json" for name in methods}
    if all(file.exists() for file in files.values()):
        return
    images = ftk.read_image_folder(folder)
    train, validation, test = images.split((0.6, 0.2, 0.2), seed=seed)
    train += validation
    for name, file in files.items():
        if file.exists():
            continue
        with folder_of(out / "features" / f"{folder.name}-{alpha}", cold=seed == 0) as kept:
            call = partial(METHODS[name], alpha, train, test, seed, kept)
            (scores, about), seconds, processor = timed(call)
            if seed == 0:
                again = any(Path(kept).iterdir())
                about["cold"], about["warm"] = processor, timed(call)[2] if again else processor
            found = about.pop("found", None)
            if name == "recommend":
                plain = tempered(scores, 1 / about["temperature"], softmax=True)
                known = {about["recipe"]: plain.round(7).tolist()}
                about["in_hindsight"] = in_hindsight(alpha, train, test, found, known)
        result = {
            "set": folder.name, "alpha": alpha, "seed": seed, "method": name,
            "seconds": seconds, **about,
            "labels": test.labels.tolist(), "scores": np.asarray(scores).round(7).tolist(),
            "class_names": list(test.class_names), "digests": list(test.digests()),
            "keras": [keras.__version__, keras.backend.backend()],
        }  # fmt: skip
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps(result))
        draft.replace(file)
        print(name, folder.name, alpha, seed, f"{seconds:.0f} s", flush=True)


def folder_of(kept: Path, *, cold: bool) -> AbstractContextManager[str]:
    """Return a folder for features: an empty one that is removed, or one that is kept."""
    return tempfile.TemporaryDirectory() if cold else nullcontext(str(kept))


Runs = dict[tuple[str, int], Any]  # by set and seed


def read(out: Path, alpha: float, methods: Sequence[str]) -> dict[str, Runs]:
    """Return the runs that all methods have, by method."""
    found: dict[str, Runs] = defaultdict(dict)
    for file in sorted(out.glob(f"*-{alpha}-*.json")):
        result = json.loads(file.read_text())
        scores = np.array(result["scores"])
        result["scores"] = scores / scores.sum(axis=1, keepdims=True)
        result["labels"] = np.array(result["labels"])
        found[result["method"]][result["set"], result["seed"]] = result
    chosen = [name for name in methods if found[name]]
    shared = set.intersection(*({*found[name]} for name in chosen)) if chosen else set()
    return {name: {key: found[name][key] for key in sorted(shared)} for name in chosen}


def right(result: Any) -> np.ndarray:
    return (result["scores"].argmax(1) == result["labels"]).astype(float)


def log_losses(result: Any) -> np.ndarray:
    return losses(result["scores"], result["labels"])


MEASURES = {"accuracy": right, "log loss": log_losses}  # of each image


def by_set(runs: Runs, measure: Callable[[Any], np.ndarray]) -> dict[str, float]:
    """Return the mean over images and seeds of each set."""
    means = defaultdict(list)
    for (name, _), result in runs.items():
        means[name].append(measure(result).mean())
    return {name: float(np.mean(values)) for name, values in means.items()}


def calibration_error(labels: np.ndarray, scores: np.ndarray) -> float:
    bins = calibration_bins(labels, scores)
    gaps = np.abs(bins.confidence - bins.correct / np.maximum(bins.counts, 1))
    return float(gaps @ bins.counts / bins.counts.sum())


def of_calibrated(scores: np.ndarray) -> float:
    """Return the calibration error where each class is as frequent as its probability says."""
    rng = np.random.default_rng(0)
    sums = scores.cumsum(axis=1)
    drawn = [(sums < rng.random((len(scores), 1))).sum(1).clip(max=scores.shape[1] - 1)
             for _ in range(20)]  # fmt: skip
    return float(np.mean([calibration_error(labels, scores) for labels in drawn]))


def pooled(runs: Runs, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the labels and scores of a set, of all seeds, and the scores without temperature."""
    found = [result for (each, _), result in runs.items() if each == name]
    plain = [tempered(r["scores"], 1 / r.get("temperature", 1.0), softmax=True) for r in found]
    parts = [r["labels"] for r in found], [r["scores"] for r in found], plain
    labels, scores, plain_scores = map(np.concatenate, parts)
    return labels, scores, plain_scores


def interval(values: Sequence[float]) -> str:
    """Return the mean over sets with its 95 % interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return f"{mean:+.3f}"
    half = student.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def paired(one: Runs, other: Runs, name: str, measure: Callable[[Any], np.ndarray]) -> str:
    """Return the mean difference on a set with its 95 % interval, by images.

    An image that is in the test sets of several seeds counts as one observation.
    """
    keys = [key for key in one if key[0] == name]
    digests = np.concatenate([one[key]["digests"] for key in keys])
    values = np.concatenate([measure(one[key]) - measure(other[key]) for key in keys])
    mean = values.mean()
    sums = np.bincount(np.unique(digests, return_inverse=True)[1], weights=values - mean)
    half = 1.96 * math.sqrt((sums**2).sum()) / len(values)
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def quality(found: dict[str, Runs]) -> list[str]:
    lines = [f"| set | seeds | {' | '.join(found)} |", f"|---|---:|{'---:|' * len(found)}"]
    means = [[by_set(runs, measure) for measure in MEASURES.values()] for runs in found.values()]
    runs = next(iter(found.values()))
    for name in dict.fromkeys(key[0] for key in runs):
        cells = [f"{accuracy[name]:.3f} / {loss[name]:.3f}" for accuracy, loss in means]
        lines.append(f"| {name} | {sum(key[0] == name for key in runs)} | {' | '.join(cells)} |")
    cells = [" / ".join(f"{np.mean([*each.values()]):.3f}" for each in pair) for pair in means]
    return [*lines, f"| mean | | {' | '.join(cells)} |"]


def calibration(found: dict[str, Runs]) -> list[str]:
    lines = [
        "| method | calibration error | without temperature | of calibrated ones |",
        "|---|---:|---:|---:|",
    ]
    for method, runs in found.items():
        values = []
        for name in dict.fromkeys(key[0] for key in runs):
            labels, scores, plain = pooled(runs, name)
            values.append((
                calibration_error(labels, scores), calibration_error(labels, plain),
                of_calibrated(scores),
            ))  # fmt: skip
        mean = np.mean(values, axis=0)
        lines.append(f"| {method} | {' | '.join(f'{value:.3f}' for value in mean)} |")
    return lines


def differences(found: dict[str, Runs]) -> list[str]:
    lines = [
        "| `recommend` minus | accuracy | log loss | processor time, cold | warm |",
        "|---|---:|---:|---:|---:|",
    ]
    ours = found["recommend"]
    for method, runs in found.items():
        if method == "recommend":
            continue
        cells = []
        for measure in MEASURES.values():
            one, other = by_set(ours, measure), by_set(runs, measure)
            cells.append(interval([one[name] - other[name] for name in one]))
        for key in ("cold", "warm"):
            first = [run for run in ours if key in ours[run] and key in runs[run]]
            ratios = [math.log(ours[run][key] / runs[run][key]) for run in first]
            cells.append(f"x {math.exp(np.mean(ratios)):.1f}" if ratios else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def against_the_best(found: dict[str, Runs]) -> list[str]:
    """Compare with the best of the others on each set, chosen by these very test images."""
    lines = ["| set | best other by accuracy | accuracy | best other by log loss | log loss |",
             "|---|---|---:|---|---:|"]  # fmt: skip
    others = {name: found[name] for name in OTHERS if name in found}
    if not others:
        return []
    for name in dict.fromkeys(key[0] for key in found["recommend"]):
        cells = []
        for sign, measure in zip((1, -1), MEASURES.values(), strict=True):
            best = max(others, key=lambda each: sign * by_set(others[each], measure)[name])
            cells += [best, paired(found["recommend"], others[best], name, measure)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def regret(found: dict[str, Runs]) -> list[str]:
    """Say how much accuracy is lost to the best recipe in hindsight, by the test images."""
    ours = found["recommend"]
    single: dict[str, Runs] = {name: found[name] for name in OTHERS if name in found}
    for name in next(iter(ours.values()))["in_hindsight"]:
        single[name] = {
            key: {**result, "scores": np.array(result["in_hindsight"][name])}
            for key, result in ours.items()
        }
    means = {name: by_set(runs, right) for name, runs in single.items()}
    mine = by_set(ours, right)
    best = max(means, key=lambda name: np.mean([*means[name].values()]))
    lines = ["| recipe | mean accuracy |", "|---|---:|"]
    lines += [f"| {name} | {np.mean([*each.values()]):.3f} |" for name, each in means.items()]
    lost = [means[best][name] - mine[name] for name in mine]
    highest = [max(each[name] for each in means.values()) - mine[name] for name in mine]
    return [
        *lines, f"| `recommend` | {np.mean([*mine.values()]):.3f} |", "",
        f"Regret against the best single recipe in hindsight, {best}: {interval(lost)}; against "
        f"the best recipe of each set: {interval(highest)}.",
    ]  # fmt: skip


def tables(out: Path, alpha: float, methods: Sequence[str]) -> str:
    """Return the tables of a backbone in Markdown."""
    found = read(out, alpha, methods)
    if not found or not next(iter(found.values())):
        return f"MobileNetV2 x{alpha}: no run that all methods have"
    lines = [
        f"## MobileNetV2 x{alpha}", "", "Accuracy / log loss, means over seeds:", "",
        *quality(found), "",
        "Calibration error over 15 bins, of all seeds together, in the mean over the sets:", "",
        *calibration(found),
    ]  # fmt: skip
    if "recommend" in found:
        lines += ["", "Means over the sets, with 95 % intervals:", "", *differences(found)]
        lines += ["", "Against the best other method of each set, paired by images:", ""]
        lines += [*against_the_best(found), "", *regret(found)]
    return "\n".join(lines)


def plot(out: Path, alphas: Sequence[float], methods: Sequence[str]) -> None:
    """Draw accuracy and log loss of each set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6 * len(alphas)), layout="constrained")
    grid = figure.subplots(len(alphas), 2, squeeze=False, sharey="row")
    for row, alpha in zip(grid, alphas, strict=True):
        found = read(out, alpha, methods)
        for axes, (name, measure) in zip(row, MEASURES.items(), strict=True):
            for marker, (method, runs) in zip("osD^vP", found.items(), strict=False):
                means = by_set(runs, measure)
                axes.plot([*means.values()], [*means], marker, label=method, alpha=0.8,
                          zorder=4 if method == "recommend" else 3)  # fmt: skip
            axes.set(xlabel=name, title=f"MobileNetV2 x{alpha}")
            axes.grid(alpha=0.3)
    grid[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(out / "recipes.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.5])
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD"
    )
    parser.add_argument("--table", action="store_true", help="print the tables and end")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in [] if args.table else range(args.seeds):
        for alpha in args.alpha:
            for folder in args.folders:
                run(folder, alpha, seed, args.out, args.methods)
    text = "\n\n".join(tables(args.out, alpha, args.methods) for alpha in args.alpha)
    (args.out / "tables.md").write_text(text + "\n")
    plot(args.out, args.alpha, args.methods)
    print(text)


if __name__ == "__main__":
    main()
