"""What may be concluded from several models on the same images, and what not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finetune_kit as ftk
from finetune_kit._report.compare import holm


def report(labels, right, **options) -> ftk.Report:
    """A report on a model that is sure, and right where it is said."""
    labels, right = np.asarray(labels), np.asarray(right, bool)
    scores = np.full((len(labels), 3), 0.05)
    scores[np.arange(len(labels)), np.where(right, labels, (labels + 1) % 3)] = 0.9
    return ftk.Report.from_scores(labels, scores, ["a", "b", "c"], **options)


LABELS = np.arange(90) % 3


def test_mcnemars_test_counts_what_one_got_right_alone():
    first, second = np.ones(90, bool), np.ones(90, bool)
    first[:12] = False  # 12 images that only the second got right
    second[12:15] = False  # 3 that only the first got right
    second[20] = first[20] = False
    (pair,) = ftk.compare({"A": report(LABELS, first), "B": report(LABELS, second)}).differences
    assert (pair.only_first_right, pair.only_second_right) == (3, 12)
    # 2 * P(X <= 3), X binomial (15, 1/2): 2 * (1 + 15 + 105 + 455) / 2**15
    assert pair.p_value == pair.adjusted_p_value == pytest.approx(2 * 576 / 2**15)
    gap = pair.figures["accuracy"]
    assert gap.value == pytest.approx(9 / 90)
    assert gap.low < gap.value < gap.high
    assert "B is 10.0 points of accuracy above A" in pair.conclusion
    assert "So B makes fewer mistakes" in pair.conclusion


def test_a_model_differs_in_nothing_from_itself():
    one = report(LABELS, np.arange(90) % 5 > 0)
    (pair,) = ftk.compare({"A": one, "B": one}).differences
    for figure in pair.figures.values():
        assert figure.value == figure.low == figure.high == 0
    assert pair.p_value == 1
    assert "got the same images right" in pair.conclusion


def test_a_difference_by_chance_is_not_taken_for_one():
    """Of 80 pairs of equal models, about one in twenty may be told apart, and no more."""
    rng = np.random.default_rng(0)
    told = outside = 0
    for _ in range(80):
        one, other = (report(LABELS, rng.random(90) < 0.8, draws=100) for _ in range(2))
        (pair,) = ftk.compare({"A": one, "B": other}).differences
        told += pair.adjusted_p_value < 0.05
        gap = pair.figures["accuracy"]
        outside += not gap.low <= 0 <= gap.high
    assert told <= 7  # the exact test stays below its level
    assert outside <= 10


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_keeps_the_order_and_never_lowers(values):
    adjusted = holm(values)
    assert all(
        v <= a <= min(1, v * len(values)) + 1e-12 for v, a in zip(values, adjusted, strict=True)
    )
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
    assert min(adjusted) == pytest.approx(min(1, min(values) * len(values)))


def test_a_comparison_is_printed_and_saved(tmp_path):
    rng = np.random.default_rng(1)
    reports = {f"Model {i}": report(LABELS, rng.random(90) < 0.5 + 0.2 * i) for i in range(3)}
    comparison = ftk.compare(reports)
    assert [(d.first, d.second) for d in comparison.differences] == [
        ("Model 0", "Model 1"), ("Model 0", "Model 2"), ("Model 1", "Model 2")]  # fmt: skip
    lines = str(comparison).splitlines()
    assert lines[6].startswith("Model 1 - Model 0  +0.")
    assert sum(line.startswith("- Model") for line in lines) == 3
    folder = comparison.save(tmp_path, title="Three models")
    assert {p.name for p in folder.iterdir()} == {
        "comparison.txt", "comparison.json", "comparison.png", "comparison.html"}  # fmt: skip
    assert json.loads((folder / "comparison.json").read_text()) == comparison.to_dict()
    page = (folder / "comparison.html").read_text()
    assert page.count("points of accuracy") == 3


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({}, "two or more"),
        ({"B": report(LABELS[:89], np.ones(89))}, "'A' on 90 images and 'B' on 89, 89 of them"),
        ({"B": report(LABELS[::-1].copy(), np.ones(90))}, "same images in the same order"),
        ({"B": report(LABELS, np.ones(90), samples=[f"x{i}" for i in range(90)])}, "0 of them"),
        ({"B": report(LABELS, np.ones(90), seed=1)}, "same draws and seed"),
        ({"B": "report.json"}, r"must hold reports.*\['B'\] are none"),
    ],
)
def test_reports_on_other_images_are_refused(others, says):
    with pytest.raises(ValueError, match=says):
        ftk.compare({"A": report(LABELS, np.ones(90)), **others})


def test_several_labels_and_undefined_figures_are_compared():
    labels = np.zeros((20, 2), int)
    scores = np.random.default_rng(0).random((2, 20, 2))
    reports = [ftk.Report.from_scores(labels, s) for s in scores]
    (pair,) = ftk.compare({"A": reports[0], "B": reports[1]}).differences
    assert str(pair.figures["roc_auc"]) == "undefined"
    assert pair.only_first_right + pair.only_second_right > 0
