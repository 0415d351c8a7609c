"""Measure the study again, with seeds and intervals: Models 1-3, depth, and why Model 3 collapsed.

    python examples/chest_xray/study.py --data COVID-19_Radiography_Dataset --out out/study

Each training is a run with a file of its own in `--out/runs`, which holds the probabilities it gave
for every test image; a run whose file is there is not run again. From these files `study.json` and
the tables of `docs/chest_xray.md` are written, so no figure there is typed by hand.

Experiments (`--experiments`):
  models    Models 1-3 under the study's recipe and the recommended one
  depth     0 to 8 trailing blocks under the recommended recipe
  collapse  5 trailing blocks under the recommended recipe, with one thing changed at a time
  suspects  Model 3 under the study's recipe, with one thing changed at a time
  reverse   Model 3 under the recommended recipe, with one thing of the study's at a time
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from phantoms import write_phantoms
from run import STUDY, load_backbone, recipe, sample

import finetune_kit as ftk


@dataclass(frozen=True)
class Setting:
    """One way to train; by default the study's own. `blocks` of the backbone train."""

    blocks: int
    pooling: str = "flatten"
    batch_norm: str = "train"
    pixels: str = "study"
    learning_rate: float = 1e-3
    epoch: str = "last"  # whose weights are judged; a run keeps the scores of both
    probe_epochs: int = 0  # of all epochs, with the head alone before the blocks

    def name(self) -> str:
        """Of the run: settings that differ in the epoch alone share it."""
        return (
            f"{self.blocks}-blocks_{self.pooling}_batch-norm-{self.batch_norm}"
            f"_{self.pixels}-pixels_{self.learning_rate:g}"
            f"{f'_probe-{self.probe_epochs}' if self.probe_epochs else ''}"
        )


def recommended(blocks: int) -> Setting:
    """What finetune-kit advises."""
    return Setting(blocks, "avg", "frozen", "recommended", epoch="best")


OTHERS = {  # columns of the means besides the figures of the test
    "train_accuracy": "last in training",
    "lowest_late_val_accuracy": "lowest late",
}
CHANGES: dict[str, dict[str, Any]] = {
    "BatchNorm in inference mode": {"batch_norm": "frozen"},
    "pooled head": {"pooling": "avg"},
    "RGB from -1 to 1": {"pixels": "recommended"},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "best epoch instead of last": {"epoch": "best"},
}
BACK: dict[str, dict[str, Any]] = {
    "BatchNorm training": {"batch_norm": "train"},
    "BGR from 0 to 1": {"pixels": "study"},
    "last epoch instead of best": {"epoch": "last"},
}
RESCUES: dict[str, dict[str, Any]] = {
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "2 epochs of the head first": {"probe_epochs": 2},
    "BatchNorm training": {"batch_norm": "train"},
}
STUDY_3, OURS_3 = Setting(2), recommended(2)
# Each is a table; its rows in order, and of which rows each seed's pairs are tested.
EXPERIMENTS: dict[str, dict[str, Setting]] = {
    "models": {
        **{f"Model {n + 1}, study's recipe": Setting(n) for n in range(3)},
        **{f"Model {n + 1}, recommended": recommended(n) for n in range(3)},
    },
    "depth": {f"{n} blocks" if n != 1 else "1 block": recommended(n) for n in range(9)},
    "collapse": {
        "5 blocks": recommended(5),
        **{change: replace(recommended(5), **what) for change, what in RESCUES.items()},
    },
    "suspects": {
        "study's recipe": STUDY_3,
        **{change: replace(STUDY_3, **what) for change, what in CHANGES.items()},
    },
    "reverse": {
        "recommended recipe": OURS_3,
        **{change: replace(OURS_3, **what) for change, what in BACK.items()},
    },
}


class Best(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the lowest validation loss."""

    lowest: float = float("inf")
    weights: list[np.ndarray]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: D102
        if logs and logs["val_loss"] < self.lowest:
            self.lowest, self.weights = logs["val_loss"], self.model.get_weights()


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs of one folder have in common."""
    common = {name: getattr(args, name) for name in ("epochs", "limit", "image_size", "batch_size")}
    backend = {"backend": keras.backend.backend(), "keras": keras.__version__}
    return {**common, "weights": Path(args.weights).name, **backend}


def phases(setting: Setting, epochs: int) -> list[ftk.FineTuneSpec]:
    """What trains, in all for so many epochs."""
    probe = ftk.FineTuneSpec(0, epochs=setting.probe_epochs) if setting.probe_epochs else None
    rest = ftk.FineTuneSpec(
        setting.blocks,
        batch_norm=setting.batch_norm,
        epochs=epochs - setting.probe_epochs,
        learning_rate=setting.learning_rate,
    )
    return [probe, rest] if probe else [rest]


def train(
    setting: Setting, seed: int, args: argparse.Namespace, images: ftk.ImageSet
) -> dict[str, Any]:
    """One run: what is written to its file."""
    chosen = sample(images, args.limit, seed=0)
    part = ftk.stratified_split(images.labels[chosen], seed=seed)
    split = ftk.Split(chosen[part.train], chosen[part.validation], chosen[part.test])
    backbone = load_backbone(args.weights, args.image_size, may_do_without=args.data is None)
    best = Best()
    tuned = ftk.fine_tune(
        backbone,
        ftk.classification_head(
            len(images.class_names), units=(1024, 512), pooling=setting.pooling
        ),
        phases(setting, args.epochs),
        images,
        split,
        batch_size=args.batch_size,
        callbacks=[best],
        preprocessing=recipe(setting.pixels).preprocessing,
        cache_dir=args.cache_dir or args.out / "features",
        seed=seed,
        verbose=0,
    )
    pixels = images.load(split.test, (args.image_size, args.image_size))
    scores = {"last": probabilities(tuned.model, pixels)}
    tuned.model.set_weights(best.weights)
    scores["best"] = probabilities(tuned.model, pixels)
    result = {
        "about": about(args),
        "setting": {key: value for key, value in asdict(setting).items() if key != "epoch"},
        "seed": seed,
        "class_names": list(images.class_names),
        "parameters": sum(int(np.prod(w.shape)) for w in tuned.model.trainable_weights),
        "seconds": {name: round(value, 1) for name, value in tuned.timings.items()},
        "history": {name: list(values) for name, values in tuned.history.items()},
        "test": split.test.tolist(),
        "labels": images.labels[split.test].tolist(),
        "scores": scores,
    }
    keras.backend.clear_session()
    return result


def probabilities(model: keras.Model, pixels: np.ndarray) -> list[list[float]]:
    """Of each class, for each image."""
    return np.round(model.predict(pixels, verbose=0).astype(np.float64), 7).tolist()


def report(run: dict[str, Any], epoch: str) -> ftk.Report:
    """The report on one run, as `evaluate` would make it."""
    samples = list(map(str, run["test"]))
    return ftk.Report.from_scores(
        run["labels"], run["scores"][epoch], run["class_names"], samples=samples
    )


def figures(run: dict[str, Any], epoch: str) -> dict[str, Any]:
    """What one run got right, with 95 % intervals."""
    told = report(run, epoch)
    late = run["history"]["val_accuracy"][len(run["history"]["val_accuracy"]) // 2 :]
    return {
        "seed": run["seed"],
        "accuracy": told.figures["accuracy"].to_dict(),
        "macro_f1": told.figures["macro_f1"].to_dict(),
        "recalls": {name: row["recall"].to_dict() for name, row in told.class_figures.items()},
        "train_accuracy": run["history"]["accuracy"][-1],
        "lowest_late_val_accuracy": min(late),
        "seconds": sum(v for name, v in run["seconds"].items() if name != "decode"),
        "parameters": run["parameters"],
    }


def compared(
    rows: Sequence[str], settings: dict[str, Setting], runs: dict[tuple[str, int], Any], seed: int
) -> dict[str, Any]:
    """The paired tests of some rows with one seed, corrected for their number."""
    reports = {x: report(runs[settings[x].name(), seed], settings[x].epoch) for x in rows}
    return {
        f"{d.first} / {d.second}": {
            "seed": seed,
            "only_first": d.only_first_right,
            "only_second": d.only_second_right,
            "p": d.adjusted_p_value,
        }
        for d in ftk.compare(reports).differences
    }


def summarize(name: str, seeds: Sequence[int], runs: dict[tuple[str, int], Any]) -> dict[str, Any]:
    """All figures of an experiment."""
    settings = EXPERIMENTS[name]
    rows = {
        row: [figures(runs[setting.name(), seed], setting.epoch) for seed in seeds]
        for row, setting in settings.items()
    }
    # Models are tested against each other within their recipe, all else against the first row.
    names = list(rows)
    families = [names[:3], names[3:]] if name == "models" else [names]
    tests: dict[str, list[Any]] = {}
    for family in families:
        for seed in seeds:
            for pair, test in compared(family, settings, runs, seed).items():
                if name == "models" or pair.startswith(f"{names[0]} / "):
                    tests.setdefault(pair, []).append(test)
    return {"rows": rows, "tests": tests}


def reported(classes: Sequence[str]) -> list[list[str]]:
    """Rows of the study's own figures, of which nothing else survived."""
    return [
        [
            f"Model {n} as reported, 4 classes",
            "",
            *(f"{told[key]:.2f}" for key in ("accuracy", "macro_f1")),
            *(f"{told['recall'][name]:.2f}" if name in told["recall"] else "" for name in classes),
            *("" for _ in OTHERS),
        ]
        for n, told in STUDY.items()
    ]


def tables(summary: dict[str, Any], classes: Sequence[str], first: Sequence[list[str]] = ()) -> str:
    """The experiment in Markdown: means and ranges over the seeds, each run, the paired tests.

    `first` are rows to begin the means with.
    """

    def over(values: Sequence[float | None]) -> str:
        told = [value for value in values if value is not None]
        if len(told) < 2:
            return f"{told[0]:.3f}" if told else "undefined"
        return f"{np.mean(told):.3f} ({min(told):.3f}-{max(told):.3f})"

    def within(figure: dict[str, Any]) -> str:
        if figure["value"] is None:
            return "undefined"
        if figure["low"] is None:  # no draw of the bootstrap differs
            return f"{figure['value']:.3f}"
        return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

    recalls = [f"recall {name}" for name in classes]
    means, each, tests = list(first), [], []
    for name, rows in summary["rows"].items():
        measured = [[row["accuracy"], row["macro_f1"], *row["recalls"].values()] for row in rows]
        figures = [over([f["value"] for f in column]) for column in zip(*measured, strict=True)]
        others = [over([row[key] for row in rows]) for key in OTHERS]
        means.append([name, f"{rows[0]['parameters'] / 1e6:.1f} M", *figures, *others])
        for row, told in zip(rows, measured, strict=True):
            each.append([name, str(row["seed"]), *map(within, told)])
    for name, rows in summary["tests"].items():
        pairs = [f"{r['only_first']} / {r['only_second']} (p = {r['p']:.2g})" for r in rows]
        tests.append([name, *pairs])
    seeds = [f"seed {row['seed']}" for row in rows]
    return "\n\n".join(
        [
            "Mean of the seeds (lowest-highest); last in training: accuracy of the last epoch on "
            "the training images; lowest late: on the validation images, in the second half of the "
            "epochs.",
            markdown(["", "parameters", "accuracy", "macro F1", *recalls, *OTHERS.values()], means),
            "<details><summary>Each run, with 95 % intervals (Wilson's; macro F1: bootstrap)"
            "</summary>",
            markdown(["", "seed", "accuracy", "macro F1", *recalls], each),
            "</details>",
            "Test images that only the first / only the second got right (exact McNemar test, with "
            "Holm's correction for all pairs of rows):",
            markdown(["", *seeds], tests),
        ]
    )


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text.rstrip() + "\n", encoding="utf-8")
    os.replace(draft, path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="the database's folder (default: phantoms drawn for you)")
    add("--weights", default="imagenet", help="imagenet, none or a file (default: imagenet)")
    add("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--epochs", type=int, default=20, help="default: 20")
    add("--batch-size", type=int, default=64, help="default: 64")
    add("--image-size", type=int, default=224, help="default: 224")
    add("--limit", type=int, help="a stratified sample of so many images")
    add("--cache-dir", type=Path, help="of the frozen part's features (default: OUT/features)")
    add("--out", type=Path, default=Path("out/study"), help="default: out/study")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the figures of all that was asked for."""
    args = parse(argv)
    images = ftk.read_image_folder(args.data or write_phantoms(args.out / "phantoms"))
    wanted = {
        (setting.name(), seed): setting
        for seed in args.seeds
        for experiment in args.experiments
        for setting in EXPERIMENTS[experiment].values()
    }
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    # Deepest first within a seed: the shallower ones go on from its features, as in `sweep`.
    order = sorted(wanted, key=lambda run: (args.seeds.index(run[1]), -wanted[run].blocks, run[0]))
    for number, (name, seed) in enumerate(order, start=1):
        file = args.out / "runs" / f"{name}_seed-{seed}.json"
        if not file.exists():
            write(file, json.dumps(train(wanted[name, seed], seed, args, images)))
        run = runs[name, seed] = json.loads(file.read_text(encoding="utf-8"))
        if run["about"] != about(args):
            print(f"error: {file} is from {run['about']}, not {about(args)}: take another --out")
            return 2
        last, best = (figures(run, epoch) for epoch in ("last", "best"))
        print(
            f"{number}/{len(order)} {name} seed {seed}: accuracy {last['accuracy']['value']:.3f}, "
            f"of the best epoch {best['accuracy']['value']:.3f}; {last['seconds']:.0f} s",
            flush=True,
        )
    results: dict[str, Any] = {
        "about": about(args),
        "images": dict(zip(images.class_names, images.counts().tolist(), strict=True)),
        "test_images": len(run["labels"]),
        "experiments": {name: summarize(name, args.seeds, runs) for name in args.experiments},
    }
    write(args.out / "study.json", json.dumps(results, indent=1))
    for name, summary in results["experiments"].items():
        first = reported(images.class_names) if name == "models" else ()
        write(args.out / f"{name}.md", tables(summary, images.class_names, first))
    return 0


if __name__ == "__main__":
    sys.exit(main())
