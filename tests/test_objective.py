"""What a model is trained toward: chosen from head and labels, or given."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import finetune_kit as ftk

TOP = keras.metrics.TopKCategoricalAccuracy(k=3, name="top3")
SPLIT = ftk.Split(np.arange(16), np.arange(16, 20), np.arange(20, 24))


@pytest.fixture
def findings():
    """24 images with two labels: is the left half light, is the right half light."""
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(24) % 2, np.arange(24) // 2 % 2], axis=1)
    pixels = rng.integers(0, 40, (24, 32, 32, 3))
    pixels[:, :, :16] += 200 * labels[:, 0, None, None, None]
    pixels[:, :, 16:] += 200 * labels[:, 1, None, None, None]
    return ftk.ImageSet.from_arrays(pixels.astype(np.uint8), labels, ["left", "right"])


def tune(backbone, images, head, **options):
    spec = options.pop("spec", ftk.FineTuneSpec(0, epochs=2))
    return ftk.fine_tune(backbone, head, spec, images, SPLIT, preprocessing=None, batch_size=8,
                         verbose=0, **options)  # fmt: skip


def test_several_labels_are_learned(small_backbone, findings):
    head = ftk.multilabel_head(2, pooling="flatten")
    spec = ftk.FineTuneSpec(0, epochs=60, learning_rate=0.02)
    tuned = tune(small_backbone, findings, head, spec=spec)
    assert tuned.history["accuracy"][-1] > 0.95
    scores = tuned.model.predict(findings.load(size=(32, 32)), verbose=0)
    assert scores.shape == (24, 2)
    assert ((scores > 0.5) == findings.labels).mean() > 0.95


@pytest.mark.parametrize("kind", ["softmax", "binary", "multilabel"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_keras(small_backbone, findings, kind, smoothing):
    """A head that does not move (learning rate 0): its loss is known."""
    labels = findings.labels if kind == "multilabel" else findings.labels[:, 0]
    images = ftk.ImageSet.from_arrays(findings.load(size=(32, 32)), labels, ["a", "b"])
    head = (
        ftk.multilabel_head(2)
        if kind == "multilabel"
        else ftk.classification_head({"softmax": 2, "binary": 1}[kind])
    )
    spec = ftk.FineTuneSpec(0, learning_rate=1e-12)
    tuned = tune(small_backbone, images, head, spec=spec, label_smoothing=smoothing)
    targets = {"softmax": np.eye(2)[labels.ravel()[:24]] if kind == "softmax" else None,
               "binary": labels.reshape(24, -1), "multilabel": labels}[kind]  # fmt: skip
    loss = (
        keras.losses.CategoricalCrossentropy
        if kind == "softmax"
        else keras.losses.BinaryCrossentropy
    )(label_smoothing=smoothing)
    made = tuned.model.predict(images.load(size=(32, 32)), verbose=0)
    for name, part in (("loss", SPLIT.train), ("val_loss", SPLIT.validation)):
        expected = float(loss(targets[part].astype("float32"), made[part]))
        assert tuned.history[name][0] == pytest.approx(expected, rel=1e-4)
    right = (made.argmax(axis=1) if kind == "softmax" else made > 0.5) == (
        labels if kind != "binary" else targets
    )
    assert tuned.history["val_accuracy"][0] == pytest.approx(right[SPLIT.validation].mean())


def test_loss_and_metrics_may_be_given(small_backbone, tiny_images):
    tuned = tune(
        small_backbone,
        tiny_images,
        ftk.classification_head(3),
        spec=[ftk.FineTuneSpec(0, epochs=2), ftk.FineTuneSpec(1)],
        loss=keras.losses.CategoricalFocalCrossentropy(gamma=1.0),
        metrics=["accuracy", keras.metrics.AUC(name="auc"), "mean_absolute_error", TOP],
    )
    names = {"loss", "accuracy", "auc", "mean_absolute_error", "top3"}
    assert set(tuned.history) == {*names, *(f"val_{n}" for n in names), "epoch", "phase"}
    assert tuned.history["top3"] == [1.0, 1.0, 1.0]
    alone = tune(small_backbone, tiny_images, ftk.classification_head(3), metrics=[])
    assert set(alone.history) == {"loss", "val_loss", "epoch", "phase"}
    assert ftk.evaluate(alone.model, tiny_images).accuracy >= 0


def test_another_objective_is_another_run(small_backbone, tiny_images, tmp_path):
    head = ftk.classification_head(3)
    tune(small_backbone, tiny_images, head, run_dir=tmp_path)
    with pytest.raises(ValueError, match="objective"):
        tune(small_backbone, tiny_images, head, run_dir=tmp_path, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("head", "options", "says"),
    [
        (ftk.classification_head(3), {"label_smoothing": 1.0}, "`label_smoothing` must be"),
        (ftk.classification_head(3), {"label_smoothing": 0.1, "loss": "mse"}, "Received both"),
        (ftk.classification_head(3), {"metrics": "accuracy"}, "`metrics` must be"),
        (ftk.classification_head(3), {"loss": "sparse_categorical_crossentropy"}, "one-hot"),
        (ftk.classification_head(3), {"loss": "no such loss"}, "no such loss"),
        (ftk.classification_head(3), {"metrics": ["acuracy"]}, "acuracy"),
        (ftk.classification_head(4), {}, "one probability for each of the 3 classes"),
        (ftk.multilabel_head(3), {}, "of a softmax, as classification_head"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    small_backbone, tiny_images, tmp_path, head, options, says
):
    with pytest.raises(ValueError, match=says):
        tune(small_backbone, tiny_images, head, cache_dir=tmp_path, **options)
    assert ftk.cached_features(tmp_path) == ()


def test_several_labels_need_their_own_head(small_backbone, findings):
    with pytest.raises(ValueError, match="as multilabel_head"):
        tune(small_backbone, findings, ftk.classification_head(2))
    with pytest.raises(ValueError, match=r"each of the 2 labels.*multilabel_head\(2\)"):
        tune(small_backbone, findings, ftk.multilabel_head(3))
    with pytest.raises(ValueError, match="images of one class each"):
        tune(small_backbone, findings, ftk.multilabel_head(2), class_weight="balanced")
