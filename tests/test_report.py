"""Metrics equal scikit-learn's, their intervals cover the truth, and reports can be read."""

from __future__ import annotations

import json
import math
import re
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics

import finetune_kit as ftk
from finetune_kit._report import bootstrap as _bootstrap
from finetune_kit._report import pictures
from finetune_kit._report import report as _report
from finetune_kit._report.metrics import calibration_bins

ECE = "expected_calibration_error"


def random_predictions(n: int, k: int, seed: int, *, multi_label=False, ties=False):
    """Labels and probabilities that are better than chance; `ties`: rounded to one decimal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, k)) if multi_label else rng.integers(0, k, n)
    truth = labels if multi_label else np.eye(k)[labels]
    logits = rng.normal(size=(n, k)) + truth
    scores = 1 / (1 + np.exp(-logits)) if multi_label else np.exp(logits)
    if ties:
        scores = np.round(scores, 1) + 0.1
    if multi_label:
        return labels, np.clip(scores, 0, 1)
    return labels, scores / scores.sum(axis=1, keepdims=True)


def perfect(**options) -> ftk.Report:
    """A report on 30 images of three classes without an error."""
    labels = np.arange(30) % 3
    return ftk.Report.from_scores(labels, np.eye(3)[labels], **options)


@pytest.fixture
def _without_pictures(monkeypatch):
    """Save reports without pictures, which take most of the time."""
    monkeypatch.setattr(_report, "available", lambda path: False)


# The metrics.


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 999), st.booleans(), st.booleans())
def test_metrics_equal_those_of_scikit_learn(n, k, seed, multi_label, ties):
    labels, scores = random_predictions(n, k, seed, multi_label=multi_label, ties=ties)
    report = ftk.Report.from_scores(labels, scores, resamples=2)
    predicted = (scores >= 0.5).astype(int) if multi_label else scores.argmax(axis=1)
    values = {name: estimate.value for name, estimate in report.metrics.items()}
    assert report.accuracy == values["accuracy"] == metrics.accuracy_score(labels, predicted)
    for average in ("macro", "weighted"):
        expected = metrics.precision_recall_fscore_support(
            labels, predicted, labels=range(k), average=average, zero_division=0.0
        )[:3]
        names = [f"{average}_{name}" for name in ("precision", "recall", "f1")]
        assert [values[name] for name in names] == pytest.approx(list(expected))
    truth = labels if multi_label else np.eye(k)[labels]
    if multi_label:
        logs = [metrics.log_loss(truth[:, i], scores[:, i], labels=[0, 1]) for i in range(k)]
        squares = [metrics.brier_score_loss(truth[:, i], scores[:, i]) for i in range(k)]
        expected = metrics.multilabel_confusion_matrix(labels, predicted)
    else:
        logs = [metrics.log_loss(labels, scores, labels=range(k))]
        squares = [np.mean(np.sum((scores - truth) ** 2, axis=1)) / (2 if k == 2 else 1)]
        expected = metrics.confusion_matrix(labels, predicted, labels=range(k))
        assert values["balanced_accuracy"] == pytest.approx(
            np.mean([np.mean(predicted[labels == c] == c) for c in np.unique(labels)])
        )
    assert values["log_loss"] == pytest.approx(np.mean(logs))
    assert values["brier_score"] == pytest.approx(np.mean(squares))
    assert np.array_equal(report.confusion_matrix, expected)


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 999), st.booleans())
def test_metrics_of_a_ranking_equal_those_of_scikit_learn(n, k, seed, ties):
    labels, scores = random_predictions(n, k, seed, ties=ties)
    report = ftk.Report.from_scores(labels, scores, resamples=2)
    for i, name in enumerate(report.class_names):
        row, true = report.class_metrics[name], labels == i
        if 0 < true.sum() < n:
            area = metrics.roc_auc_score(true, scores[:, i])
            average = metrics.average_precision_score(true, scores[:, i])
            assert row["roc_auc"].value == pytest.approx(area)
            assert row["average_precision"].value == pytest.approx(average)
        else:
            assert math.isnan(row["roc_auc"].value)
            assert row["roc_auc"].method.startswith("no image of")


def test_the_expected_calibration_error_has_15_bins():
    """Two groups of images that are in one bin of 5, but in different bins of 15."""
    confidence = np.repeat([0.62, 0.68], 10)
    labels = np.r_[np.arange(10) < 9, np.arange(10) < 4].astype(int)  # 9 and 4 are correct
    report = ftk.Report.from_scores(labels, confidence)
    assert report.metrics[ECE].value == pytest.approx((0.9 - 0.62 + 0.68 - 0.4) / 2)
    bins = calibration_bins(report.labels, report.scores, 5)
    assert bins.counts.tolist() == [0, 0, 0, 20, 0]
    assert bins.correct.tolist() == [0, 0, 0, 13, 0]
    assert bins.confidence[3] == pytest.approx(0.65)


# The intervals.


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_resample_has_the_metrics_of_the_resampled_images(multi_label):
    labels, scores = random_predictions(80, 3, 1, multi_label=multi_label, ties=True)
    strata = np.zeros(80, int) if multi_label else labels
    (weights,) = _bootstrap._weights(strata, 1, 5)
    found = _bootstrap.bootstrap(labels, scores, resamples=1, seed=5)
    again = np.repeat(np.arange(80), weights[0].astype(int))
    assert len(again) == 80
    expected = ftk.Report.from_scores(labels[again], scores[again], resamples=1)
    for name, estimate in expected.metrics.items():
        assert found[name][0, 0] == pytest.approx(estimate.value, abs=1e-5), name
    for i, name in enumerate(expected.class_names):
        for key in ("f1", "roc_auc", "average_precision"):
            value = expected.class_metrics[name][key].value
            assert found[f"class_{key}"][0, i] == pytest.approx(value, abs=1e-5)


def test_a_resample_keeps_the_number_of_images_of_each_class():
    labels = np.repeat([0, 1, 2], [5, 20, 1])
    for weights in _bootstrap._weights(labels, 50, 0):
        for c in range(3):
            assert set(weights[:, labels == c].sum(axis=1)) == {(labels == c).sum()}


def test_proportions_have_wilsons_interval():
    report = ftk.Report.from_scores([0] * 10 + [1] * 10, np.r_[np.zeros(9), np.ones(11)])
    recall = report.class_metrics["0"]["recall"]
    assert (recall.value, recall.method) == (0.9, "Wilson score")
    assert (recall.low, recall.high) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # Wilson 1927
    assert report.metrics["log_loss"].method == "stratified bootstrap"


def test_metrics_of_a_ranking_have_an_interval_on_the_scale_of_log_odds():
    labels, scores = random_predictions(60, 2, 3)
    area = ftk.Report.from_scores(labels, scores).metrics["roc_auc"]
    odds = [np.log(v / (1 - v)) for v in (area.low, area.value, area.high)]
    assert np.diff(odds)[0] == pytest.approx(np.diff(odds)[1])
    assert 0 < area.low < area.value < area.high < 1
    assert area.method.endswith("log-odds")


def test_a_metric_that_is_equal_in_all_resamples_has_no_interval():
    report = perfect()
    assert str(report.metrics["macro_f1"]) == "1.000 (no interval)"
    assert report.metrics["accuracy"].low == pytest.approx(0.886, abs=1e-3)  # Wilson has one
    assert report.metrics["weighted_recall"] == report.metrics["accuracy"]
    assert report.cautions()[-1].startswith("A metric without an interval is not exact")


def test_the_seed_decides_the_intervals():
    labels, scores = random_predictions(60, 3, 0)
    one, same, other = (ftk.Report.from_scores(labels, scores, seed=s) for s in (0, 0, 1))
    assert one.metrics == same.metrics
    assert one.metrics != other.metrics


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="uses no backend, so once is enough"
)
def test_intervals_cover_the_true_value_at_the_nominal_rate():
    """95% of 400 test sets, within three standard errors (3.3 points).

    `benchmarks/report.py --coverage` uses 2,000 test sets.
    """
    program = Path(__file__).parents[1] / "benchmarks" / "report.py"
    rates = runpy.run_path(str(program))["coverage"](trials=400, resamples=200)
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
def test_degenerate_sets_have_metrics_or_a_reason(labels, scores, tmp_path):
    report = ftk.Report.from_scores(labels, scores)
    rows = [report.metrics, *report.class_metrics.values()]
    for estimate in (estimate for row in rows for estimate in row.values()):
        undefined = str(estimate) == "undefined" and estimate.method
        assert not math.isnan(estimate.value) or undefined
    assert "nan" not in str(report)
    report.save(tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)


def test_a_class_that_is_never_predicted_has_a_precision_of_0_without_an_interval():
    report = ftk.Report.from_scores([0, 1], [[0.9, 0.1], [0.8, 0.2]])
    precision = report.class_metrics["1"]["precision"]
    assert str(precision) == "0.000 (no interval)"
    assert precision.method == "the class was never predicted"
    assert report.per_class["1"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


# The cautions.


def test_wide_intervals_of_several_classes_are_one_caution():
    labels = np.arange(60) % 20
    report = ftk.Report.from_scores(labels, np.eye(20)[(labels + (np.arange(60) < 20)) % 20])
    (caution,) = (text for text in report.cautions() if "recall" in text)
    assert caution.endswith("3 images) and 16 more.")


def test_classes_without_images_are_a_caution():
    report = ftk.Report.from_scores([0, 0], np.eye(3)[[0, 0]], ["a", "b", "c"])
    assert report.cautions()[0] == "There is no image of b, c."


def test_a_model_that_predicts_one_class_only_is_the_first_caution():
    scores = np.eye(2)[[1, 1, 1]]
    about = {"cautions": ["of evaluate"]}
    report = ftk.Report.from_scores([0, 1, 1], scores, ["well", "ill"], about=about)
    assert report.cautions()[:2] == ["The model predicts ill for all 3 images.", "of evaluate"]
    assert "predicts" not in str(ftk.Report.from_scores([1, 1, 1], scores).cautions())


def test_all_cautions_are_saved_and_the_first_ones_printed():
    report = perfect(about={"cautions": [f"number {i}" for i in range(5)]})
    cautions = report.cautions()
    assert len(cautions) == 7  # wide intervals and missing intervals
    assert report.to_dict()["cautions"] == cautions
    printed = str(report)
    assert "Caution: number 3\n3 more cautions: report.cautions()\n" in printed
    assert str(perfect()).count("Caution: ") == 2


# Arguments.


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [[3.0, -1.0], [0.5, 0.5]], "must end in a softmax or a sigmoid.*-1 to 3"),
        ([0, 1], [[0.5, 0.1], [0.5, 0.5]], "each row must sum to 1"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "whole numbers from 0 to 1"),
        ([0.5, 1], [[0.5, 0.5], [0.5, 0.5]], "whole numbers from 0 to 1"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], r"shape \(2, 2\), labels of shape \(1,\)"),
        ([], np.zeros((0, 2)), "n must be at least 1"),
    ],
)
def test_labels_and_scores_are_checked(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        ftk.Report.from_scores(labels, scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a"]}, "`class_names` must be 2 different names"),
        ({"class_names": ["a", "a"]}, "`class_names` must be 2 different names"),
        ({"class_names": "ab"}, "`class_names` must be 2 different names"),
        ({"samples": ["a", "b"]}, "`samples` must have one value for each of the 1 images"),
        ({"resamples": 0}, "`resamples` must be a whole number"),
        ({"seed": -1}, "`seed` must be a whole number"),
    ],
)
def test_names_samples_and_counts_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ftk.Report.from_scores([0], [[0.5, 0.5]], **options)


# What people read.


def test_the_printed_report_starts_with_the_main_metrics():
    scores = np.array([[9, 1, 0], [1, 9, 0], [1, 9, 0], [0, 1, 9]]) / 10
    report = ftk.Report.from_scores([0, 0, 1, 2], scores, ["a", "b & c", "d"])
    lines = str(report).splitlines()
    assert lines[0].startswith("4 images, 3 classes: accuracy 0.750 (0.301 to 0.954), macro F1 0.")
    assert lines[2].startswith("Caution: Few images make the recall uncertain.")
    lines = lines[lines.index("Confusion matrix") :]
    assert lines[2].split() == ["a", "1", "1", "0"]
    assert lines[6] == "Metrics per class"
    assert lines[8].startswith("a      1.000 (0.207 to 1.000)  0.500 (0.095 to 0.905)  0.667 (")
    assert lines[12] == "Metrics of all images (bootstrap: 1,000 resamples)"
    assert lines[13].split("  ")[-1] == "interval method"
    assert "value (95% interval)" in lines[13]
    assert lines[14].split() == ["accuracy", "0.750", "(0.301", "to", "0.954)", "Wilson", "score"]
    assert max(map(len, lines)) <= 100
    assert str(report).isascii()


def test_the_repr_is_one_short_line():
    assert repr(perfect()) == (
        "Report(30 images, 3 classes; accuracy 1.000 (0.886 to 1.000), macro F1 1.000 (no "
        "interval))"
    )


@pytest.mark.usefixtures("_without_pictures")
@pytest.mark.parametrize(
    ("about", "title"),
    [
        ({}, "Report on 30 images"),
        ({"model": {"name": "net"}}, "net on 30 images"),
        ({"model": {"name": "net"}, "data": {"name": "scans"}}, "net on scans"),
    ],
)
def test_the_title_names_model_and_data(about, title, tmp_path):
    report = perfect(about=about)
    page = report.save(tmp_path / "page.html").read_text()
    assert f"<h1>{title}</h1>" in page
    assert "<h1>mine</h1>" in report.save(tmp_path / "page.html", title="mine").read_text()


FILES = {"report.txt", "report.json", "report.html", "model_card.md"}


@pytest.mark.usefixtures("_without_pictures")
def test_a_saved_report_holds_what_the_report_holds(tmp_path):
    history = {"loss": [1.0, 0.5], "val_loss": [1.0, math.nan]}
    report = perfect(history=history, manifest="ab" * 32)
    folder = report.save(tmp_path / "a" / "b", title="My report")
    saved = json.loads((folder / "report.json").read_text())
    assert saved == report.to_dict()
    assert saved["format"] == "finetune-kit report 1"
    assert saved["metrics"]["accuracy"]["value"] == 1.0
    assert saved["bootstrap"] == {"resamples": 1000, "seed": 0}
    assert saved["history"] == {"loss": [1.0, 0.5], "val_loss": [1.0, None]}
    assert saved["manifest"] == "ab" * 32
    assert (folder / "report.txt").read_text() == f"{report}\n"
    card = (folder / "model_card.md").read_text()
    for heading in ("# My report", "## Uses", "## Bias, Risks, and Limitations", "## Evaluation"):
        assert f"\n{heading}\n" in card
    assert str(report.metrics["accuracy"]) in card
    assert "### Direct Use\n\n[More information needed]\n" in card


def test_pictures_are_not_blank_and_large_enough_to_read(tmp_path):
    labels, scores = random_predictions(60, 3, 0)
    history = {"loss": [1.0, 0.5], "val_loss": [1.0, 0.7]}
    report = ftk.Report.from_scores(labels, scores, history=history)
    folder = report.save(tmp_path)
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"confusion_matrix.png", "learning_curves.png", "curves.png",
                        "calibration.png"}  # fmt: skip
    for name in pictures:
        pixels = np.asarray(Image.open(folder / name).convert("L"))
        assert min(pixels.shape) > 500
        assert pixels.std() > 8


def test_files_of_an_earlier_report_are_replaced(tmp_path):
    perfect(history={"loss": [1.0]}).save(tmp_path)
    assert (tmp_path / "learning_curves.png").exists()
    (tmp_path / "notes.txt").write_text("mine")
    perfect().save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == FILES | {"confusion_matrix.png", "curves.png", "calibration.png", "notes.txt"}


@pytest.mark.usefixtures("_without_pictures")
def test_a_path_that_ends_in_html_is_one_page(tmp_path):
    report = perfect()
    page = report.save(tmp_path / "new" / "my.html")
    assert page == tmp_path / "new" / "my.html"
    assert [path.name for path in page.parent.iterdir()] == ["my.html"]
    assert page.read_text() == (report.save(tmp_path) / "report.html").read_text()


def test_a_report_is_not_saved_over_something_else(tmp_path):
    (tmp_path / "report").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    for name, kind in (("report", "file"), ("folder.html", "folder")):
        with pytest.raises(ValueError, match=f"`path` must be a folder, or .* which is a {kind}"):
            perfect().save(tmp_path / name)
    assert (tmp_path / "report").read_text() == "mine"
    with pytest.raises(ValueError, match="Received: path=3 of type int"):
        perfect().save(3)


@pytest.mark.usefixtures("_without_pictures")
def test_a_path_with_the_suffix_of_another_file_is_an_error(tmp_path):
    for name in ("report.pdf", "report.JSON", "page.htm"):
        with pytest.raises(ValueError, match=f"ends in .html, such as .*Received: .*{name}"):
            perfect().save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert (perfect().save(tmp_path / "o6.v2") / "report.html").exists()


def test_an_estimate_shows_plain_numbers():
    found = [e for e in perfect().metrics.values()]
    assert "np." not in repr(found)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"`path` must be a folder.*file/report.*Not a directory"):
        perfect().save(tmp_path / "file" / "report")


def test_without_matplotlib_the_rest_is_saved_with_a_warning(tmp_path, monkeypatch, caplog):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = perfect().save(tmp_path)
    assert {path.name for path in folder.iterdir()} == FILES
    assert "finetune-kit[plots]" in caplog.text


def many_classes(k: int, count: int, **context) -> ftk.Report:
    """Class 7 is often taken for class 3, and others for the one behind them now and then."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % k
    guesses = np.where(rng.random(count) < 0.1, (labels + 1) % k, labels)
    guesses[labels == 7] = 3
    scores = np.full((count, k), 0.1 / (k - 1))
    scores[np.arange(count), guesses] = 0.9
    names = [f"class {i}" for i in range(k)]
    return ftk.Report.from_scores(labels, scores, names, resamples=20, **context)


@pytest.mark.slow
def test_with_many_classes_a_report_shows_the_most_confused_and_stays_small(tmp_path):
    report = many_classes(200, 2000)
    table = report.confusion_table()
    assert table.counts.shape == (30, 30)
    assert {"class 3", "class 7"} <= {*table.rows}
    assert table.counts[table.rows.index("class 7"), table.columns.index("class 3")] == 10
    np.testing.assert_array_equal(table.totals, 10)
    assert table.note == "The 30 most confused of 200 classes."
    text = str(report)
    assert len(text.splitlines()) < 120
    assert f"Confusion matrix. {table.note}" in text
    assert "the 30 with the lowest F1, of 200" in text
    report.save(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5e6
    saved = json.loads((tmp_path / "report.json").read_text())
    assert np.shape(saved["confusion_matrix"]) == (200, 200)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<tr") < 300
    assert table.note in page
    assert page.count('type="radio"') == 7
    rows = re.findall(r'<tr style="([^"]*)"><th scope="row">(class \d+)<', page)
    f1 = {name: int(re.search(r"--o3:(\d+);", style)[1]) for style, name in rows}
    assert len(f1) == 200
    assert sorted(f1.values()) == list(range(200))
    values = [report.class_metrics[name]["f1"].value for name in sorted(f1, key=f1.get)]
    assert values == sorted(values)


def test_ranked_resamples_are_fewer_where_there_are_many_scores(monkeypatch):
    whole = many_classes(20, 200)
    monkeypatch.setattr(_bootstrap, "_RANKED_AT_MOST", 1)
    monkeypatch.setattr(_bootstrap, "_CALIBRATED_AT_MOST", 1)
    monkeypatch.setattr(_bootstrap, "_ROWS_AT_ONCE", 7)
    capped = many_classes(20, 200)
    assert capped.metrics["macro_f1"] == whole.metrics["macro_f1"]
    assert capped.metrics["log_loss"] == whole.metrics["log_loss"]
    assert capped.metrics["roc_auc"] == whole.metrics["roc_auc"]  # 20 resamples are the least


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path, monkeypatch, caplog):
    def broken(report):
        raise MemoryError("too large")

    monkeypatch.setattr(pictures, "confusion", broken)
    many_classes(8, 40).save(tmp_path)
    assert {"report.txt", "report.json", "report.html", "model_card.md", "calibration.png"} <= {
        file.name for file in tmp_path.iterdir()
    }
    assert not (tmp_path / "confusion_matrix.png").exists()
    assert "confusion_matrix.png: not drawn (MemoryError: too large)" in caplog.text


@settings(max_examples=8)
@given(names=st.lists(st.text(min_size=1, max_size=12), min_size=3, max_size=3, unique=True))
@example(names=["$\\frac", "$$", "a $x$ \\"])
@example(names=["\udc80\udcff", "\x00\x07", "\u202eabc"])
@example(names=["<script>alert(1)</script>", "&amp;", '"\'"'])
def test_class_names_of_any_text_are_saved_as_they_are(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    labels = np.arange(12) % 3
    scores = np.roll(0.8 * np.eye(3)[labels] + 0.2 / 3, 1, axis=0)
    report = ftk.Report.from_scores(labels, scores, names, resamples=5)
    report.save(folder)
    assert json.loads((folder / "report.json").read_text())["class_names"] == names
    page = (folder / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "\x00" not in page
    assert (folder / "confusion_matrix.png").stat().st_size > 1000
    str(report).encode()


def test_long_names_and_names_that_begin_with_a_line_are_in_every_picture(tmp_path):
    names = ["_first", "a very long name " * 9, "two\nlines", *"defghijkl"]
    labels = np.arange(48) % 12
    scores = np.roll(0.8 * np.eye(12)[labels] + 0.2 / 12, 1, axis=0)
    report = ftk.Report.from_scores(labels, scores, names, resamples=5)
    legend = pictures.ranking_curves(report).axes[0].get_legend().get_texts()
    assert len(legend) == 8
    assert "_first (" in legend[0].get_text()
    assert max(len(text.get_text()) for text in legend) < 55
    axes = pictures.confusion(report).axes[0]
    assert max(len(label.get_text()) for label in axes.get_yticklabels()) < 55
    assert "\ntwo lines" in str(report)
    assert "8 most confused of 12" in pictures.ranking_curves(report).axes[0].get_title()


def test_the_model_card_of_many_classes_is_short(tmp_path):
    many_classes(60, 120).save(tmp_path)
    card = (tmp_path / "model_card.md").read_text()
    assert card.count("\n| class ") == 31
    assert "The 30 with the lowest F1, of 60:" in card
    assert "and 30 more" in card
