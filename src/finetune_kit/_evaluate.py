"""A model and images come in, a report of how well it tells them apart goes out."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import ArrayLike

from finetune_kit._batches import Batches
from finetune_kit._checks import check_indices, check_outputs, image_size
from finetune_kit._images import ImageSet
from finetune_kit._metrics import figures
from finetune_kit._report import Report


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
        ValueError: if the model's outputs do not match the classes, there is no image, or an
            image has several labels.
    """
    chosen = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_indices("indices", chosen, len(images))
    if not len(chosen):
        raise ValueError("`indices` must name at least one image. Received: none")
    if images.labels.ndim == 2:
        raise ValueError(
            "`images` must have one class each: a report on several labels an image is not there "
            "yet; scikit-learn's metrics take `model.predict`'s output and `images.labels`. "
            f"Received: labels of shape {images.labels.shape}"
        )
    check_outputs("model", model.output_shape, images.class_names, many=False)
    size = image_size("model", model)
    batches = Batches(
        lambda indices, epoch: images.load(indices, size),
        lambda indices: images.labels[indices],
        chosen,
        batch_size,
    )
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
        manifest=images.manifest,
        **counted,
    )
