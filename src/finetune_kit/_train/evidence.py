"""How well recipes did on validation images, as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_kit import _html
from finetune_kit._text import aligned
from finetune_kit._train.trials import Trial


@dataclass(frozen=True)
class Evidence:
    """How well one recipe did on validation images.

    Attributes:
        recipe: what it trains.
        loss: mean cross-entropy after temperature scaling.
        difference: its loss minus the lowest (in a learning curve: that with all images), on the
            same images.
        error: standard error of this paired difference; nan where a recipe is compared with itself,
            and inf where it cannot be known, because all images are of one group.
        accuracy: share of right predictions.
        images: number of images that were predicted.
        seconds: how long it took, with the features for the head alone.
        recommended: whether it is the one recommended.
    """

    recipe: str
    loss: float
    difference: float
    error: float
    accuracy: float
    images: int
    seconds: float
    recommended: bool


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


def evidence_of(
    tried: Sequence[Trial], groups: NDArray[np.int64], reference: int, recommended: int | None
) -> tuple[Evidence, ...]:
    """Return a row for each trial, compared with one of them."""
    rows = []
    for i, trial in enumerate(tried):
        difference, error = paired(trial, tried[reference], groups)
        row = Evidence(
            recipe=trial.name,
            loss=trial.loss,
            difference=difference,
            error=math.nan if i == reference else error,
            accuracy=trial.accuracy,
            images=len(trial.losses),
            seconds=trial.seconds,
            recommended=i == recommended,
        )
        rows.append(row)
    return tuple(rows)


def table(evidence: Sequence[Evidence], against: str, first: str = "recipe") -> str:
    """Return evidence as text; `against` says what the losses are compared with."""
    rows = [(f"{'* ' if e.recommended else '  '}{e.recipe}", *_cells(e)) for e in evidence]
    others = _headings(against)[1:]
    return "\n".join(filter(None, [aligned([(f"  {first}", *others), *rows]), _note(evidence)]))


def view(title: str, evidence: Sequence[Evidence], against: str, reason: str) -> str:
    """Return what a notebook shows for evidence."""
    rows = []
    for each in evidence:
        name = _html.text(each.recipe)
        rows.append(
            (
                f"<strong>{name}</strong>" if each.recommended else name,
                *map(_html.text, _cells(each)),
            )
        )
    return _html.view(
        _html.title(title),
        _html.table(_headings(against), rows, title),
        _html.note(_note(evidence)),
        _html.note(reason),
    )


def _headings(against: str) -> tuple[str, ...]:
    return "recipe", "loss", against, "accuracy", "images", "seconds"


def _note(evidence: Sequence[Evidence]) -> str:
    """Say which rows are about fewer images, if there are any."""
    counts = {each.images for each in evidence}
    if len(counts) == 1:
        return ""
    return (
        f"Recipes with {min(counts):,} images were tried on the first fold only; their losses are "
        "compared on these images."
    )


def change(difference: float, error: float, sign: str = "") -> str:
    """Return a difference with its standard error as text, if this is known."""
    known = f" ± {error:.4f}" if math.isfinite(error) else ""
    return f"{difference:{sign}z.4f}{known}"  # z: 0.0000, never -0.0000


def _cells(evidence: Evidence) -> tuple[str, ...]:
    same = math.isnan(evidence.error)
    above = "-" if same else change(evidence.difference, evidence.error)
    return (
        f"{evidence.loss:.4f}",
        above,
        f"{evidence.accuracy:.3f}",
        f"{evidence.images:,}",
        f"{evidence.seconds:.1f}",
    )
