"""Are features whole after a worker, or the process that started it, was killed?

    KERAS_BACKEND=tensorflow python benchmarks/engine_crash.py --kills 50

Features of drawn images are computed with OpenVINO in chunks of 32 rows. When a random number of
chunks is on disk, or before the first, the worker (every second time) or the whole run is killed
with SIGKILL. Each chunk that is left must
have the digest that is its name, and its rows must be those of an undisturbed run, to the last bit;
so must the result of the next run. A run whose worker was killed must end with that result too.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np

import finetune_kit as ftk
from finetune_kit._features import entry

# Each run is a process of its own, forked from one that has imported the slow packages.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["finetune_kit", "finetune_kit._features.entry"])
ROWS, IMAGES = 32, 640


def draw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        keras.utils.save_img(folder / "ab"[i % 2] / f"{i}.png", pixels, scale=False)


def compute(photos: Path, cache: Path, result: Path) -> None:
    """Compute the features of the images, and save them."""
    entry._CHUNK_ROWS = ROWS
    entry.Entry._chunk_rows = lambda self, count, batch_size: ROWS
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((64, 64, 3))
    for i in range(1, 4):
        x = keras.layers.Conv2D(32, 3, padding="same", name=f"block{i}_conv")(x)
        x = keras.layers.ReLU(name=f"block{i}_conv_relu")(x)
    backbone = keras.Model(inputs, x, name="small")
    found = ftk.extract_features(
        backbone,
        ftk.read_image_folder(photos),
        features=ftk.FeatureCache(cache, backend="openvino"),
        preprocessing=None,
        batch_size=8,
        verbose=0,
    )
    np.save(result, np.asarray(found))


def start(photos: Path, folder: Path) -> multiprocessing.Process:
    folder.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=compute, args=(photos, folder, folder / "result.npy"))
    process.start()
    return process


def worker_of(process: multiprocessing.Process) -> int | None:
    """Return the child of a process, if it has one (on Linux)."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        found = children.read_text().split()
    except OSError:
        return None
    return int(found[0]) if found else None


def rows_in(folder: Path) -> dict[bytes, bytes]:
    """Return the rows of all chunks by name, and check each chunk."""
    rows = {}
    for path in folder.glob("*/*.npy"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem, path
        rows |= {row["image"]: row.tobytes() for row in np.load(path)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="default: 50")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, photos = Path(temporary), Path(temporary, "photos")
        photos.mkdir()
        draw(photos)
        start(photos, folder / "first").join()  # also starts what the others are forked from
        begun = time.perf_counter()
        start(photos, folder / "undisturbed").join()
        seconds = time.perf_counter() - begun
        expected = rows_in(folder / "undisturbed")
        result = (folder / "undisturbed" / "result.npy").read_bytes()
        print(f"undisturbed: {seconds:.1f} s, {len(expected)} rows", flush=True)
        moments, seen, good, attempts = random.Random(args.seed), Counter[str](), 0, 0
        while seen.total() < args.kills:
            attempts += 1
            killed, is_worker = folder / f"killed-{attempts}", seen.total() % 2 == 0
            process, share = start(photos, killed), moments.random()
            chunks = int(share * (IMAGES // ROWS))
            while process.is_alive() and len(list(killed.glob("*/*.npy"))) < chunks:
                time.sleep(0.001)
            time.sleep(moments.random() * (0.05 if chunks else seconds))
            pid = worker_of(process) if is_worker else process.pid
            if pid is None or not process.is_alive():  # it was faster this time
                process.join()
                continue
            os.kill(pid, signal.SIGKILL)
            process.join()
            if not is_worker:
                time.sleep(2)  # in which the worker ends too
            left = rows_in(killed)
            whole = all(expected[name] == row for name, row in left.items())
            ended = (killed / "result.npy").exists()
            start(photos, killed).join()
            same = (killed / "result.npy").read_bytes() == result
            good += whole and same and (ended or not is_worker)
            what = "worker" if is_worker else "run"
            seen[what] += 1
            print(f"{seen.total()}: {what}, {len(left)} rows left, {whole}, {ended}, {same}",
                  flush=True)  # fmt: skip
        print(f"{good} of {args.kills} as they must be ({dict(seen)})")


if __name__ == "__main__":
    main()
