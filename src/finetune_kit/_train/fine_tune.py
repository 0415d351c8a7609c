"""Train a head and the trailing blocks of a backbone: `fine_tune`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from finetune_kit._data.images import ImageSet
from finetune_kit._features.augmentation import Augmentation
from finetune_kit._features.cache import FeatureCache, opened
from finetune_kit._features.engine import in_this_process
from finetune_kit._hints import hints
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._processes import agree, check_distribution, share
from finetune_kit._quiet import quiet
from finetune_kit._train import phases
from finetune_kit._train.arguments import make_setup
from finetune_kit._train.calibration import calibrated
from finetune_kit._train.checkpoints import Checkpoints
from finetune_kit._train.optimizer import Optimizers
from finetune_kit._train.progress import Progress
from finetune_kit._train.setup import Setup
from finetune_kit._train.tuned import FineTuned


@hints(
    epochs="FineTuneSpec(epochs=...)",
    learning_rate="FineTuneSpec(learning_rate=...)",
    trainable_blocks="FineTuneSpec(trainable_blocks=...)",
    label_smoothing="loss=keras.losses.CategoricalCrossentropy(label_smoothing=...)",
    dropout="classification_head(..., dropout=...)",
    cache_dir="features=...",
    validation_data="validation=...",
    views="augmentation=Augmentation(layer, views=...)",
    mixup="augmentation=Augmentation(mixup=...)",
)
@quiet()
def fine_tune(
    backbone: keras.Model | FineTuned | str | os.PathLike[str],
    head: keras.Layer | None,
    spec: FineTuneSpec | Sequence[FineTuneSpec],
    train: ImageSet,
    validation: ImageSet | None = None,
    *,
    batch_size: int = 32,
    optimizer: str | Mapping[str, Any] | keras.optimizers.Optimizer | None = None,
    loss: str | Callable[..., Any] | keras.losses.Loss | None = None,
    metrics: str | keras.metrics.Metric | Sequence[Any] | None = None,
    class_weight: str | Mapping[int | str, float] | None = None,
    callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
    preprocessing: str | keras.layers.Layer | None = "auto",
    augmentation: Augmentation | keras.layers.Layer | None = None,
    features: FeatureCache | str | os.PathLike[str] | bool | None = None,
    calibrate: bool | float = False,
    run_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verbose: str | int = "auto",
) -> FineTuned:
    """Train a head and the trailing blocks of a backbone on images.

    The frozen part in front of the first block that trains is computed once for each image, not
    once for each epoch; the rest trains on these features. The result is that of training without
    them, up to float rounding. `backbone` and `head` are not changed: copies are trained, so the
    same call gives the same result, and one backbone serves several runs. The frozen part runs in
    inference mode, Dropout included. The optimizer is always a new one.

    Args:
        backbone: a functional model without classifier, for images of a fixed size, such as
            `keras.applications.MobileNetV2(include_top=False, input_shape=(224, 224, 3))`; or a
            trained model: the result of `fine_tune`, or the path of a file that `FineTuned.save`
            wrote.
        head: layers that turn its output into probabilities, see `classification_head`. None for
            a trained model keeps its head; a new head serves other classes.
        spec: which blocks train, for how long and how fast; or a list of specs, one for each phase
            (see `linear_probe_then_fine_tune`, `gradual_unfreezing`). Each phase has a new
            optimizer, which takes over the state of variables that were already training.
        train: the images to train on.
        validation: the images to validate on after each epoch. Defaults to none. An image must not
            be in both sets.
        batch_size: images in each step. Defaults to 32.
        optimizer: its name (with the spec's learning rate; default: `"adam"`), or an instance or
            config, which is copied as it is, including its own learning rate or schedule. Weight
            decay leaves out biases and norms.
        loss: the name or an instance of a Keras loss that takes one-hot labels `(n, num_classes)`,
            or those of the images if they are multi-label. Defaults to the cross-entropy that fits
            the head: categorical for a softmax, binary for sigmoids. For label smoothing pass
            `keras.losses.CategoricalCrossentropy(label_smoothing=0.1)`.
        metrics: names or instances of Keras metrics, which get the same labels; `"accuracy"` is
            the one that fits the head. Defaults to that alone.
        class_weight: a weight for each class in the loss: a mapping from class names or indices
            (those left out count 1), or `"balanced"` (inversely proportional to their number of
            images). Defaults to equal weights.
        callbacks: plain Keras callbacks; their `model` is the whole one, which takes pixels. Epochs
            are numbered through all phases. Each phase is one `fit` for them: EarlyStopping ends a
            phase, and restores its best weights before the next one.
        preprocessing: `"auto"` (default: see `preprocessing`), a Keras layer that takes raw
            0-255 RGB, or None for a backbone that takes raw pixels. It becomes part of the model.
            Leave it out for a trained model, which has its own.
        augmentation: an `Augmentation`, or a plain Keras layer such as
            `keras.layers.RandomFlip("horizontal")`, a short form of `Augmentation(layer)`.
            Defaults to none. (To change the images anew in each epoch, at the cost of the whole
            model in each, put the layer into `preprocessing` with `features=False`.)
        features: where the features of the frozen part are kept: a `FeatureCache`, or a folder. A
            later run with the same frozen part and images starts to train at once. None (default):
            a temporary folder (with `run_dir`: one in it), removed after the run. False: no
            features; the frozen part is computed in each epoch.
        calibrate: True divides the logits of the trained model by the temperature with the lowest
            validation loss, so that its probabilities are as high as its accuracy (Guo et al., ICML
            2017), or with few validation images one closer to 1; a number is that temperature. The
            predicted classes stay the same, and so does the history. Defaults to False.
        run_dir: a folder of its own for this run, in which each epoch leaves a checkpoint. After an
            interruption the same call resumes from the last one, and ends with the weights and
            history of a run that was not interrupted; after the end it returns at once. A call that
            differs in spec, data or anything else that matters is an error. Keras' own callbacks
            keep their state (the best epoch, its weights, patience); your own start anew. Defaults
            to none.
        seed: of the head's initial weights, dropout, shuffling and augmentation. It is passed to
            `keras.utils.set_random_seed`, so two runs at once in threads of one process disturb
            each other's random numbers. Defaults to 0.
        verbose: `"auto"` (default), 0, 1 or 2, as in `fit`.

    Returns:
        A `FineTuned`.

    Raises:
        ValueError: if an argument does not fit the others; the message says what to change.
        OSError: if the features need more space than is free, or a folder cannot be written.
        FloatingPointError: if the loss is not finite; the message says in which epoch.
        RuntimeError: if a callback changed what trains, or a variable that the plan freezes.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 6)
        >>> train, validation, test = images.split((0.5, 0.25, 0.25), seed=0)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> head = classification_head(2)
        >>> tuned = fine_tune(backbone, head, FineTuneSpec(1), train, validation, verbose=0)
        >>> tuned.model.predict(x[:2], verbose=0).shape
        (2, 2)
    """
    started = time.perf_counter()
    options = {
        "batch_size": batch_size,
        "optimizer": optimizer,
        "loss": loss,
        "metrics": metrics,
        "class_weight": class_weight,
        "callbacks": callbacks,
        "preprocessing": preprocessing,
        "augmentation": augmentation,
        "features": features,
        "calibrate": calibrate,
        "run_dir": run_dir,
        "seed": seed,
        "verbose": verbose,
    }
    setup = make_setup(backbone, head, spec, train, validation, options)
    images = batch_size, len(train), 0 if validation is None else len(validation)
    check_distribution(*images, mixup=bool(setup.augmentation and setup.augmentation.mixup))
    progress = Progress(Optimizers(optimizer))
    checkpoints = _checkpoints(setup, run_dir)
    with opened(setup.cache, run_dir) as kept:
        keras.utils.set_random_seed(seed)
        setup = setup.copied()
        source = setup.source(kept)
        progress.seconds["build"] += time.perf_counter() - started
        try:
            whole = phases.train(setup, source, progress, checkpoints)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_interrupted(progress, run_dir)) from None
        temperature = calibrated(setup, source, whole)
        agree("train the same model", json.dumps(progress.epochs))  # before features are removed
    with in_this_process(whole) as trained:
        return _tuned(setup, progress, trained, temperature)


def _checkpoints(setup: Setup, run_dir: str | os.PathLike[str] | None) -> Checkpoints | None:
    """Return the checkpoints of the run, after all processes have called with its settings."""
    settings = {} if run_dir is None and share()[1] == 1 else setup.identity()
    checkpoints = None if run_dir is None else Checkpoints(run_dir, settings)
    agree("call `fine_tune` with the same arguments", json.dumps(settings, default=str))
    return checkpoints


def _interrupted(progress: Progress, run_dir: Any) -> str:
    epoch = len(progress.epochs) + 1
    if run_dir is None:
        return f"interrupted in epoch {epoch}; with run_dir= a run can be resumed"
    return f"interrupted in epoch {epoch}; the same call resumes there"


def _tuned(
    setup: Setup, progress: Progress, whole: keras.Model, temperature: float | None
) -> FineTuned:
    # Uncompiled: a file with torch's own Adam cannot be loaded on another backend, and a model for
    # prediction needs no moments.
    model = keras.Model(whole.input, whole.output, name=whole.name)
    model(keras.Input(model.input_shape[1:]))  # `export` needs a model that has been called
    names = dict.fromkeys(name for epoch in progress.epochs for name in epoch)
    history = {name: [epoch.get(name, math.nan) for epoch in progress.epochs] for name in names}
    model.history = keras.callbacks.History()  # where `fit` itself leaves it
    model.history.history = history
    return FineTuned(
        model=model,
        history=history,
        plans=tuple(phase.plan for phase in setup.phases),
        timings=dict(progress.seconds),
        train=setup.train,
        validation=setup.validation,
        settings={**setup.settings(progress.kept_epoch), "temperature": temperature},
        seen_before=setup.seen_before,
    )
