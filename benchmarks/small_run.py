"""Where do the processor seconds of a small run go?

    KERAS_BACKEND=tensorflow python benchmarks/small_run.py PHOTOS --images 500
    KERAS_BACKEND=jax python benchmarks/small_run.py PHOTOS --images 500 --backend openvino

Trains the head of MobileNetV2 x0.35 with ImageNet weights on some images of a folder, then the head
with two blocks, and evaluates the result on a fifth of the images. Printed are processor seconds of
the process, all its threads and its workers, for each part. With `--backend`, another backend
computes the frozen part, also of the evaluation. To compare two versions of the library, run them
in turn, with `PYTHONPATH` set to the sources of one and the other.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np

import finetune_kit as ftk

T = TypeVar("T")


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(name: str, call: Callable[[], T]) -> T:
    began, used = time.perf_counter(), processor_seconds()
    result = call()
    seconds = time.perf_counter() - began
    if workers := sys.modules.get("finetune_kit._features.process"):
        workers._end_waiting()  # so that their seconds count
    processor = processor_seconds() - used
    print(f"{name:12} {processor:8.2f} {seconds:8.2f}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder with one folder per class")
    parser.add_argument("--images", type=int, default=500, help="default: 500")
    parser.add_argument("--epochs", type=int, default=5, help="of each phase (default: 5)")
    parser.add_argument("--backend", help="computes the frozen part (default: that of Keras)")
    args = parser.parse_args()
    images = ftk.read_image_folder(args.data)
    chosen = np.random.default_rng(0).permutation(len(images))[: args.images]
    parts = images.take(np.sort(chosen)).split((0.6, 0.2, 0.2), seed=0)
    for part in parts:
        part.digests()
    backbone = keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, input_shape=(224, 224, 3)
    )
    head = ftk.classification_head(len(images.class_names))
    specs = ftk.linear_probe_then_fine_tune(2, probe_epochs=args.epochs, epochs=args.epochs)
    print(f"{'':12} {'processor':>8} {'wall':>7}")
    with tempfile.TemporaryDirectory() as folder:
        kept = ftk.FeatureCache(folder, backend=args.backend) if args.backend else None
        train, validation, test = parts
        tuned = timed(
            "fine_tune",
            lambda: ftk.fine_tune(
                backbone, head, specs, train, validation, verbose=0, features=kept
            ),
        )
        timed("evaluate", lambda: ftk.evaluate(tuned, test, features=kept))
        timed("again", lambda: ftk.evaluate(tuned, test, features=kept))
    print({name: round(seconds, 2) for name, seconds in tuned.timings.items()})


if __name__ == "__main__":
    main()
