"""Heads are plain Keras layers that give probabilities."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import finetune_kit as ftk

FEATURES = np.random.default_rng(0).normal(size=(2, 3, 3, 5)).astype("float32")


@pytest.mark.parametrize(
    ("pooling", "width"), [("avg", 5), ("max", 5), ("avgmax", 10), ("flatten", 45)]
)
def test_each_pooling_gives_probabilities(pooling, width):
    head = ftk.classification_head(4, units=(6,), pooling=pooling, dropout=0.5)
    scores = keras.ops.convert_to_numpy(head(FEATURES))
    assert scores.shape == (2, 4)
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert "pooling" in [layer.name for layer in head.layers]
    assert head.count_params() == width * 6 + 6 + 6 * 4 + 4


def test_avgmax_is_the_mean_and_the_maximum():
    vector = ftk.classification_head(2, pooling="avgmax").get_layer("pooling")(FEATURES)
    expected = np.concatenate([FEATURES.mean((1, 2)), FEATURES.max((1, 2))], axis=1)
    assert np.allclose(keras.ops.convert_to_numpy(vector), expected, atol=1e-6)


def test_one_class_means_a_sigmoid():
    head = ftk.classification_head(1)
    assert head.layers[-1].activation is keras.activations.sigmoid


def test_the_head_of_the_study_has_its_size():
    head = ftk.classification_head(4, units=(1024, 512), pooling="flatten")
    head.build((None, 7, 7, 1280))
    assert head.count_params() == 64_753_156


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2.0}, "num_classes"),
        ({"num_classes": 2, "units": 5}, "units"),
        ({"num_classes": 2, "units": (0,)}, "units"),
        ({"num_classes": 2, "pooling": "mean"}, "pooling"),
        ({"num_classes": 2, "dropout": 1.0}, "dropout"),
    ],
)
def test_bad_values_are_refused(options, says):
    with pytest.raises(ValueError, match=f"`{says}` must be"):
        ftk.classification_head(**options)
