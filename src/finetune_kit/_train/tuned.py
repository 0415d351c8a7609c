"""The result of a run: `FineTuned`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras

from finetune_kit._data.images import ImageSet
from finetune_kit._model.archive import save_with_facts
from finetune_kit._model.digest import fingerprint
from finetune_kit._model.plan import FreezePlan
from finetune_kit._text import plural
from finetune_kit._train.curves import of_tuned


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A trained model, and how it was trained. Made by `fine_tune` and `sweep`.

    Attributes:
        model: a plain `keras.Model` that takes raw RGB pixels from 0 to 255, `(n, h, w, 3)`, and
            returns probabilities `(n, num_classes)`. It is not compiled, because it is for
            prediction. To train it further with plain Keras, compile it.
        history: lists with one value for each epoch: `loss` and the metrics (`accuracy`), the same
            with the prefix `val_` if there were validation images, the number of the `epoch` and of
            its `phase`, both from 1, and what callbacks add; nan where an epoch has no value.
        plans: what was frozen and what trained, for each phase.
        timings: seconds for `build` (copying and compiling), `prefix` (computing the features of
            the frozen part, or finding them in the cache) and `fit`, with those before an
            interruption. `prefix` contains `prefix_compute`, the seconds of the backend, and
            `prefix_decode`, those of the threads that load images, divided by their number. The two
            overlap, so the larger one limits the speed.
        train: the images it was trained on.
        validation: the images it was validated on, or None.
        settings: how it was trained, as plain values: specs, optimizer, batch size, seed, the epoch
            whose weights were kept, and so on.
        seen_before: the images that earlier trainings of this model saw, as the first 16 digits of
            their SHA-256.
    """

    model: keras.Model
    history: Mapping[str, list[float]]
    plans: tuple[FreezePlan, ...]
    timings: Mapping[str, float]
    train: ImageSet
    validation: ImageSet | None
    settings: Mapping[str, Any]
    seen_before: frozenset[str] = frozenset()

    @property
    def seen(self) -> frozenset[str]:
        """The images of this and of earlier trainings, as the first 16 digits of their SHA-256."""
        return self.seen_before | {digest[:16] for digest in self.train.digests()}

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

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the model as a `.keras` file that also holds its class names, for `predict`.

        The file loads with Keras alone, on any backend. The class names and facts about the
        training are one more member of the archive, `finetune_kit.json`, which Keras ignores. A
        copy of the file keeps them; `keras.Model.save` writes a file without them.

        Args:
            path: a file that ends in `.keras`. Its folder is made if it does not exist. The file is
                written completely or not at all.

        Returns:
            The path.

        Raises:
            ValueError: if the path does not end in `.keras`.
            OSError: if it cannot be written.
        """
        facts = {
            "class_names": list(self.class_names),
            "multi_label": self.train.multi_label,
            "image_size": list(self.model.input_shape[1:3]),
            "backbone": self.plan.backbone,
            "training": dict(self.settings),
            "training_images": len(self.train),
            "manifest": self.manifest,
            "training_digests": sorted(self.seen),
            "sha256_of_graph_and_weights": fingerprint(self.model),
            "versions": {
                "finetune-kit": version("finetune-kit"),
                "keras": keras.__version__,
                "backend": keras.backend.backend(),
            },
        }
        return save_with_facts(self.model, path, facts)

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

    def _repr_html_(self) -> str:
        return of_tuned(repr(self), self.history, self.settings, self.timings)
