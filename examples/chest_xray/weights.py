"""Measure what pretraining is worth: random, drawn and ImageNet weights under a linear probe.

    python examples/chest_xray/weights.py --data COVID-19_Radiography_Dataset --out out/weights

A logistic regression on the pooled features of the frozen backbone classifies the phantoms, and the
X-rays of `--data` if it is given. The gray values of thumbnails, 32 x 32 pixels, are the baseline.
Each seed has its own split and its own random weights. Copies stay on one side of the split.
`--out` receives `weights.json` and the table of `docs/chest_xray.md`, `weights.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from progress import ended
from run import load_backbone, read_images, sample
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import markdown, mean_and_range, with_interval

import finetune_kit as ftk

FEATURES = {
    "gray thumbnails": None,
    "random weights": "random",
    "drawn weights": "drawn",
    "ImageNet weights": "imagenet",
}


def features(images: ftk.ImageSet, weights: str | None, image_size: int, seed: int) -> NDArray[Any]:
    """Return a row of features for each image."""
    if weights is None:
        return images.load(size=(32, 32)).mean(axis=-1).reshape(len(images), -1)
    keras.utils.set_random_seed(seed)
    backbone = load_backbone(weights, image_size)
    pooled = keras.Sequential([ftk.preprocessing(backbone), backbone])
    pooled.add(keras.layers.GlobalAveragePooling2D())
    rows = []
    for start in range(0, len(images), 256):
        part = images.take(np.arange(start, min(start + 256, len(images))))
        pixels = part.load(size=(image_size, image_size))
        rows.append(pooled.predict(pixels, batch_size=32, verbose=0))
    return np.concatenate(rows)


def probe(
    rows: NDArray[Any], images: ftk.ImageSet, groups: NDArray[Any], seed: int
) -> dict[str, Any]:
    """Fit the probe on one split and return its metrics on the test images."""
    parts = ftk.stratified_split(images.labels, groups=groups, seed=seed)
    penalties = {"logisticregression__C": [0.001, 0.01, 0.1]}  # chosen on the validation images
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    both = np.concatenate([parts.train, parts.validation])
    fold = np.repeat([-1, 0], [len(parts.train), len(parts.validation)])
    search = GridSearchCV(model, penalties, cv=PredefinedSplit(fold), refit=False)
    search.fit(rows[both], images.labels[both])
    model.set_params(**search.best_params_).fit(rows[parts.train], images.labels[parts.train])
    report = ftk.Report.from_scores(
        images.labels[parts.test], model.predict_proba(rows[parts.test]), images.class_names
    )
    return {
        "seed": seed,
        "accuracy": report.metrics["accuracy"].to_dict(),
        "macro_f1": report.metrics["macro_f1"].to_dict(),
        "recalls": {name: row["recall"].to_dict() for name, row in report.class_metrics.items()},
    }


def measure(images: ftk.ImageSet, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics of each kind of features, one entry for each seed."""
    groups = ftk.find_duplicates(images).groups
    found: dict[str, list[dict[str, Any]]] = {}
    for name, weights in FEATURES.items():
        rows = None
        for seed in args.seeds:
            if rows is None or weights == "random":  # the others do not depend on the seed
                rows = features(images, weights, args.image_size, seed)
            found.setdefault(name, []).append(probe(rows, images, groups, seed))
            accuracy = with_interval(found[name][-1]["accuracy"])
            print(f"   {name}, seed {seed}: accuracy {accuracy}", flush=True)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the means over the seeds in Markdown, and each run with its intervals."""
    means, each = [], []
    for name, runs in found.items():
        cells = [[run["accuracy"], run["macro_f1"], *run["recalls"].values()] for run in runs]
        columns = [[cell["value"] for cell in column] for column in zip(*cells, strict=True)]
        means.append([name, *map(mean_and_range, columns)])
        for run, row in zip(runs, cells, strict=True):
            each.append([name, str(run["seed"]), *map(with_interval, row)])
    titles = ["accuracy", "macro F1", *(f"recall {name}" for name in runs[0]["recalls"])]
    return "\n\n".join(
        [
            markdown(["", *titles], means),
            "<details><summary>Each seed, with 95% intervals (Wilson score; macro F1: bootstrap)"
            "</summary>",
            markdown(["", "seed", *titles], each),
            "</details>",
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder of the database, besides the phantoms (default: none)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2],
        help="seeds of splits and random weights (default: 0 1 2)")  # fmt: skip
    add("--image-size", type=int, default=224, help="in pixels (default: 224)")
    add("--limit", type=int, help="number of images to use, a stratified sample (default: all)")
    add("--out", type=Path, default=Path("out/weights"),
        help="folder for phantoms and results (default: out/weights)")  # fmt: skip
    return parser.parse_args(argv)


def compare_weights(args: argparse.Namespace) -> None:
    """Measure the features on the phantoms and on the X-rays, and write the tables."""
    args.out.mkdir(parents=True, exist_ok=True)
    results, text = {}, []
    for title, data in {"Phantoms": None, "X-rays": args.data}.items():
        if title == "X-rays" and data is None:
            continue
        print(title)
        images = sample(read_images(data, args.out), args.limit, seed=0)
        results[title] = measure(images, args)
        majority = max(images.counts()) / len(images)
        intro = f"{title}: {len(images):,} images; {majority:.3f} of them are of the largest class."
        text.append(f"{intro} Mean over the seeds (lowest-highest).\n\n{table(results[title])}")
    (args.out / "weights.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "weights.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the weights; print an error in the input without its traceback."""
    return ended(lambda: compare_weights(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
