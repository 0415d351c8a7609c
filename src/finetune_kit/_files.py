"""Writing of files and folders, so that an interruption leaves nothing half-written."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file completely or not at all."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")  # file names may not be valid UTF-8
    draft = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the bytes must reach the disk before the name does
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def make_folder(name: str, path: str | os.PathLike[str]) -> Path:
    """Create the folder that was given as an argument, unless it exists; it must be writable."""
    folder = Path(path).expanduser()
    if re.match(r"[A-Za-z][A-Za-z0-9+.:-]+:/", str(path)):  # a URL; a path object has one slash
        raise ValueError(
            f"`{name}` must be on this machine; images and features may lie in a bucket. "
            f"Received: {name}={str(path)!r}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{uuid.uuid4().hex}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"`{name}` must be a folder that can be written; choose another one or change its "
            f"permissions. Received: {name}={str(path)!r}, which fails with {error.strerror}",
        ) from error
    return folder
