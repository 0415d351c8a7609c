"""Images per second of the frozen part, on the backend of the training and on another one.

    python benchmarks/backends.py FOLDER --backend openvino --images 2048

One pass over the images of FOLDER (class folders) through MobileNetV2 x0.5 with ImageNet weights
and average pooling, from files to features on disk, in batches of 32. The passes alternate. The
first batch, with which models are compiled and processes started, is timed by itself. Processor
seconds are those of the processes of a pass together.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import keras
import numpy as np

import finetune_kit as ftk
from finetune_kit._features import entry


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    images = ftk.read_image_folder(args.folder)
    images = images.take(np.random.default_rng(0).permutation(len(images))[: args.images])
    images.digests()
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, input_shape=(224, 224, 3)
    )
    computed, times = entry._computed, []

    def timed(*given):
        for outputs in computed(*given):
            times.append(time.perf_counter())
            yield outputs

    entry._computed = timed
    found = {}
    for backend in (None, args.backend) * args.runs:
        times.clear()
        start, used = time.perf_counter(), processor_seconds()
        with tempfile.TemporaryDirectory() as folder:
            cache = ftk.FeatureCache(folder, backend=backend)
            found[backend] = ftk.extract_features(backbone, images, features=cache, verbose=0)
        seconds, used = time.perf_counter() - start, processor_seconds() - used
        rate = (len(images) - 32) / (times[-1] - times[0])
        name = backend or keras.backend.backend()
        print(
            f"{name}: {seconds:.1f} s, of which {times[0] - start:.1f} s to the first batch; "
            f"{rate:.0f} images/s after it; {used:.1f} processor seconds",
            flush=True,
        )
    expected = found[None]
    difference = np.abs(found[args.backend] - expected).max() / np.abs(expected).max()
    print(f"largest difference: {difference:.1g} of the largest value")


if __name__ == "__main__":
    main()
