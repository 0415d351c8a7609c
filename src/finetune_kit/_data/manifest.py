"""Manifests: files that pin the images, labels, groups and parts of a data set."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit._buckets import RemoteError
from finetune_kit._checks import check_kind
from finetune_kit._data.decoding import reason
from finetune_kit._data.images import ImageSet
from finetune_kit._data.manifest_format import (
    Manifest,
    NotAManifestError,
    check_rows,
    from_csv,
    from_json,
    to_csv,
    to_json,
)
from finetune_kit._data.paths import absolute, digest_of, is_file, joined_path, normal
from finetune_kit._data.pixels import Files, is_remote
from finetune_kit._data.threads import in_threads
from finetune_kit._files import write_whole
from finetune_kit._hints import hints
from finetune_kit._text import plural
from finetune_kit._urls import is_url, shown_url

# What parsing a file of another kind may raise.
_PARSE_ERRORS = (AttributeError, KeyError, TypeError, ValueError, RecursionError, csv.Error)


@hints(parts="each set with the name of its part, such as train=train")
def write_manifest(file: str | os.PathLike[str], /, **parts: ImageSet) -> dict[str, ImageSet]:
    """Write a file that pins the images of a data set, their labels, groups and parts.

    Publish it with a result, or read it in each experiment, so that all of them use the same data
    and the same split.

    Args:
        file: the file to write, `.json` or `.csv`. An existing file is replaced. Paths in it are
            relative to its folder, besides those in buckets.
        **parts: the image sets by name, such as `train=train, test=test`. They must have the same
            classes, and no image may be in two of them.

    Returns:
        The same sets by name, with the fingerprint of the manifest as their `manifest`. It is a
        SHA-256 of the contents of all images, their labels, groups and parts, and does not depend
        on file names or on the order of the images. Reports on these sets name it.

    Raises:
        ValueError: if the file is neither JSON nor CSV, the images are not files, the classes
            differ, or an image is in two parts.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for i, name in enumerate(("a", "b")):
        ...     (folder / name).mkdir()
        ...     Image.new("L", (8, 8), i).save(folder / name / "1.png")
        >>> parts = write_manifest(folder / "manifest.csv", all=read_image_folder(folder))
        >>> read_manifest(folder / "manifest.csv")["all"].manifest == parts["all"].manifest
        True
    """
    target = _checked_file(file)
    _check_parts(parts)
    first = next(iter(parts.values()))
    rows = [row for name, images in parts.items() for row in _rows(name, images, target.parent)]
    manifest = Manifest(first.class_names, first.multi_label, rows)
    text = to_json(manifest) if target.suffix.lower() == ".json" else to_csv(manifest)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, text)
    fingerprint = manifest.fingerprint()
    return {name: replace(images, manifest=fingerprint) for name, images in parts.items()}


def read_manifest(file: str | os.PathLike[str], *, check_files: bool = True) -> dict[str, ImageSet]:
    """Read the image sets that `write_manifest` wrote, and check that no file has changed.

    Args:
        file: the manifest, `.json` or `.csv`. Paths in it are relative to its folder.
        check_files: True (default) reads and compares all files first. With False, each file is
            compared when it is decoded, so that a part of a large set can be used without reading
            the rest.

    Returns:
        The image sets by name, with the fingerprint of the manifest as their `manifest`.

    Raises:
        FileNotFoundError: if the manifest does not exist.
        ValueError: if the file is not a manifest or was edited, or if images are missing or have
            changed; the error lists them all.
    """
    source = _checked_file(file)
    if not source.is_file():
        raise FileNotFoundError(
            f"`file` must be a manifest. Received: {str(source)!r}, which does not exist"
        )
    # Bytes, as reading text would convert a carriage return in a file name.
    text = source.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    try:
        manifest = from_json(text) if source.suffix.lower() == ".json" else from_csv(text)
        check_rows(manifest)
    except _PARSE_ERRORS as error:
        own = isinstance(error, NotAManifestError)
        reason = f"{error}" if own else f"fails with {type(error).__name__}: {error}"
        raise ValueError(
            "`file` must be a manifest that write_manifest wrote. "
            f"Received: {str(source)!r}, which {reason}"
        ) from error
    fingerprint = manifest.fingerprint()
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in manifest.rows:
        parts.setdefault(row["part"], []).append(row)
    sets = {
        name: _image_set(rows, manifest, source.parent, fingerprint, known=not check_files)
        for name, rows in parts.items()
    }
    if check_files:
        _check_files(source, parts, sets)
    return sets


def _checked_file(file: str | os.PathLike[str]) -> Path:
    if is_url(file):
        raise ValueError(
            "`file` must be on this machine; the images may lie in a bucket. "
            f"Received: file={shown_url(file)!r}"
        )
    target = Path(os.path.expanduser(file))
    if target.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"`file` must end in .json or .csv. Received: {str(target)!r}")
    return target


def _check_parts(parts: Mapping[str, ImageSet]) -> None:
    if not parts:
        raise ValueError(
            "`write_manifest` needs at least one image set, such as train=train. Received: none"
        )
    for name, images in parts.items():
        check_kind(name, images, ImageSet, "such as read_image_folder returns")
        if not len(images):
            raise ValueError(f"`{name}` must hold images; leave it out. Received: an empty set")
        if any(images.source.file(row) is None for row in images.rows.tolist()):
            raise ValueError(
                f"`{name}` must hold image files, as read_image_folder reads them. "
                "Received: images in memory"
            )
    first, *others = parts.values()
    for images in others:
        kinds = [(s.class_names, s.multi_label) for s in (first, images)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                "The parts of a manifest must have the same classes in the same order; pass "
                f"class_names= when you read them. Received: {first} and {images}"
            )
    _check_disjoint(parts)


def _check_disjoint(parts: Mapping[str, ImageSet]) -> None:
    """Check that no file is in two parts, or twice in one."""
    pairs = [(absolute(p), name) for name, images in parts.items() for p in images.paths]
    counts = Counter(path for path, _ in pairs)
    twice = {path for path, count in counts.items() if count > 1}
    if twice:
        lines = [f"  {path!r} in {name!r}" for path, name in sorted(pairs) if path in twice]
        raise ValueError(
            "An image may be in one part of a manifest only, and once. "
            f"Received: {plural(len(twice), 'image')} with more than one entry:\n"
            + "\n".join(lines[:20])
            + (f"\n  and {len(lines) - 20:,} more" if len(lines) > 20 else "")
        )


def _rows(part: str, images: ImageSet, folder: Path) -> list[dict[str, Any]]:
    names = images.class_names
    if images.multi_label:
        labels: list[Any] = [
            [name for name, on in zip(names, row, strict=True) if on]
            for row in images.labels.tolist()
        ]
    else:
        labels = [names[label] for label in images.labels.tolist()]
    groups = [None] * len(images) if images.groups is None else images.groups.tolist()
    return [
        {
            "part": part,
            "path": path if is_url(path) else Path(os.path.relpath(path, folder)).as_posix(),
            "sha256": digest,
            "label": label,
            "group": group,
        }
        for path, digest, label, group in zip(
            images.paths, images.digests(), labels, groups, strict=True
        )
    ]


def _image_set(
    rows: Sequence[dict[str, Any]],
    manifest: Manifest,
    folder: Path,
    fingerprint: str,
    *,
    known: bool,
) -> ImageSet:
    names = manifest.class_names
    if manifest.multi_label:
        labels = np.array([[name in row["label"] for name in names] for row in rows], np.int64)
    else:
        rank = {name: i for i, name in enumerate(names)}
        labels = np.array([rank[row["label"]] for row in rows], np.int64)
    grouped = rows[0]["group"] is not None
    return ImageSet(
        # Without `..`, which would lead elsewhere from a folder that is a link.
        Files(
            tuple(normal(joined_path(folder, row["path"])) for row in rows),
            tuple(row["sha256"] for row in rows) if known else None,
        ),
        labels,
        names,
        groups=np.array([row["group"] for row in rows]) if grouped else None,
        manifest=fingerprint,
    )


def _check_files(
    source: Path, parts: Mapping[str, Sequence[dict[str, Any]]], sets: Mapping[str, ImageSet]
) -> None:
    """Check that each file exists and has the digest of the manifest, and list all that do not."""
    lines: list[str] = []
    for name, images in sets.items():
        found = in_threads(_digest, images.paths, at_once=64, remote=is_remote(images.source))
        for path, row, (digest, fault) in zip(images.paths, parts[name], found, strict=True):
            if digest != row["sha256"]:
                lines.append(f"  {path!r}: {fault}")
    if lines:
        total = sum(map(len, sets.values()))
        raise ValueError(
            "The files of a manifest must exist and be unchanged; restore them, or write the "
            "manifest again. "
            f"Received: {str(source)!r}, with {len(lines):,} of {plural(total, 'file')} "
            "missing or changed:\n" + "\n".join(lines)
        )


def _digest(path: str) -> tuple[str | None, str]:
    """Return the digest of a file, or None, and what is wrong unless it is the right one."""
    if not is_file(path):
        return None, "is missing"
    try:
        return digest_of(path), "has changed"
    except RemoteError:
        raise
    except (OSError, ValueError) as error:
        return None, reason(error)
