"""A zip archive is read in place, and gives what its unpacked folder gives."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import dicom, png, write

import finetune_kit as ftk


def zipped(folder: Path, archive: Path, **options) -> Path:
    with zipfile.ZipFile(archive, "w", **options) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of all kinds of readers: fast and plain PNG, deep PNG, JPEG, DICOM. Not to change."""
    root = tmp_path_factory.mktemp("unpacked")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        write(root / name / "a.png", rng.integers(0, 256, (20, 30, 3), np.uint8))
        write(root / name / "deep" / "b.png", rng.integers(0, 65536, (20, 30), np.uint16))
        write(root / name / "c.jpg", rng.integers(0, 256, (20, 30), np.uint8))
        dicom(root / name / "d.dcm", rng.integers(0, 65536, (20, 30)))
        (root / name / "notes.txt").write_text("not an image")
    (root / "images.csv").write_text("path,label\ncat/a.png,x\ndog/c.jpg,y\n")
    return root


@pytest.fixture(scope="module")
def archive(folder, tmp_path_factory) -> Path:
    return zipped(folder, tmp_path_factory.mktemp("zip") / "Images v1.ZIP".replace("ZIP", "zip"))


def test_an_archive_gives_the_images_of_its_folder(folder, archive):
    plain, packed = ftk.read_image_folder(folder), ftk.read_image_folder(archive)
    assert repr(packed) == repr(plain)
    assert packed.digests() == plain.digests()
    assert (packed.load(size=(16, 16)) == plain.load(size=(16, 16))).all()
    assert [Path(p).relative_to(archive) for p in packed.paths] == [
        Path(p).relative_to(folder) for p in plain.paths
    ]
    assert len(packed.skipped) == len(plain.skipped) == 3
    assert pickle.loads(pickle.dumps(packed)).digests() == plain.digests()


def test_a_folder_in_an_archive_is_a_folder(folder, archive):
    assert ftk.find_duplicates(
        ftk.read_image_folder(folder / "cat", class_names=["deep"]),
        ftk.read_image_folder(archive / "cat", class_names=["deep"]),
    ).crossing


def test_a_table_in_an_archive_lists_its_images(folder, archive):
    plain = ftk.read_image_table(folder / "images.csv")
    packed = ftk.read_image_table(archive / "images.csv")
    assert packed.digests() == plain.digests()
    assert packed.class_names == plain.class_names
    outside = ftk.read_image_table(folder / "images.csv", root=archive)
    assert outside.paths == packed.paths


def test_a_manifest_pins_images_in_an_archive(archive, tmp_path):
    images = ftk.read_image_folder(archive)
    written = ftk.write_manifest(tmp_path / "manifest.csv", all=images)["all"]
    read = ftk.read_manifest(tmp_path / "manifest.csv")["all"]
    assert read.manifest == written.manifest
    assert read.digests() == images.digests()


def test_predict_takes_an_archive_its_folders_and_files(archive, classifier):
    model, names = classifier
    one = ftk.predict(model, archive / "cat" / "a.png", class_names=names)
    several = ftk.predict(model, archive, class_names=names)
    assert len(several) == 8
    assert not several.errors
    same = several.paths.index(one.paths[0])
    np.testing.assert_allclose(one.probabilities[0], several.probabilities[same], atol=1e-6)


@pytest.fixture(scope="module")
def classifier():
    import keras

    layers = [keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(2, "softmax")]), ["x", "y"]


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "__MACOSX", ".hidden", "c d"]), max_size=4))
def test_no_name_leads_out_of_an_archive(tmp_path_factory, parts):
    root = tmp_path_factory.mktemp("names")
    content = png(np.full((8, 8), 9, np.uint8))
    with zipfile.ZipFile(root / "x.zip", "w") as file:
        for name in ("cat/1.png", "dog/1.png", "/".join([*parts, "2.png"])):
            file.writestr(name, content)
    images = ftk.read_image_folder(root / "x.zip")
    names = [Path(path).relative_to(root / "x.zip").parts for path in images.paths]
    assert all(".." not in name and "__MACOSX" not in name for name in names)
    visible = [part for part in parts if part != "."]
    listed = visible and not {"..", "__MACOSX", ".hidden"} & {*visible}
    assert len(names) == 2 + bool(listed)


def test_a_single_folder_at_the_top_of_an_archive_is_entered(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, f"photos/{path.relative_to(folder).as_posix()}")
    images = ftk.read_image_folder(tmp_path / "x.zip")
    assert images.class_names == ("cat", "dog")
    assert images.digests() == ftk.read_image_folder(tmp_path / "x.zip" / "photos").digests()


def test_an_archive_among_images_is_not_opened(folder, archive, tmp_path):
    write(tmp_path / "cat" / "1.png")
    write(tmp_path / "dog" / "1.png")
    write(tmp_path / "cat" / "2.png")
    (tmp_path / "cat" / "more.zip").write_bytes(archive.read_bytes())
    (tmp_path / "cat" / "broken.zip").write_bytes(b"not a zip")
    images = ftk.read_image_folder(tmp_path)
    assert len(images) == 3
    assert len(images.skipped) == 2


def test_a_changed_archive_is_read_again(folder, tmp_path):
    packed = zipped(folder, tmp_path / "x.zip")
    before = ftk.read_image_folder(packed)
    digests = before.digests()
    with zipfile.ZipFile(packed, "w") as file:
        for path in before.paths:
            file.writestr(Path(path).relative_to(packed).as_posix(), png(np.eye(9, dtype=np.uint8)))
    after = ftk.read_image_folder(packed)
    assert not {*digests} & {*after.digests()}


def bad_file(path: Path) -> Path:
    path.write_bytes(b"PK, but no archive")
    return path


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("cat/1.png", png(np.eye(9, dtype=np.uint8)))
        with file.open("dog/1.png", "w", force_zip64=True) as member:
            for _ in range(1025):
                member.write(bytes(1 << 20))
    return path


def encrypted(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("cat/1.png", "dog/1.png"):
            file.writestr(name, png(np.eye(9, dtype=np.uint8)))
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.rindex(mark) + offset] |= 1
    path.write_bytes(bytes(content))
    return path


def damaged(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("cat/1.png", "dog/1.png"):
            file.writestr(name, png(np.eye(9, dtype=np.uint8)))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"IDAT", b"IDAX"))
    return path


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (bad_file, "must be a zip archive"),
        (bomb, "expands to 1,074,790,400 bytes"),
        (encrypted, "is encrypted"),
        (damaged, "Bad CRC-32"),
    ],
)
def test_an_archive_that_cannot_be_read_says_why(make, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        ftk.read_image_folder(make(tmp_path / "x.zip"))


@pytest.mark.parametrize("name", ["nowhere", "cat/a.png/b"])
def test_a_place_that_is_not_in_an_archive_does_not_exist(archive, name):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ftk.read_image_folder(archive / name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ftk.read_image_table(archive / name / "x.csv")
