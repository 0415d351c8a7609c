"""Time decoding: images a second of one core, ours beside Keras' and PyTorch's usual ways.

    OMP_NUM_THREADS=1 python benchmarks/images.py COVID-19_Radiography_Dataset [--limit 600]

The same files, decoded and resized to 224 x 224 RGB: the data set's images as gray PNGs of
299 x 299, as the real database has them, and as large colour JPEGs (1,200 x 1,000). Each way runs
three times in turn; the least processor time (of all its threads) counts, so other programs
disturb it little. With kornia-rs (the extra `fast`) ours is timed with and without it.
Needs tensorflow for `keras.utils.image_dataset_from_directory`, which resizes
without antialiasing (the same with it is a way of its own), and torch for a `DataLoader` with
Pillow; what is not installed is left out.
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
    """`ImageSet.load`, batch by batch, in this thread."""
    images = ftk.read_image_folder(folder)

    def run() -> int:
        starts = range(0, len(images), BATCH)
        rows = np.arange(len(images))
        return sum(len(images.load(rows[i : i + BATCH], SIZE)) for i in starts)

    return run


def only_pillow(folder: Path) -> Callable[[], int]:
    """The same without the extra `fast`."""
    run = ours(folder)

    def slowly() -> int:
        with unittest.mock.patch("finetune_kit._data.decoding._FAST", False):
            return run()

    return slowly


def keras_folder(folder: Path) -> Callable[[], int]:
    """`keras.utils.image_dataset_from_directory`, held to one thread."""
    dataset = keras.utils.image_dataset_from_directory(
        folder, image_size=SIZE, batch_size=BATCH, shuffle=False, verbose=False
    )
    dataset = in_one_thread(dataset)
    return lambda: sum(len(x) for x, _ in dataset)


def tensorflow_antialiased(folder: Path) -> Callable[[], int]:
    """What `image_dataset_from_directory` does, with the antialiasing that it leaves out."""
    import tensorflow as tf

    def decoded(file: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(file), channels=3, expand_animations=False)
        return tf.image.resize(image, SIZE, antialias=True)

    files = tf.data.Dataset.from_tensor_slices(sorted(map(str, folder.glob("*/*"))))
    dataset = in_one_thread(files.map(decoded).batch(BATCH))
    return lambda: sum(len(x) for x in dataset)


def in_one_thread(dataset: Any) -> Any:
    """A `tf.data.Dataset`, held to one thread."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


def torch_loader(folder: Path) -> Callable[[], int]:
    """A `DataLoader` over a data set that opens files with Pillow, as tutorials write it."""
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


WAYS: dict[str, Callable[[Path], Callable[[], int]]] = {"finetune-kit": ours}
if importlib.util.find_spec("kornia_rs"):
    WAYS["the same, Pillow alone"] = only_pillow
if importlib.util.find_spec("tensorflow"):
    WAYS["image_dataset_from_directory"] = keras_folder
    WAYS["that, antialiased"] = tensorflow_antialiased
if importlib.util.find_spec("torch"):
    WAYS["DataLoader with Pillow"] = torch_loader


def main() -> None:
    """Make the two folders, run all ways in turn, print images a second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="class folders, such as the chest X-ray database")
    parser.add_argument("--limit", type=int, default=600, help="images (default: 600)")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for all of them
    images = ftk.read_image_folder(args.data)
    rng = np.random.default_rng(0)
    chosen = [images.paths[i] for i in rng.permutation(len(images))[: args.limit]]
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
            runs = {name: way(folder) for name, way in WAYS.items()}
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
                print(f"  {name:30} {len(chosen) / seconds:7.0f} images/s   ours is {ratio:.2f}x")


if __name__ == "__main__":
    main()
