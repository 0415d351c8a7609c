"""Figures equal scikit-learn's, intervals hold; what is saved can be read, and looked at."""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics

import finetune_kit as ftk

SPLIT = ftk.Split(np.arange(12), np.arange(12, 18), np.arange(18, 24))


class Scores(keras.layers.Layer):
    """A "model" whose scores are written into the pixels: brightness b of class c's corner."""

    def call(self, x):
        corner = keras.ops.cast(x[:, 0, :3, 0], "float32")
        return corner / keras.ops.sum(corner, axis=1, keepdims=True)


def evaluated(labels, scores, names=("a", "b & c", "d"), **options) -> ftk.Report:
    """What `evaluate` says of a model that gives these scores (whole numbers)."""
    pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
    pixels[:, 0, :3] = np.asarray(scores)[:, :, None]
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, Scores()(inputs))
    return ftk.evaluate(model, ftk.ImageSet.from_arrays(pixels, labels, names), **options)


def drawn(n: int, k: int, seed: int, *, many: bool = False, ties: bool = False):
    """Random labels and probabilities that know something of them; `ties`: to one decimal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, k)) if many else rng.integers(0, k, n)
    truth = labels if many else np.eye(k)[labels]
    logits = rng.normal(size=(n, k)) + truth
    scores = 1 / (1 + np.exp(-logits)) if many else np.exp(logits)
    if ties:
        scores = np.round(scores, 1) + 0.1
    if many:
        return labels, np.clip(scores, 0, 1)
    return labels, scores / scores.sum(axis=1, keepdims=True)


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 999), st.booleans(), st.booleans())
def test_figures_equal_scikit_learns(n, k, seed, many, ties):
    labels, scores = drawn(n, k, seed, many=many, ties=ties)
    report = ftk.Report.from_scores(labels, scores, draws=2)
    predicted = (scores >= 0.5).astype(int) if many else scores.argmax(axis=1)
    found = {name: figure.value for name, figure in report.figures.items()}
    assert report.accuracy == found["accuracy"] == metrics.accuracy_score(labels, predicted)
    for average in ("macro", "weighted"):
        expected = metrics.precision_recall_fscore_support(
            labels, predicted, labels=range(k), average=average, zero_division=0.0
        )[:3]
        names = [f"{average}_{name}" for name in ("precision", "recall", "f1")]
        assert [found[name] for name in names] == pytest.approx(list(expected))
    truth = labels if many else np.eye(k)[labels]
    for i, name in enumerate(report.class_names):
        row = report.class_figures[name]
        if 0 < truth[:, i].sum() < n:
            area = metrics.roc_auc_score(truth[:, i], scores[:, i])
            average = metrics.average_precision_score(truth[:, i], scores[:, i])
            assert row["roc_auc"].value == pytest.approx(area)
            assert row["average_precision"].value == pytest.approx(average)
        else:
            assert math.isnan(row["roc_auc"].value)
            assert row["roc_auc"].method.startswith("no image of")
    if many:
        logs = [metrics.log_loss(truth[:, i], scores[:, i], labels=[0, 1]) for i in range(k)]
        squares = [metrics.brier_score_loss(truth[:, i], scores[:, i]) for i in range(k)]
        assert found["log_loss"] == pytest.approx(np.mean(logs))
        assert found["brier_score"] == pytest.approx(np.mean(squares))
        expected = metrics.multilabel_confusion_matrix(labels, predicted)
    else:
        assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, scores, labels=range(k)))
        brier = np.mean(np.sum((scores - truth) ** 2, axis=1)) / (2 if k == 2 else 1)
        assert found["brier_score"] == pytest.approx(brier)
        expected = metrics.confusion_matrix(labels, predicted, labels=range(k))
        assert found["balanced_accuracy"] == pytest.approx(
            np.mean([np.mean(predicted[labels == c] == c) for c in np.unique(labels)])
        )
    assert np.array_equal(report.confusion_matrix, expected)


@pytest.mark.parametrize("many", [False, True])
def test_the_bootstrap_draws_what_scikit_learn_would_count(many):
    """One draw, told by its weights: the same figures as scikit-learn's with these weights."""
    from finetune_kit._report import bootstrap as _bootstrap

    labels, scores = drawn(80, 3, 1, many=many, ties=True)
    strata = np.zeros(80, int) if many else labels
    (weights,) = _bootstrap._weights(strata, 1, 5)
    found = {k: v[0] for k, v in _bootstrap.bootstrap(labels, scores, draws=1, seed=5).items()}
    again = np.repeat(np.arange(80), weights[0].astype(int))
    assert len(again) == 80
    expected = ftk.Report.from_scores(labels[again], scores[again], draws=1)
    for name, figure in expected.figures.items():
        assert found[name][0] == pytest.approx(figure.value, abs=1e-5), name
    for i, name in enumerate(expected.class_names):
        for key in ("f1", "roc_auc", "average_precision"):
            value = expected.class_figures[name][key].value
            assert found[f"class_{key}"][i] == pytest.approx(value, abs=1e-5)


def test_proportions_have_wilsons_interval():
    report = ftk.Report.from_scores([0] * 10 + [1] * 10, np.r_[np.zeros(9), np.ones(11)])
    recall = report.class_figures["0"]["recall"]
    assert (recall.value, recall.method) == (0.9, "Wilson score")
    assert (recall.low, recall.high) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # Wilson 1927
    assert report.figures["log_loss"].method == "stratified bootstrap, 1,000 draws"


def test_what_no_draw_can_tell_has_no_interval():
    """Without a mistake each draw gives the same: that is no certainty, and is said."""
    report = ftk.Report.from_scores(np.arange(30) % 3, np.eye(3)[np.arange(30) % 3])
    assert str(report.figures["macro_f1"]) == "1.000 (no interval)"
    assert report.figures["accuracy"].low == pytest.approx(0.886, abs=1e-3)  # Wilson's has one
    assert report.figures["weighted_recall"] == report.figures["accuracy"]
    assert "does not mean that the figure is certain" in report.cautions()[-1]


def test_many_classes_of_few_images_are_one_caution():
    labels = np.arange(60) % 20
    report = ftk.Report.from_scores(labels, np.eye(20)[(labels + (np.arange(60) < 20)) % 20])
    assert report.cautions()[0].startswith("The recalls of 20 classes rest on few images")


def test_the_same_seed_gives_the_same_intervals():
    labels, scores = drawn(60, 3, 0)
    one, same, other = (ftk.Report.from_scores(labels, scores, seed=s) for s in (0, 0, 1))
    assert one.figures == same.figures
    assert one.figures != other.figures


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="no model in it: once is enough"
)
def test_intervals_cover_at_their_nominal_rate():
    """Of 400 test sets, 95 % hold the true value, within three standard errors (3.3 points).

    `benchmarks/report.py --coverage` does it with 2,000.
    """
    program = Path(__file__).parents[1] / "benchmarks" / "report.py"
    rates = runpy.run_path(str(program))["coverage"](trials=400, draws=200)
    assert len(rates) == 13 + 3 * 5
    assert {name: rate for name, rate in rates.items() if not 0.917 <= rate <= 0.983} == {}


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        ([0], [[0.2, 0.5, 0.3]]),
        ([1, 1, 1], [[0.2, 0.5, 0.3]] * 3),
        ([0, 1, 2], [[1 / 3] * 3] * 3),
        ([0, 0, 1], np.eye(3)[[0, 0, 0]]),
        ([[0, 0], [0, 0]], [[0.5, 0.5], [0, 0]]),
        ([[1, 1]], [[1.0, 0.0]]),
    ],
    ids=["one image", "one class", "equal scores", "one class predicted", "no label", "all labels"],
)
def test_degenerate_cases_have_figures_or_a_name(labels, scores, tmp_path):
    report = ftk.Report.from_scores(labels, scores)
    rows = [report.figures, *report.class_figures.values()]
    for figure in (figure for row in rows for figure in row.values()):
        assert not math.isnan(figure.value) or (str(figure) == "undefined" and figure.method)
    assert "nan" not in str(report)
    report.save(tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)


def test_a_class_that_is_never_predicted_has_a_precision_of_0_without_an_interval():
    report = ftk.Report.from_scores([0, 1], [[0.9, 0.1], [0.8, 0.2]])
    precision = report.class_figures["1"]["precision"]
    assert str(precision) == "0.000 (no interval)"
    assert precision.method == "never predicted"
    assert report.per_class["1"]["precision"] == 0.0


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [
        ([0, 1], [[3.0, -1.0], [0.5, 0.5]], "must end in a softmax or a sigmoid.*-1 to 3"),
        ([0, 1], [[0.5, 0.1], [0.5, 0.5]], "rows that sum to 1"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "whole numbers from 0 to 1"),
        ([0.5, 1], [[0.5, 0.5], [0.5, 0.5]], "whole numbers from 0 to 1"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], r"shapes \(2, 2\) and \(1,\)"),
        ([], np.zeros((0, 2)), "n at least 1"),
    ],
)
def test_what_are_no_labels_or_no_probabilities_is_refused(labels, scores, says):
    with pytest.raises(ValueError, match=says):
        ftk.Report.from_scores(labels, scores)


def test_names_and_samples_of_another_number_are_refused():
    with pytest.raises(ValueError, match="`class_names` must be one for each of the 2"):
        ftk.Report.from_scores([0], [[0.5, 0.5]], ["a"])
    with pytest.raises(ValueError, match="`samples` must be one for each of 1"):
        ftk.Report.from_scores([0], [[0.5, 0.5]], samples=["a", "b"])


def test_the_tables_can_be_read():
    report = evaluated([0, 0, 1, 2], [[9, 1, 0], [1, 9, 0], [1, 9, 0], [0, 1, 9]])
    lines = str(report).splitlines()
    assert lines[0].split() == ["precision", "recall", "F1", "support"]
    assert lines[1].startswith("a      1.000 (0.207 to 1.000)  0.500 (0.095 to 0.905)  0.667 (")
    assert lines[5].split()[:2] == ["4", "images"]
    assert lines[6].startswith("accuracy            0.750 (0.301 to 0.954)  Wilson score")
    assert lines[-3].split() == ["a", "1", "1", "0"]
    assert max(map(len, lines)) <= 100
    assert str(report).isascii()


@pytest.fixture(scope="module")
def tuned(small_backbone):
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pixels = rng.integers(0, 80, (24, 32, 32, 3)) + 80 * labels[:, None, None, None]
    images = ftk.ImageSet.from_arrays(pixels.astype(np.uint8), labels, ["dark", "gray", "light"])
    specs = [ftk.FineTuneSpec(epochs=2), ftk.FineTuneSpec(1)]
    head = ftk.classification_head(3)
    return ftk.fine_tune(small_backbone, head, specs, images, SPLIT, verbose=0)


FILES = {"report.txt", "report.json", "report.html", "model_card.md"}
PICTURES = {"confusion_matrix.png", "learning_curves.png", "curves.png", "calibration.png",
            "mistakes.png"}  # fmt: skip


def test_a_saved_report_can_be_read_and_looked_at(tuned, tmp_path):
    report = ftk.evaluate(tuned, tuned.images, heat_maps=3)
    assert any(report.is_mistake(example) for example in report.examples)
    folder = report.save(tmp_path / "a" / "b", title="My report")
    assert {p.name for p in folder.iterdir()} == FILES | PICTURES
    saved = json.loads((folder / "report.json").read_text())
    assert saved == report.to_dict()
    assert saved["history"] == {name: list(v) for name, v in tuned.history.items()}
    assert saved["format"] == "finetune-kit report 1"
    assert (folder / "report.txt").read_text() == f"{report}\n"
    for picture in folder.glob("*.png"):
        pixels = np.asarray(Image.open(picture).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 8  # not blank
    card = (folder / "model_card.md").read_text()
    for heading in ("# My report", "## Uses", "## Bias, Risks, and Limitations", "## Evaluation"):
        assert f"\n{heading}\n" in card
    assert str(report.figures["accuracy"]) in card
    assert "seed: 0" in card
    report.save(folder)  # again: replaced, nothing left over
    assert len(list(folder.iterdir())) == len(FILES | PICTURES)


def test_the_report_tells_where_its_figures_come_from(tuned):
    report = ftk.evaluate(tuned, tuned.images, SPLIT.test)
    assert report.plans == tuned.plans
    assert report.history["phase"] == [1, 1, 2]
    about = report.about
    assert about["data"]["split"] == {"train": 12, "validation": 6, "test": 6}
    assert about["data"]["of these images trained on"] == 0
    assert not report.cautions() or "trained on" not in report.cautions()[0]
    assert about["training"]["specs"] == [ftk.FineTuneSpec(epochs=2).to_dict(),
                                          ftk.FineTuneSpec(1).to_dict()]  # fmt: skip
    assert about["environment"]["keras"] == keras.__version__
    assert len(report.samples) == len(set(report.samples)) == 6


def test_images_that_were_trained_on_are_found_by_their_content(tuned):
    """Whatever their place or name: a copy of a training image is one."""
    images = ftk.ImageSet.from_arrays(
        tuned.images.load([20, 3, 21], (32, 32)), [2, 0, 0], tuned.images.class_names
    )
    report = ftk.evaluate(tuned, images)
    assert report.cautions()[0].startswith("1 of these images were trained on")


def test_other_classes_than_those_trained_on_are_refused(tuned):
    """In another order, the figures would be those of other classes."""
    images = dataclasses.replace(tuned.images, class_names=("light", "gray", "dark"))
    with pytest.raises(ValueError, match=r"\['dark', 'gray', 'light'\].*\['light', 'gray'"):
        ftk.evaluate(tuned, images)


def test_near_duplicates_of_training_images_are_told(tuned):
    groups = np.arange(24)
    groups[20] = groups[3]
    duplicates = ftk.Duplicates(((3, 20),), groups, (), ())
    report = ftk.evaluate(tuned, tuned.images, SPLIT.test, duplicates=duplicates)
    assert report.cautions()[0].startswith("1 of these images are in one group")


def test_a_plain_model_has_its_curves(tuned):
    report = ftk.evaluate(tuned.model, tuned.images, SPLIT.test)
    assert report.history["loss"] == tuned.history["loss"]
    assert report.plans == ()


def test_examples_are_the_most_confident_of_each_cell(tuned):
    report = ftk.evaluate(tuned, tuned.images, examples=2)
    predicted = report.predicted
    for example in report.examples:
        i = int(example.name.split()[1])
        assert example.cell == (report.labels[i], predicted[i])
        assert example.probability == report.scores[i].max()
        same = [report.scores[j].max() for j in range(24)
                if (report.labels[j], predicted[j]) == example.cell]  # fmt: skip
        assert example.probability >= sorted(same)[-2:][0]
    assert report.examples
    assert not any(example.heat_map for example in report.examples)
    assert ftk.evaluate(tuned, tuned.images, examples=0).examples == ()


def test_several_labels_an_image(small_backbone, tiny_images, tmp_path):
    images = dataclasses.replace(tiny_images, labels=np.eye(3, dtype=int)[tiny_images.labels])
    backbone = keras.models.clone_model(small_backbone)
    model = ftk.FineTuneSpec().build(backbone, ftk.multilabel_head(3))
    report = ftk.evaluate(model, images, heat_maps=2)
    assert report.confusion_matrix.shape == (3, 2, 2)
    assert report.counts()[1] == ("found", "missed", "false alarm", "rightly absent")
    for example in report.examples:
        label, outcome = example.cell
        i = int(example.name.split()[1])
        assert (outcome < 2) == (images.labels[i, label] == 1)
        assert report.is_mistake(example) == (report.predicted[i, label] != images.labels[i, label])
        assert example.probability >= 0.5
    page = (report.save(tmp_path) / "report.html").read_text()
    assert "rightly absent" in page


def test_one_sigmoid_tells_two_classes(small_backbone, tiny_images):
    images = dataclasses.replace(
        tiny_images, labels=(tiny_images.labels > 0).astype(int), class_names=("dark", "other")
    )
    backbone = keras.models.clone_model(small_backbone)
    model = ftk.FineTuneSpec().build(backbone, ftk.classification_head(1))
    report = ftk.evaluate(model, images, heat_maps=2)
    assert report.scores.shape == (24, 2)
    assert sum(example.heat_map is not None for example in report.examples) == 2


def test_names_tell_nothing_of_the_machine(tuned, tmp_path):
    for i in range(4):
        folder = tmp_path / ("dark", "gray")[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(tuned.images.load([i], (32, 32))[0]).save(folder / f"{i}.png")
    images = dataclasses.replace(
        ftk.read_image_folder(tmp_path), class_names=("dark", "gray", "light")
    )
    report = ftk.evaluate(tuned, images)
    names = {example.name for example in report.examples}
    assert names == {"dark/0.png", "gray/1.png", "dark/2.png", "gray/3.png"}


def test_model_and_report_name_the_manifest(tuned):
    images = dataclasses.replace(tuned.images, manifest="ab" * 32)
    report = ftk.evaluate(tuned, images, SPLIT.test)
    assert report.manifest == report.to_dict()["manifest"] == "ab" * 32


def test_a_model_with_other_classes_is_refused(tiny_images):
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match=r"`model` must give one probability.*\(None, 5\)"):
        ftk.evaluate(model, tiny_images)
    with pytest.raises(ValueError, match="at least one image"):
        ftk.evaluate(model, tiny_images, [])
    with pytest.raises(ValueError, match=r"np\.flatnonzero"):
        ftk.evaluate(model, tiny_images, np.ones(24, bool))
    split = ftk.Split([0], [], [1])
    for arguments, says in (
        ((model, tiny_images, "test"), "such as split.test"),
        ((model, tiny_images, split), "part of a split, such as split.test"),
        (("model.keras", tiny_images), "must be what fine_tune returned, or a keras.Model"),
        ((model, "folder"), "`images` must be of type ImageSet"),
    ):
        with pytest.raises(ValueError, match=says):
            ftk.evaluate(*arguments)
    with pytest.raises(ValueError, match="`heat_maps`"):
        ftk.evaluate(model, tiny_images, heat_maps=-1)
    with pytest.raises(ValueError, match=r"no image twice.*3 indices, 1 of them again"):
        ftk.evaluate(model, tiny_images, [0, 4, 0])


def test_what_was_trained_on_is_said_wherever_figures_are(tuned, tmp_path):
    """Above the tables, and in a comparison too."""
    report = ftk.evaluate(tuned, tuned.images, SPLIT.train)
    first = "12 of these images were trained on: the figures are too good."
    assert str(report).startswith(f"Mind: {first}\n\n")
    comparison = ftk.compare({1: report, 2: report})
    assert comparison.cautions() == [f"1: {first}", f"2: {first}"]
    assert str(comparison).startswith(f"Mind: 1: {first}")
    comparison.save(tmp_path)
    for file in ("comparison.json", "comparison.html", "comparison.txt"):
        assert first in (tmp_path / file).read_text(encoding="utf-8")


def test_the_report_tells_the_rate_that_was_used(small_backbone, tuned):
    """That of the spec, and of the optimizer where it has its own."""
    spec = ftk.FineTuneSpec(learning_rate=1e-5)
    for optimizer, rate in ((None, None), ("sgd", None), (keras.optimizers.SGD(0.25), 0.25)):
        run = ftk.fine_tune(small_backbone, ftk.classification_head(3), spec, tuned.images, SPLIT,
                            optimizer=optimizer, verbose=0)  # fmt: skip
        about = ftk.evaluate(run, tuned.images, SPLIT.test).about["training"]
        assert about["specs"][0]["learning_rate"] == 1e-5
        assert about["optimizer"].get("learning_rate") == rate


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path):
    evaluated([0, 1, 2], np.eye(3)[[0, 2, 1]] * 9 + 1).save(tmp_path)
    assert (tmp_path / "mistakes.png").exists()
    evaluated([0, 1, 2], np.eye(3) * 9 + 1).save(tmp_path)
    assert not (tmp_path / "mistakes.png").exists()


def test_validation_images_are_no_test_images(tuned):
    cautions = ftk.evaluate(tuned, tuned.images, SPLIT.validation).cautions()
    assert cautions[0].startswith(
        f"{len(SPLIT.validation)} of these images are from the validation"
    )


def test_a_report_is_not_saved_over_a_file(tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(ValueError, match=r"`folder` must be a folder.*which is a file"):
        ftk.Report.from_scores([0, 1], [0.2, 0.9]).save(tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_names_that_are_one_are_refused():
    with pytest.raises(ValueError, match="none twice"):
        ftk.Report.from_scores([0, 1], [0.2, 0.9], ["a", "a"])


def test_rank_figures_have_the_interval_of_their_log_odds():
    """Inside 0 and 1, wider toward the middle, one standard error the same on both sides."""
    labels, scores = drawn(60, 2, 3)
    figure = ftk.Report.from_scores(labels, scores).figures["roc_auc"]
    odds = [np.log(v / (1 - v)) for v in (figure.low, figure.value, figure.high)]
    assert np.diff(odds)[0] == pytest.approx(np.diff(odds)[1])
    assert 0 < figure.low < figure.value < figure.high < 1
    assert figure.method.endswith("log-odds")


def test_a_model_without_a_feature_map_is_reported_on_without_heat_maps(caplog):
    report = evaluated([0, 1, 2], np.eye(3) * 9 + 1, heat_maps=3)
    assert len(report.examples) == 3
    assert not any(example.heat_map for example in report.examples)
    assert "no heat maps" in caplog.text


def test_without_matplotlib_the_figures_are_saved_and_it_is_said(tmp_path, monkeypatch, caplog):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = evaluated([0, 1, 2], np.eye(3) * 9 + 1).save(tmp_path)
    assert {path.name for path in folder.iterdir()} == FILES
    assert "finetune-kit[plots]" in caplog.text
