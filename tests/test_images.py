"""Image sets: taking, splitting and joining keep each image with its label, group and digest."""

from __future__ import annotations

import collections
import hashlib
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import read_class_a, write

import finetune_kit as ftk

NAMES = ("x", "y", "z")


@st.composite
def image_sets(draw, classes: int = 3) -> ftk.ImageSet:
    """Images of different pixels, at least nine of each class; groups of one class, or none."""
    counts = draw(st.lists(st.integers(9, 20), min_size=classes, max_size=classes))
    labels = np.repeat(np.arange(classes), counts)
    labels = labels[np.random.default_rng(draw(st.integers(0, 99))).permutation(len(labels))]
    size = draw(st.sampled_from([None, 1, 2]))
    groups = None
    if size is not None:  # patients with up to `size` images of one class each
        rank = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]
        groups = [f"{label}-{r // size}" for label, r in zip(labels, rank, strict=True)]
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None] + np.full((2, 2), 2, np.uint8)
    return ftk.ImageSet.from_arrays(pixels, labels, NAMES[:classes], groups)


def contents(images: ftk.ImageSet) -> list[tuple]:
    """Digest, name, label and group of each image."""
    groups = [None] * len(images) if images.groups is None else images.groups.tolist()
    rows = zip(images.digests(), images.paths, images.labels.tolist(), groups, strict=True)
    return [tuple(map(str, row)) for row in rows]


SIZES = st.sampled_from(
    [(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.6, 0.4, 0), (1 / 3, 1 / 3, 1 / 3)]
)


# --------------------------------------------------------------- take, split, +


@given(image_sets(), SIZES, st.integers(0, 9))
def test_a_split_holds_each_image_once(images, sizes, seed):
    parts = images.split(sizes, seed=seed)
    together = [row for part in parts for row in contents(part)]
    assert sorted(together) == sorted(contents(images))


@given(image_sets(), SIZES, st.integers(0, 9))
def test_a_split_keeps_groups_whole_and_class_shares_within_one_sample(images, sizes, seed):
    parts = images.split(sizes, seed=seed)
    if images.groups is not None:
        sides = [set(part.groups.tolist()) for part in parts]
        assert sum(map(len, sides)) == len(set(images.groups.tolist()))
    if images.groups is None or len(set(images.groups.tolist())) == len(images):
        for part, size in zip(parts, sizes, strict=True):
            assert abs(part.counts() - size * images.counts()).max() < 1


@given(image_sets(), SIZES, st.integers(0, 9))
def test_joining_the_parts_of_a_split_gives_a_permutation_of_the_set(images, sizes, seed):
    train, validation, test = images.split(sizes, seed=seed)
    again = test + train + validation
    assert sorted(contents(again)) == sorted(contents(images))
    assert (again.class_names, again.multi_label) == (images.class_names, images.multi_label)
    order = [again.digests().index(digest) for digest in images.digests()]
    assert contents(again.take(order)) == contents(images)
    assert np.array_equal(again.load(order, (2, 2)), images.load(size=(2, 2)))


@given(image_sets(), st.data())
def test_taking_twice_is_taking_once(images, data):
    indices = st.lists(st.integers(0, len(images) - 1), min_size=1)
    first = data.draw(indices)
    second = data.draw(st.lists(st.integers(0, len(first) - 1)))
    twice = images.take(first).take(second)
    once = images.take(np.array(first)[np.array(second, int)])
    assert contents(twice) == contents(once) == [contents(images)[first[i]] for i in second]


@given(image_sets(), st.integers(1, 25))
def test_taking_a_set_apart_and_joining_it_gives_the_set(images, at):
    rows = np.arange(len(images))
    again = images.take(rows[:at]) + images.take(rows[at:])
    assert contents(again) == contents(images)
    assert again.source is images.source


@given(image_sets(), st.integers(0, 9))
def test_the_seed_decides_the_split(images, seed):
    first, again, other = (images.split(seed=s) for s in (seed, seed, seed + 1))
    assert [contents(part) for part in first] == [contents(part) for part in again]
    assert [part.paths for part in first] != [part.paths for part in other]


def test_a_split_is_that_of_stratified_split(tiny_images):
    expected = ftk.stratified_split(tiny_images.labels, seed=3)
    train, validation, test = tiny_images.split(seed=3)
    assert train.paths == tiny_images.take(expected.train).paths
    assert validation.paths == tiny_images.take(expected.validation).paths
    assert test.paths == tiny_images.take(expected.test).paths


def test_groups_may_be_given_for_a_split(tiny_images):
    pairs = np.arange(24) // 6 * 3 + np.arange(24) % 3  # two images of a class each
    train, validation, test = tiny_images.split((0.5, 0.25, 0.25), groups=pairs)
    rows = [set(pairs[part.rows]) for part in (train, validation, test)]
    assert sum(map(len, rows)) == 12
    assert tiny_images.groups is None
    assert train.groups is None


def test_messages_of_a_split_name_the_classes():
    x, names = np.full((9, 2, 2), 9, np.uint8), ["common", "rare"]
    images = ftk.ImageSet.from_arrays(x, [0] * 7 + [1] * 2, names)
    with pytest.raises(ValueError, match=r"at least 3 images.*class rare with 2"):
        images.split()
    multi = ftk.ImageSet.from_arrays(x, [[1, 1]] * 2 + [[1, 0]] * 7, names)
    with pytest.raises(ValueError, match=r"Received: class rare with 2"):
        multi.split()


@pytest.mark.filterwarnings("ignore:.*one-hot:UserWarning")
def test_only_sets_of_the_same_kind_can_be_joined(tiny_images):
    other = ftk.ImageSet.from_arrays(np.full((2, 4, 4), 9, np.uint8), ["b", "a"])
    for one, two in [(tiny_images, other), (other, tiny_images)]:
        with pytest.raises(ValueError, match=r"same classes.*class_names=.*dark.*|.*light"):
            one + two
    grouped = ftk.ImageSet(other.source, other.labels, other.class_names, ["p", "q"])
    with pytest.raises(ValueError, match="both have groups, or neither"):
        other + grouped
    multi = ftk.ImageSet.from_arrays(np.full((2, 4, 4), 9, np.uint8), np.eye(2), ["a", "b"])
    with pytest.raises(ValueError, match="same classes"):
        other + multi
    with pytest.raises(TypeError):
        other + "x"


def test_files_and_arrays_can_be_joined(tmp_path):
    write(tmp_path / "a" / "1.png")
    files = read_class_a(tmp_path)
    arrays = ftk.ImageSet.from_arrays(np.full((2, 8, 8), 7, np.uint8), ["a", "a"])
    with pytest.warns(UserWarning, match="share 1 image, which the result holds twice"):
        both = files + arrays + files
    assert both.load(size=(8, 8))[:, 0, 0, 0].tolist() == [120, 7, 7, 120]
    assert both.digests() == files.digests() + arrays.digests() + files.digests()
    assert both.paths == (files.paths[0], "image 1", "image 2", files.paths[0])


def test_joining_sets_that_share_images_is_warned_of(tiny_images, tmp_path):
    with pytest.warns(UserWarning, match="share 24 images, which the result holds twice"):
        tiny_images + tiny_images
    with pytest.warns(UserWarning, match="share 2 images"):
        tiny_images.take([0, 1, 2]) + tiny_images.take([1, 2, 3])
    write(tmp_path / "a" / "1.png")
    with pytest.warns(UserWarning, match="share 1 image"):
        read_class_a(tmp_path) + read_class_a(tmp_path)


# ------------------------------------------------------------------------ slips


@pytest.mark.parametrize("use", [lambda s: s[0], lambda s: s[:5], list, lambda s: 3 in s])
def test_a_set_has_no_items_and_says_what_to_use(tiny_images, use):
    with pytest.raises(TypeError, match=r"images\.take\(\[0, 1\]\).*images\.load\(\[0\]\)"):
        use(tiny_images)


@pytest.mark.parametrize(
    ("args", "options", "says"),
    [
        ((), {"random_state": 0}, "`random_state`; use `seed`"),
        ((), {"test": 0.2}, r"`test`; use sizes=\(train, validation, test\)"),
        (((0.5, 0.25, 0.25), 0), {}, r"1 argument by position \(sizes\).*by name: seed, groups"),
    ],
)
def test_misplaced_arguments_of_a_split_are_explained(tiny_images, args, options, says):
    with pytest.raises(TypeError, match=says):
        tiny_images.split(*args, **options)


def test_pixels_given_to_the_constructor_are_an_error_that_names_from_arrays():
    x = np.full((2, 4, 4), 9, np.uint8)
    for args in [(x, ["a", "b"]), (x, [0, 1], ("a", "b")), ("folder", [0])]:
        with pytest.raises(TypeError, match=r"Use ImageSet\.from_arrays\(x, labels\)"):
            ftk.ImageSet(*args)


def test_the_text_of_an_empty_set_has_no_empty_parts():
    empty = ftk.ImageSet.from_arrays(np.empty((0, 4, 4), np.uint8), [])
    assert repr(empty) == "ImageSet(0 images)"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sizes": (1.2, -0.1, -0.1)}, "three shares from 0 to 1 .* number of images, 24"),
        ({"sizes": (0.7, 0.1, 0.1)}, r"sizes=\(0\.7, 0\.1, 0\.1\), which sum to 0\.9$"),
        ({"sizes": (20, 10, 10)}, "which sum to 40, not 24$"),
        ({"groups": [1, 2]}, "one group for each of the 24 images"),
    ],
)
def test_messages_of_a_split_of_images_say_images(tiny_images, options, says):
    with pytest.raises(ValueError, match=says):
        tiny_images.split(**options)


# -------------------------------------------------------------- values and load


def test_a_set_survives_pickling(tmp_path):
    for i in range(4):
        write(tmp_path / "a" / f"{i}.png", np.full((8, 8), i + 2, np.uint8))
    files = read_class_a(tmp_path, groups=r"(\d)\.png")
    arrays = ftk.ImageSet.from_arrays(files.load(size=(8, 8)), ["a"] * 4, groups=files.groups)
    for images in (files, arrays, files.take([2, 0]) + arrays):
        again = pickle.loads(pickle.dumps(images))
        assert contents(again) == contents(images)
        assert again.class_names == images.class_names
        assert np.array_equal(again.load(size=(8, 8)), images.load(size=(8, 8)))


def test_a_set_does_not_change_when_its_arrays_do():
    x, labels, groups = (
        np.full((3, 4, 4, 3), 9, np.uint8),
        np.array([0, 1, 0]),
        np.array(list("pqr")),
    )
    images = ftk.ImageSet.from_arrays(x, labels, ["a", "b"], groups)
    before = contents(images)
    x[:], labels[:], groups[:] = 200, 0, "p"
    assert contents(images) == before
    assert (images.load(size=(4, 4)) == 9).all()


def test_load_keeps_the_order_of_the_indices(tiny_images):
    both = tiny_images.load([5, 2], size=(32, 32))
    assert np.array_equal(both[0], tiny_images.load([5], size=(32, 32))[0])
    assert np.array_equal(both[1], tiny_images.load([2], size=(32, 32))[0])
    assert not np.array_equal(both[0], both[1])
    assert tiny_images.load([], size=(4, 6)).shape == (0, 4, 6, 3)


def test_bad_sizes_and_indices_are_errors(tiny_images):
    with pytest.raises(ValueError, match="`size` must be height and width"):
        tiny_images.load([0], 224)
    for call in (tiny_images.load, tiny_images.take):
        with pytest.raises(ValueError, match=r"from 0 to 23, .* has 24 images\. Received: 24$"):
            call([3, 24, 24])
        with pytest.raises(ValueError, match="one-dimensional array of indices"):
            call(np.ones(24, bool))


# ---------------------------------------------------------------------- digests


@pytest.fixture
def reads(monkeypatch):
    """Count how often each file is hashed."""
    counts = collections.Counter()
    hashed = hashlib.file_digest

    def count(file, *args):
        counts[os.path.basename(file.name)] += 1
        return hashed(file, *args)

    monkeypatch.setattr(hashlib, "file_digest", count)
    return counts


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", np.full((8, 8), 20 * i, np.uint8))
    return tmp_path


def test_each_file_is_hashed_once_whatever_uses_its_digest(folder, reads, monkeypatch):
    images = ftk.read_image_folder(folder)
    parts = dict(zip(("train", "validation", "test"), images.split((0.4, 0.3, 0.3)), strict=True))
    ftk.find_duplicates(*parts.values())
    written = ftk.write_manifest(folder / "m.json", **parts)
    ftk.read_manifest(folder / "m.json")
    (written["train"] + written["test"]).digests()
    pickle.loads(pickle.dumps(images)).digests()
    monkeypatch.chdir(folder)  # a relative path leads to the same file
    assert ftk.read_image_folder(".").digests() == images.digests()
    assert reads == {f"{i}.png": 1 for i in range(12)}


def test_a_file_is_hashed_again_after_it_changed(folder, reads):
    images = ftk.read_image_folder(folder)
    before = dict(zip(map(os.path.basename, images.paths), images.digests(), strict=True))
    file = folder / "a" / "0.png"
    times = os.stat(file)
    file.write_bytes(file.read_bytes()[:-1] + b"!")  # of the same size, and with the same time
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    write(folder / "new.png", np.full((8, 8), 77, np.uint8))
    os.replace(folder / "new.png", folder / "b" / "1.png")
    after = dict(zip(map(os.path.basename, images.paths), images.digests(), strict=True))
    assert {name for name in before if before[name] != after[name]} == {"0.png", "1.png"}
    assert sum(reads.values()) == 12 + 2


def test_a_digest_is_the_sha256_of_the_file(folder):
    images = ftk.read_image_folder(folder)
    for path, digest in zip(images.paths, images.digests(), strict=True):
        with open(path, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest


def test_the_path_of_a_digest_is_followed_as_the_system_does(tmp_path):
    """`link/../1.png` lies beside the target of the link."""
    target, decoy = write(tmp_path / "far" / "1.png"), write(tmp_path / "1.png", GRAY)
    (tmp_path / "far" / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inner")
    (tmp_path / "t.csv").write_text("path,label\nlink/../1.png,a\n")
    (digest,) = ftk.read_image_table(tmp_path / "t.csv").digests()
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()
    assert digest != hashlib.sha256(decoy.read_bytes()).hexdigest()


GRAY = np.full((8, 8), 50, np.uint8)


def test_digests_of_arrays_depend_on_pixels_and_shape_alone():
    x = np.random.default_rng(0).integers(2, 256, (3, 4, 6), np.uint8)
    images = ftk.ImageSet.from_arrays(x, ["a", "b", "a"])
    again = ftk.ImageSet.from_arrays(np.repeat(x[..., None], 3, -1)[::-1], ["c", "d", "c"])
    assert images.digests() == again.digests()[::-1]
    wide = ftk.ImageSet.from_arrays(x.reshape(3, 6, 4), ["a", "b", "a"])
    assert len({*images.digests(), *wide.digests()}) == 6


# ------------------------------------------------------------------ from_arrays


def test_whole_floats_are_indices():
    x = np.full((3, 4, 4), 9, np.uint8)
    images = ftk.ImageSet.from_arrays(x, [1.0, 0.0, 1.0], ["a", "b"])
    assert images.labels.tolist() == [1, 0, 1]
    assert ftk.ImageSet.from_arrays(x, np.array([7.0, 9.0, 7.0])).class_names == ("7", "9")


def test_long_lists_in_messages_say_how_many_are_left_out():
    with pytest.raises(ValueError, match=r"\[0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 15 more\]"):
        ftk.ImageSet.from_arrays(np.full((25, 4, 4), 9, np.uint8), [""] * 25)


def test_labels_may_be_names_or_indices():
    x = np.full((3, 4, 4), 9, np.uint8)
    by_name = ftk.ImageSet.from_arrays(x, ["b", "a", "b"])
    by_index = ftk.ImageSet.from_arrays(x, [1, 0, 1], ["a", "b"], groups=[7, 8, 7])
    assert by_name.class_names == by_index.class_names == ("a", "b")
    assert by_name.labels.tolist() == by_index.labels.tolist() == [1, 0, 1]
    assert by_index.groups.tolist() == ["7", "8", "7"]
    assert ftk.ImageSet.from_arrays(x, [7, 9, 7]).class_names == ("7", "9")
    fixed = ftk.ImageSet.from_arrays(x, ["b", "a", "b"], ["b", "c", "a"])
    assert (fixed.labels.tolist(), fixed.counts().tolist()) == ([0, 2, 0], [2, 0, 1])


X = np.full((2, 4, 4, 3), 9, np.uint8)


@pytest.mark.parametrize(
    ("x", "labels", "names", "says"),
    [
        (X / 255, [0, 1], None, r"\(x \* 255\)\.round.*float64, from 0\.03\d* to 0\.03"),
        (X * 1.0, [0, 1], None, r"pass x\.round\(\)\.astype\('uint8'\)"),
        (X - 10.0, [0, 1], None, "scale them to that range"),
        (X[..., :2], [0, 1], None, r"shape \(n, h, w, 3\).*Received: shape \(2, 4, 4, 2\)"),
        (X, [0], None, "one label for each of the 2 images"),
        (X, [0, 5], ["a", "b"], r"Received: \[5\]"),
        (X, ["a", "c"], ["a", "b"], r"among the classes \['a', 'b'\]. Received: \['c'\]"),
        (X, ["a", None], None, r"none for images \[1\]"),
        (X, [0.0, float("nan")], None, r"none for images \[1\]"),
        (X, ["a", ""], None, r"none for images \[1\]"),
        (X, ["a", float("nan")], None, r"none for images \[1\]"),
        (X, [[0], [1]], None, r"pass labels\[:, 0\]. Received: shape \(2, 1\)"),
        (X, [["a"], ["b"]], ["a", "b"], r"pass labels\[:, 0\]"),
        (X, [0.5, 1.0], None, r"class indices, which are whole numbers. Received: \[0\.5\]"),
        (X, [1, 3], list("abc"), r"whole numbers must be indices from 0 to 2. Received: \[3\]"),
        (["a", "b"], X, None, "pixels come first.*which looks like labels"),
        ([0, 1], X, None, "pixels come first.*which looks like labels"),
        (["p/a.png", "p/b.png"], ["a", "b"], None, "use read_image_table.*'p/a.png'"),
        ([X[0], X[0, 1:]], ["a", "b"], None, "must have one size.*of different shapes"),
        (X[0], ["a"], None, r"for one image pass x\[None\]"),
        (X[0, ..., 0], ["a"], None, r"for one image pass x\[None\]"),
        (X * [1, 1, np.nan], [0, 1], None, "with 32 values that are nan"),
        (X, ["a", "b"], ["a", "a"], "different names"),
        (X, ["a", "b"], "ab", "different names"),
        (X, [[0, 2]] * 2, None, "0 or 1"),
        (X, [[0, 1]] * 2, ["a"], "0 or 1"),
        (X, np.zeros((2, 0)), None, "0 or 1"),
    ],
)
def test_arrays_that_do_not_fit_are_errors(x, labels, names, says):
    with pytest.raises(ValueError, match=says):
        ftk.ImageSet.from_arrays(x, labels, names)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (["p", float("nan")], r"none for images \[1\]"),
        ([None, "p"], r"none for images \[0\]"),
        ([1.0, float("nan")], r"none for images \[1\]"),
        ([("p", 1), ("p", 2)], r"one value for each of the 2 images.*shape \(2, 2\)"),
        (["p"], r"shape \(1,\)"),
    ],
)
def test_groups_that_do_not_fit_are_errors(groups, says):
    with pytest.raises(ValueError, match=says):
        ftk.ImageSet.from_arrays(X, ["a", "b"], groups=groups)


def test_pixels_and_labels_that_look_wrong_are_warned_of():
    x = np.full((3, 4, 4, 3), 9, np.uint8)
    with pytest.warns(UserWarning, match="none above 1"):
        ftk.ImageSet.from_arrays(x // 255, ["a", "b", "a"])
    with pytest.warns(UserWarning, match=r"one-hot, pass labels\.argmax"):
        ftk.ImageSet.from_arrays(x, np.eye(2)[[0, 1, 0]])
    assert ftk.ImageSet.from_arrays(x, [[0, 1], [1, 1], [0, 0]]).multi_label
