"""`recommend`: a head that is fitted, candidates that are validated, and the simplest good one."""

from __future__ import annotations

import importlib.util
import io
import math
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression

import finetune_kit as ftk
from finetune_kit._model.surgery import with_depths
from finetune_kit._train import trials
from finetune_kit._train.calibration import best_temperature, losses, tempered
from finetune_kit._train.evidence import paired
from finetune_kit._train.probe import _STRENGTHS, fitted, validated
from finetune_kit._train.ranking import logme
from finetune_kit._train.recommendation import Probed, choose, recommendation
from finetune_kit._train.trials import Trial, candidates


def network(outputs: str = "map", size: int = 16, channels: int = 3) -> keras.Model:
    """A small backbone with random weights: four blocks, then a map, a vector or tokens."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((size, size, channels))
    for i, filters in enumerate((4, 6, 8, 8), start=1):
        strides = 2 if i < 4 else 1
        x = keras.layers.Conv2D(filters, 3, strides, "same", name=f"block{i}_conv")(x)
        x = keras.layers.ReLU(name=f"block{i}_relu")(x)
    if outputs == "vector":
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if outputs == "tokens":
        x = keras.layers.Reshape((-1, 8), name="tokens")(x)
    if outputs == "two":
        return keras.Model(inputs, [x, x], name="net")
    return keras.Model(inputs, x, name="net")


def pictures(counts: tuple[int, ...], size: int = 16, seed: int = 0) -> ftk.ImageSet:
    """Noise with a brightness and a stripe that depend on the class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    x = rng.integers(0, 120, (len(labels), size, size, 3))
    x[:, :, : size // 2] += 30 * labels[:, None, None, None]
    names = [f"class {i}" for i in range(len(counts))]
    return ftk.ImageSet.from_arrays(x.clip(0, 255).astype(np.uint8), labels, class_names=names)


def outputs(layer: keras.Layer, x: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(layer(keras.ops.convert_to_tensor(x)))


OPTIONS = {"preprocessing": None, "verbose": 0}


@pytest.fixture(scope="module")
def images() -> ftk.ImageSet:
    return pictures((14, 14, 14))


@pytest.fixture(scope="module")
def found(images):
    return ftk.recommend(network(), images, **OPTIONS)


@pytest.fixture
def quick(monkeypatch):
    """One candidate for one epoch, where other candidates would show nothing more."""
    monkeypatch.setattr(trials, "_FAST", ((0.25, 3e-4),))
    monkeypatch.setattr(trials, "_EPOCHS", 1)


def test_the_head_is_a_logistic_regression_on_the_features(found, images):
    features = ftk.extract_features(network(), images, **OPTIONS)
    scores = outputs(found.head, features[:, None, None, :])
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.maximum(spread, spread.mean())
    gaps = []
    for strength in _STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=2000, tol=1e-8).fit(scaled, images.labels)
        gaps.append(np.abs(model.predict_proba(scaled) - scores).max())
    assert min(gaps) < 1e-3


def test_what_is_recommended_trains_in_one_call(found, images):
    tuned = ftk.fine_tune(network(), found.head, found.specs, images, **found.keywords, verbose=0)
    accuracy = (
        tuned.model.predict(images.load(size=(16, 16)), verbose=0).argmax(1) == images.labels
    ).mean()
    assert accuracy > 0.5
    assert found.keywords["preprocessing"] is None


@pytest.mark.once
def test_a_head_that_needs_no_training_stays_as_it_is(quick, images):
    found = ftk.recommend(network(), images, **OPTIONS)
    still = ftk.FineTuneSpec(0, learning_rate=1e-6)
    tuned = ftk.fine_tune(network(), found.head, still, images, **OPTIONS)
    features = ftk.extract_features(network(), images, pooling=None, **OPTIONS)
    before = outputs(found.head, features)
    after = tuned.model.predict(images.load(size=(16, 16)), verbose=0)
    np.testing.assert_allclose(after, before, atol=2e-3)


@pytest.mark.once
def test_the_same_call_recommends_the_same(found, images):
    again = ftk.recommend(network(), images, **OPTIONS)
    assert again.specs == found.specs
    assert [e.loss for e in again.evidence] == [e.loss for e in found.evidence]
    for one, other in zip(again.head.get_weights(), found.head.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def striped(count: int, seed: int) -> ftk.ImageSet:
    """Noise with stripes, across or down."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 120, (count, 16, 16, 3))
    x[::2, :, ::2] += 60
    x[1::2, ::2] += 60
    names = ["across", "down"]
    return ftk.ImageSet.from_arrays(x.astype(np.uint8), np.arange(count) % 2, class_names=names)


def test_each_backend_recommends_the_same():
    """The expected numbers are those of TensorFlow; this test runs on each backend."""
    backbone, rng = network(), np.random.default_rng(0)
    weights = [
        rng.normal(0, math.sqrt(2 / np.prod(w.shape[:-1])), w.shape) if w.ndim > 1 else w
        for w in backbone.get_weights()
    ]
    backbone.set_weights(weights)  # Keras draws others on each backend
    found = ftk.recommend(backbone, striped(40, 0), striped(24, 1), **OPTIONS)
    losses = {
        "the head alone": 0.14154,
        "1 block at 0.0003": 0.11558,
        "2 blocks at 0.0001": 0.12292,
        "2 blocks at 0.0003": 0.08435,
    }
    assert {e.recipe: e.loss for e in found.evidence} == pytest.approx(losses, rel=2e-3)
    assert [e.recipe for e in found.evidence if e.recommended] == ["2 blocks at 0.0003"]
    assert found.specs[0].trainable_blocks == 2
    assert found.keywords["calibrate"] == pytest.approx(0.77765, rel=2e-3)


def test_the_evidence_is_a_table_and_a_view(found, images):
    first, *others = found.evidence
    assert first.recipe == "the head alone"
    assert first.images == len(images)
    assert sum(e.recommended for e in found.evidence) == 1
    assert any(e.images < len(images) for e in others)  # tried on the first fold alone
    for text in (str(found), found._repr_html_()):
        assert all(e.recipe in text for e in found.evidence)
        assert found.reason[:40] in text
    assert str(found).count("\n* ") == 1


@pytest.mark.once
def test_the_evidence_and_the_curve_have_plots(found, monkeypatch):
    for value in (found, found.learning_curve()):
        left, right = value.plot().axes
        labels = [label.get_text() for label in left.get_yticklabels()]
        assert [label.removesuffix(" *") for label in labels] == [e.recipe for e in value.evidence]
        assert [label.endswith(" *") for label in labels] == [e.recommended for e in value.evidence]
        assert right.get_xlabel() == "accuracy"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`plot` needs matplotlib: pip install"):
        found.plot()


def test_a_learning_curve_has_a_row_for_each_share(found, images):
    curve = found.learning_curve()
    quarter, half, whole = curve.evidence
    assert whole.loss == pytest.approx(found.evidence[0].loss, rel=1e-4)
    assert quarter.images == half.images == whole.images == len(images)
    assert math.isnan(whole.error)
    assert "Half of the training images" in str(curve)
    assert re.search(r"Training \d blocks? at [\d.e-]+ changes it by [+-]\d", curve.reason)
    assert curve.reason == found.learning_curve().reason


@pytest.mark.once
def test_validation_images_take_the_place_of_folds(images):
    more = pictures((6, 6, 6), seed=1)
    found = ftk.recommend(network(), images, more, **OPTIONS)
    assert {e.images for e in found.evidence} == {len(more)}
    whole = ftk.recommend(network(), images, more, budget="thorough", **OPTIONS)
    assert len(whole.evidence) > len(found.evidence)


def test_features_in_a_folder_serve_the_training(quick, images, tmp_path, monkeypatch):
    found = ftk.recommend(network(), images, features=tmp_path, **OPTIONS)
    head = ftk.classification_head(3)
    options = {**found.keywords, "calibrate": False, "verbose": 0}
    monkeypatch.setattr(ftk.ImageSet, "load", None)  # no image is decoded again
    for specs in (found.specs, ftk.FineTuneSpec(0), ftk.FineTuneSpec(1)):
        ftk.fine_tune(network(), head, specs, images, **options)


@pytest.mark.parametrize("outputs", ["vector", "tokens"])
def test_other_outputs_of_a_backbone(quick, outputs, images):
    found = ftk.recommend(network(outputs), images, pictures((4, 4, 4), seed=1), **OPTIONS)
    tuned = ftk.fine_tune(
        network(outputs), found.head, found.specs, images, **found.keywords, verbose=0
    )
    assert tuned.model.output_shape == (None, 3)


@pytest.mark.once
def test_a_trained_model(quick, images):
    head = ftk.classification_head(3)
    trained = ftk.fine_tune(network(), head, ftk.FineTuneSpec(1), images, **OPTIONS)
    found = ftk.recommend(trained, pictures((8, 8, 8), seed=5), verbose=0)
    more = pictures((8, 8, 8), seed=5)
    ftk.fine_tune(trained, found.head, found.specs, more, **found.keywords, verbose=0)
    with pytest.warns(UserWarning, match="trained on 42 images of `train`"):
        ftk.recommend(trained, images, verbose=0)


@pytest.mark.once
def test_a_gray_backbone(quick, images):
    more = pictures((4, 4, 4), seed=1)
    assert ftk.recommend(network(channels=1), images, more, **OPTIONS).specs


def test_several_labels_per_image(quick):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (24, 3))
    labels[:3] = np.eye(3)
    labels[:, 2] = 0  # a label that a part lacks
    labels[:4, 2] = 1
    x = rng.integers(0, 200, (24, 16, 16, 3))
    x[:, :8] += 50 * labels[:, :1, None, None]
    images = ftk.ImageSet.from_arrays(x.clip(0, 255).astype(np.uint8), labels)
    found = ftk.recommend(network(), images, **OPTIONS)
    tuned = ftk.fine_tune(network(), found.head, found.specs, images, **found.keywords, verbose=0)
    assert tuned.model.output_shape == (None, 3)
    assert all(math.isfinite(e.loss) for e in found.evidence)


@pytest.mark.once
@pytest.mark.parametrize("counts", [(2, 2), (500, 2), (2,) * 40])
def test_few_images_of_a_class(quick, counts):
    images = pictures(counts)
    found = ftk.recommend(network(), images, **OPTIONS)
    assert all(math.isfinite(e.loss) for e in found.evidence)
    assert found.head.output_shape == (None, len(counts))
    assert all(math.isfinite(e.loss) for e in found.learning_curve().evidence)


@pytest.mark.once
def test_images_that_are_all_alike(quick):
    """The features are constant, so the head predicts the shares of the classes."""
    x = (
        np.full((12, 16, 16, 3), 128, np.uint8)
        + np.arange(12, dtype=np.uint8)[:, None, None, None] * 0
    )
    images = ftk.ImageSet.from_arrays(x, [0] * 8 + [1] * 4, class_names=["a", "b"])
    found = ftk.recommend(network(), images, **OPTIONS)
    features = ftk.extract_features(network(), images, pooling=None, **OPTIONS)
    scores = outputs(found.head, features)
    np.testing.assert_allclose(scores, [[2 / 3, 1 / 3]] * 12, atol=0.02)
    assert "-0.0000" not in f"{found} {found.learning_curve()}"  # all recipes do the same


@pytest.mark.once
def test_a_single_image_or_group_has_no_standard_error(quick, images):
    one = pictures((1, 1, 1), seed=1).take([0])
    found = ftk.recommend(network(), images, one, **OPTIONS)
    for text in (str(found), found._repr_html_(), str(found.learning_curve())):
        assert "inf" not in text
    assert "1 validation image is too few to decide" in found.reason
    found.plot().savefig(io.BytesIO())


def test_a_class_that_the_training_images_lack(images):
    part = images.take(np.flatnonzero(images.labels < 2))  # two classes of three
    with pytest.raises(ValueError, match=r"images of every class.*none of: \['class 2'\]"):
        ftk.recommend(network(), part, pictures((5, 5, 5), seed=2), **OPTIONS)


@pytest.mark.once
def test_a_class_that_cannot_be_validated():
    with pytest.raises(ValueError, match=r"at least two images.*1 image of 'class 1'"):
        ftk.recommend(network(), pictures((9, 1)), **OPTIONS)
    x = pictures((6, 6)).load(size=(16, 16))
    groups = ["a", "b"] * 3 + ["c"] * 6
    images = ftk.ImageSet.from_arrays(x, [0] * 6 + [1] * 6, groups=groups)
    with pytest.raises(ValueError, match=r"at least two groups.*1 group of"):
        ftk.recommend(network(), images, **OPTIONS)
    # Each class is in two of three groups, so one of two folds holds all images of a class.
    pairs = ftk.ImageSet.from_arrays(
        x[:6], [0, 0, 1, 1, 2, 2], groups=["a", "b", "b", "c", "c", "a"]
    )
    with pytest.raises(ValueError, match=r"groups in at least two of the 2 folds.*all groups of"):
        ftk.recommend(network(), pairs, **OPTIONS)
    several = ftk.ImageSet.from_arrays(x[:3], [[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    with pytest.raises(ValueError, match=r"images in at least two of the 2 folds.*all images of"):
        ftk.recommend(network(), several, **OPTIONS)


@pytest.mark.once
def test_a_group_is_in_one_fold(quick):
    """Copies of an image in several folds would make the validation loss too low."""
    rng = np.random.default_rng(0)
    noise = np.repeat(rng.integers(0, 256, (12, 16, 16, 3)), 4, axis=0)  # four copies of each
    noise += rng.integers(0, 2, noise.shape) * (noise < 255)
    labels = np.repeat(np.arange(12) % 2, 4)
    options = {"class_names": ["a", "b"]}
    alone = ftk.ImageSet.from_arrays(noise.astype(np.uint8), labels, **options)
    grouped = ftk.ImageSet.from_arrays(
        noise.astype(np.uint8), labels, groups=np.repeat(np.arange(12), 4), **options
    )
    leaky, honest = (
        ftk.recommend(network(), s, **OPTIONS).evidence[0].loss for s in (alone, grouped)
    )
    assert leaky < honest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "huge"}, "budget"),
        ({"depths": 3}, "depths"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"features": False}, "`features` must be a FeatureCache, a folder or None"),
    ],
)
def test_arguments_that_do_not_fit(images, change, message):
    with pytest.raises(ValueError, match=message):
        ftk.recommend(network(), images, **OPTIONS, **change)


def test_images_that_are_no_set():
    with pytest.raises(ValueError, match="`train` must be of type ImageSet"):
        ftk.recommend(network(), "photos/", **OPTIONS)


def test_a_backbone_with_several_outputs(images):
    with pytest.raises(ValueError, match="`backbone` must have one output"):
        ftk.recommend(network("two"), images, **OPTIONS)


# The choice


def trial(name: str, values: list[float]) -> Trial:
    """A trial with these losses: of class 0, by its probability."""
    p = np.exp(-np.array(values))
    made = Trial(
        name=name,
        spec=ftk.FineTuneSpec(),
        scores=np.column_stack([p, 1 - p]),
        labels=np.zeros(len(values), np.int64),
        seconds=1.0,
    )
    vars(made)["temperature"] = 1.0
    return made


def recommended(tried: list[Trial]) -> ftk.Recommendation:
    """Return the recommendation for trials on images without groups."""
    count = len(tried[0].losses)
    parts = [(np.arange(0), np.arange(count))]
    nothing = Probed(np.zeros((count, 1)), tried[0].labels, parts, np.arange(count), 1.0, 2)
    return recommendation(tried, nothing, keras.layers.Dense(2), {})


loss_lists = st.lists(st.lists(st.floats(0.01, 5), min_size=8, max_size=8), min_size=2, max_size=5)


@pytest.mark.once
@given(loss_lists)
@settings(deadline=None)
def test_the_simplest_within_one_standard_error_wins(lists):
    tried = [trial(str(i), values) for i, values in enumerate(lists)]
    groups = np.arange(8)
    chosen, lowest = choose(tried, groups)
    assert tried[lowest].loss == min(t.loss for t in tried)
    difference, error = paired(tried[chosen], tried[lowest], groups)
    assert chosen == lowest or difference <= error
    for simpler in tried[:chosen]:
        difference, error = paired(simpler, tried[lowest], groups)
        assert difference > error
    result = recommended(tried)
    assert result.evidence[chosen].recommended
    assert result.keywords["calibrate"] == 1.0
    assert "-" not in result.reason  # a difference below 0


@pytest.mark.once
@given(st.lists(st.floats(0.01, 5), min_size=6, max_size=6), st.integers(2, 4))
@settings(deadline=None)
def test_copies_of_an_image_do_not_make_the_evidence_stronger(values, copies):
    one, zero = trial("a", values), trial("b", [1.0] * 6)
    many, none = trial("a", values * copies), trial("b", [1.0] * 6 * copies)
    apart = paired(one, zero, np.arange(6))
    together = paired(many, none, np.tile(np.arange(6), copies))
    np.testing.assert_allclose(together, apart, rtol=1e-9, atol=1e-12)


def test_the_reason_says_how_sure_it_is():
    clear = [trial("the head alone", [1.0, 1.1] * 20), trial("two blocks", [0.1, 0.2] * 20)]
    close = [trial("the head alone", [0.5, 0.9] * 20), trial("two blocks", [0.8, 0.5] * 20)]

    def reason(tried):
        return recommended(tried).reason

    assert "two blocks: it has the lowest validation loss" in reason(clear)
    assert "above two standard errors" in reason(clear)
    assert "the head alone: the simplest recipe within one standard error" in reason(close)
    assert "too few to decide" in reason(close)


def test_candidates_fit_any_depth():
    for blocks in (1, 2, 3, 19, 200):
        for budget in ("fast", "thorough"):
            found = candidates(blocks, budget)
            assert found
            assert len(set(found)) == len(found)
            assert all(1 <= each.blocks <= blocks for each in found)
            assert found == sorted(found, key=lambda each: each.blocks)


def test_the_temperature_is_that_of_the_trial():
    tried = [trial("the head alone", [2.0] * 9), trial("b", [0.1] * 9)]
    for each in tried:
        vars(each)["temperature"] = 0.7
    assert recommended(tried).keywords["calibrate"] == 0.7


@pytest.mark.once
@pytest.mark.parametrize("several", [False, True])
def test_blocks_train_with_one_cycle_and_the_plain_loss(quick, monkeypatch, several):
    """Smoothed labels make the loss higher, also after temperature scaling."""
    calls = []

    def noted(*args, **options):
        calls.append((args[2], options.get("loss")))
        return ftk.fine_tune(*args, **options)

    monkeypatch.setattr(trials, "fine_tune", noted)
    sets = [pictures((4, 4), seed=i) for i in (0, 1)]
    if several:
        sets = [ftk.ImageSet(s.source, np.eye(2, dtype=int)[s.labels], ("a", "b")) for s in sets]
    ftk.recommend(network(), *sets, **OPTIONS)
    ((spec, loss),) = calls
    assert spec.schedule == "one_cycle"
    assert loss is None
    assert spec.keep == "last"


# The probe


@pytest.mark.once
def test_a_feature_that_hardly_varies_gets_no_large_weight():
    """It may vary once blocks train, and would then decide alone."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(size=(60, 6))
    x[:, 0] = 1e-5 * (y == 0) + 1e-6 * rng.normal(size=60)  # tells a class apart, by very little
    x[:, 1] = 0.0
    probe = fitted(x, y, 3, 1.0)
    assert np.abs(probe.kernel[:2]).max() < 10 * np.abs(probe.kernel[2:]).max()


@pytest.mark.once
def test_the_penalty_is_the_one_with_the_lowest_validation_loss():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)) * [1, 10, 0.1, 1, 1] + 3, rng.integers(0, 3, 60)
    x[:, 0] += y
    parts = [(np.arange(40), np.arange(40, 60)), (np.arange(20, 60), np.arange(20))]
    found = validated(x, y, parts, 3)
    truth = np.concatenate([y[40:], y[:20]])

    def loss(strength):
        scores = [
            fitted(x[before], y[before], 3, strength).scores(x[after], multi_label=False)
            for before, after in parts
        ]
        return losses(np.concatenate(scores), truth).mean()

    best = min(map(loss, _STRENGTHS))
    np.testing.assert_allclose(losses(found.scores, truth).mean(), best, rtol=1e-3)


# Temperatures


@pytest.mark.once
@given(st.floats(0.5, 2.0), st.integers(0, 999))
@settings(deadline=None, max_examples=50)
def test_with_a_hundred_images_the_temperature_has_almost_the_lowest_loss(true, seed):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet([0.3] * 4, 100).clip(1e-6)
    scores /= scores.sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(4, p=p) for p in tempered(scores, true, softmax=True)])

    def loss(temperature):
        return losses(tempered(scores, temperature, softmax=True), labels).mean()

    lowest = min(map(loss, np.geomspace(0.1, 10, 300)))
    assert loss(best_temperature(scores, labels)) <= lowest + 1e-3


@pytest.mark.once
@pytest.mark.parametrize("count", [1, 4, 12])
def test_few_images_that_are_all_right_do_not_make_a_model_certain(count):
    scores, labels = np.tile([0.8, 0.2], (count, 1)), np.zeros(count, int)
    temperature = best_temperature(scores, labels)
    assert 0.3 < temperature < 1
    assert tempered(scores, temperature, softmax=True).max() < 0.99
    wrong = best_temperature(scores, 1 - labels)
    assert 1 < wrong < 10


@pytest.mark.once
@given(st.floats(0.3, 3.0), st.booleans(), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_the_temperature_undoes_a_scale_of_the_logits(scale, softmax, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4000, 3))
    if softmax:
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        labels = (p.cumsum(1) > rng.random((4000, 1))).argmax(1)
    else:
        p = 1 / (1 + np.exp(-logits))
        labels = (rng.random(p.shape) < p).astype(int)
    wrong = tempered(p, 1 / scale, softmax=softmax)
    assert best_temperature(wrong, labels) == pytest.approx(scale, rel=0.15)
    right = tempered(wrong, scale, softmax=softmax)
    np.testing.assert_allclose(right, p, atol=1e-2)  # tiny ones are cut off


def bright_only(name: str, channels: int) -> keras.Model:
    """A backbone with random weights that does not see where a picture is bright."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(channels, 1, name=f"{name}_conv")(inputs)
    x = keras.layers.ReLU(name=f"{name}_relu")(x)
    return keras.Model(inputs, x, name=name)


def blind(name: str) -> keras.Model:
    """A backbone whose outputs are all the same."""
    inputs = keras.Input((16, 16, 3))
    zeros = keras.initializers.Zeros()
    x = keras.layers.Conv2D(4, 3, name=f"{name}_conv", kernel_initializer=zeros)(inputs)
    return keras.Model(inputs, x, name=name)


@pytest.mark.usefixtures("quick")
def test_one_of_several_backbones_is_recommended(images, tmp_path, capsys):
    several = [blind("blind"), bright_only("wide", 12), bright_only("narrow", 6), network()]
    options = {**OPTIONS, "verbose": 2, "features": tmp_path}
    found = ftk.recommend(several, images, **options)
    assert found.backbone in several[1:]  # the very object
    assert [row.recipe.split(",")[0] for row in found.backbones] == ["narrow", "wide", "net"]
    [row] = [row for row in found.backbones if row.recommended]
    assert row.recipe == f"{found.backbone.name}, {found.backbone.count_params():,} parameters"
    assert row.images == len(images)
    assert [row.loss] == [e.loss for e in found.evidence if e.recipe == "the head alone"]
    printed = capsys.readouterr().out
    scores = dict(re.findall(r"(\w+): LogME (-?[\d.]+)", printed))
    assert min(scores, key=lambda name: float(scores[name])) == "blind"
    assert "backbone" in str(found).splitlines()[0]
    assert "Backbones" in found._repr_html_()
    tuned = ftk.fine_tune(found.backbone, found.head, found.specs, images, **found.keywords)
    assert tuned.plan.backbone == found.backbone.name
    alone = ftk.recommend(found.backbone, images, **options)
    assert alone.backbones == ()
    assert [e.loss for e in alone.evidence] == [e.loss for e in found.evidence]


@pytest.mark.usefixtures("quick")
def test_features_of_several_depths(images, tmp_path):
    backbone = network()
    found = ftk.recommend(backbone, images, depths=True, **OPTIONS)
    assert [row.recipe.split(",")[0] for row in found.backbones] == ["net", "net_depths"]
    assert found.backbone is backbone or found.backbone.name == "net_depths"
    deep = with_depths(backbone)
    expected = ftk.extract_features(backbone, images, at=["block3", "block4"], **OPTIONS)
    joined = ftk.extract_features(deep, images, **OPTIONS)
    np.testing.assert_allclose(joined, np.hstack([*expected.values()]), atol=1e-5)
    found = ftk.recommend(deep, images, **OPTIONS)
    specs = ftk.FineTuneSpec(1, epochs=2)
    tuned = ftk.fine_tune(deep, found.head, specs, images, **found.keywords, verbose=0)
    tuned.save(tmp_path / "model.keras")
    alone = keras.saving.load_model(tmp_path / "model.keras")
    x = images.load(size=(16, 16))
    np.testing.assert_allclose(
        alone.predict(x, verbose=0), tuned.model.predict(x, verbose=0), atol=1e-6
    )


@pytest.mark.once
def test_depths_need_a_keras_model(images):
    with pytest.raises(ValueError, match=r"`backbone` must be of type Model \(as `depths`"):
        ftk.recommend("model.keras", images, depths=True, **OPTIONS)
    with pytest.raises(ValueError, match="must not join its depths already"):
        ftk.recommend(with_depths(network()), images, depths=True, **OPTIONS)


@pytest.mark.once
@pytest.mark.parametrize("several", [[], ["net"], [network(), network()]])
def test_several_backbones_need_different_names(several, images):
    with pytest.raises(ValueError, match="a list of keras\\.Model with different"):
        ftk.recommend(several, images, **OPTIONS)


@pytest.mark.once
@given(seed=st.integers(0, 999), n=st.integers(4, 40), d=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_logme_is_the_highest_evidence(seed, n, d):
    """Compared with the density of a normal distribution, at the best of many precisions."""
    random = np.random.default_rng(seed)
    features, labels = random.normal(size=(n, d)), random.permutation(np.arange(n) % 2)

    def evidence(precisions, y):
        alpha, beta = np.exp(precisions)
        covariance = np.eye(n) / beta + features @ features.T / alpha
        return -multivariate_normal(np.zeros(n), covariance).logpdf(y) / n

    best = [
        -min(
            minimize(evidence, start, (y,), "Nelder-Mead", bounds=[(-12, 12)] * 2).fun
            for start in ([0, 0], [4, 2], [-4, 2])
        )
        for y in np.eye(2)[labels].T
    ]
    assert np.isclose(logme(features, labels, 2), np.mean(best), rtol=1e-2, atol=1e-2)
