"""A metric's value with its 95% interval, and how each interval is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binomtest, norm

_Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Estimate:
    """The value of a metric and its 95% interval.

    Attributes:
        value: the measured value; nan if the metric is undefined.
        low: lower end of the interval; nan if there is no interval.
        high: upper end of the interval; nan if there is no interval.
        method: how the interval was computed, or why there is no interval or no value.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    method: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):  # plain numbers also where NumPy computed them
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def has_interval(self) -> bool:
        """Whether the value has an interval."""
        return not math.isnan(self.low)

    @property
    def is_defined(self) -> bool:
        """Whether the metric has a value."""
        return not math.isnan(self.value)

    def __str__(self) -> str:
        if not self.is_defined:
            return "undefined"
        return f"{self.value:.3f} ({self.interval()})"

    def interval(self, form: str = ".3f") -> str:
        """Return the interval as text, such as `0.811 to 0.931`, or `no interval`."""
        if not self.has_interval:
            return "no interval"
        return f"{self.low:{form}} to {self.high:{form}}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with None in place of nan."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        plain = {name: None if math.isnan(number) else number for name, number in numbers.items()}
        return {**plain, "method": self.method}


def proportion(successes: int, count: int, if_empty: str = "") -> Estimate:
    """Estimate a proportion with Wilson's score interval.

    Args:
        successes: number of successes.
        count: number of trials.
        if_empty: the method of the estimate, which is then undefined, if `count` is 0.
    """
    if not count:
        return Estimate(math.nan, method=if_empty)
    ends = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return Estimate(successes / count, ends.low, ends.high, "Wilson score")


def precision(
    correct: int, predicted: int, resampled: NDArray[np.float64], images: int
) -> Estimate:
    """Estimate a class's precision with Wilson's interval for an effective sample size.

    A stratified resample keeps the number of images of each class, so the number of wrong
    predictions varies less than in a binomial sample. The effective sample size (Korn and Graubard
    1998, Survey Methodology 24) is the binomial sample size with the variance of the bootstrap.

    Args:
        correct: number of correct predictions of the class.
        predicted: number of predictions of the class.
        resampled: precision in each bootstrap resample.
        images: number of images of all classes.
    """
    if not predicted:
        return Estimate(0.0, method="the class was never predicted")
    found = proportion(correct, predicted)
    variance = float(np.var(resampled))
    if not variance or not 0 < found.value < 1:
        return found
    effective = min(max(predicted, found.value * (1 - found.value) / variance), images)
    low, high = _wilson(found.value, effective)
    return Estimate(found.value, low, high, "Wilson score, effective sample size")


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Return Wilson's interval (1927) for a sample size that need not be a whole number."""
    middle = share + _Z * _Z / (2 * count)
    margin = _Z * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    scale = 1 + _Z * _Z / count
    return (middle - margin) / scale, (middle + margin) / scale


def percentile_estimate(
    value: float, resampled: NDArray[np.float64], method: str, *, ranking: bool
) -> Estimate:
    """Estimate a metric from its bootstrap distribution.

    The interval holds the middle 95% of the resampled values. For metrics of a ranking, such as the
    ROC AUC, it holds 1.96 standard errors to both sides on the scale of log-odds: near 1 the
    percentiles are too high and cover the true value too rarely (Pepe 2003, The Statistical
    Evaluation of Medical Tests, 5.2; for the average precision Boyd, Eng and Page 2013,
    doi:10.1007/978-3-642-40994-3_55).
    """
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    if low == high:  # for example, no image was misclassified
        return Estimate(value, method="every resample gives the same value")
    if not ranking or not 0 < value < 1:
        return Estimate(value, float(low), float(high), method)
    error = float(np.nanstd(resampled)) / (value * (1 - value))
    middle, margin = math.log(value / (1 - value)), _Z * error
    low, high = expit((middle - margin, middle + margin))
    return Estimate(value, float(low), float(high), f"{method}, log-odds")


def calibration_estimate(
    value: float, resampled: NDArray[np.float64], calibrated: NDArray[np.float64], method: str
) -> Estimate:
    """Estimate the expected calibration error with an interval that is corrected for its bias.

    The error is biased upwards, and each resample adds about the same bias again. The interval
    reaches from the corrected value minus 1.96 standard errors to the measured value plus 1.96
    standard errors. It starts at 0 if a perfectly calibrated model would show an error as large.

    Args:
        value: the measured error.
        resampled: the error in each bootstrap resample.
        calibrated: errors of a perfectly calibrated model with the same scores.
        method: name of the bootstrap.
    """
    margin = 1.96 * float(resampled.std())
    low = 2 * value - float(resampled.mean()) - margin
    if value <= np.percentile(calibrated, 97.5):
        low = 0.0
    return Estimate(value, max(0.0, low), value + margin, f"{method}, bias-corrected")
