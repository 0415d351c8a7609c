"""Search for exact and near duplicates in one image set or in several."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from finetune_kit._data.images import ImageSet
from finetune_kit._data.likeness import describe, similarities, thumbnails
from finetune_kit._data.pixels import Source, joined
from finetune_kit._data.sheets import of_duplicates
from finetune_kit._text import plural, shortened

_NEIGHBORS = 6

Pair = tuple[int, int, str, float]


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Duplicate images, as `find_duplicates` returns them. Print it for a summary.

    If several sets were searched, indices count through them in order: those of the second set
    follow those of the first.

    Attributes:
        clusters: indices of the images of each cluster, sorted. An image without a duplicate is in
            no cluster.
        groups: a group for each image as text, array `(n,)`, for `ImageSet.split(groups=...)` to
            keep clusters whole. The images of a cluster share a group, and so do images that share
            one in `ImageSet.groups`. With several sets the groups are those of the joined sets.
        crossing: the clusters with images in more than one of the sets.
        pairs: the duplicates that the clusters consist of, `(i, j, kind, similarity)`. The kind is
            `"bytes"` (equal files), `"pixels"` (equal pixels) or `"near"`.
        samples: the SHA-256 of each image, as `ImageSet.digests` returns it.
        sets: the image sets that were searched, whose images a notebook shows.
    """

    clusters: tuple[tuple[int, ...], ...]
    groups: NDArray[np.str_]
    crossing: tuple[tuple[int, ...], ...]
    pairs: tuple[Pair, ...]
    samples: tuple[str, ...]
    sets: tuple[ImageSet, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        kinds = [kind for _, _, kind, _ in self.pairs]
        counts = ", ".join(f"{kinds.count(kind):,} {kind}" for kind in ("bytes", "pixels", "near"))
        return f"Duplicates({self._size()}; pairs: {counts}; {self._crossing()})"

    def _repr_html_(self) -> str:
        title = f"Duplicates: {self._size()}"
        title += f"; {self._crossing()}" if len(self.sets) > 1 else ""
        return of_duplicates(title, self.clusters, self.crossing, self.pairs, self._image)

    def _size(self) -> str:
        count = sum(map(len, self.clusters))
        images = plural(len(self.groups), "image")
        return f"{plural(len(self.clusters), 'cluster')} with {count:,} of {images}"

    def _crossing(self) -> str:
        return f"{plural(len(self.crossing), 'cluster')} in more than one set"

    def _image(self, i: int) -> tuple[Source, int, str] | None:
        """Return the source, the row there and the class of an image, if its set is known."""
        for number, images in enumerate(self.sets, start=1):
            if i < len(images):
                name = "" if images.multi_label else images.class_names[images.labels[i]]
                place = f"set {number}: " if len(self.sets) > 1 else ""
                return images.source, int(images.rows[i]), place + name
            i -= len(images)
        return None


def find_duplicates(*sets: ImageSet, threshold: float = 0.86) -> Duplicates:
    """Find images that show the same picture, within one set or across several.

    Use it before a split, to keep duplicates together, or after it, as
    `find_duplicates(train, validation, test)`, to see which duplicates the split separates.

    It finds equal files, equal pixels, and pictures that were compressed again, resized, made
    lighter or darker, or cropped by up to about 5 % of a side. It does not find mirrored or rotated
    ones. Images are compared at 64 x 64 pixels, so pictures that differ only in small details are
    near duplicates too. It takes about 10 ms per image on two cores, and 8 kB of memory per image.

    Args:
        *sets: the image sets. Their classes may differ.
        threshold: minimum similarity of near duplicates, from -1 to 1: the correlation of local
            structure after one image was aligned with the other, or for simple pictures (digits,
            icons) of their plain structure. Defaults to 0.86, calibrated on real chest X-rays,
            where it is rarely above 0.8 for two people. (The page on data in the documentation
            describes how.) A warning says if a large part of the images are near duplicates.

    Returns:
        A `Duplicates`.

    Raises:
        ValueError: if an argument is not an image set, the threshold is out of range, or a file
            cannot be decoded.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
        >>> x[5] = x[0] // 2  # a darker copy
        >>> images = ImageSet.from_arrays(x, ["a", "a", "a", "b", "b", "b"])
        >>> find_duplicates(images).clusters
        ((0, 5),)
    """
    if not sets:
        raise ValueError("`find_duplicates` needs at least one ImageSet. Received: no arguments")
    wrong = [images for images in sets if not isinstance(images, ImageSet)]
    if wrong:
        raise ValueError(
            "`find_duplicates` needs image sets: each argument must be an ImageSet, such as "
            f"read_image_folder returns. Received: {shortened(wrong[0])} of type "
            f"{type(wrong[0]).__name__}"
        )
    if not isinstance(threshold, Real) or not -1 <= threshold <= 1:
        raise ValueError(f"`threshold` must be from -1 to 1. Received: threshold={threshold!r}")
    samples = tuple(digest for images in sets for digest in images.digests())
    pairs = _pairs(sets, samples, float(threshold))
    component = _components(((i, j) for i, j, _, _ in pairs), len(samples))
    clusters = _clusters(component)
    _warn_of_large_share(pairs, len(samples))
    number_of_set = np.repeat(np.arange(len(sets)), [len(images) for images in sets])
    return Duplicates(
        clusters=clusters,
        groups=_groups(component, sets),
        crossing=tuple(c for c in clusters if len(np.unique(number_of_set[list(c)])) > 1),
        pairs=tuple(pairs),
        samples=samples,
        sets=sets,
    )


def _warn_of_large_share(pairs: Sequence[Pair], count: int) -> None:
    near = {i for *pair, kind, _ in pairs if kind == "near" for i in pair}
    if count >= 50 and len(near) > count / 5:
        warnings.warn(
            f"{len(near):,} of {count:,} images are near duplicates. If they are different "
            "pictures, they are too simple or too similar for this search: look at the pairs, and "
            "raise `threshold` of find_duplicates",
            stacklevel=3,  # the line that calls `find_duplicates`
        )


def _all_images(sets: tuple[ImageSet, ...]) -> tuple[Source, NDArray[np.int64]]:
    """Return one source with the images of all sets, and the row of each image in it."""
    sources = list({id(images.source): images.source for images in sets}.values())
    starts = np.cumsum([0, *map(len, sources)]).tolist()
    start_of = dict(zip(map(id, sources), starts, strict=False))
    rows = [images.rows + start_of[id(images.source)] for images in sets]
    return joined(sources), np.concatenate(rows)


def _pairs(sets: tuple[ImageSet, ...], samples: tuple[str, ...], threshold: float) -> list[Pair]:
    """Return the pairs of duplicates, sorted.

    Images are compared in the order of their digests, because the similarity depends a little on
    which of two images is aligned with the other. So the order of the images does not matter.
    """
    source, rows = _all_images(sets)
    order = np.argsort(samples, kind="stable").tolist()
    first: dict[str, int] = {}
    found = [(first.setdefault(samples[i], i), i, "bytes", 1.0) for i in order]
    pairs = [pair for pair in found if pair[0] != pair[1]]
    unique = np.array(list(first.values()), np.int64)
    if len(unique) > 1:
        pairs += _near_pairs(source, rows, unique, threshold)
    return sorted((min(i, j), max(i, j), kind, alike) for i, j, kind, alike in pairs)


def _near_pairs(
    source: Source, rows: NDArray[np.int64], unique: NDArray[np.int64], threshold: float
) -> list[Pair]:
    """Return the pairs of images of equal pixels, or near ones, among images of different files."""
    small = thumbnails(source, rows[unique])
    twin = _first_equal(small)
    candidates = _candidates(small, twin)
    found = similarities(small, candidates)
    equal = twin[candidates[:, 0]] == twin[candidates[:, 1]]
    pairs: list[Pair] = []
    for pair in np.flatnonzero(equal | (found >= threshold)).tolist():
        i, j = unique[candidates[pair]].tolist()
        if equal[pair] and _same_pixels(source, rows[i], rows[j]):
            pairs.append((i, j, "pixels", 1.0))
        elif found[pair] >= threshold:
            pairs.append((i, j, "near", round(float(found[pair]), 4)))
    return pairs


def _first_equal(small: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for each thumbnail the index of the first one that is equal, `(n,)`."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(small)], np.int64)


def _candidates(small: NDArray[np.uint8], twin: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs of thumbnails to compare, `(m, 2)`, each once, the lower index first."""
    from sklearn.neighbors import NearestNeighbors  # slow to import, and not needed elsewhere

    whole, inner = describe(small)
    index = np.concatenate([whole, inner])
    count = min(2 * _NEIGHBORS, len(index))
    nearest = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(index)
    found = nearest.kneighbors(whole, return_distance=False) % len(small)
    each = np.arange(len(small))
    pairs = np.stack([np.repeat(each, count), found.ravel()], axis=1)
    # Blank pictures have no structure to find each other by.
    pairs = np.sort(np.concatenate([pairs, np.stack([twin, each], axis=1)]), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def _same_pixels(source: Source, i: int, j: int) -> bool:
    return np.array_equal(source.original(i), source.original(j))


def _components(pairs: Iterable[tuple[int, int]], count: int) -> NDArray[np.int64]:
    """Return the number of the connected component of each of `count` nodes."""
    ends = np.array(list(pairs), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _clusters(component: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    order = np.argsort(component, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return tuple(sorted(tuple(part.tolist()) for part in parts if len(part) > 1))


def _groups(component: NDArray[np.int64], sets: tuple[ImageSet, ...]) -> NDArray[np.str_]:
    """Join clusters and groups that share an image, and number the results as text.

    Groups of the same name are one group, in whichever set they are.
    """
    count = len(component)
    none = [np.full(len(images), "") for images in sets]  # no group has an empty name
    own = [n if s.groups is None else s.groups for s, n in zip(sets, none, strict=True)]
    names, number = np.unique(np.concatenate(own), return_inverse=True)
    grouped = names[number] != ""
    pairs = zip(component[grouped].tolist(), (count + number[grouped]).tolist(), strict=True)
    return _components(pairs, count + len(names))[component].astype(np.str_)
