"""The outputs of a model for images: of pixels, or of the kept features of its frozen part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import image_size
from finetune_kit._data.batches import WORKERS, ahead
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache, opened
from finetune_kit._features.engine import in_this_process, outputs_of
from finetune_kit._features.frozen import FeatureSource, source_of
from finetune_kit._model.plan import FreezePlan
from finetune_kit._train.classifier import Classifier


def scores_of(
    network: keras.Model,
    load: Callable[[NDArray[np.int64]], Any],
    indices: Sequence[int] | NDArray[np.int64],
    batch_size: int,
    verbose: str | int = 0,
    *,
    flip: bool = False,
    threads: int = WORKERS,
) -> NDArray[np.float64]:
    """Return the outputs of a model for images, float64 `(len(indices), num_outputs)`.

    Threads load batches ahead. All batches have one size, so that the backend traces the model
    once.

    Args:
        network: the model.
        load: returns what the model takes for some images, such as uint8 pixels `(n, h, w, 3)`.
        indices: the numbers of the images.
        batch_size: images per step.
        verbose: 0 for silence, `"auto"`, 1 or 2 for a progress bar.
        flip: whether to return the means of the outputs for images and their mirror images; only
            for pixels.
        threads: how many threads load batches.
    """
    chosen, count = np.asarray(indices, np.int64), len(indices)
    size = min(batch_size, count)
    batches = [chosen[start : start + size] for start in range(0, count, size)]
    scores, done = np.empty((count, network.output_shape[1])), 0
    bar = keras.utils.Progbar(count, verbose=1 if verbose == "auto" else verbose, unit_name="image")
    with in_this_process(network) as local:
        for batch, given in zip(batches, ahead(load, batches, threads), strict=True):
            outputs = outputs_of(local, given, size)
            if flip:
                outputs = (outputs + outputs_of(local, given[:, :, ::-1].copy(), size)) / 2
            scores[done : done + len(batch)] = outputs[: len(batch)]
            done += len(batch)
            bar.update(done)
    return scores


def scores_of_features(
    source: FeatureSource,
    whole: keras.Model,
    plan: FreezePlan,
    indices: Sequence[int] | NDArray[Any],
) -> NDArray[np.float64]:
    """Return the outputs of a trained model for images, computed from their kept features.

    Args:
        source: where the features are; those that are missing are computed.
        whole: the trained model.
        plan: what was frozen.
        indices: of images of the source that are not augmented.
    """
    trainee = source.trainee(whole, plan)
    load = partial(trainee.validation.load, epoch=0)
    return scores_of(trainee.model, load, indices, source.batch_size, threads=1)


def classifier_scores(
    classifier: Classifier,
    images: ImageSet,
    cache: FeatureCache | None,
    batch_size: int,
    verbose: str | int = 0,
    *,
    flip: bool = False,
) -> NDArray[np.float64]:
    """Return the outputs of a trained model for an image set.

    With a cache, and if it is known what was frozen, they are computed from the features of the
    frozen part, which are kept there.
    """
    network, size = classifier.network, image_size("model", classifier.network)
    plan = classifier.plan
    if cache is None or plan is None:
        load = partial(images.load, size=size)
        return scores_of(network, load, range(len(images)), batch_size, verbose, flip=flip)
    with opened(cache, None) as kept, in_this_process(network) as local:
        source = source_of(images, kept or cache, size, batch_size, verbose)
        return scores_of_features(source, local, plan, range(len(images)))
