"""Loss, metrics and class weights, chosen from the head and the labels."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from finetune_kit._checks import check_outputs

_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras picks the variant from the outputs
_COMPARABLE = (bool, int, float, str, bytes, type(None))  # values with a repr of their own
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
            if any(map(_takes_integers, given)):
                raise ValueError(
                    f"`{role}` is given one-hot labels, so it must be one that takes no integers "
                    f"(those with 'sparse' in their name do), such as {instead!r}. "
                    f"Received: {getattr(self, role)!r}"
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

    def check_comparable(self) -> None:
        """Check that a later run can be compared with this one, whose state is kept."""
        parts = [("loss", self.config["loss"])]
        parts += [("metrics", metric) for metric in self.config["metrics"] or ()]
        for role, part in parts:
            if isinstance(part, dict) and not part.get("comparable", True):
                raise ValueError(
                    f"`{role}` must be comparable with that of an earlier run, because `run_dir` "
                    "resumes it. Write it as a class with `get_config`, registered by "
                    "keras.saving.register_keras_serializable, or as a function that captures "
                    f"numbers and text alone. Received: {part['function']}, which captures other "
                    "objects"
                )


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
        if loss is not None and not (isinstance(loss, str) and loss.lower() in _BY_SHAPE):
            self._check_fit("loss", loss, keras.losses.get(loss))
        for metric in self.choices.metrics or ():
            if type(metric) is keras.metrics.Accuracy:
                raise ValueError(
                    "`metrics` must compare probabilities with labels; pass 'accuracy'. Received: "
                    "keras.metrics.Accuracy(), which compares them for equality"
                )
            if not (isinstance(metric, str) and metric.lower() in _BY_SHAPE):
                found = keras.metrics.get(metric) if isinstance(metric, str) else metric
                self._check_fit("metrics", metric, found)

    def _check_fit(self, role: str, given: Any, found: Any) -> None:
        """Check a loss or metric on targets and probabilities of the shapes of a batch."""
        count = self.outputs + 2  # not as many images as classes
        if self.kind == "softmax":
            targets = np.eye(self.outputs, dtype=np.float32)[np.arange(count) % self.outputs]
        else:
            targets = np.indices((count, self.outputs)).sum(axis=0).astype(np.float32) % 2
        pair = [keras.ops.convert_to_tensor(x) for x in (targets, 0.8 * targets + 0.1)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `fit` will repeat them
                shape = np.shape(keras.ops.convert_to_numpy(_value(found, pair)))
        except Exception as error:
            raise ValueError(
                f"`{role}` must compare labels and probabilities, both of the shape (n, "
                f"{self.outputs}){', the labels one-hot' if self.kind == 'softmax' else ''}. "
                f"Received: {given!r}, which fails with {type(error).__name__}: {error}"
            ) from error
        _check_shape(role, given, found, shape, count)

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


def _value(found: Any, pair: Sequence[Any]) -> Any:
    """Return the value of a loss or metric for labels and probabilities."""
    if not isinstance(found, keras.Metric):
        return found(*pair)
    probe = found.from_config(found.get_config())
    probe.update_state(*pair, sample_weight=None)
    return probe.result()


def _check_shape(role: str, given: Any, found: Any, shape: tuple[int, ...], count: int) -> None:
    """Check that a metric is one number, and a function one number, or one for each image."""
    single = isinstance(found, (keras.Metric, keras.Loss))
    if not shape or (not single and shape[:1] == (count,)):
        return
    name = type(found).__name__ if single else _name(found)
    hint = f"; pass for example keras.metrics.{name}(average='macro')" if single else ""
    raise ValueError(
        f"`{role}` must return a single number, which the history records{hint}. Received: "
        f"{given!r}, which returns an array of shape {shape}"
    )


def _takes_integers(given: Any) -> bool:
    integers = ("circle", "ctc", "categoricalgeneralizedcrossentropy")
    name = _lower_name(given)
    return name.startswith("sparse") or name in integers


def _lower_name(given: Any) -> str:
    """Return the name of a loss or metric without underscores: `categoricalcrossentropy`."""
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    return name.lower().replace("_", "")


def _plain(value: Any) -> Any:
    if inspect.isfunction(value) and not value.__module__.startswith("keras."):
        return _function(value)
    return keras.saving.serialize_keras_object(value)


def _function(value: Any) -> dict[str, Any]:
    """Return a function of the user's as plain values: its name, its code, and what it captures."""
    code = value.__code__
    captured = [cell.cell_contents for cell in value.__closure__ or ()]
    captured += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    captured += [constant for constant in code.co_consts if not inspect.iscode(constant)]
    return {
        "function": value.__qualname__,
        "code": hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest(),
        "captured": [repr(one) if isinstance(one, _COMPARABLE) else None for one in captured],
        "comparable": all(isinstance(one, _COMPARABLE) for one in captured),
    }
