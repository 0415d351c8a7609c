"""The rest of a model comes in, the gradient of its scores by the channels of its input goes out.

Keras has no public word for a gradient, but a train step is one: a variable that is added to the
features and moved by plain gradient descent at rate 1 has moved, after one step, by the gradient.
So no backend is imported, and it is the same on all three. This room knows nothing of pixels; what
trains here is a copy.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._model.graph import copy, made_by


class Probe(keras.Model):
    """The scores behind features to which a variable shift is added: one an image and channel.

    A shift is added at each place of a map, so its gradient is the sum over all places.

    Args:
        suffix: takes the features, gives a score for each class; a copy of it is used.
        place: which of its inputs is the map of features.
        batch_size: rows a step.
        predicted: whether the gradient of the highest score is wanted, whichever that is.
    """

    def __init__(
        self, suffix: keras.Model, place: int, batch_size: int, *, predicted: bool
    ) -> None:
        super().__init__(name="probe", dtype="float32")  # the rest keeps its policy
        self.scores, self.place = _without_last_activation(copy(suffix)), place
        self.scores.trainable = False
        channels = suffix.inputs[place].shape[-1]
        self.shift = self.add_weight(shape=(batch_size, 1, 1, channels), initializer="zeros")
        # A constant factor, taken back in the update, keeps small gradients alive in float16.
        descent = keras.optimizers.SGD(learning_rate=1.0, loss_scale_factor=1024.0)
        loss = _highest_score if predicted else _wanted_score
        self.compile(optimizer=descent, loss=loss, auto_scale_loss=False)

    def call(self, features: Any) -> Any:
        """Scores in two columns or more: a single one tells a class (+) from another (-)."""
        tensors = keras.tree.flatten(features)
        tensors[self.place] = tensors[self.place] + self.shift
        # Said here, `training=False` holds in a train step too: no Dropout.
        scores = self.scores(tensors if len(tensors) > 1 else tensors[0], training=False)
        scores = keras.tree.flatten(scores)[0]  # a Sequential's graph has a list of one
        if scores.shape[-1] > 1:
            return scores
        return keras.ops.concatenate([-scores, scores], axis=-1)

    def gradient(self, features: Any, wanted: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient of each row's score, `(batch_size, channels)`; `wanted` is one-hot."""
        self.shift.assign(np.zeros(self.shift.shape, np.float32))
        self.train_on_batch(features, wanted)
        return np.array(keras.ops.convert_to_numpy(self.shift))[:, 0, 0]


def _wanted_score(wanted: Any, scores: Any) -> Any:
    return -keras.ops.sum(wanted * scores)


def _highest_score(_: Any, scores: Any) -> Any:
    return -keras.ops.sum(keras.ops.max(scores, axis=-1))


def _without_last_activation(twin: keras.Model) -> keras.Model:
    """The scores before the softmax or sigmoid; where there is none, the outputs themselves.

    The gradient of a probability by way of its logarithm would differ by a factor for each image,
    which a map scaled to its highest value does not show.
    """
    last, node = made_by(twin.outputs[0])
    if isinstance(last, keras.layers.Softmax):
        return keras.Model(twin.input, node.input_tensors[0])
    while isinstance(last, keras.Model):
        last, _ = made_by(last.outputs[0])
    squashing = (keras.activations.softmax, keras.activations.sigmoid)
    if getattr(last, "activation", None) in squashing:
        last.activation = keras.activations.linear  # of the copy
    return twin
