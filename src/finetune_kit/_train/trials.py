"""Candidate recipes, each validated on images that its models were not trained on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache
from finetune_kit._features.frozen import FeatureSource
from finetune_kit._model.head import classification_head
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._text import plural
from finetune_kit._train.calibration import best_temperature, losses, tempered
from finetune_kit._train.fine_tune import fine_tune
from finetune_kit._train.probe import Parts, Probe
from finetune_kit._train.scores import scores_of_features
from finetune_kit._train.setup import Setup

_EPOCHS = 12
# Share of the blocks that train, learning rate. The simplest comes first.
_FAST = ((0.25, 3e-4), (0.5, 1e-4), (0.5, 3e-4))
_THOROUGH = ((0.25, 1e-4), *_FAST, (0.5, 5e-4), (0.75, 1e-4), (0.75, 3e-4))


@dataclass(frozen=True, eq=False)
class Trial:
    """A recipe, and how well it predicted images that its models were not trained on.

    Attributes:
        name: what it trains.
        spec: how.
        scores: predicted probabilities `(n, classes)`.
        labels: the true classes `(n,)`, or 0 and 1 for each label `(n, classes)`.
        seconds: how long it took.
    """

    name: str
    spec: FineTuneSpec
    scores: NDArray[np.float64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    seconds: float

    @cached_property
    def temperature(self) -> float:
        """The temperature that fits the images, see `fine_tune(calibrate=...)`."""
        return best_temperature(self.scores, self.labels)

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """The cross-entropy of each image after temperature scaling, `(n,)`."""
        softmax = self.labels.ndim == 1
        return losses(tempered(self.scores, self.temperature, softmax=softmax), self.labels)

    @property
    def loss(self) -> float:
        """Mean of the losses."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """Share of images (or of their labels) that are predicted right."""
        if self.labels.ndim == 1:
            return float((self.scores.argmax(axis=1) == self.labels).mean())
        return float(((self.scores > 0.5) == self.labels).mean())

    def followed_by(self, other: Trial) -> Trial:
        """Return the trial over the images of this one and of another of the same recipe."""
        return replace(
            self,
            scores=np.concatenate([self.scores, other.scores]),
            labels=np.concatenate([self.labels, other.labels]),
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True, eq=False)
class Task:
    """What candidates are tried on.

    Attributes:
        setup: backbone, images and options.
        source: what their features are computed from.
        parts: the indices of images to train on and to validate on, one pair for each part.
        kept: where the features are kept.
        preprocessing: as it was passed, so that the features are those of the training.
    """

    setup: Setup
    source: FeatureSource
    parts: Parts
    kept: FeatureCache | None
    preprocessing: Any

    def head(self, probe: Probe) -> keras.Layer:
        """Return a head with the weights of a probe."""
        shape = self.setup.backbone.output_shape
        head = head_for(shape, self.setup.train)
        head.build((None, *shape[1:]))
        head.layers[-1].set_weights([probe.kernel, probe.bias])
        return head

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `fine_tune` that all trials have."""
        setup = self.setup
        return {
            # The preprocessing of a trained model is part of its backbone.
            "preprocessing": setup.preprocessing if setup.origin else self.preprocessing,
            "batch_size": setup.batch_size,
            "features": self.kept,
            "seed": setup.seed,
            "verbose": 0,
        }

    def labels(self, parts: Parts) -> NDArray[np.int64]:
        """Return the labels of the validation images of some parts."""
        return np.concatenate([self.setup.images.labels[after] for _, after in parts])


@dataclass(frozen=True)
class Candidate:
    """A number of trailing blocks, and the learning rate."""

    blocks: int
    learning_rate: float

    @property
    def spec(self) -> FineTuneSpec:
        """What `fine_tune` is given."""
        return FineTuneSpec(
            self.blocks,
            epochs=_EPOCHS,
            learning_rate=self.learning_rate,
            schedule="one_cycle",
            keep="last",
        )

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{plural(self.blocks, 'block')} at {self.learning_rate:g}"


def head_for(shape: tuple[int | None, ...], images: ImageSet) -> keras.Sequential:
    """Return a head of one dense layer for a backbone with this output shape."""
    names, multi_label = images.class_names, images.multi_label
    pooling = "avg" if len(shape) == 4 else None
    head = classification_head(names, pooling=pooling, multi_label=multi_label)
    if len(shape) != 3:
        return head
    pool = keras.layers.GlobalAveragePooling1D(name="pooling")  # tokens of a transformer
    return keras.Sequential([pool, *head.layers], name="head")


def candidates(blocks: int, budget: str) -> list[Candidate]:
    """Return what is tried for a backbone with this number of blocks, the simplest first."""
    grid = _THOROUGH if budget == "thorough" else _FAST
    chosen = {Candidate(max(1, round(share * blocks)), rate) for share, rate in grid}
    return sorted(chosen, key=lambda each: (each.blocks, each.learning_rate))


def run(task: Task, candidate: Candidate, probes: Sequence[Probe], parts: Parts) -> Trial:
    """Train a candidate on each part, from the head of its probe, and predict the other images."""
    started = time.perf_counter()
    setup = task.setup
    scores = []
    for probe, (before, after) in zip(probes, parts, strict=True):
        sets = setup.images.take(before), setup.images.take(after)
        try:
            head = task.head(probe)
            tuned = fine_tune(setup.backbone, head, candidate.spec, *sets, **task.options)
        except KeyboardInterrupt:  # its message is about `run_dir`
            hint = "interrupted; a folder as features= keeps the features for the next call"
            raise KeyboardInterrupt(hint) from None
        source = replace(task.source, cuts={})  # the parts of this model are not needed again
        scores.append(scores_of_features(source, tuned.model, tuned.plan, after))
    return Trial(
        name=candidate.name,
        spec=candidate.spec,
        scores=np.concatenate(scores),
        labels=task.labels(parts),
        seconds=time.perf_counter() - started,
    )
