"""The result of a run: `FineTuned`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from finetune_kit._data.images import ImageSet
from finetune_kit._model.plan import FreezePlan
from finetune_kit._text import plural


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A trained model, and how it was trained. Made by `fine_tune` and `sweep`.

    Attributes:
        model: a plain `keras.Model` that takes raw RGB pixels from 0 to 255, `(n, h, w, 3)`, and
            returns probabilities `(n, num_classes)`. It is not compiled: the file that `model.save`
            writes is for prediction, and loads with Keras alone on any backend. To train it
            further with plain Keras, compile it.
        history: lists with one value for each epoch: `loss` and the metrics (`accuracy`), the same
            with the prefix `val_` if there were validation images, the number of the `epoch` and of
            its `phase`, both from 1, and what callbacks add; nan where an epoch has no value.
        plans: what was frozen and what trained, for each phase.
        timings: seconds for `build` (copying and compiling), `prefix` (computing the features of
            the frozen part, or finding them in the cache) and `fit`.
        train: the images it was trained on.
        validation: the images it was validated on, or None.
        settings: how it was trained, as plain values: specs, optimizer, batch size, seed, the epoch
            whose weights were kept, and so on.
    """

    model: keras.Model
    history: Mapping[str, list[float]]
    plans: tuple[FreezePlan, ...]
    timings: Mapping[str, float]
    train: ImageSet
    validation: ImageSet | None
    settings: Mapping[str, Any]

    @property
    def plan(self) -> FreezePlan:
        """What was frozen and what trained, in the last phase."""
        return self.plans[-1]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes (or labels) in the order of the model's outputs."""
        return self.train.class_names

    @property
    def manifest(self) -> str | None:
        """Fingerprint of the manifest that lists the training images, or None."""
        return self.train.manifest

    def __repr__(self) -> str:
        kept = self.settings["kept_epoch"]
        last = {name: values[kept - 1] for name, values in self.history.items()}
        names = ("val_loss", "val_accuracy") if "val_loss" in last else ("loss", "accuracy")
        metrics = ", ".join(f"{name} {last[name]:.3f}" for name in names if name in last)
        blocks = plural(len(self.plan.blocks), "block")
        return (
            f"FineTuned({self.plan.backbone}: {sum(self.plan.trainable)} of {blocks} trained on "
            f"{plural(len(self.train), 'image')}; epoch {kept} of "
            f"{len(self.history['epoch'])} kept: {metrics})"
        )
