"""Figures come in, a report goes out: as text, as JSON, as pictures.

It knows no model and no image file. The pictures need matplotlib (the extra `plots`).
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._metrics import COLUMNS

_log = logging.getLogger("finetune_kit")


@dataclass(frozen=True, eq=False)
class Report:
    """How well a model tells the classes of a set of images; print it to see the table.

    Made by `evaluate`.

    Attributes:
        class_names: the classes in the order of their indices.
        labels: true class of each image, `(n,)`.
        scores: probability of each class, `(n, num_classes)`.
        accuracy: share of the images whose most probable class is the true one.
        macro: precision, recall and F1 averaged over the classes, and the support.
        weighted: the same, each class weighted by its support.
        per_class: by class name: precision, recall, F1 and support (number of images).
        confusion_matrix: counts, rows the true class, columns the predicted one.
        history: the learning curves, where known.
        manifest: fingerprint of the manifest that the images were read from, or None.
    """

    class_names: tuple[str, ...]
    labels: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    accuracy: float
    macro: Mapping[str, float]
    weighted: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    confusion_matrix: NDArray[np.int64]
    history: Mapping[str, list[float]] = field(default_factory=dict, repr=False)
    manifest: str | None = None

    @property
    def macro_f1(self) -> float:
        """F1 averaged over the classes, each as much as another."""
        return self.macro["f1"]

    @property
    def weighted_f1(self) -> float:
        """F1 averaged over the classes, weighted by their support."""
        return self.weighted["f1"]

    def __str__(self) -> str:
        return f"{self._figures_table()}\n\n{self._confusion_table()}"

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, for JSON; labels and scores of each image left out."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "weighted_f1": self.weighted_f1,
            "macro": dict(self.macro),
            "weighted": dict(self.weighted),
            "per_class": {name: dict(row) for name, row in self.per_class.items()},
            "class_names": list(self.class_names),
            "confusion_matrix": self.confusion_matrix.tolist(),
            "history": {name: list(values) for name, values in self.history.items()},
            "manifest": self.manifest,
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.txt`, `report.json` and, with the extra `plots`, pictures.

        The pictures are `confusion_matrix.png` and, where the learning curves are known,
        `learning_curves.png`. Each file is written whole or not at all.

        Args:
            folder: made if it does not exist; files of these names in it are replaced.

        Returns:
            The folder.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        _write(target / "report.txt", f"{self}\n".encode())
        _write(target / "report.json", (json.dumps(self.to_dict(), indent=2) + "\n").encode())
        if importlib.util.find_spec("matplotlib") is None:
            _log.warning(
                "%s: no pictures, because matplotlib is not installed "
                "(pip install 'finetune-kit[plots]')",
                target,
            )
            return target
        _write(target / "confusion_matrix.png", _png(self._draw_confusion()))
        if self.history:
            _write(target / "learning_curves.png", _png(self._draw_curves()))
        return target

    def _figures_table(self) -> str:
        total = len(self.labels)
        rows = [(name, self.per_class[name]) for name in self.class_names]
        width = max(12, *(len(name) for name in self.class_names))
        lines = [f"{'':{width}}  precision  recall      F1  support"]
        for name, row in [*rows, ("macro avg", self.macro), ("weighted avg", self.weighted)]:
            if name == "macro avg":
                lines += [
                    "",
                    f"{'accuracy':{width}}  {'':9}  {'':6}  {self.accuracy:6.3f}  {total:7,}",
                ]
            precision, recall, f1, support = (row[column] for column in COLUMNS)
            lines.append(
                f"{name:{width}}  {precision:9.3f}  {recall:6.3f}  {f1:6.3f}  {support:7,}"
            )
        return "\n".join(lines)

    def _confusion_table(self) -> str:
        names = self.class_names
        width = max(12, *(len(name) for name in names))
        columns = [max(len(name), 6) for name in names]
        cells = [f"{'true / predicted':{width + 4}}"]
        cells += [f"{name:>{w}}" for name, w in zip(names, columns, strict=True)]
        lines = ["  ".join(cells)]
        for name, counts in zip(names, self.confusion_matrix, strict=True):
            cells = [f"{name:{width + 4}}"]
            cells += [f"{n:{w},}" for n, w in zip(counts, columns, strict=True)]
            lines.append("  ".join(cells))
        return "\n".join(lines)

    def _draw_confusion(self) -> Any:
        from matplotlib.figure import Figure  # the extra `plots`, loaded when needed

        count = len(self.class_names)
        side = 2.8 + 0.9 * count
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        support = self.confusion_matrix.sum(axis=1, keepdims=True)
        shares = self.confusion_matrix / np.maximum(support, 1)
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(shares.shape):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{self.confusion_matrix[row, column]:,}\n{share:.0%}",
                ha="center",
                va="center",
                color="white" if share > 0.55 else "black",
            )
        ticks = range(count)
        axes.set_xticks(ticks, self.class_names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, self.class_names)
        axes.set(
            xlabel="predicted",
            ylabel="true",
            title=f"{len(self.labels):,} images, accuracy {self.accuracy:.3f}",
        )
        figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class")
        return figure

    def _draw_curves(self) -> Any:
        from matplotlib.figure import Figure  # the extra `plots`, loaded when needed
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            # Told apart by dashes and markers too, for print and colour-blind readers.
            for key, label, style in (
                (metric, "training", "o-"),
                (f"val_{metric}", "validation", "s--"),
            ):
                values = self.history.get(key, [])
                if values:
                    axes.plot(range(1, len(values) + 1), values, style, label=label, markersize=3)
            axes.set(xlabel="epoch", ylabel=metric)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend()
        return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    draft.write_bytes(content)
    os.replace(draft, path)
