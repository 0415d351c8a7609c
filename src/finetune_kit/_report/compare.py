"""Reports on the same images come in, what may be concluded of their difference goes out.

Differences are paired: each draw of the bootstrap draws the same images for both models, and the
exact McNemar test looks only at images that one of them got right and the other wrong.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune_kit._checks import check_folder
from finetune_kit._files import write_whole
from finetune_kit._report import page as _page
from finetune_kit._report import pictures as _pictures
from finetune_kit._report.bootstrap import bootstrap
from finetune_kit._report.metrics import OVERALL, Figure
from finetune_kit._report.report import Report, aligned

FORMAT = "finetune-kit comparison 1"
_SHOWN = ("accuracy", "macro_f1", "roc_auc", "log_loss")
_LEVEL = 0.05  # of the tests, after Holm's correction


@dataclass(frozen=True, eq=False)
class Difference:
    """What sets one model apart from another on the same images.

    Attributes:
        first: name of the one model.
        second: name of the other.
        figures: for each figure, that of the second less that of the first, with a paired interval.
        only_first_right: number of images that only the first got right.
        only_second_right: number of images that only the second got right.
        p_value: of the exact McNemar test of these two numbers.
        adjusted_p_value: the same after Holm's correction for the number of pairs.
    """

    first: str
    second: str
    figures: Mapping[str, Figure]
    only_first_right: int
    only_second_right: int
    p_value: float
    adjusted_p_value: float

    @property
    def conclusion(self) -> str:
        """What may be said, and what may not, in a sentence or two."""
        gap = self.figures["accuracy"]
        if not self.only_first_right and not self.only_second_right:
            return (
                f"{self.first} and {self.second} got the same images right, so accuracy cannot "
                "tell them apart; the other figures may."
            )
        shown = (
            f"{self.second} is {abs(gap.value) * 100:.1f} points of accuracy "
            f"{'above' if gap.value >= 0 else 'below'} {self.first} (95 % interval "
            f"{gap.low * 100:+.1f} to {gap.high * 100:+.1f}; McNemar's p = {_p(self.p_value)}, "
            f"corrected {_p(self.adjusted_p_value)}): right on {self.only_second_right} images "
            f"that the other got wrong, wrong on {self.only_first_right} that the other got right."
        )
        if self.adjusted_p_value < _LEVEL:
            better = self.second if gap.value > 0 else self.first
            return (
                f"{shown} So {better} makes fewer mistakes on images like these; that is no "
                "statement about images from elsewhere, nor about other seeds of training."
            )
        return (
            f"{shown} So neither is shown to be better in accuracy, which does not mean that they "
            "are equal: differences within the interval remain possible."
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several models on the same images; print it to see the tables.

    Made by `compare`.

    Attributes:
        reports: the reports by name.
        differences: one for each pair, in the order of the names.
    """

    reports: Mapping[str, Report]
    differences: tuple[Difference, ...]

    def cautions(self) -> list[str]:
        """What a reader of the figures should mind, in sentences."""
        return [
            f"{name}: {caution}"
            for name, report in self.reports.items()
            for caution in report.about.get("cautions", ())
        ]

    def __str__(self) -> str:
        head = ["", *(OVERALL[name] for name in _SHOWN)]
        models = [
            [name, *(str(report.figures[figure]) for figure in _SHOWN)]
            for name, report in self.reports.items()
        ]
        pairs = [
            [f"{d.second} - {d.first}", *(_signed(d.figures[name]) for name in _SHOWN)]
            for d in self.differences
        ]
        told = "\n".join(
            textwrap.fill(f"- {d.conclusion}", 100, subsequent_indent="  ")
            for d in self.differences
        )
        mind = [f"Mind: {caution}" for caution in self.cautions()]
        return "\n\n".join([*mind, aligned([head, *models]), aligned([head, *pairs]), told])

    def to_dict(self) -> dict[str, Any]:
        """All differences as plain values, for JSON."""
        return {
            "format": FORMAT,
            "cautions": self.cautions(),
            "models": {
                name: {key: figure.to_dict() for key, figure in report.figures.items()}
                for name, report in self.reports.items()
            },
            "differences": [
                {
                    "first": d.first,
                    "second": d.second,
                    "figures": {name: figure.to_dict() for name, figure in d.figures.items()},
                    "only_first_right": d.only_first_right,
                    "only_second_right": d.only_second_right,
                    "p_value": d.p_value,
                    "adjusted_p_value": d.adjusted_p_value,
                    "conclusion": d.conclusion,
                }
                for d in self.differences
            ],
        }

    def save(self, folder: str | os.PathLike[str], *, title: str = "Comparison") -> Path:
        """Write the comparison as text, JSON, a picture and one HTML page.

        Args:
            folder: made if it does not exist; `comparison.*` in it are replaced.
            title: of the page. Defaults to `"Comparison"`.

        Returns:
            The folder.
        """
        check_folder("folder", folder)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        figures = {name: report.figures for name, report in self.reports.items()}
        drawing = ""
        if _pictures.available(target):
            picture = _pictures.compared(figures, *self._depths())
            write_whole(target / "comparison.png", _pictures.png(picture))
            drawing = _page.drawing("compared", picture, "Side by side", "with 95 % intervals")
        write_whole(target / "comparison.txt", f"{self}\n")
        write_whole(target / "comparison.json", json.dumps(self.to_dict(), indent=2) + "\n")
        page = _page.of_comparison(title, figures, self.differences, drawing, self.cautions())
        write_whole(target / "comparison.html", page)
        return target

    def _depths(self) -> tuple[list[str], str]:
        """What stands below each model: how many blocks trained, where that sets them apart."""
        plans = [report.plans for report in self.reports.values()]
        depths = [str(sum(plan[-1].trainable)) if plan else "" for plan in plans]
        if all(depths) and len(set(depths)) == len(depths):
            return depths, "trailing blocks that train"
        return list(self.reports), ""


def compare(reports: Mapping[str, Report]) -> Comparison:
    """Tell what may be concluded from several reports on the same images.

    For each pair: the differences of the figures with paired bootstrap intervals (95 %, one pair at
    a time), the exact McNemar test (McNemar 1947) with Holm's correction (Holm 1979) for the number
    of pairs, and a sentence.

    Args:
        reports: by name, such as `{"Model 1": report, ...}`, all of `evaluate` on the same images.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: if there are fewer than two, or they are not on the same images.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 2, 200)
        >>> weak = Report.from_scores(labels, 0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.1, 200))
        >>> strong = Report.from_scores(labels, 0.25 + 0.5 * labels)
        >>> print(compare({"weak": weak, "strong": strong}).differences[0].conclusion[:46])
        strong is 17.5 points of accuracy above weak (
    """
    _check(reports)
    reports = {str(name): report for name, report in reports.items()}
    drawn = {name: _draws(report) for name, report in reports.items()}
    pairs = [(a, b, *_discordant(reports[a], reports[b])) for a, b in combinations(reports, 2)]
    values = [
        float(binomtest(one, one + other, 0.5).pvalue) if one + other else 1.0
        for *_, one, other in pairs
    ]
    differences = tuple(
        Difference(
            first=a,
            second=b,
            figures={
                name: _paired(reports[a].figures[name], reports[b].figures[name], x, drawn[b][name])
                for name, x in drawn[a].items()
            },
            only_first_right=one,
            only_second_right=other,
            p_value=value,
            adjusted_p_value=adjusted,
        )
        for (a, b, one, other), value, adjusted in zip(pairs, values, holm(values), strict=True)
    )
    return Comparison(reports, differences)


def holm(values: list[float]) -> list[float]:
    """P values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    stepped = np.minimum(1.0, np.maximum.accumulate(np.array(values)[order] * factors))
    found = np.empty(len(values))
    found[order] = stepped
    return [float(value) for value in found]


def _draws(report: Report) -> dict[str, NDArray[np.float64]]:
    drawn = bootstrap(report.labels, report.scores, draws=report.draws, seed=report.seed)
    return {name: drawn[name][:, 0] for name in OVERALL}


def _paired(
    first: Figure, second: Figure, before: NDArray[np.float64], after: NDArray[np.float64]
) -> Figure:
    gaps = after - before
    gaps = gaps[~np.isnan(gaps)]
    if not len(gaps):
        return Figure(second.value - first.value, method=first.method)
    low, high = np.percentile(gaps, (2.5, 97.5))
    method = f"paired bootstrap, {len(before):,} draws"
    return Figure(second.value - first.value, float(low), float(high), method)


def _discordant(a: Report, b: Report) -> tuple[int, int]:
    right = [(r.predicted == r.labels).reshape(len(r.labels), -1).all(axis=1) for r in (a, b)]
    return int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())


def _check(reports: Mapping[str, Report]) -> None:
    if not isinstance(reports, Mapping) or len(reports) < 2:
        raise ValueError(
            f"`reports` must be a mapping from names to two or more reports. Received: {reports!r}"
        )
    odd = [name for name, report in reports.items() if not isinstance(report, Report)]
    if odd:
        raise ValueError(
            f"`reports` must hold reports, as evaluate gives them. Received: {odd} are none"
        )
    (name, first), *others = reports.items()
    for other, report in others:
        same = first.samples == report.samples and first.class_names == report.class_names
        if not same or not np.array_equal(first.labels, report.labels):
            common = len(set(first.samples) & set(report.samples))
            raise ValueError(
                "`reports` must be on the same images in the same order, with the same classes: "
                "evaluate each model on the same indices. Received: "
                f"{name!r} on {len(first.samples)} images and {other!r} on {len(report.samples)}, "
                f"{common} of them the same; classes {list(first.class_names)} and "
                f"{list(report.class_names)}"
            )
        if (first.draws, first.seed) != (report.draws, report.seed):
            raise ValueError(
                "`reports` must have the same draws and seed of the bootstrap, so that differences "
                f"are paired. Received: {name!r} with draws={first.draws}, seed={first.seed} and "
                f"{other!r} with draws={report.draws}, seed={report.seed}"
            )


def _signed(figure: Figure) -> str:
    if figure.value != figure.value or figure.low != figure.low:
        return "undefined"
    return f"{figure.value:+.3f} ({figure.low:+.3f} to {figure.high:+.3f})"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"
