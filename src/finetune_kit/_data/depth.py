"""The range of the values in images of more than 8 bits: which value is black, and which is white.

The range is that of the file's type, or what the file declares: never what the values of one image
happen to be, so images of one set stay comparable.
"""

from __future__ import annotations

import io
import os
import struct
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image

# An image file: its path, or its content.
File: TypeAlias = str | os.PathLike[str] | bytes

# TIFF tags: bits, kind of number (2: signed), and the declared ends of the range.
_BITS, _FORMAT, _MINIMA, _MAXIMA = 258, 339, (340, 280), (341, 281)


def binary(file: File) -> IO[bytes]:
    """Open a file, or its content, for reading."""
    return io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb")


def check_area(width: int, height: int) -> None:
    """Check that an image has no more pixels than Pillow allows."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"{width:,} x {height:,} pixels are more than PIL.Image.MAX_IMAGE_PIXELS ({limit:,})"
        )


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def shallow(image: Image.Image, low: float, high: float) -> Image.Image:
    """Return a deep image with 8 bits, given the values of black and white."""
    values = np.asarray(image).astype(np.float64)
    # 257 is 65535 / 255: dividing by it is exact.
    scaled = (np.nan_to_num(values, nan=low) - low) / ((high - low) / 255)
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def value_range(image: Image.Image, file: File) -> tuple[float, float]:
    """Return the values of black and white in a deep image.

    Integers have the range of their bits; TIFF files may declare bits and ends. Samples of a PNG
    file with an `sBIT` chunk have the range of these bits, unless they were scaled up to 16 bits,
    as the standard demands. Floats without declared ends are from 0 to 1.

    Raises:
        ValueError: if floats without declared ends are not from 0 to 1.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    ends = [_first(tags, codes) for codes in (_MINIMA, _MAXIMA)]
    if None not in ends and ends[0] < ends[1]:
        return float(ends[0]), float(ends[1])
    if image.mode == "F":
        finite = values[np.isfinite(values)]
        if finite.size and not -1e-6 <= finite.min() <= finite.max() <= 1 + 1e-6:
            raise ValueError(
                "floats must be from 0 to 1 where the file does not declare their range "
                f"(SMinSampleValue, SMaxSampleValue). They are from {finite.min():.4g} to "
                f"{finite.max():.4g}: save the image with 8 or 16 bits"
            )
        return 0.0, 1.0
    bits = int(_first(tags, (_BITS,)) or 16)
    if _first(tags, (_FORMAT,)) == 2:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    if image.format == "PNG":
        significant = significant_bits(file)
        bits = significant if values.max(initial=0) < 2**significant else 16
    return 0.0, 2.0**bits - 1


def check_colors(image: Image.Image, file: File) -> None:
    """Check that colors of 16 bits, of which Pillow reads the upper 8, use all of them."""
    modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
    wide = image.format == "PNG" and any(mode in ("RGB;16B", "RGBA;16B") for mode in modes)
    if wide and (bits := significant_bits(file)) < 16:
        raise ValueError(
            f"it declares {bits} of 16 bits for each color, of which the upper 8 would be read: "
            "save it with 8 bits"
        )


def used_share(image: Image.Image, file: File) -> float | None:
    """Return which share of its range a deep image uses, from 0 to 1; None for other images."""
    if not is_deep(image):
        share: float | None = image.info.get("used_share")  # of a DICOM file without a window
        return share
    values = np.asarray(image).astype(np.float64)
    low, high = value_range(image, file)
    return float(np.ptp(values)) / (high - low) if values.size else None


def significant_bits(file: File) -> int:
    """Return how many bits the samples of a 16-bit PNG file have by its `sBIT` chunk, or 16."""
    with binary(file) as opened:
        opened.seek(8)
        while len(head := opened.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT":
                return min(16, max(opened.read(length) or b"\x10")) or 16
            if kind == b"IDAT":
                break
            opened.seek(length + 4, os.SEEK_CUR)
    return 16


def _first(tags: Any, codes: tuple[int, ...]) -> Any:
    """Return the first value of the first tag that there is, or None."""
    found = next((tags[code] for code in codes if code in tags), None)
    return found[0] if isinstance(found, tuple) else found
