"""Where the files of a report or a comparison are written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_kit._files import make_folder, write_whole
from finetune_kit._text import printable

# Suffixes of files that a report is not; the names of folders may have other dots.
_OTHER_FILES = frozenset(
    (
        *(".csv", ".docx", ".htm", ".jpeg", ".jpg", ".json", ".md", ".pdf", ".png", ".svg"),
        *(".tsv", ".txt", ".xlsx", ".xml", ".zip"),
    )
)


def page_or_folder(path: Any) -> tuple[Path, bool]:
    """Return the path to save to, and whether it is one HTML page, not a folder.

    The folder is made if it does not exist.

    Raises:
        ValueError: if it is not a path, or names a file that does not end in `.html`, such as
            `report.pdf`.
        OSError: if the folder cannot be made or written to.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ValueError(
            "`path` must be a folder, or a file that ends in .html. "
            f"Received: path={path!r} of type {type(path).__name__}"
        )
    target = Path(path).expanduser()
    one_page = target.suffix.lower() == ".html"
    if target.is_dir() if one_page else target.exists() and not target.is_dir():
        raise ValueError(
            "`path` must be a folder, or a file that ends in .html. "
            f"Received: path={str(path)!r}, which is a {'folder' if one_page else 'file'}"
        )
    if target.suffix.lower() in _OTHER_FILES and not target.is_dir():
        raise ValueError(
            "`path` must be a folder, into which all files are written, or a file that ends in "
            f".html, such as {str(target.with_suffix('.html'))!r}. Received: path={str(path)!r}"
        )
    make_folder("path", target.parent if one_page else target)
    return target, one_page


def write_files(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Write files into a folder, each completely or not at all; invalid characters are replaced."""
    for name, content in files.items():
        write_whole(folder / name, printable(content) if isinstance(content, str) else content)
