"""Features as arrays: those that the backbone computes, from one pass, kept in the cache."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import finetune_kit as ftk
from finetune_kit._features import entry


@pytest.fixture(scope="module")
def backbone() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3)
    )


@pytest.fixture(scope="module")
def images() -> ftk.ImageSet:
    x = np.random.default_rng(0).integers(0, 256, (7, 40, 40, 3), np.uint8)
    return ftk.ImageSet.from_arrays(x, list("abababa"))


def outputs(backbone: keras.Model, images: ftk.ImageSet, layer: str | None = None):
    """What plain Keras computes from the same pixels."""
    model = backbone
    if layer is not None:
        model = keras.Model(backbone.input, backbone.get_layer(layer).output)
    pixels = images.load(size=(32, 32)) / 127.5 - 1
    return np.array(model.predict(pixels.astype("float32"), verbose=0))


def test_the_features_are_those_of_the_backbone(backbone, images):
    expected = outputs(backbone, images)
    pools = {
        "avg": expected.mean((1, 2)),
        "max": expected.max((1, 2)),
        "avgmax": np.concatenate([expected.mean((1, 2)), expected.max((1, 2))], axis=1),
        "flatten": expected.reshape(7, -1),
        None: expected,
    }
    for pooling, value in pools.items():
        found = ftk.extract_features(backbone, images, pooling=pooling, verbose=0)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


def test_several_blocks_come_from_one_pass(backbone, images, monkeypatch):
    passes = []
    original = entry.outputs_of
    monkeypatch.setattr(entry, "outputs_of", lambda *a: passes.append(1) or original(*a))
    found = ftk.extract_features(backbone, images, at=["block_15", "block_3"], verbose=0)
    assert len(passes) == 1
    assert list(found) == ["block_3", "block_15"]  # in the order of the backbone
    for block, layer in (("block_3", "block_3_project_BN"), ("block_15", "block_15_add")):
        expected = outputs(backbone, images, layer).mean((1, 2))
        np.testing.assert_allclose(found[block], expected, rtol=1e-4, atol=1e-5)
    alone = ftk.extract_features(backbone, images, at="block_15", verbose=0)
    np.testing.assert_allclose(alone, found["block_15"], rtol=1e-5, atol=1e-6)
    whole = ftk.extract_features(backbone, images, at="all", verbose=0)
    assert list(whole) == [block.name for block in ftk.conv_blocks(backbone)]
    np.testing.assert_allclose(whole["block_3"], found["block_3"], rtol=1e-5, atol=1e-6)


def test_a_folder_keeps_them(backbone, images, tmp_path, monkeypatch):
    first = ftk.extract_features(backbone, images, features=tmp_path, verbose=0)
    monkeypatch.setattr(entry, "outputs_of", None)  # nothing may be computed
    again = ftk.extract_features(backbone, images.take([3, 1]), features=tmp_path, verbose=0)
    np.testing.assert_array_equal(again, first[[3, 1]])
    (kept,) = ftk.FeatureCache(tmp_path).entries()
    assert (kept.images, kept.shapes) == (7, ((1280,),))


def test_a_later_training_is_not_misled_by_them(backbone, images, tmp_path):
    """Their entry lies behind no cut, so no training starts from it."""
    ftk.extract_features(backbone, images, at="all", features=tmp_path, verbose=0)
    options = {"verbose": 0, "features": tmp_path}
    head = ftk.classification_head(2)
    tuned = ftk.fine_tune(backbone, head, ftk.FineTuneSpec(1), images, **options)
    plain = ftk.fine_tune(backbone, head, ftk.FineTuneSpec(1), images, verbose=0)
    assert tuned.history["loss"] == plain.history["loss"]


def test_a_trained_model_gives_the_features_in_front_of_its_head(backbone, images, tmp_path):
    head = ftk.classification_head(2)
    tuned = ftk.fine_tune(backbone, head, ftk.FineTuneSpec(2), images, verbose=0)
    file = tuned.save(tmp_path / "model.keras")
    found = ftk.extract_features(file, images, verbose=0)
    kernel, bias = map(keras.ops.convert_to_numpy, tuned.model.get_layer("head").weights)
    logits = found @ kernel + bias
    expected = ftk.predict(tuned, images).probabilities
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), expected, rtol=1e-3, atol=1e-5)


def test_the_backbone_is_not_changed(backbone, images):
    layers = [layer.name for layer in backbone.layers]
    flags = [layer.trainable for layer in backbone.layers]
    weights = backbone.get_weights()
    ftk.extract_features(backbone, images, at="all", verbose=0)
    assert [layer.name for layer in backbone.layers] == layers
    assert [layer.trainable for layer in backbone.layers] == flags
    assert all(map(np.array_equal, weights, backbone.get_weights()))
    assert len(backbone.layers[-1]._inbound_nodes) == 1


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(7)))
def test_each_image_has_the_features_of_its_own(backbone, images, order, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "own"
    whole = ftk.extract_features(backbone, images, at="block_3", features=folder, verbose=0)
    found = ftk.extract_features(
        backbone, images.take(order), at="block_3", features=folder, verbose=0
    )
    np.testing.assert_array_equal(found, whole[list(order)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": "block_99"}, "`at` must name blocks of .*Received: 'block_99'"),
        ({"at": []}, "`at` must name at least one block"),
        ({"pooling": "mean"}, "`pooling` must be one of"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"features": 3}, "`features` must be a folder"),
        ({"preprocessing": "tf"}, "`preprocessing` must be"),
    ],
)
def test_bad_input_is_rejected(backbone, images, options, says, rejected):
    with rejected(says):
        ftk.extract_features(backbone, images, **{"verbose": 0, **options})


def test_images_and_backbone_are_checked(backbone, images, rejected):
    with rejected("`images` must be of type ImageSet"):
        ftk.extract_features(backbone, "photos")
    with rejected("`backbone` must be of type Model"):
        ftk.extract_features(3, images)


def test_features_must_be_kept(small_backbone, tiny_images):
    with pytest.raises(ValueError, match="`features` must be a FeatureCache, a folder or None"):
        ftk.extract_features(small_backbone, tiny_images, features=False, verbose=0)
