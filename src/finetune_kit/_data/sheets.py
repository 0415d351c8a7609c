"""What a notebook shows for image sets, duplicates and splits: counts and thumbnails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from finetune_kit import _html
from finetune_kit._data.pixels import Source
from finetune_kit._data.threads import in_threads
from finetune_kit._text import plural

_EACH = 6  # thumbnails of a class at most
_CLUSTERS = 8  # shown at most
_MEMBERS = 6  # of a cluster that are shown at most
_KINDS = {"bytes": "equal files", "pixels": "equal pixels", "near": "near duplicates"}


def thumbnails(source: Source, rows: Sequence[int]) -> list[NDArray[np.uint8] | None]:
    """Return small pictures of some images; None for those that cannot be read."""
    return in_threads(partial(_thumbnail, source), rows)


def _thumbnail(source: Source, row: int) -> NDArray[np.uint8] | None:
    try:
        return source.load(row, (_html.SIDE, _html.SIDE))
    except Exception:  # a decoder may raise anything on a broken file
        return None


def file_name(source: Source, row: int) -> str:
    """Return the path of an image, or a made-up name for one in memory."""
    return source.file(row) or f"image {row}"


def of_images(
    facts: Sequence[str],
    counts: Sequence[tuple[str, int]],
    members: Callable[[int], NDArray[np.int64]],
    source: Source,
) -> str:
    """Return a table of the classes with their counts and a few images of each.

    Only the images that are shown are read: evenly spaced ones, as files that follow each other
    often show the same patient.

    Args:
        facts: facts about the set; the first one is the title.
        counts: name and number of images of each class.
        members: returns the rows of the images of a class in `source`.
        source: where the pixels come from.
    """
    shown = counts[: _html.MOST_ROWS]
    each = min(_EACH, max(1, _html.MOST_PICTURES // max(1, len(shown))))
    chosen = [_spread(members(i), each) for i in range(len(shown))]
    pictures = iter(thumbnails(source, [row for rows in chosen for row in rows]))
    total = max(1, sum(count for _, count in counts))
    rows = []
    for (name, count), members_shown in zip(shown, chosen, strict=True):
        figures = [_html.thumbnail(next(pictures), file_name(source, r)) for r in members_shown]
        number = f"{count:,}<br><small>{count / total:.0%}</small>"
        rows.append([_html.text(name), number, _html.sheet(figures)])
    rest = [count for _, count in counts[len(shown) :]]
    more = f"and {plural(len(rest), 'more class')} with {sum(rest):,} images" if rest else ""
    table = _html.table(["class", "images", ""], rows, "Classes with example images")
    notes = "".join(map(_html.note, facts[1:]))
    return _html.view(_html.title(facts[0]), notes, table, _html.note(more))


def _spread(rows: NDArray[np.int64], count: int) -> list[int]:
    """Return up to `count` of the rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return rows[places].tolist()


def of_duplicates(
    title: str,
    clusters: Sequence[tuple[int, ...]],
    crossing: Sequence[tuple[int, ...]],
    pairs: Sequence[tuple[int, int, str, float]],
    images: Callable[[int], tuple[Source, int, str] | None],
) -> str:
    """Return the counts by kind, and the first clusters; those in several sets come first.

    Args:
        title: the title.
        clusters: the images of each cluster.
        crossing: the clusters with images in several sets.
        pairs: the duplicates, as in `Duplicates.pairs`.
        images: returns for an image its source, its row there and a caption, or None if the images
            are not known.
    """
    total = Counter(kind for _, _, kind, _ in pairs)
    note = ", ".join(f"{total[kind]:,} {name}" for kind, name in _KINDS.items())
    several = set(crossing)
    order = [*crossing, *(cluster for cluster in clusters if cluster not in several)]
    shown = order[:_CLUSTERS]
    number = {member: k for k, cluster in enumerate(shown) for member in cluster}
    found: list[dict[str, float]] = [{} for _ in shown]  # kind: the least similarity
    for i, _, kind, alike in pairs:
        if i in number:
            known = found[number[i]]
            known[kind] = min(alike, known.get(kind, 1.0))
    rows = []
    for cluster, figures, known in zip(shown, _members(shown, images), found, strict=True):
        kinds = [_KINDS[kind] for kind in _KINDS if kind in known]
        facts = [f"similarity {known['near']:.2f}"] if "near" in known else []
        facts += ["in several sets"] if cluster in several else []
        more = len(cluster) - _MEMBERS
        figures += [f"<small>and {more:,} more</small>"] if more > 0 else []
        what = "<br>".join([", ".join(kinds), *(f"<small>{fact}</small>" for fact in facts)])
        rows.append([what, f"{len(cluster):,}", _html.sheet(figures)])
    table = _html.table(["cluster", "images", ""], rows, "Clusters of duplicates") if rows else ""
    left = len(clusters) - len(shown)
    rest = _html.note(f"and {plural(left, 'more cluster')}" if left else "")
    return _html.view(_html.title(title), _html.note(f"Pairs: {note}"), table, rest)


def _members(
    clusters: Iterable[tuple[int, ...]], images: Callable[[int], tuple[Source, int, str] | None]
) -> list[list[str]]:
    """Return the figures of the first images of each cluster, or their indices as text."""
    left, figures = _html.MOST_PICTURES, []
    for cluster in clusters:
        part = []
        for i in cluster[:_MEMBERS]:
            known = images(i)
            if known is None or not left:
                part.append(f"<span>{i}</span>")
                continue
            source, row, caption = known
            left -= 1
            description = f"{i}: {file_name(source, row)}"
            part.append(
                _html.thumbnail(_thumbnail(source, row), description, _html.text(caption, 40))
            )
        figures.append(part)
    return figures


def of_split(title: str, parts: Sequence[tuple[str, int]], deviation: float) -> str:
    """Return the sizes of the parts of a split.

    Args:
        title: the title.
        parts: name and number of samples of each part.
        deviation: the largest difference from a class's share, or nan if it is not known.
    """
    total = max(1, sum(count for _, count in parts))
    rows = [[_html.text(name), f"{count:,}", f"{count / total:.1%}"] for name, count in parts]
    table = _html.table(["part", "samples", "share"], rows, "Parts of the split")
    text = f"Largest deviation of a class from its share: {deviation:.2f} samples."
    return _html.view(_html.title(title), table, _html.note("" if deviation != deviation else text))
