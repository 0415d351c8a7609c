"""Law 7: a split holds every index once, shares are kept, a seed decides, groups stay whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import labels, sizes

import finetune_kit as ftk

PARTS = ("train", "validation", "test")


def parts(split: ftk.Split) -> list[np.ndarray]:
    return [getattr(split, part) for part in PARTS]


@given(labels(), sizes, st.integers(0, 10))
def test_every_index_is_in_one_part(labels, sizes, seed):
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
def test_rounding_is_balanced_over_the_classes(labels, sizes, seed):
    split = ftk.stratified_split(labels, sizes, seed=seed)
    for part, size in zip(parts(split), sizes, strict=True):
        assert abs(len(part) - len(labels) * size) < 2


@given(labels(), st.integers(0, 10))
def test_the_same_seed_gives_the_same_split(labels, seed):
    once, again = (ftk.stratified_split(labels, seed=seed) for _ in range(2))
    for a, b in zip(parts(once), parts(again), strict=True):
        assert np.array_equal(a, b)


def test_another_seed_gives_another_split():
    labels = [0, 1] * 50
    one, other = (ftk.stratified_split(labels, seed=seed).test for seed in (0, 1))
    assert not np.array_equal(one, other)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), min_size=12, max_size=60), sizes)
def test_no_group_is_on_two_sides(patients, sizes):
    patients = [*patients, *[(c, 1) for c in range(3) for _ in range(3)]]
    labels = [c for c, n in patients for _ in range(n)]
    groups = [f"patient {p}" for p, (_, n) in enumerate(patients) for _ in range(n)]
    split = ftk.stratified_split(labels, sizes, groups=groups)
    assert np.array_equal(np.sort(np.concatenate(parts(split))), np.arange(len(labels)))
    sides = [{groups[i] for i in part} for part in parts(split)]
    assert sum(map(len, sides)) == len(set(groups))


def test_groups_come_near_the_shares_that_were_asked_for():
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


@pytest.mark.parametrize(
    "sizes", [(0.7, 0.15, 0.2), (0.7, 0.3), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)]
)
def test_sizes_that_are_no_shares_are_refused(sizes):
    with pytest.raises(ValueError, match="sum to 1"):
        ftk.stratified_split([0, 1] * 9, sizes)


def test_a_class_too_small_for_the_parts_is_named():
    with pytest.raises(ValueError, match=r"at least 3 samples.*rare \(2\)"):
        ftk.stratified_split(["common"] * 10 + ["rare"] * 2)
    assert len(ftk.stratified_split(["common"] * 10 + ["rare"] * 2, (0.5, 0.5, 0)).test) == 0


def test_groups_must_be_one_for_each_label():
    with pytest.raises(ValueError, match="one for each of 6 labels"):
        ftk.stratified_split([0, 1] * 3, groups=[1, 2])


@pytest.mark.parametrize("labels", [[], [[0, 1], [1, 0]]])
def test_labels_must_be_a_column(labels):
    with pytest.raises(ValueError, match="one-dimensional"):
        ftk.stratified_split(labels)
