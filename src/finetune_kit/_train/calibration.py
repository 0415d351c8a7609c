"""Temperature scaling: probabilities that are as high as the accuracy (Guo et al., ICML 2017)."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit

from finetune_kit._features.frozen import FeatureSource
from finetune_kit._train.scores import scores_of_features
from finetune_kit._train.setup import Setup

FLOOR = 1e-7  # of a probability, as in Keras' cross-entropies
_RANGE = (0.05, 20.0)  # of a temperature
# Standard deviation of log temperatures around 0, as known beforehand. It keeps a few images that
# are all predicted right from making a model certain; with a hundred it hardly changes the loss.
_SPREAD = 1.0
_ACTIVATIONS = (keras.activations.softmax, keras.activations.sigmoid)


def losses(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cross-entropy of each image, `(n,)`: of multi-label images the mean over labels.

    Args:
        scores: probabilities `(n, classes)`, or `(n, 1)`, of the second of two classes.
        labels: class of each image `(n,)`, or 0 and 1 for each label `(n, classes)`.
    """
    clipped = np.clip(scores, FLOOR, 1 - FLOOR)
    if labels.ndim == 1 and scores.shape[1] > 1:
        return np.asarray(-np.log(clipped[np.arange(len(labels)), labels]))
    truth = labels.reshape(scores.shape)
    return np.asarray(-np.where(truth == 1, np.log(clipped), np.log1p(-clipped)).mean(axis=1))


def tempered(
    scores: NDArray[np.float64], temperature: float, *, softmax: bool
) -> NDArray[np.float64]:
    """Return probabilities whose logits are divided by a temperature."""
    clipped = np.clip(scores, FLOOR, 1 - FLOOR)
    if softmax:
        return np.asarray(np.exp(log_softmax(np.log(clipped) / temperature, axis=1)))
    return np.asarray(expit(logit(clipped) / temperature))


def best_temperature(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the most likely temperature, from 0.05 to 20.

    With a hundred images or more its mean cross-entropy is within 0.001 of the lowest. With fewer
    it is closer to 1, because a normal distribution of its logarithm is assumed beforehand.
    """
    softmax = labels.ndim == 1 and scores.shape[1] > 1

    def loss(log_temperature: float) -> float:
        scaled = tempered(scores, float(np.exp(log_temperature)), softmax=softmax)
        far = (log_temperature / _SPREAD) ** 2 / 2
        return float(losses(scaled, labels).mean()) + far / labels.size

    found = minimize_scalar(loss, bounds=tuple(np.log(_RANGE)), method="bounded")
    return float(np.exp(found.x))


def check_calibrate(calibrate: Any, head: keras.Layer, *, validated: bool) -> None:
    """Check that a model with this head can be calibrated."""
    number = isinstance(calibrate, (int, float)) and 0 < calibrate < math.inf
    if not isinstance(calibrate, bool) and not number:
        raise ValueError(
            "`calibrate` must be True, False, or a temperature above 0. "
            f"Received: calibrate={calibrate!r}"
        )
    if calibrate is False:
        return
    if calibrate is True and not validated:
        raise ValueError(
            "`calibrate=True` needs validation images; pass `validation`, or a temperature. "
            "Received: validation=None"
        )
    layer = _last_layer(head)
    if not isinstance(layer, keras.layers.Dense) or layer.activation not in _ACTIVATIONS:
        raise ValueError(
            "`head` must end in a Dense layer with a softmax or sigmoid to be calibrated, as that "
            f"of classification_head does. Received: a head that ends in {layer.name!r}, a "
            f"{type(layer).__name__}"
        )


def calibrated(setup: Setup, source: FeatureSource, whole: keras.Model) -> float | None:
    """Divide the logits of a trained model by the temperature that the setup asks for."""
    if setup.calibrate is False:
        return None
    temperature = float(setup.calibrate)
    if setup.calibrate is True:
        indices = np.arange(len(setup.train), len(setup.images))
        scores = scores_of_features(source, whole, setup.phases[-1].plan, indices)
        temperature = best_temperature(scores, setup.images.labels[indices])
    for weight in _last_layer(setup.head).weights:
        weight.assign(weight / temperature)
    return temperature


def _last_layer(head: keras.Layer) -> keras.Layer:
    while isinstance(head, keras.Model):
        head = head.layers[-1]
    return head
