"""Does a run that was killed and resumed end with the weights of one that was not?

    KERAS_BACKEND=tensorflow python benchmarks/crash.py --kills 50

A run of two phases of a small model (dropout, trained BatchNorm, layer_decay, EarlyStopping with
its best weights) is killed with SIGKILL at a random moment and started again by the same call. What
it ends with is compared with the end of an undisturbed run: each weight to the last bit, and the
history. The moments are drawn from a seed, by turns from the whole run, from the pass that computes
features, and from those in which a checkpoint lies written and not yet named (made 50 ms long).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np

import finetune_kit as ftk

# Each run is a process of its own, forked from one that has imported what takes long.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["finetune_kit"])


def backbone() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((32, 32, 3))
    for i in range(1, 4):
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"block{i}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{i}_conv_bn")(x)
        x = keras.layers.ReLU(name=f"block{i}_conv_relu")(x)
    return keras.Model(inputs, x, name="small")


def train(folder: Path, linger: bool) -> None:
    """The run; at its end `folder` tells what it ended with."""
    if linger:
        os.fsync = lambda file: time.sleep(0.05)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 32, 32, 3), np.uint8)
    images = ftk.ImageSet.from_arrays(pixels, np.arange(len(pixels)) % 3)
    split = ftk.Split(np.arange(120), np.arange(120, 160), np.arange(0))
    tuned = ftk.fine_tune(
        backbone(),
        ftk.classification_head(3, units=(64,), dropout=0.3),
        [
            ftk.FineTuneSpec(0, epochs=4),
            ftk.FineTuneSpec(2, epochs=4, batch_norm="train", layer_decay=0.5),
        ],
        images,
        split,
        batch_size=8,
        preprocessing=None,
        callbacks=[keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)],
        run_dir=folder / "run",
        verbose=0,
    )
    digest = hashlib.sha256()
    for weight in tuned.model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    (folder / "timings.json").write_text(json.dumps(dict(tuned.timings)))
    (folder / "end.json").write_text(json.dumps([digest.hexdigest(), dict(tuned.history)]))


def started(folder: Path, linger: bool = False) -> multiprocessing.Process:
    """The run in a process, once it has reached its folder."""
    process = PROCESSES.Process(target=train, args=(folder, linger))
    process.start()
    while process.is_alive() and not (folder / "run" / "run.json").exists():
        time.sleep(0.001)
    return process


def kill(folder: Path, kind: int, share: float, lasts: float, pass_lasts: float) -> str:
    """Kill the run at a moment; where it was then."""
    process, run = started(folder, linger=kind == 2), folder / "run"
    if kind == 2:  # while the checkpoint after so many epochs is a draft
        for _ in range(1 + int(share * 8)):
            while process.is_alive() and any(run.glob("*.part")):
                time.sleep(0.001)
            while process.is_alive() and not any(run.glob("*.part")):
                time.sleep(0.001)
    else:
        time.sleep(share * (pass_lasts if kind else lasts))
    process.kill()
    process.join()
    if process.exitcode != -9:
        return "not killed: it had ended"
    if any(run.glob("*.part")):
        return "a checkpoint being written"
    return "training" if any(run.glob("checkpoint-*")) else "before the first checkpoint"


def measure(kills: int, folder: Path, seed: int = 0) -> tuple[int, Counter[str]]:
    """How many killed runs ended as the undisturbed one did, and where they were killed."""
    begun = time.perf_counter()
    process = started(folder / "undisturbed")
    reached = time.perf_counter()
    process.join()
    lasts = time.perf_counter() - reached
    expected = (folder / "undisturbed" / "end.json").read_text()
    pass_lasts = json.loads((folder / "undisturbed" / "timings.json").read_text())["prefix"]
    print(f"undisturbed: {time.perf_counter() - begun:.1f} s, {lasts:.1f} s of it in its folder")
    moments, same, where = random.Random(seed), 0, Counter[str]()
    while where.total() < kills:
        number = where.total()
        victim = folder / f"killed-{number}"
        place = kill(victim, number % 3, moments.random(), lasts, pass_lasts)
        if place.startswith("not"):  # the machine was quicker this time
            continue
        again = started(victim)
        again.join()
        end = victim / "end.json"
        identical = end.exists() and end.read_text() == expected
        where[place] += 1
        same += identical
        print(f"{number + 1}: {place}, {'identical' if identical else 'DIFFERENT'}", flush=True)
    return same, where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="default: 50")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        same, where = measure(args.kills, Path(folder), args.seed)
    places = ", ".join(f"{count} {place}" for place, count in where.items())
    print(f"{keras.backend.backend()}: {same} of {args.kills} identical ({places})")


if __name__ == "__main__":
    main()
