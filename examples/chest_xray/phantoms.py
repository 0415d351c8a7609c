"""Chest-like images in the folder layout of the COVID-19 Radiography Database.

These phantoms let anyone run the example without data. Anatomy, exposure, noise and devices vary in
the same way in all classes. The classes differ only in what is added to the lungs: nothing
(Normal), a focal opacity (Lung_Opacity), a bilateral peripheral haze (COVID) or a diffuse mottling
(Viral Pneumonia), each from clearly to barely visible. The images show no patients and are not
suited for any diagnosis.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate

Field = NDArray[np.float32]

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
# About 3% of the database's 3,616 / 6,012 / 10,192 / 1,345 images: the same class imbalance.
COUNTS = {"COVID": 110, "Lung_Opacity": 182, "Normal": 308, "Viral Pneumonia": 41}
NOTE = "Phantoms of the chest X-ray example: drawn images without patients. Not for diagnosis.\n"


def write_phantoms(
    folder: Path,
    *,
    images_per_class: Mapping[str, int] | None = None,
    size: int = 224,
    seed: int = 0,
) -> Path:
    """Write phantoms to `folder/CLASS/images/CLASS-N.png`, and their lung masks beside them.

    Image N of a class depends on the seed, the class, N and the size alone. The folder is written
    completely or not at all. A folder that already holds the same phantoms is kept.

    Args:
        folder: the folder to write, which is made with its parents.
        images_per_class: number of images of each of `CLASSES`. Defaults to about 640 in total.
        size: height and width in pixels. Defaults to 224.
        seed: seed of the random numbers. Defaults to 0.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    counts = dict(images_per_class or COUNTS)
    settings = {"images_per_class": counts, "size": size, "seed": seed}
    marker = folder / "phantoms.json"
    if folder.exists():
        found: Any = "other files"
        if marker.is_file():
            found = json.loads(marker.read_text(encoding="utf-8"))
        if found != settings:
            raise FileExistsError(
                f"{folder} must be a new folder or hold the phantoms {settings}; remove it or use "
                f"another one. Received: a folder with {found}"
            )
        return folder
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(draft, ignore_errors=True)
    for name in counts:
        for kind in ("images", "masks"):
            (draft / name / kind).mkdir(parents=True)
    jobs = [(name, number) for name, count in counts.items() for number in range(1, count + 1)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_write_one, draft, size, seed), *zip(*jobs, strict=True)))
    (draft / "README.md.txt").write_text(NOTE, encoding="utf-8")
    (draft / marker.name).write_text(json.dumps(settings), encoding="utf-8")
    os.replace(draft, folder)
    return folder


def _write_one(folder: Path, size: int, seed: int, name: str, number: int) -> None:
    rng = np.random.default_rng([seed, CLASSES.index(name), number])
    film, lungs = draw(name, size, rng)
    Image.fromarray(film).save(folder / name / "images" / f"{name}-{number}.png")
    Image.fromarray(lungs).save(folder / name / "masks" / f"{name}-{number}.png")


def draw(name: str, size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], ...]:
    """Draw one film of a class and the mask of its lungs, each uint8 `(size, size)`."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis + rng.normal(0, 0.04), axis + rng.normal(0, 0.04))
    x, y = x / rng.normal(1, 0.05), y / rng.normal(1, 0.05)
    sides = [_lung(x, y, side, rng) for side in (-1, 1)]
    lungs = np.maximum(*sides)
    film = _chest(x, y, lungs, rng)
    film += lungs * _finding(name, x, y, sides, rng)
    film = _develop(film, rng)
    angle = rng.normal(0, 2.5)
    film, lungs = (rotate(f, angle, reshape=False, order=1, mode="nearest") for f in (film, lungs))
    return (255 * film.clip(0, 1)).astype(np.uint8), (255 * (lungs > 0.5)).astype(np.uint8)


def _edge(distance: Field, width: float) -> Field:
    """Return 1 inside (negative distance) and 0 outside, with an edge as soft as `width`."""
    return 1 / (1 + np.exp((distance / width).clip(-30, 30)))


def _lung(x: Field, y: Field, side: int, rng: np.random.Generator) -> Field:
    wide, high = rng.normal(0.33, 0.025), rng.normal(0.66, 0.04)
    u = (side * x - rng.normal(0.42, 0.02) - 0.10 * y) / wide
    v = (y + rng.normal(0.06, 0.03)) / high
    body = _edge((np.abs(u) ** 2.4 + np.abs(v) ** 2.6) - 1, 0.09)
    dome = rng.normal(0.50, 0.05) + (0.05 if side > 0 else 0) + 0.35 * (side * x - 0.42) ** 2
    return body * _edge(y - dome, 0.025)


def _chest(x: Field, y: Field, lungs: Field, rng: np.random.Generator) -> Field:
    """Draw torso, heart, spine, ribs, clavicles, vessels and, in 30% of the films, a device."""
    torso = _edge(np.abs(x) - 0.93 + 0.18 * np.maximum(-y - 0.55, 0), 0.05)
    film = 0.66 * torso * (1 - 0.12 * x**2) * _edge(-y - 0.98 + 0.25 * np.abs(x), 0.1)
    film -= lungs * rng.normal(0.43, 0.02)
    heart_size = rng.normal(1, 0.1)
    heart = _edge(((x - 0.10) / (0.27 * heart_size)) ** 2 + ((y - 0.28) / 0.34) ** 2 - 1, 0.16)
    middle = np.exp(-((x / 0.11) ** 2)) * _edge(-y - 0.9, 0.1)
    film += 0.22 * np.maximum(heart, 0.9 * middle) * (0.35 + lungs)
    film -= 0.07 * np.exp(-(((x - 0.01) / 0.035) ** 2)) * _edge(y + 0.25, 0.06)  # trachea
    bend, step = rng.normal(0.55, 0.06), rng.normal(0.165, 0.008)
    for rib in range(9):
        curve = -0.78 + step * rib + bend * (np.abs(x) - 0.35) ** 2 - 0.15 * np.abs(x)
        band = np.exp(-(((y - curve) / 0.032) ** 2)) - 0.5 * np.exp(-(((y - curve) / 0.016) ** 2))
        film += (
            rng.normal(0.075, 0.015)
            * band
            * torso
            * (np.abs(x) > 0.08)
            * _edge(np.abs(x) - 0.82, 0.03)
        )
    for side in (-1, 1):
        slope = rng.normal(0.22, 0.05)
        line = y + 0.70 + slope * (side * x - 0.1) - 0.12 * (side * x - 0.1) ** 2
        film += 0.13 * np.exp(-((line / 0.028) ** 2)) * _edge(0.08 - side * x, 0.02) * torso
    size = len(x)
    hilum = np.exp(-(((np.abs(x) - 0.2) / 0.22) ** 2 + ((y - 0.02) / 0.4) ** 2))
    film += rng.normal(0.10, 0.02) * lungs * hilum * (1 + 0.35 * _noise(size, 0.015, rng))
    film += 0.012 * lungs * _noise(size, 0.012, rng)
    if rng.random() < 0.3:
        film += _device(x, y, rng)
    return film


def _device(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Draw an electrode with its lead."""
    x0, y0 = rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.4)
    disk = _edge((x - x0) ** 2 + (y - y0) ** 2 - 0.035**2, 0.0006)
    path = x0 + 0.25 * np.sin(3 * (y - y0) + rng.uniform(0, 6)) - 0.25 * np.sin(rng.uniform(0, 6))
    lead = np.exp(-(((x - path) / 0.008) ** 2)) * _edge(y0 - y, 0.01)
    return (0.25 * disk + 0.12 * lead).astype(np.float32)


def _finding(name: str, x: Field, y: Field, sides: list[Field], rng: np.random.Generator) -> Field:
    """Draw the finding of a class in the lungs. In some films it is barely visible."""
    size, strength = len(x), rng.beta(1.6, 1.6)
    # All films have a little haze and mottling, so only the amount depends on the class.
    haze = 0.02 * rng.random() * (1 + _noise(size, 0.1, rng))
    mottle = 0.008 * rng.random() * _noise(size, 0.025, rng)
    if name == "COVID":
        rim = ((np.abs(x) - 0.25) / 0.35).clip(0, 1) * (0.35 + 0.65 * _edge(-y - 0.05, 0.2))
        patches = _edge(-_noise(size, 0.07, rng) - 0.3, 0.4)
        haze = haze + (0.12 + 0.36 * strength) * rim * patches * (1 + 0.2 * _noise(size, 0.02, rng))
    elif name == "Viral Pneumonia":
        scale = rng.uniform(0.018, 0.04)
        mottle = mottle + (0.04 + 0.08 * strength) * _noise(size, scale, rng)
        mottle = mottle + (0.03 + 0.03 * strength)
    elif name == "Lung_Opacity":
        lung = sides[rng.integers(2)]
        for _ in range(rng.integers(1, 3)):
            spot = rng.choice(size * size, p=(lung > 0.6).ravel() / (lung > 0.6).sum())
            x0, y0 = x.ravel()[spot], y.ravel()[spot]
            wide, high = rng.uniform(0.10, 0.22, 2)
            ragged = 1 + 0.35 * _noise(size, 0.04, rng)
            blob = np.exp(-(((x - x0) / wide) ** 2) - ((y - y0) / high) ** 2)
            haze = haze + (0.20 + 0.36 * strength) * blob * ragged
    return (haze + mottle).astype(np.float32)


def _noise(size: int, scale: float, rng: np.random.Generator) -> Field:
    """Return smooth noise of unit variance; `scale` is its width as a share of the image."""
    field = gaussian_filter(
        rng.standard_normal((size, size), np.float32), scale * size, mode="wrap"
    )
    return field / field.std()


def _develop(film: Field, rng: np.random.Generator) -> Field:
    """Apply focus, exposure, contrast and film noise."""
    film = gaussian_filter(film, rng.uniform(0.4, 1.1))
    film = film.clip(0, None) ** rng.uniform(0.8, 1.2) * rng.uniform(0.95, 1.35)
    film = film + rng.normal(0.02, 0.03)
    return film + rng.uniform(0.008, 0.025) * rng.standard_normal(film.shape).astype(np.float32)
