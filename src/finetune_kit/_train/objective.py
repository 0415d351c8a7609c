"""A head and labels come in, what it is trained toward goes out: loss, metrics, class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from finetune_kit._checks import check_outputs

_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # which one, Keras tells from the outputs
_ACTIVATIONS = {"softmax": "softmax", "binary": "sigmoid", "multilabel": "sigmoid"}


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a user says of loss and metrics; `loss` and `metrics` None: chosen from the head."""

    loss: Any = None
    metrics: Sequence[Any] | None = None
    label_smoothing: float = 0.0

    def check(self) -> None:
        """Refuse what Keras has no loss or metric for, or what contradicts itself."""
        if not (isinstance(self.label_smoothing, (int, float)) and 0 <= self.label_smoothing < 1):
            raise ValueError(
                "`label_smoothing` must be from 0 to below 1. "
                f"Received: label_smoothing={self.label_smoothing!r}"
            )
        if self.label_smoothing and self.loss is not None:
            raise ValueError(
                "`label_smoothing` belongs to the loss that is chosen from the head; give your own "
                "`loss` its own label_smoothing. Received both"
            )
        if isinstance(self.metrics, str) or not (
            self.metrics is None or all(isinstance(m, (str, keras.Metric)) for m in self.metrics)
        ):
            raise ValueError(
                "`metrics` must be a list of names or instances of Keras metrics. "
                f"Received: {self.metrics!r}"
            )
        for role, given, instead in (
            ("loss", [self.loss], "categorical_crossentropy"),
            ("metrics", self.metrics or (), "categorical_accuracy"),
        ):
            if any(map(_is_sparse, given)):
                raise ValueError(
                    f"`{role}` is given one-hot labels, so it must be one without 'sparse' in its "
                    f"name, such as {instead!r}. Received: {getattr(self, role)!r}"
                )
        if self.loss is not None:
            keras.losses.get(self.loss)
        for metric in self.metrics or ():
            if isinstance(metric, str) and metric.lower() not in _BY_SHAPE:
                keras.metrics.get(metric)

    @property
    def config(self) -> dict[str, Any]:
        """The same as plain values."""
        metrics = self.metrics and [m if isinstance(m, str) else _plain(m) for m in self.metrics]
        return {
            "loss": self.loss and _plain(keras.losses.get(self.loss)),
            "metrics": metrics,
            "label_smoothing": self.label_smoothing,
        }


@dataclass(frozen=True, eq=False)
class Objective:
    """What a model is trained toward."""

    kind: str  # softmax, binary or multilabel
    wanted: Wanted
    labels: NDArray[np.int64]
    count: int

    def targets(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the loss compares the model's output with, in its shape."""
        labels = self.labels[indices]
        if self.kind == "softmax":
            return np.eye(self.count, dtype=np.float32)[labels]
        return labels.reshape(len(labels), -1).astype(np.float32)

    def compiled(self) -> dict[str, Any]:
        """Loss and metrics for `compile`, new ones: a metric belongs to one model."""
        loss: Any = self.wanted.loss
        if loss is None:
            loss = (
                keras.losses.CategoricalCrossentropy
                if self.kind == "softmax"
                else keras.losses.BinaryCrossentropy
            )(label_smoothing=self.wanted.label_smoothing)
        metrics = ("accuracy",) if self.wanted.metrics is None else self.wanted.metrics
        return {"loss": loss, "metrics": [self._metric(metric) for metric in metrics]}

    def _metric(self, metric: Any) -> Any:
        if isinstance(metric, keras.Metric):
            return metric.from_config(metric.get_config())
        if metric in ("accuracy", "acc") and self.kind != "softmax":
            return keras.metrics.BinaryAccuracy(name=metric)
        return metric


def objective(
    model: keras.Model,
    head: keras.Layer,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    wanted: Wanted,
) -> Objective:
    """Tell from head and labels what the model is trained toward; refuse what does not fit."""
    check_outputs("head", model.output_shape, class_names, many=labels.ndim == 2)
    count = model.output_shape[1]
    kind = "multilabel" if labels.ndim == 2 else "binary" if count == 1 else "softmax"
    last = head.layers[-1] if isinstance(head, keras.Model) else head
    activation = getattr(getattr(last, "activation", None), "__name__", None)
    expected = _ACTIVATIONS[kind]
    if activation in {"linear", "softmax", "sigmoid"} - {expected}:
        builder = "multilabel_head" if kind == "multilabel" else "classification_head"
        raise ValueError(
            f"`head` must end in probabilities, for these labels of a {expected}, as {builder}() "
            f"does; give its last layer activation={expected!r}"
            f"{'' if kind == 'multilabel' else ' (labels of shape (n, k) are multi-label)'}. "
            f"Received: {last.name!r} with a {activation} activation"
        )
    return Objective(kind, wanted, labels, count)


def class_weights(
    class_weight: str | Mapping[int | str, float] | None,
    labels: NDArray[np.int64],
    names: Sequence[str],
) -> dict[int, float] | None:
    if class_weight is None:
        return None
    if labels.ndim == 2:
        raise ValueError(
            "`class_weight` is for images of one class each; for multi-label ones give a `loss` "
            "that balances, such as keras.losses.BinaryFocalCrossentropy("
            f"apply_class_balancing=True). Received: class_weight={class_weight!r}"
        )
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


def _is_sparse(given: Any) -> bool:
    names = (given, getattr(given, "name", None), type(given).__name__)
    return any(
        isinstance(name, str) and name.lower().replace("_", "").startswith("sparse")
        for name in names
    )


def _plain(value: Any) -> Any:
    return keras.saving.serialize_keras_object(value)
