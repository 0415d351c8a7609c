"""A split holds each sample once and keeps class shares and groups; the seed decides it."""

from __future__ import annotations

import ast
import itertools
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import grouped_labels, labels, sizes

import finetune_kit as ftk

PARTS = ("train", "validation", "test")


def parts(split: ftk.Split) -> list[np.ndarray]:
    return [getattr(split, part) for part in PARTS]


@given(labels(), sizes, st.integers(0, 10))
def test_each_sample_is_in_one_part(labels, sizes, seed):
    split = ftk.stratified_split(labels, sizes, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts(split))), np.arange(len(labels)))


@given(labels(), sizes, st.integers(0, 10))
def test_the_share_of_each_class_is_within_one_sample(labels, sizes, seed):
    split = ftk.stratified_split(labels, sizes, seed=seed)
    for name in set(labels):
        count = labels.count(name)
        for part, size in zip(parts(split), sizes, strict=True):
            got = sum(labels[i] == name for i in part)
            assert abs(got - count * size) < 1, (name, size)


@given(labels(), sizes, st.integers(0, 10))
def test_the_size_of_each_part_is_within_one_sample(labels, sizes, seed):
    split = ftk.stratified_split(labels, sizes, seed=seed)
    for part, size in zip(parts(split), sizes, strict=True):
        assert abs(len(part) - len(labels) * size) < 1


@given(labels(), st.integers(0, 10))
def test_the_same_seed_gives_the_same_split(labels, seed):
    once, again = (ftk.stratified_split(labels, seed=seed) for _ in range(2))
    for a, b in zip(parts(once), parts(again), strict=True):
        assert np.array_equal(a, b)


def test_another_seed_gives_another_split():
    labels = [0, 1] * 50
    one, other = (ftk.stratified_split(labels, seed=seed).test for seed in (0, 1))
    assert not np.array_equal(one, other)


@given(grouped_labels(), sizes, st.integers(0, 10))
def test_no_group_is_in_two_parts(samples, sizes, seed):
    labels, groups = samples
    split = ftk.stratified_split(labels, sizes, groups=groups, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts(split))), np.arange(len(labels)))
    sides = [{groups[i] for i in part} for part in parts(split)]
    assert sum(map(len, sides)) == len(set(groups))
    assert split.deviation == pytest.approx(deviation(labels, split, sizes))
    again = ftk.stratified_split(labels, sizes, groups=groups, seed=seed)
    assert all(map(np.array_equal, parts(split), parts(again)))


def deviation(labels, split, sizes) -> float:
    """The largest difference between a class's count in a part and its share."""
    return max(
        abs(sum(labels[i] == name for i in part) - size * labels.count(name))
        for part, size in zip(parts(split), sizes, strict=True)
        for name in set(labels)
    )


@settings(max_examples=25)
@given(
    grouped_labels(most=7), st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.6, 0.4, 0)])
)
def test_shares_are_near_the_best_that_groups_allow(samples, sizes):
    """Compared with all assignments: no fewer classes are missing, and none is much nearer."""
    labels, groups = samples
    names, kinds = sorted(set(labels)), sorted(set(groups))
    tally = np.zeros((len(kinds), len(names)))
    np.add.at(tally, ([kinds.index(g) for g in groups], [names.index(c) for c in labels]), 1)
    asked = [size for size in sizes if size]
    ways = np.array(list(itertools.product(range(len(asked)), repeat=len(kinds))))
    held = np.stack([(ways == part).astype(float) @ tally for part in range(len(asked))], axis=1)
    away = np.abs(held - np.outer(asked, tally.sum(axis=0))).max(axis=(1, 2))
    complete = (held > 0).all(axis=(1, 2))
    split = ftk.stratified_split(labels, sizes, groups=groups)
    filled = [part for part, size in zip(parts(split), sizes, strict=True) if size]
    assert all({labels[i] for i in part} == set(names) for part in filled) == complete.any()
    assert split.deviation <= away[complete if complete.any() else slice(None)].min() + 1


def test_exchanges_improve_the_split_of_groups_of_very_different_sizes():
    """The greedy assignment alone deviates by 5 samples; the optimum by 0.65."""
    rng = np.random.default_rng(61)
    sizes = rng.integers(1, 60, 60)
    groups = np.repeat(np.arange(60), sizes)
    labels = np.repeat(rng.integers(0, 3, 60), sizes)
    assert ftk.stratified_split(labels, groups=groups).deviation < 2


def test_shares_with_small_groups_are_within_two_percent():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 300, 2000)
    labels = (groups % 3 + (rng.random(2000) < 0.2)) % 3
    split = ftk.stratified_split(labels, groups=groups)
    for part, size in zip(parts(split), (0.7, 0.15, 0.15), strict=True):
        for name in range(3):
            share = (labels[part] == name).sum() / (labels == name).sum()
            assert abs(share - size) < 0.02


def test_a_million_labels_are_split():
    labels = np.random.default_rng(0).integers(0, 50, 1_000_000)
    assert len(ftk.stratified_split(labels).test) == pytest.approx(150_000, abs=2)
    pairs = np.arange(1_000_000) // 2  # both of a pair have the same label
    split = ftk.stratified_split(labels[pairs * 2], groups=pairs)
    assert split.deviation < 3
    assert not set(pairs[split.train]) & set(pairs[split.test])


@given(labels(min_count=3, max_count=12), st.integers(0, 10))
def test_a_class_is_in_every_part_unless_it_is_too_small(labels, seed):
    """A class that is missing from a part is logged; a share of one sample or more is never 0."""
    logged = []
    handler = logging.Handler()
    handler.emit = logged.append
    logging.getLogger("finetune_kit").addHandler(handler)
    try:
        split = ftk.stratified_split(labels, seed=seed)
    finally:
        logging.getLogger("finetune_kit").removeHandler(handler)
    lacking = {
        (name, part)
        for name in set(labels)
        for part in PARTS
        if not any(labels[i] == name for i in getattr(split, part))
    }
    assert bool(logged) == bool(lacking)
    assert not any(labels.count(name) >= 7 for name, _ in lacking)  # 7 x 0.15 is above 1
    for name, part in lacking:
        assert f"{part} has no sample of class {name}" in logged[0].getMessage()


@pytest.mark.parametrize("classes", range(1, 5))
def test_a_share_of_nearly_one_sample_is_rounded_up(classes):
    """Of 6 samples 15 % are 0.9: validation and test get one each, not train a fifth."""
    for seed in range(10):
        split = ftk.stratified_split(np.repeat(range(classes), 6), seed=seed)
        assert [len(part) for part in parts(split)] == [4 * classes, classes, classes]
        assert split.deviation < 1


@pytest.mark.parametrize(
    "sizes",
    [
        (0.7, 0.15, 0.2),
        (0.7, 0.3),
        (1.2, -0.1, -0.1),
        (float("nan"), 0.5, 0.5),
        (10, 5, 2),
        "abc",
        None,
    ],
)
def test_sizes_that_are_not_shares_or_counts_are_errors(sizes):
    with pytest.raises(ValueError, match="sum to 1"):
        ftk.stratified_split([0, 1] * 9, sizes)


@pytest.mark.parametrize(
    ("sizes", "offer"),
    [
        ((0.8, 0.2), "(0.8, 0.2, 0)"),
        ((14, 4), "(14, 4, 0)"),
        ((70, 15, 15), "(0.7, 0.15, 0.15)"),
        ((80, 20), "(0.8, 0.2, 0)"),
        ([33.3, 33.3, 33.4], "(0.333, 0.333, 0.334)"),
    ],
)
def test_common_slips_with_sizes_are_corrected_in_the_message(sizes, offer):
    with pytest.raises(ValueError, match="sum to 1") as caught:
        ftk.stratified_split([0, 1] * 9, sizes)
    assert f"; pass {offer}. Received: sizes={sizes}" in str(caught.value)
    fixed = ast.literal_eval(offer)  # what is offered is accepted
    assert len(ftk.stratified_split([0, 1] * 9, fixed).train) > 0


def test_a_class_too_small_for_the_parts_is_named():
    with pytest.raises(ValueError, match=r"at least 3 samples.*class rare with 2"):
        ftk.stratified_split(["common"] * 10 + ["rare"] * 2)
    assert len(ftk.stratified_split(["common"] * 10 + ["rare"] * 2, (0.5, 0.5, 0)).test) == 0


def test_groups_must_have_a_value_for_each_sample():
    with pytest.raises(ValueError, match="one group for each of the 6 samples"):
        ftk.stratified_split([0, 1] * 3, groups=[1, 2])
    with pytest.raises(ValueError, match=r"`groups` must hold a value.*none for \[2\]"):
        ftk.stratified_split([0, 1] * 3, groups=["p", "q", None, "p", "q", "r"])


@pytest.mark.parametrize("seed", [-1, 0.5, None, "x"])
def test_a_seed_must_be_a_whole_number(seed):
    with pytest.raises(ValueError, match="`seed` must be"):
        ftk.stratified_split([0, 1] * 9, seed=seed)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([], "one-dimensional"),
        ([[[0]]], "one-dimensional"),
        ([[0, 2], [1, 0]], "must hold 0 or 1"),
        ([[0, 1]] * 4, "class 0 with 0"),
        ([[1, 0]] * 4, "class 1 with 0"),
        ("abc", "a label for each sample.*Received: 'abc'"),
        (["a", "", "b"], r"none for \[1\]"),
        (["a", float("nan"), "b"], r"none for \[1\]"),
        ([["a"], ["b"]], r"pass labels\[:, 0\]"),
        (["a", None, "b"], r"none for \[1\]"),
        ([1.0, float("nan")], r"none for \[1\]"),
    ],
)
def test_labels_must_be_values_or_a_matrix_of_0_and_1(labels, says):
    with pytest.raises(ValueError, match=says):
        ftk.stratified_split(labels)


@given(labels(), st.integers(0, 10), st.data())
def test_counts_as_sizes_are_met_exactly(labels, seed, data):
    first = data.draw(st.integers(0, len(labels)))
    second = data.draw(st.integers(0, len(labels) - first))
    sizes = (first, second, len(labels) - first - second)
    split = ftk.stratified_split(labels, sizes, seed=seed)
    assert tuple(map(len, parts(split))) == sizes
    assert split.deviation < 1


def matrices(count: int = 90, most: int = 5):
    """Matrices of 0 and 1 in which labels are common or rare."""
    return st.tuples(st.integers(1, most), st.integers(0, 10_000)).map(
        lambda drawn: _matrix(count, *drawn)
    )


def _matrix(count: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = (rng.random((count, width)) < rng.uniform(0.02, 0.6, width)).astype(int)
    matrix[:5] = 1  # each label in a few samples
    return matrix


@given(matrices(), sizes, st.integers(0, 10))
def test_multi_label_samples_are_stratified(labels, sizes, seed):
    split = ftk.stratified_split(labels, sizes, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts(split))), np.arange(len(labels)))
    away = [
        abs(labels[part].sum(axis=0) - size * labels.sum(axis=0)).max()
        for part, size in zip(parts(split), sizes, strict=True)
    ]
    assert split.deviation == pytest.approx(max(away))
    assert split.deviation <= 0.06 * len(labels)  # a random split: up to 0.2


def test_fourteen_labels_come_near_their_shares():
    """Nearer than iterative stratification (Sechidis et al. 2011), measured at 8 to 11 samples."""
    rng = np.random.default_rng(0)
    labels = (rng.random((3000, 14)) < np.linspace(0.05, 0.4, 14)).astype(int)
    assert ftk.stratified_split(labels).deviation < 2


@settings(max_examples=20)
@given(matrices(), sizes)
def test_groups_of_multi_label_samples_stay_whole(labels, sizes):
    groups = np.random.default_rng(1).integers(0, 40, len(labels))
    groups[:5] = range(40, 45)
    split = ftk.stratified_split(labels, sizes, groups=groups)
    sides = [set(groups[part]) for part in parts(split)]
    assert sum(map(len, sides)) == len(set(groups))
    assert sum(map(len, parts(split))) == len(labels)


@given(labels(min_count=5), st.integers(3, 5), st.booleans(), st.integers(0, 5))
def test_each_sample_is_in_the_test_part_of_one_fold(labels, k, grouped, seed):
    groups = [f"patient {i // 2}" for i in range(len(labels))] if grouped else None
    if grouped:
        labels = [labels[i // 2 * 2] for i in range(len(labels))]
        if min(len({g for g, c in zip(groups, labels, strict=True) if c == n}) for n in labels) < k:
            return
    folds = ftk.stratified_folds(labels, k, groups=groups, seed=seed)
    assert len(folds) == k
    tested = np.concatenate([fold.test for fold in folds])
    assert np.array_equal(np.sort(tested), np.arange(len(labels)))
    for fold, following in zip(folds, [*folds[1:], folds[0]], strict=True):
        assert np.array_equal(np.sort(np.concatenate(parts(fold))), np.arange(len(labels)))
        assert np.array_equal(fold.validation, following.test)
        if grouped:
            sides = [{groups[i] for i in part} for part in parts(fold)]
            assert sum(map(len, sides)) == len(set(groups))
        else:
            assert fold.deviation < 1


def test_scikit_learn_takes_the_folds_as_its_cross_validator():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    labels, patients = np.arange(60) % 3, np.arange(60) // 6
    x, cv = np.eye(3)[labels], ftk.StratifiedFolds(4, seed=1)
    assert cross_val_score(LogisticRegression(), x, labels, cv=cv, groups=patients).mean() == 1
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=cv).fit(x, labels)
    assert search.n_splits_ == cv.get_n_splits() == 4
    same = ftk.stratified_folds(labels, 4, groups=patients, seed=1)
    for (train, test), fold in zip(cv.split(x, labels, patients), same, strict=True):
        assert np.array_equal(test, fold.test)
        assert np.array_equal(train, np.sort(np.append(fold.train, fold.validation)))
        assert not set(patients[train]) & set(patients[test])
    with pytest.raises(ValueError, match="`k` must be"):
        ftk.stratified_folds(labels, 2)
    with pytest.raises(ValueError, match="`k` must be"):
        ftk.StratifiedFolds(1)


def test_a_large_deviation_is_logged(caplog):
    groups = [0] * 50 + list(range(1, 11))
    split = ftk.stratified_split([0] * 60, groups=groups)
    assert split.deviation > 5
    assert (
        f"Class 0 deviates from its share of a part by {split.deviation:.1f} samples" in caplog.text
    )


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (([0, 1], [1], [2]), r"1 samples? more than once, such as \[1\]"),
        (([0, 0, 1], [2], [3]), r"more than once, such as \[0\]"),
        ((["a"], ["b"], ["c"]), "`train` must be a one-dimensional array of indices"),
        (([0], np.array([True, False]), []), r"`validation` must be.*np\.flatnonzero"),
    ],
)
def test_a_split_made_by_hand_is_checked(parts, says):
    with pytest.raises(ValueError, match=says):
        ftk.Split(*parts)


def test_a_part_may_be_a_list_and_may_be_empty():
    split = ftk.Split([0, 1], [], [2])
    assert split.validation.dtype == split.train.dtype == np.int64
    assert str(split) == "Split(train: 2, validation: 0, test: 1)"


@given(
    st.lists(
        st.sampled_from([1, 1.0, "1", np.str_("1"), np.int64(1), np.float32(1), b"1", 2, 2.0, "2"]),
        min_size=24,
        max_size=24,
    )
)
def test_groups_that_are_equal_are_one_whatever_their_type(values):
    """The same groups in every function that takes them."""
    texts = [str(int(float(value))) for value in values]
    groups = [*values, *range(10, 34)]
    expected = [*texts, *map(str, range(10, 34))]
    labels = [0, 1] * 24
    pixels = np.zeros((48, 4, 4, 3), np.uint8) + 7
    images = ftk.ImageSet.from_arrays(pixels, labels, groups=groups)
    assert images.groups.tolist() == expected
    for given_groups in (groups, expected, np.array(groups, object)):
        split = ftk.stratified_split(labels, (0.5, 0.25, 0.25), groups=given_groups)
        parts = [
            {expected[i] for i in part} for part in (split.train, split.validation, split.test)
        ]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        for train, test in ftk.StratifiedFolds(3).split(None, labels, given_groups):
            assert not {expected[i] for i in train} & {expected[i] for i in test}
