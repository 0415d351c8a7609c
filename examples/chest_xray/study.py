"""Repeat the study with several seeds and intervals: Models 1-3, depth, and why Model 3 collapsed.

    python examples/chest_xray/study.py --data COVID-19_Radiography_Dataset --out out/study

Each training run writes a file of its own to `--out/runs`, with the predicted probabilities of
every test image. A run whose file exists is not repeated, so an interrupted study resumes where it
stopped. `study.json` and the tables of `docs/chest_xray.md` are computed from these files.

Experiments (`--experiments`):
  models    Models 1-3 under the study's recipe and the recommended one
  depth     0 to 8 trailing blocks under the recommended recipe
  probe     the same, with 2 epochs of the head alone first (a linear probe)
  schedules the head alone, 4 blocks at once with two learning rates, and 4 blocks after the probe
  collapse  5 trailing blocks under the recommended recipe, with one setting changed at a time
  suspects  Model 3 under the study's recipe, with one setting changed at a time
  reverse   Model 3 under the recommended recipe, with one setting of the study's at a time
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from experiments import EXPERIMENTS, Setting
from numpy.typing import NDArray
from progress import ended
from run import default_weights, load_backbone, read_images, recipe, sample
from tables import experiment_tables, study_rows

import finetune_kit as ftk

Runs = dict[tuple[str, int], dict[str, Any]]  # by name of the run and seed


class BestWeights(keras.callbacks.Callback):
    """Keep the weights of the epoch with the lowest validation loss, besides the last ones."""

    lowest: float = float("inf")
    weights: list[np.ndarray]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        if logs and logs["val_loss"] < self.lowest:
            self.lowest, self.weights = logs["val_loss"], self.model.get_weights()


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """Return what all runs in one folder must have in common."""
    common = {name: getattr(args, name) for name in ("epochs", "limit", "image_size", "batch_size")}
    backend = {"backend": keras.backend.backend(), "keras": keras.__version__}
    return {**common, "weights": Path(args.weights).name, **backend}


def train(
    setting: Setting,
    seed: int,
    args: argparse.Namespace,
    images: ftk.ImageSet,
    groups: NDArray[np.str_],
) -> dict[str, Any]:
    """Train one model and return the content of its file. Images of one group share a set."""
    training, validation, test = images.split(groups=groups, seed=seed)
    best = BestWeights()
    fit = fit_with_keras if setting.plain else fit_with_the_kit
    started = time.perf_counter()
    model, history = fit(setting, seed, args, training, validation, best)
    seconds = time.perf_counter() - started
    pixels = test.load(size=(args.image_size, args.image_size))
    scores = {"last": probabilities(model, pixels)}
    model.set_weights(best.weights)
    scores["best"] = probabilities(model, pixels)
    result = {
        "about": conditions(args),
        "setting": {key: value for key, value in asdict(setting).items() if key != "epoch"},
        "seed": seed,
        "class_names": list(images.class_names),
        "parameters": sum(int(np.prod(w.shape)) for w in model.trainable_weights),
        "seconds": round(seconds, 1),
        "history": {name: list(values) for name, values in history.items()},
        "test": list(test.digests()),
        "labels": test.labels.tolist(),
        "scores": scores,
    }
    keras.backend.clear_session()
    return result


def fit_with_the_kit(
    setting: Setting,
    seed: int,
    args: argparse.Namespace,
    training: ftk.ImageSet,
    validation: ftk.ImageSet,
    callback: keras.callbacks.Callback,
) -> tuple[keras.Model, dict[str, Any]]:
    """Train with `fine_tune`; return the model and its history."""
    tuned = ftk.fine_tune(
        load_backbone(args.weights, args.image_size),
        setting.head(training.class_names),
        setting.specs(args.epochs),
        training,
        validation,
        batch_size=args.batch_size,
        callbacks=callback,
        preprocessing=recipe(setting.pixels).preprocessing,
        features=args.features or args.out / "features",
        seed=seed,
        verbose=0,
    )
    return tuned.model, dict(tuned.history)


def fit_with_keras(
    setting: Setting,
    seed: int,
    args: argparse.Namespace,
    training: ftk.ImageSet,
    validation: ftk.ImageSet,
    callback: keras.callbacks.Callback,
) -> tuple[keras.Model, dict[str, Any]]:
    """Train the whole network with `keras.Model.fit`; return the model and its history."""
    keras.utils.set_random_seed(seed)
    (spec,) = setting.specs(args.epochs)
    backbone = load_backbone(args.weights, args.image_size)
    layer = recipe(setting.pixels).preprocessing
    model = spec.build(
        backbone,
        setting.head(training.class_names),
        preprocessing=ftk.preprocessing(backbone) if layer == "auto" else layer,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(setting.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    size = (args.image_size, args.image_size)
    history = model.fit(
        training.load(size=size),
        training.labels,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(validation.load(size=size), validation.labels),
        callbacks=[callback],
        verbose=0,
    )
    return model, history.history


def probabilities(model: keras.Model, pixels: np.ndarray) -> list[list[float]]:
    """Return the predicted probability of each class for each image."""
    return np.round(model.predict(pixels, verbose=0).astype(np.float64), 7).tolist()


def report(run: dict[str, Any], epoch: str) -> ftk.Report:
    """Return the report on a run, as `evaluate` would make it."""
    samples = list(map(str, run["test"]))
    return ftk.Report.from_scores(
        run["labels"], run["scores"][epoch], run["class_names"], samples=samples
    )


def measured(run: dict[str, Any], epoch: str) -> dict[str, Any]:
    """Return the metrics of one run, with 95% intervals."""
    found = report(run, epoch)
    validation = run["history"]["val_accuracy"]
    return {
        "seed": run["seed"],
        "accuracy": found.metrics["accuracy"].to_dict(),
        "macro_f1": found.metrics["macro_f1"].to_dict(),
        "recalls": {name: row["recall"].to_dict() for name, row in found.class_metrics.items()},
        "train_accuracy": run["history"]["accuracy"][-1],
        "lowest_late_val_accuracy": min(validation[len(validation) // 2 :]),
        "seconds": run["seconds"],
        "parameters": run["parameters"],
    }


def paired_tests(
    rows: Sequence[str], settings: dict[str, Setting], runs: Runs, seed: int
) -> dict[str, Any]:
    """Test the accuracy of each pair of rows for one seed, corrected for the number of pairs."""
    reports = {
        row: report(runs[settings[row].run_name(), seed], settings[row].epoch) for row in rows
    }
    return {
        f"{pair.first} / {pair.second}": {
            "seed": seed,
            "only_first": pair.only_first_correct,
            "only_second": pair.only_second_correct,
            "p": pair.adjusted_p_value,
        }
        for pair in ftk.compare(reports).differences
    }


def summarize(experiment: str, seeds: Sequence[int], runs: Runs) -> dict[str, Any]:
    """Return the metrics of all rows of an experiment, and the tests between them."""
    settings = EXPERIMENTS[experiment]
    rows = {
        row: [measured(runs[setting.run_name(), seed], setting.epoch) for seed in seeds]
        for row, setting in settings.items()
    }
    # The models are compared with each other under the same recipe. In the other experiments each
    # row is compared with the first one.
    names = list(rows)
    families = [names[:3], names[3:]] if experiment == "models" else [names]
    tests: dict[str, list[Any]] = {}
    for family in families:
        for seed in seeds:
            for pair, test in paired_tests(family, settings, runs, seed).items():
                if experiment == "models" or pair.startswith(f"{names[0]} / "):
                    tests.setdefault(pair, []).append(test)
    return {"rows": rows, "tests": tests}


def write(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text.rstrip() + "\n", encoding="utf-8")
    os.replace(draft, path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder of the database (default: draw phantoms)")
    add("--weights", help="drawn, imagenet, random or a file (default: drawn for phantoms, "
        "imagenet with --data)")  # fmt: skip
    add("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS),
        help="default: all")  # fmt: skip
    add("--seeds", type=int, nargs="+", default=[0, 1, 2],
        help="seeds of split, head and shuffling (default: 0 1 2)")  # fmt: skip
    add("--epochs", type=int, default=20, help="for each run (default: 20)")
    add("--batch-size", type=int, default=64, help="images per step (default: 64)")
    add("--image-size", type=int, default=224, help="in pixels (default: 224)")
    add("--limit", type=int, help="number of images to use, a stratified sample (default: all)")
    add(
        "--features", type=Path, help="folder of the frozen part's features (default: OUT/features)"
    )
    add("--out", type=Path, default=Path("out/study"),
        help="folder for runs and tables (default: out/study)")  # fmt: skip
    args = parser.parse_args(argv)
    args.weights = args.weights or default_weights(args.data)
    return args


def study(args: argparse.Namespace) -> None:
    """Train what is missing, then write the tables of the experiments."""
    images = sample(read_images(args.data, args.out), args.limit, seed=0)
    groups = ftk.find_duplicates(images).groups
    settings = {
        (setting.run_name(), seed): setting
        for seed in args.seeds
        for experiment in args.experiments
        for setting in EXPERIMENTS[experiment].values()
    }
    # Deepest first within a seed: shallower settings start from its features, as in `sweep`.
    order = sorted(
        settings, key=lambda run: (args.seeds.index(run[1]), -settings[run].blocks, run[0])
    )
    runs: Runs = {}
    for number, (name, seed) in enumerate(order, start=1):
        file = args.out / "runs" / f"{name}_seed-{seed}.json"
        if not file.exists():
            write(file, json.dumps(train(settings[name, seed], seed, args, images, groups)))
        run = runs[name, seed] = json.loads(file.read_text(encoding="utf-8"))
        if run["about"] != conditions(args):
            raise ValueError(
                f"The runs in --out must have been made with {conditions(args)}; use another "
                f"--out. Received: {file}, made with {run['about']}"
            )
        last, best = (measured(run, epoch) for epoch in ("last", "best"))
        print(
            f"{number}/{len(order)} {name} seed {seed}: accuracy {last['accuracy']['value']:.3f} "
            f"after the last epoch, {best['accuracy']['value']:.3f} after the best one; "
            f"{last['seconds']:.0f} s",
            flush=True,
        )
    results: dict[str, Any] = {
        "about": conditions(args),
        "images": dict(zip(images.class_names, images.counts().tolist(), strict=True)),
        "test_images": len(run["labels"]),
        "experiments": {name: summarize(name, args.seeds, runs) for name in args.experiments},
    }
    write(args.out / "study.json", json.dumps(results, indent=1))
    for name, summary in results["experiments"].items():
        reported = study_rows(images.class_names) if name == "models" else ()
        write(args.out / f"{name}.md", experiment_tables(summary, images.class_names, reported))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; print an error in the input without its traceback."""
    return ended(lambda: study(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
