"""Targets, loss and metrics, which follow from head and labels or are given."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import finetune_kit as ftk

HEAD = ftk.classification_head(3)
STILL = ftk.FineTuneSpec(0, learning_rate=1e-12)  # the model stays, so its loss is known


def mean_distance(y_true, y_pred):
    """A metric as a plain function."""
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)


@pytest.fixture(scope="module")
def findings():
    """24 images with two labels: is the left half light, and is the right half light?"""
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(24) % 2, np.arange(24) // 2 % 2], axis=1)
    pixels = rng.integers(0, 40, (24, 32, 32, 3))
    pixels[:, :, :16] += 200 * labels[:, 0, None, None, None]
    pixels[:, :, 16:] += 200 * labels[:, 1, None, None, None]
    return ftk.ImageSet.from_arrays(pixels.astype(np.uint8), labels, ["left", "right"])


def parts(images) -> dict[str, ftk.ImageSet]:
    return {"train": images.take(np.arange(16)), "validation": images.take(np.arange(16, 24))}


def test_several_labels_are_learned(tune, findings):
    head = ftk.classification_head(2, pooling="flatten", multi_label=True)
    spec = ftk.FineTuneSpec(0, epochs=60, learning_rate=0.02)
    tuned = tune(spec, head=head, batch_size=8, **parts(findings))
    assert tuned.history["accuracy"][-1] > 0.95
    scores = tuned.model.predict(findings.load(size=(32, 32)), verbose=0)
    assert scores.shape == (24, 2)
    assert ((scores > 0.5) == findings.labels).mean() > 0.95


@pytest.mark.parametrize("kind", ["softmax", "binary", "multi_label"])
@pytest.mark.parametrize("given", [False, True], ids=["its own loss", "a given loss"])
def test_loss_and_accuracy_are_those_of_keras(tune, findings, kind, given):
    labels = findings.labels if kind == "multi_label" else findings.labels[:, 0]
    images = ftk.ImageSet.from_arrays(findings.load(size=(32, 32)), labels, ["a", "b"])
    outputs = {"softmax": 2, "binary": 1, "multi_label": 2}[kind]
    head = ftk.classification_head(outputs, multi_label=kind == "multi_label")
    name = "CategoricalCrossentropy" if kind == "softmax" else "BinaryCrossentropy"
    loss = getattr(keras.losses, name)(label_smoothing=0.2 if given else 0.0)
    sets = parts(images)
    tuned = tune(STILL, head=head, batch_size=8, loss=loss if given else None, **sets)
    for prefix, part in (("", sets["train"]), ("val_", sets["validation"])):
        scores = tuned.model.predict(part.load(size=(32, 32)), verbose=0)
        softmax = kind == "softmax"
        targets = np.eye(2)[part.labels] if softmax else part.labels.reshape(len(part), -1)
        expected = float(loss(targets.astype("float32"), scores))
        assert tuned.history[f"{prefix}loss"][0] == pytest.approx(expected, rel=1e-4)
        predicted = scores.argmax(axis=1) if softmax else scores > 0.5
        right = (predicted == (part.labels if softmax else targets)).mean()
        assert tuned.history[f"{prefix}accuracy"][0] == pytest.approx(right)


def test_loss_and_metrics_may_be_given(tune, sets):
    top = keras.metrics.TopKCategoricalAccuracy(k=2, name="top2")
    loss = keras.losses.CategoricalFocalCrossentropy(gamma=1.0)
    tuned = tune(
        [STILL, STILL],
        head=HEAD,
        loss=loss,
        metrics=["accuracy", keras.metrics.AUC(name="auc"), "mean_absolute_error", top,
                 mean_distance],
    )  # fmt: skip
    names = {"loss", "accuracy", "auc", "mean_absolute_error", "top2", "mean_distance"}
    assert set(tuned.history) == {*names, *(f"val_{n}" for n in names), "epoch", "phase"}
    targets = np.eye(3, dtype="f4")[sets.validation.labels]
    scores = tuned.model.predict(sets.validation.load(size=(32, 32)), verbose=0)
    ranks = (scores > scores[targets == 1][:, None]).sum(axis=1)
    auc = keras.metrics.AUC()
    auc.update_state(targets, scores)
    expected = {
        "loss": float(loss(targets, scores)),
        "accuracy": (ranks < 1).mean(),
        "top2": (ranks < 2).mean(),
        "auc": float(auc.result()),
        "mean_absolute_error": np.abs(targets - scores).mean(),
        "mean_distance": np.abs(targets - scores).mean(),
    }
    assert 0 < expected["top2"] < 1
    for name, value in expected.items():
        assert tuned.history[f"val_{name}"] == pytest.approx([value] * 2, rel=1e-4), name
    json.dumps(dict(tuned.settings))


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        (None, "accuracy"),
        ("accuracy", "accuracy"),
        (keras.metrics.F1Score(average="macro"), "f1_score"),
        (mean_distance, "mean_distance"),
        ([], None),
    ],
)
def test_one_metric_needs_no_list(tune, metrics, name):
    tuned = tune(ftk.FineTuneSpec(0), head=HEAD, metrics=metrics)
    names = ["loss"] if name is None else ["loss", name]
    assert set(tuned.history) == {*names, *(f"val_{n}" for n in names), "epoch", "phase"}
    assert ftk.evaluate(tuned.model, tuned.validation).scores.shape == (6, 3)


SPARSE = keras.losses.SparseCategoricalCrossentropy()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metrics": 3}, "`metrics` must be a list of Keras metrics, or None.*metrics=3$"),
        ({"metrics": ["accuracy", None]}, "`metrics` must be names, functions or instances"),
        ({"metrics": [keras.metrics.AUC]}, r"`metrics` must be names.*an instance, AUC\(\)"),
        ({"metrics": ["f1"]}, r"such as keras.metrics.F1Score\(\).* Received: 'f1'$"),
        ({"metrics": "acuracy"}, "such as 'accuracy'.* Received: 'acuracy'$"),
        ({"metrics": ["f1_score"]}, r"single number.*F1Score\(average='macro'\).*'f1_score'"),
        ({"metrics": [keras.metrics.Accuracy()]}, "pass 'accuracy'.* compares them for equality"),
        ({"metrics": ["sparse_categorical_accuracy"]}, "`metrics` is given one-hot labels"),
        ({"loss": "sparse_categorical_crossentropy"}, "`loss` is given one-hot labels"),
        ({"loss": SPARSE}, "`loss` is given one-hot labels.*'categorical_crossentropy'"),
        ({"loss": "no such loss"}, "`loss` must be .* Received: 'no such loss'"),
        ({"loss": 3}, "`loss` must be .* Received: 3"),
        ({"loss": keras.losses.CategoricalCrossentropy}, r"`loss` must be .*CategoricalCrossen"),
        ({"head": ftk.classification_head(4)}, "one probability for each of the 3 classes"),
        (
            {"head": ftk.classification_head(3, multi_label=True)},
            r"`head` must end in a softmax for these labels, as classification",
        ),
    ],
)
def test_what_does_not_fit_is_rejected(tune, tmp_path, rejected, options, says):
    with rejected(says):
        tune(ftk.FineTuneSpec(0), features=tmp_path, **options)


def test_several_labels_need_their_own_head(tune, findings, rejected):
    several, wide = (ftk.classification_head(n, multi_label=True) for n in (2, 3))
    softmax = ftk.classification_head(2)
    with rejected(r"`head` must end in a sigmoid.*classification_head\(.*multi_label=True\)"):
        tune(head=softmax, **parts(findings))
    with rejected(r"each of the 2 labels.*classification_head\(2, multi_label=True\)"):
        tune(head=wide, **parts(findings))
    with rejected("`loss` must fit a head of sigmoids.*which needs a softmax"):
        tune(head=several, loss="categorical_crossentropy", **parts(findings))
    with rejected("`class_weight` is for images with one class each"):
        tune(head=several, class_weight="balanced", **parts(findings))
    single = ftk.ImageSet.from_arrays(
        findings.load(size=(32, 32)), findings.labels[:, 0], ["left", "right"]
    )
    with rejected("`validation` must have the classes of `train`"):
        tune(head=several, **{**parts(findings), "validation": single})
