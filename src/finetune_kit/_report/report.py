"""Figures come in, a report goes out: as text, as JSON, as pictures, as one page.

It knows no model and no image file. The pictures need matplotlib (the extra `plots`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_kit._checks import check_count, check_folder
from finetune_kit._files import write_whole
from finetune_kit._model.plan import FreezePlan
from finetune_kit._report import card as _card
from finetune_kit._report import page as _page
from finetune_kit._report import pictures as _pictures
from finetune_kit._report.metrics import OVERALL, Figure, count, predictions

FORMAT = "finetune-kit report 1"
OUTCOMES = ("found", "missed", "false alarm", "rightly absent")  # of one label
_CLASS_FIGURES = ("precision", "recall", "f1")
_WIDE = 0.15  # an interval of which a reader should be told
_FEW = 5  # so many classes are told of one by one


@dataclass(frozen=True, eq=False)
class Example:
    """An image that a report shows.

    Attributes:
        name: of its file.
        cell: the row and column of the confusion matrix that it belongs to (of several labels: the
            label, and 0 to 3 for found, missed, false alarm, rightly absent).
        probability: of the class (or label) that was predicted, from 0 to 1.
        picture: the image as JPEG.
        heat_map: where the model looked for that class, over the image, as JPEG; None if unknown.
    """

    name: str
    cell: tuple[int, int]
    probability: float
    picture: bytes = field(repr=False)
    heat_map: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True, eq=False)
class Report:
    """How well a model tells the classes of a set of images; print it to see the tables.

    Made by `evaluate`, or by `Report.from_scores` from what another program predicted.

    Attributes:
        class_names: the classes (or labels) in the order of their indices.
        labels: true class of each image, `(n,)`; or 0 or 1 for each label, `(n, k)`.
        scores: probability of each class or label, `(n, k)`.
        figures: by name: accuracy, balanced accuracy, macro and weighted precision, recall and F1,
            ROC AUC and average precision (one against the rest, mean of the classes), log loss,
            Brier score, expected calibration error; each a `Figure` with a 95 % interval.
        class_figures: for each class: precision, recall, F1, ROC AUC and average precision.
        support: number of images of each class.
        confusion_matrix: counts, rows the true class, columns the predicted one; of several labels
            `(k, 2, 2)`, as scikit-learn's `multilabel_confusion_matrix`.
        samples: what identifies each image (SHA-256 of its content), for `compare`.
        history: the learning curves, where known.
        plans: what trained, for each phase, where known.
        about: where the figures come from: environment, split, duplicates, fingerprints.
        examples: images to show, mistakes first.
        manifest: fingerprint of the manifest that the images were read from, or None.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """

    class_names: tuple[str, ...]
    labels: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    figures: Mapping[str, Figure] = field(repr=False)
    class_figures: Mapping[str, Mapping[str, Figure]] = field(repr=False)
    support: Mapping[str, int]
    confusion_matrix: NDArray[np.int64]
    samples: tuple[str, ...] = field(repr=False)
    history: Mapping[str, list[float]] = field(default_factory=dict, repr=False)
    plans: tuple[FreezePlan, ...] = field(default=(), repr=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    examples: tuple[Example, ...] = field(default=(), repr=False)
    manifest: str | None = None
    draws: int = 1000
    seed: int = 0

    @classmethod
    def from_scores(
        cls,
        labels: ArrayLike,
        scores: ArrayLike,
        class_names: Sequence[str] | None = None,
        *,
        samples: Sequence[str] | None = None,
        draws: int = 1000,
        seed: int = 0,
        **context: Any,
    ) -> Report:
        """Report on probabilities that are there already.

        Args:
            labels: true class indices, `(n,)`; or 0 or 1 for each label, `(n, k)`.
            scores: probability of each class, `(n, k)`, rows that sum to 1; of each label, from 0
                to 1; or of the second of two classes, `(n,)` or `(n, 1)`.
            class_names: one for each class. Defaults to `"0"`, `"1"`, ...
            samples: what identifies each image, for `compare`. Defaults to their numbers.
            draws: of the bootstrap that makes the intervals. Defaults to 1000.
            seed: of the bootstrap. Defaults to 0.
            **context: other attributes of a report, such as `history`.

        Returns:
            A `Report`.

        Raises:
            ValueError: if shapes do not match, or scores are no probabilities.

        Example:
            >>> report = Report.from_scores([0, 1, 1, 0], [0.2, 0.9, 0.6, 0.7], ["well", "ill"])
            >>> print(report.figures["accuracy"])
            0.750 (0.301 to 0.954)
        """
        check_count("draws", draws)
        check_count("seed", seed, least=0)
        true, given = _checked(labels, scores)
        names = tuple(map(str, range(given.shape[1]) if class_names is None else class_names))
        if len(names) != given.shape[1] or len(set(names)) < len(names):
            raise ValueError(
                f"`class_names` must be one for each of the {given.shape[1]} columns of `scores`, "
                f"and none twice. Received: {list(names)}"
            )
        told = tuple(map(str, range(len(true)))) if samples is None else tuple(samples)
        if len(told) != len(true):
            raise ValueError(
                f"`samples` must be one for each of {len(true)} images. Received: {len(told)}"
            )
        counted = count(true, given, names, draws, seed)
        return cls(
            class_names=names,
            labels=true,
            scores=given,
            figures=counted.figures,
            class_figures=counted.class_figures,
            support=counted.support,
            confusion_matrix=counted.confusion_matrix,
            samples=told,
            draws=draws,
            seed=seed,
            **context,
        )

    @property
    def many(self) -> bool:
        """May an image have several labels?"""
        return self.labels.ndim == 2

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class `(n,)`, or 1 for each label of at least one half `(n, k)`."""
        return predictions(self.scores, many=self.many)

    @property
    def accuracy(self) -> float:
        """Share of the images whose most probable class (all of whose labels) is right."""
        return self.figures["accuracy"].value

    @property
    def macro_f1(self) -> float:
        """F1 averaged over the classes, each as much as another."""
        return self.figures["macro_f1"].value

    @property
    def weighted_f1(self) -> float:
        """F1 averaged over the classes, weighted by their support."""
        return self.figures["weighted_f1"].value

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support of each class, as plain numbers."""
        return {
            name: {
                **{column: self.class_figures[name][column].value for column in _CLASS_FIGURES},
                "support": self.support[name],
            }
            for name in self.class_names
        }

    def __str__(self) -> str:
        told = [f"Mind: {caution}" for caution in self.about.get("cautions", ())]
        tables = [self._class_table(), self._overall_table(), self._counts_table()]
        return "\n\n".join([*told, *tables])

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, for JSON; see the page *Reading the report* for the keys."""
        classes = {
            name: {
                "support": self.support[name],
                **{k: figure.to_dict() for k, figure in self.class_figures[name].items()},
            }
            for name in self.class_names
        }
        return {
            "format": FORMAT,
            "images": len(self.labels),
            "class_names": list(self.class_names),
            "multi_label": self.many,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "classes": classes,
            "confusion_matrix": self.confusion_matrix.tolist(),
            "bootstrap": {"draws": self.draws, "seed": self.seed},
            "history": {name: [_plain(v) for v in vs] for name, vs in self.history.items()},
            "about": dict(self.about),
            "manifest": self.manifest,
        }

    def save(self, folder: str | os.PathLike[str], *, title: str = "Report") -> Path:
        """Write the report as text, JSON, pictures, one HTML page and a model card.

        `report.html` needs no other file and no network; a click on a cell of its confusion matrix
        opens the images behind it. `model_card.md` has the headings of Hugging Face's, with the
        figures filled in and what only you can know left to write. The pictures need the extra
        `plots`. Each file is written whole or not at all.

        Args:
            folder: made if it does not exist; files of these names in it are replaced, and
                pictures that this report has not are removed.
            title: of the page and the card. Defaults to `"Report"`.

        Returns:
            The folder.
        """
        check_folder("folder", folder)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        pictures = _pictures.of_report(self) if _pictures.available(target) else {}
        for name, picture in pictures.items():
            write_whole(target / f"{name}.png", _pictures.png(picture))
        for name in set(_pictures.OF_REPORT) - set(pictures):  # those of an earlier report
            (target / f"{name}.png").unlink(missing_ok=True)
        write_whole(target / "report.txt", f"{self}\n")
        write_whole(target / "report.json", json.dumps(self.to_dict(), indent=2) + "\n")
        write_whole(target / "report.html", _page.of_report(self, title, pictures))
        write_whole(target / "model_card.md", _card.of_report(self, title))
        return target

    def counts(self) -> tuple[str, tuple[str, ...], list[tuple[str, list[int]]]]:
        """The confusion matrix as a table: its corner, its columns and its rows."""
        if self.many:
            cells = self.confusion_matrix[:, [1, 1, 0, 0], [1, 0, 1, 0]]
            return "label", OUTCOMES, list(zip(self.class_names, cells.tolist(), strict=True))
        matrix = self.confusion_matrix.tolist()
        return (
            "true / predicted",
            self.class_names,
            list(zip(self.class_names, matrix, strict=True)),
        )

    def showing(self, examples: Sequence[Example]) -> Report:
        """The same report with other examples."""
        return replace(self, examples=tuple(examples))

    def is_mistake(self, example: Example) -> bool:
        """Is it one of the images that the model got wrong?"""
        row, column = example.cell
        return OUTCOMES[column] in ("missed", "false alarm") if self.many else row != column

    def caption(self, example: Example) -> str:
        """What the image is, and what the model took it for."""
        row, column = example.cell
        name, sure = self.class_names[row], f"{example.probability:.2f}"
        if self.many:
            return f"{name}: {OUTCOMES[column]} ({sure})"
        if row == column:
            return f"{name} ({sure})"
        return f"{name}, taken for {self.class_names[column]} ({sure})"

    def cautions(self) -> list[str]:
        """What a reader of the figures should mind, in sentences."""
        wide = {
            name: recall
            for name in self.class_names
            if (recall := self.class_figures[name]["recall"]).high - recall.low > _WIDE
        }
        told = [
            f"The recall of {name} rests on {self.support[name]} images and may be anything from "
            f"{recall.low:.2f} to {recall.high:.2f}."
            for name, recall in wide.items()
        ]
        if len(wide) > _FEW:
            widest = max(wide, key=lambda name: wide[name].high - wide[name].low)
            told = [
                f"The recalls of {len(wide)} classes rest on few images; that of {widest}, on "
                f"{self.support[widest]}, may be anything from {wide[widest].low:.2f} to "
                f"{wide[widest].high:.2f}."
            ]
        if not self.figures["macro_f1"].low < self.figures["macro_f1"].high:
            told.append(
                "Where there is no interval, no mistake (or no difference) was there to draw from; "
                "it does not mean that the figure is certain."
            )
        told += [f"No image of {name} is among these." for name, n in self.support.items() if not n]
        return [*self.about.get("cautions", ()), *told]

    def _class_table(self) -> str:
        rows = [["", "precision", "recall", "F1", "support"]]
        for name in self.class_names:
            figures = [self.class_figures[name][column] for column in _CLASS_FIGURES]
            rows.append([name, *map(str, figures), f"{self.support[name]:,}"])
        return aligned(rows)

    def _overall_table(self) -> str:
        rows = [
            [label, str(self.figures[name]), self.figures[name].method]
            for name, label in OVERALL.items()
        ]
        title = [f"{len(self.labels):,} images", "95 % interval", "found by"]
        return aligned([title, *rows], left=(0, 1, 2))

    def _counts_table(self) -> str:
        corner, columns, rows = self.counts()
        table = [[corner, *columns], *([name, *(f"{n:,}" for n in row)] for name, row in rows)]
        return aligned(table)


def cells(report: Report) -> Iterator[tuple[int, tuple[int, int], float]]:
    """Each image (of several labels: each of its labels) with its cell and how sure the model was.

    The cell is as in `Report.counts`.
    """
    predicted = report.predicted
    if not report.many:
        sure = report.scores.max(axis=1)
        for row, (true, told) in enumerate(zip(report.labels, predicted, strict=True)):
            yield row, (int(true), int(told)), float(sure[row])
        return
    for row, label in np.ndindex(report.labels.shape):
        true, told, score = (x[row, label] for x in (report.labels, predicted, report.scores))
        outcome = 2 * (1 - int(true)) + (1 - int(told))
        yield row, (label, outcome), float(score if told else 1 - score)


def aligned(rows: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> str:
    """A table as text: columns to the right, those in `left` to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels as integers and scores as probabilities `(n, k)`."""
    true, given = np.asarray(labels), np.asarray(scores, np.float64)
    if true.ndim != 2 and (given.ndim == 1 or given.shape[1:] == (1,)):
        given = np.stack([1 - given.ravel(), given.ravel()], axis=1)
    if given.ndim != 2 or not len(given) or true.shape not in (given.shape[:1], given.shape):
        raise ValueError(
            "`scores` must be probabilities of the shape (n, k), `labels` class indices (n,) or 0 "
            f"or 1 for each label (n, k), n at least 1. Received: shapes {np.shape(scores)} and "
            f"{true.shape}"
        )
    kinds = 2 if true.ndim == 2 else given.shape[1]
    if not (np.issubdtype(true.dtype, np.integer) and np.isin(true, range(kinds)).all()):
        raise ValueError(
            f"`labels` must be whole numbers from 0 to {kinds - 1}. "
            f"Received: dtype {true.dtype}, values {np.unique(true)[:10].tolist()}"
        )
    sums = given.sum(axis=1)
    inside = np.isfinite(given).all() and given.min() >= -1e-6 and given.max() <= 1 + 1e-6
    if not inside or (true.ndim == 1 and np.abs(sums - 1).max() > 1e-3):
        raise ValueError(
            "`scores` must be probabilities from 0 to 1, of one-class images with rows that sum to "
            "1; a model must end in a softmax or a sigmoid. Received: values from "
            f"{given.min():.4g} to {given.max():.4g}, row sums from {sums.min():.4g} to "
            f"{sums.max():.4g}"
        )
    return true.astype(np.int64), np.clip(given, 0, 1)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
