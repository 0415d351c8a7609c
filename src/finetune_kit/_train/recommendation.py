"""What `recommend` returns: a recipe and the evidence for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit import _html
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._text import aligned, plural
from finetune_kit._train.trials import Trial

_HEADINGS = ("recipe", "loss", "above the lowest", "accuracy", "images", "epochs", "seconds")


@dataclass(frozen=True)
class Evidence:
    """How well one recipe did on validation images.

    Attributes:
        recipe: what it trains.
        loss: mean cross-entropy after temperature scaling.
        difference: its loss minus that of the recipe with the lowest, on the same images.
        error: standard error of this paired difference; nan for the lowest itself.
        accuracy: share of right predictions.
        images: number of images that were predicted.
        epochs: median of the epochs that were kept.
        seconds: how long it took, with the features for the head alone.
        recommended: whether it is the one recommended.
    """

    recipe: str
    loss: float
    difference: float
    error: float
    accuracy: float
    images: int
    epochs: int
    seconds: float
    recommended: bool


@dataclass(frozen=True, eq=False)
class Recommendation:
    """A recipe for `fine_tune`, and the evidence for it. Made by `recommend`.

    Attributes:
        head: a head that is trained already, on the frozen features of the training images.
        specs: the phases that follow. Where the head alone is best: one epoch at a rate so low that
            it stays as it is.
        keywords: further arguments of `fine_tune`.
        evidence: an `Evidence` for each recipe that was tried, the simplest first.
        reason: why this recipe, how sure that is, and what it would cost to know more.
    """

    head: keras.Layer = field(repr=False)
    specs: tuple[FineTuneSpec, ...]
    keywords: Mapping[str, Any]
    evidence: tuple[Evidence, ...] = field(repr=False)
    reason: str

    def __str__(self) -> str:
        rows = [
            (f"{'* ' if e.recommended else '  '}{e.recipe}", *cells)
            for e, cells in zip(self.evidence, map(_cells, self.evidence), strict=True)
        ]
        return f"{aligned([('  ' + _HEADINGS[0], *_HEADINGS[1:]), *rows])}\n\n{self.reason}"

    def _repr_html_(self) -> str:
        rows = [
            (
                f"<strong>{_html.text(e.recipe)}</strong>"
                if e.recommended
                else _html.text(e.recipe),
                *map(_html.text, _cells(e)),
            )
            for e in self.evidence
        ]
        return _html.view(
            _html.title(next(f"Recommended: {e.recipe}" for e in self.evidence if e.recommended)),
            _html.table(_HEADINGS, rows, "Recipes that were tried"),
            _html.note(self.reason),
        )


def _cells(evidence: Evidence) -> tuple[str, ...]:
    above = "lowest"
    if not math.isnan(evidence.error):
        above = f"{evidence.difference:.4f} ± {evidence.error:.4f}"
    return (
        f"{evidence.loss:.4f}",
        above,
        f"{evidence.accuracy:.3f}",
        f"{evidence.images:,}",
        f"{evidence.epochs}",
        f"{evidence.seconds:.1f}",
    )


def paired(one: Trial, other: Trial, groups: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean difference of two trials' losses, and its standard error.

    It is computed from the images that both have predicted. The images of a group count as one
    observation.
    """
    count = min(len(one.losses), len(other.losses))
    differences = one.losses[:count] - other.losses[:count]
    mean = float(differences.mean())
    sums = np.bincount(groups[:count], weights=differences - mean)
    number = len(np.unique(groups[:count]))
    if number < 2:
        return mean, math.inf
    return mean, math.sqrt(number / (number - 1) * float((sums**2).sum())) / count


def choose(tried: Sequence[Trial], groups: NDArray[np.int64]) -> tuple[int, int]:
    """Return the numbers of the recommended trial and of the one with the lowest loss.

    Recommended is the first, and so the simplest, whose loss is not above the lowest by more than
    one standard error. Only trials on all images compete.
    """
    whole = [i for i, trial in enumerate(tried) if len(trial.losses) == len(groups)]
    lowest = min(whole, key=lambda i: tried[i].loss)
    for i in whole:
        difference, error = paired(tried[i], tried[lowest], groups)
        if i == lowest or difference <= error:
            return i, lowest
    return lowest, lowest


def recommendation(
    tried: Sequence[Trial],
    groups: NDArray[np.int64],
    head: keras.Layer,
    used: Mapping[str, Any],
    *,
    validated: bool,
) -> Recommendation:
    """Return the recommendation that follows from trials.

    Args:
        tried: the trials, the simplest first; the first trains the head alone.
        groups: number of the group of each validation image.
        head: the head that was fitted on all training images.
        used: arguments of `fine_tune` that the trials had.
        validated: whether there are validation images to choose the epoch by.
    """
    number, lowest = choose(tried, groups)
    trial = tried[number]
    spec, keywords = trial.spec, {**used, **trial.keywords}
    if number:
        keywords["calibrate"] = True if validated else trial.temperature
        if not validated:
            spec = replace(spec, epochs=_median(trial.kept_epochs))
    evidence = []
    for i, each in enumerate(tried):
        difference, error = paired(each, tried[lowest], groups)
        evidence.append(
            Evidence(
                recipe=each.name,
                loss=each.loss,
                difference=difference,
                error=math.nan if i == lowest else error,
                accuracy=each.accuracy,
                images=len(each.losses),
                epochs=_median(each.kept_epochs),
                seconds=each.seconds,
                recommended=i == number,
            )
        )
    return Recommendation(
        head, (spec,), keywords, tuple(evidence), _reason(tried, number, lowest, groups)
    )


def _median(epochs: Sequence[int]) -> int:
    return max(1, round(float(np.median(epochs))))


def _reason(tried: Sequence[Trial], number: int, lowest: int, groups: NDArray[np.int64]) -> str:
    """Say why, how sure that is, and how many images would tell more."""
    name = tried[number].name
    if number != lowest:
        rival = lowest
        difference, error = paired(tried[number], tried[rival], groups)
        text = (
            f"Recommended is {name}: the simplest recipe within one standard error of the lowest "
            f"loss, that of {tried[rival].name} (lower by {difference:.4f} ± {error:.4f})."
        )
    else:
        others = [i for i in range(len(tried)) if i != number]
        rival = min(others, key=lambda i: paired(tried[i], tried[number], groups)[0])
        difference, error = paired(tried[rival], tried[number], groups)
        text = (
            f"Recommended is {name}: it has the lowest validation loss. Next is "
            f"{tried[rival].name} (higher by {difference:.4f} ± {error:.4f})."
        )
    if difference >= 2 * error:
        return f"{text} The difference is above two standard errors."
    count = min(len(tried[i].losses) for i in (number, rival))
    needed = count * (2 * error / difference) ** 2 if difference > 0 else math.inf
    images = plural(count, "validation image")
    if needed > 100 * count:
        return f"{text} On {images} they cannot be told apart."
    return (
        f"{text} On {images} they cannot be told apart; it would take about {math.ceil(needed):,}, "
        "if the difference is as large as it seems."
    )
