"""Heat maps: they are what the methods define, and the model does not change."""

from __future__ import annotations

import importlib.util

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import spearmanr
from strategies import build_graph, graphs

import finetune_kit as ftk

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)


def model_with(*top, size: int = 32, filters: int = 6) -> keras.Model:
    """A convolution to an 8 x 8 map, and the given layers on top."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(filters, 3, strides=4, padding="same", name="map")(x)
    for layer in top:
        x = layer(x)
    return keras.Model(inputs, x)


def pooled(activation: str | None = "softmax", classes: int = 3) -> list[keras.Layer]:
    return [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(classes, activation=activation, name="scores", dtype="float32"),
    ]


def run(model, x) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(np.asarray(x, "float32")))


def class_activation_maps(model, targets) -> np.ndarray:
    """Selvaraju et al., section 3.2: before average pooling the weights are those of the class."""
    features = run(keras.Model(model.input, model.get_layer("map").output), PIXELS)
    kernel = keras.ops.convert_to_numpy(model.get_layer("scores").kernel)
    kernel = np.concatenate([-kernel, kernel], axis=1) if kernel.shape[1] == 1 else kernel
    return enlarged(np.einsum("nhwc,cn->nhw", features, kernel[:, targets]))


def enlarged(heat) -> np.ndarray:
    maps = keras.ops.image.resize(np.maximum(heat, 0)[..., None], (32, 32), "bilinear")
    maps = keras.ops.convert_to_numpy(maps)[..., 0]
    highest = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(highest > 0, highest, 1)


@pytest.mark.parametrize("targets", [[2, 0, 1, 1, 2], 1, None])
def test_before_average_pooling_it_is_the_class_activation_map(targets):
    model = model_with(*pooled())
    maps = ftk.grad_cam(model, PIXELS, targets, batch_size=2)  # the last batch is not full
    chosen = run(model, PIXELS).argmax(axis=1) if targets is None else np.full(5, targets)
    assert maps.shape == (5, 32, 32)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, class_activation_maps(model, chosen), atol=1e-5)


def test_the_result_of_fine_tune_is_explained_like_its_model():
    model = model_with(*pooled())
    tuned = ftk.FineTuned(model, {}, (), {}, None, None, {})
    np.testing.assert_array_equal(ftk.grad_cam(tuned, PIXELS), ftk.grad_cam(model, PIXELS))
    np.testing.assert_array_equal(ftk.occlusion(tuned, PIXELS), ftk.occlusion(model, PIXELS))


def test_a_single_sigmoid_has_two_targets_and_several_have_one_each():
    binary = model_with(*pooled("sigmoid", classes=1))
    for target in (0, 1):
        expected = class_activation_maps(binary, np.full(5, target))
        np.testing.assert_allclose(ftk.grad_cam(binary, PIXELS, target), expected, atol=1e-5)
    predicted = (run(binary, PIXELS)[:, 0] > 0.5).astype(int)
    np.testing.assert_array_equal(
        ftk.grad_cam(binary, PIXELS), ftk.grad_cam(binary, PIXELS, predicted)
    )
    labels = model_with(*pooled("sigmoid", classes=3))
    expected = class_activation_maps(labels, np.full(5, 2))
    np.testing.assert_allclose(ftk.grad_cam(labels, PIXELS, 2), expected, atol=1e-5)


@pytest.mark.parametrize(
    "ending",
    [
        [keras.layers.Softmax],
        [lambda: keras.layers.Activation("softmax", dtype="float32")],
        [lambda: keras.layers.Activation(keras.ops.sigmoid)],
        [lambda: keras.ops.softmax],
        [lambda: keras.ops.sigmoid, keras.layers.Identity],
        [lambda: keras.activations.softmax, lambda: lambda x: keras.ops.cast(x, "float32")],
        [lambda: keras.ops.log_softmax, lambda: keras.layers.Reshape((3,))],
        [lambda: lambda x: keras.ops.softmax(x / 0.01)],  # a temperature
        [],
    ],
)
def test_the_score_is_taken_before_the_softmax_in_whichever_form_it_is(ending):
    model = model_with(*pooled(None), *(make() for make in ending))
    model.get_layer("scores").kernel.assign(60 * model.get_layer("scores").kernel)  # saturated
    maps = ftk.grad_cam(model, PIXELS, 1)
    np.testing.assert_allclose(maps, class_activation_maps(model, np.full(5, 1)), atol=1e-5)


def test_an_empty_map_is_said_and_nothing_else_is():
    model = model_with(*pooled(None))
    scores = model.get_layer("scores")
    scores.kernel.assign(-abs(scores.kernel))
    positive = keras.Model(model.input, model.output)
    positive.get_layer("map").kernel.assign(abs(model.get_layer("map").kernel))
    with pytest.warns(UserWarning, match=r"5 of 5 Grad-CAM maps are 0 everywhere.*occlusion"):
        assert not ftk.grad_cam(positive, PIXELS, 1).any()
    scores.kernel.assign(abs(scores.kernel))
    assert ftk.grad_cam(positive, PIXELS, 1).any(axis=(1, 2)).all()


def test_it_uses_the_gradient_at_any_block_without_dropout():
    """Compared with the change of the log-odds when one channel of the map is shifted."""
    later = keras.layers.Conv2D(8, 3, activation="swish", name="later")
    norm, drop = keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dropout(0.5)
    model = model_with(later, norm, drop, *pooled("sigmoid", classes=1))
    prefix, suffix = ftk.cut(model, "later")
    features = run(prefix, PIXELS)
    shifts = 1e-2 * np.concatenate([np.eye(6), -np.eye(6)])
    shifted = (features[:, None] + shifts[:, None, None]).reshape(-1, *features.shape[1:])
    probability = run(suffix, shifted).astype(np.float64).reshape(5, 2, 6)
    odds = np.log(probability / (1 - probability))
    heat = np.einsum("nhwc,nc->nhw", features, odds[:, 0] - odds[:, 1]).astype(np.float32)
    for target, sign in ((1, 1), (0, -1)):
        maps = ftk.grad_cam(model, PIXELS, target, at="stem")
        np.testing.assert_allclose(maps, enlarged(sign * heat), atol=1e-3)


def test_nested_and_stitched_models_have_the_same_map_as_the_flat_model():
    later = [keras.layers.Conv2D(4, 3, strides=n, activation="relu") for n in (2, 8)]
    backbone = model_with(*later)
    head = ftk.classification_head(3, units=(4,))
    flat = keras.Model(backbone.input, head(backbone.output))
    nested = keras.Sequential([keras.Input((32, 32, 3)), backbone, head])
    expected = ftk.grad_cam(flat, PIXELS)
    for model in (nested, ftk.stitch(*ftk.cut(flat, 1))):
        np.testing.assert_allclose(ftk.grad_cam(model, PIXELS), expected, atol=1e-4)
    # The output of the last block is a single cell, so the block before it is used.
    before = [block.name for block in ftk.conv_blocks(flat)][-2]
    np.testing.assert_array_equal(ftk.grad_cam(flat, PIXELS, at=before), expected)
    assert 0 < expected.mean() < 1


def test_a_feature_map_with_two_readers_counts_both():
    x = inputs = keras.Input((32, 32, 3))
    names = iter(["block1_conv", "block2_conv", "block3_conv"])
    a = keras.layers.Conv2D(4, 3, strides=4, padding="same", name=next(names))(x)
    b = keras.layers.Conv2D(4, 3, padding="same", name=next(names))(a)
    c = keras.layers.Conv2D(4, 3, padding="same", name=next(names))(b)
    top = keras.layers.GlobalAveragePooling2D()(keras.layers.concatenate([a, b, c]))
    kernel = np.repeat([[0.0], [1.0], [0.0]], 4, axis=0)  # only the second map has a weight
    dense = keras.layers.Dense(1, activation="sigmoid", use_bias=False)
    model = keras.Model(inputs, dense(top))
    dense.kernel.assign(kernel)
    maps = ftk.grad_cam(model, PIXELS, 1, at="block2")
    features = run(keras.Model(inputs, b), PIXELS)
    np.testing.assert_allclose(maps, enlarged(features.sum(axis=-1)), atol=1e-5)


def test_the_model_and_its_optimizer_do_not_change(tiny_images):
    head = ftk.classification_head(3, dropout=0.2)
    model = ftk.FineTuneSpec().build(model_with(), head)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.train_on_batch(tiny_images.load([0, 1, 2], (32, 32)), np.arange(3))
    optimizer = model.optimizer

    def state():
        variables = [*model.variables, *optimizer.variables]
        return [(v.path, v.trainable, keras.ops.convert_to_numpy(v).tolist()) for v in variables]

    before, flags = state(), [layer.trainable for layer in model._flatten_layers()]
    maps = ftk.grad_cam(model, tiny_images.load([0, 1, 2], (32, 32)))
    assert maps.max(axis=(1, 2)).tolist() == [1, 1, 1]
    assert state() == before
    assert [layer.trainable for layer in model._flatten_layers()] == flags
    assert model.optimizer is optimizer
    model.train_on_batch(tiny_images.load([0, 1, 2], (32, 32)), np.arange(3))


def test_a_map_depends_on_the_weights():
    """The sanity check of Adebayo et al., 2018."""
    model = model_with(keras.layers.Conv2D(8, 3, activation="relu"), *pooled())

    def maps(seed):
        rng = np.random.default_rng(seed)
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        found = ftk.grad_cam(model, np.repeat(PIXELS, 3, axis=0), [0, 1, 2] * 5, at="stem")
        return found.reshape(15, -1)

    lit = [pair for pair in zip(maps(1), maps(2), strict=True) if min(map(np.max, pair))]
    ranks = [spearmanr(*pair).statistic for pair in lit]
    assert len(ranks) >= 5
    assert np.mean(np.abs(ranks)) < 0.5


def test_half_precision_gives_the_same_map():
    full = model_with(*pooled())
    expected = ftk.grad_cam(full, PIXELS, 1)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = model_with(*pooled())
        half.set_weights(full.get_weights())
        np.testing.assert_allclose(ftk.grad_cam(half, PIXELS, 1), expected, atol=0.01)
    finally:
        keras.config.set_dtype_policy("float32")


@settings(max_examples=3)
@given(graphs)
def test_maps_of_any_graph_are_between_0_and_1(graph):
    backbone = build_graph(graph)
    outputs = ftk.classification_head(2)(backbone.outputs[0])
    model = keras.Model(backbone.input, outputs)
    maps = ftk.grad_cam(model, PIXELS[:2, :8, :8] / 255)
    assert maps.shape == (2, 8, 8)
    assert set(maps.max(axis=(1, 2))) <= {0, 1}
    assert maps.min() >= 0


def patches() -> tuple[np.ndarray, list[tuple[slice, slice]]]:
    """Dark noise with one bright square in each image."""
    pixels = np.random.default_rng(0).integers(0, 60, (3, 32, 32, 3)).astype(np.uint8)
    places = [(slice(y, y + 4), slice(x, x + 4)) for y, x in ((4, 20), (24, 8), (12, 12))]
    for image, place in zip(pixels, places, strict=True):
        image[place] = 255
    return pixels, places


def test_both_methods_find_the_region_that_decides_the_class():
    pixels, places = patches()
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(2, 4, strides=4, name="map")(keras.layers.Rescaling(1 / 255)(inputs))
    scores = keras.layers.Dense(1, activation="sigmoid")
    model = keras.Model(inputs, scores(keras.layers.GlobalMaxPooling2D()(x)))
    model.get_layer("map").set_weights([np.full((4, 4, 3, 2), 1 / 48), np.zeros(2)])
    scores.set_weights([np.ones((2, 1)), np.full(1, -1.0)])
    falls = ftk.occlusion(model, pixels, window=8, stride=4, batch_size=30)
    maps = ftk.grad_cam(model, pixels)
    for fall, heat, place in zip(falls, maps, places, strict=True):
        assert fall[place].min() > 0.1 > fall[0, 0]
        assert heat[place].mean() > 0.7 > 0.3 > heat[0, 0]


def test_occlusion_needs_only_predictions_of_one_batch_size():
    class Brightness:
        def predict(self, x, **options):
            assert len(x) == 7
            return x[..., 0].mean(axis=(1, 2))[:, None] / 255

    image = np.zeros((2, 10, 10, 3))
    image[:, :4, :4] = 200
    fall = ftk.occlusion(Brightness(), image, [1, 0], window=4, stride=3, batch_size=7)
    inside = (200 - 32) * 16 / 100 / 255  # a window over the square, filled with the mean, 32
    np.testing.assert_allclose(fall[:, 0, 0], [inside, -inside], atol=1e-6)
    np.testing.assert_allclose(fall[:, 9, 9], [-32 * 0.16 / 255, 32 * 0.16 / 255], atol=1e-6)
    assert np.isfinite(fall).all()  # the windows reach the last row and column


def test_no_images_have_no_maps():
    model = model_with(*pooled())
    assert ftk.grad_cam(model, PIXELS[:0]).shape == (0, 32, 32)
    assert ftk.occlusion(model, PIXELS[:0]).shape == (0, 32, 32)


def test_overlays_are_gray_where_the_map_is_0_and_colored_where_it_is_high():
    maps = np.zeros((5, 32, 32))
    maps[:, :8] = 0.2
    maps[:, 20:] = -1
    drawn = ftk.overlay(PIXELS, maps)
    assert drawn.dtype == np.uint8
    assert drawn.shape == PIXELS.shape
    assert np.ptp(drawn[:, 8:].astype(int), axis=-1).max() == 0
    assert np.ptp(drawn[:, :8].astype(int), axis=-1).min() > 20
    np.testing.assert_array_equal(drawn, ftk.overlay(PIXELS, 5 * maps))


def test_an_overlay_without_matplotlib_names_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"finetune-kit\[plots\]"):
        ftk.overlay(PIXELS, np.zeros((5, 32, 32)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": 3}, "class indices from 0 to 2.* Received: 3"),
        ({"targets": [0, 1]}, "one for each of the 5 images"),
        ({"targets": [0.5] * 5}, "`targets` must be class indices"),
        ({"targets": np.eye(3)}, "`targets` must be class indices"),
        ({"pixels": PIXELS[0]}, r"here \(n, 32, 32, 3\).* shape \(32, 32, 3\)"),
        ({"pixels": PIXELS[:, ::2]}, r"Received: uint8 of shape \(5, 16, 32, 3\)"),
        ({"pixels": PIXELS.astype(str)}, "`pixels` must be numbers"),
        ({"at": "mapp"}, "`at` must name blocks"),
        ({"at": 1}, "`at` must name blocks"),
        ({"batch_size": 0}, "`batch_size` must be"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        ftk.grad_cam(model_with(*pooled()), **{"pixels": PIXELS, **arguments})


def test_models_without_a_feature_map_or_class_scores_are_errors():
    inputs = keras.Input((32, 32, 3))
    flat = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="a feature map of more than one cell"):
        ftk.grad_cam(flat, PIXELS)
    with pytest.raises(ValueError, match="one score for each class"):
        ftk.grad_cam(model_with(), PIXELS)
    with pytest.raises(ValueError, match="use `occlusion` for other models"):
        ftk.grad_cam(lambda x: x, PIXELS)
    twice = keras.Model([inputs, keras.Input((1,))], flat(inputs))
    with pytest.raises(ValueError, match="with 2 inputs and 1 outputs"):
        ftk.grad_cam(twice, PIXELS)
    with pytest.raises(ValueError, match="`window` must be"):
        ftk.occlusion(model_with(*pooled()), PIXELS, window=33)
    with pytest.raises(ValueError, match="`maps` must have one map"):
        ftk.overlay(PIXELS, np.zeros((5, 8, 8)))
