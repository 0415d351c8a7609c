"""Weights trained on drawn images: the images, the training, the file and its errors."""

from __future__ import annotations

import inspect
import json
import re

import drawings
import drawn
import keras
import numpy as np
import pretrain
import progress
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def backbone(alpha: float = 0.5, side: int = 32) -> keras.Model:
    return keras.applications.MobileNetV2(
        alpha=alpha, include_top=False, weights=None, input_shape=(side, side, 3)
    )


@given(st.integers(0, drawings.CLASSES - 1), st.integers(0, 2**32), st.integers(8, 40))
@settings(max_examples=40, deadline=None)
def test_a_drawing_depends_on_its_class_and_seed_alone(label, seed, size):
    one, two = (drawings.draw(label, size, np.random.default_rng(seed)) for _ in range(2))
    assert one.dtype == np.uint8
    assert one.shape == (size, size)
    assert np.array_equal(one, two)
    assert one.std() > 1  # no class draws an empty picture


def test_the_weights_fit_at_any_image_size_and_change_the_features():
    for side in (32, 96):
        model = backbone(side=side)
        before = model.get_weights()
        assert drawn.load_drawn(model) is model
        assert not any(
            np.array_equal(new, old) for new, old in zip(model.get_weights(), before, strict=True)
        )
    with np.load(drawn.FILE, allow_pickle=False) as stored:
        assert {stored[name].dtype for name in stored.files} == {np.dtype("float16")}
        assert all(np.isfinite(stored[name]).all() for name in stored.files)
    assert drawn.FILE.stat().st_size <= 2_000_000


@pytest.mark.parametrize("module", [pretrain, drawings, drawn, progress])
def test_no_phantom_is_among_what_is_trained_on(module):
    assert not re.search(r"\b(import|from)\s+(anatomy|phantoms|run)\b", inspect.getsource(module))


def test_the_command_seed_duration_and_accuracy_stand_beside_the_weights():
    about = json.loads(drawn.FILE.with_suffix(".json").read_text())
    assert about["command"].startswith("python examples/chest_xray/pretrain.py")
    assert "--seed" in about["command"]
    assert about["minutes"] > 0
    assert about["held_out_accuracy"]["out_relu"] > 20 / drawings.CLASSES


def test_another_backbone_is_an_error_that_names_the_difference():
    for model in (
        backbone(alpha=0.35),
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
    ):
        before = model.get_weights()
        with pytest.raises(ValueError, match=r"MobileNetV2 with alpha=0\.5 .*arrays differ"):
            drawn.load_drawn(model)
        assert all(map(np.array_equal, model.get_weights(), before))


@pytest.mark.parametrize("kind", ["half", "bit", "text", "pickle", "array"])
def test_a_damaged_file_is_an_error_and_changes_nothing(kind, tmp_path):
    file = tmp_path / "weights.npz"
    content = drawn.FILE.read_bytes()
    middle = len(content) // 2
    if kind == "half":
        file.write_bytes(content[:middle])
    elif kind == "bit":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif kind == "text":
        file.write_text("no weights")
    elif kind == "pickle":
        np.savez(file, weights=np.array([{}], object))
    else:
        np.save(file.with_suffix(".npy"), np.zeros(3))
        file.with_suffix(".npy").rename(file)
    model = backbone()
    before = model.get_weights()
    with pytest.raises(ValueError, match="complete and undamaged"):
        drawn.load_drawn(model, file)
    assert all(map(np.array_equal, model.get_weights(), before))
    with pytest.raises(FileNotFoundError):
        drawn.load_drawn(model, tmp_path / "nothing.npz")


def tiny_backbone(**options) -> keras.Model:
    """A backbone with the layers that have heads, which trains in a second."""
    inputs = keras.Input(options["input_shape"])
    x = keras.layers.Conv2D(4, 3, strides=8, name="stem")(inputs)
    for name in pretrain.TAPS:
        x = keras.layers.DepthwiseConv2D(3, padding="same", name=f"{name}_depthwise")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
        x = keras.layers.ReLU(name=name)(x)
    return keras.Model(inputs, x)


def test_a_resumed_training_ends_with_the_weights_of_one_that_was_not_interrupted(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(drawings, "CLASSES", 4)
    monkeypatch.setattr(pretrain, "HELD_OUT", 1)
    monkeypatch.setattr(keras.applications, "MobileNetV2", tiny_backbone)
    options = ["--images-per-class", "2", "--epochs", "2", "--batch-size", "4", "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain.main([*options, str(whole)]) == 0
    replace = pretrain._replace

    def interrupt(file, write):
        replace(file, write)
        if file.name == "state.keras":
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "_replace", interrupt)
    assert pretrain.main([*options, str(parts)]) == 130
    monkeypatch.setattr(pretrain, "_replace", replace)
    assert pretrain.main([*options, str(parts)]) == 0
    one, two = (np.load(folder / "drawn_weights.npz") for folder in (whole, parts))
    assert one.files == two.files
    for name in one.files:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    about = json.loads((parts / "drawn_weights.json").read_text())
    assert about["training_images"] == 8
    assert pretrain.main([*options, str(parts), "--images-per-class", "3"]) == 2  # other images
