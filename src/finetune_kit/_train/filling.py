"""Compute features for any part of some images, with models that are built once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import keras

from finetune_kit._checks import check_kind
from finetune_kit._data.batches import WORKERS
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import as_cache, opened
from finetune_kit._features.frozen import prefix_names
from finetune_kit._model.head import classification_head
from finetune_kit._model.plan import FreezePlan
from finetune_kit._train.arguments import make_setup, unused_options
from finetune_kit._train.setup import Setup


def filling_setup(
    backbone: Any,
    specs: Any,
    images: ImageSet,
    features: Any,
    head: Any,
    preprocessing: Any,
    batch_size: int,
    verbose: str | int,
) -> Setup:
    """Check the arguments of `compute_features`, and return them as one value."""
    cache = as_cache(features)
    if cache is None or cache.folder is None:
        raise ValueError(
            "`features` must be a folder, or a FeatureCache with one. "
            f"Received: features={features!r}"
        )
    options: Mapping[str, Any] = {
        **unused_options(),
        "batch_size": batch_size,
        "preprocessing": preprocessing,
        "features": cache,
        "verbose": verbose,
    }
    check_kind("images", images, ImageSet, "see read_image_folder")
    if not len(images):
        raise ValueError("`images` must hold at least one image. Received: an empty ImageSet")
    if head is None and isinstance(backbone, keras.Model):
        head = classification_head(len(images.class_names), multi_label=images.multi_label)
    return make_setup(backbone, head, specs, images, None, options, labeled=False)


class Filling:
    """Fills a feature cache, part by part.

    Args:
        setup: the settings, see `filling_setup`.
        threads: how many threads decode images.
    """

    def __init__(self, setup: Setup, threads: int = WORKERS) -> None:
        self._given, self._threads = setup, threads
        self._cuts: dict[Any, Any] = {}  # for all parts

    def fill(self, chosen: Sequence[int]) -> dict[str, int]:
        """Compute what is missing for some of the images, by their indices; return the counts."""
        if not len(chosen):
            return {"images": 0, "computed": 0}
        setup, models = self._built
        setup = replace(setup, train=setup.train.take(chosen))
        computed = 0
        with opened(setup.cache, None) as kept:
            same = {id(v): d for v, d in zip(setup.backbone.weights, setup.digests, strict=True)}
            source = replace(
                setup.source(kept), threads=self._threads, cuts=self._cuts, weights=same
            )
            for whole, plan in models:
                computed += source.trainee(whole, plan).computed
        return {"images": len(chosen), "computed": computed}

    @cached_property
    def _built(self) -> tuple[Setup, list[tuple[keras.Model, FreezePlan]]]:
        """The settings with copies of the models, and the whole model of each spec.

        The spec that trains most comes first: the others start from its features.
        """
        setup = self._given.copied()
        phases = sorted(setup.phases, key=lambda phase: len(prefix_names(phase.plan)))
        layer = setup.preprocessing
        return setup, [
            (phase.spec.build(setup.backbone, setup.head, preprocessing=layer), phase.plan)
            for phase in phases
        ]
