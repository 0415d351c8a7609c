"""Drawings that resemble chest X-rays: bodies that differ from each other, and four findings.

Pose, shape of the body, ribs, heart, diaphragm, vessels, breast shadows, exposure and devices vary
in the same way in all classes. So does how bright the lungs are, and where. The classes differ in
the texture of what is added to the lungs: smooth shadows alone (Normal), patches of a fine net on
both sides (COVID), patches with a ragged edge on one side (Lung_Opacity), or small spots all over
(Viral Pneumonia), each from clearly to barely visible.
"""

from __future__ import annotations

import numpy as np
from drawings import noise
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float32]


def draw(name: str, size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], ...]:
    """Draw one film of a class and the mask of its lungs, each uint8 `(size, size)`."""
    x, y = _pose(size, rng)
    sides = [_lung(x, y, side, rng) for side in (-1, 1)]
    lungs = np.maximum(*sides)
    film = _chest(x, y, lungs, rng)
    film += lungs * (_shadows(x, y, rng) + _finding(name, x, y, sides, rng))
    film = _develop(film + _devices(size, rng), rng)
    return (255 * film.clip(0, 1)).astype(np.uint8), (255 * (lungs > 0.5)).astype(np.uint8)


def _pose(size: int, rng: np.random.Generator) -> tuple[Field, Field]:
    """Return coordinates of the body at each pixel: moved, turned, scaled and bent."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis + rng.normal(0, 0.06), axis + rng.normal(0, 0.06))
    angle = np.deg2rad(rng.normal(0, 4))
    x, y = x * np.cos(angle) - y * np.sin(angle), y * np.cos(angle) + x * np.sin(angle)
    x = x / rng.normal(1, 0.07) + 0.035 * noise(size, 0.13 * size, rng)
    y = y / rng.normal(1, 0.07) + 0.035 * noise(size, 0.13 * size, rng)
    return x, y


def _edge(distance: Field, width: float) -> Field:
    """Return 1 inside (negative distance) and 0 outside, with an edge as soft as `width`."""
    return 1 / (1 + np.exp((distance / width).clip(-30, 30)))


def _lung(x: Field, y: Field, side: int, rng: np.random.Generator) -> Field:
    wide, high = rng.normal(0.34, 0.03), rng.normal(0.68, 0.06)
    u = (side * x - rng.normal(0.43, 0.03) - rng.normal(0.10, 0.05) * y) / wide
    v = (y + rng.normal(0.06, 0.04)) / high
    body = _edge((np.abs(u) ** rng.uniform(2, 3) + np.abs(v) ** rng.uniform(2.2, 3)) - 1, 0.08)
    dome = rng.normal(0.50, 0.08) + (0.05 if side > 0 else 0)
    dome = dome + rng.uniform(0.1, 0.6) * (side * x - rng.normal(0.42, 0.06)) ** 2
    return body * _edge(y - dome, 0.025)


def _chest(x: Field, y: Field, lungs: Field, rng: np.random.Generator) -> Field:
    """Draw torso, heart, spine, ribs, clavicles, shoulder blades and vessels."""
    size = len(x)
    width = rng.normal(0.93, 0.05)
    torso = _edge(np.abs(x) - width + rng.uniform(0.1, 0.4) * np.maximum(-y - 0.5, 0), 0.05)
    film = 0.62 * torso * (1 - 0.12 * x**2) * _edge(-y - 0.98 + 0.25 * np.abs(x), 0.1)
    film += 0.03 * torso * noise(size, 0.02 * size, rng)
    film -= lungs * rng.normal(0.38, 0.03)
    wide, high = rng.uniform(0.2, 0.34), rng.uniform(0.26, 0.4)
    heart = ((x - rng.normal(0.10, 0.04)) / wide) ** 2 + ((y - rng.normal(0.28, 0.05)) / high) ** 2
    middle = np.exp(-((x / rng.uniform(0.08, 0.14)) ** 2)) * _edge(-y - 0.9, 0.1)
    film += 0.22 * np.maximum(_edge(heart - 1, 0.14), 0.9 * middle) * (0.35 + lungs)
    spine = np.cos(2 * np.pi * y / rng.uniform(0.12, 0.17) + rng.uniform(0, 6))
    film += 0.025 * spine * np.exp(-((x / 0.07) ** 2))
    for side in (-1, 1):
        film += _ribs(side * x, y, rng) * torso
        slope, height = rng.normal(0.22, 0.12), rng.normal(0.70, 0.05)
        out = side * x - 0.1
        line = y + height + slope * out - rng.normal(0.12, 0.1) * out**2
        film += 0.12 * np.exp(-((line / rng.uniform(0.02, 0.035)) ** 2)) * _edge(-out, 0.02) * torso
        blade = (side * x - rng.normal(0.72, 0.05)) - rng.normal(0, 0.25) * y
        film += rng.uniform(0, 0.1) * _edge(-blade, 0.02) * _edge(np.abs(y + 0.35) - 0.35, 0.03)
    film += rng.uniform(0.4, 0.9) * lungs * _vessels(size, rng)
    return film


def _ribs(out: Field, y: Field, rng: np.random.Generator) -> Field:
    """Draw the ribs of one side; `out` is the distance from the middle."""
    film = np.zeros_like(y)
    bend, fall, step = rng.normal(0.55, 0.15), rng.normal(0.15, 0.1), rng.uniform(0.14, 0.19)
    height, strength = rng.uniform(-0.9, -0.7), rng.uniform(0.05, 0.11)
    for _ in range(9):
        height += step * rng.normal(1, 0.08)
        width = rng.uniform(0.024, 0.038)
        line = y - (height + bend * (out - 0.35) ** 2 - fall * out)
        film += np.exp(-((line / width) ** 2)) - 0.5 * np.exp(-((line / width * 2) ** 2))
    return strength * film * _edge(0.08 - out, 0.02) * _edge(out - 0.82, 0.03)


def _vessels(size: int, rng: np.random.Generator) -> Field:
    """Draw branching vessels that get thinner away from the middle."""
    picture = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(picture)
    for side in (-1, 1):
        open_ends = [
            (side * 0.16, rng.normal(0.02, 0.06), angle, rng.uniform(0.016, 0.026))
            for angle in rng.uniform(-1.5, 1.5, 7)
        ]
        while open_ends:
            x0, y0, angle, width = open_ends.pop()
            for _ in range(rng.integers(2, 5)):
                angle += rng.normal(0, 0.2)
                x1, y1 = x0 + side * 0.06 * np.cos(angle), y0 + 0.06 * np.sin(angle)
                ends = [(1 + value) * size for value in (x0, y0, x1, y1)]
                pen.line(ends, fill=int(90 + 5000 * width), width=max(1, round(width * size)))
                x0, y0 = x1, y1
            if width > 0.006:
                turns = rng.uniform(0.2, 0.7, 2) * (-1, 1)
                open_ends += [(x0, y0, angle + turn, width * 0.72) for turn in turns]
    soft = np.asarray(picture.resize((size, size), Image.Resampling.BOX), np.float32) / 255
    return 0.3 * gaussian_filter(soft, 0.004 * size)


def _shadows(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Draw smooth shadows, which all classes have: of the breast, and of the film."""
    size = len(x)
    film = rng.uniform(0.02, 0.10) * noise(size, 0.11 * size, rng) + rng.uniform(0, 0.12)
    for _ in range(rng.integers(0, 4)):
        u, v = x - rng.choice((-1, 1)) * rng.uniform(0.2, 0.65), y - rng.uniform(-0.6, 0.5)
        wide, high = rng.uniform(0.12, 0.34, 2)
        film = film + rng.uniform(0.03, 0.15) * np.exp(-((u / wide) ** 2) - (v / high) ** 2)
    return film


def _finding(name: str, x: Field, y: Field, sides: list[Field], rng: np.random.Generator) -> Field:
    """Draw the finding of a class. Its strength varies from film to film."""
    size, strength = len(x), rng.beta(2, 1.6)
    if name == "COVID":
        net = np.exp(-((noise(size, rng.uniform(0.011, 0.016) * size, rng) / 0.45) ** 2))
        patches = _edge(0.2 - noise(size, 0.09 * size, rng), 0.2)
        return (0.15 + 0.22 * strength) * patches * (net - 0.4)
    if name == "Viral Pneumonia":
        field = noise(size, rng.uniform(0.012, 0.018) * size, rng)
        return (0.15 + 0.22 * strength) * (_edge(0.9 - field, 0.25) - 0.2)
    if name == "Lung_Opacity":
        lung = sides[rng.integers(2)]
        film = np.zeros_like(x)
        for _ in range(rng.integers(2, 4)):
            spot = rng.choice(size * size, p=(lung > 0.6).ravel() / (lung > 0.6).sum())
            u, v = x - x.ravel()[spot], y - y.ravel()[spot]
            wide, high = rng.uniform(0.2, 0.34, 2)
            ragged = np.hypot(u / wide, v / high) + 0.22 * noise(size, 0.025 * size, rng)
            film = np.maximum(film, _edge(ragged - 1, 0.05))
        return (0.28 + 0.16 * strength) * film * (1 + 0.2 * noise(size, 0.01 * size, rng))
    return np.zeros_like(x)


def _devices(size: int, rng: np.random.Generator) -> Field:
    """Draw what lies on the film: a letter, electrodes with leads, or none of them."""
    picture = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(picture)
    scale = 2 * size
    if rng.random() < 0.5:
        u, v = rng.uniform(0.04, 0.9) * scale, rng.uniform(0.03, 0.12) * scale
        letter = [(u, v), (u, v + 0.06 * scale), (u + 0.04 * scale, v + 0.06 * scale)]
        pen.line(letter, fill=200, width=max(1, scale // 90))
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        u, v, radius = *(rng.uniform(0.2, 0.8, 2) * scale), 0.016 * scale
        pen.ellipse((u - radius, v - radius, u + radius, v + radius), fill=110)
        steps = np.cumsum(rng.normal(rng.choice((-0.02, 0.02)), 0.015, 30)) * scale
        pen.line([(u + s, v + 0.03 * scale * k) for k, s in enumerate(steps)], fill=60, width=2)
    soft = picture.resize((size, size), Image.Resampling.BOX)
    return np.asarray(soft, np.float32) / 255


def _develop(film: Field, rng: np.random.Generator) -> Field:
    """Apply focus, exposure, contrast and film noise; some films have a dark frame."""
    film = gaussian_filter(film, rng.uniform(0.4, 1.0))
    film = film.clip(0, None) ** rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.4)
    film = film + rng.normal(0.03, 0.05)
    film = film + rng.uniform(0.008, 0.025) * rng.standard_normal(film.shape).astype(np.float32)
    if rng.random() < 0.3:
        top, right, bottom, left = rng.integers(0, max(1, len(film) // 14), 4)
        inside = film[top : len(film) - bottom, left : len(film) - right].copy()
        film[:] = 0.02
        film[top : len(film) - bottom, left : len(film) - right] = inside
    return film
