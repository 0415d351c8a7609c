"""Folders and tables become image sets; errors say what is accepted."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import write
from PIL import Image, features

import finetune_kit as ftk


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """The layout of the COVID-19 Radiography Database, with masks and tables. Not to be changed."""
    root = tmp_path_factory.mktemp("database")
    for name in ("Viral Pneumonia", "COVID", "Normal"):
        for n in (1, 2, 10):
            write(root / name / "images" / f"{name}-{n}.png")
            write(root / name / "masks" / f"{name}-{n}.png")
        (root / f"{name}.metadata.xlsx").write_bytes(b"table")
    (root / "README.md.txt").write_text("read me")
    (root / ".DS_Store").write_bytes(b"")
    return root


@pytest.fixture
def two_classes(tmp_path) -> Path:
    for name in ("cat/p1_1.png", "cat/p2_1.png", "dog/p3_1.png"):
        write(tmp_path / name)
    return tmp_path


def test_masks_and_tables_are_not_images_of_a_class(database, caplog):
    images = ftk.read_image_folder(database)
    assert len(images) == 9
    assert not any("/masks/" in path for path in images.paths)
    assert images.class_names == ("COVID", "Normal", "Viral Pneumonia")
    assert images.counts().tolist() == [3, 3, 3]
    assert len(images.skipped) == 3 + 3 + 1  # folders of masks, tables, the read-me


def test_skipped_files_are_logged_once(database, caplog):
    images = ftk.read_image_folder(database)
    assert len(caplog.records) == 1
    assert "9 images" in caplog.text
    assert "skipped: COVID/masks, COVID.metadata.xlsx" in caplog.text
    assert "and 3 more, with 9 image files in all; images.skipped lists them" in caplog.text
    images.load(size=(8, 8))
    assert len(caplog.records) == 1


def test_all_image_formats_are_read(tmp_path, caplog):
    for suffix in ("jpg", "PNG", "bmp", "tiff", "webp", "gif", "jpeg"):
        write(tmp_path / "a" / f"x.{suffix}")
    write(tmp_path / "b" / "y z ü.png")
    images = ftk.read_image_folder(str(tmp_path))
    assert (len(images), images.class_names, images.skipped) == (8, ("a", "b"), ())
    assert not caplog.records
    assert abs(images.load().astype(int) - 120).max() <= 3


def test_the_real_database_is_read(xrays):
    images = ftk.read_image_folder(xrays)
    assert dict(zip(images.class_names, images.counts().tolist(), strict=True)) == {
        "COVID": 904, "Normal": 2548, "Viral Pneumonia": 336}  # fmt: skip
    pixels = images.load([0, 3787])
    assert (pixels.shape, pixels.dtype) == ((2, 224, 224, 3), np.uint8)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_the_home_folder_is_expanded(two_classes, monkeypatch):
    monkeypatch.setenv("HOME", str(two_classes))
    monkeypatch.setenv("USERPROFILE", str(two_classes))
    (two_classes / "t.csv").write_text("path,label\ncat/p1_1.png,cat\n")
    assert len(ftk.read_image_folder("~")) == 3
    assert len(ftk.read_image_table("~/t.csv")) == 1
    assert len(ftk.read_image_table("~/t.csv", root="~")) == 1
    parts = {"all": ftk.read_image_folder("~")}
    ftk.write_manifest("~/m.json", **parts)
    assert len(ftk.read_manifest("~/m.json")["all"]) == 3


# ----------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    "groups",
    [lambda path: path.split("/")[1].split("_")[0], r"/(p\d)_", re.compile(r"(p[0-9]+)_\d\.png$")],
)
def test_groups_come_from_a_function_or_a_regular_expression(two_classes, groups):
    images = ftk.read_image_folder(two_classes, groups=groups)
    assert images.groups.tolist() == ["p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (lambda path: path.split("_")[5], r"fails for 'cat/p1_1\.png' with IndexError"),
        (lambda path: None, r"returns none for cat/p1_1\.png, cat/p2_1\.png, dog/p3_1\.png"),
        (r"(p[12])", r"does not match dog/p3_1\.png"),
        (r"p(1)|p2|p3", r"does not match cat/p2_1\.png"),
        (r"p\d", r"one group in parentheses.*which has 0"),
        (r"(p)(\d)", "which has 2"),
        ("(", r"which fails with missing \)"),
        (re.compile(b"(p)"), "one group in parentheses"),
        (5, "must be a function of the relative path, or a regular expression"),
    ],
)
def test_groups_that_fail_name_the_file_or_the_reason(two_classes, groups, says):
    with pytest.raises(ValueError, match=says):
        ftk.read_image_folder(two_classes, groups=groups)


# ----------------------------------------------------------------- class_names


def test_class_names_fix_the_classes_and_their_order(two_classes):
    names = ["mouse", "dog", "cat"]
    images = ftk.read_image_folder(two_classes, class_names=names)
    assert images.class_names == ("mouse", "dog", "cat")
    assert images.counts().tolist() == [0, 1, 2]
    assert [Path(path).parent.name for path in images.paths] == ["dog", "cat", "cat"]
    with pytest.raises(ValueError, match=r"among class_names=\['cat'\].*folders \['dog'\] too"):
        ftk.read_image_folder(two_classes, class_names=["cat"])
    for names in (["cat", "cat"], "cat"):
        with pytest.raises(ValueError, match="sequence of different names"):
            ftk.read_image_folder(two_classes, class_names=names)


def test_parts_with_and_without_a_class_can_be_joined(tmp_path):
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png"):
        write(tmp_path / name)
    train = ftk.read_image_folder(tmp_path / "train")
    test = ftk.read_image_folder(tmp_path / "test", class_names=train.class_names)
    assert (train + test).counts().tolist() == [2, 1]


def test_a_single_class_is_warned_of_unless_it_is_intended(tmp_path):
    write(tmp_path / "a" / "1.png")
    with pytest.warns(UserWarning, match=r"one class only, 'a'.*pass class_names=\['a'\]"):
        images = ftk.read_image_folder(tmp_path)
    assert repr(images) == "ImageSet(1 image; a: 1)"
    assert len(ftk.read_image_folder(tmp_path, class_names=["a"])) == 1


def test_parts_that_look_like_classes_are_warned_of(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "1.png")
    with pytest.warns(UserWarning, match=r"read each by itself, with part='test'"):
        ftk.read_image_folder(tmp_path)


def test_a_folder_of_parts_is_an_error_that_shows_how_to_read_a_part(tmp_path):
    write(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"read each by itself, with part='train'"):
        ftk.read_image_folder(tmp_path)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "Testing")])
def test_a_split_folder_is_read_by_part_with_the_classes_of_all_parts(tmp_path, names):
    for i, part in enumerate(names):
        write(tmp_path / part / "cat" / f"{i}.png")
    write(tmp_path / names[0] / "dog" / "9.png")
    parts = [ftk.read_image_folder(tmp_path, part=p) for p in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [2, 1, 1]
    assert {part.class_names for part in parts} == {("cat", "dog")}


def test_a_part_that_is_not_there_is_an_error(tmp_path):
    write(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(FileNotFoundError, match=r"named test or testing.*holds \['train'\]"):
        ftk.read_image_folder(tmp_path, part="test")
    with pytest.raises(ValueError, match="`part` must be one of"):
        ftk.read_image_folder(tmp_path, part="val")


# -------------------------------------------------------------------- bad paths


def test_a_path_that_is_not_an_existing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist"):
        ftk.read_image_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="which is a file"):
        ftk.read_image_folder(write(tmp_path / "x.png"))
    with pytest.raises(FileNotFoundError, match="patterns are not expanded"):
        ftk.read_image_folder(tmp_path / "*" / "x.png")


class Frame:
    """A data frame with the interface that pandas and polars share."""

    def __init__(self, **columns):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name):
        return self._columns[name]


def test_paths_of_other_types_are_errors_that_say_what_is_accepted(two_classes, tiny_images):
    for path, says in [
        (["a", "b"], r"join the sets with \+.*of type list"),
        (b"folder", "must be one folder.*of type bytes"),
        ("", "must be one folder"),
        (None, "of type NoneType"),
        (tiny_images, "of type ImageSet"),
        (Frame(path=[]), "read_image_table reads a DataFrame"),
    ]:
        with pytest.raises(ValueError, match=says):
            ftk.read_image_folder(path)
    with pytest.raises(ValueError, match="`on_error` must be one of"):
        ftk.read_image_folder(two_classes, on_error="ignore")


def test_a_folder_without_class_folders_is_an_error(database):
    for folder in (database / "COVID" / "images", database / "COVID"):
        with pytest.raises(ValueError, match="must hold one folder per class"):
            ftk.read_image_folder(folder)


def test_a_class_folder_is_an_error_that_suggests_its_parent(two_classes, database):
    for folder, parent in [(two_classes / "cat", two_classes), (database / "COVID", database)]:
        says = f"; did you mean the parent, {str(parent)!r}?"
        with pytest.raises(ValueError, match=re.escape(says)):
            ftk.read_image_folder(folder)


def test_a_skipped_folder_stands_for_its_content(two_classes, caplog):
    for name in ("notes/a.txt", "notes/b.txt", "dog/inner/1.txt"):
        (two_classes / name).parent.mkdir(exist_ok=True)
        (two_classes / name).write_text("no image")
    with pytest.warns(UserWarning, match=r"were skipped.*'notes' \(0 of 2 files\);"):
        images = ftk.read_image_folder(two_classes)
    assert [os.path.basename(path) for path in images.skipped] == ["inner", "notes"]
    assert "skipped: dog/inner, notes" in caplog.text


def test_unreadable_files_are_all_named_or_skipped(two_classes):
    (two_classes / "cat" / "bad 1.png").write_text("<html>")
    (two_classes / "dog" / "bad 2.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"(?s)Received: 2 paths.*bad 1\.png' is not an image.*bad 2\.png"
    ):
        ftk.read_image_folder(two_classes)
    images = ftk.read_image_folder(two_classes, on_error="skip", groups="(p.)_")
    assert images.groups.tolist() == ["p1", "p2", "p3"]
    assert images.labels.tolist() == [0, 0, 1]
    assert [os.path.basename(path) for path in images.skipped] == ["bad 1.png", "bad 2.png"]


def test_circular_links_are_followed_once(tmp_path):
    write(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "images").symlink_to(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path)
    images = ftk.read_image_folder(tmp_path, class_names=["a"])
    assert [os.path.relpath(path, tmp_path) for path in images.paths] == ["a/x.png"]


def test_the_content_decides_and_not_the_name(tmp_path):
    """Classes of any name, images of any name and at any depth."""
    for name in ("masks/1.png", "cat/deep/er/1.png", "cat/2.png", "dog/images/1.png"):
        write(tmp_path / name)
    write(tmp_path / "cat" / "3.png").rename(tmp_path / "cat" / "3")
    write(tmp_path / "cat" / "4.png").rename(tmp_path / "cat" / "4.PNG.bak")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "5.jfif", "jpeg")
    Image.new("RGB", (8, 8)).save(tmp_path / "masks" / "2.JPE", "jpeg")
    write(tmp_path / "dog" / "masks" / "1.png")  # a mask beside images
    images = ftk.read_image_folder(tmp_path)
    assert dict(zip(images.class_names, images.counts(), strict=True)) == {
        "cat": 5,
        "dog": 1,
        "masks": 2,
    }
    assert images.skipped == (str(tmp_path / "dog" / "masks"),)
    images.load(size=(8, 8))


@pytest.mark.parametrize(
    ("start", "plugin", "says"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "pillow_heif", "HEIF images need pillow-heif.*pip inst"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow_jxl", "JXL images need pillow-jxl-plugin.*pip inst"),
    ],
)
def test_formats_that_need_a_plugin_are_named_with_it(
    two_classes, start, plugin, says, monkeypatch
):
    (two_classes / "cat" / "photo").write_bytes(start + bytes(200))
    with pytest.raises(ValueError, match="photo"):  # it is damaged
        ftk.read_image_folder(two_classes)
    monkeypatch.setitem(sys.modules, plugin, None)  # as if it were not installed
    with pytest.raises(ValueError, match=f"photo.*{says}"):
        ftk.read_image_folder(two_classes)


@pytest.mark.parametrize(
    ("suffix", "plugin", "options"),
    [
        (".heic", "pillow_heif", {"format": "HEIF", "quality": -1}),
        (".jxl", "pillow_jxl", {"format": "JXL", "lossless": True}),
        ("", "pillow_jxl", {"format": "JXL", "lossless": True}),
    ],
)
def test_images_of_a_format_with_a_plugin_are_read(two_classes, suffix, plugin, options):
    getattr(importlib.import_module(plugin), "register_heif_opener", lambda: None)()
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1)))
    pixels = pixels.astype(np.uint8)
    Image.fromarray(pixels).save(two_classes / "cat" / f"photo{suffix}", **options)
    images = ftk.read_image_folder(two_classes)
    place = next(i for i, path in enumerate(images.paths) if "photo" in path)
    np.testing.assert_allclose(images.load([place], (32, 32))[0].astype(int), pixels, atol=4)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_avif_images_are_read(two_classes):
    Image.new("RGB", (8, 8), "red").save(two_classes / "cat" / "9.avif")
    images = ftk.read_image_folder(two_classes)
    assert any(path.endswith("9.avif") for path in images.paths)
    assert images.load(size=(8, 8)).max() > 200


def test_classes_that_lost_most_of_their_files_are_named(two_classes):
    for i in range(9):
        (two_classes / "cat" / f"{i}.xcf").write_bytes(b"gimp xcf")
        (two_classes / "dog" / f"bad {i}.png").write_bytes(b"")
    (two_classes / "bird").mkdir()
    (two_classes / "bird" / "1.svg").write_text("<svg/>")
    match = r"'bird' \(0 of 1 files\), .*'cat' \(\d of \d+ files\).*'dog'|'dog'.*'bird'.*'cat'"
    with pytest.warns(UserWarning, match=match):
        ftk.read_image_folder(two_classes, on_error="skip")


def test_folders_without_permission_are_named_with_the_files(two_classes, monkeypatch):
    """Simulated, because root may read any folder."""
    (two_classes / "dog" / "bad.png").write_bytes(b"")
    listed = Path.iterdir

    def deny(folder):
        if folder.name == "cat":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(ValueError, match=r"(?s)Received: 2 .*bad\.png.*cat.*Permission denied"):
        ftk.read_image_folder(two_classes)
    with pytest.warns(UserWarning, match=r"'cat' \(0 of 1 files\)"):
        images = ftk.read_image_folder(two_classes, on_error="skip", class_names=["dog"])
    assert len(images) == 1
    assert str(two_classes / "cat") in images.skipped


def test_a_file_beside_the_class_folders_is_skipped_and_logged_on_one_line(two_classes, caplog):
    (two_classes / "Extra\nclass").write_text("not a folder")
    images = ftk.read_image_folder(two_classes)
    assert images.class_names == ("cat", "dog")
    assert images.skipped == (str(two_classes / "Extra\nclass"),)
    assert r"skipped: 'Extra\nclass'" in caplog.text


# ----------------------------------------------------------------------- tables


def table(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return folder / "t.csv"


@pytest.fixture
def listed_files(tmp_path) -> Path:
    for name in ("x.png", "y.png", "z 1.png"):
        write(tmp_path / "files" / name)
    return tmp_path


CSV = "file,who,what\nx.png,7,ill\nz 1.png,8,healthy\ny.png,7,ill"
FRAME = Frame(
    file=["x.png", Path("z 1.png"), "y.png"], who=[7, 8, 7], what=["ill", "healthy", "ill"]
)


@pytest.mark.parametrize("kind", ["csv", "frame"])
def test_a_table_gives_paths_labels_and_groups(listed_files, kind):
    source = table(listed_files, CSV) if kind == "csv" else FRAME
    options = {"path": "file", "label": "what", "group": "who", "root": listed_files / "files"}
    images = ftk.read_image_table(source, **options)
    assert images.class_names == ("healthy", "ill")
    assert images.labels.tolist() == [1, 0, 1]
    assert images.groups.tolist() == ["7", "8", "7"]
    assert [os.path.basename(path) for path in images.paths] == ["x.png", "z 1.png", "y.png"]
    images = ftk.read_image_table(source, **options, class_names=["ill", "healthy", "other"])
    assert images.counts().tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match=r"class_names=\['ill'\].*'healthy' in (line 3|row 1) of"):
        ftk.read_image_table(source, **options, class_names=["ill"])


def test_paths_of_a_frame_are_relative_to_the_current_folder(listed_files, monkeypatch):
    monkeypatch.chdir(listed_files / "files")
    images = ftk.read_image_table(Frame(path=["x.png", "y.png"], label=[1, 0]))
    assert (images.class_names, images.labels.tolist()) == (("0", "1"), [1, 0])


@pytest.mark.parametrize(
    "source",
    [
        "path,mass,fluid\nx.png,1,0\ny.png,1,1\n",
        "path,mass,fluid\nx.png,True, false\ny.png,1.0,TRUE\n",
        Frame(path=["x.png", "y.png"], mass=[1, 1], fluid=[False, True]),
    ],
)
def test_several_label_columns_are_multi_label(listed_files, source):
    source = table(listed_files, source) if isinstance(source, str) else source
    options = {"label": ("mass", "fluid"), "root": listed_files / "files"}
    images = ftk.read_image_table(source, **options)
    assert images.labels.tolist() == [[1, 0], [1, 1]]
    assert repr(images) == "ImageSet(2 images; multi-label; mass: 2, fluid: 1)"
    assert len(ftk.read_image_table(source, **options, class_names=["mass", "fluid"])) == 2
    with pytest.raises(ValueError, match="leave out `class_names`"):
        ftk.read_image_table(source, **options, class_names=["fluid", "mass"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\nx.png,a", r"columns \['path', 'label'\].*columns \['file', 'label'\]"),
        ("", r"with the columns \[\]"),
        ("path,label\n", "which has no rows"),
        ("path,label\nx.png,", "without a value in line 2"),
        ("path,label\n\n\nx.png,", "without a value in line 4"),
        ("path,label\nx.png", "without a value in line 2"),
        ("path;label\nx.png;a", "the separator must be a comma.*header 'path;label'"),
        ("path,label\ngone.png,a\no.png,b", "No file was found; pass root=.*2 paths, such as"),
        ("path,label\n" + "a" * 200_000, "field larger"),
        ("path,label\nx.png,a\na/../x.png,b", "each image once"),
        ("path,label\nx.png,a\nx.png,b", r"more than one row for .*x\.png"),
        ("path,label\nx.png,a\ngone.png,b", r"gone\.png.*does not exist"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error_with_the_reason(tmp_path, text, says):
    write(tmp_path / "x.png")
    with pytest.raises(ValueError, match=says):
        ftk.read_image_table(table(tmp_path, text))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (Frame(path=["x.png", "y.png"], label=["a", None]), "a Frame of 2 rows, without .* row 1"),
        (Frame(path=["x.png"], label=[float("nan")]), "without a value in row 0"),
        (Frame(path=[], label=[]), "which has no rows"),
        (Frame(file=["x.png"]), r"a Frame with the columns \['file'\]"),
        (["x.png"], "or a pandas or polars DataFrame.*of type list"),
    ],
)
def test_a_frame_that_does_not_fit_is_an_error_with_the_reason(frame, says):
    with pytest.raises(ValueError, match=says):
        ftk.read_image_table(frame)


def test_other_slips_with_tables_are_errors(tmp_path):
    for name, says in [("no.csv", "does not exist"), (".", "is not a file")]:
        with pytest.raises(FileNotFoundError, match=f"must be the path of a CSV file.*{says}"):
            ftk.read_image_table(tmp_path / name)
    file = table(tmp_path, "path,m\nx.png,2")
    with pytest.raises(ValueError, match="must name at least one column"):
        ftk.read_image_table(file, label=[])
    write(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"columns of 0 and 1.*'2' in the column 'm', line 2 of"):
        ftk.read_image_table(file, label=["m"])


def test_missing_and_broken_files_of_a_table_are_named_or_skipped(tmp_path, caplog):
    write(tmp_path / "x.png")
    (tmp_path / "bad.png").write_bytes(b"")
    file = table(tmp_path, "path,label,who\ngone.png,b,2\nbad.png,a,3\nx.png,a,1\n")
    with pytest.raises(ValueError, match=r"(?s)Received: 2 paths.*gone\.png.*bad\.png"):
        ftk.read_image_table(file)
    images = ftk.read_image_table(file, on_error="skip", group="who")
    assert (len(images), images.class_names, len(images.skipped)) == (1, ("a",), 2)
    assert images.groups.tolist() == ["1"]
    assert "gone.png" in caplog.text
