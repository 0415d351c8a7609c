"""Loss, metrics and class weights, chosen from the head and the labels."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from finetune_kit._checks import check_outputs

_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras picks the variant from the outputs
_ACTIVATIONS = {"softmax": "softmax", "binary": "sigmoid", "multi_label": "sigmoid"}


@dataclass(frozen=True, eq=False)
class Choices:
    """The user's loss and metrics. None: chosen from the head."""

    loss: Any = None
    metrics: Sequence[Any] | None = None

    def check(self) -> None:
        """Check that Keras knows the loss and metrics, and that they take one-hot labels."""
        if self.metrics is not None and not all(map(_is_metric, self.metrics)):
            classes = [f"{m.__name__}()" for m in self.metrics if isinstance(m, type)]
            raise ValueError(
                "`metrics` must be names, functions or instances of Keras metrics"
                f"{f' (an instance, {classes[0]})' if classes else ''}. Received: {self.metrics!r}"
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
            _check_loss(self.loss)
        for metric in self.metrics or ():
            if isinstance(metric, str) and metric.lower() not in _BY_SHAPE:
                _check_metric_name(metric)

    @property
    def names(self) -> list[str]:
        """What the history calls loss and metrics."""
        metrics = ("accuracy",) if self.metrics is None else self.metrics
        return ["loss", *(m if isinstance(m, str) else _name(m) for m in metrics)]

    @property
    def config(self) -> dict[str, Any]:
        """The same as plain values."""
        metrics = self.metrics and [m if isinstance(m, str) else _plain(m) for m in self.metrics]
        return {"loss": self.loss and _plain(keras.losses.get(self.loss)), "metrics": metrics}


@dataclass(frozen=True, eq=False)
class Objective:
    """What a model is trained to do: its targets, loss and metrics."""

    kind: str  # softmax, binary or multi_label
    choices: Choices
    labels: NDArray[np.int64]
    outputs: int

    def check(self) -> None:
        """Check that loss and metrics fit the head."""
        loss = self.choices.loss
        if self.kind != "softmax" and _lower_name(loss).startswith("categorical"):
            raise ValueError(
                "`loss` must fit a head of sigmoids, such as 'binary_crossentropy'. "
                f"Received: {loss!r}, which needs a softmax"
            )
        target = np.eye(self.outputs, dtype=np.float32)[:1]
        for metric in self.choices.metrics or ():
            if type(metric) is keras.metrics.Accuracy:
                raise ValueError(
                    "`metrics` must compare probabilities with labels; pass 'accuracy'. Received: "
                    "keras.metrics.Accuracy(), which compares them for equality"
                )
            _check_single_value(metric, target)

    def targets(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what the loss compares the model's outputs with, in their shape."""
        labels = self.labels[indices]
        if self.kind == "softmax":
            return np.eye(self.outputs, dtype=np.float32)[labels]
        return labels.reshape(len(labels), -1).astype(np.float32)

    def compile_options(self) -> dict[str, Any]:
        """Return new loss and metrics for `compile`, because a metric belongs to one model."""
        loss: Any = self.choices.loss
        if loss is None:
            softmax = self.kind == "softmax"
            losses = keras.losses
            loss = (losses.CategoricalCrossentropy if softmax else losses.BinaryCrossentropy)()
        metrics = ("accuracy",) if self.choices.metrics is None else self.choices.metrics
        return {"loss": loss, "metrics": [self._metric(metric) for metric in metrics]}

    def _metric(self, metric: Any) -> Any:
        if isinstance(metric, keras.Metric):
            return metric.from_config(metric.get_config())
        if metric in ("accuracy", "acc") and self.kind != "softmax":
            return keras.metrics.BinaryAccuracy(name=metric)
        return metric


def as_choices(loss: Any, metrics: Any) -> Choices:
    """Return the checked choices; a single metric counts as a list of one."""
    if metrics is not None and _is_metric(metrics):
        metrics = [metrics]
    if metrics is not None and not isinstance(metrics, Sequence):
        raise ValueError(
            f"`metrics` must be a list of Keras metrics, or None. Received: metrics={metrics!r}"
        )
    choices = Choices(loss, metrics)
    choices.check()
    return choices


def objective(
    outputs: Any,
    head: keras.Layer,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    choices: Choices,
) -> Objective:
    """Choose the objective from the head's output shape and the labels, and check that they fit."""
    multi_label = labels.ndim == 2
    check_outputs("head", outputs, class_names, multi_label=multi_label)
    kind = "multi_label" if multi_label else "binary" if outputs[1] == 1 else "softmax"
    last = head.layers[-1] if isinstance(head, keras.Model) else head
    activation = getattr(getattr(last, "activation", None), "__name__", None)
    expected = _ACTIVATIONS[kind]
    if activation in {"linear", "softmax", "sigmoid"} - {expected}:
        hint = " (labels of shape (n, k) are multi-label)" if kind == "softmax" else ""
        builder = f"classification_head({'..., multi_label=True' if multi_label else '...'})"
        raise ValueError(
            f"`head` must end in a {expected} for these labels, as {builder} does; give its last "
            f"layer activation={expected!r}{hint}. "
            f"Received: {last.name!r} with a {activation} activation"
        )
    chosen = Objective(kind, choices, labels, outputs[1])
    chosen.check()
    return chosen


def class_weights(
    class_weight: str | Mapping[int | str, float] | None,
    labels: NDArray[np.int64],
    names: Sequence[str],
) -> dict[int, float] | None:
    """Return the weight of each class by its index, or None."""
    if class_weight is None:
        return None
    if labels.ndim == 2:
        raise ValueError(
            "`class_weight` is for images with one class each; for multi-label images pass a "
            "`loss` that balances, such as keras.losses.BinaryFocalCrossentropy("
            f"apply_class_balancing=True). Received: class_weight={class_weight!r}"
        )
    if class_weight == "balanced":
        classes = np.arange(len(names))
        balanced = compute_class_weight("balanced", classes=classes, y=labels)
        return dict(enumerate(balanced.tolist()))
    known: dict[int | str, int] = {
        **{i: i for i in range(len(names))},
        **{name: i for i, name in enumerate(names)},
    }
    if not isinstance(class_weight, Mapping) or not set(class_weight) <= set(known):
        raise ValueError(
            "`class_weight` must be 'balanced' or a mapping from class names or indices to "
            f"weights; the classes are {list(names)}. Received: class_weight={class_weight!r}"
        )
    given = {known[key]: float(value) for key, value in class_weight.items()}
    return {i: given.get(i, 1.0) for i in range(len(names))}


def _is_metric(value: Any) -> bool:
    known = isinstance(value, (str, keras.Metric)) or callable(value)
    return known and not isinstance(value, type)


def _check_loss(loss: Any) -> None:
    try:
        known = not isinstance(loss, type) and keras.losses.get(loss) is not None
    except (ValueError, TypeError):
        known = False
    if not known:
        raise ValueError(
            "`loss` must be the name, a function or an instance of a Keras loss, such as "
            f"'categorical_focal_crossentropy'. Received: {loss!r}"
        )


def _check_metric_name(name: str) -> None:
    try:
        keras.metrics.get(name)
    except ValueError as error:
        known = {k.lower(): f"keras.metrics.{k}()" for k in dir(keras.metrics) if k[0].isupper()}
        known |= {short: repr(short) for short in _BY_SHAPE}
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = ", ".join(known[found] for found in near)
        raise ValueError(
            "`metrics` must hold names that Keras knows, or instances of Keras metrics"
            f"{f', such as {hint}' if hint else ''}. Received: {name!r}"
        ) from error


def _name(metric: Any) -> str:
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", metric))


def _check_single_value(metric: Any, target: NDArray[np.float32]) -> None:
    try:
        found = keras.metrics.get(metric) if isinstance(metric, str) else metric
        probe = found.from_config(found.get_config())
        probe.update_state(target, target)
        shape = np.shape(keras.ops.convert_to_numpy(probe.result()))
    except Exception:  # a function, or a metric for other shapes: `compile` or `fit` will say
        return
    if shape:
        name = type(probe).__name__
        raise ValueError(
            "`metrics` must return a single number, which the history records; pass for example "
            f"keras.metrics.{name}(average='macro'). Received: {metric!r}, which returns an array "
            f"of shape {shape}"
        )


def _is_sparse(given: Any) -> bool:
    return _lower_name(given).startswith("sparse")


def _lower_name(given: Any) -> str:
    """Return the name of a loss or metric without underscores: `categoricalcrossentropy`."""
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    return name.lower().replace("_", "")


def _plain(value: Any) -> Any:
    return keras.saving.serialize_keras_object(value)
