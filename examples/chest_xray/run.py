"""Reproduce Models 1-3 of the chest X-ray study: how deep should one fine-tune?

    python examples/chest_xray/run.py                                  # drawn phantoms, no download
    python examples/chest_xray/run.py --data COVID-19_Radiography_Dataset --recipe study

Each model is a MobileNetV2 (x0.5) with a dense head on it; 0, 1 or 2 trailing blocks of the
backbone train along with the head. `--recipe study` is the study to the letter, `--recipe
recommended` what finetune-kit advises. `docs/chest_xray.md` tells the story and the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from phantoms import write_phantoms

import finetune_kit as ftk

# Accuracy, macro F1 and recall by class as the study's report gives them; no table of Model 2
# survived there.
STUDY = {
    1: {
        "accuracy": 0.74,
        "macro_f1": 0.64,
        "recall": {"COVID": 0.87, "Lung_Opacity": 0.67, "Normal": 0.80, "Viral Pneumonia": 0.20},
    },
    3: {
        "accuracy": 0.64,
        "macro_f1": 0.50,
        "recall": {"COVID": 0.99, "Lung_Opacity": 0.70, "Normal": 0.56, "Viral Pneumonia": 0.00},
    },
}


@dataclass(frozen=True)
class Recipe:
    """What the study did, and what we advise, differ in four things."""

    pooling: str
    batch_norm: str
    preprocessing: str | keras.Layer
    keep_best_epoch: bool


def recipe(name: str) -> Recipe:
    """`"study"`: BGR divided by 255, flattened features, BatchNorm of unfrozen blocks training."""
    if name == "recommended":
        return Recipe("avg", "frozen", "auto", keep_best_epoch=True)
    rgb = keras.Input((None, None, 3))
    scaled = keras.layers.Rescaling(1 / 255)(keras.ops.flip(rgb, axis=-1))
    bgr = keras.Model(rgb, scaled, name="preprocessing")
    return Recipe("flatten", "train", bgr, keep_best_epoch=False)


def load_backbone(weights: str, image_size: int, *, may_do_without: bool) -> keras.Model:
    """MobileNetV2 x0.5 without top, with ImageNet weights, random ones (`none`) or a file's."""
    shape = {"alpha": 0.5, "include_top": False, "input_shape": (image_size, image_size, 3)}
    if weights == "none":
        return keras.applications.MobileNetV2(weights=None, **shape)
    if weights == "imagenet":
        try:
            return keras.applications.MobileNetV2(weights="imagenet", **shape)
        except ValueError:  # not the download: an image size that the model cannot take
            raise
        except Exception as error:  # Keras raises a bare Exception when a download fails
            if not may_do_without:
                raise ValueError(
                    "The ImageNet weights must be downloaded once, and that failed. Run this once "
                    "on a machine with a network and copy its ~/.keras/models, pass "
                    f"--weights FILE, or --weights none for random ones. Received: {error}"
                ) from error
            print("The ImageNet weights cannot be downloaded: going on with random weights.")
            return keras.applications.MobileNetV2(weights=None, **shape)
    if not Path(weights).is_file():
        raise ValueError(f"--weights must be 'imagenet', 'none' or a file. Received: {weights!r}")
    backbone = keras.applications.MobileNetV2(weights=None, **shape)
    try:
        backbone.load_weights(weights)
    except Exception as error:  # h5py, zipfile and Keras each raise their own
        raise ValueError(
            "--weights must be a weights file of MobileNetV2 x0.5 without top. "
            f"Received: {weights!r}, which does not fit: {str(error).splitlines()[0]}"
        ) from error
    return backbone


def sample(images: ftk.ImageSet, limit: int | None, seed: int) -> np.ndarray:
    """All images, or a stratified sample of `limit` of them."""
    if limit is None or limit >= len(images):
        return np.arange(len(images))
    share = limit / len(images)
    return ftk.stratified_split(images.labels, (share, 1 - share, 0), seed=seed).train


def only(images: ftk.ImageSet, indices: np.ndarray) -> ftk.ImageSet:
    """Some of the images, as a set of their own."""
    paths = tuple(images.paths[i] for i in indices)
    return ftk.ImageSet(paths, images.labels[indices], images.class_names)


def split_by_cluster(
    images: ftk.ImageSet, seed: int
) -> tuple[ftk.Split, ftk.Duplicates, dict[str, Any]]:
    """A split that keeps copies of one picture on one side; what `results.json` says of them."""
    duplicates = ftk.find_duplicates(images, ftk.stratified_split(images.labels, seed=seed))
    split = ftk.stratified_split(images.labels, groups=duplicates.groups, seed=seed)
    print(images, split, sep="\n")
    kinds = [kind for _, _, kind, _ in duplicates.pairs]
    found = {
        "clusters": [[Path(images.paths[i]).name for i in c] for c in duplicates.clusters],
        "pairs": {kind: kinds.count(kind) for kind in ("bytes", "pixels", "near")},
        "would_cross_a_split_by_class": len(duplicates.crossing),
        "cross_this_split": sum(
            sum(
                bool(set(cluster) & set(part.tolist()))
                for part in (split.train, split.validation, split.test)
            )
            > 1
            for cluster in duplicates.clusters
        ),
    }
    print(
        f"Duplicates: {len(duplicates.clusters)} clusters of "
        f"{sum(map(len, duplicates.clusters))} images, of which a split by class alone would put "
        f"{len(duplicates.crossing)} on two sides, and this one {found['cross_this_split']}"
    )
    for cluster in found["clusters"][:10]:
        print(f"  {', '.join(cluster)}")
    return split, duplicates, found


def train(
    args: argparse.Namespace, images: ftk.ImageSet, split: ftk.Split
) -> tuple[ftk.FineTuned, ...]:
    """Train the models; they share one pass over the images."""
    advice = recipe(args.recipe)
    backbone = load_backbone(args.weights, args.image_size, may_do_without=args.data is None)
    head = ftk.classification_head(
        len(images.class_names), units=(1024, 512), pooling=advice.pooling
    )
    specs = [
        ftk.FineTuneSpec(number - 1, batch_norm=advice.batch_norm, epochs=args.epochs)
        for number in args.models
    ]
    for number, spec in zip(args.models, specs, strict=True):
        print(f"\nModel {number}: the head and {spec.trainable_blocks} trailing blocks train")
        print(spec.plan(backbone))
    callbacks = []
    if advice.keep_best_epoch:  # all epochs run; the weights of the best one on validation are kept
        callbacks.append(
            keras.callbacks.EarlyStopping(patience=args.epochs, restore_best_weights=True)
        )
    return ftk.sweep(
        backbone,
        head,
        specs,
        images,
        split,
        batch_size=args.batch_size,
        callbacks=callbacks,
        preprocessing=advice.preprocessing,
        cache_dir=args.cache_dir,
        seed=args.seed,
        verbose=args.verbose,
    )


def save(
    number: int, tuned: ftk.FineTuned, duplicates: ftk.Duplicates, out: Path
) -> tuple[dict[str, Any], ftk.Report]:
    """Evaluate and save one model; what `results.json` says of it."""
    started = time.perf_counter()
    report = ftk.evaluate(
        tuned, tuned.images, tuned.split.test, duplicates=duplicates, heat_maps=24
    )
    seconds = {**tuned.timings, "evaluate": time.perf_counter() - started}
    report.save(out / "reports" / f"model-{number}", title=f"Model {number}")
    (out / "models").mkdir(parents=True, exist_ok=True)
    tuned.model.save(out / "models" / f"model-{number}.keras")
    return {
        "name": f"Model {number}",
        "trainable_blocks": number - 1,
        "trainable_params": sum(int(np.prod(w.shape)) for w in tuned.model.trainable_weights),
        "total_params": tuned.model.count_params(),
        "history": {name: list(values) for name, values in tuned.history.items()},
        "test": {
            "accuracy": report.accuracy,
            "macro_f1": report.macro_f1,
            "weighted_f1": report.weighted_f1,
            "per_class": report.per_class,
            "intervals": {name: figure.to_dict() for name, figure in report.figures.items()},
            "confusion_matrix": report.confusion_matrix.tolist(),
        },
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }, report


def table(results: dict[str, Any]) -> str:
    """Each model beside what the study reports of it."""
    classes = list(results["data"]["classes"])
    head = ["", "trainable", "accuracy", "macro F1", *(f"recall {name}" for name in classes)]
    rows = [head]
    for model in results["models"]:
        test = model["test"]
        rows.append(
            [
                model["name"],
                f"{model['trainable_params']:,}",
                f"{test['accuracy']:.3f}",
                f"{test['macro_f1']:.3f}",
                *(f"{test['per_class'][name]['recall']:.3f}" for name in classes),
            ]
        )
        study = STUDY.get(int(model["name"].split()[-1]))
        if study is None:
            rows.append(["  in the study", "", *["(no table survived)", ""], *[""] * len(classes)])
        else:
            recall = (study["recall"].get(name) for name in classes)
            rows.append(
                [
                    "  in the study",
                    "",
                    f"{study['accuracy']:.2f}",
                    f"{study['macro_f1']:.2f}",
                    *("" if r is None else f"{r:.2f}" for r in recall),
                ]
            )
    widths = [
        max(len(row[i]) for row in rows if row[i] != "(no table survived)")
        for i in range(len(head))
    ]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="the database's folder (default: phantoms drawn for you)")
    add("--weights", default="imagenet", help="imagenet, none or a file (default: imagenet)")
    add("--models", type=int, nargs="+", default=[1, 2, 3], help="which (default: 1 2 3)")
    add("--epochs", type=int, default=20, help="default: 20, as in the study")
    add("--batch-size", type=int, default=64, help="default: 64, as in the study")
    add("--image-size", type=int, default=224, help="in pixels (default: 224, as in the study)")
    add("--recipe", choices=("study", "recommended"), default="recommended")
    add("--seed", type=int, default=0, help="of split, head and shuffles (default: 0)")
    add("--cache-dir", type=Path, help="keep the frozen part's features here for later runs")
    add("--out", type=Path, default=Path("out/chest_xray"), help="default: out/chest_xray")
    add("--limit", type=int, help="train and test on a stratified sample of so many images")
    add("--verbose", type=int, choices=(0, 1, 2), default=2, help="of Keras (default: 2)")
    args = parser.parse_args(argv)
    if any(number < 1 for number in args.models):
        parser.error(f"--models must be numbers from 1 up. Received: {args.models}")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole example; returns what it writes to `results.json`."""
    data, out = args.data, args.out
    if data is None:
        data = write_phantoms(out / "phantoms", size=224, seed=0)
        print(f"No --data given: these are phantoms, drawn images without any patient ({data}).")
    images = ftk.read_image_folder(data)
    if args.limit is not None:
        images = only(images, sample(images, args.limit, args.seed))
    split, duplicates, found = split_by_cluster(images, args.seed)
    images = ftk.write_manifest(out / "manifest.csv", images, split)
    print(f"Manifest: {out / 'manifest.csv'}, fingerprint {images.manifest}")
    results: dict[str, Any] = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "recipe": args.recipe,
        "seed": args.seed,
        "data": {
            "classes": dict(zip(images.class_names, images.counts().tolist(), strict=True)),
            "split": {name: len(getattr(split, name)) for name in ("train", "validation", "test")},
            "manifest": images.manifest,
        },
        "duplicates": found,
        "models": [],
    }
    reports = {}
    for number, tuned in zip(args.models, train(args, images, split), strict=True):
        model, report = save(number, tuned, duplicates, out)
        reports[f"Model {number}"] = report
        print(f"\nModel {number} on {len(split.test):,} test images\n{report}")
        results["models"].append(model)
    if len(reports) > 1:
        comparison = ftk.compare(reports)
        comparison.save(out / "reports", title="Models 1-3 on the same test images")
        print(f"\n{comparison}")
    draft = out / ".results.json.part"
    draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, out / "results.json")
    print(f"\n{table(results)}\n")
    print(
        f"Figures: {out / 'results.json'}\nReports: {out / 'reports'} (.html: for a browser)\n"
        f"Models:  {out / 'models'}"
    )
    return results


def main(argv: list[str] | None = None) -> int:
    """Run; tell what is wrong with the input in words instead of a traceback."""
    try:
        run(parse(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
