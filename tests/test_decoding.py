"""Any file becomes the RGB pixels that a viewer shows; a broken file is named."""

from __future__ import annotations

import os
import struct
import unittest.mock
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import dicom, png, read_class_a, write
from PIL import Image, JpegImagePlugin, TiffImagePlugin


def first_pixel(folder) -> tuple[int, ...]:
    return tuple(read_class_a(folder).load(size=(8, 8))[0, 0, 0].tolist())


def test_sixteen_bit_pixels_are_scaled_not_clipped(tmp_path):
    write(tmp_path / "a" / "x.png", np.array([[0, 32768, 65535]] * 3, np.uint16))
    pixels = read_class_a(tmp_path).load(size=(3, 3))[0]
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


def with_sbit(png_bytes: bytes, bits: bytes) -> bytes:
    """The PNG file with a chunk that declares its significant bits."""
    chunk = b"sBIT" + bits
    packed = struct.pack(">I", len(bits)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png_bytes[:33] + packed + png_bytes[33:]  # behind the header


@pytest.mark.parametrize(
    ("values", "sbit", "expected"),
    [
        ([0, 2048, 4095], 12, [0, 128, 255]),
        ([0, 512, 1023], 10, [0, 128, 255]),
        ([0, 32768, 65535], 12, [0, 128, 255]),  # scaled to 16 bits, as the standard demands
        ([0, 32768, 65535], None, [0, 128, 255]),
        ([0, 100, 30000], None, [0, 0, 117]),  # the range of the type, not of the image
    ],
)
def test_gray_png_files_are_scaled_by_the_depth_they_declare(tmp_path, values, sbit, expected):
    file = write(tmp_path / "a" / "x.png", np.array([values] * 3, np.uint16))
    if sbit:
        file.write_bytes(with_sbit(file.read_bytes(), bytes([sbit])))
    assert read_class_a(tmp_path).load(size=(3, 3))[0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "values", "tags", "expected"),
    [
        (np.uint16, [0, 32768, 65535], {}, [0, 128, 255]),
        (np.uint16, [100, 600, 1100], {280: 100, 281: 1100}, [0, 128, 255]),
        (np.int32, [0, 2**30, 2**31 - 1], {}, [128, 191, 255]),
        (np.float32, [0.0, 0.5, 1.0], {}, [0, 128, 255]),
        (np.float32, [0.1, 0.2, 0.5], {}, [26, 51, 128]),  # not stretched
        (np.float32, [-1000.0, 0.0, 1000.0], {340: -1000.0, 341: 1000.0}, [0, 128, 255]),
    ],
)
def test_tiff_files_are_scaled_by_the_range_they_declare(tmp_path, dtype, values, tags, expected):
    (tmp_path / "a").mkdir()
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info.tagtype[tag] = 12 if dtype == np.float32 else 4  # double, or long
        info[tag] = value
    image = Image.fromarray(np.array([values] * 3, dtype))
    image.save(tmp_path / "a" / "x.tif", tiffinfo=info)
    shown = read_class_a(tmp_path).load(size=(3, 3))[0, 0, :, 0].astype(int)
    assert abs(shown - expected).max() <= 1


def test_what_cannot_be_scaled_is_an_error_and_what_is_dark_is_said(tmp_path):
    (tmp_path / "a").mkdir()
    floats = Image.fromarray(np.array([[0.0, 255.0]], np.float32))
    floats.save(tmp_path / "a" / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif.*floats must be from 0 to 1.*0 to 255"):
        read_class_a(tmp_path)
    (tmp_path / "a" / "x.tif").unlink()
    for i in range(3):
        write(tmp_path / "a" / f"{i}.png", np.array([[0, 4095]], np.uint16))
    with pytest.warns(
        UserWarning, match=r"3 images of more than 8 bits the values span at most 6\.2%.*sBIT"
    ):
        read_class_a(tmp_path)
    write(tmp_path / "a" / "bright.png", np.array([[0, 60000]], np.uint16))
    read_class_a(tmp_path)  # one that is bright shows that the others are dark


def test_a_turned_jpeg_is_decoded_at_a_sufficient_size(tmp_path, monkeypatch):
    """The decoder halves a JPEG as long as it stays larger than what is asked for."""
    asked = []
    draft = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile,
        "draft",
        lambda self, mode, size: asked.append(size) or draft(self, mode, size),
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "a" / "x.jpg", np.zeros((64, 320, 3), np.uint8), exif=exif)
    images = read_class_a(tmp_path)
    asked.clear()
    assert images.load(size=(160, 32)).shape == (1, 160, 32, 3)
    assert asked == [(160, 32)]  # width and height in the file


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
    assert first_pixel(tmp_path) == expected


def test_palette_images_get_their_colors(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "x.png")
    assert first_pixel(tmp_path) == (10, 20, 30)
    image.save(tmp_path / "a" / "x.png", transparency=1)
    assert first_pixel(tmp_path) == (255, 255, 255)


def test_cmyk_becomes_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a" / "x.jpg", quality=95)
    red, green, blue = first_pixel(tmp_path)
    assert red > 200
    assert max(green, blue) < 60


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # bright at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise: bright at the right
    write(tmp_path / "a" / "x.png", pixels, exif=exif)
    shown = read_class_a(tmp_path).load(size=(8, 8))[0, :, :, 0]
    assert (shown[:, 4:] == 255).all()
    assert (shown[:, :4] == 0).all()


def test_large_jpegs_are_resized_without_a_shift(tmp_path):
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    write(tmp_path / "a" / "x.jpg", np.repeat(np.tile(ramp, (1200, 1))[..., None], 3, 2))
    shown = read_class_a(tmp_path).load(size=(30, 40))[0, 15, :, 0].astype(int)
    assert abs(shown - (np.arange(40) + 0.5) / 40 * 255).max() < 4


@pytest.mark.parametrize("side", [150, 210, 350, 1000])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_downsizing_averages_fine_detail(tmp_path, side, suffix):
    """Antialiasing: a checkerboard of single pixels becomes gray, not another pattern."""
    board = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write(tmp_path / "a" / f"x.{suffix}", board)
    shown = read_class_a(tmp_path).load(size=(70, 70)).astype(int)
    assert abs(shown[0, 3:-3, 3:-3] - 127).max() < 45


def test_gray_and_color_images_are_resized_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    write(tmp_path / "a" / "gray.png", pixels)
    write(tmp_path / "a" / "rgb.png", np.stack([pixels] * 3, axis=-1))
    gray, rgb = read_class_a(tmp_path).load(size=(24, 24))
    assert np.array_equal(gray, rgb)


def test_the_first_frame_of_an_animation_is_decoded(tmp_path):
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (50, 200)]
    for suffix in ("gif", "png", "webp", "tiff"):
        folder = tmp_path / suffix / "a"
        folder.mkdir(parents=True)
        frames[0].save(folder / f"x.{suffix}", save_all=True, append_images=frames[1:])
        assert abs(first_pixel(tmp_path / suffix)[0] - 50) <= 2


def test_the_content_of_a_file_counts_not_its_suffix(tmp_path):
    dicom(tmp_path / "a" / "x.dcm", np.arange(64).reshape(8, 8), bits=8).rename(
        tmp_path / "a" / "x.png"
    )
    write(tmp_path / "a" / "y.png").rename(tmp_path / "a" / "y.dcm")
    shown = read_class_a(tmp_path).load(size=(8, 8))
    assert shown[0, :, :, 0].ravel().tolist() == [*range(64)]
    assert (shown[1] == 120).all()


def test_a_file_that_breaks_after_it_was_read_is_named_by_load(tmp_path):
    rng = np.random.default_rng(0)
    file = write(tmp_path / "a" / "cut.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    write(tmp_path / "a" / "good.png")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png"):
        read_class_a(tmp_path)
    images = read_class_a(tmp_path, on_error="skip")
    assert len(images) == 1
    (tmp_path / "a" / "good.png").write_bytes(b"changed since")
    with pytest.raises(ValueError, match=r"can be decoded.*good\.png"):
        images.load()
    (tmp_path / "a" / "good.png").unlink()
    with pytest.raises(ValueError, match=r"must exist.*good\.png', which no longer exists"):
        images.load()
    with pytest.raises(ValueError, match=r"good\.png"):
        images.digests()


def test_all_hostile_files_are_named_in_one_error(tmp_path, monkeypatch):
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
    dicom(folder / "bomb.dcm", np.zeros((200, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    (folder / "nowhere.png").symlink_to(tmp_path / "not there.png")
    os.mkfifo(folder / "pipe.png")
    good = ["a b.png", "ü 猫.png", "two\nlines.png", "really a jpeg.png"]
    for name in good[:3]:
        write(folder / name)
    write(folder / "x.jpg").rename(folder / good[3])
    with pytest.raises(ValueError, match="Received: 8 paths that cannot be read") as caught:
        read_class_a(tmp_path)
    for name in [*bad, "bomb.png", "bomb.dcm", "nowhere.png", "pipe.png"]:
        assert name in str(caught.value)
    images = read_class_a(tmp_path, on_error="skip")
    assert sorted(os.path.basename(path) for path in images.paths) == sorted(good)
    assert images.load(size=(8, 8)).shape == (4, 8, 8, 3)
    for name in good:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="At least one image file"):
        read_class_a(tmp_path, on_error="skip")


def test_decompression_bombs_are_rejected_before_they_are_decoded(tmp_path):
    """A header that claims 4 exapixels, and text chunks that expand to 50 MB."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    def png_of(width, height, *extra):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress(bytes(72)))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")

    bomb = zlib.compress(bytes(50_000_000), 9)
    write(tmp_path / "a" / "good.png")
    bad = {
        "wide.png": png_of(2**31 - 1, 2**31 - 1),
        "none.png": png_of(0, 0),
        "text.png": png_of(8, 8, chunk(b"zTXt", b"k\0\0" + bomb)),
        "profile.png": png_of(8, 8, chunk(b"iCCP", b"k\0\0" + bomb)),
    }
    for name, content in bad.items():
        (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(ValueError, match="Received: 4 paths") as caught:
        read_class_a(tmp_path)
    assert all(name in str(caught.value) for name in bad)


def test_deflated_dicom_files_are_rejected(tmp_path):
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = dicom(tmp_path / "a" / "x.dcm", np.zeros((8, 8)))
    data = dcmread(file)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(file)
    with pytest.raises(ValueError, match="deflated DICOM"):
        read_class_a(tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"BitsStored": 11}, [0, 125, 249]),  # without a window: the range of the stored bits
        ({"BitsStored": 11, "RescaleSlope": 2, "RescaleIntercept": -9}, [0, 125, 249]),
        ({"BitsStored": 11, "photometric": "MONOCHROME1"}, [255, 130, 6]),
        ({"BitsStored": 11, "PixelPaddingValue": 2000}, [0, 125, 0]),
        ({"BitsStored": 11, "PixelPaddingValue": 2000, "photometric": "MONOCHROME1"},
         [255, 130, 0]),
        ({"WindowCenter": 1000, "WindowWidth": 2001}, [0, 128, 255]),
        ({"WindowCenter": 2000, "WindowWidth": 4001}, [0, 64, 128]),  # not stretched to its ends
        ({"WindowCenter": 500, "WindowWidth": 1001}, [0, 255, 255]),
        ({"WindowCenter": 0, "WindowWidth": 2001, "RescaleSlope": 1, "RescaleIntercept": -1000},
         [0, 128, 255]),
        ({"WindowCenter": 2000, "WindowWidth": 4001, "photometric": "MONOCHROME1"},
         [255, 191, 127]),
    ],
)  # fmt: skip
def test_dicom_files_are_decoded_as_a_viewer_shows_them(tmp_path, options, expected):
    pixels = np.repeat(np.array([[0, 1000, 2000]]), 3, axis=0)
    dicom(tmp_path / "a" / "x.dcm", pixels, **options)
    shown = read_class_a(tmp_path).load(size=(3, 3))[0, 0]
    assert (shown[:, 0] == shown[:, 2]).all()
    assert abs(shown[:, 0].astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_randomly_damaged_files_are_named_or_decoded(tmp_path):
    """2,000 files with bytes changed or lost: no crash, and each is either read or named."""
    rng = np.random.default_rng(0)
    seeds = []
    for suffix, options in [("png", {}), ("jpg", {}), ("gif", {}), ("bmp", {}), ("webp", {}),
                            ("tiff", {}), ("tiff", {"compression": "tiff_lzw"})]:  # fmt: skip
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        file = write(tmp_path / f"seed.{suffix}", pixels, **options)
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
        warnings.simplefilter("ignore")  # Pillow warns of broken TIFF tags
        with pytest.raises(ValueError, match="cannot be read") as caught:
            read_class_a(tmp_path / "all")
        images = read_class_a(tmp_path / "all", on_error="skip")
        assert 100 < len(images) < 1900
        assert images.load(size=(8, 8)).shape == (len(images), 8, 8, 3)
    named = str(caught.value).count("\n")
    assert named == 2000 - len(images) == len(images.skipped)


def with_pillow_alone(folder, **options):
    """Read and load without the extra `fast`."""
    with unittest.mock.patch("finetune_kit._data.decoding._FAST", False):
        images = read_class_a(folder, **options)
        return images, images.load(size=(8, 8))


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.sampled_from([(), (2,), (3,), (4,)]),
    smooth=st.booleans(),
    orientation=st.sampled_from([None, None, 1, 3, 6]),
    comments=st.booleans(),
    level=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_the_fast_png_decoder_gives_the_same_pixels(
    tmp_path_factory, shape, channels, smooth, orientation, comments, level, seed
):
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, *channels), np.uint8)
    if smooth:  # the encoder then chooses other filters
        pixels = np.cumsum(pixels % 3, axis=1, dtype=np.uint8)
    folder = tmp_path_factory.mktemp("png")
    (folder / "a").mkdir()
    content = png(pixels, orientation=orientation, comments=comments, compress_level=level)
    (folder / "a" / "x.png").write_bytes(content)
    assert np.array_equal(read_class_a(folder).load(size=(8, 8)), with_pillow_alone(folder)[1])


def test_the_fast_png_decoder_is_used_and_leaves_no_file_open(tmp_path):
    """Otherwise the tests beside this one would compare Pillow with itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8), np.uint8)
    write(tmp_path / "a" / "x.png", pixels)
    with unittest.mock.patch("PIL.PngImagePlugin.PngImageFile.load", side_effect=AssertionError):
        shown = read_class_a(tmp_path).load(size=(9, 8))[0]
    assert np.array_equal(shown, np.stack([pixels] * 3, axis=-1))


def test_the_fast_png_decoder_rejects_the_same_damaged_files(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(0, 3, (16, 16, 3)), axis=1).astype(np.uint8)
    seeds = [png(smooth), png(smooth[..., 0], comments=True), png(smooth, orientation=6)]
    (tmp_path / "a").mkdir()
    for n in range(300):
        data = bytearray(seeds[n % 3])
        if n % 10:
            data[rng.integers(8, len(data))] = rng.integers(256)
        if n % 5 == 0:
            del data[rng.integers(len(data)) :]
        (tmp_path / "a" / f"{n}.png").write_bytes(bytes(data))
    images = read_class_a(tmp_path, on_error="skip")
    by_pillow, pixels = with_pillow_alone(tmp_path, on_error="skip")
    assert 20 < len(images) < 280
    assert images.paths == by_pillow.paths
    assert images.skipped == by_pillow.skipped
    assert np.array_equal(images.load(size=(8, 8)), pixels)
