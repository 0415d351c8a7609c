"""The report on a model: how it is made from scores, printed, and saved."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_kit._checks import check_count
from finetune_kit._processes import alone
from finetune_kit._report import card, page, pictures, views
from finetune_kit._report.figures import available
from finetune_kit._report.metrics import OVERALL, measure
from finetune_kit._report.results import Results
from finetune_kit._report.saving import page_or_folder, write_files
from finetune_kit._text import aligned, plural, printable, shortened

FORMAT = "finetune-kit report 1"
_CAUTIONS = 4  # printed at most


@dataclass(frozen=True, eq=False, repr=False)
class Report(Results):
    """How well a model classifies a set of images. Print it to see the tables.

    `evaluate` returns one; `Report.from_scores` makes one from the predictions of any program.

    Attributes:
        class_names: the classes (or labels) in the order of their indices.
        labels: true class index of each image, `(n,)`; for multi-label images, 0 or 1 for each
            label, `(n, k)`.
        scores: predicted probability of each class or label, `(n, k)`.
        metrics: accuracy, balanced accuracy, macro and weighted precision, recall and F1, ROC AUC
            and average precision (one class against the rest, averaged over the classes), log loss,
            Brier score and expected calibration error, by name; each is an `Estimate`.
        class_metrics: precision, recall, F1, ROC AUC and average precision of each class.
        support: number of images of each class.
        confusion_matrix: counts; rows are true classes, columns predicted classes. For multi-label
            images `(k, 2, 2)`, as in scikit-learn's `multilabel_confusion_matrix`.
        samples: an identifier of each image (the SHA-256 of its content), for `compare`.
        history: the learning curves, if they are known.
        plans: the freeze plan of each phase, if it is known.
        about: provenance of the metrics: model, data, training, environment, cautions.
        examples: images to show.
        manifest: fingerprint of the manifest that the images were read from, or None.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """

    @classmethod
    def from_scores(
        cls,
        labels: ArrayLike,
        scores: ArrayLike,
        class_names: Sequence[str] | None = None,
        *,
        samples: Sequence[str] | None = None,
        resamples: int = 1000,
        seed: int = 0,
        **context: Any,
    ) -> Report:
        """Report on predicted probabilities.

        Use it for models that `evaluate` cannot run.

        Args:
            labels: true class indices, `(n,)`; for multi-label images, 0 or 1 for each label,
                `(n, k)`.
            scores: probability of each class, `(n, k)`, with rows that sum to 1; for multi-label
                images, of each label, from 0 to 1; for two classes also the probability of the
                second class, `(n,)` or `(n, 1)`.
            class_names: name of each class. Defaults to `"0"`, `"1"`, ...
            samples: an identifier of each image, for `compare`. Defaults to the image's number.
            resamples: number of bootstrap resamples for the intervals. Defaults to 1000.
            seed: seed of the bootstrap. Defaults to 0.
            **context: other attributes of a report, such as `history`.

        Returns:
            A `Report`.

        Raises:
            ValueError: if the shapes do not match, or the scores are not probabilities.

        Example:
            >>> report = Report.from_scores([0, 1, 1, 0], [0.2, 0.9, 0.6, 0.7], ["well", "ill"])
            >>> print(report.metrics["accuracy"])
            0.750 (0.301 to 0.954)
        """
        check_count("resamples", resamples)
        check_count("seed", seed, least=0)
        true, probabilities = _checked(labels, scores)
        names = _class_names(class_names, probabilities.shape[1])
        known = tuple(map(str, range(len(true)))) if samples is None else tuple(samples)
        if len(known) != len(true):
            raise ValueError(
                f"`samples` must have one value for each of the {len(true)} images. "
                f"Received: {len(known)} values"
            )
        found = measure(true, probabilities, names, resamples=resamples, seed=seed)
        return cls(
            class_names=names,
            labels=true,
            scores=probabilities,
            metrics=found.metrics,
            class_metrics=found.class_metrics,
            support=found.support,
            confusion_matrix=found.confusion_matrix,
            samples=known,
            resamples=resamples,
            seed=seed,
            **context,
        )

    def __repr__(self) -> str:
        return f"Report({self.size}; {self._headline()})"

    def _repr_html_(self) -> str:
        return views.of_report(self.title, self)

    def __str__(self) -> str:
        parts = [f"{self.size}: {self._headline()}", *self._caution_lines(), self._confusion()]
        return printable("\n\n".join([*parts, self._class_table(), self._overall_table()]))

    def to_dict(self) -> dict[str, Any]:
        """Return all metrics as plain values for JSON."""
        classes = {
            name: {
                "support": self.support[name],
                **{key: value.to_dict() for key, value in self.class_metrics[name].items()},
            }
            for name in self.class_names
        }
        return {
            "format": FORMAT,
            "images": len(self.labels),
            "class_names": list(self.class_names),
            "multi_label": self.multi_label,
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "classes": classes,
            "confusion_matrix": self.confusion_matrix.tolist(),
            "bootstrap": {"resamples": self.resamples, "seed": self.seed},
            "history": {
                name: [None if math.isnan(value) else float(value) for value in values]
                for name, values in self.history.items()
            },
            "cautions": self.cautions(),
            "about": {name: value for name, value in self.about.items() if name != "cautions"},
            "manifest": self.manifest,
        }

    @alone()  # one of several processes may save it
    def save(self, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
        """Write the report as text, JSON, pictures, one HTML page and a model card.

        `report.html` needs no other file and no network. Selecting a cell of its confusion matrix
        opens the images in that cell. `model_card.md` has the headings of Hugging Face's model
        cards, with the metrics filled in. The pictures need the extra `plots`. Each file is written
        completely or not at all.

        Args:
            path: a folder, which is made if it does not exist; files of an earlier report in it are
                replaced. A path that ends in `.html`: only the page is written, to that file.
            title: title of the page and the model card. Defaults to the names of model and data.

        Returns:
            The path.

        Raises:
            ValueError: if `path` is or names a file that does not end in `.html`.
            OSError: if it cannot be written to.
        """
        target, one_page = page_or_folder(path)
        title = self.title if title is None else title
        folder, name = (target.parent, target.name) if one_page else (target, "report.html")
        files: dict[str, bytes | str] = {name: page.of_report(self, title, {})}
        if not one_page:
            files |= {
                "report.txt": f"{self}\n",
                "report.json": json.dumps(self.to_dict(), indent=2) + "\n",
                "model_card.md": card.of_report(self, title),
            }
        write_files(folder, files)  # before the pictures, which need more memory
        drawn = pictures.of_report(self) if available(target) else {}
        if drawn:
            write_files(folder, {name: page.of_report(self, title, drawn)})
        if not one_page:
            made = {name: png for name, (png, _) in drawn.items() if png}
            write_files(folder, {f"{name}.png": png for name, png in made.items()})
            for name in set(pictures.OF_REPORT) - set(made):  # pictures of an earlier report
                (target / f"{name}.png").unlink(missing_ok=True)
        return target

    def _headline(self) -> str:
        return f"accuracy {self.metrics['accuracy']}, macro F1 {self.metrics['macro_f1']}"

    def _caution_lines(self) -> list[str]:
        cautions = self.cautions()
        lines = [
            textwrap.fill(f"Caution: {caution}", 100, subsequent_indent="  ")
            for caution in cautions[:_CAUTIONS]
        ]
        if len(cautions) > _CAUTIONS:
            lines.append(f"{plural(len(cautions) - _CAUTIONS, 'more caution')}: report.cautions()")
        return ["\n".join(lines)] if lines else []

    def _confusion(self) -> str:
        table = self.confusion_table()
        rows = zip(table.rows, table.counts.tolist(), strict=True)
        cells = [[name, *(f"{count:,}" for count in counts)] for name, counts in rows]
        title = f"Confusion matrix. {table.note}" if table.note else "Confusion matrix"
        return f"{title}\n{aligned([[table.corner, *table.columns], *cells])}"

    def _class_table(self) -> str:
        rows = [["", "precision", "recall", "F1", "support"]]
        shown = self.listed_classes
        for name in shown:
            found = (self.class_metrics[name][key] for key in ("precision", "recall", "f1"))
            rows.append([name, *map(str, found), f"{self.support[name]:,}"])
        title = f"Metrics per {'label' if self.multi_label else 'class'}"
        if len(shown) < len(self.class_names):
            title += f": the {len(shown)} with the lowest F1, of {len(self.class_names):,}"
        return f"{title}\n{aligned(rows)}"

    def _overall_table(self) -> str:
        rows = [
            [label, str(self.metrics[name]), self.metrics[name].method]
            for name, label in OVERALL.items()
        ]
        head = ["", "value (95% interval)", "interval method"]
        title = f"Metrics of all images (bootstrap: {self.resamples:,} resamples)"
        return f"{title}\n{aligned([head, *rows], left=(0, 1, 2))}"


def _class_names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    names = tuple(map(str, range(count) if given is None else given))
    if isinstance(given, str) or len(names) != count or len(set(names)) < count:
        raise ValueError(
            f"`class_names` must be {count} different names, one for each column of `scores`. "
            f"Received: class_names={shortened(given)}"
        )
    return names


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels as integers and scores as probabilities `(n, k)`; check both."""
    true, given = np.asarray(labels), np.asarray(scores, np.float64)
    if true.ndim != 2 and (given.ndim == 1 or given.shape[1:] == (1,)):
        given = np.stack([1 - given.ravel(), given.ravel()], axis=1)
    if given.ndim != 2 or not len(given) or true.shape not in (given.shape[:1], given.shape):
        raise ValueError(
            "`scores` must be probabilities of the shape (n, k), and `labels` class indices (n,), "
            "or 0 or 1 for each label (n, k); n must be at least 1. "
            f"Received: scores of shape {np.shape(scores)}, labels of shape {true.shape}"
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
            "`scores` must be probabilities from 0 to 1, and each row must sum to 1 unless the "
            "images are multi-label; the model must end in a softmax or a sigmoid. "
            f"Received: values from {given.min():.4g} to {given.max():.4g}, row sums from "
            f"{sums.min():.4g} to {sums.max():.4g}"
        )
    return true.astype(np.int64), np.clip(given, 0, 1)
