"""A manifest pins a data set: what has changed is refused, and named."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

import finetune_kit as ftk


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b c", "ä"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i},{i}.png")
    return tmp_path


def same(one, other):
    return [np.asarray(a).tolist() for a in one] == [np.asarray(b).tolist() for b in other]


@pytest.mark.parametrize("suffix", ["json", "csv"])
@pytest.mark.parametrize("grouped", [False, True])
def test_what_is_written_is_read(folder, suffix, grouped):
    groups = (lambda path: path[-5]) if grouped else None
    images = ftk.read_image_folder(folder / "data", groups=groups)
    split = ftk.stratified_split(images.labels, (0.5, 0.25, 0.25))
    written = ftk.write_manifest(folder / "out" / f"m.{suffix}", images, split)
    read, parts = ftk.read_manifest(folder / "out" / f"m.{suffix}")
    assert read.class_names == images.class_names
    assert same([read.labels], [images.labels])
    assert (read.groups is None) == (not grouped)
    if grouped:
        assert same([read.groups], [images.groups])
    assert same((parts.train, parts.validation, parts.test),
                (split.train, split.validation, split.test))  # fmt: skip
    assert np.array_equal(read.load(size=(8, 8)), images.load(size=(8, 8)))
    assert read.manifest == written.manifest
    assert len(written.manifest) == 64
    assert images.manifest is None


def test_several_labels_survive(folder):
    paths = ftk.read_image_folder(folder / "data").paths
    labels = np.random.default_rng(0).integers(0, 2, (len(paths), 3))
    images = ftk.ImageSet(paths, labels, ("x", "a", "m"))
    for suffix in ("json", "csv"):
        written = ftk.write_manifest(folder / f"m.{suffix}", images)
        read, split = ftk.read_manifest(folder / f"m.{suffix}")
        assert split is None
        assert read.class_names == ("x", "a", "m")
        assert same([read.labels], [labels])
        assert read.manifest == written.manifest


def test_the_fingerprint_tells_content_label_and_part_but_not_place(folder):
    images = ftk.read_image_folder(folder / "data")
    split = ftk.stratified_split(images.labels, (0.5, 0.25, 0.25))

    def fingerprint(name="m.json", split=split):
        return ftk.write_manifest(folder / name, images, split).manifest

    assert fingerprint() == fingerprint("elsewhere/m.csv")
    assert fingerprint() != fingerprint(split=None)
    other = ftk.stratified_split(images.labels, (0.5, 0.25, 0.25), seed=1)
    assert fingerprint() != fingerprint(split=other)


def test_files_that_have_changed_are_all_named(folder):
    images = ftk.read_image_folder(folder / "data")
    ftk.write_manifest(folder / "m.json", images)
    gone, changed = (folder / "data" / "b c" / f"{i},{i}.png" for i in (1, 4))
    gone.unlink()
    Image.new("L", (8, 8)).save(changed)
    with pytest.raises(ValueError, match=r"(?s)2 of whose 12 files.*1,1.*missing.*4,4.*other"):
        ftk.read_manifest(folder / "m.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "another"}',
        '{"format": "finetune-kit manifest 1"}',
        "no json",
        "[" * 100_000,
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match="must be a manifest"):
        ftk.read_manifest(tmp_path / "m.json")
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match="must be a manifest"):
        ftk.read_manifest(tmp_path / "m.csv")


def test_other_arguments_are_refused(folder, tiny_images):
    with pytest.raises(ValueError, match=r"\.json or \.csv"):
        ftk.write_manifest(folder / "m.pickle", tiny_images)
    with pytest.raises(ValueError, match="must be files"):
        ftk.write_manifest(folder / "m.json", tiny_images)
    with pytest.raises(FileNotFoundError, match="not there"):
        ftk.read_manifest(folder / "m.json")


def test_a_part_that_does_not_exist_is_refused(folder):
    ftk.write_manifest(folder / "m.json", ftk.read_image_folder(folder / "data"))
    told = json.loads((folder / "m.json").read_text())
    told["images"][0]["part"] = "holdout"
    (folder / "m.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="holdout"):
        ftk.read_manifest(folder / "m.json")


def test_names_of_all_kinds_survive(tmp_path):
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
    images = ftk.read_image_folder(tmp_path)
    for suffix in ("json", "csv"):
        written = ftk.write_manifest(tmp_path / f"m.{suffix}", images)
        read, _ = ftk.read_manifest(tmp_path / f"m.{suffix}")
        assert {os.path.basename(path) for path in read.paths} == set(names)
        assert read.manifest == written.manifest
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "m.csv").read_bytes())
    assert ftk.read_manifest(tmp_path / "m.csv")[0].manifest == images_manifest(tmp_path)


def images_manifest(folder):
    return ftk.read_manifest(folder / "m.json")[0].manifest


@pytest.mark.parametrize(
    ("key", "value"),
    [("label", 0.5), ("label", True), ("label", 9), ("label", [0, 1]), ("label", None),
     ("group", "x"), ("group", 1.5), ("sha256", None), ("path", None), ("path", 5), ("part", [])],
)  # fmt: skip
def test_a_manifest_that_was_tampered_with_is_refused(folder, key, value):
    ftk.write_manifest(folder / "m.json", ftk.read_image_folder(folder / "data"))
    told = json.loads((folder / "m.json").read_text())
    for change in ({key: value}, None):
        images = [dict(row) for row in told["images"]]
        if change is None:
            del images[0][key]
        else:
            images[0] |= change
        (folder / "m.json").write_text(json.dumps(told | {"images": images}))
        with pytest.raises(ValueError, match="must be a manifest"):
            ftk.read_manifest(folder / "m.json")


def test_a_label_that_was_edited_is_refused(folder):
    ftk.write_manifest(folder / "m.json", ftk.read_image_folder(folder / "data"))
    told = json.loads((folder / "m.json").read_text())
    told["images"][0]["label"] = 1
    (folder / "m.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="it was edited"):
        ftk.read_manifest(folder / "m.json")
