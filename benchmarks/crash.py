"""Does a run that was killed and resumed end with the weights of one that was not?

    KERAS_BACKEND=tensorflow python benchmarks/crash.py --kills 50

A run of two phases of a small model (dropout, trained BatchNorm, layer_decay, EarlyStopping that
restores the best weights) is killed with SIGKILL at a random moment and started again by the same
call. Its weights and history are compared with those of an undisturbed run, to the last bit. The
moments are random numbers from a seed: in turn from the whole run, from the pass that computes
features, and from the times in which a checkpoint is written but not yet renamed (prolonged to
50 ms).
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

# Each run is a process of its own, forked from one that has imported the slow packages.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["finetune_kit"])
EPOCHS = 8  # of both phases


def backbone() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((32, 32, 3))
    for i in range(1, 4):
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"block{i}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{i}_conv_bn")(x)
        x = keras.layers.ReLU(name=f"block{i}_conv_relu")(x)
    return keras.Model(inputs, x, name="small")


def train(folder: Path, slow: bool) -> None:
    """Train, and write digest and history of the result into the folder."""
    if slow:
        os.fsync = lambda file: time.sleep(0.05)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 32, 32, 3), np.uint8)
    images = ftk.ImageSet.from_arrays(pixels, np.arange(len(pixels)) % 3)
    tuned = ftk.fine_tune(
        backbone(),
        ftk.classification_head(3, units=(64,), dropout=0.3),
        [
            ftk.FineTuneSpec(0, epochs=EPOCHS // 2),
            ftk.FineTuneSpec(2, epochs=EPOCHS // 2, batch_norm="train", layer_decay=0.5),
        ],
        images.take(np.arange(120)),
        images.take(np.arange(120, 160)),
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


def start(folder: Path, slow: bool = False) -> multiprocessing.Process:
    """Start the run in a process, and return it once it has written `run.json`."""
    process = PROCESSES.Process(target=train, args=(folder, slow))
    process.start()
    while process.is_alive() and not (folder / "run" / "run.json").exists():
        time.sleep(0.001)
    return process


def kill(folder: Path, kind: int, share: float, run_seconds: float, pass_seconds: float) -> str:
    """Start a run, kill it, and return what it was doing at that moment."""
    process, run = start(folder, slow=kind == 2), folder / "run"
    if kind == 2:  # while one of its checkpoints is a draft
        for _ in range(1 + int(share * EPOCHS)):
            while process.is_alive() and any(run.glob("*.part")):
                time.sleep(0.001)
            while process.is_alive() and not any(run.glob("*.part")):
                time.sleep(0.001)
    else:
        time.sleep(share * (pass_seconds if kind else run_seconds))
    process.kill()
    process.join()
    if process.exitcode != -9:
        return "not killed: it had ended"
    if any(run.glob("*.part")):
        return "a checkpoint being written"
    return "training" if any(run.glob("checkpoint-*")) else "before the first checkpoint"


def measure(kills: int, folder: Path, seed: int = 0) -> tuple[int, Counter[str]]:
    """Return how many killed runs ended as the undisturbed one, and where they were killed."""
    begun = time.perf_counter()
    process = start(folder / "undisturbed")
    reached = time.perf_counter()
    process.join()
    run_seconds = time.perf_counter() - reached
    expected = (folder / "undisturbed" / "end.json").read_text()
    pass_seconds = json.loads((folder / "undisturbed" / "timings.json").read_text())["prefix"]
    total = time.perf_counter() - begun
    print(f"undisturbed: {total:.1f} s, {run_seconds:.1f} s of it after the start")
    moments, same, where = random.Random(seed), 0, Counter[str]()
    while where.total() < kills:
        number = where.total()
        killed = folder / f"killed-{number}"
        place = kill(killed, number % 3, moments.random(), run_seconds, pass_seconds)
        if place.startswith("not"):  # this time the run was faster than expected
            continue
        start(killed).join()
        end = killed / "end.json"
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
