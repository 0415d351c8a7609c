"""A file comes in, 8-bit RGB pixels go out, or an error that names the file.

Whatever the file holds: any mode and depth that Pillow reads, and DICOM through pydicom (the extra
`dicom`). A file that is hostile or broken is one `ValueError`, never a crash or a full memory. This
room knows no classes and no labels.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401 - importing it makes its format known
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 - likewise
)
from PIL import __version__ as pillow
from PIL.PngImagePlugin import PngImageFile

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
DICOM = frozenset({".dcm", ".dicom"})
SUFFIXES = PICTURES | DICOM

# Only what the suffixes promise: some of Pillow's other formats start programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

_FAST = importlib.util.find_spec("kornia_rs") is not None
_FAST_BYTES = 64 << 20  # read at once; Pillow reads what is larger piece by piece
_ORIENTED = re.compile(rb"eXIf|Raw profile type|XML:com\.adobe\.xmp")  # where Pillow looks for it

# How a file becomes pixels: part of the key of whatever is computed from them and kept.
DECODING = {"colours": "RGB", "resize": "bilinear, antialiased", "pillow": pillow, "version": 4}


def decode(file: str | os.PathLike[str], size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB pixels `(height, width, 3)` of a file, resized; a ValueError names a bad one."""
    try:
        with _opened(file) as image:
            # A JPEG can be decoded at a half, a fourth or an eighth of its size, by means as below.
            image.draft(None, (size[1], size[0]))
            return resize(_upright(image), size)
    except Exception as error:  # decoders raise whatever a broken file makes of them
        raise undecodable(file, error) from error


def picture(file: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """RGB pixels of a file in its own size."""
    try:
        with _opened(file) as image:
            return _three(_upright(image))
    except Exception as error:  # decoders raise whatever a broken file makes of them
        raise undecodable(file, error) from error


def unreadable(file: str | os.PathLike[str]) -> str:
    """Why a file cannot be decoded; empty if it can: all of it is read."""
    try:
        with _opened(file) as image:
            image.draft(None, (1, 1))  # what a JPEG holds is read in any case, not computed in full
            _upright(image)
            return ""
    except Exception as error:  # decoders raise whatever a broken file makes of them
        return _told(error)


def undecodable(file: str | os.PathLike[str], error: Exception) -> ValueError:
    """What to raise for a file that cannot be decoded."""
    return ValueError(
        "Each image must be a file that can be decoded; remove it or repair it. "
        f"Received: {os.fspath(file)!r}, which fails with {_told(error)}"
    )


def resize(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB pixels of an image of another size; gray ones are made three channels at last.

    More than twice as large, it is halved (or divided by three, ...) by means first, which takes
    less time.
    """
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return _three(image)


def _three(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _opened(file: str | os.PathLike[str]) -> Image.Image:
    if not os.path.isfile(file):  # a named pipe would wait for ever
        raise FileNotFoundError(
            "this is no file" if os.path.exists(file) else "there is no such file"
        )
    try:
        image: Image.Image = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        if Path(file).suffix.lower() in DICOM or _is_dicom(file):
            return _dicom(file)
        raise
    _check_area(*image.size)
    return _unpacked(image, file) if _FAST and isinstance(image, PngImageFile) else image


def _unpacked(image: PngImageFile, file: str | os.PathLike[str]) -> Image.Image:
    """A plain PNG unpacked by kornia-rs, in less than half of Pillow's time; others as they are.

    Both make the same of it, as a PNG loses nothing. What is plain: 8 bits of gray or RGB, one
    frame, nothing transparent or interlaced, and nothing that may tell how to turn it.
    """
    plain = [tile.args for tile in image.tile] in (["L"], ["RGB"]) and not (
        image.info.keys() & {"transparency", "interlace"} or image.is_animated
    )
    if not plain or os.path.getsize(file) > _FAST_BYTES:
        return image
    packed = Path(file).read_bytes()
    if _ORIENTED.search(packed):
        return image
    from kornia_rs.io import decode_image_png_u8  # the extra `fast`, loaded when needed

    mode = "mono" if image.mode == "L" else "rgb"
    try:
        pixels = decode_image_png_u8(packed, image.size[::-1], mode)
    except Exception:  # Pillow decides on what it refuses
        return image
    image.close()
    return Image.fromarray(pixels[..., 0] if mode == "mono" else pixels)


def _check_area(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"{width:,} x {height:,} pixels are more than PIL.Image.MAX_IMAGE_PIXELS ({limit:,})"
        )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _upright(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB or gray, turned as its EXIF data says.

    Deep pixels are scaled, not clipped; what is transparent turns white.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray((deep / 257).round().astype(np.uint8))
    if image.mode == "F":  # a float has no top: that of the file
        image = Image.fromarray(_stretched(np.asarray(image, np.float64)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _stretched(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """From the smallest value as black to the largest as white."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)


def _is_dicom(file: str | os.PathLike[str]) -> bool:
    with open(file, "rb") as start:
        return start.read(132)[128:] == b"DICM"


def _dicom(file: str | os.PathLike[str]) -> Image.Image:
    """The (first) frame as a screen shows it: slope, window and MONOCHROME1 applied."""
    if importlib.util.find_spec("pydicom") is None:
        raise ImportError("DICOM files need pydicom (pip install 'finetune-kit[dicom]')")
    import pydicom  # the extra `dicom`, loaded when needed
    from pydicom.pixels import pixel_array
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # Deflated as a whole, a file of a megabyte may hold a gigabyte; pictures hardly ever are.
    syntax = pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise ValueError("deflated DICOM files are not read; save it in another transfer syntax")
    data = pydicom.dcmread(file)
    _check_area(int(data.Columns), int(data.Rows))
    # Colours come as RGB whatever the file has them in.
    pixels = pixel_array(data, index=0)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = apply_color_lut(pixels, data)
        pixels = pixels >> 8 if pixels.dtype == np.uint16 else pixels
    if pixels.ndim == 3:
        return Image.fromarray(pixels[..., :3].astype(np.uint8))
    gray = _windowed(pixels, data)
    return Image.fromarray(255 - gray if data.PhotometricInterpretation == "MONOCHROME1" else gray)


def _windowed(pixels: NDArray[Any], data: Any) -> NDArray[np.uint8]:
    """Gray from 0 to 255: the file's (first) window if it has one, else all of its range."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

    values = apply_modality_lut(pixels, data)
    if data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        shown = np.asarray(apply_windowing(values, data), np.float64)
        # The ends of the window's range, which the pixels themselves need not reach.
        low, high = apply_windowing(np.array([-1e12, 1e12]), data)
        return ((shown - low) / (high - low) * 255).clip(0, 255).round().astype(np.uint8)
    return _stretched(np.asarray(apply_voi_lut(values, data), np.float64))
