"""The difference between two models on the same images, with paired statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune_kit._report.bootstrap import bootstrap
from finetune_kit._report.estimate import Estimate
from finetune_kit._report.metrics import OVERALL
from finetune_kit._report.results import Results
from finetune_kit._text import plural

LEVEL = 0.05  # significance level of the tests, after Holm's correction


@dataclass(frozen=True, eq=False)
class Difference:
    """How a model differs from another one on the same images.

    Attributes:
        first: name of the first model.
        second: name of the second model.
        metrics: for each metric, that of the second model minus that of the first, with a paired
            95% interval.
        only_first_correct: number of images that only the first model classifies correctly.
        only_second_correct: number of images that only the second model classifies correctly.
        p_value: of the exact McNemar test of these two numbers.
        adjusted_p_value: the p-value after Holm's correction for the number of pairs.
    """

    first: str
    second: str
    metrics: Mapping[str, Estimate]
    only_first_correct: int
    only_second_correct: int
    p_value: float
    adjusted_p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the two accuracies differ, at a corrected p-value below 0.05."""
        return self.adjusted_p_value < LEVEL

    @property
    def better(self) -> tuple[str, str]:
        """The names of the more accurate and of the less accurate model."""
        if self.metrics["accuracy"].value > 0:
            return self.second, self.first
        return self.first, self.second

    @property
    def conclusion(self) -> str:
        """The difference in accuracy and its statistics, in a sentence or two."""
        if not self.only_first_correct and not self.only_second_correct:
            return (
                f"{self.first} and {self.second} classify the same images correctly, so their "
                "accuracy is equal; other metrics may differ."
            )
        gap = self.metrics["accuracy"]
        better, other = self.better
        size = f"{abs(gap.value) * 100:.1f} percentage points"
        finding = (
            f"{better} is more accurate than {other} by {size}"
            if self.is_significant
            else f"Neither {self.first} nor {self.second} is shown to be more accurate; the "
            f"difference is {size}"
        )
        return (
            f"{finding} ({self.second} minus {self.first}: 95% interval {gap.low * 100:+.1f} to "
            f"{gap.high * 100:+.1f}; McNemar's p = {p_text(self.p_value)}, corrected "
            f"{p_text(self.adjusted_p_value)}). Only {self.second} classifies "
            f"{plural(self.only_second_correct, 'image')} correctly, only {self.first} "
            f"{plural(self.only_first_correct, 'image')}."
        )


def differences_of(reports: Mapping[str, Results]) -> tuple[Difference, ...]:
    """Return the difference of each pair of models, in the order of the names."""
    pairs = list(combinations(reports, 2))
    resampled = {name: _resampled(report) for name, report in reports.items()}
    discordant = [_discordant(reports[a], reports[b]) for a, b in pairs]
    p_values = [_mcnemar(*counts) for counts in discordant]
    return tuple(
        Difference(
            first=a,
            second=b,
            metrics={
                name: _paired(
                    reports[a].metrics[name],
                    reports[b].metrics[name],
                    resampled[b][name] - resampled[a][name],
                )
                for name in OVERALL
            },
            only_first_correct=counts[0],
            only_second_correct=counts[1],
            p_value=p_value,
            adjusted_p_value=adjusted,
        )
        for (a, b), counts, p_value, adjusted in zip(
            pairs, discordant, p_values, holm(p_values), strict=True
        )
    )


def holm(p_values: list[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    stepped = np.minimum(1.0, np.maximum.accumulate(np.array(p_values)[order] * factors))
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def p_text(p_value: float) -> str:
    """Return a p-value with three decimals, or its magnitude if it is smaller."""
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.1g}"


def _resampled(report: Results) -> dict[str, NDArray[np.float64]]:
    found = bootstrap(report.labels, report.scores, resamples=report.resamples, seed=report.seed)
    return {name: found[name][:, 0] for name in OVERALL}


def _mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of the exact McNemar test (McNemar 1947)."""
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def _paired(first: Estimate, second: Estimate, gaps: NDArray[np.float64]) -> Estimate:
    """Return the difference of two metrics, given the difference in each resample."""
    gaps = gaps[~np.isnan(gaps)]
    if not len(gaps):
        return Estimate(second.value - first.value, method=first.method)
    low, high = np.percentile(gaps, (2.5, 97.5))
    return Estimate(second.value - first.value, float(low), float(high), "paired bootstrap")


def _discordant(first: Results, second: Results) -> tuple[int, int]:
    """Return how many images only the first, and only the second, classifies correctly."""
    a, b = (
        (report.predicted == report.labels).reshape(len(report.labels), -1).all(axis=1)
        for report in (first, second)
    )
    return int((a & ~b).sum()), int((b & ~a).sum())
