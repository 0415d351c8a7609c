"""Processor seconds of the frozen part, on the backend of the training and on another one.

    python benchmarks/backends.py FOLDER --backend openvino --images 3788

Passes over the images of FOLDER (class folders) through a backbone with average pooling
(MobileNetV2 x0.5 with ImageNet weights, or another one with random weights), from files to features
on disk, in batches of 32. The passes alternate: 64 images, then all of them, with each backend;
their difference is the cost of a further image, and what is left of the first is the cost of the
start. Processor seconds are those of all processes of a pass. They depend less on other programs
than the time does.

    python benchmarks/backends.py FOLDER --backend openvino --overlap

With `--overlap`, it compares seconds instead, on a machine on which nothing else runs: of a further
image in the whole pass, of decoding alone, and of computing images in memory alone. Decoding and
computing overlap, so the whole pass should be about as fast as the slower of the two.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial

import keras
import numpy as np

import finetune_kit as ftk
from finetune_kit._data.batches import ahead
from finetune_kit._features import process
from finetune_kit._features.entry import Entry

FEW = 64


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def one_pass(backbone, images, backend, *, ends=True) -> tuple[np.ndarray, float, float]:
    """Return the features, processor seconds and seconds of a pass; its worker ends or waits."""
    start, used = time.perf_counter(), processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        cache = ftk.FeatureCache(folder, backend=backend)
        found = ftk.extract_features(backbone, images, features=cache, verbose=0)
    seconds = time.perf_counter() - start
    if ends:
        process._end_waiting()  # so that its seconds count
    return found, processor_seconds() - used, seconds


def overlap(backbone, images, backend) -> None:
    """Print images per second of the whole pass, of decoding alone and of computing alone."""
    spent, fill = [], Entry.fill

    def recorded(self, *args):
        spent.append(fill(self, *args))
        return spent[-1]

    Entry.fill = recorded
    seconds = {name: [] for name in ("whole", "decoding", "computing")}
    one_pass(backbone, images.take(np.arange(FEW)), backend, ends=False)  # starts a worker
    for count in (FEW, len(images)):
        chosen = images.take(np.arange(count))
        seconds["whole"].append(one_pass(backbone, chosen, backend, ends=False)[2])
        parts = spent.pop()
        shown = f"decoding {parts.loading:.2f} s and computing {parts.computing:.2f} s"
        print(f"{count} images: {shown} of {seconds['whole'][-1]:.2f} s")
        batches = [np.arange(i, min(i + 32, count)) for i in range(0, count, 32)]
        started = time.perf_counter()
        pixels = np.concatenate(list(ahead(partial(chosen.load, size=(224, 224)), batches)))
        seconds["decoding"].append(time.perf_counter() - started)
        kept = ftk.ImageSet.from_arrays(pixels, chosen.labels, chosen.class_names)
        kept.digests()
        one_pass(backbone, kept, backend, ends=False)
        seconds["computing"].append(spent.pop().computing)
    Entry.fill = fill
    process._end_waiting()
    rates = {name: (len(images) - FEW) / (b - a) for name, (a, b) in seconds.items()}
    share = rates["whole"] / min(rates["decoding"], rates["computing"])
    shown = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    name = backend or keras.backend.backend()
    print(f"{name}, images/s: {shown}; {share:.2f} of the slower part", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--backbone", default="MobileNetV2")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--overlap", action="store_true", help="seconds of the parts instead")
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
    if args.overlap:
        for backend in (None, args.backend) * args.runs:
            overlap(backbone, images, backend)
        return
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
