"""Choose head, depth and learning rate from the features of one pass: `recommend`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import check_choice, check_kind
from finetune_kit._data.folds import StratifiedFolds
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache, kept_cache, opened
from finetune_kit._model.blocks import conv_blocks
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._model.surgery import DEPTHS, with_depths
from finetune_kit._quiet import quiet
from finetune_kit._text import plural
from finetune_kit._train.arguments import checked_backbone, make_setup, unused_options
from finetune_kit._train.probe import Parts, fitted
from finetune_kit._train.ranking import STILL, Stage, finalists, probed, smallest
from finetune_kit._train.recommendation import Probed, Recommendation, recommendation
from finetune_kit._train.setup import Setup
from finetune_kit._train.trials import Task, Trial, candidates, head_for, run
from finetune_kit._train.tuned import FineTuned

Backbone: TypeAlias = keras.Model | FineTuned | str | os.PathLike[str]

_BUDGETS = ("fast", "thorough")
_FOLDS = 5
_ADVANCING = {"fast": 1, "thorough": 3}  # candidates that are tried on all folds


@quiet()
def recommend(
    backbone: Backbone | Sequence[keras.Model],
    train: ImageSet,
    validation: ImageSet | None = None,
    *,
    budget: str = "fast",
    depths: bool = False,
    preprocessing: str | keras.layers.Layer | None = "auto",
    batch_size: int = 32,
    features: FeatureCache | str | os.PathLike[str] | None = None,
    seed: int = 0,
    verbose: str | int = "auto",
) -> Recommendation:
    """Choose what to train, from the images: the head's weights, the blocks, rate and length.

    1. The backbone computes its features once for each image.
    2. Logistic regressions on the pooled features, with penalties of several strengths, are
       validated. The best one becomes the head: what a linear probe would train, but solved
       (as the few-shot evaluation in Kolesnikov et al., "Big Transfer", ECCV 2020, does).
    3. Trailing blocks are trained from that head (LP-FT: Kumar et al., ICLR 2022) with a learning
       rate that rises and falls in one cycle (Smith and Topin, arXiv:1708.07120), at several depths
       and rates, on features of the part in front of them. No epoch is chosen by validation images,
       which would make the losses too low. All are tried on the first fold, the best ones on the
       others (successive halving: Jamieson and Talwalkar, AISTATS 2016). The number of epochs, 12,
       is the same for all, and so is the rate of all blocks: no `layer_decay` is tried.
    4. Of the recipes whose validation loss is within one standard error of the lowest, the simplest
       is recommended (Breiman et al., Classification and Regression Trees, 1984); the standard
       error is that of the paired difference. The losses are compared after temperature scaling
       (Guo et al., ICML 2017). The temperature is that of all images that validate, each predicted
       by a model that was not trained on it; the trained model gets it too.

    With `depths=True`, each backbone is also tried with another output: the pooled outputs of the
    second half of its blocks, joined (after Head2Toe: Evci et al., ICML 2022, who also select among
    them).

    Of several backbones, LogME (You et al., ICML 2021) chooses three by their features of up to 500
    images. Step 2 is done for these, and step 3 for the smallest of them whose loss is within one
    standard error of the lowest.

    Keep a test set out of it: no step needs one.

    Args:
        backbone: see `fine_tune`. Of a trained model, the part in front of its head. A list of
            models with different names: one of them is recommended, see `Recommendation.backbone`.
        train: the images to train on.
        validation: the images to validate on. Defaults to none: five folds of `train`, or fewer
            where a class has fewer images, validate each recipe on all images. The images of a
            group (see `ImageSet.groups`) are in one fold.
        budget: `"fast"` (default) tries three ways to train blocks: the last quarter of them at
            3e-4, half of them at 1e-4 and at 3e-4. `"thorough"` tries seven: also three quarters,
            and other rates.
        depths: whether to try features of several depths too, of a `keras.Model`. Pass
            `Recommendation.backbone` to `fine_tune`. Defaults to False.
        preprocessing: see `fine_tune`.
        batch_size: images in each step. Defaults to 32.
        features: see `fine_tune`. With a folder, the training that follows starts at once.
        seed: of folds, dropout and shuffling. Defaults to 0.
        verbose: `"auto"` (default), 0, 1 or 2, as in `fit`.

    Returns:
        A `Recommendation`. Print it to see the evidence.

    Raises:
        ValueError: if a class has a single image (or group), or all of them must be in one fold,
            and there is no `validation`; or if an argument does not fit the others.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 6)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> found = recommend(backbone, images, verbose=0)
        >>> found.specs[0].trainable_blocks
        0
        >>> tuned = fine_tune(
        ...     backbone, found.head, found.specs, images, **found.keywords, verbose=0)
    """
    check_kind("train", train, ImageSet, "see read_image_folder")
    check_choice("budget", budget, _BUDGETS)
    check_choice("depths", depths, (True, False))
    cache = kept_cache(features)
    options = {
        **unused_options(),
        "batch_size": batch_size,
        "preprocessing": preprocessing,
        "features": cache,
        "seed": seed,
        "verbose": verbose,
    }
    backbones = _several(backbone, depths=depths)
    setups = [_setup(each, train, validation, options, budget) for each in backbones]
    images, parts = setups[0].images, _parts(train, setups[0].validation, seed)
    groups = _groups(train, len(images))
    _warn_if_seen(setups[0])
    with opened(cache, None) as kept:
        left = finalists(setups, kept)
        stages = [probed(setups[i], parts, kept, preprocessing) for i in left]
        number, ranking = smallest(stages, groups[np.concatenate([after for _, after in parts])])
        stage = stages[number]
        tried = [stage.trial, *_tried(stage, budget)]
    classes, strength = len(train.class_names), stage.probes.strength
    fit = fitted(stage.values[: len(train)], train.labels, classes, strength)
    used: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    used |= {} if preprocessing == "auto" else {"preprocessing": preprocessing}
    used |= {} if features is None else {"features": features}
    data = Probed(stage.values, images.labels, parts, groups, strength, classes)
    found = recommendation(tried, data, stage.task.head(fit), used)
    return replace(found, backbone=backbones[left[number]], backbones=ranking)


def _several(backbone: Any, *, depths: bool) -> list[Any]:
    """Return the backbones, which must have different names if there are several.

    With `depths`, those with features of several depths come after them.
    """
    if depths:
        plain = _several(backbone, depths=False)
        for each in plain:
            check_kind("backbone", each, keras.Model, "as `depths` is True")
            _check_backbone(each)
            _check_depths(each)
        return _several([*plain, *map(with_depths, plain)], depths=False)
    if not isinstance(backbone, (list, tuple)):
        return [backbone]
    names = [getattr(each, "name", each) for each in backbone]
    models = all(isinstance(each, keras.Model) for each in backbone)
    if not names or not models or len({*names}) < len(names):
        raise ValueError(
            "`backbone` must be one backbone, or a list of keras.Model with different names. "
            f"Received: {names}, of the types {[type(each).__name__ for each in backbone]}"
        )
    return list(backbone)


def _check_depths(backbone: keras.Model) -> None:
    if any(layer.name == DEPTHS for layer in backbone.layers):
        raise ValueError(
            "`backbone` must not join its depths already where `depths` is True. "
            f"Received: {backbone.name!r} with a layer {DEPTHS!r}"
        )


def _setup(
    backbone: Any,
    train: ImageSet,
    validation: ImageSet | None,
    options: Mapping[str, Any],
    budget: str,
) -> Setup:
    """Return the settings of two phases: the head alone, and the deepest candidate."""
    plain = checked_backbone(backbone, options["preprocessing"])[1]
    _check_backbone(plain)
    deepest = max(candidates(len(conv_blocks(plain)), budget), key=lambda each: each.blocks)
    specs = [FineTuneSpec(0, learning_rate=STILL), deepest.spec]
    head = head_for(plain.output_shape, train)
    return make_setup(backbone, head, specs, train, validation, options)


def _check_backbone(backbone: keras.Model) -> None:
    shape = backbone.output_shape
    if not isinstance(shape, tuple) or len(shape) not in (2, 3, 4):
        raise ValueError(
            "`backbone` must have one output: a feature map (n, h, w, c), tokens (n, t, c) or a "
            f"vector (n, c). Received: {backbone.name!r} with the output shape {shape}"
        )


def _parts(train: ImageSet, validation: ImageSet | None, seed: int) -> Parts:
    """Return the indices to train and to validate on: of one split, or of each fold."""
    if validation is not None:
        count = len(train) + len(validation)
        return [(np.arange(len(train)), np.arange(len(train), count))]
    groups = np.arange(len(train)) if train.groups is None else train.groups
    classes = range(len(train.class_names))
    counts = [len(np.unique(groups[_members(train, label)])) for label in classes]
    fewest, noun = min(counts), "image" if train.groups is None else "group"
    if fewest < 2:
        name = train.class_names[counts.index(fewest)]
        raise ValueError(
            f"Each class must have at least two {noun}s, one to train on and one to validate on; "
            f"or pass `validation`. Received: {plural(fewest, noun)} of {name!r}"
        )
    folds = StratifiedFolds(min(_FOLDS, fewest), seed=seed)
    # Names of the classes, because a log message names them.
    labels = train.labels if train.multi_label else np.array(train.class_names)[train.labels]
    parts = list(folds.split(None, labels, train.groups))
    for name, label in zip(train.class_names, classes, strict=True):
        if not all(_members(train, label)[before].any() for before, _ in parts):
            raise ValueError(
                f"Each class must have {noun}s in at least two of the {len(parts)} folds, which "
                f"{noun}s of several classes can make impossible; pass `validation`. "
                f"Received: all {noun}s of {name!r} in one fold"
            )
    return parts


def _groups(train: ImageSet, count: int) -> NDArray[np.int64]:
    """Return the number of the group of each image; each validation image is one of its own."""
    if train.groups is None:
        return np.arange(count)
    groups = np.unique(train.groups, return_inverse=True)[1]
    return np.concatenate([groups, np.arange(len(train), count)])


def _members(images: ImageSet, label: int) -> NDArray[np.bool_]:
    return images.labels[:, label] == 1 if images.multi_label else images.labels == label


def _warn_if_seen(setup: Setup) -> None:
    count = sum(digest[:16] in setup.seen_before for digest in setup.train.digests())
    if count and setup.validation is None:
        warnings.warn(
            f"The backbone was trained on {plural(count, 'image')} of `train`, so the losses of "
            "the folds are too good; pass `validation` images that it has not seen",
            stacklevel=4,
        )


def _tried(stage: Stage, budget: str) -> list[Trial]:
    """Try candidates on the first part, and the best of them on the others."""
    task, probes = stage.task, stage.probes
    chosen, tried = candidates(len(conv_blocks(task.setup.backbone)), budget), []
    for candidate in chosen:
        tried.append(run(task, candidate, probes.probes[:1], task.parts[:1]))
        _announce(tried[-1], task, 1)
    if len(task.parts) == 1:
        return tried
    best = np.argsort([trial.loss for trial in tried])[: _ADVANCING[budget]]
    for i in sorted(best.tolist()):
        more = run(task, chosen[i], probes.probes[1:], task.parts[1:])
        tried[i] = tried[i].followed_by(more)
        _announce(tried[i], task, len(task.parts))
    return tried


def _announce(trial: Trial, task: Task, parts: int) -> None:
    if task.setup.verbose:
        where = (
            "" if len(task.parts) == 1 else f" (folds 1 to {parts})" if parts > 1 else " (fold 1)"
        )
        print(f"{trial.name}: validation loss {trial.loss:.4f}{where}", flush=True)
