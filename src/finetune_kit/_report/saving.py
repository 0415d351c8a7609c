"""Write the files of a report or a comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_kit._files import write_whole


def is_page(path: Any) -> bool:
    """Return whether a path names one HTML page, not a folder; check that it is a path.

    Raises:
        ValueError: if it is not a path, or names a file that does not end in `.html`.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ValueError(
            "`path` must be a folder, or a file that ends in .html. "
            f"Received: path={path!r} of type {type(path).__name__}"
        )
    target = Path(path)
    one_page = target.suffix.lower() == ".html"
    if target.is_dir() if one_page else target.exists() and not target.is_dir():
        raise ValueError(
            "`path` must be a folder, or a file that ends in .html. "
            f"Received: path={str(path)!r}, which is a {'folder' if one_page else 'file'}"
        )
    return one_page


def write_files(folder: Path, files: Mapping[str, bytes | str], returned: Path) -> Path:
    """Write files into a folder, each completely or not at all, and return `returned`.

    Raises:
        OSError: if the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise OSError(
            f"`path` must be in a folder that can be written to. Received: path={str(returned)!r} "
            f"({error.strerror or error})"
        ) from error
    return returned
