"""A spec's numbers and a user's wishes come in, what `compile` and `fit` need goes out.

Optimizer, loss and class weights: this room knows neither images nor blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from finetune_kit._checks import check_outputs


def new_optimizer(optimizer: Any, learning_rate: float) -> keras.optimizers.Optimizer:
    if optimizer is None or isinstance(optimizer, str):
        named = keras.optimizers.get(optimizer or "adam")
        return named.from_config({**named.get_config(), "learning_rate": learning_rate})
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return optimizer.from_config(optimizer.get_config())
    raise ValueError(
        "`optimizer` must be the name of a Keras optimizer, an instance of one, or None. "
        f"Received: {optimizer!r}"
    )


def loss_for(model: keras.Model, head: keras.Layer, class_names: Sequence[str]) -> str:
    check_outputs("head", model.output_shape, class_names)
    last = head.layers[-1] if isinstance(head, keras.Model) else head
    if getattr(last, "activation", None) is keras.activations.linear:
        raise ValueError(
            "`head` must end in probabilities; give its last layer activation='softmax' (or "
            f"'sigmoid' for a single output). Received: {last.name!r} with a linear activation"
        )
    return (
        "binary_crossentropy" if model.output_shape[1] == 1 else "sparse_categorical_crossentropy"
    )


def class_weights(
    class_weight: str | Mapping[int | str, float] | None,
    labels: NDArray[np.int64],
    names: Sequence[str],
) -> dict[int, float] | None:
    if class_weight is None:
        return None
    if class_weight == "balanced":
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
