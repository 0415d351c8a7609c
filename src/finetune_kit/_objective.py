"""A head and labels come in, what it is trained toward goes out: loss and class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from finetune_kit._checks import check_outputs


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
