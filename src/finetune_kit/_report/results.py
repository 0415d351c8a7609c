"""The values that a report holds, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._model.plan import FreezePlan
from finetune_kit._report.estimate import Estimate
from finetune_kit._report.metrics import predictions
from finetune_kit._text import listed, plural

OUTCOMES = ("true positive", "false negative", "false positive", "true negative")  # of a label
_WIDE = 0.15  # width of an interval that deserves a caution
_NAMED = 4  # classes that a caution names at most
MOST_CLASSES = 30  # that a person can read in one confusion matrix


@dataclass(frozen=True, eq=False)
class Example:
    """An image that a report shows.

    Attributes:
        name: name of the image file.
        cell: row and column of the confusion matrix that the image belongs to. For multi-label
            images: the label, and 0 to 3 for true positive, false negative, false positive and
            true negative.
        probability: predicted probability of the predicted class; for multi-label images, of the
            predicted presence or absence of the label.
        picture: the image as JPEG.
        heat_map: the image as JPEG with a Grad-CAM map over it; empty if no region raised the
            score; None if no map was computed.
    """

    name: str
    cell: tuple[int, int]
    probability: float
    picture: bytes = field(repr=False)
    heat_map: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True, eq=False)
class ConfusionTable:
    """The confusion matrix as a table with names.

    Attributes:
        corner: heading of the row names.
        columns: name of each column.
        rows: name of each row.
        counts: number of images in each cell, `(rows, columns)`.
        totals: number of images in each row, those in columns that are not shown too.
        row_numbers: class (or label) of each row.
        column_numbers: class (or outcome) of each column.
        note: which classes are shown, if not all are.
    """

    corner: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    counts: NDArray[np.int64]
    totals: NDArray[np.int64]
    row_numbers: tuple[int, ...]
    column_numbers: tuple[int, ...]
    note: str


@dataclass(frozen=True, eq=False, repr=False)
class Results:
    """The values of a `Report`, see there."""

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    metrics: Mapping[str, Estimate]
    class_metrics: Mapping[str, Mapping[str, Estimate]]
    support: Mapping[str, int]
    confusion_matrix: NDArray[np.int64]
    samples: tuple[str, ...]
    history: Mapping[str, list[float]] = field(default_factory=dict)
    plans: tuple[FreezePlan, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    manifest: str | None = None
    resamples: int = 1000
    seed: int = 0

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class `(n,)`, or 1 for each label of at least one half `(n, k)`."""
        return predictions(self.scores, multi_label=self.multi_label)

    @property
    def accuracy(self) -> float:
        """Share of the images whose predicted class (or all of whose labels) is correct."""
        return self.metrics["accuracy"].value

    @property
    def macro_f1(self) -> float:
        """F1 averaged over the classes, each class with the same weight."""
        return self.metrics["macro_f1"].value

    @property
    def weighted_f1(self) -> float:
        """F1 averaged over the classes, weighted by their support."""
        return self.metrics["weighted_f1"].value

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support of each class, as plain numbers."""
        return {
            name: {
                **{
                    key: self.class_metrics[name][key].value
                    for key in ("precision", "recall", "f1")
                },
                "support": self.support[name],
            }
            for name in self.class_names
        }

    @property
    def misclassified(self) -> int:
        """Number of misclassified images; for multi-label images, of wrong labels."""
        return int((self.predicted != self.labels).sum())

    @property
    def kept_epoch(self) -> int | None:
        """The epoch, counted from 1, whose weights the model has; None if it is not known."""
        epoch: int | None = self.about.get("training", {}).get("kept_epoch")
        return epoch

    @property
    def size(self) -> str:
        """The number of images and classes as text, such as `112 images, 3 classes`."""
        kind = "label" if self.multi_label else "class"
        flip = ", each with its mirror image" if self.flip else ""
        return f"{plural(len(self.labels), 'image')}{flip}, {plural(len(self.class_names), kind)}"

    @property
    def flip(self) -> bool:
        """Whether the scores are means over each image and its mirror image."""
        return bool(self.about.get("model", {}).get("flip"))

    @property
    def title(self) -> str:
        """A title that names the model and the data, if they are known."""
        model = self.about.get("model", {}).get("name")
        if self.plans:
            model = self.plans[-1].backbone
        data = self.about.get("data", {}).get("name")
        return f"{model or 'Report'} on {data or plural(len(self.labels), 'image')}"

    def confusion_table(self) -> ConfusionTable:
        """Return the confusion matrix with names; for multi-label images, one row per label.

        Of more than 30 classes it has the 30 that are confused most often. `confusion_matrix` has
        all of them.
        """
        shown = self.most_confused(MOST_CLASSES, range(len(self.class_names)))
        names = tuple(self.class_names[i] for i in shown)
        note = ""
        if len(shown) < len(self.class_names):
            noun = "labels" if self.multi_label else "classes"
            note = f"The {len(shown)} most confused of {len(self.class_names):,} {noun}."
        matrix, numbers = self.confusion_matrix[shown], tuple(shown)
        if self.multi_label:
            counts, n = matrix[:, [1, 1, 0, 0], [1, 0, 1, 0]], matrix.sum(axis=(1, 2))
            return ConfusionTable("label", OUTCOMES, names, counts, n, numbers, (0, 1, 2, 3), note)
        counts, n = matrix[:, shown], matrix.sum(axis=1)
        return ConfusionTable("true / predicted", names, names, counts, n, numbers, numbers, note)

    @property
    def listed_classes(self) -> tuple[str, ...]:
        """The classes in a table of text, of more than 30 only those with the lowest F1."""
        if len(self.class_names) <= MOST_CLASSES:
            return self.class_names
        order = sorted(self.class_names, key=lambda name: self.class_metrics[name]["f1"].value)
        return tuple(order[:MOST_CLASSES])

    def most_confused(self, most: int, classes: Sequence[int]) -> list[int]:
        """Return which of the classes have the most errors, in their own order."""
        matrix = self.confusion_matrix
        if self.multi_label:
            wrong = matrix[:, 0, 1] + matrix[:, 1, 0]
        else:
            wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
        return sorted(sorted(classes, key=lambda i: -int(wrong[i]))[:most])

    def is_misclassified(self, example: Example) -> bool:
        """Return whether the prediction for the example (its label) is wrong."""
        row, column = example.cell
        return column in (1, 2) if self.multi_label else row != column

    def caption(self, example: Example) -> str:
        """Describe the example: true class, predicted class and predicted probability."""
        row, column = example.cell
        name, probability = self.class_names[row], f"{example.probability:.2f}"
        if self.multi_label:
            return f"{name}: {OUTCOMES[column]} ({probability})"
        if row == column:
            return f"{name} ({probability})"
        return f"{name}, predicted as {self.class_names[column]} ({probability})"

    def cautions(self) -> list[str]:
        """Return sentences that a reader of the metrics should know."""
        found = [*self._one_class(), *self.about.get("cautions", ())]
        absent = [name for name, count in self.support.items() if not count]
        if absent:
            found.append(f"There is no image of {listed(absent, _NAMED)}.")
        recalls = {name: self.class_metrics[name]["recall"] for name in self.class_names}
        wide = [name for name, recall in recalls.items() if recall.high - recall.low > _WIDE]
        if wide:
            wide.sort(key=lambda name: recalls[name].low - recalls[name].high)
            ends = [
                f"{name} ({recalls[name].interval('.2f')}, {plural(self.support[name], 'image')})"
                for name in wide
            ]
            found.append(
                "Few images make the recall uncertain. Its 95% interval is wide for "
                f"{listed(ends, _NAMED)}."
            )
        if not self.metrics["macro_f1"].has_interval:
            found.append(
                "A metric without an interval is not exact: every bootstrap resample gave the same "
                "value, for example because all predictions are correct, or all of one class."
            )
        return found

    def _one_class(self) -> list[str]:
        """Return a caution if one class is predicted for the images of several classes."""
        first, *others = np.unique(self.predicted)
        if self.multi_label or others or len(np.unique(self.labels)) < 2:
            return []
        name = self.class_names[first]
        return [f"The model predicts {name} for all {len(self.labels):,} images."]
