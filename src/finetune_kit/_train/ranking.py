"""Which of several backbones has the best features for some images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._features.cache import FeatureCache
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._train.evidence import Evidence, evidence_of
from finetune_kit._train.probe import Parts, Validated, validated
from finetune_kit._train.recommendation import choose
from finetune_kit._train.setup import Setup
from finetune_kit._train.trials import Task, Trial

STILL = 1e-6  # a learning rate that leaves a head as it is, up to three digits
_SAMPLE, _FINALISTS = 500, 3  # images that LogME looks at; backbones that are probed
_ROUNDS, _CHANGE = 100, 1e-4  # of LogME's fixed point


@dataclass(frozen=True, eq=False)
class Stage:
    """A backbone whose features were computed and probed.

    Attributes:
        task: what candidates are tried on.
        values: what the head takes, for all images.
        probes: heads that were fitted to the training images of each part.
        trial: how well they did.
    """

    task: Task
    values: NDArray[Any]
    probes: Validated
    trial: Trial


def probed(setup: Setup, parts: Parts, kept: FeatureCache | None, preprocessing: Any) -> Stage:
    """Compute the features of all images, and validate heads on them."""
    started = time.perf_counter()
    task = _task(setup, parts, kept, preprocessing)
    values, labels = _features(task), setup.images.labels
    probes = validated(values, labels, parts, len(setup.train.class_names))
    trial = Trial(
        name="the head alone",
        spec=FineTuneSpec(0, learning_rate=STILL),
        scores=probes.scores,
        labels=task.labels(parts),
        seconds=time.perf_counter() - started,
    )
    return Stage(task, values, probes, trial)


def finalists(setups: Sequence[Setup], kept: FeatureCache | None) -> list[int]:
    """Return the numbers of the three backbones whose features explain the labels best.

    LogME judges them by a sample of the training images.
    """
    if len(setups) <= _FINALISTS:
        return list(range(len(setups)))
    scores = []
    for setup in setups:
        order = np.random.default_rng(setup.seed).permutation(len(setup.train))
        sample = setup.train.take(np.sort(order[:_SAMPLE]))
        few = replace(setup, train=sample, validation=None, phases=setup.phases[:1])
        values = _features(_task(few, (), kept, None))
        scores.append(logme(values, sample.labels, len(sample.class_names)))
        if setup.verbose:
            print(f"{setup.backbone.name}: LogME {scores[-1]:.4f}", flush=True)
    return sorted(np.argsort(scores)[-_FINALISTS:].tolist())


def smallest(
    stages: Sequence[Stage], groups: NDArray[np.int64]
) -> tuple[int, tuple[Evidence, ...]]:
    """Return the number of the smallest backbone that is about as good as the best, and why.

    Args:
        stages: one or more backbones, probed on the same parts.
        groups: number of the group of each image, in the order of the predictions.
    """
    if len(stages) == 1:
        return 0, ()
    sizes = [stage.task.setup.backbone.count_params() for stage in stages]
    order = np.argsort(sizes, kind="stable").tolist()
    trials = [
        replace(
            stages[i].trial, name=f"{stages[i].task.setup.backbone.name}, {sizes[i]:,} parameters"
        )
        for i in order
    ]
    number, lowest = choose(trials, groups)
    return order[number], evidence_of(trials, groups, lowest, number)


def _task(setup: Setup, parts: Parts, kept: FeatureCache | None, preprocessing: Any) -> Task:
    keras.utils.set_random_seed(setup.seed)
    setup = setup.copied()
    return Task(setup, setup.source(kept), parts, kept, preprocessing)


def _features(task: Task) -> NDArray[Any]:
    """Compute what is frozen in all trials, and return what the head alone takes."""
    setup = task.setup
    for phase in sorted(setup.phases, key=lambda phase: phase.plan.prefix_blocks):
        whole = phase.spec.build(setup.backbone, setup.head, preprocessing=setup.preprocessing)
        trainee = task.source.trainee(whole, phase.plan)
    return np.asarray(trainee.validation.load(np.arange(len(setup.images)), 0))


def logme(features: NDArray[np.floating], labels: NDArray[np.int64], count: int) -> float:
    """Return how well linear models of features explain the labels, without fitting a classifier.

    LogME (You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning",
    ICML 2021): the logarithm of the evidence of a Bayesian linear regression, for one image, in the
    mean over the classes. Its two precisions are those with the highest evidence.

    Args:
        features: `(n, features)`.
        labels: class of each image `(n,)`, or 0 and 1 for each label `(n, classes)`.
        count: number of classes.
    """
    values = features.astype(np.float64)
    columns = labels if labels.ndim == 2 else np.eye(count)[labels]
    left, singular, _ = np.linalg.svd(values, full_matrices=False)
    return float(np.mean([_evidence(left, singular**2, y) for y in columns.T]))


def _evidence(
    left: NDArray[np.float64], squares: NDArray[np.float64], targets: NDArray[np.float64]
) -> float:
    """Return the highest evidence for one image: MacKay's fixed point of the two precisions."""
    n, along = len(targets), (left.T @ targets) ** 2
    beyond = max(float(targets @ targets - along.sum()), 0.0)
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        ratio = alpha / beta
        used = float((squares / (squares + ratio)).sum())
        length = float((squares * along / (squares + ratio) ** 2).sum())
        error = float((along / (1 + squares / ratio) ** 2).sum()) + beyond
        alpha = max(used, 1e-12) / max(length, 1e-12)  # constant features explain nothing
        beta = max(n - used, 1e-12) / max(error, 1e-12)
        if abs(alpha / beta - ratio) <= _CHANGE * ratio:
            break
    ratio = alpha / beta
    length = float((squares * along / (squares + ratio) ** 2).sum())
    error = float((along / (1 + squares / ratio) ** 2).sum()) + beyond
    total = len(squares) * np.log(alpha) - np.log(alpha + beta * squares).sum()
    total += n * np.log(beta / (2 * np.pi)) - beta * error - alpha * length
    return float(total / (2 * n))
