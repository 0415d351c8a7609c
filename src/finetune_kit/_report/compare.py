"""Comparison of several models on the same images."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit._hints import hints
from finetune_kit._report import page, pictures, views
from finetune_kit._report.difference import Difference, differences_of, p_text
from finetune_kit._report.estimate import Estimate
from finetune_kit._report.figures import available, drawn_by
from finetune_kit._report.markup import drawing
from finetune_kit._report.metrics import OVERALL
from finetune_kit._report.report import Report
from finetune_kit._report.saving import page_or_folder, write_files
from finetune_kit._text import aligned, listed, plural, shortened

FORMAT = "finetune-kit comparison 1"
_LIMITS = (
    "Models that are not shown to differ may still differ within their 95% intervals.",
    "The conclusions hold for images like these and for the trained models, not for images from "
    "other sources or for other training seeds.",
)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Several models on the same images. Print it to see the tables.

    `compare` returns one.

    Attributes:
        reports: the reports by name.
        differences: one for each pair of models, in the order of the names.
    """

    reports: Mapping[str, Report]
    differences: tuple[Difference, ...]

    @property
    def summary(self) -> tuple[str, ...]:
        """The conclusion from all pairs in one sentence, and its limits."""
        if len(self.differences) == 1:
            return (self.differences[0].conclusion, *_LIMITS)
        found = [" > ".join(d.better) for d in self.differences if d.is_significant]
        count = len(self.differences)
        if not found:
            test = "McNemar's test: no corrected p is below 0.05"
            return (f"No difference in accuracy is shown in the {count} pairs ({test}).", *_LIMITS)
        test = "McNemar's test, corrected p below 0.05"
        rest = f"; no difference is shown in the other {count - len(found)}"
        return (
            f"Accuracy differs in {len(found)} of {count} pairs ({test}): {listed(found, 6)}"
            f"{rest if len(found) < count else ''}.",
            *_LIMITS,
        )

    def cautions(self) -> list[str]:
        """Return sentences that a reader of the metrics should know."""
        by_text: dict[str, list[str]] = {}
        for name, report in self.reports.items():
            for caution in report.about.get("cautions", ()):
                by_text.setdefault(caution, []).append(name)
        return [f"{listed(names)}: {caution}" for caution, names in by_text.items()]

    def __repr__(self) -> str:
        return f"Comparison({len(self.reports)} models; {self.summary[0]})"

    def _repr_html_(self) -> str:
        models = {name: report.metrics for name, report in self.reports.items()}
        return views.of_comparison(self.summary, models, self.differences, self.cautions())

    def __str__(self) -> str:
        head = ["", *(OVERALL[name] for name in views.MAIN)]
        models = [
            [name, *(str(report.metrics[key]) for key in views.MAIN)]
            for name, report in self.reports.items()
        ]
        pairs = [
            [f"{d.second} - {d.first}", *(_signed(d.metrics[key]) for key in views.MAIN),
             p_text(d.adjusted_p_value)]
            for d in self.differences
        ]  # fmt: skip
        texts = [" ".join(self.summary), *(f"Caution: {text}" for text in self.cautions())]
        tables = [aligned([head, *models]), aligned([[*head, "corrected p"], *pairs])]
        return "\n\n".join([*(textwrap.fill(text, 100) for text in texts), *tables])

    def to_dict(self) -> dict[str, Any]:
        """Return all metrics and differences as plain values for JSON."""
        return {
            "format": FORMAT,
            "summary": list(self.summary),
            "cautions": self.cautions(),
            "models": {
                name: {key: value.to_dict() for key, value in report.metrics.items()}
                for name, report in self.reports.items()
            },
            "differences": [
                {
                    "first": d.first,
                    "second": d.second,
                    "metrics": {key: value.to_dict() for key, value in d.metrics.items()},
                    "only_first_correct": d.only_first_correct,
                    "only_second_correct": d.only_second_correct,
                    "p_value": d.p_value,
                    "adjusted_p_value": d.adjusted_p_value,
                    "conclusion": d.conclusion,
                }
                for d in self.differences
            ],
        }

    def save(self, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
        """Write the comparison as text, JSON, a picture and one HTML page.

        Args:
            path: a folder, which is made if it does not exist; `comparison.*` in it are replaced.
                A path that ends in `.html`: only the page is written, to that file.
            title: title of the page. Defaults to the names of the models.

        Returns:
            The path.

        Raises:
            ValueError: if `path` is a file that does not end in `.html`.
            OSError: if it cannot be written to.
        """
        target, one_page = page_or_folder(path)
        count = len(next(iter(self.reports.values())).labels)
        title = title or f"{listed(list(self.reports))} on {plural(count, 'image')}"
        models = {name: report.metrics for name, report in self.reports.items()}
        files: dict[str, bytes | str] = {}
        figure = ""
        if available(target):
            draw = partial(pictures.compared, models, *self._depths())
            png, svg = drawn_by(draw, "comparison") or (b"", "")
            files |= {"comparison.png": png} if png else {}
            figure = drawing(svg, "Accuracy and macro F1", "of each model, with 95% intervals")
        html = page.of_comparison(
            title, self.summary, models, self.differences, picture=figure, cautions=self.cautions()
        )
        if one_page:
            write_files(target.parent, {target.name: html})
            return target
        files["comparison.txt"] = f"{self}\n"
        files["comparison.json"] = json.dumps(self.to_dict(), indent=2) + "\n"
        files["comparison.html"] = html
        write_files(target, files)
        return target

    def _depths(self) -> tuple[list[str], str]:
        """Return tick labels and axis label: numbers of trainable blocks, if they differ."""
        plans = [report.plans for report in self.reports.values()]
        depths = [str(sum(plan[-1].trainable)) if plan else "" for plan in plans]
        if all(depths) and len(set(depths)) == len(depths):
            return depths, "trainable blocks"
        return list(self.reports), ""


@hints()
def compare(reports: Mapping[str, Report]) -> Comparison:
    """Compare several reports on the same images.

    For each pair of models: the differences of the metrics with paired bootstrap intervals (95%,
    one pair at a time), and the exact McNemar test (McNemar 1947) of the accuracies with Holm's
    correction (Holm 1979) for the number of pairs.

    Args:
        reports: the reports by name, such as `{"A": report, ...}`, all from `evaluate` on the
            same images.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: if there are fewer than two reports, or they are not on the same images.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 2, 200)
        >>> weak = Report.from_scores(labels, 0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.1, 200))
        >>> strong = Report.from_scores(labels, 0.25 + 0.5 * labels)
        >>> compare({"weak": weak, "strong": strong}).differences[0].better
        ('strong', 'weak')
    """
    form = (
        "`reports` must be a mapping from names to two or more reports, such as "
        "{'A': report_a, 'B': report_b}. "
    )
    if isinstance(reports, (list, tuple)):
        raise ValueError(f"{form}Received: a {type(reports).__name__}, which has no names")
    if not isinstance(reports, Mapping):
        raise ValueError(f"{form}Received: {shortened(reports)}")
    odd = [name for name, report in reports.items() if not isinstance(report, Report)]
    if odd:
        kinds = {type(reports[name]).__name__ for name in odd}
        raise ValueError(f"{form}Received: values of type {', '.join(sorted(kinds))} for {odd}")
    if len(reports) < 2:
        raise ValueError(f"{form}Received: {plural(len(reports), 'report')}")
    named = {str(name): report for name, report in reports.items()}
    (first, one), *others = named.items()
    for second, other in others:
        _check_pair(first, one, second, other)
    return Comparison(named, differences_of(named))


def _check_pair(first: str, one: Report, second: str, other: Report) -> None:
    same = one.samples == other.samples and one.class_names == other.class_names
    if not same or not np.array_equal(one.labels, other.labels):
        common = len(set(one.samples) & set(other.samples))
        raise ValueError(
            "`reports` must be on the same images in the same order, with the same classes; "
            "evaluate all models on the same ImageSet. Received: "
            f"{first!r} on {len(one.samples)} images and {second!r} on {len(other.samples)}, "
            f"{common} of them the same; classes {list(one.class_names)} and "
            f"{list(other.class_names)}"
        )
    if (one.resamples, one.seed) != (other.resamples, other.seed):
        raise ValueError(
            "`reports` must have the same number of resamples and the same seed, so that the "
            "differences are paired. Received: "
            f"{first!r} with resamples={one.resamples}, seed={one.seed} and "
            f"{second!r} with resamples={other.resamples}, seed={other.seed}"
        )


def _signed(difference: Estimate) -> str:
    if not difference.is_defined or not difference.has_interval:
        return "undefined"
    return f"{difference.value:+.3f} ({difference.interval('+.3f')})"
