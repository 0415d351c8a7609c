"""The settings of a run, as one frozen value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras

from finetune_kit._data.images import ImageSet
from finetune_kit._features.augmentation import Augmentation
from finetune_kit._features.cache import FeatureCache, place_of
from finetune_kit._features.frozen import FeatureSource
from finetune_kit._model.copying import copy
from finetune_kit._model.digest import fingerprint, variable_digest
from finetune_kit._model.flattening import flattened
from finetune_kit._model.plan import FreezePlan
from finetune_kit._model.preprocessing import pixel_range
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._model.state import is_stochastic
from finetune_kit._train.objective import Choices
from finetune_kit._train.optimizer import Optimizers


@dataclass(frozen=True)
class Phase:
    """One phase of a run: its number from 1, its spec, and what that means for the backbone."""

    number: int
    spec: FineTuneSpec
    plan: FreezePlan


@dataclass(frozen=True, eq=False)
class Setup:
    """The settings of a run. Backbone, head and layers are the run's own copies once it starts."""

    backbone: keras.Model
    head: keras.Layer
    preprocessing: keras.Layer | None
    phases: tuple[Phase, ...]
    train: ImageSet
    validation: ImageSet | None
    size: tuple[int, int]
    batch_size: int
    choices: Choices
    optimizer: Any
    class_weight: Mapping[int, float] | None
    callbacks: Sequence[keras.callbacks.Callback]
    augmentation: Augmentation | None
    cache: FeatureCache | None
    calibrate: bool | float
    seed: int
    verbose: str | int
    digests: tuple[str, ...]  # SHA-256 of the backbone's weights before training, in their order
    origin: Mapping[str, Any] | None  # the trained model that the training starts from
    seen_before: frozenset[str]  # images of earlier trainings, by their shortened digests

    def copied(self) -> Setup:
        """Return the same settings with copies of backbone, head and augmentation.

        They are made after the random seed was set, because copying draws initial weights. The
        layers of the copies have different names, and so their variables have different paths.
        """
        names: set[str] = set()
        backbone, head = copy(self.backbone, names), copy(self.head, names)
        drawn = self.augmentation
        return replace(
            self,
            backbone=backbone,
            head=head,
            augmentation=drawn and replace(drawn, layer=drawn.layer and copy(drawn.layer)),
            phases=tuple(replace(p, plan=p.spec.plan(backbone)) for p in self.phases),
        )

    def source(self, kept: FeatureCache | None) -> FeatureSource:
        """Return what the features are computed from; `kept`: the cache, which is open, or None."""
        return FeatureSource(
            images=self.images,
            train_count=len(self.train),
            size=self.size,
            batch_size=self.batch_size,
            verbose=self.verbose,
            place=None if kept is None else place_of(kept),
            dtype="float32" if kept is None else kept.dtype,
            backend=None if kept is None else kept.backend,
            augmentation=self._views,
            seed=self.seed,
            digests=() if kept is None else self.images.digests(),
            weights={id(v): digest for v, digest in self._constant},
        )

    @cached_property
    def images(self) -> ImageSet:
        """The training images, then the validation images."""
        return joined_sets(self.train, self.validation)

    @property
    def _views(self) -> Augmentation | None:
        """The augmentation, if copies of the images are kept."""
        drawn = self.augmentation
        return None if drawn is None or drawn.layer is None else drawn

    @property
    def mixup(self) -> float:
        """How much features are mixed, see `Augmentation`; 0: not at all."""
        return 0.0 if self.augmentation is None else self.augmentation.mixup

    @property
    def _constant(self) -> list[tuple[Any, str]]:
        """The backbone's variables that stay the same in all phases, with their digests."""
        moving = {path for phase in self.phases for path in _moving_paths(phase.plan)}
        pairs = zip(self.backbone.weights, self.digests, strict=True)
        return [(v, digest) for v, digest in pairs if v.path not in moving]

    def frozen_digests(self, phase: Phase) -> dict[str, str]:
        """Return digests of the variables that stay the same in a phase, by path."""
        moving, known = _moving_paths(phase.plan), {v.path: digest for v, digest in self._constant}
        return {
            v.path: known.get(v.path) or variable_digest(v)
            for v in self.backbone.weights
            if v.path not in moving
        }

    def left_out(self, phase: Phase) -> frozenset[str]:
        """Return the frozen layers that only add randomness, which a phase leaves out, by name."""
        plan = phase.plan
        blocks = zip(plan.blocks, plan.trainable, strict=True)
        frozen = {name for block, trains in blocks if not trains for name in block.layers}
        operations = flattened(self.backbone).operations
        return frozenset(op.name for op in operations if op.name in frozen and is_stochastic(op))

    def moving(self, whole: keras.Model, phase: int) -> dict[str, Any]:
        """Return the variables that may have moved up to a phase, by their place in the model.

        A place, because the layers of a head may have other names in another process.
        """
        moving = {path for p in self.phases[:phase] for path in _moving_paths(p.plan)}
        held = {id(v) for v in self.backbone.weights if v.path not in moving}
        return {str(i): v for i, v in enumerate(whole.weights) if id(v) not in held}

    def identity(self) -> dict[str, Any]:
        """Return what decides the result of the run, as plain values."""
        layer = self.preprocessing
        drawn = self._views
        weights = {id(v): d for v, d in zip(self.backbone.weights, self.digests, strict=True)}
        return {
            "specs": [_identity(phase.spec) for phase in self.phases],
            "backbone": fingerprint(self.backbone, weights),
            "head": fingerprint(self.head),
            "preprocessing": None if layer is None else fingerprint(layer),
            "class_names": list(self.train.class_names),
            **_contents("train", self.train),
            **_contents("validation", self.validation),
            "batch_size": self.batch_size,
            "optimizer": Optimizers(self.optimizer).config,
            "objective": self.choices.config,
            "class_weight": self.class_weight,
            "augmentation": None if drawn is None else [fingerprint(drawn.layer), drawn.views],
            **({"mixup": self.mixup} if self.mixup else {}),
            "features": self.cache and self.cache.dtype,
            **({"features by": self.cache.backend} if self.cache and self.cache.backend else {}),
            "seed": self.seed,
            "keras": [keras.__version__, keras.backend.backend()],
        }

    def settings(self, kept_epoch: int) -> dict[str, Any]:
        """Return how the model was trained, for `FineTuned.settings` and reports."""
        drawn, chosen = self._views, self.choices.config
        name = getattr(drawn and drawn.layer, "name", None)
        low, high = pixel_range(self.preprocessing, self.backbone)
        return {
            "specs": [phase.spec.to_dict() for phase in self.phases],
            "optimizer": Optimizers(self.optimizer).config,
            "batch_size": self.batch_size,
            "loss": chosen["loss"] or "the cross-entropy that fits the head",
            "metrics": ["accuracy"] if chosen["metrics"] is None else chosen["metrics"],
            "class_weight": self.class_weight,
            "preprocessing": f"pixels from 0 to 255 become {low:.3g} to {high:.3g}",
            "augmentation": drawn and f"{name}, {drawn.views} copies of each image",
            **({"mixup": self.mixup} if self.mixup else {}),
            "seed": self.seed,
            "started_from": self.origin,
            "kept_epoch": kept_epoch,
        }


def _identity(spec: FineTuneSpec) -> dict[str, Any]:
    """Return a spec as plain values, without those that earlier versions did not have."""
    newer = ("schedule", "warmup")
    return {name: value for name, value in spec.to_dict().items() if value or name not in newer}


def _moving_paths(plan: FreezePlan) -> set[str]:
    return {*plan.trainable_variables, *plan.moving_statistics}


def joined_sets(train: ImageSet, validation: ImageSet | None) -> ImageSet:
    """Return the training images, then the validation images, as one set."""
    return train if validation is None else _without_groups(train) + _without_groups(validation)


def _without_groups(images: ImageSet) -> ImageSet:
    """Return the set without groups: training does not need them, and any two can be joined."""
    return ImageSet(images.source, images.labels, images.class_names, rows=images.rows)


def _contents(part: str, images: ImageSet | None) -> dict[str, Any]:
    """Return contents, labels and order of a set, as a digest."""
    if images is None:
        return {f"{part} images": 0}
    pairs = json.dumps([list(images.digests()), images.labels.tolist()])
    return {
        f"{part} images": len(images),
        f"{part} data": hashlib.sha256(pairs.encode()).hexdigest(),
    }
