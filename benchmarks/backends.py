"""Processor seconds of the frozen part, on the backend of the training and on another one.

    python benchmarks/backends.py FOLDER --backend openvino --images 3788

Passes over the images of FOLDER (class folders) through a backbone with average pooling
(MobileNetV2 x0.5 with ImageNet weights, or another one with random weights), from files to features
on disk, in batches of 32. The passes alternate: 64 images, then all of them, with each backend;
their difference is the cost of a further image, and what is left of the first is the cost of the
start. Processor seconds are those of all processes of a pass. They depend less on other programs
than the time does.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections import defaultdict

import keras
import numpy as np

import finetune_kit as ftk
from finetune_kit._features import process

FEW = 64


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def one_pass(backbone, images, backend) -> tuple[np.ndarray, float, float]:
    """Return the features, processor seconds and seconds of a pass."""
    start, used = time.perf_counter(), processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        cache = ftk.FeatureCache(folder, backend=backend)
        found = ftk.extract_features(backbone, images, features=cache, verbose=0)
    seconds = time.perf_counter() - start
    process._end_waiting()  # so that its seconds count
    return found, processor_seconds() - used, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--backbone", default="MobileNetV2")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    images = ftk.read_image_folder(args.folder)
    images = images.take(np.random.default_rng(0).permutation(len(images))[: args.images])
    images.digests()
    weights = {"alpha": 0.5} if args.backbone == "MobileNetV2" else {"weights": None}
    build = getattr(keras.applications, args.backbone)
    backbone = build(include_top=False, input_shape=(224, 224, 3), **weights)
    used = processor_seconds()
    images.take(np.arange(FEW)).load()
    print(f"decoding alone: {(processor_seconds() - used) / FEW * 1e3:.2f} ms an image")
    one_pass(backbone, images.take(np.arange(FEW)), None)  # what a process does once
    further, begin, found = defaultdict(list), defaultdict(list), {}
    for backend in (None, args.backend) * args.runs:
        name = backend or keras.backend.backend()
        _, few, _ = one_pass(backbone, images.take(np.arange(FEW)), backend)
        found[name], every, seconds = one_pass(backbone, images, backend)
        further[name].append((every - few) / (len(images) - FEW))
        begin[name].append(few - FEW * further[name][-1])
        print(
            f"{name}: {FEW} images {few:.1f}, {len(images)} images {every:.1f} processor seconds "
            f"({seconds:.1f} s); {further[name][-1] * 1e3:.2f} ms each further image, "
            f"{begin[name][-1]:.1f} s for the start",
            flush=True,
        )
    one, other = found
    ratio = statistics.median(further[one]) / statistics.median(further[other])
    print(f"medians: {one} takes {ratio:.1f} times the processor time of {other} for an image")
    difference = np.abs(found[other] - found[one]).max() / np.abs(found[one]).max()
    print(f"largest difference: {difference:.1g} of the largest value")


if __name__ == "__main__":
    main()
