"""A classification head turns features into probabilities."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import finetune_kit as ftk

FEATURES = np.random.default_rng(0).normal(size=(2, 3, 3, 5)).astype("float32")


@pytest.mark.parametrize(
    ("pooling", "width"), [("avg", 5), ("max", 5), ("avgmax", 10), ("flatten", 45)]
)
def test_a_softmax_head_returns_probabilities_that_add_up_to_1(pooling, width):
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


@pytest.mark.parametrize("classes", [1, ["COVID"]])
def test_a_head_for_one_class_ends_in_one_sigmoid(classes):
    head = ftk.classification_head(classes)
    assert head.layers[-1].activation is keras.activations.sigmoid
    assert head.layers[-1].units == 1


def test_names_of_classes_count_like_their_number():
    named, counted = (ftk.classification_head(classes) for classes in (("a", "b", "c"), 3))
    assert named.layers[-1].get_config() == counted.layers[-1].get_config()


def test_a_multi_label_head_has_a_sigmoid_for_each_label():
    head = ftk.classification_head(["edema", "effusion"], multi_label=True, units=(3,), dropout=0.1)
    predictions = head.layers[-1]
    assert (predictions.units, predictions.activation) == (2, keras.activations.sigmoid)
    assert keras.ops.convert_to_numpy(head(FEATURES)).shape == (2, 2)


def test_predictions_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        head = ftk.classification_head(2, units=(3,))
        assert keras.backend.standardize_dtype(head(FEATURES).dtype) == "float32"
        assert head.layers[1].compute_dtype == "float16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_head_of_the_study_has_its_size():
    head = ftk.classification_head(4, units=(1024, 512), pooling="flatten")
    head.build((None, 7, 7, 1280))
    assert head.count_params() == 64_753_156


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"classes": 0}, "classes"),
        ({"classes": 2.0}, "classes"),
        ({"classes": "ab"}, "classes"),
        ({"classes": ["a", 1]}, "classes"),
        ({"classes": ["a", "a"]}, "classes"),
        ({"classes": []}, "classes"),
        ({"classes": 2, "units": 5}, "units"),
        ({"classes": 2, "units": (0,)}, "units"),
        ({"classes": 2, "pooling": "mean"}, "pooling"),
        ({"classes": 2, "dropout": 1.0}, "dropout"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_argument(options, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be .* Received: {argument}="):
        ftk.classification_head(**options)
