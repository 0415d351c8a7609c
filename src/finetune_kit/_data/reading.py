"""Image sets from folders and tables."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import check_choice
from finetune_kit._data.decoding import inspected
from finetune_kit._data.folders import (
    ALL_PARTS,
    PARTS,
    Groups,
    check_classes,
    checked_folder,
    checked_groups,
    class_folders,
    count_images,
    folder_of,
    groups_of,
    warn_of_classes,
)
from finetune_kit._data.images import ImageSet
from finetune_kit._data.labels import unique_names
from finetune_kit._data.paths import as_path, entries, exists, joined_path, normal
from finetune_kit._data.pixels import Files
from finetune_kit._data.table import Table, read_table
from finetune_kit._data.threads import in_threads
from finetune_kit._text import listed, plural
from finetune_kit._urls import is_url

_log = logging.getLogger("finetune_kit")


def read_image_folder(
    path: str | os.PathLike[str],
    *,
    groups: Groups | None = None,
    class_names: Sequence[str] | None = None,
    part: str | None = None,
    on_error: str = "raise",
) -> ImageSet:
    r"""Read a folder of images that holds one folder per class.

    The images are all image files below `ROOT/CLASS`, at any depth: PNG, JPEG, BMP, GIF, TIFF, WebP
    and AVIF; DICOM with the extra `dicom`; HEIC and JPEG XL where Pillow's plugins for them are
    installed. A file of another suffix is read if its first bytes are those of an image. Other
    files are skipped, and so are folders `masks` that lie beside a folder `images`, as in the
    COVID-19 Radiography Database; they are logged once and listed in `ImageSet.skipped`. A warning
    names class folders most of whose files were skipped. Hidden files are ignored.

    Each file is decoded once, in threads, to find broken files before the training.

    Args:
        path: the folder that holds the class folders; or a zip archive, or a folder in one
            (`"archive.zip/images"`), which is read in place; or, with the extra `cloud`, a folder
            in a bucket (`"s3://bucket/images"`).
        groups: the group (such as the patient) of each image, as a function of its path relative to
            `path`, or as a regular expression with one group in parentheses that is searched for in
            this path, such as ``r"(patient\d+)"``. Defaults to no groups.
        class_names: the classes in the order of their indices. A folder of another name is an
            error; a class without a folder has no images. Pass it if several folders must have the
            same classes. Defaults to the names of the folders, sorted.
        part: `"train"`, `"validation"` or `"test"`, if the folder is split already: it then holds
            a folder for each part (also named `val`, `valid` and so on), which holds the class
            folders. All parts have the classes of all of them. Defaults to None: not split.
        on_error: `"raise"` (default) an error that lists all broken files, or `"skip"` them.

    Returns:
        An `ImageSet`, with the images sorted by class, then by file name.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it has no class folders, or has broken files.
        OSError: if files in a bucket cannot be read after several tries.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.new("L", (8, 8)).save(folder / name / "1.png")
        >>> read_image_folder(folder)
        ImageSet(2 images; cat: 1, dog: 1)
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    fixed = None if class_names is None else unique_names(class_names)
    grouping = None if groups is None else checked_groups(groups)
    root = checked_folder(path)
    if part is not None:
        check_choice("part", part, tuple(PARTS))
        fixed = fixed or _classes_of_parts(root)
        root = folder_of(root, part)
    found = class_folders(root)
    check_classes(found, fixed)
    names = tuple(found.images) if fixed is None else fixed
    lists = [found.images.get(name, []) for name in names]
    files = [file for part in lists for file in part]
    labels = np.repeat(np.arange(len(names)), [len(part) for part in lists])
    good, bad = _readable(files, on_error, found.closed)
    warn_of_classes(found, bad, fixed=fixed is not None)
    paths = [files[i].relative_to(root).as_posix() for i in good]
    images = ImageSet(
        Files(tuple(str(files[i]) for i in good)),
        labels[good],
        names,
        groups=None if grouping is None else np.array(groups_of(grouping, paths)),
        skipped=tuple(str(file) for file in [*found.skipped, *bad]),
    )
    if images.skipped:
        _log.warning("%s: %r; %s", root, images, _skip_notice([*found.skipped, *bad], root))
    return images


def read_image_table(
    table: Any,
    *,
    path: str = "path",
    label: str | Sequence[str] = "label",
    group: str | None = None,
    root: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
    on_error: str = "raise",
) -> ImageSet:
    """Read the images that a CSV file or a DataFrame lists, with their labels and groups.

    Args:
        table: the path (or the URL in a bucket, with the extra `cloud`) of a CSV file (UTF-8, with
            a header), or a DataFrame of pandas or polars.
        path: name of the column of the image files, relative to `root`. Defaults to `"path"`.
        label: name of the column of the class names; or, for multi-label images, the names of
            several columns of 0 and 1, one for each label. Defaults to `"label"`.
        group: name of the column of the groups (such as the patients). Defaults to no groups.
        root: the folder, or its URL, that the paths are relative to. Defaults to the folder of the
            CSV file, or to the current folder for a DataFrame.
        class_names: the classes in the order of their indices. Another label is an error. Pass it
            if several tables must have the same classes. Defaults to the labels, sorted.
        on_error: `"raise"` (default) an error that lists all missing and broken files, or `"skip"`
            them.

    Returns:
        An `ImageSet`, with the images in the order of the rows.

    Raises:
        FileNotFoundError: if the CSV file does not exist.
        ValueError: if a column or a value is missing, a file is listed twice, or files are missing
            or broken.
        OSError: if files in a bucket cannot be read after several tries.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("a.png", "b.png"):
        ...     Image.new("L", (8, 8)).save(folder / name)
        >>> text = "file,finding,patient" + chr(10) + "a.png,healthy,1" + chr(10) + "b.png,ill,2"
        >>> _ = (folder / "images.csv").write_text(text)
        >>> read_image_table(folder / "images.csv", path="file", label="finding", group="patient")
        ImageSet(2 images; healthy: 1, ill: 1)
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    columns = [label] if isinstance(label, str) else list(label)
    if not columns:
        raise ValueError(f"`label` must name at least one column. Received: label={label!r}")
    rows = read_table(table, [path, *columns, *([] if group is None else [group])])
    base = rows.folder if root is None else as_path("root", root)
    files = [joined_path(base, cell) for cell in rows.cells[path]]
    _check_once(files)
    _check_found(files)
    good, bad = _readable(files, on_error)
    if isinstance(label, str):
        labels, names = _classes(rows, label, good, class_names)
    else:
        labels, names = _matrix(rows, columns, class_names), tuple(columns)
    if bad:
        _log.warning("%s: %s", rows.name, _skip_notice(bad))
    return ImageSet(
        Files(tuple(str(files[i]) for i in good)),
        labels[good],
        names,
        groups=None if group is None else np.array(rows.cells[group])[good],
        skipped=tuple(map(str, bad)),
    )


def _classes_of_parts(root: Path) -> tuple[str, ...]:
    """Return the names of the class folders in all parts of a split."""
    folders = [entry for entry in entries(root) if entry.name.lower() in ALL_PARTS]
    return tuple(sorted({name for folder in folders for name in class_folders(folder).images}))


def _skip_notice(skipped: Sequence[Path], root: Path | None = None) -> str:
    names = [str(file) if root is None else file.relative_to(root).as_posix() for file in skipped]
    count = plural(count_images(skipped), "image file")
    return f"skipped: {listed(names)}, with {count} in all; images.skipped lists them"


def _check_found(files: Sequence[Path]) -> None:
    if not any(map(exists, files)):
        raise ValueError(
            "`table` must list image files. No file was found; pass root=... if paths are relative "
            f"to a folder. Received: {plural(len(files), 'path')}, such as {str(files[0])!r}"
        )


def _check_once(files: Sequence[Path]) -> None:
    counts = Counter(map(normal, files))
    twice = [file for file, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"`table` must list each image once. Received: more than one row for {listed(twice)}"
        )


def _classes(
    rows: Table, column: str, good: Sequence[int], class_names: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the class index of each row (-1 for a class of broken files only), and the names."""
    cells = rows.cells[column]
    found = sorted({cells[i] for i in good})
    names = tuple(found) if class_names is None else unique_names(class_names)
    unknown = next((i for i in good if cells[i] not in names), None)
    if unknown is not None:
        raise ValueError(
            f"The labels of `table` must be among class_names={list(names)}. "
            f"Received: {cells[unknown]!r} in {rows.places[unknown]} of {rows.name}"
        )
    rank = {name: i for i, name in enumerate(names)}
    return np.array([rank.get(cell, -1) for cell in cells], np.int64), names


def _matrix(
    rows: Table, columns: Sequence[str], class_names: Sequence[str] | None
) -> NDArray[np.int64]:
    """Return several columns of 0 and 1 as a matrix."""
    if class_names is not None and tuple(class_names) != tuple(columns):
        raise ValueError(
            f"With several columns in `label`, these are the class names; leave out `class_names`. "
            f"Received: label={list(columns)}, class_names={list(class_names)}"
        )
    values = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
    cells = [rows.cells[column] for column in columns]
    numbers = np.array([[values.get(c.strip().lower(), -1) for c in row] for row in cells]).T
    if (numbers < 0).any():
        i, j = np.argwhere(numbers < 0)[0].tolist()
        raise ValueError(
            "`label` with several columns must name columns of 0 and 1. Received: "
            f"{cells[j][i]!r} in the column {columns[j]!r}, {rows.places[i]} of {rows.name}"
        )
    return numbers


def _readable(
    files: Sequence[Path], on_error: str, closed: Mapping[Path, str] = MappingProxyType({})
) -> tuple[list[int], list[Path]]:
    """Return the indices of the files that can be decoded, and the paths that cannot be read."""
    found = in_threads(inspected, files, at_once=4, remote=any(map(is_url, files[:1])))
    errors = [error for error, _ in found]
    _warn_of_dark([share for _, share in found if share is not None])
    bad = {file: error for file, error in zip(files, errors, strict=True) if error} | dict(closed)
    if bad and on_error == "raise":
        lines = "\n".join(f"  {str(file)!r} {error}" for file, error in bad.items())
        raise ValueError(
            "All image files must be readable; on_error='skip' skips the others. "
            f"Received: {plural(len(bad), 'path')} that cannot be read:\n{lines}"
        )
    good = [i for i, error in enumerate(errors) if not error]
    if not good:
        file, error = next(iter(bad.items()))
        raise ValueError(
            f"At least one image file must be readable. Received: {plural(len(bad), 'path')} that "
            f"cannot be read, such as {str(file)!r}, which {error}"
        )
    return good, list(bad)


def _warn_of_dark(shares: Sequence[float]) -> None:
    """Warn if the images of more than 8 bits use a small part of their range in the whole set."""
    if shares and max(shares) < 1 / 3:
        warnings.warn(
            f"In {plural(len(shares), 'image')} of more than 8 bits the values span at most "
            f"{max(shares):.1%} of the range of their file type, which is scaled to 0-255, so the "
            "pixels have little contrast. If they hold fewer bits (12 of 16, say), scale them to "
            "16 bits, or declare their depth (PNG: sBIT; TIFF: SMaxSampleValue)",
            stacklevel=4,  # the line that reads the images
        )
