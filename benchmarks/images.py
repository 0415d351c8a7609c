"""Measure how many images one core decodes per second, compared with Keras and PyTorch.

    OMP_NUM_THREADS=1 python benchmarks/images.py COVID-19_Radiography_Dataset [--limit 600]

Each method decodes the same files and resizes them to 224 x 224 RGB. The images of the data set are
written as gray PNGs of 299 x 299, as in the original database, and as large color JPEGs
(1,200 x 1,000). All methods run three times in turn. The minimum of the processor time (of all
threads) counts, so that other programs have little effect.

If kornia-rs (the extra `fast`) is installed, finetune-kit is measured with and without it. The
other methods are `keras.utils.image_dataset_from_directory`, which resizes without antialiasing,
the same with antialiasing (both need tensorflow), and a `DataLoader` with Pillow (needs torch).
Methods that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

import finetune_kit as ftk

SIZE = (224, 224)
BATCH = 32


def ours(folder: Path) -> Callable[[], int]:
    """Use `ImageSet.load`, batch by batch, in one thread."""
    images = ftk.read_image_folder(folder)

    def run() -> int:
        starts = range(0, len(images), BATCH)
        rows = np.arange(len(images))
        return sum(len(images.load(rows[i : i + BATCH], SIZE)) for i in starts)

    return run


def only_pillow(folder: Path) -> Callable[[], int]:
    """Use `ImageSet.load` without the extra `fast`."""
    run = ours(folder)

    def slowly() -> int:
        with unittest.mock.patch("finetune_kit._data.decoding._FAST", False):
            return run()

    return slowly


def keras_folder(folder: Path) -> Callable[[], int]:
    """Use `keras.utils.image_dataset_from_directory` with one thread."""
    dataset = keras.utils.image_dataset_from_directory(
        folder, image_size=SIZE, batch_size=BATCH, shuffle=False, verbose=False
    )
    dataset = in_one_thread(dataset)
    return lambda: sum(len(x) for x, _ in dataset)


def tensorflow_antialiased(folder: Path) -> Callable[[], int]:
    """Do what `image_dataset_from_directory` does, but with antialiasing."""
    import tensorflow as tf

    def decoded(file: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(file), channels=3, expand_animations=False)
        return tf.image.resize(image, SIZE, antialias=True)

    files = tf.data.Dataset.from_tensor_slices(sorted(map(str, folder.glob("*/*"))))
    dataset = in_one_thread(files.map(decoded).batch(BATCH))
    return lambda: sum(len(x) for x in dataset)


def in_one_thread(dataset: Any) -> Any:
    """Limit a `tf.data.Dataset` to one thread."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


def torch_loader(folder: Path) -> Callable[[], int]:
    """Use a `DataLoader` that opens the files with Pillow, as tutorials do."""
    import torch

    files = sorted(folder.glob("*/*"))

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            image = Image.open(files[index]).convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(image))

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Files(), batch_size=BATCH)
    return lambda: sum(len(x) for x in loader)


METHODS: dict[str, Callable[[Path], Callable[[], int]]] = {"finetune-kit": ours}
if importlib.util.find_spec("kornia_rs"):
    METHODS["finetune-kit without `fast`"] = only_pillow
if importlib.util.find_spec("tensorflow"):
    METHODS["image_dataset_from_directory"] = keras_folder
    METHODS["the same, antialiased"] = tensorflow_antialiased
if importlib.util.find_spec("torch"):
    METHODS["DataLoader with Pillow"] = torch_loader


def main() -> None:
    """Write the two folders, run all methods in turn, and print images per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="class folders, such as the chest X-ray database")
    parser.add_argument("--limit", type=int, default=600, help="images (default: 600)")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for all methods
    images = ftk.read_image_folder(args.data)
    order = np.random.default_rng(0).permutation(len(images))
    chosen = images.take(order[: args.limit]).paths
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("png", "jpg"):
            folder = Path(temporary, kind)
            (folder / "a").mkdir(parents=True)
            (folder / "b").mkdir()
            for i, path in enumerate(chosen):
                target = folder / "ab"[i % 2] / f"{i}.{kind}"
                with Image.open(path) as image:
                    if kind == "png":
                        image.convert("L").resize((299, 299)).save(target)
                    else:
                        image.convert("RGB").resize((1200, 1000)).save(target, quality=90)
            runs = {name: prepare(folder) for name, prepare in METHODS.items()}
            best = dict.fromkeys(runs, np.inf)
            for _ in range(3):
                for name, run in runs.items():
                    started = time.process_time()
                    count = run()
                    best[name] = min(best[name], time.process_time() - started)
                    assert count == len(chosen), name
            print(f"{kind}, {len(chosen)} files")
            for name, seconds in best.items():
                ratio = seconds / best["finetune-kit"]
                rate = len(chosen) / seconds
                print(f"  {name:30} {rate:7.0f} images/s   finetune-kit is {ratio:.2f}x as fast")


if __name__ == "__main__":
    main()
