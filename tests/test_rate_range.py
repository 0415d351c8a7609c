"""`learning_rate_range`: the loss of each step while the learning rate rises."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from test_recommend import OPTIONS, network, pictures

import finetune_kit as ftk


@pytest.fixture(scope="module")
def images() -> ftk.ImageSet:
    return pictures((14, 14, 14))


def find(images, head=None, spec=None, **options):
    head = ftk.classification_head(3) if head is None else head
    spec = ftk.FineTuneSpec(1) if spec is None else spec
    return ftk.learning_rate_range(network(), head, spec, images, **{**OPTIONS, **options})


def by_hand(x, labels, kernel, rates, batch_size):
    """The losses of SGD on a softmax, computed with NumPy: the same on each backend."""
    bias, losses, epoch = np.zeros(kernel.shape[1]), [], 0
    while len(losses) < len(rates):
        order = np.random.default_rng((0, epoch)).permutation(len(x))
        for start in range(0, len(x), batch_size):
            chosen = order[start : start + batch_size]
            logits = x[chosen] @ kernel + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            truth = np.eye(kernel.shape[1])[labels[chosen]]
            losses.append(-np.log((p * truth).sum(1)).mean())
            if len(losses) == len(rates):
                return losses
            step = rates[len(losses) - 1] / len(chosen) * (p - truth)
            kernel, bias = kernel - x[chosen].T @ step, bias - step.sum(0)
        epoch += 1
    return losses


@pytest.mark.parametrize("kept", [None, False])
def test_each_step_has_its_rate_and_its_loss(images, kept):
    head = ftk.classification_head(3)
    head.build((None, 2, 2, 8))
    kernel = np.random.default_rng(0).normal(size=(8, 3)) / 10
    head.layers[-1].set_weights([kernel, np.zeros(3)])
    found = find(
        images, head, ftk.FineTuneSpec(0), optimizer="sgd", low=1e-4, high=1e-2, steps=12,
        batch_size=16, features=kept,
    )  # fmt: skip
    assert found.rates == pytest.approx(np.geomspace(1e-4, 1e-2, 12))
    features = ftk.extract_features(network(), images, **OPTIONS).astype(np.float64)
    expected = by_hand(features, images.labels, kernel, found.rates, 16)
    assert found.losses == pytest.approx(expected, rel=1e-3)


def test_backbone_and_head_stay_as_they_are(images):
    backbone, head = network(), ftk.classification_head(3)
    head.build(backbone.output_shape)
    before = [w.copy() for w in (*backbone.get_weights(), *head.get_weights())]
    spec = ftk.FineTuneSpec(2, layer_decay=0.5, schedule="cosine")
    first = ftk.learning_rate_range(backbone, head, spec, images, **OPTIONS)
    again = ftk.learning_rate_range(backbone, head, spec, images, **OPTIONS)
    assert first == again
    for one, other in zip(before, (*backbone.get_weights(), *head.get_weights()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_ends_where_the_loss_rises(images):
    found = find(images, low=1e-4, high=1e4, optimizer="sgd")
    assert len(found.rates) == len(found.losses) < 100
    assert all(map(math.isfinite, found.losses))
    assert found.rates[0] <= found.suggestion < found.rates[-1]
    assert f"Suggested: {found.suggestion:.2g}" in str(found)


@pytest.mark.once
def test_a_rate_at_which_the_loss_is_not_finite_ends_it(images):
    found = find(images, low=1e-3, high=1e38, optimizer="sgd", steps=10, batch_size=42)
    assert len(found.rates) < 10
    assert all(map(math.isfinite, found.losses))


@pytest.mark.once
def test_features_in_a_folder_serve_the_training(images, tmp_path, monkeypatch):
    find(images, features=tmp_path, steps=10)
    monkeypatch.setattr(ftk.ImageSet, "load", None)  # no image is decoded again
    ftk.fine_tune(
        network(), ftk.classification_head(3), ftk.FineTuneSpec(1), images, features=tmp_path,
        **OPTIONS,
    )  # fmt: skip


@pytest.mark.once
def test_the_plot_shows_the_suggestion(images):
    found = find(images, steps=20)
    [axes] = found.plot().axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"suggestion: {found.suggestion:.2g}" in texts


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"low": 0.1, "high": 0.01}, "`low` must be above 0 and below `high`"),
        ({"low": 0.0}, "`low` must be above 0"),
        ({"high": math.inf}, "Received: low=1e-06, high=inf"),
        ({"steps": 3}, "`steps` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"spec": [ftk.FineTuneSpec()]}, "`spec` must be"),
        (
            {"optimizer": keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 6))},
            "`optimizer` must have a number as its learning rate",
        ),
    ],
)
def test_arguments_that_do_not_fit(rejected, images, options, says):
    arguments = {"spec": ftk.FineTuneSpec(), **OPTIONS, **options}
    backbone, head = network(), ftk.classification_head(3)
    with rejected(says):
        ftk.learning_rate_range(backbone, head, train=images, **arguments)


def nothing(labels, probabilities):
    return keras.ops.mean(probabilities, axis=-1) * math.nan


@pytest.mark.once
def test_a_loss_that_is_never_finite(images):
    with pytest.raises(ValueError, match="The loss must be finite before the first step"):
        find(images, loss=nothing)
