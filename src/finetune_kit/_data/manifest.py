"""Images and a split come in, one file that names each of them goes out, and comes back in.

A manifest pins a data set: relative path, SHA-256 of the content, label, group and part of each
image. Files that are no longer what it says are refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit._checks import check_indices, check_kind
from finetune_kit._data.images import ImageSet
from finetune_kit._data.pixels import Files
from finetune_kit._data.split import PARTS, Split
from finetune_kit._files import write_whole

_FORMAT = "finetune-kit manifest 1"
# What reading something else as a manifest may raise.
_UNFIT = (AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError, csv.Error)


def write_manifest(
    file: str | os.PathLike[str], images: ImageSet, split: Split | None = None
) -> ImageSet:
    """Write down which images there are, what they hold and show, and where they belong.

    Args:
        file: the file to write, `.json` or `.csv` (from which the class names come back in
            alphabetical order); replaced if it is there. Paths in it are relative to its folder.
        images: images of files.
        split: which part each image belongs to. Defaults to none.

    Returns:
        The same images, with the fingerprint of the manifest as their `manifest`. It is a SHA-256
        of all contents, labels, groups and parts, whatever the files are called; reports of these
        images name it.

    Raises:
        ValueError: if the file is neither JSON nor CSV, or the images are not files.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("a", "b"):
        ...     (folder / name).mkdir()
        ...     Image.new("L", (8, 8)).save(folder / name / "1.png")
        >>> images = write_manifest(folder / "manifest.csv", read_image_folder(folder))
        >>> read_manifest(folder / "manifest.csv")[0].manifest == images.manifest
        True
    """
    target = _checked(file)
    check_kind("images", images, ImageSet, "see read_image_folder or read_image_table")
    if split is not None:
        check_kind("split", split, Split, "see stratified_split")
    if images._pixels is not None:
        raise ValueError("`images` must be files, as those of read_image_folder. Received: arrays")
    rows = _rows(images, split, target.parent)
    fingerprint = _fingerprint(rows, images.class_names)
    if target.suffix.lower() == ".json":
        told = {
            "format": _FORMAT,
            "fingerprint": fingerprint,
            "class_names": list(images.class_names),
            "images": rows,
        }
        text = json.dumps(told, indent=1) + "\n"
    else:
        text = _csv(rows, images.class_names)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, text)
    return replace(images, manifest=fingerprint)


def read_manifest(file: str | os.PathLike[str]) -> tuple[ImageSet, Split | None]:
    """Read what `write_manifest` wrote, and refuse it if the files have changed.

    Args:
        file: the manifest, `.json` or `.csv`; its paths are relative to its folder.

    Returns:
        The images, and the split or None if it holds none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no manifest, or files are missing or changed; lists them all.
    """
    source = _checked(file)
    if not source.is_file():
        raise FileNotFoundError(f"`file` must be a manifest. Received: {str(source)!r}, not there")
    try:
        rows, names, claimed = _read(source)
        images = _images(rows, names, source.parent)
        split = _split(rows)
        fingerprint = _fingerprint(rows, names)
        if claimed not in (None, fingerprint):
            raise ValueError("it was edited: its fingerprint is not that of what it says")
    except _UNFIT as error:
        raise ValueError(
            "`file` must be a manifest that write_manifest wrote. Received: "
            f"{str(source)!r}, which fails with {type(error).__name__}: {error}"
        ) from error
    missing = [path for path in images.paths if not os.path.isfile(path)]
    there = [i for i, path in enumerate(images.paths) if os.path.isfile(path)]
    digests = images.take(there).digests()
    changed = [
        images.paths[i]
        for i, digest in zip(there, digests, strict=True)
        if digest != rows[i]["sha256"]
    ]
    if missing or changed:
        lines = [f"  {path!r}: missing" for path in missing]
        lines += [f"  {path!r}: other content" for path in changed]
        raise ValueError(
            f"The files of a manifest must be as it says. Received: {str(source)!r}, "
            f"{len(lines):,} of whose {len(rows):,} files are not:\n" + "\n".join(lines)
        )
    return replace(images, manifest=fingerprint), split


def _checked(file: str | os.PathLike[str]) -> Path:
    target = Path(file)
    if target.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"`file` must end in .json or .csv. Received: {str(target)!r}")
    return target


def _rows(images: ImageSet, split: Split | None, folder: Path) -> list[dict[str, Any]]:
    count = len(images)
    part = [""] * count
    for name in PARTS if split is not None else ():
        indices = np.asarray(getattr(split, name))
        check_indices(f"split.{name}", indices, count)
        for i in indices.tolist():
            part[i] = name
    digests = images.digests()
    return [
        {
            "path": Path(os.path.relpath(images.paths[i], folder)).as_posix(),
            "sha256": digests[i],
            "label": images.labels[i].tolist(),
            "group": None if images.groups is None else int(images.groups[i]),
            "part": part[i],
        }
        for i in range(count)
    ]


def _fingerprint(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    def shown(label: Any) -> list[str]:
        if not isinstance(label, list):
            return [names[label]]
        return sorted(name for name, on in zip(names, label, strict=True) if on)

    told = sorted(
        json.dumps([row["sha256"], shown(row["label"]), row["group"], row["part"]]) for row in rows
    )
    return hashlib.sha256(json.dumps([sorted(names), told]).encode()).hexdigest()


def _csv(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A label is written by name; several as a column each, `label:NAME`."""
    many = bool(rows) and isinstance(rows[0]["label"], list)
    columns = [f"label:{name}" for name in names] if many else ["label"]
    text = io.StringIO()
    # Names may hold line breaks of any kind, which csv quotes only if they end a line of its own.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["path", "sha256", *columns, "group", "part"])
    for row in rows:
        labels = row["label"] if many else [names[row["label"]]]
        group = "" if row["group"] is None else row["group"]
        writer.writerow([row["path"], row["sha256"], *labels, group, row["part"]])
    return text.getvalue()


def _read(source: Path) -> tuple[list[dict[str, Any]], list[str], str | None]:
    """Rows, class names, and the fingerprint if the file tells one."""
    # Bytes, since reading as text would turn a carriage return in a name into another character.
    text = source.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    if source.suffix.lower() == ".json":
        told = json.loads(text)
        if told.get("format") != _FORMAT:
            raise ValueError(f"its format is {told.get('format')!r}, not {_FORMAT!r}")
        return list(told["images"]), list(told["class_names"]), str(told["fingerprint"])
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    several = [column for column in found[0] if column.startswith("label:")]
    if several:
        names = [column.removeprefix("label:") for column in several]
        labels: list[Any] = [[int(row[column]) for column in several] for row in found]
    else:
        names = sorted({row["label"] for row in found})
        labels = [names.index(row["label"]) for row in found]
    rows = [
        {
            "path": row["path"],
            "sha256": row["sha256"],
            "label": label,
            "group": int(row["group"]) if row["group"] else None,
            "part": row["part"],
        }
        for row, label in zip(found, labels, strict=True)
    ]
    return rows, names, None


def _images(rows: Sequence[dict[str, Any]], names: Sequence[str], folder: Path) -> ImageSet:
    """The images that rows tell of, if each tells what it should."""
    if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError("class names must be texts, each once")
    if len({row["path"] for row in rows}) != len(rows) or not rows:
        raise ValueError("each image must be there once, and at least one")
    for number, row in enumerate(rows, 1):
        texts = all(isinstance(row[key], str) for key in ("path", "sha256", "part"))
        many = isinstance(row["label"], list)
        labels = row["label"] if many else [row["label"]]
        most = 2 if many else len(names)
        if not (
            texts
            and all(type(label) is int and 0 <= label < most for label in labels)
            and (not many or len(labels) == len(names))
            and (row["group"] is None or type(row["group"]) is int)
        ):
            raise ValueError(f"image {number} is not told as write_manifest does: {row}")
    labels = np.array([row["label"] for row in rows], np.int64)
    groups = [row["group"] for row in rows]
    return ImageSet(
        source=Files(tuple(str(folder / row["path"]) for row in rows)),
        labels=labels,
        class_names=tuple(names),
        groups=None if None in groups else np.array(groups, np.int64),
    )


def _split(rows: Sequence[dict[str, Any]]) -> Split | None:
    parts = np.array([row["part"] for row in rows])
    if not (parts != "").any():
        return None
    unknown = set(parts.tolist()) - {"", *PARTS}
    if unknown:
        raise ValueError(f"there are no parts {sorted(unknown)}")
    train, validation, test = (np.flatnonzero(parts == part) for part in PARTS)
    return Split(train, validation, test)
