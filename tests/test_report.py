"""Figures equal scikit-learn's; what is saved can be read, and looked at."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix

import finetune_kit as ftk


class Scores(keras.layers.Layer):
    """A "model" whose scores are written into the pixels: brightness b of class c's corner."""

    def call(self, x):
        corner = keras.ops.cast(x[:, 0, :3, 0], "float32")
        return corner / keras.ops.sum(corner, axis=1, keepdims=True)


def evaluated(labels, scores, names=("a", "b & c", "d")) -> ftk.Report:
    """What `evaluate` says of a model that gives these scores (whole numbers)."""
    pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
    pixels[:, 0, :3] = np.asarray(scores)[:, :, None]
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, Scores()(inputs))
    return ftk.evaluate(model, ftk.ImageSet.from_arrays(pixels, labels, names))


rows = st.lists(
    st.tuples(st.integers(0, 2), st.permutations([10, 80, 160])), min_size=1, max_size=30
)


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 40)
    scores = rng.permuted(np.tile([10, 80, 160], (40, 1)), axis=1)
    report = evaluated(labels, scores)
    expected = classification_report(
        labels, scores.argmax(1), target_names=report.class_names, output_dict=True, zero_division=0
    )
    assert report.accuracy == pytest.approx(expected["accuracy"])
    assert report.macro_f1 == pytest.approx(expected["macro avg"]["f1-score"])
    assert report.weighted_f1 == pytest.approx(expected["weighted avg"]["f1-score"])
    for name in report.class_names:
        row = report.per_class[name]
        assert row["recall"] == pytest.approx(expected[name]["recall"])
        assert row["precision"] == pytest.approx(expected[name]["precision"])
        assert row["support"] == expected[name]["support"]
    assert np.array_equal(report.confusion_matrix, confusion_matrix(labels, scores.argmax(1)))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(0, 2))
def test_the_confusion_matrix_counts_every_image(labels, predicted):
    from finetune_kit._metrics import figures

    scores = np.eye(3)[[predicted] * len(labels)]
    counted = figures(np.array(labels), scores, ["a", "b", "c"])
    assert counted["confusion_matrix"].sum() == len(labels)
    assert counted["confusion_matrix"][:, predicted].sum() == len(labels)
    assert counted["accuracy"] == labels.count(predicted) / len(labels)


def test_the_table_can_be_read():
    report = evaluated([0, 0, 1, 2], [[9, 1, 0], [1, 9, 0], [1, 9, 0], [0, 1, 9]])
    lines = str(report).splitlines()
    assert lines[0].split() == ["precision", "recall", "F1", "support"]
    assert lines[1].split() == ["a", "1.000", "0.500", "0.667", "2"]
    assert lines[5].split() == ["accuracy", "0.750", "4"]
    assert max(map(len, lines)) <= 80


def test_a_saved_report_can_be_read_and_looked_at(small_backbone, tiny_images, tmp_path):
    split = ftk.Split(np.arange(12), np.arange(12, 18), np.arange(18, 24))
    tuned = ftk.fine_tune(
        small_backbone,
        ftk.classification_head(3),
        ftk.FineTuneSpec(epochs=2),
        tiny_images,
        split,
        verbose=0,
    )
    report = ftk.evaluate(tuned.model, tiny_images, split.test)
    folder = report.save(tmp_path / "a" / "b")
    assert sorted(p.name for p in folder.iterdir()) == [
        "confusion_matrix.png",
        "learning_curves.png",
        "report.json",
        "report.txt",
    ]
    saved = json.loads((folder / "report.json").read_text())
    assert saved == report.to_dict()
    assert saved["history"] == {name: list(v) for name, v in tuned.history.items()}
    assert (folder / "report.txt").read_text() == f"{report}\n"
    for picture in folder.glob("*.png"):
        pixels = np.asarray(Image.open(picture).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 10  # not blank
    report.save(folder)  # again: replaced, nothing left over
    assert len(list(folder.iterdir())) == 4


def test_without_curves_there_is_no_picture_of_them(tmp_path):
    report = evaluated([0, 1, 2], np.eye(3) * 9 + 1)
    assert "learning_curves.png" not in {p.name for p in report.save(tmp_path).iterdir()}


def test_model_and_report_name_the_manifest(small_backbone, tiny_images, tmp_path):
    images = dataclasses.replace(tiny_images, manifest="ab" * 32)
    split = ftk.Split(np.arange(12), np.arange(12, 18), np.arange(18, 24))
    head = ftk.classification_head(3)
    tuned = ftk.fine_tune(small_backbone, head, ftk.FineTuneSpec(), images, split, verbose=0)
    report = ftk.evaluate(tuned.model, images, split.test)
    assert tuned.manifest == report.manifest == report.to_dict()["manifest"] == "ab" * 32


def test_several_labels_an_image_are_refused_in_words(small_backbone, tiny_images):
    images = dataclasses.replace(tiny_images, labels=np.eye(3, dtype=int)[tiny_images.labels])
    backbone = keras.models.clone_model(small_backbone)
    model = ftk.FineTuneSpec().build(backbone, ftk.multilabel_head(3))
    with pytest.raises(ValueError, match=r"one class each.*\(24, 3\)"):
        ftk.evaluate(model, images)


def test_a_model_with_other_classes_is_refused(tiny_images):
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match=r"`model` must give one probability.*\(None, 5\)"):
        ftk.evaluate(model, tiny_images)
    with pytest.raises(ValueError, match="at least one image"):
        ftk.evaluate(model, tiny_images, [])
    with pytest.raises(ValueError, match=r"np\.flatnonzero"):
        ftk.evaluate(model, tiny_images, np.ones(24, bool))


def test_without_matplotlib_the_figures_are_saved_and_it_is_said(tmp_path, monkeypatch, caplog):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = evaluated([0, 1, 2], np.eye(3) * 9 + 1).save(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.txt"]
    assert "finetune-kit[plots]" in caplog.text
