"""A built model, its plan and images come in; what trains and a loader of its inputs go out.

The frozen part is run once for each image, here, through `_features`; where it cannot be, the whole
model and its pixels are what goes out. This room decides what is computed from what; it does not
know how features are kept, nor how the rest is trained.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import WORKERS, Load
from finetune_kit._data.decoding import DECODING
from finetune_kit._data.images import ImageSet, content_digests
from finetune_kit._data.split import Split
from finetune_kit._features.store import Entry, Features, earlier_cuts, row_name
from finetune_kit._model.digest import described
from finetune_kit._model.graph import random_states
from finetune_kit._model.plan import FreezePlan
from finetune_kit._model.surgery import cut_after, shift_pure_front

Decode: TypeAlias = Callable[[NDArray[np.int64]], Any]


@dataclass(frozen=True, eq=False)
class Trained:
    """The model that `fit` trains, and what loads its inputs."""

    model: keras.Model
    train: Load
    validation: Load
    threads: int  # pixels are decoded, features only copied


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Layers that change pixels at random, and how many versions of an image are kept."""

    layer: keras.Layer
    views: int
    seed: int
    _lock: Any = field(default_factory=threading.Lock)

    def __call__(self, pixels: NDArray[Any], keys: list[tuple[str, int]]) -> NDArray[np.uint8]:
        """Change each image by itself, its draws from (seed, image, view): the same at any time."""
        changed = []
        with self._lock:  # the state of a random generator belongs to the layer
            states = random_states(self.layer)
            for image, (digest, view) in zip(pixels, keys, strict=True):
                drawn = np.random.default_rng((self.seed, view, int(digest[:16], 16)))
                for state in states:
                    state.assign(drawn.integers(0, 2**31, 2, np.uint32))
                made = self.layer(keras.ops.cast(image[None], "float32"), training=True)
                changed.append(keras.ops.convert_to_numpy(made)[0])
        made_of = np.stack(changed)
        if made_of.shape != pixels.shape:
            raise ValueError(
                f"`augmentation` must keep the shape of the images, {pixels.shape[1:]}. "
                f"Received: {self.layer.name!r}, which gives {made_of.shape[1:]}"
            )
        if pixels.max() > 1 and 0 < np.abs(made_of).max() <= 1:
            raise ValueError(
                "`augmentation` must keep pixels in their range of 0-255; rescaling is part of "
                f"`preprocessing`. Received: {self.layer.name!r}, which gives values from "
                f"{made_of.min():.3g} to {made_of.max():.3g}"
            )
        return np.clip(np.rint(made_of), 0, 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Source:
    """The images of a run and where their features are kept (`folder` None: nowhere)."""

    images: ImageSet
    split: Split
    size: tuple[int, int]
    batch_size: int
    verbose: str | int
    folder: Path | None
    dtype: str = "float32"
    augmentation: Augmentation | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0})

    def trained(self, whole: keras.Model, plan: FreezePlan) -> Trained:
        """Compute what is frozen and not there yet, going on from what is there."""
        if self.folder is None:
            return Trained(whole, self._pixels, self._pixels, WORKERS)
        digests = self._digests
        if self.augmentation is None:
            model, features = self._features(whole, plan, digests, self._decode)
            train = validation = _plain(features)
        else:
            drawn = self._views(digests)
            decode = self._decode_views(digests)
            model, features = self._features(whole, plan, drawn, decode)
            train = self._drawn(features)
            kept = {i: digests[i] for i in self.split.validation.tolist()}
            _, features = self._features(whole, plan, kept, self._decode)
            validation = _plain(features)
        return Trained(model, train, validation, 0)

    @cached_property
    def _digests(self) -> dict[int, str]:
        both = np.concatenate([self.split.train, self.split.validation])
        return dict(zip(both.tolist(), content_digests(self.images, both), strict=True))

    def _features(
        self, whole: keras.Model, plan: FreezePlan, rows: Mapping[int, str], decode: Decode
    ) -> tuple[keras.Model, Features]:
        """The model behind the frozen part, and the features that it takes."""
        assert self.folder is not None
        names = prefix_names(plan)
        prefix, suffix = _split(whole, names, plan)
        entry = self._entry(prefix, names, rows)
        todo = {i: rows[i] for i in entry.missing.tolist()}
        if todo:
            model, load = self._shortest(whole, plan, todo) or (prefix, decode)
            entry.fill(model, load, self.batch_size, self.verbose)
        return suffix, entry.features()

    def _shortest(
        self, whole: keras.Model, plan: FreezePlan, rows: Mapping[int, str]
    ) -> tuple[keras.Model | None, Decode] | None:
        """The way to the features from the nearest earlier ones that are there for all rows."""
        if self.folder is None or self.dtype != "float32":  # what is rounded is no start
            return None
        names = prefix_names(plan)
        earlier = [there for there in earlier_cuts(self.folder) if there < names]
        for cut in sorted(earlier, key=len, reverse=True):
            first, rest = _split(whole, cut, None)
            there = self._entry(first, cut, rows)
            if not len(there.missing):
                return _split(rest, names, plan)[0], there.features().load
        return None

    def _entry(
        self, prefix: keras.Model | None, names: frozenset[str], rows: Mapping[int, str]
    ) -> Entry:
        assert self.folder is not None
        about = {**DECODING, "size": list(self.size)}
        return Entry(self.folder, prefix, names, (*self.size, 3), about, rows, self.dtype)

    def _pixels(self, indices: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        return self.images.load(indices, self.size)

    def _decode(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        begun = time.perf_counter()
        pixels = self.images.load(indices, self.size)
        self.seconds["decode"] += time.perf_counter() - begun  # of all threads, added up
        return pixels

    def _views(self, digests: Mapping[int, str]) -> dict[int, str]:
        """View v of image i is at position i * views + v; its name tells all that it is made of."""
        augmentation = self.augmentation
        assert augmentation is not None
        made_by = described(augmentation.layer)
        return {
            i * augmentation.views + v: row_name(digests[i], made_by, augmentation.seed, v)
            for i in self.split.train.tolist()
            for v in range(augmentation.views)
        }

    def _decode_views(self, digests: Mapping[int, str]) -> Decode:
        augmentation = self.augmentation
        assert augmentation is not None

        def decode(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
            indices, views = np.divmod(positions, augmentation.views)
            keys = [(digests[i], v) for i, v in zip(indices.tolist(), views.tolist(), strict=True)]
            return augmentation(self._decode(indices), keys)

        return decode

    def _drawn(self, features: Features) -> Load:
        """One view of each image, drawn for each epoch."""
        augmentation = self.augmentation
        assert augmentation is not None

        def load(indices: NDArray[np.int64], epoch: int) -> Any:
            draw = np.random.default_rng((augmentation.seed, epoch, 1))
            views = draw.integers(augmentation.views, size=len(self.images))
            return features.load(indices * augmentation.views + views[indices])

        return load


def frozen_values(backbone: keras.Model, plan: FreezePlan) -> dict[str, str]:
    """A digest of each variable of the backbone that the plan says will stay."""
    moving = {*plan.trainable_variables, *plan.moving_statistics}
    return {v.path: _digest(v) for v in backbone.weights if v.path not in moving}


def check_frozen(backbone: keras.Model, before: Mapping[str, str]) -> None:
    """Refuse a run in which one of these variables is no longer what it was."""
    moved = [v.path for v in backbone.weights if v.path in before and _digest(v) != before[v.path]]
    if moved:
        raise RuntimeError(
            "After training, each variable that the plan holds must be bit-identical. "
            f"{len(moved)} are not: {', '.join(moved[:5])}. A callback that sets `trainable` or "
            "assigns weights of frozen blocks does that: give `fine_tune` a list of specs instead"
        )


def _digest(variable: Any) -> str:
    value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    return hashlib.sha256(value.tobytes()).hexdigest()


def prefix_names(plan: FreezePlan) -> frozenset[str]:
    """What lies before the first block that trains, by name."""
    return frozenset(name for block in plan.blocks[: plan.prefix_blocks] for name in block.layers)


def _split(
    model: keras.Model, names: frozenset[str], plan: FreezePlan | None
) -> tuple[keras.Model | None, keras.Model]:
    """The model before and behind the operations of these names; None where there are none."""
    if not names:
        return None, model
    prefix, suffix = cut_after(model, names)
    if plan is not None and not any(plan.trainable):
        return shift_pure_front(prefix, suffix)
    return prefix, suffix


def _plain(features: Features) -> Load:
    return lambda indices, epoch: features.load(indices)
