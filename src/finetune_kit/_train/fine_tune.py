"""Backbone, head, spec, images and split come in, a trained model goes out, in a straight line.

This room runs the others and decides nothing that they decide: what trains is the spec's word, what
pixels pass through is the preprocessing's, what is computed once is the frozen part's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from finetune_kit._checks import (
    check_choice,
    check_count,
    check_folder,
    check_indices,
    check_kind,
    image_size,
)
from finetune_kit._data.images import ImageSet, content_digests
from finetune_kit._data.split import PARTS, Split
from finetune_kit._features.frozen import Augmentation, Source
from finetune_kit._features.store import DTYPES, CacheDir, opened
from finetune_kit._model import preprocessing as _preprocessing
from finetune_kit._model.digest import described
from finetune_kit._model.graph import copy, is_stochastic
from finetune_kit._model.plan import FreezePlan
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._quiet import quiet
from finetune_kit._train.callbacks import check_callbacks
from finetune_kit._train.checkpoints import Checkpoints
from finetune_kit._train.objective import Wanted, class_weights
from finetune_kit._train.optimizer import Optimizers
from finetune_kit._train.phases import Run


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What `fine_tune` returns.

    Attributes:
        model: a plain `keras.Model` that takes raw RGB pixels from 0 to 255, `(n, h, w, 3)`, and
            gives probabilities `(n, num_classes)`. It is not compiled: what `model.save` writes is
            there to predict, and loads with Keras alone on any backend. To train it further with
            plain Keras, compile it.
        history: lists with one value an epoch: `loss` and the metrics (`accuracy`), the same with
            the prefix `val_` where the split has a validation part, the number of the `epoch` and
            of its `phase`, both from 1, and what callbacks add; nan where an epoch has no value.
        plan: what was frozen and what trained, in the last phase.
        plans: the same for each phase.
        timings: seconds: `build` (copying and compiling), `prefix` (computing the frozen part's
            features, or finding them on disk), `decode` (decoding images for that, all threads
            added up, so part of `prefix`) and `fit`.
        images: what it was trained on.
        split: which of them trained and validated.
        settings: how it was trained, as plain values: specs, optimizer, batch size, seed and so on.
        manifest: fingerprint of the manifest that the images were read from, or None.
    """

    model: keras.Model
    history: Mapping[str, list[float]] = field(repr=False)
    plan: FreezePlan = field(repr=False)
    plans: tuple[FreezePlan, ...] = field(repr=False)
    timings: Mapping[str, float] = field(repr=False)
    images: ImageSet
    split: Split
    settings: Mapping[str, Any] = field(repr=False)
    manifest: str | None = None


@quiet()
def fine_tune(
    backbone: keras.Model,
    head: keras.Layer,
    spec: FineTuneSpec | Sequence[FineTuneSpec],
    images: ImageSet,
    split: Split,
    *,
    batch_size: int = 32,
    optimizer: str | keras.optimizers.Optimizer | None = None,
    loss: str | keras.losses.Loss | None = None,
    metrics: Sequence[str | keras.metrics.Metric] | None = None,
    label_smoothing: float = 0.0,
    class_weight: str | Mapping[int | str, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    preprocessing: str | keras.layers.Layer | None = "auto",
    seed: int = 0,
    augmentation: keras.layers.Layer | None = None,
    views: int = 8,
    cache_dir: CacheDir = None,
    cache_dtype: str = "float32",
    run_dir: str | os.PathLike[str] | None = None,
    verbose: str | int = "auto",
) -> FineTuned:
    """Train a head and the trailing blocks of a backbone on images.

    The frozen part in front of the first block that trains is computed once for each image, not
    once for each epoch; the rest trains on these features. The result is that of training without
    them, up to float rounding. `backbone` and `head` stay as they are: copies are trained, so the
    same call gives the same result, and one backbone serves several runs. The frozen part runs in
    inference mode, Dropout included. The optimizer is always a new one.

    Args:
        backbone: a functional model without classifier, for images of a fixed size, such as
            `keras.applications.MobileNetV2(include_top=False, input_shape=(224, 224, 3))`.
        head: what turns its output into probabilities, see `classification_head`.
        spec: what trains, how long, how fast; or a list of specs, phases that follow one another
            (see `linear_probe_then_fine_tune`, `gradual_unfreezing`). Each phase has a new
            optimizer, into which the state of what was training already is carried.
        images: what to train on.
        split: which of them train and which validate.
        batch_size: images a step. Defaults to 32.
        optimizer: its name (with the spec's learning rate; default: `"adam"`), or an instance or
            config, which is copied as it is, its own learning rate or schedule included. Weight
            decay leaves out biases and norms.
        loss: the name or an instance of a Keras loss that takes one-hot labels `(n, num_classes)`,
            or those of the images if they are multi-label. Defaults to the cross-entropy that
            belongs to the head: categorical for a softmax, binary for sigmoids.
        metrics: names or instances of Keras metrics, which get the same labels; `"accuracy"` is
            the one that belongs to the head. Defaults to that alone.
        label_smoothing: how much of each label is spread over all classes, from 0 (default: none)
            to below 1 (Szegedy et al., CVPR 2016).
        class_weight: how much a sample of a class counts: a mapping from class names or indices
            (those left out count 1), or `"balanced"` (each class as much as another). Default: each
            sample as much.
        callbacks: plain Keras callbacks; their `model` is the whole one, which takes pixels. Epoch
            numbers go on from phase to phase, each of which begins and ends for them: EarlyStopping
            ends a phase, and restores its best weights before the next one.
        preprocessing: `"auto"` (default: see `preprocessing`), a Keras layer that takes raw
            0-255 RGB, or None for a backbone that takes raw pixels. It becomes part of the model.
        seed: of the head's first weights, dropout, shuffles and augmentation; it is given to
            `keras.utils.set_random_seed`, so two runs at once in threads of one process disturb
            each other's draws. Defaults to 0.
        augmentation: plain Keras layers that change pixels at random, such as
            `keras.layers.RandomFlip("horizontal")`, and keep their shape and their range of 0-255.
            Only training images pass through it. Default: none. (For new versions in each epoch,
            at the cost of the whole model in each, put it into `preprocessing` with
            `cache_dir=False`.)
        views: how many versions of an image `augmentation` makes; each epoch draws one. The frozen
            part is computed once for each. Defaults to 8.
        cache_dir: a folder to keep the frozen part's features in and to take them from; a later
            run with the same frozen part, pixels and image contents starts to train at once. None
            (default): a temporary folder (with `run_dir`: one in it), removed at the end. False:
            no features; the frozen part is computed in each epoch.
        cache_dtype: how features are kept: `"float32"` (default) or `"float16"`, which takes half
            the space and rounds them to three decimal digits.
        run_dir: a folder of its own for this run, in which each epoch leaves a checkpoint. The
            same call after an interruption goes on from the last one, and ends with the weights
            and history of a run that was not interrupted; after the end it returns at once. A call
            that differs in spec, data, split or anything else that matters is refused. Keras' own
            callbacks go on with what they knew (the best epoch, its weights, patience); your own
            start anew. Defaults to none.
        verbose: `"auto"` (default), 0, 1 or 2, as in `fit`.

    Returns:
        A `FineTuned`.

    Raises:
        ValueError: if an argument does not fit the others; says which, and how to mend it.
        OSError: if the features need more space than is free; says how much.
        FloatingPointError: if the loss is no number; says in which epoch, and what to try.
        RuntimeError: if a callback changed what trains, or what the plan said would stay.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 6)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> head = keras.Sequential([
        ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, "softmax")])
        >>> split = Split(np.arange(8), np.arange(8, 10), np.arange(10, 12))
        >>> tuned = fine_tune(backbone, head, FineTuneSpec(1), images, split, verbose=0)
        >>> tuned.model.predict(x[:2], verbose=0).shape
        (2, 2)
    """
    started = time.perf_counter()
    specs: list[Any] = list(spec) if isinstance(spec, Sequence) and spec else [spec]
    for phase in specs:
        check_kind(
            "spec",
            phase,
            FineTuneSpec,
            "such as FineTuneSpec(trainable_blocks=2), or a list of one or more",
        )
    check_kind("backbone", backbone, keras.Model, "such as keras.applications.MobileNetV2(...)")
    check_kind("head", head, keras.Layer, "see classification_head")
    check_kind("images", images, ImageSet, "see read_image_folder or ImageSet.from_arrays")
    check_kind("split", split, Split, "see stratified_split")
    _check_images(images, split)
    size = image_size("backbone", backbone)
    check_count("batch_size", batch_size)
    check_count("seed", seed, least=0)
    check_callbacks(callbacks, once=len(specs) == 1 and run_dir is None)
    weights = class_weights(class_weight, images.labels[split.train], images.class_names)
    optimizers = Optimizers(optimizer)
    wanted = Wanted(loss, metrics, label_smoothing)
    wanted.check()
    keras.utils.set_random_seed(seed)
    backbone, head = copy(backbone), copy(head)
    pixels = _layer(preprocessing, backbone)
    if preprocessing != "auto":
        _preprocessing.warn_of_pixels(pixels, backbone)
    _check_caching(cache_dir, cache_dtype, augmentation, views, pixels)
    if run_dir is not None:
        check_folder("run_dir", run_dir)
        _check_scale()
    drawn = None if augmentation is None else Augmentation(copy(augmentation), views, seed)
    plans = tuple(phase.plan(backbone) for phase in specs)
    optimizers.check([dict(zip(p.trainable_variables, p.rate_factors, strict=True)) for p in plans])
    checkpoints = run_dir and Checkpoints(
        run_dir,
        {
            "specs": [phase.to_dict() for phase in specs],
            "backbone": described(backbone),
            "head": described(head),
            "preprocessing": None if pixels is None else described(pixels),
            **_data(images, split),
            "batch_size": batch_size,
            "optimizer": optimizers.config,
            "objective": wanted.config,
            "class_weight": weights,
            "augmentation": None if drawn is None else [described(drawn.layer), views],
            "features": cache_dir is not False and cache_dtype,
            "seed": seed,
            "keras": [keras.__version__, keras.backend.backend()],
        },
    )
    with features_folder(cache_dir, run_dir) as folder:
        run = Run(
            backbone,
            head,
            pixels,
            Source(images, split, size, batch_size, verbose, folder, cache_dtype, drawn),
            optimizers,
            wanted,
            {"class_weight": weights, "verbose": verbose},
            callbacks,
            seed,
            specs,
            plans,
            checkpoints or None,
        )
        run.seconds["build"] += time.perf_counter() - started
        whole = run.train()
    return _tuned(run, whole)


@contextmanager
def features_folder(
    cache_dir: CacheDir, run_dir: str | os.PathLike[str] | None
) -> Iterator[Path | None]:
    """Where features are kept: with `run_dir` there, so that they outlive an interruption."""
    if run_dir is None or cache_dir is not None:
        with opened(cache_dir) as folder:
            yield folder
        return
    beside = Path(run_dir) / "features"
    with opened(beside):
        yield beside
    shutil.rmtree(beside)


def _tuned(run: Run, whole: keras.Model) -> FineTuned:
    # Uncompiled: a file with torch's own Adam in it cannot be loaded on another backend, and one
    # that is there to predict needs no moments.
    model = keras.Model(whole.input, whole.output, name=whole.name)
    model(keras.Input(model.input_shape[1:]))  # `export` asks for a model that has been called
    names = dict.fromkeys(name for epoch in run.epochs for name in epoch)
    history = {name: [epoch.get(name, math.nan) for epoch in run.epochs] for name in names}
    model.history = keras.callbacks.History()  # where `fit` itself leaves it
    model.history.history = history
    return FineTuned(
        model=model,
        history=MappingProxyType(history),
        plan=run.plans[-1],
        plans=tuple(run.plans),
        timings=MappingProxyType({**run.seconds, "decode": run.source.seconds["decode"]}),
        images=run.source.images,
        split=run.source.split,
        settings=MappingProxyType(_settings(run)),
        manifest=run.source.images.manifest,
    )


def _settings(run: Run) -> dict[str, Any]:
    source, wanted = run.source, run.wanted.config
    drawn = source.augmentation
    low, high = _preprocessing.pixel_range(run.pixels, run.backbone)
    return {
        "specs": [spec.to_dict() for spec in run.specs],
        "optimizer": run.optimizers.config,
        "batch_size": source.batch_size,
        **wanted,
        "loss": wanted["loss"] or "the head's cross-entropy",
        "metrics": ["accuracy"] if wanted["metrics"] is None else wanted["metrics"],
        "class_weight": run.fit_options["class_weight"],
        "preprocessing": f"0 to 255 becomes {low:.3g} to {high:.3g}",
        "augmentation": drawn and f"{drawn.layer.name}, {drawn.views} views",
        "seed": run.seed,
    }


def _check_images(images: ImageSet, split: Split) -> None:
    for part in PARTS:
        check_indices(f"split.{part}", np.asarray(getattr(split, part)), len(images))
    if not len(split.train):
        raise ValueError("`split.train` must hold at least one image. Received: none")
    seen = images.counts(split.train)
    missing = [name for name, n in zip(images.class_names, seen, strict=True) if not n]
    if missing:
        raise ValueError(
            "`split.train` must hold images of every class, as those of stratified_split do. "
            f"Received none of: {missing}"
        )


def _check_scale() -> None:
    if keras.config.dtype_policy().compute_dtype == "float16":
        raise ValueError(
            "`run_dir` does not keep the scale of the loss; use the policy 'mixed_bfloat16'. "
            "Received: 'mixed_float16'"
        )


def _data(images: ImageSet, split: Split) -> dict[str, Any]:
    """What was trained and validated on: contents, labels and order, in digests."""
    told: dict[str, Any] = {"class_names": list(images.class_names)}
    for part in ("train", "validation"):
        indices = getattr(split, part)
        digests = content_digests(images, indices)
        labels = images.labels[indices].tolist()
        told[f"{part} images"] = len(indices)
        told[f"{part} split"] = hashlib.sha256(json.dumps(indices.tolist()).encode()).hexdigest()
        told[f"{part} data"] = hashlib.sha256(json.dumps([digests, labels]).encode()).hexdigest()
    return told


def check_cache_dir(cache_dir: Any) -> None:
    """Refuse what is no folder, None or False."""
    if cache_dir is not None and cache_dir is not False:
        check_folder("cache_dir", cache_dir, or_else=", None (a temporary one) or False (none)")


def _check_caching(
    cache_dir: Any, cache_dtype: str, augmentation: Any, views: int, pixels: keras.Layer | None
) -> None:
    check_cache_dir(cache_dir)
    check_choice("cache_dtype", cache_dtype, DTYPES)
    check_count("views", views)
    if augmentation is not None and not isinstance(augmentation, keras.Layer):
        raise ValueError(
            "`augmentation` must be a Keras layer, such as keras.layers.RandomFlip('horizontal') "
            f"or a Sequential of several. Received: {augmentation!r}"
        )
    mixing = (keras.layers.MixUp, keras.layers.CutMix)
    layers = [augmentation, *getattr(augmentation, "layers", ())]
    if augmentation is not None and any(isinstance(layer, mixing) for layer in layers):
        raise ValueError(
            "`augmentation` must change each image by itself, as the versions of one image are "
            f"kept; MixUp and CutMix mix several. Received: {augmentation.name!r}"
        )
    if augmentation is not None and cache_dir is False:
        raise ValueError(
            "`augmentation` makes versions of the images whose features are kept, which "
            "cache_dir=False forbids; put its layers into `preprocessing`, where each epoch draws "
            f"anew. Received: augmentation={augmentation.name!r} with cache_dir=False"
        )
    if cache_dir is not False and pixels is not None and is_stochastic(pixels):
        raise ValueError(
            "`preprocessing` must make the same of the same image, because the frozen part is "
            "computed once; pass layers that draw random numbers as `augmentation`, or "
            f"cache_dir=False. Received: {pixels.name!r}"
        )


def _layer(preprocessing: Any, backbone: keras.Model) -> keras.Layer | None:
    if preprocessing == "auto":
        return _preprocessing.preprocessing(backbone)
    if preprocessing is None:
        return None
    if isinstance(preprocessing, keras.Layer):
        return copy(preprocessing)
    raise ValueError(
        "`preprocessing` must be 'auto', None or a Keras layer that takes raw 0-255 RGB. "
        f"Received: {preprocessing!r}"
    )
