"""Decoding of image files to 8-bit RGB pixels.

Pillow reads pictures of any mode and depth; pydicom (the extra `dicom`) reads DICOM files. A broken
or malicious file raises a single `ValueError`, and never exhausts the memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401 - the import registers the format
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 - likewise
)
from PIL import __version__ as pillow
from PIL.PngImagePlugin import PngImageFile

from finetune_kit._buckets import RemoteError
from finetune_kit._data.depth import (
    File,
    check_area,
    check_colors,
    is_deep,
    shallow,
    used_share,
    value_range,
)
from finetune_kit._data.dicom import dicom_image
from finetune_kit._data.paths import content_of, first_bytes, member_of
from finetune_kit._urls import is_url

PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jxl", ".png"}
    | {".tif", ".tiff", ".webp"}
)
DICOM = frozenset({".dcm", ".dicom"})
SUFFIXES = PICTURES | DICOM

# Only the formats of these suffixes: some of Pillow's other formats start external programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# Formats that not every Pillow reads: the package that adds each, and its module.
_ADDED = {
    "AVIF": ("pillow>=11.3", "PIL.AvifImagePlugin"),
    "HEIF": ("pillow-heif", "pillow_heif"),
    "JXL": ("pillow-jxl-plugin", "pillow_jxl"),
}
# How the content of each format begins: offset, bytes, format.
_BEGINNINGS = (
    (128, b"DICM", "DICOM"),  # what is in front of it may begin as a TIFF file
    (0, b"\xff\xd8\xff", "JPEG"),
    *((0, start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, b"\x89PNG\r\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"\xff\x0a", "JXL"),
    (4, b"JXL \r\n", "JXL"),
    *((4, b"ftyp" + brand, "AVIF") for brand in (b"avif", b"avis")),
    *((4, b"ftyp" + brand, "HEIF") for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
)

_FAST = importlib.util.find_spec("kornia_rs") is not None
_FAST_BYTES = (
    64 << 20
)  # kornia-rs needs the whole file in memory; Pillow reads larger ones in parts
_ORIENTATION = 0x0112  # EXIF tag: 5 to 8 are turned by 90 degrees
# Where Pillow looks for an orientation.
_ORIENTED = re.compile(rb"eXIf|Raw profile type|XML:com\.adobe\.xmp")

# How a file becomes pixels. It is part of the key of all cached results that depend on pixels.
DECODING = {"colors": "RGB", "resize": "bilinear, antialiased", "pillow": pillow, "version": 5}


def decode(file: File, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode and resize a file, or its content, to RGB pixels `(height, width, 3)`."""
    try:
        content = _in_memory(file)
        with _opened(content) as image:
            # A JPEG can be decoded at a half, a quarter or an eighth of its size, by averaging.
            turned = image.getexif().get(_ORIENTATION, 1) > 4  # height and width change places
            image.draft(None, size if turned else (size[1], size[0]))
            return resize(upright(image, content), size)
    except RemoteError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise undecodable(file, error) from error


def decode_original(file: File) -> NDArray[np.uint8]:
    """Decode a file, or its content, to RGB pixels in its original size."""
    try:
        content = _in_memory(file)
        with _opened(content) as image:
            return _three_channels(upright(image, content))
    except RemoteError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise undecodable(file, error) from error


def decode_image(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Convert and resize an image that Pillow has opened or made. It is not changed."""
    check_area(*image.size)
    return resize(upright(image.copy(), b""), size)  # a copy keeps no file


def decode_stream(stream: IO[bytes], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode and resize the content of an open binary file."""
    return decode(stream.read(), size)


def inspected(file: str | os.PathLike[str]) -> tuple[str, float | None]:
    """Return why a file cannot be decoded, or an empty text; and which share of its range it uses.

    The share is None for images of 8 bits.
    """
    try:
        content = _in_memory(file)
        with _opened(content) as image:
            image.draft(None, (1, 1))  # reads all of a JPEG, but computes few of its pixels
            share = used_share(image, content)
            upright(image, content)
            return "", share
    except RemoteError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        return reason(error), None


def undecodable(file: File, error: Exception) -> ValueError:
    """Return the error to raise for a file that cannot be read or decoded."""
    if isinstance(file, bytes):
        name, there = f"{len(file):,} bytes", True
    else:
        name, there = repr(os.fspath(file)), os.path.lexists(file) or member_of(file) is not None
        there = there or (is_url(file) and not isinstance(error, FileNotFoundError))
    if not there:
        return ValueError(
            "Each image must exist as long as its set is used; read the images again. "
            f"Received: {name}, which no longer exists"
        )
    return ValueError(
        "Each image must be a file that can be decoded; remove it or repair it. "
        f"Received: {name}, which {reason(error)}"
    )


def _in_memory(file: File) -> File:
    """Return the content of a file in a zip archive or a bucket, and any other file as it is."""
    content = None if isinstance(file, bytes) else content_of(file)
    return file if content is None else content


def resize(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image to RGB pixels `(height, width, 3)`.

    An image of more than twice the size is first reduced by a whole factor, by averaging, which is
    faster.
    """
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return _three_channels(image)  # last, so that gray images are resized as one channel


def _three_channels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _opened(file: File) -> Image.Image:
    if not isinstance(file, bytes) and not os.path.isfile(file):  # a named pipe would block forever
        raise FileNotFoundError("is not a file" if os.path.exists(file) else "does not exist")
    try:
        image: Image.Image = Image.open(_for_pillow(file), formats=_FORMATS)
    except UnidentifiedImageError:
        kind = format_of(file)
        dicom_suffix = not isinstance(file, bytes) and Path(file).suffix.lower() in DICOM
        if dicom_suffix or kind == "DICOM":
            return dicom_image(file)
        if kind not in _ADDED:
            raise
        image = _opened_by_plugin(file, kind)
    check_area(*image.size)
    return _unpacked(image, file) if _FAST and isinstance(image, PngImageFile) else image


def _for_pillow(file: File) -> Any:
    return io.BytesIO(file) if isinstance(file, bytes) else file  # Pillow closes what it opens


def _unpacked(image: PngImageFile, file: File) -> Image.Image:
    """Unpack a plain PNG with kornia-rs, in less than half of Pillow's time.

    PNG is lossless, so both give the same pixels. A plain PNG has 8 bits of gray or RGB, one frame,
    no transparency, no interlacing and no orientation. Others are returned as they are.
    """
    plain = [tile.args for tile in image.tile] in (["L"], ["RGB"]) and not (
        image.info.keys() & {"transparency", "interlace"} or image.is_animated
    )
    size = len(file) if isinstance(file, bytes) else os.path.getsize(file)
    if not plain or size > _FAST_BYTES:
        return image
    packed = file if isinstance(file, bytes) else Path(file).read_bytes()
    if _ORIENTED.search(packed):
        return image
    from kornia_rs.io import decode_image_png_u8  # the extra `fast`, imported when needed

    mode = "mono" if image.mode == "L" else "rgb"
    try:
        pixels = decode_image_png_u8(packed, image.size[::-1], mode)
    except Exception:  # Pillow decides whether the file is broken
        return image
    image.close()
    return Image.fromarray(pixels[..., 0] if mode == "mono" else pixels)


def reason(error: BaseException) -> str:
    """Return why a file cannot be decoded, as the end of a sentence about it."""
    if isinstance(error, UnidentifiedImageError):
        return "is not an image"
    if type(error) is FileNotFoundError and error.errno is None:  # of this package
        return str(error)
    return f"fails with {type(error).__name__}: {' '.join(str(error).split())}"


def upright(image: Image.Image, file: File) -> Image.Image:
    """Convert any mode to 8-bit RGB or gray, and apply the EXIF orientation.

    Deeper pixels are scaled, not clipped. Transparent pixels turn white.
    """
    check_colors(image, file)
    ends = value_range(image, file) if is_deep(image) else None
    ImageOps.exif_transpose(image, in_place=True)
    image = image if ends is None else shallow(image, *ends)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def format_of(file: File) -> str:
    """Return the format of an image file by its first bytes, or an empty text."""
    start = file[:132] if isinstance(file, bytes) else first_bytes(file, 132)
    found = (kind for at, begins, kind in _BEGINNINGS if start[at : at + len(begins)] == begins)
    return next(found, "")


def _opened_by_plugin(file: File, kind: str) -> Image.Image:
    package, module = _ADDED[kind]
    try:
        plugin = importlib.import_module(module)
        getattr(plugin, "register_heif_opener", lambda: None)()
        return Image.open(_for_pillow(file), formats=[kind])
    except (ImportError, KeyError) as error:  # KeyError: the plugin lacks the format
        raise ImportError(f"{kind} images need {package} (pip install '{package}')") from error
