"""From folders and arrays to pixels: what is a sample, and that any file becomes right RGB."""

from __future__ import annotations

import io
import os
import struct
import unittest.mock
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import finetune_kit as ftk


def write(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8, 3), 120, np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **options)
    return path


def one(path) -> np.ndarray:
    """The first pixel of the only image below a folder."""
    return ftk.read_image_folder(path).load(size=(8, 8))[0, 0, 0]


@pytest.fixture
def database(tmp_path):
    """The layout of the COVID-19 Radiography Database, masks and tables included."""
    for name in ("Viral Pneumonia", "COVID", "Normal"):
        for n in (1, 2, 10):
            write(tmp_path / name / "images" / f"{name}-{n}.png")
            write(tmp_path / name / "masks" / f"{name}-{n}.png")
        (tmp_path / f"{name}.metadata.xlsx").write_bytes(b"table")
    (tmp_path / "README.md.txt").write_text("read me")
    (tmp_path / ".DS_Store").write_bytes(b"")
    return tmp_path


def test_masks_and_tables_are_never_samples(database):
    images = ftk.read_image_folder(database)
    assert len(images) == 9
    assert not any("/masks/" in path for path in images.paths)
    assert images.class_names == ("COVID", "Normal", "Viral Pneumonia")
    assert np.bincount(images.labels).tolist() == [3, 3, 3]


def test_what_was_skipped_is_said_once(database, caplog):
    images = ftk.read_image_folder(database)
    assert len(images.skipped) == 3 + 3 + 1  # folders of masks, tables, the read-me
    assert len(caplog.records) == 1
    assert "9 images" in caplog.text
    assert "masks" in caplog.text
    images.load(size=(8, 8))
    assert len(caplog.records) == 1


def test_a_folder_of_class_folders_is_read(tmp_path, caplog):
    for suffix in ("jpg", "PNG", "bmp", "tiff", "webp", "gif", "jpeg"):
        write(tmp_path / "a" / f"x.{suffix}")
    write(tmp_path / "b" / "y z ü.png")
    images = ftk.read_image_folder(str(tmp_path))
    assert (len(images), images.class_names, images.skipped) == (8, ("a", "b"), ())
    assert not caplog.records
    assert abs(images.load().astype(int) - 120).max() <= 3


def test_the_real_database_is_read(xrays):
    images = ftk.read_image_folder(xrays)
    assert dict(zip(images.class_names, np.bincount(images.labels), strict=True)) == {
        "COVID": 904, "Normal": 2548, "Viral Pneumonia": 336}  # fmt: skip
    pixels = images.load([0, 3787])
    assert (pixels.shape, pixels.dtype) == ((2, 224, 224, 3), np.uint8)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_groups_come_from_relative_paths(database):
    images = ftk.read_image_folder(database, groups=lambda path: path.split("-")[-1])
    assert images.groups.tolist() == [0, 1, 2] * 3
    assert images.paths[1].endswith("COVID-10.png")


GRAY16 = np.array([[0, 32768, 65535]] * 3, np.uint16)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    write(tmp_path / "a" / "x.png", GRAY16)
    pixels = ftk.read_image_folder(tmp_path).load(size=(3, 3))[0]
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (9, 99, 200), (9, 99, 200)),
        ("RGBA", (9, 99, 200, 255), (9, 99, 200)),
        ("RGBA", (9, 99, 200, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (50, 255), (50, 50, 50)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    (tmp_path / "a").mkdir()
    Image.new(mode, (8, 8), value).save(tmp_path / "a" / "x.png")
    assert tuple(one(tmp_path)) == expected


def test_palettes_become_their_colours(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "x.png")
    assert tuple(one(tmp_path)) == (10, 20, 30)
    image.save(tmp_path / "a" / "x.png", transparency=1)
    assert tuple(one(tmp_path)) == (255, 255, 255)


def test_cmyk_becomes_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a" / "x.jpg", quality=95)
    red, green, blue = one(tmp_path)
    assert red > 200
    assert max(green, blue) < 60


def test_the_exif_orientation_is_respected(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: bright at the right
    write(tmp_path / "a" / "x.png", pixels, exif=exif)
    shown = ftk.read_image_folder(tmp_path).load(size=(8, 8))[0, :, :, 0]
    assert (shown[:, 4:] == 255).all()
    assert (shown[:, :4] == 0).all()


def test_large_jpegs_are_resized_as_small_ones_are(tmp_path):
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    write(tmp_path / "a" / "x.jpg", np.repeat(np.tile(ramp, (1200, 1))[..., None], 3, 2))
    shown = ftk.read_image_folder(tmp_path).load(size=(30, 40))[0, 15, :, 0].astype(int)
    assert abs(shown - (np.arange(40) + 0.5) / 40 * 255).max() < 4


@pytest.mark.parametrize("side", [150, 210, 350, 1000])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_detail_too_fine_for_the_size_becomes_gray(tmp_path, side, suffix):
    """Antialiasing: a checkerboard of single pixels is no pattern when it is small."""
    board = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write(tmp_path / "a" / f"x.{suffix}", board)
    shown = ftk.read_image_folder(tmp_path).load(size=(70, 70)).astype(int)
    assert abs(shown[0, 3:-3, 3:-3] - 127).max() < 45


def test_what_load_cannot_load_is_said(tiny_images):
    with pytest.raises(ValueError, match="`size` must be height and width"):
        tiny_images.load([0], 224)
    with pytest.raises(ValueError, match="from 0 to 23"):
        tiny_images.load([24])


def test_pixels_and_labels_that_look_wrong_are_warned_of():
    x = np.full((3, 4, 4, 3), 9, np.uint8)
    with pytest.warns(UserWarning, match="none above 1"):
        ftk.ImageSet.from_arrays(x // 255, ["a", "b", "a"])
    with pytest.warns(UserWarning, match=r"one-hot, pass labels\.argmax"):
        ftk.ImageSet.from_arrays(x, np.eye(2, dtype=int)[[0, 1, 0]])
    ftk.ImageSet.from_arrays(x, [[0, 1], [1, 1], [0, 0]])


def test_parts_without_classes_are_no_classes(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "1.png", np.zeros((8, 8), np.uint8))
    with pytest.warns(UserWarning, match="read each part by itself"):
        ftk.read_image_folder(tmp_path)


def test_a_folder_of_parts_is_no_folder_of_classes(tmp_path):
    write(tmp_path / "train" / "cat" / "1.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="read each part by itself"):
        ftk.read_image_folder(tmp_path)


def test_load_keeps_the_order_that_was_asked_for(tiny_images):
    both = tiny_images.load([5, 2], size=(32, 32))
    assert np.array_equal(both[0], tiny_images.load([5], size=(32, 32))[0])
    assert np.array_equal(both[1], tiny_images.load([2], size=(32, 32))[0])
    assert tiny_images.load([], size=(4, 6)).shape == (0, 4, 6, 3)


def test_arrays_take_labels_as_names_or_indices():
    x = np.full((3, 4, 4), 9, np.uint8)
    by_name = ftk.ImageSet.from_arrays(x, ["b", "a", "b"])
    by_index = ftk.ImageSet.from_arrays(x, [1, 0, 1], ["a", "b"], groups=["p", "q", "p"])
    assert by_name.class_names == by_index.class_names == ("a", "b")
    assert by_name.labels.tolist() == by_index.labels.tolist() == [1, 0, 1]
    assert by_index.groups.tolist() == [0, 1, 0]
    assert ftk.ImageSet.from_arrays(x, [7, 9, 7]).class_names == ("7", "9")


@pytest.mark.parametrize(
    ("x", "labels", "names", "says"),
    [
        (
            np.full((2, 4, 4, 3), 0.5),
            [0, 1],
            None,
            r"\(x \* 255\)\.round.*float64, from 0.5 to 0.5",
        ),
        (np.full((2, 4, 4, 3), 170.0), [0, 1], None, r"pass x\.round\(\)\.astype\('uint8'\)"),
        (np.full((2, 4, 4, 3), -1.0), [0, 1], None, "scale them to that range"),
        (np.zeros((2, 4, 4, 4), np.uint8), [0, 1], None, "shape"),
        (np.full((2, 4, 4, 3), 9, np.uint8), [0], None, "one for each of the 2 images"),
        (np.full((2, 4, 4, 3), 9, np.uint8), [0, 5], ["a", "b"], r"Received: \[5\]"),
        (np.full((2, 4, 4, 3), 9, np.uint8), ["a", "c"], ["a", "b"], r"Received: \['c'\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x, labels, names, says):
    with pytest.raises(ValueError, match=says):
        ftk.ImageSet.from_arrays(x, labels, names)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist"):
        ftk.read_image_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is a file"):
        ftk.read_image_folder(write(tmp_path / "x.png"))


def test_a_folder_without_class_folders_is_refused(tmp_path, database):
    with pytest.raises(ValueError, match="one folder a class"):
        ftk.read_image_folder(database / "COVID" / "images")
    with pytest.raises(ValueError, match="one folder a class"):
        ftk.read_image_folder(database / "COVID")


def test_unreadable_files_are_all_named_or_skipped(database):
    (database / "COVID" / "images" / "bad 1.png").write_text("<html>")
    (database / "Normal" / "images" / "bad 2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)Received 2 .*bad 1\.png.*bad 2\.png"):
        ftk.read_image_folder(database)
    images = ftk.read_image_folder(database, on_error="skip")
    assert len(images) == 9
    assert sum("bad" in path for path in images.skipped) == 2


def test_a_file_cut_short_is_named(tmp_path):
    rng = np.random.default_rng(0)
    file = write(tmp_path / "a" / "cut.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    write(tmp_path / "a" / "good.png")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png"):
        ftk.read_image_folder(tmp_path)
    images = ftk.read_image_folder(tmp_path, on_error="skip")
    assert len(images) == 1
    (tmp_path / "a" / "good.png").write_bytes(b"changed since")
    with pytest.raises(ValueError, match=r"good\.png"):
        images.load()


def test_hostile_files_are_all_named(tmp_path, monkeypatch):
    """One error tells of every bad file; the good ones among them are read."""
    folder = tmp_path / "a"
    bad = {
        "empty.png": b"",
        "page.png": b"<html><script>alert(1)</script></html>",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    }
    write(folder / "cut.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    bad["cut.jpg"] = (folder / "cut.jpg").read_bytes()[:1500]
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    write(folder / "bomb.png", np.zeros((200, 200), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    (folder / "nowhere.png").symlink_to(tmp_path / "not there.png")
    os.mkfifo(folder / "pipe.png")
    good = ["a b.png", "ü 猫.png", "two\nlines.png", "really a jpeg.png"]
    for name in good[:3]:
        write(folder / name)
    write(folder / "x.jpg").rename(folder / good[3])
    with pytest.raises(ValueError, match="Received 7 that are not") as caught:
        ftk.read_image_folder(tmp_path)
    for name in [*bad, "bomb.png", "nowhere.png", "pipe.png"]:
        assert name in str(caught.value)
    images = ftk.read_image_folder(tmp_path, on_error="skip")
    assert sorted(os.path.basename(path) for path in images.paths) == sorted(good)
    assert images.load(size=(8, 8)).shape == (4, 8, 8, 3)
    for name in good:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="At least one image file"):
        ftk.read_image_folder(tmp_path, on_error="skip")


def test_links_that_lead_round_end(tmp_path):
    write(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "images").symlink_to(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path)
    images = ftk.read_image_folder(tmp_path)
    assert images.class_names == ("a",)
    assert len(images) == 2  # once by each way


def test_folders_that_cannot_be_read_are_named_with_the_files(database, monkeypatch):
    """As root one may read anything, so the system's answer is played."""
    (database / "Normal" / "images" / "bad.png").write_bytes(b"")
    listed = Path.iterdir

    def closed(folder):
        if folder.name == "COVID":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(ValueError, match=r"(?s)Received 2 .*bad\.png.*COVID.*Permission denied"):
        ftk.read_image_folder(database)
    images = ftk.read_image_folder(database, on_error="skip")
    assert images.class_names == ("Normal", "Viral Pneumonia")
    assert str(database / "COVID") in images.skipped


def test_a_class_folder_that_is_a_file_is_skipped_and_told(database, caplog):
    (database / "Extra\nclass").write_text("no folder")
    images = ftk.read_image_folder(database)
    assert len(images.class_names) == 3
    assert str(database / "Extra\nclass") in images.skipped
    assert "Extra\n" not in caplog.text.replace("Extra\\n", "")


def test_absurd_sizes_are_refused_before_they_are_decoded(tmp_path):
    """A header that promises 4 exapixels, and bombs in chunks of text."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def png(width, height, *extra):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        pixels = chunk(b"IDAT", zlib.compress(bytes(72)))
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + b"".join(extra)
            + pixels
            + chunk(b"IEND", b"")
        )

    bomb = zlib.compress(bytes(50_000_000), 9)
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "good.png")
    bad = {
        "wide.png": png(2**31 - 1, 2**31 - 1),
        "none.png": png(0, 0),
        "text.png": png(8, 8, chunk(b"zTXt", b"k\0\0" + bomb)),
        "profile.png": png(8, 8, chunk(b"iCCP", b"k\0\0" + bomb)),
    }
    for name, content in bad.items():
        (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(ValueError, match="Received 4 that are not") as caught:
        ftk.read_image_folder(tmp_path)
    assert all(name in str(caught.value) for name in bad)


def test_of_moving_pictures_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (50, 200)]
    for suffix in ("gif", "png", "webp", "tiff"):
        folder = tmp_path / suffix / "a"
        folder.mkdir(parents=True)
        frames[0].save(folder / f"x.{suffix}", save_all=True, append_images=frames[1:])
        assert abs(one(tmp_path / suffix).astype(int) - 50).max() <= 2


def test_what_a_file_holds_decides_not_its_name(tmp_path):
    dicom(tmp_path / "a" / "x.dcm", np.arange(64).reshape(8, 8)).rename(tmp_path / "a" / "x.png")
    write(tmp_path / "a" / "y.png").rename(tmp_path / "a" / "y.dcm")
    assert ftk.read_image_folder(tmp_path).load(size=(8, 8)).shape == (2, 8, 8, 3)


def test_deflated_dicom_is_refused(tmp_path):
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = dicom(tmp_path / "a" / "x.dcm", np.zeros((8, 8)))
    data = dcmread(file)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(file)
    with pytest.raises(ValueError, match="deflated DICOM"):
        ftk.read_image_folder(tmp_path)


def test_gray_and_colour_are_resized_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    write(tmp_path / "a" / "gray.png", pixels)
    write(tmp_path / "a" / "rgb.png", np.stack([pixels] * 3, axis=-1))
    gray, rgb = ftk.read_image_folder(tmp_path).load(size=(24, 24))
    assert np.array_equal(gray, rgb)


def test_an_image_set_takes_labels_as_names():
    images = ftk.ImageSet(("x", "y"), ["ill", "well"], ("well", "ill"), groups=["p", "p"])
    assert (images.labels.tolist(), images.groups.tolist()) == ([1, 0], [0, 0])
    with pytest.raises(ValueError, match="among the classes"):
        ftk.ImageSet(("x",), ["old"], ("well", "ill"))
    x = np.full((2, 4, 4), 9, np.uint8)
    with pytest.raises(ValueError, match="no gaps"):
        ftk.ImageSet.from_arrays(x, ["a", None])
    for groups in ([None, "p"], [("p", 1), ("p", 2)]):
        with pytest.raises(ValueError, match="one value for each image"):
            ftk.ImageSet.from_arrays(x, ["a", "b"], groups=groups)


@pytest.mark.slow
def test_mutated_files_are_named_or_read(tmp_path):
    """2,000 files with random bytes changed, lost or added: no crash, and what is bad is named."""
    rng = np.random.default_rng(0)
    seeds = []
    for suffix, options in [("png", {}), ("jpg", {}), ("gif", {}), ("bmp", {}), ("webp", {}),
                            ("tiff", {}), ("tiff", {"compression": "tiff_lzw"})]:  # fmt: skip
        file = write(tmp_path / f"seed.{suffix}", rng.integers(0, 256, (16, 16, 3), np.uint8),
                     **options)  # fmt: skip
        seeds.append((suffix, file.read_bytes()))
    seeds.append(("dcm", dicom(tmp_path / "seed.dcm", np.arange(64).reshape(8, 8)).read_bytes()))
    (tmp_path / "all" / "a").mkdir(parents=True)
    for n in range(2000):
        suffix, content = seeds[n % len(seeds)]
        data = bytearray(content)
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] = rng.integers(256)
        if n % 5 == 0:
            del data[rng.integers(len(data)) :]
        (tmp_path / "all" / "a" / f"{n}.{suffix}").write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on broken TIFF tags
        with pytest.raises(ValueError, match="that are not") as caught:
            ftk.read_image_folder(tmp_path / "all")
        images = ftk.read_image_folder(tmp_path / "all", on_error="skip")
        assert 100 < len(images) < 1900
        assert images.load(size=(8, 8)).shape == (len(images), 8, 8, 3)
    named = str(caught.value).count("\n")
    assert named == 2000 - len(images) == len(images.skipped)


def only_pillow(folder, **options):
    """What is read without the extra `fast`."""
    with unittest.mock.patch("finetune_kit._data.decoding._FAST", False):
        images = ftk.read_image_folder(folder, **options)
        return images, images.load(size=(8, 8))


def png(pixels, *, orientation=None, told=False, **options):
    """The bytes of a PNG, with chunks that do or do not matter to how it looks."""
    info = PngImagePlugin.PngInfo()
    if told:
        info.add_text("Software", "IDAT eXif")
        info.add(b"gAMA", (45455).to_bytes(4))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png", pnginfo=info, exif=exif, **options)
    return content.getvalue()


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    colours=st.sampled_from([(), (2,), (3,), (4,)]),
    smooth=st.booleans(),
    orientation=st.sampled_from([None, None, 1, 3, 6]),
    told=st.booleans(),
    level=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_the_faster_way_to_decode_pngs_changes_no_pixel(
    tmp_path_factory, shape, colours, smooth, orientation, told, level, seed
):
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, *colours), np.uint8)
    if smooth:  # so that the encoder chooses other filters
        pixels = np.cumsum(pixels % 3, axis=1, dtype=np.uint8)
    folder = tmp_path_factory.mktemp("png")
    (folder / "a").mkdir()
    content = png(pixels, orientation=orientation, told=told, compress_level=level)
    (folder / "a" / "x.png").write_bytes(content)
    assert np.array_equal(ftk.read_image_folder(folder).load(size=(8, 8)), only_pillow(folder)[1])


def test_the_faster_way_is_taken_and_leaves_no_file_open(tmp_path):
    """Unless it were, the tests above would compare Pillow with itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8), np.uint8)
    write(tmp_path / "a" / "x.png", pixels)
    with unittest.mock.patch("PIL.PngImagePlugin.PngImageFile.load", side_effect=AssertionError):
        images = ftk.read_image_folder(tmp_path)
        shown = images.load(size=(9, 8))[0]
    assert np.array_equal(shown, np.stack([pixels] * 3, axis=-1))


def test_the_faster_way_refuses_the_same_damaged_pngs(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(0, 3, (16, 16, 3)), axis=1).astype(np.uint8)
    seeds = [png(smooth), png(smooth[..., 0], told=True), png(smooth, orientation=6)]
    (tmp_path / "a").mkdir()
    for n in range(300):
        data = bytearray(seeds[n % 3])
        if n % 10:
            data[rng.integers(8, len(data))] = rng.integers(256)
        if n % 5 == 0:
            del data[rng.integers(len(data)) :]
        (tmp_path / "a" / f"{n}.png").write_bytes(bytes(data))
    images = ftk.read_image_folder(tmp_path, on_error="skip")
    slowly, pixels = only_pillow(tmp_path, on_error="skip")
    assert 20 < len(images) < 280
    assert images.paths == slowly.paths
    assert images.skipped == slowly.skipped
    assert np.array_equal(images.load(size=(8, 8)), pixels)


def dicom(path, pixels, *, photometric="MONOCHROME2", bits=16, **elements):
    """A DICOM file of gray pixels."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, photometric
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation = bits - 1, 0
    data.PixelData = pixels.astype(np.uint16 if bits == 16 else np.uint8).tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 128, 255]),  # no window: from the least to the most
        ({"photometric": "MONOCHROME1"}, [255, 127, 0]),
        ({"WindowCenter": 1000, "WindowWidth": 2001}, [0, 128, 255]),
        ({"WindowCenter": 2000, "WindowWidth": 4001}, [0, 64, 128]),  # not reached: not stretched
        ({"WindowCenter": 500, "WindowWidth": 1001}, [0, 255, 255]),
        ({"WindowCenter": 0, "WindowWidth": 2001, "RescaleSlope": 1, "RescaleIntercept": -1000},
         [0, 128, 255]),
        ({"WindowCenter": 2000, "WindowWidth": 4001, "photometric": "MONOCHROME1"},
         [255, 191, 127]),
    ],
)  # fmt: skip
def test_dicom_is_shown_as_on_a_screen(tmp_path, options, expected):
    pixels = np.repeat(np.array([[0, 1000, 2000]]), 3, axis=0)
    dicom(tmp_path / "a" / "x.dcm", pixels, **options)
    shown = ftk.read_image_folder(tmp_path).load(size=(3, 3))[0, 0]
    assert (shown[:, 0] == shown[:, 2]).all()
    assert abs(shown[:, 0].astype(int) - expected).max() <= 1


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_tells_paths_labels_and_groups(tmp_path):
    for name in ("x.png", "y.png", "z 1.png"):
        write(tmp_path / "files" / name)
    file = table(
        tmp_path / "t.csv", "file,who,what\nx.png,p1,ill\nz 1.png,p2,healthy\ny.png,p1,ill"
    )
    images = ftk.read_image_table(
        file, path="file", label="what", group="who", root=tmp_path / "files"
    )
    assert images.class_names == ("healthy", "ill")
    assert images.labels.tolist() == [1, 0, 1]
    assert images.groups.tolist() == [0, 1, 0]
    assert images.load(size=(8, 8)).shape == (3, 8, 8, 3)


def test_a_table_may_have_several_labels(tmp_path):
    for name in "xy":
        write(tmp_path / f"{name}.png")
    file = table(tmp_path / "t.csv", "path,mass,fluid\nx.png,1,0\ny.png,1,1\n")
    images = ftk.read_image_table(file, label=("mass", "fluid"))
    assert images.labels.tolist() == [[1, 0], [1, 1]]
    assert repr(images) == "ImageSet(2 images; multi-label; mass: 2, fluid: 1)"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\nx.png,a", r"columns \['path', 'label'\]"),
        ("path,label\n", "which has none"),
        ("path,label\nx.png,", r"line \[2\] lacks"),
        ("path,label\n\n\nx.png,", r"line \[4\] lacks"),
        ("path,label\n" + "a" * 200_000, "field larger"),
        ("path,label\nx.png,a\na/../x.png,b", "each image once"),
        ("path,label\nx.png,a\nx.png,b", "each image once"),
        ("path,label\nx.png,a\ngone.png,b", r"gone\.png"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, text, says):
    write(tmp_path / "x.png")
    with pytest.raises(ValueError, match=says):
        ftk.read_image_table(table(tmp_path / "t.csv", text))
    with pytest.raises(FileNotFoundError, match="must be a CSV file"):
        ftk.read_image_table(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("labels", "names"), [([[0, 2]] * 4, None), ([[0, 1]] * 4, ["a"]), (np.zeros((4, 0)), None)]
)
def test_a_matrix_of_labels_must_be_0_and_1(labels, names):
    with pytest.raises(ValueError, match="0 or 1"):
        ftk.ImageSet.from_arrays(np.full((4, 8, 8), 9, np.uint8), labels, names)


def test_bad_rows_of_a_table_are_skipped_and_told(tmp_path, caplog):
    write(tmp_path / "x.png")
    (tmp_path / "bad.png").write_bytes(b"")
    file = table(tmp_path / "t.csv", "path,label\nx.png,a\ngone.png,b\nbad.png,a\n")
    with pytest.raises(ValueError, match=r"(?s)Received 2 .*gone\.png.*bad\.png"):
        ftk.read_image_table(file)
    images = ftk.read_image_table(file, on_error="skip")
    assert (len(images), images.class_names, len(images.skipped)) == (1, ("a",), 2)
    assert "gone.png" in caplog.text
