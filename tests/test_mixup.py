"""Mixup at the cut: features and labels are mixed by the same share, the same in each run."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finetune_kit as ftk
from finetune_kit._data.batches import Batches

COUNT = 11
MIXED = {"augmentation": ftk.Augmentation(mixup=0.4), "metrics": []}
SPEC = ftk.FineTuneSpec(1, epochs=3, learning_rate=0.02)


def batches(mixup, seed=0, epoch=0):
    """Batches whose inputs and targets are the same numbers."""
    rows = np.random.default_rng(0).random((COUNT, 3), np.float32)
    pair = lambda indices, epoch: [rows[indices], 10 * rows[indices, None]]  # noqa: E731
    return Batches(pair, lambda i: rows[i], np.arange(COUNT), 4, seed, 0, epoch, mixup)


@given(st.floats(0.05, 5.0), st.integers(0, 9))
def test_all_inputs_and_the_targets_are_mixed_by_the_same_share(mixup, seed):
    found, plain = batches(mixup, seed), batches(0.0, seed)
    for item in range(2 * found.steps):
        (one, other), targets = found[item]
        np.testing.assert_array_equal(one, targets)
        np.testing.assert_allclose(other[:, 0], 10 * targets, rtol=1e-5)
        assert targets.dtype == one.dtype == np.float32
        np.testing.assert_allclose(targets.sum(0), plain[item][1].sum(0), rtol=1e-4)


def test_a_batch_depends_on_its_number_alone():
    """So that a run that resumes mixes the same images."""
    whole, resumed = batches(0.4), batches(0.4, epoch=1)
    for item in range(whole.steps):
        np.testing.assert_array_equal(whole[whole.steps + item][1], resumed[item][1])
    shares = {float(batches(0.4, seed)[0][1][0, 0]) for seed in range(5)}
    assert len(shares) == 5


def test_mixing_changes_the_training_but_not_the_validation(tune):
    plain, mixed, again = tune(SPEC), tune(SPEC, **MIXED), tune(SPEC, **MIXED)
    assert dict(mixed.history) == dict(again.history)
    assert mixed.history["loss"] != plain.history["loss"]
    assert mixed.settings["mixup"] == 0.4
    assert "mixup" not in plain.settings
    tiny = ftk.FineTuneSpec(0, learning_rate=1e-12)
    losses = [tune(tiny, **options).history["val_loss"] for options in ({}, MIXED)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_run_that_resumes_mixes_the_same_images(tune, tmp_path):
    def stop(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(SPEC, run_dir=tmp_path, **MIXED,
             callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=stop)])  # fmt: skip
    with pytest.raises(ValueError, match=r"mixup: 0\.4 there, None now"):
        tune(SPEC, run_dir=tmp_path, metrics=[])
    assert dict(tune(SPEC, run_dir=tmp_path, **MIXED).history) == dict(tune(SPEC, **MIXED).history)


def test_copies_of_images_are_mixed_too(tune):
    flips = keras.layers.RandomFlip("horizontal")
    runs = [
        tune(SPEC, augmentation=ftk.Augmentation(flips, views=2, mixup=mixup))
        for mixup in (0.0, 0.4)
    ]
    assert runs[0].history["loss"] != runs[1].history["loss"]
    assert runs[1].settings["augmentation"].endswith("2 copies of each image")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_weight": "balanced"}, "`class_weight` must be left out where images are mixed"),
        ({"features": False}, r"mixes kept features, which .*Received: mixup=0\.4 with"),
    ],
)
def test_what_cannot_be_mixed_is_rejected(tune, rejected, options, says):
    with rejected(says):
        tune(SPEC, **MIXED, **options)


@pytest.mark.parametrize("mixup", [-0.1, "0.2", True, float("inf"), float("nan")])
def test_mixup_is_checked(mixup):
    with pytest.raises(ValueError, match="`mixup` must be a number of at least 0"):
        ftk.Augmentation(mixup=mixup)
    with pytest.raises(ValueError, match="must be a Keras layer"):
        ftk.Augmentation()
