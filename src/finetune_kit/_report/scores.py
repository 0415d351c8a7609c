"""The outputs of a model for images that are loaded ahead of it."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import ahead
from finetune_kit._features.engine import in_this_process


def scores_of(
    network: keras.Model,
    load: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    count: int,
    batch_size: int,
    verbose: str | int = 0,
    *,
    flip: bool = False,
) -> NDArray[np.float64]:
    """Return the outputs of a model for images, float64 `(count, num_outputs)`.

    Threads load batches ahead. All batches have one size, so that the backend traces the model
    once.

    Args:
        network: the model.
        load: returns the pixels of some images, given their numbers, uint8 `(n, h, w, 3)`.
        count: the number of images.
        batch_size: images per step.
        verbose: 0 for silence, `"auto"`, 1 or 2 for a progress bar.
        flip: whether to return the means of the outputs for images and their mirror images.
    """
    size = min(batch_size, count)
    batches = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
    scores = np.empty((count, network.output_shape[1]))
    bar = keras.utils.Progbar(count, verbose=1 if verbose == "auto" else verbose, unit_name="image")
    with in_this_process(network) as local:
        for indices, pixels in zip(batches, ahead(load, batches), strict=True):
            padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
            padded[: len(pixels)] = pixels
            outputs = np.asarray(local.predict_on_batch(padded))
            if flip:
                mirrored = np.asarray(local.predict_on_batch(padded[:, :, ::-1].copy()))
                outputs = (outputs + mirrored) / 2
            scores[indices] = outputs[: len(indices)]
            bar.update(int(indices[-1]) + 1)
    return scores
