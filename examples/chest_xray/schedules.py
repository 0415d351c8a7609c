"""Does a linear probe first help? Head alone, four blocks at once, and one after the other.

    python examples/chest_xray/schedules.py --data COVID-19_Radiography_Dataset --out schedules.json

Each schedule trains as many epochs in all and keeps the epoch with the lowest validation loss; the
seeds draw split, head and shuffles. The features of the frozen part are computed once for all runs.
How long to probe and how fast to go on was chosen by the validation loss of seeds 7 and 8.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from run import load_backbone, sample

import finetune_kit as ftk


def schedules(blocks: int, epochs: int) -> dict[str, ftk.FineTuneSpec | list[ftk.FineTuneSpec]]:
    """What is compared: the same number of epochs in all."""
    return {
        "head alone": ftk.FineTuneSpec(0, epochs=epochs),
        f"{blocks} blocks, 1e-3": ftk.FineTuneSpec(blocks, epochs=epochs),
        f"{blocks} blocks, 3e-4": ftk.FineTuneSpec(blocks, epochs=epochs, learning_rate=3e-4),
        f"LP-FT, {blocks} blocks": ftk.linear_probe_then_fine_tune(
            blocks, probe_epochs=2, epochs=epochs - 2, learning_rate=1e-3
        ),
    }


def main() -> None:
    """Train, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the database's folder")
    add("--weights", default="imagenet", help="imagenet, none or a file (default: imagenet)")
    add("--blocks", type=int, default=4, help="default: 4")
    add("--epochs", type=int, default=16, help="default: 16")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--limit", type=int, help="a stratified sample of so many images")
    add("--cache-dir", help="keep the frozen part's features here for later runs")
    add("--out", type=Path, help="where to write the figures as JSON")
    args = parser.parse_args()
    images = ftk.read_image_folder(args.data)
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            chosen = sample(images, args.limit, seed=0)
            part = ftk.stratified_split(images.labels[chosen], seed=seed)
            split = ftk.Split(chosen[part.train], chosen[part.validation], chosen[part.test])
            backbone = load_backbone(args.weights, 224, may_do_without=False)
            head = ftk.classification_head(len(images.class_names), units=(1024, 512))
            for name, spec in schedules(args.blocks, args.epochs).items():
                best = keras.callbacks.EarlyStopping(
                    patience=args.epochs, restore_best_weights=True
                )
                tuned = ftk.fine_tune(
                    backbone,
                    head,
                    spec,
                    images,
                    split,
                    batch_size=64,
                    callbacks=[best],
                    cache_dir=args.cache_dir or folder,
                    seed=seed,
                    verbose=0,
                )
                report = ftk.evaluate(tuned, images, split.test)
                row = {
                    "seed": seed,
                    "accuracy": report.accuracy,
                    "macro_f1": report.macro_f1,
                    "val_loss": min(tuned.history["val_loss"]),
                    "seconds": round(sum(tuned.timings.values()), 1),
                }
                results.setdefault(name, []).append(row)
                print(f"{name:18} {row}", flush=True)
    print(
        f"\n{'':18}  accuracy  macro F1  (mean and standard deviation of {len(args.seeds)} seeds)"
    )
    for name, rows in results.items():
        figures = [[row[key] for row in rows] for key in ("accuracy", "macro_f1")]
        told = (f"{np.mean(f):.4f} ± {np.std(f, ddof=len(rows) > 1):.4f}" for f in figures)
        print(f"{name:18}  {'  '.join(told)}")
    if args.out:
        about = {"backend": keras.backend.backend(), "keras": keras.__version__}
        about |= {"images": len(images), "epochs": args.epochs, "blocks": args.blocks}
        args.out.write_text(json.dumps({**about, "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
