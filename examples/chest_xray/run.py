"""Reproduce Models 1-3 of the chest X-ray study: how many blocks should one fine-tune?

    python examples/chest_xray/run.py                                  # phantoms, no download
    python examples/chest_xray/run.py --data COVID-19_Radiography_Dataset --recipe study

Each model is a MobileNetV2 (x0.5) with a dense head. Model 1 trains the head alone, Model 2 also
the last block of the backbone, Model 3 the last two blocks. `--recipe study` trains them as the
study did, `--recipe recommended` as finetune-kit recommends. Without `--data`, the backbone starts
from weights that were trained on drawn images (`pretrain.py`), with it from those of ImageNet.
`docs/chest_xray.md` describes the study and the results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from drawn import described, load_drawn
from index import write_index
from phantoms import write_phantoms
from progress import TrainingBars, bar, bar_kind, ended, quiet
from tables import aligned, reported

import finetune_kit as ftk

PHANTOM_LIMIT = "Phantoms are drawn. Results on them say nothing about X-rays of patients."


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the whole example and return the content of `results.json`."""
    keras.utils.set_random_seed(args.seed)  # of random weights, if the backbone has them
    print("How many blocks should one fine-tune? Models 1-3 of the chest X-ray study\n")
    print("1. The images")
    images = sample(read_images(args.data, args.out), args.limit, args.seed)
    counts = dict(zip(images.class_names, images.counts().tolist(), strict=True))
    print(f"   {len(images):,} images: {', '.join(f'{n} {c:,}' for n, c in counts.items())}")
    backbone = load_backbone(args.weights, args.image_size)  # a failure is shown before the search
    parts, duplicates, found = split(images, args.seed, args.out / "duplicates.txt")
    manifest = args.out / "manifest.csv"
    sets = ftk.write_manifest(
        manifest, **dict(zip(("train", "validation", "test"), parts, strict=True))
    )
    sizes = {name: len(part) for name, part in sets.items()}
    print(f"   Split: {', '.join(f'{size:,} {name}' for name, size in sizes.items())} ({manifest})")

    runs, seconds = train_models(args, backbone, sets["train"], sets["validation"])
    print("\n4. Evaluation", flush=True)
    reports, models = evaluate_models(args, runs, sets["test"], duplicates)
    results = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "recipe": args.recipe,
        "weights": Path(args.weights).name,
        "seed": args.seed,
        "data": {
            "phantoms": args.data is None,
            "classes": counts,
            "split": sizes,
            "manifest": sets["train"].manifest,
        },
        "duplicates": found,
        "seconds": {"frozen part": round(seconds, 2)},
        "models": models,
    }
    draft = args.out / "results.json.part"  # renamed once it is complete
    draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draft.replace(args.out / "results.json")
    conclude(args, results, reports, sets["train"])
    return results


def conclude(
    args: argparse.Namespace,
    results: dict[str, Any],
    reports: dict[str, ftk.Report],
    train: ftk.ImageSet,
) -> None:
    """Print the table and what may be concluded from it, and write the page that links it all."""
    test_images = results["data"]["split"]["test"]
    print(
        f"\nThe models on {test_images:,} test images, and below each what the study reported on "
        "its own 794\n(-: not reported). The recall of a class is the sensitivity for it.\n\n"
        f"{table_beside_the_study(results['models'], train.class_names)}"
    )
    sentences = [] if args.data else [PHANTOM_LIMIT]
    if len(reports) > 1:
        comparison = ftk.compare(reports)
        comparison.save(args.out / "reports", title="The models on the same test images")
        sentences = [*comparison.summary, *sentences]
    if sentences:
        print("\nWhat may be concluded")
        print("\n".join(f"- {sentence}" for sentence in sentences))
    page = write_index(args.out, results, train, sentences)
    print(f"\nModels, reports and comparison are linked on one page. Open {page}")


def read_images(data: Path | None, out: Path) -> ftk.ImageSet:
    """Read the database, or draw phantoms if there is no folder of it."""
    if data is None:
        data = out / "phantoms"
        print(
            f"   Without --data: phantoms, which are drawn and show no patient ({data})", flush=True
        )
        write_phantoms(data, copies=2, progress=bar)
        with quiet("finetune_kit"):  # the log says that the masks are not read, which is intended
            return ftk.read_image_folder(data)
    return ftk.read_image_folder(data)


def sample(images: ftk.ImageSet, limit: int | None, seed: int) -> ftk.ImageSet:
    """Return `limit` of the images with the same class shares, or all if there are fewer."""
    if limit is None or limit >= len(images):
        return images
    chosen, _, _ = images.split((limit, len(images) - limit, 0), seed=seed)
    fewest = chosen.counts().argmin()
    if chosen.counts()[fewest] < 3:
        raise ValueError(
            "--limit must leave at least 3 images of each class, for training, validation and "
            f"test; use a larger one. Received: --limit {limit}, which leaves "
            f"{chosen.counts()[fewest]} of class {chosen.class_names[fewest]}"
        )
    return chosen


def split(
    images: ftk.ImageSet, seed: int, listing: Path
) -> tuple[tuple[ftk.ImageSet, ...], ftk.Duplicates, dict[str, Any]]:
    """Split the images, with all copies of a picture in the same set.

    Args:
        images: the images.
        seed: seed of the split.
        listing: the file that lists the clusters of duplicates.

    Returns:
        The sets for training, validation and test; the duplicates; and what `results.json` says
        about them.
    """
    print("   Searching for duplicates (some 10 ms for each image) ...", flush=True)
    train, validation, test = images.split(seed=seed)  # by class alone
    duplicates = ftk.find_duplicates(train, validation, test)
    images = train + validation + test  # in the order in which the duplicates are numbered
    names = [Path(path).name for path in images.paths]
    clusters = [sorted(names[i] for i in cluster) for cluster in duplicates.clusters]
    lines = [", ".join(cluster) for cluster in sorted(clusters)]
    listing.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    count = f"{len(clusters)} cluster{'s' if len(clusters) != 1 else ''}"
    if clusters:
        print(f"   {count} of copies, such as {lines[0]} (all: {listing})")
        print(
            f"   A split that ignores copies would divide {len(duplicates.crossing)} of them "
            "between sets; here each stays in one"
        )
    else:
        print("   No image is a copy of another")
    kinds = Counter(kind for _, _, kind, _ in duplicates.pairs)
    found = {
        "clusters": clusters,
        "pairs": {kind: kinds[kind] for kind in ("bytes", "pixels", "near")},
        "would_cross_a_split_by_class": len(duplicates.crossing),
    }
    return images.split(groups=duplicates.groups, seed=seed), duplicates, found


@dataclass(frozen=True)
class Recipe:
    """The settings in which the study and finetune-kit's recommendation differ."""

    pooling: str
    batch_norm: str
    preprocessing: str | keras.Layer
    keep: str


def recipe(name: str) -> Recipe:
    """Return the recipe `"recommended"` or `"study"`.

    The study fed BGR pixels divided by 255 (finetune-kit warns that these weights expect others),
    flattened the features, let BatchNorm train in unfrozen blocks, and kept the weights of the last
    epoch.
    """
    if name == "recommended":
        return Recipe("avg", "frozen", "auto", keep="best")
    rgb = keras.Input((None, None, 3))
    scaled = keras.layers.Rescaling(1 / 255)(keras.ops.flip(rgb, axis=-1))
    bgr = keras.Model(rgb, scaled, name="preprocessing")
    return Recipe("flatten", "train", bgr, keep="last")


def load_backbone(weights: str, image_size: int) -> keras.Model:
    """Return MobileNetV2 x0.5 without its classifier.

    Args:
        weights: `"drawn"` for weights trained on drawn images, `"imagenet"`, `"random"`, or a
            weights file: of Keras, or `drawn_weights.npz` of `pretrain.py`.
        image_size: height and width of the images in pixels.

    Raises:
        ValueError: if the weights cannot be downloaded, or the file does not fit.
    """
    options = {"alpha": 0.5, "include_top": False, "input_shape": (image_size, image_size, 3)}
    if weights == "imagenet":
        try:
            return keras.applications.MobileNetV2(weights="imagenet", **options)
        except ValueError:  # an image size that the model cannot take
            raise
        except Exception as error:  # Keras raises a bare Exception when a download fails
            raise ValueError(
                "The ImageNet weights must be downloaded once, and the download failed. Run this "
                "on a machine with a network and copy its folder ~/.keras/models to this one, or "
                "pass --weights FILE. Or pass --weights drawn for weights that were trained on "
                f"drawn images and need no download. Received: {error}"
            ) from error
    if weights not in ("drawn", "random") and not Path(weights).is_file():
        raise ValueError(
            f"--weights must be 'drawn', 'imagenet', 'random' or a file. Received: {weights!r}"
        )
    backbone = keras.applications.MobileNetV2(weights=None, **options)
    if weights == "drawn":
        return load_drawn(backbone)
    if weights.endswith(".npz"):
        return load_drawn(backbone, Path(weights))
    if weights != "random":
        try:
            backbone.load_weights(weights)
        except Exception as error:  # h5py, zipfile and Keras raise their own kinds
            raise ValueError(
                "--weights must be a weights file of MobileNetV2 x0.5 without its classifier. "
                f"Received: {weights!r}, which does not fit: {str(error).splitlines()[0]}"
            ) from error
    return backbone


def train_models(
    args: argparse.Namespace,
    backbone: keras.Model,
    train: ftk.ImageSet,
    validation: ftk.ImageSet,
) -> tuple[tuple[ftk.FineTuned, ...], float]:
    """Train the models, which share one pass over the images. Return them and its seconds."""
    chosen = recipe(args.recipe)
    head = ftk.classification_head(train.class_names, units=(1024, 512), pooling=chosen.pooling)
    specs = [
        ftk.FineTuneSpec(
            number - 1, batch_norm=chosen.batch_norm, epochs=args.epochs, keep=chosen.keep
        )
        for number in args.models
    ]
    deepest = max(args.models)
    largest = specs[args.models.index(deepest)]
    print(f"\n2. The plan: MobileNetV2 x0.5 with {described(args.weights)}")
    print("   Model N trains a head and the last N - 1 blocks of the backbone.", end=" ")
    print(f"This is Model {deepest}:\n\n{largest.plan(backbone)}\n", flush=True)
    print(f"3. Training: {args.epochs} epochs for each model", flush=True)
    callbacks: list[keras.callbacks.Callback] = []
    if not args.verbose:
        order = sorted(args.models, reverse=True)  # `sweep` begins with the deepest
        callbacks.append(TrainingBars([f"Model {number}" for number in order], args.epochs))
    with tempfile.TemporaryDirectory() as temporary:
        shared: dict[str, Any] = {
            "batch_size": args.batch_size,
            "preprocessing": chosen.preprocessing,
            "features": args.features or temporary,
        }
        started, shown = time.perf_counter(), args.verbose or bar_kind()
        ftk.compute_features(  # a bar of its own; the other models start from these features
            backbone, largest, train + validation, head=head, verbose=shown, **shared
        )
        seconds = time.perf_counter() - started
        runs = ftk.sweep(
            backbone,
            head,
            specs,
            train,
            validation,
            callbacks=callbacks,
            seed=args.seed,
            verbose=args.verbose,
            **shared,
        )
    return runs, seconds


def evaluate_models(
    args: argparse.Namespace,
    runs: Sequence[ftk.FineTuned],
    test: ftk.ImageSet,
    duplicates: ftk.Duplicates,
) -> tuple[dict[str, ftk.Report], list[dict[str, Any]]]:
    """Evaluate and save the models. Return their reports and their entries in `results.json`."""
    reports, models = {}, []
    shown = bar(len(runs), "model")
    for number, tuned in zip(args.models, runs, strict=True):
        started = time.perf_counter()
        report = ftk.evaluate(tuned, test, duplicates=duplicates, heat_maps=24)
        seconds = {**tuned.timings, "evaluate": time.perf_counter() - started}
        title = f"Model {number}" if args.data else f"Model {number} on phantoms"
        report.save(args.out / "reports" / f"model-{number}", title=title)
        tuned.save(args.out / "models" / f"model-{number}.keras")
        reports[f"Model {number}"] = report
        models.append(model_results(number, tuned, report, seconds))
        shown.update(len(models))
    return reports, models


def model_results(
    number: int, tuned: ftk.FineTuned, report: ftk.Report, seconds: dict[str, float]
) -> dict[str, Any]:
    """Return the entry of a model in `results.json`."""
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
            "metrics": {name: estimate.to_dict() for name, estimate in report.metrics.items()},
            "confusion_matrix": report.confusion_matrix.tolist(),
        },
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def table_beside_the_study(models: Sequence[dict[str, Any]], class_names: Sequence[str]) -> str:
    """Return a table of each model's results and those that the study reported."""
    rows = [
        ["", "trainable", "", "", *("recall" for _ in class_names)],
        ["", "params", "accuracy", "macro F1", *class_names],
    ]
    for model in models:
        test = model["test"]
        recalls = [test["per_class"][name]["recall"] for name in class_names]
        values = [test["accuracy"], test["macro_f1"], *recalls]
        trainable = f"{model['trainable_params']:,}"
        rows.append([model["name"], trainable, *(f"{value:.3f}" for value in values)])
        rows.append(["  study", "", *reported(model["name"], class_names)])
    return aligned(rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder of the database (default: draw phantoms)")
    add("--weights", help="drawn, imagenet, random or a file (default: drawn for phantoms, "
        "imagenet with --data)")  # fmt: skip
    add("--models", type=int, nargs="+", default=[1, 2, 3], help="which (default: 1 2 3)")
    add("--epochs", type=int, default=20, help="for each model (default: 20, as in the study)")
    add("--batch-size", type=int, default=64, help="images per step (default: 64, as in the study)")
    add("--image-size", type=int, default=224, help="in pixels (default: 224, as in the study)")
    add("--recipe", choices=("study", "recommended"), default="recommended",
        help="how to train (default: recommended)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of split, head and shuffling (default: 0)")
    add("--features", type=Path, help="folder that keeps the features of the frozen part for "
        "later runs (default: a temporary folder)")  # fmt: skip
    add("--out", type=Path, default=Path("out/chest_xray"),
        help="folder for the results (default: out/chest_xray)")  # fmt: skip
    add("--limit", type=int, help="number of images to use, a stratified sample (default: all)")
    add("--verbose", type=int, choices=(0, 1, 2), default=0,
        help="0 for one bar for each model, 1 or 2 as in Keras (default: 0)")  # fmt: skip
    args = parser.parse_args(argv)
    args.weights = args.weights or default_weights(args.data)
    return args


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Return the options after a check of their values, with the folder of the results made."""
    if any(number < 1 for number in args.models):
        raise ValueError(f"--models must be numbers from 1 up. Received: {args.models}")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1. Received: {args.limit}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # such as a file of this name
        raise ValueError(
            f"--out must be a folder that can be written. Received: {args.out}, which fails with: "
            f"{error.strerror}"
        ) from error
    return args


def default_weights(data: Path | None) -> str:
    """Return the weights to start from: those of drawn images if there are no X-rays."""
    return "drawn" if data is None else "imagenet"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; print an error in the input without its traceback."""
    return ended(lambda: run(checked(parse(argv))))


if __name__ == "__main__":
    sys.exit(main())
