"""A manifest pins image sets: what is read equals what was written, and changes are named."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import write
from PIL import Image

import finetune_kit as ftk


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve images of two classes. Tests must not change them."""
    root = tmp_path_factory.mktemp("manifest")
    for name in ("b c", "ä"):
        for i in range(6):
            pixels = np.random.default_rng(ord(name[0]) + i).integers(0, 256, (8, 8), np.uint8)
            write(root / "data" / name / f"{i},{i}.png", pixels)
    return root


@pytest.fixture
def own_folder(tmp_path) -> Path:
    """Six images of two classes, with a manifest `m.json` of two parts."""
    for i in range(6):
        write(tmp_path / "data" / "ab"[i % 2] / f"{i}.png", np.full((8, 8), 30 * i, np.uint8))
    images = ftk.read_image_folder(tmp_path / "data")
    ftk.write_manifest(
        tmp_path / "m.json", first=images.take([0, 3]), rest=images.take([1, 2, 4, 5])
    )
    return tmp_path


def content(images: ftk.ImageSet) -> list:
    groups = None if images.groups is None else images.groups.tolist()
    paths = [os.path.abspath(path) for path in images.paths]
    return [images.class_names, images.labels.tolist(), groups, paths, images.digests()]


@settings(max_examples=20)
@given(st.sampled_from(["json", "csv"]), st.booleans(), st.sampled_from([1, 3]), st.integers(0, 9))
def test_what_was_written_is_read(folder, suffix, grouped, parts, seed):
    images = ftk.read_image_folder(folder / "data", groups=r"(\d)\.png" if grouped else None)
    sets = (images,) if parts == 1 else images.split((0.5, 0.25, 0.25), seed=seed)
    named = dict(zip(("file", "train", "held-out 2"), sets, strict=False))
    file = folder / "out" / f"m.{suffix}"
    written = ftk.write_manifest(file, **named)
    read = ftk.read_manifest(file)
    assert list(read) == list(written) == list(named)
    for name, given_set in named.items():
        assert content(read[name]) == content(written[name]) == content(given_set)
        assert read[name].manifest == written[name].manifest
        assert given_set.manifest is None
    (fingerprint,) = {images.manifest for images in written.values()}
    assert len(fingerprint) == 64


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_multi_label_sets_are_read_as_they_were_written(folder, suffix):
    files = ftk.read_image_folder(folder / "data")
    labels = np.random.default_rng(0).integers(0, 2, (len(files), 3))
    images = ftk.ImageSet(files.source, labels, ("x", "a", "m"))
    written = ftk.write_manifest(folder / f"multi.{suffix}", all=images)
    read = ftk.read_manifest(folder / f"multi.{suffix}")
    assert content(read["all"]) == content(images)
    assert read["all"].manifest == written["all"].manifest


def test_the_order_of_the_classes_is_kept_or_an_error(folder):
    images = ftk.read_image_folder(folder / "data", class_names=["ä", "b c", "none"])
    ftk.write_manifest(folder / "order.json", all=images)
    assert content(ftk.read_manifest(folder / "order.json")["all"]) == content(images)
    with pytest.raises(ValueError, match=r"alphabetical order.*write a \.json file"):
        ftk.write_manifest(folder / "order.csv", all=images)
    assert not (folder / "order.csv").exists()


def test_the_fingerprint_depends_on_contents_labels_groups_and_parts_alone(folder, tmp_path):
    images = ftk.read_image_folder(folder / "data", groups=r"(\d)\.png")

    def fingerprint(name="m.json", **parts):
        written = ftk.write_manifest(tmp_path / name, **parts)
        return {images.manifest for images in written.values()}.pop()

    first, second = images.take(range(0, 12, 2)), images.take(range(1, 12, 2))
    expected = fingerprint(train=first, test=second)
    assert fingerprint("elsewhere/m.csv", train=first, test=second) == expected
    assert fingerprint(test=second, train=first.take([5, 3, 1, 0, 2, 4])) == expected
    for i, path in enumerate(images.paths):  # the same contents under other names
        target = tmp_path / "copy" / Path(path).parent.name / f"{12 - i:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(path).read_bytes())
    copies = ftk.read_image_folder(tmp_path / "copy")
    order = [copies.digests().index(digest) for digest in images.digests()]
    copies = copies.take(order)
    copies = ftk.ImageSet(
        copies.source, copies.labels, copies.class_names, images.groups, rows=copies.rows
    )
    train, test = copies.take(range(0, 12, 2)), copies.take(range(1, 12, 2))
    assert fingerprint(train=train, test=test) == expected
    ungrouped = ftk.read_image_folder(folder / "data")
    swapped = ftk.ImageSet(images.source, 1 - images.labels, images.class_names, images.groups)
    others = [
        fingerprint(train=second, test=first),
        fingerprint(train=first, validation=second),
        fingerprint(train=images),
        fingerprint(train=first.take(range(5)), test=second),
        fingerprint(train=ungrouped.take(range(0, 12, 2)), test=ungrouped.take(range(1, 12, 2))),
        fingerprint(train=swapped.take(range(0, 12, 2)), test=swapped.take(range(1, 12, 2))),
    ]
    assert len({expected, *others}) == 7


def test_a_manifest_may_be_read_from_another_folder(own_folder, monkeypatch):
    paths = ftk.read_manifest(own_folder / "m.json")["first"].paths
    monkeypatch.chdir(own_folder / "data")
    again = ftk.read_manifest("../m.json")["first"]
    assert [os.path.abspath(path) for path in again.paths] == list(paths)
    own_folder.joinpath("moved").mkdir()
    monkeypatch.chdir(own_folder)
    for name in ("m.json", "data"):
        Path(name).rename(Path("moved", name))
    assert len(ftk.read_manifest("moved/m.json")["rest"]) == 4


def test_a_manifest_may_be_read_through_a_link_to_its_folder(own_folder, tmp_path_factory):
    images = ftk.read_image_folder(own_folder / "data")
    (own_folder / "link").symlink_to(tmp_path_factory.mktemp("target"))
    ftk.write_manifest(own_folder / "link" / "m.json", all=images)
    assert content(ftk.read_manifest(own_folder / "link" / "m.json")["all"]) == content(images)


def test_missing_and_changed_files_are_all_named(own_folder):
    (own_folder / "data" / "b" / "1.png").unlink()
    write(own_folder / "data" / "a" / "4.png")
    with pytest.raises(ValueError, match="2 of 6 files missing or changed") as caught:
        ftk.read_manifest(own_folder / "m.json")
    assert "1.png': is missing" in str(caught.value)
    assert "4.png': has changed" in str(caught.value)


def test_files_that_cannot_be_read_are_named_with_the_others(own_folder):
    """Of an archive whose bytes have changed, each damaged member is named."""
    archive = own_folder / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(own_folder.glob("data/*/*.png")):
            file.write(path, path.relative_to(own_folder / "data"))
    ftk.write_manifest(own_folder / "m.json", all=ftk.read_image_folder(archive))
    content = bytearray(archive.read_bytes())
    for number in (1, 4):  # in the middle of the pixels
        name = f"{'ab'[number % 2]}/{number}.png".encode()
        content[content.index(name) + len(name) + 50] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="2 of 6 files missing or changed") as caught:
        ftk.read_manifest(own_folder / "m.json")
    for name in ("1.png", "4.png"):
        assert f"{name}': fails with ValueError: it is damaged: Bad CRC-32" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "another"}',
        '{"format": "finetune-kit manifest 2"}',
        "not json",
        "part,path,sha256,group,label\n",
        "[" * 100_000,
    ],
)
def test_other_files_are_not_read_as_manifests(tmp_path, text):
    for name in ("m.json", "m.csv"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="must be a manifest that write_manifest wrote"):
            ftk.read_manifest(tmp_path / name)


def test_other_arguments_are_errors(folder, tiny_images, tmp_path):
    images = ftk.read_image_folder(folder / "data")
    for parts, says in [
        ({}, "at least one image set"),
        ({"train": "folder"}, "`train` must be of type ImageSet"),
        ({"train": tiny_images}, "`train` must hold image files.*images in memory"),
        ({"train": images, "test": images.take([])}, "`test` must hold images; leave it out"),
        ({"train": images, "test": images.take([5])}, r"(?s)1 image with.*'test'.*in 'train'"),
        ({"train": images.take([5, 5])}, "and once"),
    ]:
        with pytest.raises(ValueError, match=says):
            ftk.write_manifest(tmp_path / "m.json", **parts)
    with pytest.raises(TypeError, match=r"1 argument by position \(file\).*such as train=train"):
        ftk.write_manifest(tmp_path / "m.csv", images, images)
    with pytest.raises(ValueError, match=r"must end in \.json or \.csv"):
        ftk.write_manifest(tmp_path / "m.pickle", train=images)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ftk.read_manifest(tmp_path / "m.json")
    assert not list(tmp_path.iterdir())


def test_other_csv_files_and_edited_manifests_are_named_as_such(own_folder):
    (own_folder / "t.csv").write_text("path,label\na.png,a\n")
    with pytest.raises(ValueError, match=r"t\.csv', which has no column 'part'"):
        ftk.read_manifest(own_folder / "t.csv")
    edited(own_folder, lambda row: row.update(group="x"))
    with pytest.raises(ValueError, match=r"m\.json', which was edited"):
        ftk.read_manifest(own_folder / "m.json")


def test_parts_must_have_the_same_classes(folder, tmp_path):
    one = ftk.read_image_folder(folder / "data")
    write(tmp_path / "ä" / "1.png")
    other = ftk.read_image_folder(tmp_path, class_names=["ä"])
    with pytest.raises(ValueError, match=r"same classes.*class_names=.*b c: 6, ä: 6.*ä: 1"):
        ftk.write_manifest(tmp_path / "m.json", train=one, test=other)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_unusual_file_names_survive(tmp_path, suffix):
    names = [
        "a b.png",
        "two\nlines.png",
        "a\rb.png",
        'quo"te, comma.png',
        " ü 猫.png",
        os.fsdecode(b"\xff.png"),
    ]
    (tmp_path / "a").mkdir()
    for i, name in enumerate(names):
        Image.new("L", (8, 8), i).save(tmp_path / "a" / "x.png")
        (tmp_path / "a" / "x.png").rename(tmp_path / "a" / name)
    images = ftk.read_image_folder(tmp_path, class_names=["a"])
    file = tmp_path / f"m.{suffix}"
    ftk.write_manifest(file, all=images)
    assert content(ftk.read_manifest(file)["all"]) == content(images)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as Excel saves it
    assert content(ftk.read_manifest(file)["all"]) == content(images)


def edited(folder, change) -> None:
    """Rewrite `m.json` with its first image changed and the fingerprint left as it was."""
    manifest = json.loads((folder / "m.json").read_text())
    change(manifest["images"][0])
    (folder / "m.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("key", "value"),
    [("label", "b"), ("label", "c"), ("label", 0), ("label", ["a"]), ("label", None),
     ("group", "x"), ("group", 1.5), ("sha256", None), ("path", None), ("path", 5), ("part", []),
     ("part", "rest"), ("part", None)],
)  # fmt: skip
def test_an_edited_manifest_is_an_error(own_folder, key, value):
    edited(own_folder, lambda row: row.update({key: value}))
    with pytest.raises(ValueError, match="must be a manifest"):
        ftk.read_manifest(own_folder / "m.json")
    edited(own_folder, lambda row: row.pop(key))
    with pytest.raises(ValueError, match="must be a manifest"):
        ftk.read_manifest(own_folder / "m.json")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"group"', '"who"', "which has no column 'group'"),
        ('"data/a/0.png"', '""', "lacks a part, a path or a digest"),
        ('"data/a/0.png"', '"data/a/2.png"', "an image more than once"),
        ('"first","data/a/0.png"', '"","data/a/0.png"', "lacks a part"),
    ],
)
def test_a_csv_manifest_that_does_not_fit_is_an_error(own_folder, old, new, says):
    ftk.write_manifest(own_folder / "m.csv", **ftk.read_manifest(own_folder / "m.json"))
    text = (own_folder / "m.csv").read_text()
    assert old in text
    (own_folder / "m.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"must be a manifest.*{says}"):
        ftk.read_manifest(own_folder / "m.csv")


def test_files_may_be_compared_when_they_are_decoded(own_folder, monkeypatch):
    checked = ftk.read_manifest(own_folder / "m.json")
    contents = {name: content(images) for name, images in checked.items()}
    with monkeypatch.context() as patch:
        patch.setattr("finetune_kit._data.pixels.digest_of", None)  # no file is read
        later = ftk.read_manifest(own_folder / "m.json", check_files=False)
        assert list(later) == ["first", "rest"]
        for name, images in later.items():
            assert content(images) == contents[name]
    size = (8, 8)
    expected = {name: images.load(size=size) for name, images in checked.items()}
    assert all(np.array_equal(later[name].load(size=size), expected[name]) for name in later)
    changed, missing = map(Path, later["rest"].paths[:2])
    write(changed, np.zeros((8, 8), np.uint8))
    missing.unlink()
    with pytest.raises(ValueError, match=r"read_manifest\(file\) lists all.*which has changed"):
        later["rest"].load([0], size)
    with pytest.raises(ValueError, match=r"must exist as long as its set is used"):
        later["rest"].load([1], size)
    assert np.array_equal(later["rest"].load([2, 3], size), expected["rest"][2:])
