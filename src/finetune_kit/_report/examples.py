"""The images that a report shows: which ones, as JPEG, and with heat maps."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_kit._data.images import ImageSet
from finetune_kit._report.attribution import grad_cam
from finetune_kit._report.overlay import overlay
from finetune_kit._report.provenance import common_folder
from finetune_kit._report.results import Example, Results

_MOST = 240  # images in a report at most, about 2 MB
_SIDE = 224  # of a picture in pixels, at most
_log = logging.getLogger("finetune_kit")


def examples_of(
    report: Results, images: ImageSet, size: tuple[int, int], per_cell: int
) -> tuple[tuple[Example, ...], NDArray[np.int64]]:
    """Return the most confident images of each cell of the confusion matrix.

    Args:
        report: the report on the images.
        images: the images.
        size: height and width that the model takes.
        per_cell: images of each cell at most.

    Returns:
        The examples, and the number of each one's image, int array.
    """
    by_cell: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for row, cell, confidence in _predictions(report):
        by_cell.setdefault(cell, []).append((-confidence, row))
    most = min(per_cell, _MOST // len(by_cell) or 1)
    chosen = [
        (row, cell, -negative)
        for cell, found in by_cell.items()
        for negative, row in sorted(found)[:most]
    ]
    rows = np.array([row for row, _, _ in chosen], np.int64)
    if not len(rows):
        return (), rows
    names = _names(images, rows)
    pixels = images.load(rows, size)
    examples = tuple(
        Example(name, cell, confidence, _jpeg(picture))
        for name, (_, cell, confidence), picture in zip(names, chosen, pixels, strict=True)
    )
    return examples, rows


def most_telling(report: Results, examples: Sequence[Example], count: int) -> list[int]:
    """Return which examples get a heat map: mostly misclassified images, by confidence.

    A third of the heat maps is for correct predictions, if there are enough: one class after the
    other.
    """
    wrong = [i for i, example in enumerate(examples) if report.is_misclassified(example)]
    right = [i for i in range(len(examples)) if i not in set(wrong)]
    wrong.sort(key=lambda i: -examples[i].probability)
    right.sort(key=lambda i: (sum(e.cell == examples[i].cell for e in examples[:i]), i))
    return (wrong[: max(count * 2 // 3, count - len(right))] + right)[:count]


def with_heat_maps(
    report: Results,
    model: keras.Model,
    pixels: NDArray[np.uint8],
    examples: Sequence[Example],
    chosen: Sequence[int],
) -> tuple[Example, ...]:
    """Return the examples, those with the chosen indices with a Grad-CAM map.

    Args:
        report: the report that the examples belong to.
        model: the model.
        pixels: the images of the chosen examples.
        examples: all examples.
        chosen: the indices of those that get a heat map.
    """
    shown = list(examples)
    targets = [examples[i].cell[0 if report.multi_label else 1] for i in chosen]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the page says which maps are empty
            maps = grad_cam(model, pixels, targets)
    except ValueError as error:  # the model has no feature map
        _log.warning("no heat maps: %s", error)
        return tuple(shown)
    for i, picture, heat in zip(chosen, overlay(pixels, maps), maps, strict=True):
        shown[i] = replace(examples[i], heat_map=_jpeg(picture) if heat.any() else b"")
    return tuple(shown)


def can_draw_heat_maps() -> bool:
    """Return whether matplotlib is installed; log a warning if it is not."""
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        _log.warning(
            "no heat maps, because matplotlib is not installed (pip install 'finetune-kit[plots]')"
        )
    return found


def _predictions(report: Results) -> Iterator[tuple[int, tuple[int, int], float]]:
    """Yield each image (of multi-label images, each label) with its cell and its confidence.

    The cell is a row and column of `Report.confusion_table`.
    """
    predicted = report.predicted
    if not report.multi_label:
        confidence = report.scores.max(axis=1)
        for row, cell in enumerate(zip(report.labels.tolist(), predicted.tolist(), strict=True)):
            yield row, cell, float(confidence[row])
        return
    for row, label in np.ndindex(report.labels.shape):
        true, positive = bool(report.labels[row, label]), bool(predicted[row, label])
        outcome = 2 * (not true) + (not positive)
        score = float(report.scores[row, label])
        yield row, (label, outcome), score if positive else 1 - score


def _names(images: ImageSet, rows: NDArray[np.int64]) -> list[str]:
    """Return the names of images without the folder that all of them share.

    Absolute paths would reveal the folders of the machine in a report that is passed on.
    """
    paths, common = images.paths, common_folder(images)
    if common is None:
        return [paths[row] for row in rows]
    return [os.path.relpath(paths[row], common).replace(os.sep, "/") for row in rows]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(buffer, "jpeg", quality=80)
    return buffer.getvalue()
