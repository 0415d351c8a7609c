"""Compare schedules: the head alone, four blocks at once, and four blocks after a linear probe.

    python examples/chest_xray/schedules.py --data COVID-19_Radiography_Dataset --out schedules.json

All schedules have the same number of epochs and keep the epoch with the lowest validation loss.
Each seed has its own split, initial head and shuffling. All runs share the features of the frozen
part. The length of the probe and the learning rates were chosen by the validation loss of seeds 7
and 8.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from run import load_backbone, sample
from tables import aligned

import finetune_kit as ftk


def schedules(blocks: int, epochs: int) -> dict[str, ftk.FineTuneSpec | list[ftk.FineTuneSpec]]:
    """Return the schedules by name, each of `epochs` epochs in total."""
    return {
        "head alone": ftk.FineTuneSpec(0, epochs=epochs),
        f"{blocks} blocks, 1e-3": ftk.FineTuneSpec(blocks, epochs=epochs),
        f"{blocks} blocks, 3e-4": ftk.FineTuneSpec(blocks, epochs=epochs, learning_rate=3e-4),
        f"LP-FT, {blocks} blocks": ftk.linear_probe_then_fine_tune(
            blocks, probe_epochs=2, epochs=epochs - 2, learning_rate=1e-3
        ),
    }


def compare_schedules(
    args: argparse.Namespace, images: ftk.ImageSet, features: Path
) -> dict[str, list[dict[str, Any]]]:
    """Train each schedule with each seed and return the results by schedule."""
    backbone = load_backbone(args.weights, 224)
    head = ftk.classification_head(images.class_names, units=(1024, 512))
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        train, validation, test = images.split(seed=seed)
        for name, specs in schedules(args.blocks, args.epochs).items():
            tuned = ftk.fine_tune(
                backbone,
                head,
                specs,
                train,
                validation,
                batch_size=64,
                features=features,
                seed=seed,
                verbose=0,
            )
            report = ftk.evaluate(tuned, test)
            result = {
                "seed": seed,
                "accuracy": report.accuracy,
                "macro_f1": report.macro_f1,
                "val_loss": min(tuned.history["val_loss"]),
                "seconds": round(sum(tuned.timings.values()), 1),
            }
            results.setdefault(name, []).append(result)
            print(f"{name:18} {result}", flush=True)
    return results


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the mean and standard deviation of each schedule over the seeds."""
    rows = [["", "accuracy", "macro F1"]]
    for name, runs in results.items():
        columns = [[run[key] for run in runs] for key in ("accuracy", "macro_f1")]
        cells = (f"{np.mean(c):.4f} ± {np.std(c, ddof=len(runs) > 1):.4f}" for c in columns)
        rows.append([name, *cells])
    return aligned(rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the database")
    add(
        "--weights",
        default="imagenet",
        help="drawn, imagenet, random or a file (default: imagenet)",
    )
    add("--blocks", type=int, default=4, help="blocks to train (default: 4)")
    add("--epochs", type=int, default=16, help="for each schedule, at least 3 (default: 16)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2],
        help="seeds of split, head and shuffling (default: 0 1 2)")  # fmt: skip
    add("--limit", type=int, help="number of images to use, a stratified sample (default: all)")
    add("--features", type=Path, help="folder that keeps the features of the frozen part for "
        "later runs (default: a temporary folder)")  # fmt: skip
    add("--out", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the schedules, print a table and write the results."""
    args = parse(argv)
    try:
        images = sample(ftk.read_image_folder(args.data), args.limit, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            results = compare_schedules(args, images, args.features or Path(folder))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nMean and standard deviation over {len(args.seeds)} seeds\n{table(results)}")
    if args.out:
        about = {"backend": keras.backend.backend(), "keras": keras.__version__}
        about |= {"images": len(images), "epochs": args.epochs, "blocks": args.blocks}
        args.out.write_text(json.dumps({**about, "runs": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
