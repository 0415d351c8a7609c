"""What a model predicts for some images: `Predictions`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._files import make_folder, write_whole
from finetune_kit._report.views import of_predictions
from finetune_kit._text import aligned, plural, printable

_SHOWN = 20  # images that are printed at most
_TOP = 3  # classes that are printed by default


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one image.

    Attributes:
        path: the image file, or a made-up name.
        labels: the predicted class; for multi-label models, the predicted labels, which may be
            none. Empty if the image could not be read.
        probabilities: probability of each class, the highest first (with `top`, of the highest).
        error: why the image could not be read, or None.
    """

    path: str
    labels: tuple[str, ...]
    probabilities: dict[str, float]
    error: str | None = None

    @property
    def label(self) -> str:
        """The predicted class; for multi-label models, the labels joined with commas."""
        return ", ".join(self.labels)

    def __str__(self) -> str:
        return f"{self.path}: {self.error or self.label or 'no label'}"


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """What a model predicts for some images. Print it for a table; iterate for each `Prediction`.

    Attributes:
        paths: the image files, or made-up names.
        class_names: the classes (or labels) in the order of the columns.
        probabilities: probability of each class or label, float64 `(n, num_classes)`; nan for
            images that could not be read.
        errors: why an image could not be read, by its index.
        multi_label: whether an image may have several labels.
        top: how many classes `probabilities` of a `Prediction` holds; None for all.
        threshold: probability from which a label of a multi-label model is predicted.
        flip: whether the probabilities are means over each image and its mirror image.
    """

    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float64]
    errors: dict[int, str]
    multi_label: bool
    top: int | None
    threshold: float
    flip: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Prediction:
        if not -len(self) <= i < len(self):
            raise IndexError(
                f"index must be below {len(self)}, the number of images. Received: {i}"
            )
        i %= len(self)
        if i in self.errors:
            return Prediction(self.paths[i], (), {}, self.errors[i])
        row, names = self.probabilities[i], self.class_names
        order = np.argsort(-row, kind="stable").tolist()
        chosen = [j for j in order if row[j] >= self.threshold] if self.multi_label else order[:1]
        return Prediction(
            self.paths[i],
            tuple(names[j] for j in chosen),
            {names[j]: float(row[j]) for j in order[: self.top]},
        )

    def __iter__(self) -> Iterator[Prediction]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        failed = f", {len(self.errors):,} not readable" if self.errors else ""
        flip = ", each with its mirror image" if self.flip else ""
        return f"Predictions({plural(len(self), 'image')}{flip}{failed})"

    def __str__(self) -> str:
        lines = [aligned(self._table(), left=(0, 1, 2))]
        if len(self) > _SHOWN:
            lines.append(f"... and {plural(len(self) - _SHOWN, 'more image')}")
        if self.flip:
            lines.append("The probabilities are means over each image and its mirror image.")
        return printable("\n".join(lines))

    def _repr_html_(self) -> str:
        more = len(self) - _SHOWN
        title = f"{self!r}, the first {_SHOWN}:" if more > 0 else repr(self)
        return of_predictions(title, self._table(), self.paths[:_SHOWN])

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a CSV file (UTF-8): path, label, probability of each class, and error.

        Args:
            path: the file. Its folder is made if it does not exist. The file is written completely
                or not at all.

        Returns:
            The path.

        Raises:
            OSError: if it cannot be written.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self._columns())
        writer.writerows(self._row(i) for i in range(len(self)))
        target = Path(path).expanduser()
        make_folder("path", target.parent)
        write_whole(target, text.getvalue())
        return target

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with the columns of `to_csv`.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "`to_frame` needs pandas (pip install pandas); `to_csv` needs nothing"
            ) from error
        return pandas.DataFrame(map(self._row, range(len(self))), columns=self._columns())

    def _columns(self) -> list[str]:
        return ["path", "label", *(f"probability {name}" for name in self.class_names), "error"]

    def _row(self, i: int) -> list[Any]:
        one = self[i]
        if one.error is not None:
            return [one.path, None, *[None] * len(self.class_names), one.error]
        return [one.path, one.label, *self.probabilities[i].tolist(), None]

    def _table(self) -> list[list[str]]:
        rows = [["image", "predicted", "probabilities"]]
        for i in range(min(len(self), _SHOWN)):
            one = self[i]
            pairs = list(one.probabilities.items())[: self.top or _TOP]
            found = ", ".join(f"{name} {value:.3f}" for name, value in pairs)
            predicted = "not readable" if one.error else one.label or "no label"
            rows.append([one.path, predicted, one.error or found])
        return rows
