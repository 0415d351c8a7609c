"""Chest-like images in the folder layout of the COVID-19 Radiography Database.

These phantoms let anyone run the example without data. `anatomy.py` draws them. They show no
patients and are not suited for any diagnosis.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from anatomy import draw
from PIL import Image

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
# About 3% of the database's 3,616 / 6,012 / 10,192 / 1,345 images: the same class imbalance.
COUNTS = {"COVID": 110, "Lung_Opacity": 182, "Normal": 308, "Viral Pneumonia": 41}
NOTE = "Phantoms of the chest X-ray example: drawn images without patients. Not for diagnosis.\n"


def write_phantoms(
    folder: Path,
    *,
    images_per_class: Mapping[str, int] | None = None,
    copies: int = 0,
    size: int = 224,
    seed: int = 0,
    progress: Callable[[int, str], Any] | None = None,
) -> Path:
    """Write phantoms to `folder/CLASS/images/CLASS-N.png`, and their lung masks beside them.

    Image N of a class depends on the seed, the class, N and the size alone. The folder is written
    completely or not at all. A folder that already holds the same phantoms is kept. Its file
    `phantoms.json` lists the copies.

    Args:
        folder: the folder to write, which is made with its parents.
        images_per_class: number of images of each of `CLASSES`. Defaults to about 640 in total.
        copies: number of images of each class that are written once more, darker and as JPEG, as
            collections of X-rays contain them. Their numbers follow those of the others. Defaults
            to 0.
        size: height and width in pixels. Defaults to 224.
        seed: seed of the random numbers. Defaults to 0.
        progress: is called with the number of images and `"image"`, and returns a bar whose method
            `update` takes the number of images that are done.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    counts = dict(images_per_class or COUNTS)
    settings = {"images_per_class": counts, "copies": copies, "size": size, "seed": seed}
    marker = folder / "phantoms.json"
    if folder.exists():
        found: Any = "other files"
        if marker.is_file():
            found = json.loads(marker.read_text(encoding="utf-8"))
            found.pop("copies_of", None)
        if found != settings:
            raise FileExistsError(
                f"{folder} must be a new folder or hold the phantoms {settings}; remove it or use "
                f"another one. Received: a folder with {found}"
            )
        return folder
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _write_films(draft, counts, size, seed, progress)
        copies_of = {}
        for name, count in counts.items():
            for number in range(count + 1, count + 1 + copies):
                copies_of |= _write_copy(draft / name / "images", name, number, count, seed)
        (draft / "README.md.txt").write_text(NOTE, encoding="utf-8")
        (draft / marker.name).write_text(
            json.dumps({**settings, "copies_of": copies_of}), encoding="utf-8"
        )
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write_films(
    folder: Path,
    counts: Mapping[str, int],
    size: int,
    seed: int,
    progress: Callable[[int, str], Any] | None,
) -> None:
    """Write the images that are no copies, and all masks."""
    for name in counts:
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
    jobs = [(name, number) for name, count in counts.items() for number in range(1, count + 1)]
    shown = progress(len(jobs), "image") if progress else None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = pool.map(partial(_write_one, folder, size, seed), *zip(*jobs, strict=True))
        for done, _ in enumerate(written, start=1):
            if shown:
                shown.update(done)


def _write_one(folder: Path, size: int, seed: int, name: str, number: int) -> None:
    rng = np.random.default_rng([seed, CLASSES.index(name), number])
    film, lungs = draw(name, size, rng)
    Image.fromarray(film).save(folder / name / "images" / f"{name}-{number}.png")
    Image.fromarray(lungs).save(folder / name / "masks" / f"{name}-{number}.png")


def _write_copy(folder: Path, name: str, number: int, count: int, seed: int) -> dict[str, str]:
    """Write one of the first `count` images again as image `number`. Return both file names."""
    rng = np.random.default_rng([seed, CLASSES.index(name), number, 1])
    original = folder / f"{name}-{rng.integers(1, count + 1)}.png"
    copy = folder / f"{name}-{number}.jpg"
    darker = np.asarray(Image.open(original)) * rng.uniform(0.85, 0.95)
    Image.fromarray(darker.astype(np.uint8)).save(copy, quality=int(rng.integers(70, 90)))
    return {copy.name: original.name}
