"""Similarity of two pictures that may differ in size, brightness, compression and cropping.

Pictures are compared as gray thumbnails. `describe` gives a vector for a fast search; of two
pictures that are near in it, `similarities` aligns one with the other (cropping is a shift and a
scale) and correlates their local structure. Only the second step is exact enough for X-rays: those
of different people are far more similar than photographs of different scenes are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from finetune_kit._data.pixels import Source
from finetune_kit._data.threads import in_threads

_SIDE = 64  # of a thumbnail, in pixels
_CROP = 0.07  # share of width and height that `describe` leaves out for the inner part
_COARSE_MINIMUM = 0.55  # pairs that are less similar at half size are not compared at full size
_RICH = 80  # independent patterns of a picture whose local structure is enough to know it by
_IDENTITY = (1.0, 0.0, 1.0, 0.0)  # scale and shift across, scale and shift down
_AT_ONCE = 128  # pictures aligned together; they fit into the processor's cache


def thumbnails(source: Source, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return small gray pictures of images, uint8 `(n, 64, 64)`."""
    return np.stack(in_threads(_Thumbnail(source), rows.tolist(), at_once=16))


@dataclass(frozen=True)
class _Thumbnail:
    source: Source

    def __call__(self, row: int) -> NDArray[np.uint8]:
        return np.rint(self.source.load(row, (_SIDE, _SIDE)).mean(axis=-1)).astype(np.uint8)


def describe(small: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return vectors `(n, 256)` of the structure of each thumbnail, and of its inner part.

    A cropped picture is near to the inner part of the original.
    """
    parts = in_threads(_described, _sliced(small))
    whole, inner = zip(*parts, strict=True)
    return np.concatenate(whole), np.concatenate(inner)


def similarities(small: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the similarity of pairs of thumbnails: the correlation of their local structure."""
    return np.concatenate([np.empty(0), *in_threads(_Comparison(small), _sliced(pairs))])


def _sliced(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]


def _described(small: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    inside = np.tile([1 - _CROP, 0.0, 1 - _CROP, 0.0], (len(small), 1))
    (inner,), _ = _warped([small], inside)
    return _structure(small), _structure(inner)


def _structure(small: NDArray[Any]) -> NDArray[np.float32]:
    """Return 16 x 16 pixels without brightness and contrast, as unit vectors `(n, 256)`."""
    side = _SIDE // 16
    tiny = small.reshape(len(small), 16, side, 16, side).astype(np.float32).mean(axis=(2, 4))
    tiny -= gaussian_filter(tiny, (0, 3, 3))
    return _normalized(tiny).reshape(len(small), -1)


@dataclass(frozen=True)
class _Comparison:
    """The similarity of pairs of thumbnails, at half size first."""

    small: NDArray[np.uint8]

    def __call__(self, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        one, two = (self.small[pairs[:, i]].astype(np.float32) for i in (0, 1))
        half_one, half_two = _halved(one), _halved(two)
        position = np.tile(_IDENTITY, (len(pairs), 1))
        position = _aligned(half_one, half_two, position, (1.2, 0.7))
        similarity = _correlation(half_one, half_two, position)
        good = np.flatnonzero(similarity >= _COARSE_MINIMUM)
        if len(good):
            one, two = one[good], two[good]
            position = _aligned(one, two, position[good], (1.0,))
            local = _correlation(one, two, position)
            plain = _correlation(one, two, position, _plain)
            richness = np.minimum(_richness(one), _richness(two))
            similarity[good] = _combined(local, plain, richness)
        return similarity


def _combined(
    local: NDArray[np.float64], plain: NDArray[np.float64], richness: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the similarity, given the correlations of local and of plain structure.

    Local structure tells rich pictures apart, such as X-rays of two people. Simple ones (digits,
    icons) have little of it: that of two different digits may correlate to 0.95. Of them, plain
    structure must agree, or local structure more closely. Both are scaled: a plain correlation of
    0.965, and of simple pictures a local one of 0.94, are the default threshold, 0.86.
    """
    plain = 1 - (1 - plain) * 0.14 / 0.035
    needed = np.where(richness < _RICH, 1 - (1 - local) * 0.14 / 0.06, local)
    return np.minimum(np.minimum(local + 0.06, np.maximum(needed, plain)), 1.0)


def _richness(pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how many independent patterns the local structure of each picture consists of.

    The participation ratio of the power spectrum (Bretherton et al. 1999, Journal of Climate 12):
    about 140 for chest X-rays, 55 for digits.
    """
    power = np.abs(np.fft.fft2(_local(pictures))) ** 2
    power[:, 0, 0] = 0
    total, squares = power.sum((1, 2)), (power * power).sum((1, 2))
    return np.asarray(total * total / np.maximum(squares, 1e-9), np.float64)


def _halved(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    half = _SIDE // 2
    return pictures.reshape(len(pictures), half, 2, half, 2).mean(axis=(2, 4))


def _aligned(
    one: NDArray[np.float32],
    two: NDArray[np.float32],
    position: NDArray[np.float64],
    blurs: Sequence[float],
) -> NDArray[np.float64]:
    """Return the scale and shift of both axes that align `two` with `one`, `(n, 4)`.

    By Gauss-Newton (Lucas and Kanade, IJCAI 1981); gain and offset of the brightness are solved
    for in the same step.
    """
    count, side = one.shape[:2]
    grid = np.linspace(-1, 1, side, dtype=np.float32)
    across, down = grid[None, None, :], grid[None, :, None]
    for blur in blurs:
        target, moving = (_normalized(_band(x, blur, side / 8)) for x in (one, two))
        slopes: Any = np.gradient(moving, 2 / (side - 1), axis=(1, 2))  # down, across
        for _ in range(4):
            (value, dx, dy), inside = _warped([moving, slopes[1], slopes[0]], position)
            terms = [dx * across, dx, dy * down, dy, -target, -np.ones_like(target)]
            jacobian = np.stack([term * inside for term in terms], 1).reshape(count, 6, -1)
            normal = jacobian @ jacobian.transpose(0, 2, 1)
            normal += np.eye(6) * (1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9)
            residual = -(jacobian @ (value * inside).reshape(count, -1, 1))
            step = np.linalg.solve(normal, residual)[..., 0]
            position = position + np.clip(step[:, :4], -0.06, 0.06)
            position = np.clip(position, [0.8, -0.25, 0.8, -0.25], [1.25, 0.25, 1.25, 0.25])
    return position


def _warped(
    several: Sequence[NDArray[Any]], position: NDArray[np.float64]
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Scale and shift pictures, and return them with a mask of the pixels that they cover.

    Bilinear interpolation of each axis is a product with a matrix.
    """
    side = several[0].shape[1]
    across, covered_across = _interpolation(position[:, 0], position[:, 1], side)
    down, covered_down = _interpolation(position[:, 2], position[:, 3], side)
    covered = (covered_down[:, :, None] & covered_across[:, None, :]).astype(np.float32)
    across = across.transpose(0, 2, 1)
    return [down @ pictures.astype(np.float32) @ across for pictures in several], covered


def _interpolation(
    scale: NDArray[np.float64], shift: NDArray[np.float64], side: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a matrix for each picture that resamples one axis, and the positions it covers."""
    grid = np.linspace(-1, 1, side)
    position = (scale[:, None] * grid + shift[:, None] + 1) / 2 * (side - 1)
    covered = (position >= -0.01) & (position <= side - 0.99)
    position = position.clip(0, side - 1)
    low = np.minimum(position.astype(np.int64), side - 2)
    part = (position - low).astype(np.float32)
    matrix = np.zeros((len(scale), side, side), np.float32)
    rows = np.arange(len(scale))[:, None], np.arange(side)[None]
    matrix[(*rows, low)] = 1 - part
    matrix[(*rows, low + 1)] += part
    return matrix, covered


def _correlation(
    one: NDArray[np.float32],
    two: NDArray[np.float32],
    position: NDArray[np.float64],
    structure: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> NDArray[np.float64]:
    """Correlate the structure of pictures where the second, aligned, covers the first.

    `structure` gives what is correlated. Defaults to the local structure.
    """
    structure = structure or _local
    (moved,), covered = _warped([structure(two)], position)
    parts = [
        (x - (x * covered).sum((1, 2), keepdims=True) / covered.sum((1, 2), keepdims=True))
        * covered
        for x in (structure(one), moved)
    ]
    sizes = [np.sqrt((x * x).sum((1, 2))) for x in parts]
    return (parts[0] * parts[1]).sum((1, 2)) / np.maximum(sizes[0] * sizes[1], 1e-6)


def _local(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return local structure, as strong in pale areas as at hard edges (a frame, a marker)."""
    band = _band(pictures, 0.7, 2.0)
    return band / (np.sqrt(_blurred(band * band, 4.0)) + 2)


def _plain(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return structure as strong as it is in the picture."""
    return _band(pictures, 0.7, 8.0)


def _band(pictures: NDArray[np.float32], fine: float, broad: float) -> NDArray[np.float32]:
    return _blurred(pictures, fine) - _blurred(pictures, broad)


def _blurred(pictures: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return gaussian_filter(pictures, (0, sigma, sigma))


def _normalized(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return pictures with mean 0 and Euclidean norm 1."""
    centered: NDArray[np.float32] = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt((centered * centered).sum(axis=(1, 2), keepdims=True))
    return centered / np.maximum(norm, 1e-6)
