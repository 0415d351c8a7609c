"""Images drawn from formulas: fractals, textures, cells, waves, spots and contours.

`pretrain.py` trains on these. Each family has 16 classes, and a class is one set of coefficients
(Kataoka et al., "Pre-training without Natural Images", ACCV 2020, with iterated function systems).
Position, orientation, scale (by up to a quarter), contrast, background and noise vary within each
class. Lengths are in pixels, so an image of another size shows more of the same pattern. Only
NumPy is used, no photograph and no phantom.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

KINDS = 4  # kinds of pattern in a family
LENGTHS = 4  # typical lengths of each kind
CLASSES_PER_FAMILY = KINDS * LENGTHS


def draw(label: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image of a class.

    Args:
        label: the class, from 0 to `CLASSES - 1`.
        size: height and width in pixels.
        rng: source of everything that varies within the class.

    Returns:
        Gray values of shape `(size, size)`.
    """
    family, member = divmod(label, CLASSES_PER_FAMILY)
    pattern = FAMILIES[family](member, size, rng)
    pattern = np.rot90(pattern, rng.integers(4))
    pattern = (pattern - pattern.mean()) / (pattern.std() + 1e-6)
    pattern = pattern * rng.uniform(0.08, 0.25) * rng.choice((-1, 1), p=(0.2, 0.8))
    background = rng.uniform(0.3, 0.7) + rng.uniform(0, 0.12) * noise(size, size / 4, rng)
    grain = rng.uniform(0, 0.04) * rng.standard_normal((size, size), np.float32)
    return (255 * (pattern + background + grain).clip(0, 1)).astype(np.uint8)


def fractal(member: int, size: int, rng: np.random.Generator) -> Field:
    """Draw the attractor of an iterated function system."""
    maps, shares = _system(member)
    maps = maps + rng.normal(0, 0.015, maps.shape)
    walkers = 1200
    points = np.zeros((walkers, 2))
    seen = []
    for step in range(26):
        chosen = maps[rng.choice(len(maps), walkers, p=shares)]
        points = np.einsum("nij,nj->ni", chosen[:, :, :2], points) + chosen[:, :, 2]
        if step >= 10:
            seen.append(points)
    cloud = np.concatenate(seen)
    low, high = np.percentile(cloud, (1, 99), axis=0)
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    cloud = (cloud - (low + high) / 2) / (high - low).max() @ turn.T * zoom
    cells = ((cloud + 0.5 + rng.uniform(-0.12, 0.12, 2)) * size).astype(int)
    cells = cells[((cells >= 0) & (cells < size)).all(axis=1)]
    counts = np.bincount(cells[:, 0] * size + cells[:, 1], minlength=size * size)
    return np.log1p(counts.reshape(size, size)).astype(np.float32)


def _system(member: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the maps of a class, `(n, 2, 3)`, and the share of each map."""
    rng = np.random.default_rng([2020, member])
    maps = np.empty((2 + member % KINDS, 2, 3))
    for linear in maps:
        left, right = rng.uniform(0, 2 * np.pi, 2)
        stretch = np.diag(rng.uniform(0.35, 0.85, 2) * rng.choice((-1, 1), 2))
        linear[:, :2] = _turn(left) @ stretch @ _turn(right)
        linear[:, 2] = rng.uniform(-1, 1, 2)
    areas = np.abs(np.linalg.det(maps[:, :, :2])) + 0.05
    return maps, areas / areas.sum()


def _turn(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def texture(member: int, size: int, rng: np.random.Generator) -> Field:
    """Draw filtered noise: of all directions, of one, of all lengths above one, or its ridges."""
    kind, length = _kind(member, (4, 7, 12, 20), rng)
    x, y = _frequencies(size)
    radius = np.hypot(x, y)
    band = np.exp(-((np.log(np.maximum(radius, 1e-4) * length) / 0.35) ** 2))
    if kind == 1:
        along = np.arctan2(y, x) - rng.uniform(0, np.pi)
        band = band * np.exp(6 * (np.cos(2 * along) - 1))
    elif kind == 2:
        band = (radius * length < 1) / np.maximum(radius, 1 / size)
    field = _shaped(band, rng)
    return -np.abs(field) if kind == 3 else field


def cells(member: int, size: int, rng: np.random.Generator) -> Field:
    """Draw the cells around random points: walls, flat, cones, or flat squares with walls."""
    kind, length = _kind(member, (7, 11, 17, 26), rng)
    margin = 2 * length
    count = max(4, round(((size + 2 * margin) / length) ** 2))
    points = rng.uniform(-margin, size + margin, (count, 2)).astype(np.float32)
    x, y = _pixels(size)
    first = np.full((size, size), np.inf, np.float32)
    second, owner = first.copy(), np.zeros((size, size), int)
    for number, (px, py) in enumerate(points):
        u, v = np.abs(x - px), np.abs(y - py)
        distance = np.maximum(u, v) if kind == 3 else np.hypot(u, v)
        closer = distance < first
        second = np.where(closer, first, np.minimum(second, distance))
        first, owner = np.where(closer, distance, first), np.where(closer, number, owner)
    walls = np.exp(-(((second - first) / 2) ** 2))
    flat = rng.random(count, np.float32)[owner]
    return (walls, flat, -first, flat + 1.5 * walls)[kind]


def waves(member: int, size: int, rng: np.random.Generator) -> Field:
    """Draw waves: bent lines, crossed lines, rings, or a spiral with sharp edges."""
    kind, length = _kind(member, (4, 7, 12, 20), rng)
    x, y = _pixels(size)
    bend = rng.uniform(0.4, 1) * noise(size, size / 7, rng)
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    if kind < 2:
        line = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length
        field = np.sin(line + (2 if kind == 0 else 0.6) * bend + phase)
        if kind == 1:
            across = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / length
            field = field * np.sin(across + 0.6 * bend)
        return field.astype(np.float32)
    u, v = x - rng.uniform(0, size), y - rng.uniform(0, size)
    turns = np.hypot(u, v) * 2 * np.pi / length + phase + 0.6 * bend
    if kind == 2:
        return np.sin(turns).astype(np.float32)
    return (((turns + 3 * np.arctan2(v, u)) / (2 * np.pi)) % 1).astype(np.float32)


def spots(member: int, size: int, rng: np.random.Generator) -> Field:
    """Draw spots at random places: soft, sharp, long, or hollow."""
    kind, radius = _kind(member, (1.5, 2.6, 4.5, 8), rng)
    x, y = _pixels(size)
    field = np.zeros((size, size), np.float32)
    density = rng.uniform(0.12, 0.3) / radius**2 / (3 if kind == 2 else 1)
    for _ in range(min(120, max(2, round(density * (size + 2 * radius) ** 2 / 3)))):
        px, py = rng.uniform(-radius, size + radius, 2)
        angle, long = rng.uniform(0, np.pi), (4 if kind == 2 else rng.uniform(1, 1.4))
        u, v = x - px, y - py
        u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        distance = np.hypot(u / long, v) / radius
        if kind in (0, 2):
            one = np.exp(-(distance**2))
        elif kind == 1:
            one = (distance < 1).astype(np.float32)
        else:
            one = np.exp(-(((distance - 1) / 0.3) ** 2))
        field = np.maximum(field, rng.uniform(0.5, 1) * one)
    return field


def contours(member: int, size: int, rng: np.random.Generator) -> Field:
    """Draw smooth noise by its levels: two areas, a line, many steps, or many lines."""
    kind, length = _kind(member, (2.5, 4.5, 8, 14), rng)
    field = noise(size, length, rng)
    level = rng.uniform(-0.5, 0.5)
    if kind == 0:
        return np.tanh(6 * (field - level))
    if kind == 1:
        return np.exp(-(((field - level) * length / 3) ** 2))
    if kind == 2:
        return np.round(1.5 * field)
    return np.cos(2 * np.pi * 1.5 * field)


def noise(size: int, length: float, rng: np.random.Generator) -> Field:
    """Return smooth noise of unit variance; `length` is the width of its Gaussian in pixels."""
    x, y = _frequencies(size)
    return _shaped(np.exp(-2 * (np.pi * length) ** 2 * (x**2 + y**2)), rng)


def _shaped(spectrum: Field, rng: np.random.Generator) -> Field:
    size = len(spectrum)
    waves = np.fft.rfft2(rng.standard_normal((size, size), np.float32))
    field = np.fft.irfft2(waves * spectrum, s=(size, size))
    return ((field - field.mean()) / (field.std() + 1e-9)).astype(np.float32)


def _frequencies(size: int) -> tuple[Field, Field]:
    x, y = np.meshgrid(np.fft.rfftfreq(size), np.fft.fftfreq(size))
    return x.astype(np.float32), y.astype(np.float32)


def _pixels(size: int) -> tuple[Field, Field]:
    axis = np.arange(size, dtype=np.float32)
    return np.meshgrid(axis, axis)  # type: ignore[return-value]


def _kind(member: int, lengths: tuple[float, ...], rng: np.random.Generator) -> tuple[int, float]:
    """Return the kind of a class and the length of this image's pattern in pixels."""
    kind, index = divmod(member, LENGTHS)
    return kind, lengths[index] * float(np.exp(rng.uniform(-0.22, 0.22)))


FAMILIES: tuple[Callable[[int, int, np.random.Generator], Field], ...] = (
    fractal,
    texture,
    cells,
    waves,
    spots,
    contours,
)
CLASSES = CLASSES_PER_FAMILY * len(FAMILIES)
