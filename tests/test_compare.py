"""Comparison of models: paired statistics, conclusions, and reports that do not fit together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finetune_kit as ftk
from finetune_kit._report.difference import holm

LABELS = np.arange(90) % 3


def report(labels, correct, **options) -> ftk.Report:
    """A report on a confident model that is correct on these images."""
    labels, correct = np.asarray(labels), np.asarray(correct, bool)
    scores = np.full((len(labels), 3), 0.05)
    scores[np.arange(len(labels)), np.where(correct, labels, (labels + 1) % 3)] = 0.9
    return ftk.Report.from_scores(labels, scores, ["a", "b", "c"], **options)


@pytest.fixture(scope="module")
def four() -> ftk.Comparison:
    """Four models with an accuracy of about 0.4, 0.5, 0.6 and 0.7."""
    rng = np.random.default_rng(1)
    shares = {f"{i} blocks": 0.4 + 0.1 * i for i in range(4)}
    return ftk.compare({name: report(LABELS, rng.random(90) < x) for name, x in shares.items()})


def test_mcnemars_test_counts_the_images_that_only_one_model_classifies_correctly():
    first, second = np.ones(90, bool), np.ones(90, bool)
    first[:12] = False  # only the second is correct on 12 images
    second[12:15] = False  # only the first is correct on 3 images
    second[20] = first[20] = False
    (pair,) = ftk.compare({"A": report(LABELS, first), "B": report(LABELS, second)}).differences
    assert (pair.only_first_correct, pair.only_second_correct) == (3, 12)
    # 2 * P(X <= 3), X binomial (15, 1/2): 2 * (1 + 15 + 105 + 455) / 2**15
    assert pair.p_value == pair.adjusted_p_value == pytest.approx(2 * 576 / 2**15)
    gap = pair.metrics["accuracy"]
    assert gap.value == pytest.approx(9 / 90)
    assert gap.low < gap.value < gap.high
    assert pair.better == ("B", "A")
    assert pair.conclusion.startswith("B is more accurate than A by 10.0 percentage points (")
    assert pair.conclusion.endswith("Only B classifies 12 images correctly, only A 3 images.")


def test_a_difference_that_is_not_significant_is_no_order_of_the_models():
    first, second = np.ones(90, bool), np.ones(90, bool)
    first[:2] = False
    (pair,) = ftk.compare({"A": report(LABELS, first), "B": report(LABELS, second)}).differences
    assert not pair.is_significant
    assert pair.conclusion.startswith("Neither A nor B is shown to be more accurate; the diff")


def test_a_model_does_not_differ_from_itself():
    one = report(LABELS, np.arange(90) % 5 > 0)
    (pair,) = ftk.compare({"A": one, "B": one}).differences
    for gap in pair.metrics.values():
        assert gap.value == gap.low == gap.high == 0
    assert pair.p_value == 1
    assert "classify the same images correctly" in pair.conclusion


def test_equal_models_are_rarely_found_to_differ():
    """Of 40 pairs of equal models, about one in twenty differs by chance."""
    rng = np.random.default_rng(0)
    significant = outside = 0
    for _ in range(40):
        one, other = (report(LABELS, rng.random(90) < 0.8, resamples=100) for _ in range(2))
        (pair,) = ftk.compare({"A": one, "B": other}).differences
        significant += pair.is_significant
        gap = pair.metrics["accuracy"]
        outside += not gap.low <= 0 <= gap.high
    assert significant <= 4  # the exact test stays below its level
    assert 0 < outside <= 6


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holms_correction_keeps_the_order_and_never_lowers(p_values):
    adjusted = holm(p_values)
    assert all(
        v <= a <= min(1, v * len(p_values)) + 1e-12 for v, a in zip(p_values, adjusted, strict=True)
    )
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
    assert min(adjusted) == pytest.approx(min(1, min(p_values) * len(p_values)))


def test_a_comparison_opens_with_one_sentence_on_all_pairs(four):
    better = [" > ".join(pair.better) for pair in four.differences if pair.is_significant]
    assert 0 < len(better) < 6
    first = four.summary[0]
    assert first.startswith(f"Accuracy differs in {len(better)} of 6 pairs (McNemar's test,")
    assert first.endswith(f"; no difference is shown in the other {6 - len(better)}.")
    assert all(pair in first for pair in better)
    assert str(four).replace("\n", " ").startswith(first)
    assert first in repr(four)


def test_the_summary_of_equal_models_names_no_model():
    one = report(LABELS, np.arange(90) % 5 > 0)
    summary = ftk.compare(dict.fromkeys("ABC", one)).summary
    assert summary[0].startswith("No difference in accuracy is shown in the 3 pairs")


def test_the_printed_differences_are_signed_and_named(four):
    assert [(d.first, d.second) for d in four.differences][:4] == [
        ("0 blocks", "1 blocks"), ("0 blocks", "2 blocks"), ("0 blocks", "3 blocks"),
        ("1 blocks", "2 blocks")]  # fmt: skip
    lines = str(four).splitlines()
    (line,) = (line for line in lines if line.startswith("3 blocks - 0 blocks"))
    gap = four.differences[2].metrics["accuracy"]
    assert f"  {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})  " in line


def test_a_comparison_is_saved_as_text_json_picture_and_page(four, tmp_path):
    folder = four.save(tmp_path, title="Four models")
    assert {p.name for p in folder.iterdir()} == {
        "comparison.txt", "comparison.json", "comparison.png", "comparison.html"}  # fmt: skip
    assert json.loads((folder / "comparison.json").read_text()) == four.to_dict()
    assert (folder / "comparison.txt").read_text() == f"{four}\n"
    page = (folder / "comparison.html").read_text()
    assert "<h1>Four models</h1>" in page
    assert page.index("Accuracy differs in") < page.index("<h2") < page.index("<details")
    assert page.count(" percentage points (") == 6
    assert "3 blocks<br>&minus; 0 blocks" in page


def test_a_path_that_ends_in_html_is_one_comparison_page(four, tmp_path):
    page = four.save(tmp_path / "four.html")
    assert [path.name for path in tmp_path.iterdir()] == ["four.html"]
    assert "<h1>0 blocks, 1 blocks, 2 blocks, 3 blocks on 90 images</h1>" in page.read_text()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({}, "such as {'A': report_a, .*Received: 1 report"),
        ({"B": report(LABELS[:89], np.ones(89))}, "'A' on 90 images and 'B' on 89, 89 of them"),
        ({"B": report(LABELS[::-1].copy(), np.ones(90))}, "same images in the same order"),
        ({"B": report(LABELS, np.ones(90), samples=[f"x{i}" for i in range(90)])}, "0 of them"),
        ({"B": report(LABELS, np.ones(90), seed=1)}, "same number of resamples and the same seed"),
        ({"B": "report.json"}, r"such as .*Received: values of type str for \['B'\]"),
    ],
)
def test_reports_must_be_two_or_more_on_the_same_images(others, message):
    with pytest.raises(ValueError, match=message):
        ftk.compare({"A": report(LABELS, np.ones(90)), **others})


def test_a_bare_report_gets_a_short_error_with_the_form():
    with pytest.raises(ValueError, match=r"such as {'A'.* Received: Report\(90 im") as error:
        ftk.compare(report(LABELS, np.ones(90)))
    assert len(str(error.value)) < 250


def test_reports_without_names_get_an_error_with_the_form():
    one = report(LABELS, np.ones(90))
    with pytest.raises(ValueError, match=r"{'A': report_a, .*Received: a list, which has no names"):
        ftk.compare([one, one])
    with pytest.raises(TypeError, match=r"compare takes 1 argument by position \(reports\); see"):
        ftk.compare(one, one)


def test_multi_label_reports_and_undefined_metrics_are_compared():
    labels = np.zeros((20, 2), int)
    scores = np.random.default_rng(0).random((2, 20, 2))
    one, other = (ftk.Report.from_scores(labels, s) for s in scores)
    comparison = ftk.compare({"A": one, "B": other})
    (pair,) = comparison.differences
    assert str(pair.metrics["roc_auc"]) == "undefined"
    assert "undefined" in str(comparison)
    correct = [(r.predicted == labels).all(axis=1) for r in (one, other)]
    assert pair.only_first_correct == (correct[0] & ~correct[1]).sum()
    assert pair.only_second_correct == (correct[1] & ~correct[0]).sum()
