"""A folder or a table comes in, an `ImageSet` goes out: which files are samples, and of what.

Every file is decoded once, so that what is broken is known before anything is trained.
"""

from __future__ import annotations

import csv
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import check_choice
from finetune_kit._data.decoding import SUFFIXES, unreadable
from finetune_kit._data.images import ImageSet
from finetune_kit._data.pixels import Files

_PARTS = {"train", "valid", "val", "validation", "test"}  # of a split that somebody made
_JOINED = "; read each part by itself (the docs' page 'Data that is split already' joins them)"

_log = logging.getLogger("finetune_kit")


def read_image_folder(
    path: str | os.PathLike[str],
    *,
    groups: Callable[[str], Hashable] | None = None,
    on_error: str = "raise",
) -> ImageSet:
    """Find the images below a folder that holds one folder a class.

    Takes `ROOT/CLASS/*.png` (jpg, jpeg, bmp, gif, tif, tiff, webp; dcm with the extra `dicom`) and
    the layout of the COVID-19 Radiography Database: `ROOT/CLASS/images/*.png` with lung masks in
    `ROOT/CLASS/masks/` and tables beside the folders: only what lies in a class folder or its
    `images/` is a sample. What is skipped is logged once and kept in `ImageSet.skipped`. Hidden
    files are not looked at.

    Args:
        path: the folder that holds the class folders.
        groups: tells the group (such as the patient) of an image from its path relative to `path`.
            Defaults to no groups.
        on_error: what to do with files that are no readable image: `"raise"` (default) or
            `"skip"`. Each file is decoded once to see that, in threads.

    Returns:
        An `ImageSet`, classes in alphabetical order (as scikit-learn's `LabelEncoder`), images of
        a class in the order of their names.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no class folders, or holds files that are no images; names them all.
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(
            f"`path` must be a folder that holds one folder a class. Received: {str(root)!r}, "
            f"which {'is a file' if root.exists() else 'does not exist'}"
        )
    classes: dict[str, list[Path]] = {}
    skipped: list[Path] = []
    closed: dict[Path, str] = {}
    for entry in _visible(root, closed):
        inside = os.path.isdir(entry) and entry.name != "masks"
        found = _class_images(entry, skipped, closed) if inside else []
        if found:
            classes[entry.name] = found
        elif entry not in closed:
            skipped.append(entry)
    if not closed and (not classes or set(classes) == {"images"}):
        there = [entry.name for entry in _visible(root, closed)]
        raise ValueError(
            f"`path` must hold one folder a class with images in it, such as {root / 'CLASS'} or "
            f"{root / 'CLASS' / 'images'}. Received: {str(root)!r}, which holds "
            f"{there[:10]}{_JOINED if _PARTS & set(there) else ''}"
        )
    if classes and set(classes) <= _PARTS:
        warnings.warn(f"The classes of {str(root)!r} are {list(classes)}{_JOINED}", stacklevel=2)
    files = [file for found in classes.values() for file in found]
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()])
    good, bad = _readable(files, on_error, closed)
    told = groups and [groups(files[i].relative_to(root).as_posix()) for i in good]
    images = ImageSet(
        source=Files(tuple(str(files[i]) for i in good)),
        labels=labels[good],
        class_names=tuple(classes),
        groups=told,
        skipped=tuple(str(file) for file in [*skipped, *bad]),
    )
    if images.skipped:
        shown = [Path(file).relative_to(root).as_posix() for file in images.skipped]
        _log.warning("%s: %r; skipped what is no sample: %s", root, images, _list(shown))
    return images


def read_image_table(
    table: str | os.PathLike[str],
    *,
    path: str = "path",
    label: str | Sequence[str] = "label",
    group: str | None = None,
    root: str | os.PathLike[str] | None = None,
    on_error: str = "raise",
) -> ImageSet:
    """Find the images that a CSV file lists, with their labels and groups.

    Args:
        table: the CSV file, UTF-8, with a line of column names.
        path: column of the image files; they are relative to `root`. Defaults to `"path"`.
        label: column of the class names (default: `"label"`), or a sequence of columns of 0 and 1
            for multi-label images, one for each label.
        group: column of the groups (such as the patients). Defaults to none.
        root: the folder that paths begin at. Defaults to that of the table.
        on_error: as in `read_image_folder`; a missing file is a bad one too.

    Returns:
        An `ImageSet`, classes in alphabetical order, images in the order of the rows.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if a column is missing, a cell is empty or no label, a file is listed twice, or
            files are no readable images; names them.

    Example:
        >>> import csv, tempfile, pathlib
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
    source = Path(table)
    if not source.is_file():
        raise FileNotFoundError(f"`table` must be a CSV file. Received: {str(source)!r}")
    labels = [label] if isinstance(label, str) else list(label)
    rows = _rows(source, [path, *labels, *([] if group is None else [group])])
    base = source.parent if root is None else Path(root)
    files = [base / row[path] for row in rows]
    counts = Counter(map(os.path.normpath, files))
    twice = [file for file, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"`table` must list each image once. Received more than one row of: {twice}"
        )
    good, bad = _readable(files, on_error)
    chosen = [rows[i] for i in good]
    if isinstance(label, str):
        names = sorted({row[label] for row in chosen})
        values = np.array([names.index(row[label]) for row in chosen], np.int64)
    else:
        names, values = labels, _matrix(chosen, labels)
    if bad:
        _log.warning("%s: skipped what is no image: %s", source, _list(list(map(str, bad))))
    return ImageSet(
        source=Files(tuple(str(files[i]) for i in good)),
        labels=values,
        class_names=tuple(names),
        groups=None if group is None else [row[group] for row in chosen],
        skipped=tuple(map(str, bad)),
    )


def _rows(source: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    lines: list[int] = []
    with open(source, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        try:
            there, rows = list(reader.fieldnames or ()), []
            for row in reader:
                rows.append({column: row.get(column) or "" for column in columns})
                lines.append(reader.line_num)
        except csv.Error as error:
            raise ValueError(
                f"`table` must be a CSV file. Received: {str(source)!r}, which fails with {error}"
            ) from error
    if not set(columns) <= set(there) or not columns[1:]:
        raise ValueError(
            f"`table` must have the columns {list(columns)}; say which they are with `path`, "
            f"`label` and `group`. Received: {str(source)!r} with {there}"
        )
    empty = [line for line, row in zip(lines, rows, strict=True) if not all(row.values())]
    if empty or not rows:
        raise ValueError(
            f"`table` must have rows with a value in each of the columns {list(columns)}. "
            f"Received: {str(source)!r}, "
            f"{f'where line {empty[:10]} lacks one' if empty else 'which has none'}"
        )
    return rows


def _matrix(rows: Sequence[dict[str, str]], labels: Sequence[str]) -> NDArray[np.int64]:
    known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
    cells = [[known.get(row[label].strip().lower(), -1) for label in labels] for row in rows]
    values = np.array(cells, np.int64).reshape(len(rows), len(labels))
    if (values < 0).any():
        i, j = np.argwhere(values < 0)[0]
        raise ValueError(
            f"`label` as several columns must hold 0 or 1. Received: {rows[i][labels[j]]!r} in the "
            f"column {labels[j]!r}"
        )
    return values


def _readable(
    files: Sequence[Path], on_error: str, closed: Mapping[Path, str] = MappingProxyType({})
) -> tuple[list[int], list[Path]]:
    """Indices of the files that can be decoded, and what cannot be read; `closed`: of folders."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        why = list(pool.map(unreadable, files))
    bad = {file: reason for file, reason in zip(files, why, strict=True) if reason} | dict(closed)
    if bad and on_error == "raise":
        lines = "\n".join(f"  {str(file)!r}: {reason}" for file, reason in bad.items())
        raise ValueError(
            "All image files must be readable; on_error='skip' leaves the others out. "
            f"Received {len(bad):,} that are not:\n{lines}"
        )
    good = [i for i, reason in enumerate(why) if not reason]
    if not good:
        file, reason = next(iter(bad.items()))
        raise ValueError(
            f"At least one image file must be readable. Received: {len(bad):,} that are not, "
            f"such as {str(file)!r}: {reason}"
        )
    return good, list(bad)


def _visible(folder: Path, closed: dict[Path, str]) -> list[Path]:
    """What lies in a folder; one that cannot be read is added to `closed`, with the reason."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        closed[folder] = f"{type(error).__name__}: {error.strerror}"
        return []


def _class_images(
    folder: Path, skipped: list[Path], closed: dict[Path, str], *, inner: bool = False
) -> list[Path]:
    """Image files of a class folder and of its `images/`; the rest is added to `skipped`."""
    found: list[Path] = []
    for entry in _visible(folder, closed):
        folder_itself = os.path.isdir(entry)
        if entry.name == "images" and folder_itself and not inner:  # links may lead round
            found += _class_images(entry, skipped, closed, inner=True)
        elif entry.suffix.lower() in SUFFIXES and not folder_itself:
            found.append(entry)
        else:
            skipped.append(entry)
    return found


def _list(names: Sequence[str]) -> str:
    """The first of the names; one with a line break or the like in it stays on its line."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:4])
    return shown + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")
