"""Content of a manifest file, and its two formats, JSON and CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

from finetune_kit._data.labels import unique_names

_FORMAT = "finetune-kit manifest 2"
_COLUMNS = ("part", "path", "sha256", "group")  # of each image, besides its labels


class NotAManifestError(ValueError):
    """A file is not a manifest. The text of the error follows the name of the file and `which`."""


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest file.

    Attributes:
        class_names: the classes in the order of their indices.
        multi_label: whether an image has a list of labels.
        rows: a dictionary for each image: `part`, `path`, `sha256`, `label` (a class name, or a
            list of them) and `group` (text or None).
    """

    class_names: tuple[str, ...]
    multi_label: bool
    rows: list[dict[str, Any]]

    def fingerprint(self) -> str:
        """Return a SHA-256 of all but the paths and the order of the images and classes."""
        rows = []
        for row in self.rows:
            label = sorted(row["label"]) if self.multi_label else row["label"]
            rows.append(json.dumps([row["sha256"], label, row["group"], row["part"]]))
        content = json.dumps([sorted(self.class_names), self.multi_label, sorted(rows)])
        return hashlib.sha256(content.encode()).hexdigest()


def to_json(manifest: Manifest) -> str:
    """Return a manifest as JSON."""
    content = {
        "format": _FORMAT,
        "fingerprint": manifest.fingerprint(),
        "class_names": list(manifest.class_names),
        "multi_label": manifest.multi_label,
        "images": manifest.rows,
    }
    return json.dumps(content, indent=1) + "\n"


def from_json(text: str) -> Manifest:
    """Parse a manifest in JSON, and check its fingerprint."""
    content = json.loads(text)
    if content.get("format") != _FORMAT:
        raise NotAManifestError(f"has the format {content.get('format')!r}, not {_FORMAT!r}")
    rows = [{key: row[key] for key in (*_COLUMNS, "label")} for row in content["images"]]
    manifest = Manifest(tuple(content["class_names"]), content["multi_label"], rows)
    if content["fingerprint"] != manifest.fingerprint():
        raise NotAManifestError("was edited: its fingerprint is not that of its content")
    return manifest


def to_csv(manifest: Manifest) -> str:
    """Return a manifest as CSV, with a column `label`, or a column `label:NAME` for each label."""
    names = manifest.class_names
    if not manifest.multi_label and list(names) != sorted({r["label"] for r in manifest.rows}):
        raise ValueError(
            "A .csv manifest holds classes in alphabetical order, each with an image; write a "
            f".json file. Received: the classes {list(names)}"
        )
    columns = [f"label:{name}" for name in names] if manifest.multi_label else ["label"]
    text = io.StringIO()
    # Quotes around all text, as names may hold line breaks of any kind.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([*_COLUMNS, *columns])
    for row in manifest.rows:
        flags = [int(name in row["label"]) for name in names]
        labels = flags if manifest.multi_label else [row["label"]]
        writer.writerow([*(row[column] or "" for column in _COLUMNS), *labels])
    return text.getvalue()


def from_csv(text: str) -> Manifest:
    """Parse a manifest in CSV."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = list(reader.fieldnames or ())
    columns = [column for column in header if column.startswith("label:")]
    lacking = [column for column in (*_COLUMNS, *(columns or ["label"])) if column not in header]
    if lacking:
        raise NotAManifestError(f"has no column {lacking[0]!r}")
    lines = list(reader)
    names = tuple(column.removeprefix("label:") for column in columns)
    rows: list[dict[str, Any]] = []
    for line in lines:
        row: dict[str, Any] = {column: line[column] for column in _COLUMNS}
        row["group"] = line["group"] or None
        flags = [{"0": False, "1": True}[line[column]] for column in columns]
        chosen = [name for name, on in zip(names, flags, strict=True) if on]
        rows.append(row | {"label": chosen if columns else line["label"]})
    if not columns:
        names = tuple(sorted({row["label"] for row in rows}))
    return Manifest(names, bool(columns), rows)


def check_rows(manifest: Manifest) -> None:
    """Check that a manifest holds what `write_manifest` writes."""
    names = manifest.class_names
    if not all(isinstance(name, str) for name in names) or unique_names(names) != names:
        raise NotAManifestError("has class names that are not texts")
    if not manifest.rows:
        raise NotAManifestError("lists no images")
    for number, row in enumerate(manifest.rows, 1):
        labels = row["label"] if manifest.multi_label else [row["label"]]
        texts = [row["part"], row["path"], row["sha256"], row["group"] or "none"]
        if not all(isinstance(text, str) and text for text in texts):
            raise NotAManifestError(f"lacks a part, a path or a digest of image {number}: {row}")
        if not isinstance(labels, list) or not set(labels) <= set(names):
            raise NotAManifestError(
                f"has a label that is not among the classes, of image {number}: {row}"
            )
    grouped = {(row["part"], row["group"] is None) for row in manifest.rows}
    if len(grouped) != len({part for part, _ in grouped}):
        raise NotAManifestError("has groups for some images of a part, but not for all")
    if len({row["path"] for row in manifest.rows}) != len(manifest.rows):
        raise NotAManifestError("lists an image more than once")
