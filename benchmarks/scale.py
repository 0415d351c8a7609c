"""What do millions of images take? Measured parts, a model of the cost, and a simulation of it.

    python benchmarks/scale.py COVID-19_Radiography_Dataset [--limit 512] [--simulate]

Measured on this machine, for the study's backbone (MobileNetV2 x0.5, 224 x 224, random weights):
the start of a process until its first batch is computed, the images per second that one process
decodes and computes and that it hashes, in processor seconds, and the bytes of an image's features
at the cuts of Models 1 to 3. Two numbers about the index of an entry are those of store.py and
bucket.py. From all of them follow hours, sizes, chunks and requests for 10^6 to 10^8 images.

`--simulate` checks the model of the time: thousands of parts on up to 1,024 workers that sleep in
place of computing. A tenth of them are five times as slow, and each part loses its worker with a
probability of 2%: what it had written stays, another worker starts and computes the rest. One
second of the model is a few milliseconds of sleep.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

import finetune_kit as ftk
from finetune_kit._features.entry import _CHUNK_BYTES, _CHUNK_ROWS
from finetune_kit._features.rows import NAME

SIZE = 224
IMAGES = (10**6, 10**7, 10**8)
WORKERS = (16, 256, 1024)
SLOW_SHARE, SLOW_FACTOR, LOSS = 0.1, 5.0, 0.02
OPENED = 1.1e6  # rows of an index that are read in a processor second (store.py)
OPENING = 97  # bytes of memory for each row of an entry that is opened (bucket.py)
LISTED = 1000  # objects in one answer of S3
START = """
import time
began = time.process_time()
import sys, tempfile
import keras, numpy as np
import finetune_kit as ftk
sys.path.insert(0, sys.argv[1])
from scale import backbone
pixels = np.zeros((32, 224, 224, 3), np.uint8)
images = ftk.ImageSet.from_arrays(pixels, ["a", "b"] * 16)
spec = ftk.FineTuneSpec(2)
ftk.compute_features(backbone(), spec, images, tempfile.mkdtemp(), verbose=0)
print(time.process_time() - began)
"""


@dataclass(frozen=True)
class Parts:
    """What was measured: seconds, images per second, bytes."""

    start: float
    computed: float
    hashed: float
    file_bytes: float
    feature_bytes: dict[str, int]


def backbone() -> keras.Model:
    """Return the backbone of the study, with random weights."""
    shape = (SIZE, SIZE, 3)
    return keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=shape
    )


def measured(folder: Path, limit: int) -> Parts:
    """Measure the parts in processor seconds, on a sample of the images in a folder."""
    images = ftk.read_image_folder(folder)
    images = images.take(range(0, len(images), max(1, len(images) // limit)))
    paths = list(images.paths)
    began = time.process_time()
    for path in paths:
        hashlib.sha256(Path(path).read_bytes()).hexdigest()
    hashed = time.process_time() - began
    call = [sys.executable, "-c", START, str(Path(__file__).parent)]
    start = float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    sizes = {}
    network = backbone()
    for blocks in range(3):
        with tempfile.TemporaryDirectory() as kept:
            cache, spec = ftk.FeatureCache(kept), ftk.FineTuneSpec(blocks)
            began = time.process_time()
            ftk.compute_features(network, spec, images, cache, verbose=0)
            seconds = time.process_time() - began
            [entry] = cache.entries()
            sizes[f"Model {blocks + 1}"] = 4 * sum(
                int(keras.ops.prod(shape)) for shape in entry.shapes
            )
    return Parts(
        start=start,
        computed=len(images) / seconds,
        hashed=len(images) / max(hashed, 1e-3),
        file_bytes=sum(os.path.getsize(path) for path in paths) / len(paths),
        feature_bytes=sizes,
    )


def seconds_needed(images: float, workers: int, parts: int, rate: float, start: float) -> float:
    """Return the seconds that workers need in the mean: slow ones, lost ones and the tail included.

    Args:
        images: the number of images.
        workers: processes that compute at once.
        parts: how many parts the images are divided into.
        rate: images per second of a worker that is not slow.
        start: seconds until a process computes.
    """
    speed = workers * (1 - SLOW_SHARE + SLOW_SHARE / SLOW_FACTOR)
    # A part that loses its worker starts again from its last whole chunk.
    one = images / parts / rate
    work = parts * (one + (1 + LOSS) * start)
    # In the end, the others wait for a slow worker: for half of a part of it in the mean.
    return work / speed + SLOW_FACTOR * (one + start) / 2


def simulated(images: int, workers: int, parts: int, rate: float, start: float) -> float:
    """Return the seconds of the model that sleeping workers need; they take parts from a queue."""
    scale = 3.0 * workers / (images / rate)  # so that the work takes some 3 s in all
    left: queue.Queue[float] = queue.Queue()
    for _ in range(parts):
        left.put(images / parts / rate)
    random_numbers = random.Random(0)
    losses = [random_numbers.random() < LOSS for _ in range(2 * parts + workers)]

    def work(number: int) -> None:
        factor = SLOW_FACTOR if number < workers * SLOW_SHARE else 1.0
        while True:
            try:
                seconds = left.get_nowait()
            except queue.Empty:
                return
            lost = losses.pop()
            done = seconds * random_numbers.random() if lost else seconds
            time.sleep((start + done) * factor * scale)
            if lost:
                left.put(seconds - done)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) / scale


def chunks(images: int, parts: int, row_bytes: int) -> int:
    """Return how many chunks the parts write, as `Entry` cuts them."""
    one = images // parts
    rows = min(max(_CHUNK_ROWS, one // 64), max(1, _CHUNK_BYTES // row_bytes))
    return parts * -(-one // rows)


def opening(count: int) -> int:
    """Return the requests that open an entry of some chunks: their indexes, and the lists."""
    return count + -(-2 * count // LISTED)


def table(found: Parts) -> str:
    """Return sizes and hours for more images than were measured, as Markdown."""
    row = found.feature_bytes["Model 3"]
    lines = ["| | " + " | ".join(f"10^{len(str(n)) - 1} images" for n in IMAGES) + " |"]
    lines.append("|---" * (len(IMAGES) + 1) + "|")

    def add(name: str, cells: Sequence[str]) -> None:
        lines.append(f"| {name} | {' | '.join(cells)} |")

    add("image files", [f"{n * found.file_bytes / 1e9:,.0f} GB" for n in IMAGES])
    for model, size in found.feature_bytes.items():
        add(f"features of {model}", [f"{n * size / 1e9:,.0f} GB" for n in IMAGES])
    # A part begins with the index of what is there by then: half of all in the mean.
    starts = [found.start + n / 2 / OPENED for n in IMAGES]
    for workers in WORKERS:
        needed = [
            seconds_needed(n, workers, parts_of(n, workers), found.computed, start) / 3600
            for n, start in zip(IMAGES, starts, strict=True)
        ]
        add(f"hours with {workers:,} workers", [f"{hours:,.2f}" for hours in needed])
    parts = [parts_of(n, WORKERS[-1]) for n in IMAGES]
    counts = [chunks(n, part, row) for n, part in zip(IMAGES, parts, strict=True)]
    hashing = [f"{n / found.hashed / 3600:,.2f}" for n in IMAGES]
    add("hours to hash the files once, one worker", hashing)
    add("chunks of Model 3, 1,024 workers", [f"{count:,}" for count in counts])
    add("writes to a bucket (chunk and index)", [f"{2 * count:,}" for count in counts])
    add("reads from a bucket to open the entry", [f"{opening(count):,}" for count in counts])
    reads = [part * opening(count // 2) for part, count in zip(parts, counts, strict=True)]
    add("such reads, all parts", [f"{count / 1e6:,.1f} million" for count in reads])
    index = [f"{n * NAME.itemsize / 1e9:,.2f} GB" for n in IMAGES]
    add("index, read by each process that opens the entry", index)
    add("memory to open it", [f"{n * OPENING / 1e9:,.1f} GB" for n in IMAGES])
    return "\n".join(lines)


def parts_of(images: int, workers: int) -> int:
    """Return a number of parts: several for each worker, and not too small."""
    return max(1, min(4 * workers, images // 4096))


def main() -> None:
    """Measure, or simulate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="folder of images to measure with")
    parser.add_argument("--limit", type=int, default=512, help="images to measure (default: 512)")
    parser.add_argument("--simulate", action="store_true", help="check the model of the time")
    args = parser.parse_args()
    if args.folder:
        found = measured(args.folder, args.limit)
        print(f"start of a process: {found.start:.1f} processor s; decoded and computed: "
              f"{found.computed:.0f} images per processor s; hashed: {found.hashed:,.0f}; "
              f"{found.file_bytes / 1e3:.0f} kB a file\n\n{table(found)}")  # fmt: skip
    if args.simulate:
        print("workers   parts   model h   simulated h   ratio")
        for workers, parts in ((16, 64), (64, 2048), (256, 2048), (256, 8192), (1024, 8192)):
            options = (10**7, workers, parts, 100.0, 10.0)
            model, found_seconds = seconds_needed(*options), simulated(*options)
            print(f"{workers:7,} {parts:7,} {model / 3600:9.2f} {found_seconds / 3600:13.2f} "
                  f"{found_seconds / model:7.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
