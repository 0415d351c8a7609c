"""`fine_tune(calibrate=...)`: temperature scaling of the trained model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from test_recommend import OPTIONS, network, pictures

import finetune_kit as ftk


@pytest.fixture(scope="module")
def sets():
    return pictures((14, 14, 14)), pictures((7, 7, 7), seed=1)


def train(sets, head=None, **options):
    head = head or ftk.classification_head(3)
    spec = ftk.FineTuneSpec(1, epochs=3, learning_rate=3e-2)
    return ftk.fine_tune(network(), head, spec, *sets, **{**OPTIONS, **options})


def scores(tuned, images):
    return np.asarray(tuned.model.predict(images.load(size=(16, 16)), verbose=0), np.float64)


def cross_entropy(p, labels):
    return -np.log(np.clip(p[np.arange(len(labels)), labels], 1e-7, 1)).mean()


def test_a_number_divides_the_logits(sets):
    plain, scaled = train(sets), train(sets, calibrate=2.0)
    before, after = scores(plain, sets[1]), scores(scaled, sets[1])
    expected = np.sqrt(before) / np.sqrt(before).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(after, expected, atol=1e-5)
    assert scaled.settings["temperature"] == 2.0
    assert plain.settings["temperature"] is None
    assert scaled.history == plain.history


def test_true_finds_the_temperature_with_the_lowest_validation_loss(sets):
    plain, scaled = train(sets), train(sets, calibrate=True)
    labels, p = sets[1].labels, scores(plain, sets[1])
    best = cross_entropy(scores(scaled, sets[1]), labels)
    assert best <= cross_entropy(p, labels) + 1e-6
    for temperature in np.geomspace(0.1, 10, 60):
        q = p ** (1 / temperature)
        far = (np.log(temperature) ** 2 - np.log(scaled.settings["temperature"]) ** 2) / 2
        loss = cross_entropy(q / q.sum(axis=1, keepdims=True), labels)
        assert best <= loss + far / len(labels) + 1e-5
    np.testing.assert_array_equal(p.argmax(1), scores(scaled, sets[1]).argmax(1))


def test_without_features_too(sets):
    kept, computed = train(sets, calibrate=True), train(sets, calibrate=True, features=False)
    assert kept.settings["temperature"] == pytest.approx(computed.settings["temperature"], rel=1e-3)


def test_a_finished_run_is_calibrated_once(sets, tmp_path):
    first = train(sets, calibrate=2.0, run_dir=tmp_path)
    again = train(sets, calibrate=2.0, run_dir=tmp_path)
    np.testing.assert_allclose(scores(again, sets[1]), scores(first, sets[1]), atol=1e-6)


def test_several_labels_and_one_sigmoid():
    x = pictures((12, 12)).load(size=(16, 16))
    one = ftk.ImageSet.from_arrays(x, [0] * 12 + [1] * 12)
    more = ftk.ImageSet.from_arrays(255 - x, [0] * 12 + [1] * 12)
    tuned = train((one, more), head=ftk.classification_head(1), calibrate=True)
    assert tuned.settings["temperature"] > 0
    labels = np.eye(2, dtype=int)[one.labels]
    labels[0] = 1
    several = ftk.ImageSet.from_arrays(x, labels)
    others = ftk.ImageSet.from_arrays(255 - x, labels)
    head = ftk.classification_head(2, multi_label=True)
    assert train((several, others), head=head, calibrate=True).settings["temperature"] > 0


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "yes", None])
def test_values_that_do_not_fit(rejected, sets, value):
    backbone, head = network(), ftk.classification_head(3)
    with rejected("`calibrate` must be"):
        ftk.fine_tune(backbone, head, ftk.FineTuneSpec(), *sets, calibrate=value, **OPTIONS)


def test_what_it_needs(rejected, sets):
    backbone, head = network(), ftk.classification_head(3)
    spec = ftk.FineTuneSpec()
    with rejected("needs validation images"):
        ftk.fine_tune(backbone, head, spec, sets[0], calibrate=True, **OPTIONS)
    custom = keras.Sequential(
        [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3), keras.layers.Softmax()]
    )
    with rejected("`head` must end in a Dense layer"):
        ftk.fine_tune(backbone, custom, spec, *sets, calibrate=True, **OPTIONS)
