"""What `recommend` returns: a recipe and the evidence for it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._text import plural
from finetune_kit._train import plots
from finetune_kit._train.evidence import Evidence, change, evidence_of, paired, table, view
from finetune_kit._train.probe import Parts, fitted
from finetune_kit._train.trials import Trial

_SHARES = (0.25, 0.5, 1.0)  # of the training images, in a learning curve
_LOWEST, _ALL = "above the lowest", "above all images"


@dataclass(frozen=True, eq=False)
class Probed:
    """What a learning curve is computed from.

    Attributes:
        features: of all images, `(n, features)`.
        labels: of all images.
        parts: the indices to train on and to validate on.
        groups: number of the group of each image.
        strength: inverse strength of the penalty.
        classes: number of classes.
    """

    features: NDArray[Any]
    labels: NDArray[np.int64]
    parts: Parts
    groups: NDArray[np.int64]
    strength: float
    classes: int

    def fitted_on(self, share: float) -> Trial:
        """Return how well probes do that are fitted on a share of each part's training images."""
        started = time.perf_counter()
        scores = []
        for before, after in self.parts:
            chosen = before[_share_of(self.groups[before], share)]
            probe = fitted(self.features[chosen], self.labels[chosen], self.classes, self.strength)
            multi_label = self.labels.ndim == 2
            scores.append(probe.scores(self.features[after], multi_label=multi_label))
        return Trial(
            name=f"{share:.0%} of the training images",
            spec=FineTuneSpec(),
            scores=np.concatenate(scores),
            labels=np.concatenate([self.labels[after] for _, after in self.parts]),
            seconds=time.perf_counter() - started,
        )


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """How well the head alone does with fewer images.

    Attributes:
        evidence: an `Evidence` for each share of the training images.
        reason: what it says about more images and, by the recipes that were tried, about depth.
    """

    evidence: tuple[Evidence, ...]
    reason: str

    def plot(self) -> Any:
        """Return a `matplotlib.figure.Figure` of the evidence. It needs the extra `plots`."""
        return plots.of_evidence(self.evidence, "above that of all images")

    def __str__(self) -> str:
        return f"{table(self.evidence, _ALL)}\n\n{self.reason}"

    def _repr_html_(self) -> str:
        return view("Learning curve", self.evidence, _ALL, self.reason)


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
        probed: features and labels, for `learning_curve`.
        backbone: the backbone as it was passed; of several, the one that is recommended.
        backbones: of several, and with `depths=True`, an `Evidence` for each one that was probed,
            the smallest first.
    """

    head: keras.Layer = field(repr=False)
    specs: tuple[FineTuneSpec, ...]
    keywords: Mapping[str, Any]
    evidence: tuple[Evidence, ...] = field(repr=False)
    reason: str
    probed: Probed = field(repr=False)
    backbone: Any = field(repr=False, default=None)
    backbones: tuple[Evidence, ...] = field(repr=False, default=())

    def learning_curve(self) -> LearningCurve:
        """Return how well the head alone does with a quarter, a half and all of the images.

        It says whether more images would help, and whether training blocks helps. Print it for a
        table. It takes a few logistic regressions, no training.
        """
        trials = [self.probed.fitted_on(share) for share in _SHARES]
        order = np.concatenate([after for _, after in self.probed.parts])
        groups = self.probed.groups[order]
        rows = evidence_of(trials, groups, len(trials) - 1, None)
        difference, error = paired(trials[-2], trials[-1], groups)
        says = "which does not show whether more images would help"
        if difference > 2 * error:
            says = "so more images will probably help"
        text = (
            "Half of the training images instead of all change the loss of the head alone by "
            f"{change(difference, error, '+')}, {says}."
        )
        return LearningCurve(rows, f"{text} {self._of_depth()}")

    def _of_depth(self) -> str:
        """Say whether training blocks helps, by the best recipe that was tried on all images."""
        head, *others = self.evidence
        best = min((e for e in others if e.images == head.images), key=lambda e: e.loss)
        difference = best.loss - head.loss
        error = head.error if math.isnan(best.error) else best.error
        says = "which does not show whether training blocks helps"
        if abs(difference) > 2 * error:
            says = f"so training blocks {'helps' if difference < 0 else 'does not help'}"
        return f"Training {best.recipe} changes it by {change(difference, error, '+')}, {says}."

    def plot(self) -> Any:
        """Return a `matplotlib.figure.Figure` of the evidence. It needs the extra `plots`.

        Save it with `plot().savefig("evidence.png")`. The losses have bars of one standard error;
        circles are open for recipes that were tried on the first fold only.
        """
        return plots.of_evidence(self.evidence, _LOWEST)

    def __str__(self) -> str:
        heads = [table(self.backbones, _LOWEST, "backbone")] if self.backbones else []
        return "\n\n".join([*heads, table(self.evidence, _LOWEST), self.reason])

    def _repr_html_(self) -> str:
        chosen = next(each.recipe for each in self.evidence if each.recommended)
        heads = view("Backbones", self.backbones, _LOWEST, "") if self.backbones else ""
        return heads + view(f"Recommended: {chosen}", self.evidence, _LOWEST, self.reason)


def _share_of(groups: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Return the indices of a share of the images, whole groups, the same on each call."""
    names = np.unique(groups)
    order = np.random.default_rng(0).permutation(names)
    chosen = order[: max(1, round(share * len(names)))]
    return np.flatnonzero(np.isin(groups, chosen))


def choose(tried: Sequence[Trial], groups: NDArray[np.int64]) -> tuple[int, int]:
    """Return the numbers of the recommended trial and of the one with the lowest loss.

    Recommended is the first, and so the simplest, whose loss is not above the lowest by more than
    one standard error. Only trials on all images compete.
    """
    whole = _whole(tried, groups)
    lowest = min(whole, key=lambda i: tried[i].loss)
    for i in whole:
        difference, error = paired(tried[i], tried[lowest], groups)
        if i == lowest or difference <= error:
            return i, lowest
    return lowest, lowest


def _whole(tried: Sequence[Trial], groups: NDArray[np.int64]) -> list[int]:
    """Return the numbers of the trials that predicted all images."""
    return [i for i, trial in enumerate(tried) if len(trial.losses) == len(groups)]


def recommendation(
    tried: Sequence[Trial],
    probed: Probed,
    head: keras.Layer,
    used: Mapping[str, Any],
) -> Recommendation:
    """Return the recommendation that follows from trials.

    Args:
        tried: the trials, the simplest first; the first trains the head alone.
        probed: what the head was fitted on.
        head: the head that was fitted on all training images.
        used: arguments of `fine_tune` that the trials had.
    """
    groups = probed.groups[np.concatenate([after for _, after in probed.parts])]
    number, lowest = choose(tried, groups)
    trial = tried[number]
    return Recommendation(
        head=head,
        specs=(trial.spec,),
        keywords={**used, "calibrate": trial.temperature},
        evidence=evidence_of(tried, groups, lowest, number),
        reason=_reason(tried, number, lowest, groups),
        probed=probed,
    )


def _reason(tried: Sequence[Trial], number: int, lowest: int, groups: NDArray[np.int64]) -> str:
    """Say why, how sure that is, and how many images would tell more."""
    name = tried[number].name
    if number != lowest:
        rival = lowest
        difference, error = paired(tried[number], tried[rival], groups)
        text = (
            f"Recommended is {name}: the simplest recipe within one standard error of the lowest "
            f"loss, that of {tried[rival].name} (lower by {change(difference, error)})."
        )
    else:
        whole = [i for i in _whole(tried, groups) if i != number]
        rival = min(whole, key=lambda i: tried[i].loss)
        difference, error = paired(tried[rival], tried[number], groups)
        text = (
            f"Recommended is {name}: it has the lowest validation loss. Next is "
            f"{tried[rival].name} (higher by {change(difference, error)})."
        )
    if difference > 2 * error:
        return f"{text} The difference is above two standard errors."
    count = len(tried[number].losses)
    needed = count * (2 * error / difference) ** 2 if difference > 0 else math.inf
    verb = "is" if count == 1 else "are"
    text += f" {plural(count, 'validation image')} {verb} too few to decide between them"
    if needed > 100 * count:
        return f"{text}."
    return (
        f"{text}; it would take about {math.ceil(needed):,} in all, if the difference is as large "
        "as it seems."
    )
