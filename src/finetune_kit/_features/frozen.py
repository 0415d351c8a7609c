"""Compute the frozen part once for each image, so that only the rest is trained.

What is computed once is the prefix: all operations before the first block that trains. Where there
is no cache, the whole model is trained on pixels instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import WORKERS
from finetune_kit._data.decoding import DECODING
from finetune_kit._data.images import ImageSet
from finetune_kit._features.augmentation import Augmentation, views_of_epoch
from finetune_kit._features.cache import FeatureCache, place_of
from finetune_kit._features.engine import engine_key
from finetune_kit._features.entry import Entry, Features, Inputs, entry_place
from finetune_kit._features.inputs import Decode, Views
from finetune_kit._features.place import Place
from finetune_kit._features.rows import Rows
from finetune_kit._features.store import FORMAT, entry_places
from finetune_kit._features.writing import Seconds
from finetune_kit._model.digest import fingerprint
from finetune_kit._model.graph import layers_within
from finetune_kit._model.plan import FreezePlan
from finetune_kit._model.surgery import cut_after, extend_prefix
from finetune_kit._processes import agree, share
from finetune_kit._text import plural


@dataclass(frozen=True, eq=False)
class PlainFeatures:
    """Loads features by the position of their image, the same in each epoch."""

    features: Features

    def load(self, indices: NDArray[np.int64], epoch: int) -> Any:
        """Return the features of some images."""
        return self.features.load(indices)


@dataclass(frozen=True, eq=False)
class ViewFeatures:
    """Loads the features of one augmented copy of each image, another one in each epoch."""

    features: Features
    views: int
    seed: int
    count: int

    def load(self, indices: NDArray[np.int64], epoch: int) -> Any:
        """Return the features of the copies that the epoch uses."""
        chosen = views_of_epoch(self.seed, epoch, self.count, self.views)
        return self.features.load(indices * self.views + chosen[indices])


@dataclass(frozen=True, eq=False)
class Trainee:
    """The model that `fit` trains, and what loads its inputs by the position of the image."""

    model: keras.Model
    train: Decode | PlainFeatures | ViewFeatures
    validation: Decode | PlainFeatures
    threads: int  # pixels are decoded in threads, features are only copied
    computed: int = 0  # rows of features that were not there yet
    seconds: Seconds = field(default_factory=Seconds)  # that this took


@dataclass(frozen=True, eq=False)
class FeatureSource:
    """What the features of a run are computed from, and where they are kept.

    Attributes:
        images: the training images, then the validation images.
        train_count: how many of them are training images.
        size: height and width in pixels.
        batch_size: images that the prefix computes at once.
        verbose: of the progress bar.
        place: of the cache; None: the whole model is trained on pixels.
        dtype: how features are stored.
        backend: the Keras backend that computes the prefix; None: that of the training.
        augmentation: of the training images, or None.
        seed: of the augmentation.
        digests: SHA-256 of the images.
        weights: SHA-256 of variables that stay the same during the run, by their `id`.
        threads: how many threads decode images.
        cuts: the parts of models that were cut before, by model and cut, so that each is cut and
            compiled once; and the fingerprints of parts whose variables stay the same.
    """

    images: ImageSet
    train_count: int
    size: tuple[int, int]
    batch_size: int
    verbose: str | int
    place: Place | None
    dtype: str
    backend: str | None
    augmentation: Augmentation | None
    seed: int
    digests: tuple[str, ...]
    weights: Mapping[int, str]
    threads: int = WORKERS
    cuts: dict[Any, Any] = field(default_factory=dict)

    def trainee(self, whole: keras.Model, plan: FreezePlan) -> Trainee:
        """Compute the features that are not there yet, and return what trains on them."""
        decode = Decode(self.images, self.size, self.threads)
        if self.place is None:
            return Trainee(whole, decode, decode, WORKERS)
        cache = self.place
        if self.augmentation is None:
            rows = Rows.named(np.arange(len(self.digests)), self.digests)
            model, features, count, seconds = self._features(cache, whole, plan, rows, decode)
            plain = PlainFeatures(features)
            return Trainee(model, plain, plain, 0, count, seconds)
        images, number = self.train_count, self.augmentation.views
        views = Views(decode, self.augmentation, self.digests, self.seed)
        model, copies, count, seconds = self._features(
            cache, whole, plan, views.rows(images), views
        )
        rest = Rows.named(np.arange(images, len(self.digests)), self.digests[images:])
        _, features, more, longer = self._features(cache, whole, plan, rest, decode)
        train = ViewFeatures(copies, number, self.seed, images)
        plain = PlainFeatures(features)
        return Trainee(model, train, plain, 0, count + more, seconds + longer)

    def _features(
        self,
        cache: Place,
        whole: keras.Model,
        plan: FreezePlan,
        rows: Rows,
        inputs: Inputs,
    ) -> tuple[keras.Model, Features, int, Seconds]:
        """Return the model behind the prefix, its features, how many were computed, and seconds."""
        names = prefix_names(plan)
        prefix, suffix = self._split(whole, names, plan)
        computed, seconds = 0, Seconds()
        for part in _share_then_all(rows):
            entry = self._entry(cache, prefix, names, part)
            if count := len(entry.missing):
                nearest = self._nearest(cache, whole, plan, entry.missing, inputs)
                model, start = nearest or (prefix, inputs)
                noun = "augmented image" if isinstance(inputs, Views) else "image"
                if model is not None:
                    last = plan.blocks[plan.prefix_blocks - 1].name
                    self._say(f"Computing the frozen part up to {last}", plural(count, noun))
                options = self.batch_size, self.verbose, self.backend
                seconds += entry.fill(model, start, *options)
                computed += count
        features = Features(entry, prefix, inputs, self.batch_size, self.backend)
        return suffix, features, computed, seconds

    def outputs(self, model: keras.Model) -> Features:
        """Return the outputs of a model that takes pixels, computed once for each image."""
        rows = Rows.named(np.arange(len(self.digests)), self.digests)
        inputs = Decode(self.images, self.size)
        entry = self._entry(self.place or Place(Path()), model, frozenset(), rows)
        if count := len(entry.missing):
            self._say("Computing features", plural(count, "image"))
            entry.fill(model, inputs, self.batch_size, self.verbose, self.backend)
        return Features(entry, model, inputs, self.batch_size, self.backend)

    def _say(self, what: str, count: str) -> None:
        if self.verbose:
            print(f"{what}, once for each of {count}:", flush=True)

    def _nearest(
        self, cache: Place, whole: keras.Model, plan: FreezePlan, rows: Rows, inputs: Inputs
    ) -> tuple[keras.Model | None, Inputs] | None:
        """Return the way to the features from the deepest earlier cut that holds all rows."""
        if self.dtype != "float32":  # rounded features are not a start
            return None
        names = prefix_names(plan)
        earlier = [cut for cut in _earlier_cuts(cache) if cut < names]
        for cut in sorted(earlier, key=len, reverse=True):
            first, rest = self._split(whole, cut, None)
            entry = self._entry(cache, first, cut, rows)
            if not entry.missing:
                features = Features(entry, first, inputs, self.batch_size, self.backend)
                return self._split(rest, names, plan)[0], features
        return None

    def _split(
        self, model: keras.Model, names: frozenset[str], plan: FreezePlan | None
    ) -> tuple[keras.Model | None, keras.Model]:
        """Cut a model as `_split` does, once."""
        key = (model, names, plan is not None and not any(plan.trainable))
        if key not in self.cuts:
            self.cuts[key] = _split(model, names, plan)
        return self.cuts[key]

    def _fingerprint(self, prefix: keras.Model) -> str:
        """Return the fingerprint of a prefix, computed once if its variables stay the same."""
        found = self.cuts.get(prefix) or fingerprint(prefix, self.weights)
        if all(id(variable) in self.weights for variable in prefix.weights):
            self.cuts[prefix] = found
        return str(found)

    def _entry(
        self,
        cache: Place,
        prefix: keras.Model | None,
        names: frozenset[str],
        rows: Rows,
    ) -> Entry:
        if prefix is None:
            shapes, dtype, model = [(*self.size, 3)], "uint8", "pixels"
        else:
            shapes, dtype = [tuple(x.shape[1:]) for x in prefix.outputs], self.dtype
            model = prefix.name.removesuffix("_prefix")
            _check_fixed(shapes, prefix.name)
        key = {
            **DECODING,
            "size": list(self.size),
            "prefix": None if prefix is None else self._fingerprint(prefix),
            **({"keras": None} if prefix is None else engine_key(self.backend)),
            "dtype": dtype,
            **_revision(prefix),
        }
        about = {"model": model, "layers": sorted(names), "shapes": shapes, "dtype": dtype}
        return Entry(entry_place(cache, key), {"format": FORMAT, **about}, rows)


def source_of(
    images: ImageSet,
    cache: FeatureCache,
    size: tuple[int, int],
    batch_size: int,
    verbose: str | int,
) -> FeatureSource:
    """Return the source of features of images that are not augmented; `cache` is open."""
    return FeatureSource(
        images=images,
        train_count=len(images),
        size=size,
        batch_size=batch_size,
        verbose=verbose,
        place=place_of(cache),
        dtype=cache.dtype,
        backend=cache.backend,
        augmentation=None,
        seed=0,
        digests=images.digests(),
        weights={},
    )


def _share_then_all(rows: Rows) -> Iterator[Rows]:
    """Yield what this process computes; where several train, its share before all rows."""
    number, count = share()
    if count > 1:
        yield rows.share(number, count)
        agree("compute the same features", str(rows.names.tobytes()))  # then the rest is there too
    yield rows


def _revision(prefix: keras.Model | None) -> dict[str, int]:
    """Return what sets features apart from those that an earlier version computed wrongly.

    On TensorFlow, copies of adapted Normalization layers had lost their mean and variance.
    """
    layers = [] if prefix is None else layers_within(prefix)
    adapted = any(isinstance(layer, keras.layers.Normalization) for layer in layers)
    return {"revision": 2} if adapted else {}


def prefix_names(plan: FreezePlan) -> frozenset[str]:
    """Return the names of the operations before the first block that trains."""
    return frozenset(name for block in plan.blocks[: plan.prefix_blocks] for name in block.layers)


def _earlier_cuts(cache: Place) -> set[frozenset[str]]:
    """Return the operations that the entries of a cache lie behind: candidates, by name only."""
    return {frozenset(about["layers"]) for _, about in entry_places(cache) if about}


def _split(
    model: keras.Model, names: frozenset[str], plan: FreezePlan | None
) -> tuple[keras.Model | None, keras.Model]:
    """Return the model before and behind some operations; None where there are none."""
    if not names:
        return None, model
    prefix, suffix = cut_after(model, names)
    if plan is not None and not any(plan.trainable):
        return extend_prefix(prefix, suffix)
    return prefix, suffix


def _check_fixed(shapes: list[tuple[Any, ...]], name: str) -> None:
    if any(None in shape for shape in shapes):
        raise ValueError(
            "The frozen part of `backbone` must return features of a fixed size to keep them; "
            f"pass features=False. Received: output shapes {shapes} of {name!r}"
        )
