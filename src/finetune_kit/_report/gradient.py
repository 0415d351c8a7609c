"""The gradient of a model's scores with respect to the channels of a feature map.

Keras has no public function for gradients, but a training step computes one: a variable that is
added to the features and updated by plain gradient descent with learning rate 1 changes by the
gradient. This needs no backend's own functions and works alike on all of them. A copy is trained.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._model.copying import copy
from finetune_kit._model.flattening import flattened
from finetune_kit._model.graph import made_by, rewire


class Probe(keras.Model):
    """A model from features to scores, with a trainable shift for each image and channel.

    The shift is added at every position of a feature map, so its gradient is the sum over all
    positions.

    Args:
        suffix: the model from features to class scores. A copy of it is used.
        place: index of the input that is the feature map.
        batch_size: images per step.
        predicted: whether to use the score of the predicted class, not that of a given class.
    """

    def __init__(
        self, suffix: keras.Model, place: int, batch_size: int, *, predicted: bool
    ) -> None:
        super().__init__(name="probe", dtype="float32")  # the copy keeps its own dtype policy
        self.scores, self.place = _without_last_activation(copy(suffix)), place
        self.scores.trainable = False
        channels = suffix.inputs[place].shape[-1]
        self.shift = self.add_weight(shape=(batch_size, 1, 1, channels), initializer="zeros")
        # The factor keeps small gradients from vanishing in float16; the update divides by it.
        descent = keras.optimizers.SGD(learning_rate=1.0, loss_scale_factor=1024.0)
        loss = _highest_score if predicted else _target_score
        self.compile(optimizer=descent, loss=loss, auto_scale_loss=False)

    def call(self, features: Any) -> Any:
        """Return the scores; a single score becomes two columns, its negative and itself."""
        tensors = keras.tree.flatten(features)
        tensors[self.place] = tensors[self.place] + self.shift
        # An explicit `training=False` also holds in a training step, so dropout is off.
        scores = self.scores(tensors if len(tensors) > 1 else tensors[0], training=False)
        scores = keras.tree.flatten(scores)[0]  # a Sequential's graph returns a list of one
        if scores.shape[-1] > 1:
            return scores
        return keras.ops.concatenate([-scores, scores], axis=-1)

    def gradient(self, features: Any, targets: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the gradient of each image's score, `(batch_size, channels)`.

        Args:
            features: the model's inputs for one batch.
            targets: the classes, one-hot.
        """
        self.shift.assign(np.zeros(self.shift.shape, np.float32))
        self.train_on_batch(features, targets)
        return np.array(keras.ops.convert_to_numpy(self.shift))[:, 0, 0]


def _target_score(targets: Any, scores: Any) -> Any:
    return -keras.ops.sum(targets * scores)


def _highest_score(_: Any, scores: Any) -> Any:
    return -keras.ops.sum(keras.ops.max(scores, axis=-1))


def _without_last_activation(twin: keras.Model) -> keras.Model:
    """Return the model without its final softmax or sigmoid, or the model itself if it has none.

    A model that ends in probabilities and has no such activation is used as it is: the gradient of
    a log-probability differs by one factor per image, which a map scaled to its maximum hides.
    """
    twin = flattened(twin)
    last, node = made_by(twin.outputs[0])
    while _keeps_scores(last) and len(node.input_tensors) == 1:
        last, node = made_by(node.input_tensors[0])
    squashing = ("softmax", "sigmoid", "log_softmax", "log_sigmoid")
    if type(last).__name__.lower() in [name.replace("_", "") for name in squashing]:
        outputs = rewire(node.outputs, node.input_tensors, twin.outputs)
        return keras.Model(twin.input, outputs[0])
    if getattr(getattr(last, "activation", None), "__name__", None) in squashing:
        last.activation = keras.activations.linear  # `twin` is a copy
    return twin


def _keeps_scores(operation: Any) -> bool:
    """Return whether an operation changes the shape or type of scores alone, or nothing at all."""
    if getattr(getattr(operation, "activation", None), "__name__", "linear") != "linear":
        return False
    names = ("Activation", "Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze")
    return type(operation).__name__ in names
