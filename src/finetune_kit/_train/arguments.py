"""Checks of the arguments of `fine_tune`, before anything is computed or seeded."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import keras

from finetune_kit._checks import (
    check_choice,
    check_count,
    check_folder,
    check_kind,
    image_size,
)
from finetune_kit._data.images import ImageSet
from finetune_kit._features.augmentation import checked_augmentation
from finetune_kit._features.cache import FeatureCache, as_cache
from finetune_kit._model import preprocessing as pixel_conventions
from finetune_kit._model.copying import copy
from finetune_kit._model.digest import variable_digest
from finetune_kit._model.flattening import plain
from finetune_kit._model.head import check_not_swapped, misfit
from finetune_kit._model.plan import check_no_classifier
from finetune_kit._model.spec import FineTuneSpec, check_prefix_in_fit
from finetune_kit._model.state import is_stochastic, moved_by_layer
from finetune_kit._processes import is_first
from finetune_kit._text import listed, plural
from finetune_kit._train.calibration import check_calibrate
from finetune_kit._train.callbacks import (
    as_callbacks,
    check_callbacks,
    check_monitors,
    with_best_epoch,
)
from finetune_kit._train.objective import Choices, as_choices, class_weights, objective
from finetune_kit._train.optimizer import Optimizers
from finetune_kit._train.rates import check_rates
from finetune_kit._train.setup import Phase, Setup
from finetune_kit._train.start import check_start, starting_point

_log = logging.getLogger("finetune_kit")


def make_setup(
    backbone: Any,
    head: Any,
    spec: Any,
    train: ImageSet,
    validation: ImageSet | None,
    options: Mapping[str, Any],
    *,
    labeled: bool = True,  # False where only features are computed
) -> Setup:
    """Check all arguments of `fine_tune`, and return them as one value."""
    start = starting_point(backbone, head, options["preprocessing"])
    size, backbone, head = _check_models(start.backbone, start.head)
    validation = check_start(start, train, _check_images(train, validation) if labeled else None)
    phases = _check_specs(backbone, spec)
    _check_numbers(options)
    choices = as_choices(options["loss"], options["metrics"])
    _check_run_dir(options["run_dir"], choices)
    once = len(phases) == 1 and options["run_dir"] is None
    callbacks = _callbacks(options, choices.names, once=once, validated=validation is not None)
    cache = _check_features(options["features"], backbone, phases)
    _check_optimizer(options["optimizer"], phases, callbacks)
    _check_head(backbone, head, train if labeled else None, choices)
    check_calibrate(options["calibrate"], head, validated=validation is not None)
    class_weight = class_weights(options["class_weight"], train.labels, train.class_names)
    augmentation = checked_augmentation(
        options["augmentation"], weighted=class_weight is not None, cached=cache is not None
    )
    # Last, because a random layer that is copied draws its seed.
    layer = _check_preprocessing(start.preprocessing, backbone, cached=cache is not None)
    return Setup(
        backbone=backbone,
        head=head,
        preprocessing=layer,
        phases=phases,
        train=train,
        validation=validation,
        size=size,
        batch_size=options["batch_size"],
        choices=choices,
        optimizer=options["optimizer"],
        class_weight=class_weight,
        callbacks=callbacks,
        augmentation=augmentation,
        cache=cache,
        calibrate=options["calibrate"],
        seed=options["seed"],
        verbose=options["verbose"] if is_first() else 0,
        digests=tuple(map(variable_digest, backbone.weights)),
        origin=start.origin,
        seen_before=start.seen_before,
    )


def unused_options() -> dict[str, Any]:
    """Return the options of `fine_tune` that do not matter where only features are computed."""
    return {
        **dict.fromkeys(("optimizer", "loss", "metrics", "class_weight", "augmentation")),
        "callbacks": (),
        "calibrate": False,
        "run_dir": None,
        "seed": 0,
    }


def checked_backbone(
    backbone: Any, preprocessing: Any
) -> tuple[tuple[int, int], keras.Model, keras.Layer | None]:
    """Return height and width of the images, the backbone alone, and its preprocessing."""
    start = starting_point(backbone, None, preprocessing)
    check_kind("backbone", start.backbone, keras.Model, "such as keras.applications.MobileNetV2()")
    front = plain(start.backbone)
    size = image_size("backbone", front, channels=(1, 3))
    return size, front, _check_preprocessing(start.preprocessing, front, cached=True)


def _callbacks(
    options: Mapping[str, Any], names: Sequence[str], *, once: bool, validated: bool
) -> list[keras.callbacks.Callback]:
    """Return the callbacks, and with them what keeps the best epoch."""
    callbacks = as_callbacks(options["callbacks"])
    check_callbacks(callbacks, once=once)
    check_monitors(callbacks, names, validated=validated)
    averaged = bool(Optimizers(options["optimizer"]).config.get("use_ema"))
    return with_best_epoch(callbacks, validated=validated, averaged=averaged)


def _check_optimizer(
    optimizer: Any, phases: Sequence[Phase], callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    plans = [phase.plan for phase in phases]
    factors = [dict(zip(p.trainable_variables, p.rate_factors, strict=True)) for p in plans]
    optimizers = Optimizers(optimizer)
    check_rates([phase.spec for phase in phases], callbacks, optimizers.config.get("learning_rate"))
    optimizers.check(factors)


def _check_numbers(options: Mapping[str, Any]) -> None:
    check_count("batch_size", options["batch_size"])
    check_count("seed", options["seed"], least=0)
    check_choice("verbose", options["verbose"], ("auto", 0, 1, 2))


def _check_models(backbone: Any, head: Any) -> tuple[tuple[int, int], keras.Model, keras.Layer]:
    """Check the models; return height and width of the images, the plain backbone and the head."""
    check_kind("backbone", backbone, keras.Model, "such as keras.applications.MobileNetV2(...)")
    check_kind("head", head, keras.Layer, "see classification_head")
    check_not_swapped(backbone, head)
    backbone = plain(backbone)
    return image_size("backbone", backbone, channels=(1, 3)), backbone, head


def _check_specs(backbone: keras.Model, spec: Any) -> tuple[Phase, ...]:
    """Return the phases of one spec or a list of specs."""
    specs = list(spec) if isinstance(spec, Sequence) and spec else [spec]
    hint = "such as FineTuneSpec(trainable_blocks=2), or a list of one or more"
    for each in specs:
        check_kind("spec", each, FineTuneSpec, hint)
    phases = tuple(Phase(i, each, each.plan(backbone)) for i, each in enumerate(specs, start=1))
    check_no_classifier(phases[0].plan)
    return phases


def _check_images(train: Any, validation: Any) -> ImageSet | None:
    """Check the two sets, and return the validation set; None if it holds no image."""
    hint = "see read_image_folder or ImageSet.from_arrays"
    check_kind("train", train, ImageSet, hint)
    if not len(train):
        raise ValueError("`train` must hold at least one image. Received: an empty ImageSet")
    if len(train.class_names) < 2 and not train.multi_label:
        raise ValueError(
            "`train` must hold images of two classes or more, or there is nothing to tell apart; "
            "look at `skipped` of the set if there should be more. Received: the class "
            f"{train.class_names[0]!r} alone"
        )
    missing = [n for n, count in zip(train.class_names, train.counts(), strict=True) if not count]
    if missing:
        raise ValueError(
            "`train` must hold images of every class, as the sets of ImageSet.split do. "
            f"Received none of: {missing}"
        )
    if validation is None:
        return None
    check_kind("validation", validation, ImageSet, hint)
    if validation.class_names != train.class_names or validation.multi_label != train.multi_label:
        raise ValueError(
            "`validation` must have the classes of `train` in the same order; pass class_names= "
            f"when you read it. Received: {list(validation.class_names)}, and for `train` "
            f"{list(train.class_names)}"
        )
    _check_disjoint(train, validation)
    _warn_of_validation(train, validation)
    return validation if len(validation) else None


def _check_disjoint(train: ImageSet, validation: ImageSet) -> None:
    """Check that no image is in both sets; equal images in different places are allowed."""
    equal = {*train.digests()} & {*validation.digests()}
    known = {place for place, _ in _places(train, equal)}
    both = [path for place, path in _places(validation, equal) if place in known]
    if both:
        raise ValueError(
            "`validation` must not hold images of `train`, or its metrics are too good; "
            f"ImageSet.split makes disjoint sets. Received {plural(len(both), 'image')} that "
            f"{'is' if len(both) == 1 else 'are'} in both: {listed(both)}"
        )


def _warn_of_validation(train: ImageSet, validation: ImageSet) -> None:
    """Warn of a validation set that is empty, or that shares groups with the training set."""
    if not len(validation):
        _log.warning("`validation` holds no image, so nothing is validated")
    if train.groups is None or validation.groups is None:
        return
    both = sorted({*train.groups.tolist()} & {*validation.groups.tolist()})
    if both:
        _log.warning(
            f"`train` and `validation` share {plural(len(both), 'group')} ({listed(both)}), so the "
            "metrics may be too good; ImageSet.split keeps a group in one set"
        )


def _places(images: ImageSet, digests: set[str]) -> list[tuple[Hashable, str]]:
    """Return where the images that have one of the digests lie, and their paths."""
    rows = zip(images.rows.tolist(), images.paths, images.digests(), strict=True)
    return [(images.source.place(i), path) for i, path, digest in rows if digest in digests]


def _check_preprocessing(
    preprocessing: Any, backbone: keras.Model, *, cached: bool
) -> keras.Layer | None:
    """Return the layer that raw pixels pass through, or None."""
    if preprocessing == "auto":
        return pixel_conventions.preprocessing(backbone)
    if preprocessing is not None and not isinstance(preprocessing, keras.Layer):
        raise ValueError(
            "`preprocessing` must be 'auto', None or a Keras layer that takes raw 0-255 RGB. "
            f"Received: {preprocessing!r}"
        )
    if cached and preprocessing is not None and is_stochastic(preprocessing):
        raise ValueError(
            "`preprocessing` must be deterministic, because the frozen part is computed once for "
            "each image; pass random layers as `augmentation`, or features=False. "
            f"Received: {preprocessing.name!r}"
        )
    layer = None if preprocessing is None else copy(preprocessing)
    if layer is not None:
        layer.trainable = False  # also where it runs in `fit`
        moved = [] if cached else _moved(layer, backbone)
        if moved:
            raise ValueError(
                "`preprocessing` must not change its own variables in training, where Keras cannot "
                "keep it in inference mode. Keep features: pass no features=False. Received: "
                f"{layer.name!r}, which changes {listed(moved)}"
            )
    pixel_conventions.warn_of_pixel_range(layer, backbone)
    return layer


def _moved(layer: keras.Layer, backbone: keras.Model) -> list[str]:
    """Return the paths of the variables that a layer changes when it gets pixels in training."""
    probe = copy(layer)
    probe(keras.Input(backbone.input_shape[1:]))
    return [variable.path for variable in moved_by_layer(probe)]


def _check_features(
    features: Any, backbone: keras.Model, phases: tuple[Phase, ...]
) -> FeatureCache | None:
    """Return the feature cache, or None; without it the frozen part runs in training too."""
    cache = as_cache(features)
    for phase in phases if cache is None else ():
        check_prefix_in_fit(backbone, phase.plan)
    return cache


def _check_run_dir(run_dir: Any, choices: Choices) -> None:
    """Check the folder of a run, and that its state can be saved."""
    if run_dir is None:
        return
    check_folder("run_dir", run_dir)
    choices.check_comparable()
    if keras.config.dtype_policy().compute_dtype == "float16":
        raise ValueError(
            "`run_dir` does not save the scale of the loss; use the policy 'mixed_bfloat16'. "
            "Received: 'mixed_float16'"
        )


def _check_head(
    backbone: keras.Model, head: keras.Layer, train: ImageSet | None, choices: Choices
) -> None:
    """Check that the head fits labels and backbone, as far as can be known without building it."""
    first = (getattr(head, "layers", None) or [head])[0]
    axes = getattr(getattr(first, "input_spec", None), "ndim", None)
    try:
        if axes not in (None, len(backbone.output_shape)):
            raise ValueError(f"{first.name!r} takes {axes} axes")
        outputs = head.compute_output_shape(backbone.output_shape)
    except Exception as error:
        if not _is_plain(head):  # a layer of the user's own may not know: building it will show
            return
        raise misfit(head, backbone, error) from error
    if train is not None:
        objective(outputs, head, train.labels, train.class_names, choices)


def _is_plain(layer: keras.Layer) -> bool:
    """Return whether a layer and the layers in it are Keras' own."""
    inner = getattr(layer, "layers", ())
    return type(layer).__module__.startswith("keras.") and all(map(_is_plain, inner))
