"""Decoding of DICOM files, with pydicom (the extra `dicom`)."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_kit._data.depth import File, check_area


def dicom_image(file: File) -> Image.Image:
    """Read the first frame as a viewer shows it: rescaled, windowed, MONOCHROME1 inverted."""
    if importlib.util.find_spec("pydicom") is None:
        raise ImportError("DICOM files need pydicom (pip install 'finetune-kit[dicom]')")
    if isinstance(file, bytes):  # pydicom reads the header by itself only from a path
        with tempfile.TemporaryDirectory() as folder:
            copied = Path(folder, "image.dcm")
            copied.write_bytes(file)
            return dicom_image(copied)
    import pydicom  # the extra `dicom`, imported when needed
    from pydicom.pixels import pixel_array
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # A deflated file of one megabyte may expand to a gigabyte; images are hardly ever deflated.
    syntax = pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise ValueError(
            "deflated DICOM files are not supported; save it in another transfer syntax"
        )
    data = pydicom.dcmread(file)
    check_area(int(data.Columns), int(data.Rows))
    pixels = pixel_array(data, index=0)  # converts other color spaces to RGB
    if data.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = apply_color_lut(pixels, data)
        pixels = pixels >> 8 if pixels.dtype == np.uint16 else pixels
    if pixels.ndim == 3:
        excess = max(0, int(data.BitsStored) - 8) if pixels.dtype != np.uint8 else 0
        return Image.fromarray((pixels[..., :3] >> excess).astype(np.uint8))
    gray = _windowed(pixels, data)
    gray = 255 - gray if data.PhotometricInterpretation == "MONOCHROME1" else gray
    padding = _is_padding(pixels, data)
    image = Image.fromarray(np.where(padding, 0, gray).astype(np.uint8))
    if data.get("WindowCenter") is None and int(data.BitsStored) > 8 and not padding.all():
        image.info["used_share"] = float(np.ptp(gray[~padding])) / 255
    return image


def _windowed(pixels: NDArray[Any], data: Any) -> NDArray[np.uint8]:
    """Scale gray values to 0-255 by the file's first window, or else by the bits it declares."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

    values = apply_modality_lut(pixels, data)
    if data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        shown = np.asarray(apply_windowing(values, data), np.float64)
        # The ends of the window, which the pixels of this image may not reach.
        low, high = apply_windowing(np.array([-1e12, 1e12]), data)
    else:
        shown = np.asarray(apply_voi_lut(values, data), np.float64)
        low, high = _range(data)
    return ((shown - low) / (high - low) * 255).clip(0, 255).round().astype(np.uint8)


def _range(data: Any) -> NDArray[np.float64]:
    """Return the values of black and white in a DICOM file without a window, by `BitsStored`."""
    from pydicom.pixels import apply_modality_lut  # the extra `dicom`

    if data.get("VOILUTSequence"):
        return np.array([0.0, 2.0 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1])
    bits, signed = int(data.BitsStored), int(data.PixelRepresentation)
    low = -(2 ** (bits - 1)) if signed else 0
    ends = np.array([low, low + 2**bits - 1])
    return np.sort(np.asarray(apply_modality_lut(ends, data), np.float64))


def _is_padding(pixels: NDArray[Any], data: Any) -> NDArray[np.bool_]:
    """Return which pixels of a DICOM file are padding around the picture."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, bool)
    low, high = sorted((value, data.get("PixelPaddingRangeLimit", value)))
    found: NDArray[np.bool_] = (pixels >= low) & (pixels <= high)
    return found
