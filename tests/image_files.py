"""Image files that tests write."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

import finetune_kit as ftk


def write(path: Path, pixels=None, **options) -> Path:
    """Write an image file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8, 3), 120, np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **options)
    return path


def read_class_a(folder: Path, **options) -> ftk.ImageSet:
    """Read a folder whose only class is `a`, which may lose most of its files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Most files of these folders")
        return ftk.read_image_folder(folder, class_names=["a"], **options)


def png(pixels, *, orientation=None, comments=False, **options) -> bytes:
    """Encode a PNG, with chunks that may affect decoding and with others that do not."""
    info = PngImagePlugin.PngInfo()
    if comments:
        info.add_text("Software", "IDAT eXif")
        info.add(b"gAMA", (45455).to_bytes(4))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png", pnginfo=info, exif=exif, **options)
    return content.getvalue()


def dicom(path: Path, pixels, *, photometric="MONOCHROME2", bits=16, **elements) -> Path:
    """Write a DICOM file of gray pixels."""
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
