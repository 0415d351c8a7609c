"""Backbone, head, spec, images and split come in, a trained model goes out, in a straight line.

This room runs the others and decides nothing that they decide: what trains is the spec's word, what
pixels pass through is the preprocessing's, how images are decoded is the image set's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.class_weight import compute_class_weight

from finetune_kit import _preprocessing
from finetune_kit._checks import check_count
from finetune_kit._graph import copy
from finetune_kit._images import ImageBatches, ImageSet
from finetune_kit._metrics import figures
from finetune_kit._plan import FreezePlan
from finetune_kit._report import Report
from finetune_kit._spec import FineTuneSpec
from finetune_kit._split import PARTS, Split


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What `fine_tune` returns.

    Attributes:
        model: a plain `keras.Model` that takes raw RGB pixels from 0 to 255, `(n, h, w, 3)`, and
            gives probabilities `(n, num_classes)`. It is not compiled: what `model.save` writes is
            there to predict, and loads with Keras alone on any backend. To train it further with
            plain Keras, compile it.
        history: lists with one value an epoch: `loss`, `accuracy`, and `val_loss`,
            `val_accuracy` where the split has a validation part.
        plan: what was frozen and what trained.
        timings: seconds: `build` (copying and compiling) and `fit`.
    """

    model: keras.Model
    history: Mapping[str, list[float]]
    plan: FreezePlan
    timings: Mapping[str, float]


def fine_tune(
    backbone: keras.Model,
    head: keras.Layer,
    spec: FineTuneSpec,
    images: ImageSet,
    split: Split,
    *,
    batch_size: int = 32,
    optimizer: str | keras.optimizers.Optimizer | None = None,
    class_weight: str | Mapping[int | str, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    preprocessing: str | keras.layers.Layer | None = "auto",
    seed: int = 0,
    verbose: str | int = "auto",
) -> FineTuned:
    """Train a head and the trailing blocks of a backbone on images.

    `backbone` and `head` stay as they are: copies are trained, so the same call gives the same
    result, and one backbone serves several runs. The frozen part runs in inference mode, Dropout
    included. The optimizer is always a new one.

    Args:
        backbone: a functional model without classifier, for images of a fixed size, such as
            `keras.applications.MobileNetV2(include_top=False, input_shape=(224, 224, 3))`.
        head: what turns its output into probabilities, see `classification_head`.
        spec: what trains, how long, how fast.
        images: what to train on.
        split: which of them train and which validate.
        batch_size: images a step. Defaults to 32.
        optimizer: its name (with the spec's learning rate; default: `"adam"`), or an instance,
            which is copied as it is configured, its own learning rate included.
        class_weight: how much a sample of a class counts: a mapping from class names or indices,
            or `"balanced"` (each class as much as another). Default: each sample as much.
        callbacks: plain Keras callbacks.
        preprocessing: `"auto"` (default: see `preprocessing`), a Keras layer that takes raw
            0-255 RGB, or None for a backbone that takes raw pixels. It becomes part of the model.
        seed: of the head's first weights, dropout and shuffles; it is given to
            `keras.utils.set_random_seed`. Defaults to 0.
        verbose: `"auto"` (default), 0, 1 or 2, as in `fit`.

    Returns:
        A `FineTuned`.

    Raises:
        ValueError: if an argument does not fit the others; says which, and how to mend it.

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
    _check_images(images, split)
    size = _image_size("backbone", backbone)
    weights = _class_weight(class_weight, images, split)
    check_count("batch_size", batch_size)
    keras.utils.set_random_seed(seed)
    backbone, head = copy(backbone), copy(head)
    plan = spec.plan(backbone)
    model = spec.build(backbone, head, preprocessing=_layer(preprocessing, backbone))
    model.compile(
        optimizer=_new_optimizer(optimizer, spec.learning_rate),
        loss=_loss(model, head, images.class_names),
        metrics=["accuracy"],
    )
    train = ImageBatches(images, split.train, size, batch_size, seed)
    validation = ImageBatches(images, split.validation, size, batch_size)
    built = time.perf_counter()
    history = model.fit(
        train,
        validation_data=validation if len(split.validation) else None,
        epochs=spec.epochs,
        class_weight=weights,
        callbacks=list(callbacks),
        shuffle=False,  # `ImageBatches` draws its own order, the same on every backend
        verbose=verbose,
    )
    # Uncompiled: a file with torch's own Adam in it cannot be loaded on another backend, and one
    # that is there to predict needs no moments.
    trained = keras.Model(model.input, model.output, name=model.name)
    trained.history = history  # where `fit` itself leaves it
    return FineTuned(
        model=trained,
        history=MappingProxyType(
            {name: [float(value) for value in values] for name, values in history.history.items()}
        ),
        plan=plan,
        timings=MappingProxyType({"build": built - started, "fit": time.perf_counter() - built}),
    )


def evaluate(
    model: keras.Model,
    images: ImageSet,
    indices: ArrayLike | None = None,
    *,
    batch_size: int = 32,
    verbose: str | int = 0,
) -> Report:
    """Count how well a model tells the classes of images that it was not trained on.

    Args:
        model: takes raw RGB pixels from 0 to 255, gives probabilities, as `FineTuned.model` does.
        images: where the images are.
        indices: which of them, such as `split.test`. Defaults to all.
        batch_size: images a step. Defaults to 32.
        verbose: `"auto"`, 0 (default), 1 or 2, as in `predict`.

    Returns:
        A `Report`. If the model was trained in this process, its learning curves are in it.

    Raises:
        ValueError: if the model's outputs do not match the classes, or there is no image.
    """
    chosen = np.arange(len(images)) if indices is None else np.asarray(indices)
    _check_indices("indices", chosen, len(images))
    if not len(chosen):
        raise ValueError("`indices` must name at least one image. Received: none")
    _check_outputs("model", model.output_shape, images.class_names)
    batches = ImageBatches(images, chosen, _image_size("model", model), batch_size)
    scores = np.asarray(model.predict(batches, verbose=verbose), np.float64)
    if scores.shape[1] == 1:
        scores = np.concatenate([1 - scores, scores], axis=1)
    labels = images.labels[chosen]
    counted = figures(labels, scores, images.class_names)
    history = getattr(getattr(model, "history", None), "history", {})
    return Report(
        class_names=images.class_names,
        labels=labels,
        scores=scores,
        history={name: [float(v) for v in values] for name, values in history.items()},
        **counted,
    )


def _check_images(images: ImageSet, split: Split) -> None:
    if not isinstance(images, ImageSet) or not isinstance(split, Split):
        raise ValueError(
            "`images` must be an ImageSet (see read_image_folder) and `split` a Split (see "
            f"stratified_split). Received: {type(images).__name__} and {type(split).__name__}"
        )
    for part in PARTS:
        _check_indices(f"split.{part}", np.asarray(getattr(split, part)), len(images))
    if not len(split.train):
        raise ValueError("`split.train` must hold at least one image. Received: none")
    seen = np.bincount(images.labels[split.train], minlength=len(images.class_names))
    missing = [name for name, n in zip(images.class_names, seen, strict=True) if not n]
    if missing:
        raise ValueError(
            "`split.train` must hold images of every class, as those of stratified_split do. "
            f"Received none of: {missing}"
        )


def _check_indices(name: str, indices: NDArray[np.int64], count: int) -> None:
    if len(indices) and (indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer)):
        raise ValueError(
            f"`{name}` must be a one-dimensional array of indices (np.flatnonzero makes one of a "
            f"mask). Received: dtype {indices.dtype}, shape {indices.shape}"
        )
    if len(indices) and not (indices.min() >= 0 and indices.max() < count):
        raise ValueError(
            f"`{name}` must be indices from 0 to {count - 1}, as there are {count} images. "
            f"Received: {indices.min()} to {indices.max()}"
        )


def _check_outputs(name: str, shape: Any, class_names: Sequence[str]) -> None:
    count = len(class_names)
    fits = (
        isinstance(shape, tuple)
        and len(shape) == 2
        and (shape[1] == count or (shape[1] == 1 and count == 2))
    )
    if not fits:
        raise ValueError(
            f"`{name}` must give one probability for each of the {count} classes "
            f"{list(class_names)}, as classification_head({count}) does"
            f"{' (or one in all)' if count == 2 else ''}. Received: output shape {shape}"
        )


def _image_size(name: str, model: keras.Model) -> tuple[int, int]:
    shape = getattr(model, "input_shape", None)
    if not (
        isinstance(shape, tuple) and len(shape) == 4 and shape[3] == 3 and None not in shape[1:]
    ):
        raise ValueError(
            f"`{name}` must take RGB images of a fixed size, shape (None, height, width, 3); build "
            f"it with input_shape=(224, 224, 3) or the like. Received: input shape {shape}"
        )
    return shape[1], shape[2]


def _class_weight(
    class_weight: str | Mapping[int | str, float] | None, images: ImageSet, split: Split
) -> dict[int, float] | None:
    names = images.class_names
    if class_weight is None:
        return None
    if class_weight == "balanced":
        labels = images.labels[split.train]
        found = np.arange(len(names))
        balanced = compute_class_weight("balanced", classes=found, y=labels)
        return dict(enumerate(balanced.tolist()))
    known: dict[int | str, int] = {
        **{i: i for i in range(len(names))},
        **{name: i for i, name in enumerate(names)},
    }
    if not isinstance(class_weight, Mapping) or not set(class_weight) <= set(known):
        raise ValueError(
            "`class_weight` must be 'balanced' or a mapping from class names or indices, the "
            f"classes being {list(names)}. Received: class_weight={class_weight!r}"
        )
    given = {known[key]: float(value) for key, value in class_weight.items()}
    return {i: given.get(i, 1.0) for i in range(len(names))}


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


def _new_optimizer(optimizer: Any, learning_rate: float) -> keras.optimizers.Optimizer:
    if optimizer is None or isinstance(optimizer, str):
        named = keras.optimizers.get(optimizer or "adam")
        return named.from_config({**named.get_config(), "learning_rate": learning_rate})
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return optimizer.from_config(optimizer.get_config())
    raise ValueError(
        "`optimizer` must be the name of a Keras optimizer, an instance of one, or None. "
        f"Received: {optimizer!r}"
    )


def _loss(model: keras.Model, head: keras.Layer, class_names: Sequence[str]) -> str:
    _check_outputs("head", model.output_shape, class_names)
    last = head.layers[-1] if isinstance(head, keras.Model) else head
    if getattr(last, "activation", None) is keras.activations.linear:
        raise ValueError(
            "`head` must end in probabilities; give its last layer activation='softmax' (or "
            f"'sigmoid' for a single output). Received: {last.name!r} with a linear activation"
        )
    return (
        "binary_crossentropy" if model.output_shape[1] == 1 else "sparse_categorical_crossentropy"
    )
