"""Images come in, which of them are the same picture goes out: exactly, or nearly.

Three steps, each on what the one before left: equal files and pixels; for each image the few others
that look most alike when small; and of these pairs, those that stay alike when one is laid onto the
other (a crop is a shift and a scale) and only local structure is compared. X-rays of two people
are far more alike than photographs are, so the first look alone would tell nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from finetune_kit._checks import check_indices, check_kind
from finetune_kit._data.decoding import picture
from finetune_kit._data.images import ImageSet
from finetune_kit._data.split import PARTS, Split

_SIDE = 64  # of the thumbnails that are compared
_NEIGHBOURS = 6
_CROP = 0.07  # the share of width and height that the second index leaves out
_COARSE_LEAST = 0.55  # what a pair must reach at half size to be compared at full
_IN_PLACE = (1.0, 0.0, 1.0, 0.0)  # scale and shift, across and down
_AT_ONCE = 128  # pairs: what is laid onto each other fits the processor's cache


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Which images are the same picture; print it to see how many.

    Made by `find_duplicates`.

    Attributes:
        clusters: indices of the images of each cluster, sorted; only clusters of two or more.
        groups: a group number for each image, int array `(n,)`: one for each cluster, one for each
            other image (images that shared a group in `ImageSet.groups` share one here). What
            `stratified_split(..., groups=...)` takes, so that no cluster is on two sides.
        crossing: the clusters that have images in more than one part of the split.
        pairs: what the clusters are made of: `(i, j, kind, similarity)`, the kind being `"bytes"`
            (equal files), `"pixels"` (equal pixels) or `"near"`.
    """

    clusters: tuple[tuple[int, ...], ...]
    groups: NDArray[np.int64]
    crossing: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int, str, float], ...]

    def __repr__(self) -> str:
        kinds = [kind for _, _, kind, _ in self.pairs]
        told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("bytes", "pixels", "near"))
        return (
            f"Duplicates({len(self.clusters):,} clusters of {sum(map(len, self.clusters)):,} of "
            f"{len(self.groups):,} images; pairs: {told}; {len(self.crossing):,} clusters cross "
            "the split)"
        )


def find_duplicates(
    images: ImageSet, split: Split | None = None, *, threshold: float = 0.86
) -> Duplicates:
    """Find images that are the same picture, and which of them a split keeps apart.

    It finds equal files, equal pixels, and pictures that were encoded again, resized, made lighter
    or darker, or cropped by up to some 5 % of a side; not mirrored or turned ones. Images are
    compared 64 x 64, so pictures that differ in small detail alone are near. Takes about 10 ms an
    image on two cores; memory 8 kB an image.

    Args:
        images: where the images are.
        split: tells which clusters cross it. Defaults to none.
        threshold: least similarity of near duplicates, from -1 to 1: the correlation of local
            structure after one image was laid onto the other. Defaults to 0.86, calibrated on real
            chest X-rays (see the page on leaks in the docs): of two people it is rarely above 0.8.

    Returns:
        A `Duplicates`.

    Raises:
        ValueError: if the threshold is none, or a file cannot be decoded.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
        >>> x[5] = x[0] // 2  # a darker copy
        >>> images = ImageSet.from_arrays(x, ["a", "a", "a", "b", "b", "b"])
        >>> find_duplicates(images).clusters
        ((0, 5),)
    """
    check_kind("images", images, ImageSet, "see read_image_folder or ImageSet.from_arrays")
    if split is not None:
        check_kind("split", split, Split, "see stratified_split")
    if not isinstance(threshold, Real) or not -1 <= threshold <= 1:
        raise ValueError(f"`threshold` must be from -1 to 1. Received: threshold={threshold!r}")
    count = len(images)
    for name in PARTS if split is not None else ():
        check_indices(f"split.{name}", np.asarray(getattr(split, name)), count)
    if not count:
        return Duplicates((), np.empty(0, np.int64), (), ())
    first: dict[str, int] = {}
    pairs: list[tuple[int, int, str, float]] = []
    for i, digest in enumerate(images.digests()):
        if first.setdefault(digest, i) != i:
            pairs.append((first[digest], i, "bytes", 1.0))
    unique = np.array(sorted(first.values()), np.int64)
    small = _thumbnails(images, unique)
    candidates = _candidates(small)
    alike = _similarities(small, candidates)
    for (a, b), similarity in zip(candidates.tolist(), alike.tolist(), strict=True):
        i, j = int(unique[a]), int(unique[b])
        if (small[a] == small[b]).all() and _same_pixels(images, i, j):
            pairs.append((i, j, "pixels", 1.0))
        elif similarity >= threshold:
            pairs.append((i, j, "near", round(similarity, 4)))
    pairs.sort()
    number = _components(((i, j) for i, j, _, _ in pairs), count)
    clusters = _members(number)
    return Duplicates(
        clusters=clusters,
        groups=_joined(number, images.groups),
        crossing=() if split is None else _crossing(clusters, split, count),
        pairs=tuple(pairs),
    )


def _thumbnails(images: ImageSet, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Small gray pictures, uint8 `(n, 64, 64)`."""

    def load(chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.rint(images.load(chosen, (_SIDE, _SIDE)).mean(axis=-1)).astype(np.uint8)

    return np.concatenate(_in_threads(load, indices, 64))


def _candidates(small: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs of images that look alike when small: `(m, 2)`, each once, the lower index first.

    The index holds each picture whole and without its rim: a crop is near to the second.
    """
    if len(small) < 2:
        return np.empty((0, 2), np.int64)
    whole = np.concatenate(_in_threads(_described, small, _AT_ONCE))
    inner = np.concatenate(_in_threads(_described_inside, small, _AT_ONCE))
    index = np.concatenate([whole, inner])
    wanted = min(2 * _NEIGHBOURS, len(index))
    from sklearn.neighbors import NearestNeighbors  # a quarter of what importing us would take

    nearest = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(index)
    found = nearest.kneighbors(whole, return_distance=False) % len(small)
    pairs = np.stack([np.repeat(np.arange(len(small)), wanted), found.ravel()], axis=1)
    equal = _equal_rows(small)
    pairs = np.sort(np.concatenate([pairs, equal]), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def _equal_rows(small: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs of equal thumbnails, each with the first of its kind (blank ones have no structure)."""
    first: dict[bytes, int] = {}
    rows = [(first.setdefault(row.tobytes(), i), i) for i, row in enumerate(small)]
    return np.array([pair for pair in rows if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def _described(small: NDArray[Any]) -> NDArray[np.float32]:
    """Structure of a picture 16 x 16, free of brightness and contrast: unit vectors `(n, 256)`."""
    side = _SIDE // 16
    tiny = small.reshape(len(small), 16, side, 16, side).astype(np.float32).mean(axis=(2, 4))
    tiny -= gaussian_filter(tiny, (0, 3, 3))
    return _unit(tiny).reshape(len(small), -1)


def _described_inside(small: NDArray[Any]) -> NDArray[np.float32]:
    """The same of pictures without their rim."""
    within = np.tile([1 - _CROP, 0.0, 1 - _CROP, 0.0], (len(small), 1))
    return _described(_warped([small], within)[0][0])


def _similarities(small: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Correlation of local structure of each pair, one picture laid onto the other."""

    def compare(part: NDArray[np.int64]) -> NDArray[np.float64]:
        one, two = small[part[:, 0]].astype(np.float32), small[part[:, 1]].astype(np.float32)
        half_one, half_two = _halved(one), _halved(two)
        placed = _laid_onto(half_one, half_two, np.tile(_IN_PLACE, (len(part), 1)), (1.2, 0.7))
        similarity = _correlation(half_one, half_two, placed)
        good = np.flatnonzero(similarity >= _COARSE_LEAST)
        if len(good):
            placed = _laid_onto(one[good], two[good], placed[good], (1.0,))
            similarity[good] = _correlation(one[good], two[good], placed)
        return similarity

    return np.concatenate([np.empty(0), *_in_threads(compare, pairs, _AT_ONCE)])


def _halved(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    half = _SIDE // 2
    return pictures.reshape(len(pictures), half, 2, half, 2).mean(axis=(2, 4))


def _laid_onto(
    one: NDArray[np.float32],
    two: NDArray[np.float32],
    placed: NDArray[np.float64],
    blurs: Sequence[float],
) -> NDArray[np.float64]:
    """Scale and shift of each axis that lay `two` onto `one`, `(n, 4)`: by Gauss-Newton.

    Lucas and Kanade, IJCAI 1981, with gain and offset of the brightness solved along.
    """
    count, side = one.shape[:2]
    grid = np.linspace(-1, 1, side, dtype=np.float32)
    across, down = grid[None, None, :], grid[None, :, None]
    for blur in blurs:
        wanted, given = (_unit(_band(x, blur, side / 8)) for x in (one, two))
        slopes: Any = np.gradient(given, 2 / (side - 1), axis=(1, 2))  # down, across
        for _ in range(4):
            (value, dx, dy), inside = _warped([given, slopes[1], slopes[0]], placed)
            terms = [dx * across, dx, dy * down, dy, -wanted, -np.ones_like(wanted)]
            jacobian = np.stack([term * inside for term in terms], 1).reshape(count, 6, -1)
            normal = jacobian @ jacobian.transpose(0, 2, 1)
            normal += np.eye(6) * (1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9)
            target = -(jacobian @ (value * inside).reshape(count, -1, 1))
            step = np.linalg.solve(normal, target)[..., 0]
            placed = placed + np.clip(step[:, :4], -0.06, 0.06)
            placed = np.clip(placed, [0.8, -0.25, 0.8, -0.25], [1.25, 0.25, 1.25, 0.25])
    return placed


def _warped(
    several: Sequence[NDArray[Any]], placed: NDArray[np.float64]
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Pictures scaled and shifted (as two matrix products, bilinear), and 1 where they reach."""
    side = several[0].shape[1]
    across, seen_across = _interpolation(placed[:, 0], placed[:, 1], side)
    down, seen_down = _interpolation(placed[:, 2], placed[:, 3], side)
    seen = (seen_down[:, :, None] & seen_across[:, None, :]).astype(np.float32)
    across = across.transpose(0, 2, 1)
    return [down @ pictures.astype(np.float32) @ across for pictures in several], seen


def _interpolation(
    scale: NDArray[np.float64], shift: NDArray[np.float64], side: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    grid = np.linspace(-1, 1, side)
    position = (scale[:, None] * grid + shift[:, None] + 1) / 2 * (side - 1)
    seen = (position >= -0.01) & (position <= side - 0.99)
    position = position.clip(0, side - 1)
    low = np.minimum(position.astype(np.int64), side - 2)
    part = (position - low).astype(np.float32)
    matrix = np.zeros((len(scale), side, side), np.float32)
    rows = np.arange(len(scale))[:, None], np.arange(side)[None]
    matrix[(*rows, low)] = 1 - part
    matrix[(*rows, low + 1)] += part
    return matrix, seen


def _correlation(
    one: NDArray[np.float32], two: NDArray[np.float32], placed: NDArray[np.float64]
) -> NDArray[np.float64]:
    (laid,), seen = _warped([_local(two)], placed)
    parts = [
        (x - (x * seen).sum((1, 2), keepdims=True) / seen.sum((1, 2), keepdims=True)) * seen
        for x in (_local(one), laid)
    ]
    sizes = [np.sqrt((x * x).sum((1, 2))) for x in parts]
    return (parts[0] * parts[1]).sum((1, 2)) / np.maximum(sizes[0] * sizes[1], 1e-6)


def _local(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Local structure, as strong in pale places as beside hard edges (a frame, a label)."""
    band = _band(pictures, 0.7, 2.0)
    return band / (np.sqrt(_blurred(band * band, 4.0)) + 2)


def _band(pictures: NDArray[np.float32], fine: float, broad: float) -> NDArray[np.float32]:
    return _blurred(pictures, fine) - _blurred(pictures, broad)


def _blurred(pictures: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return gaussian_filter(pictures, (0, sigma, sigma))


def _unit(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    even: NDArray[np.float32] = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    return even / np.maximum(np.sqrt((even * even).sum(axis=(1, 2), keepdims=True)), 1e-6)


def _same_pixels(images: ImageSet, i: int, j: int) -> bool:
    if images._pixels is not None:
        return False  # equal pixels in memory were equal bytes
    one, two = (picture(images.paths[index]) for index in (i, j))
    return one.shape == two.shape and bool((one == two).all())


def _components(pairs: Iterable[tuple[int, int]], count: int) -> NDArray[np.int64]:
    ends = np.array(list(pairs), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _members(number: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    order = np.argsort(number, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
    return tuple(sorted(tuple(part.tolist()) for part in parts if len(part) > 1))


def _joined(number: NDArray[np.int64], groups: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Clusters and groups that share an image, as one group."""
    if groups is None:
        return number
    count = len(number)
    pairs = zip(number.tolist(), (groups + count).tolist(), strict=True)
    return _components(pairs, count + int(groups.max()) + 1)[number]


def _crossing(
    clusters: Sequence[tuple[int, ...]], split: Split, count: int
) -> tuple[tuple[int, ...], ...]:
    part = np.full(count, -1)
    for i, name in enumerate(PARTS):
        part[np.asarray(getattr(split, name), np.int64)] = i
    return tuple(c for c in clusters if len({*part[list(c)].tolist()} - {-1}) > 1)


def _in_threads(function: Any, rows: NDArray[Any], at_once: int) -> list[Any]:
    parts = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(function, parts))
