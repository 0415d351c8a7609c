"""Bytes or text come in, a file that is whole goes out.

Below all rooms that write: a process that is killed leaves the old file or the new one.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")  # names of files may be no UTF-8
    draft = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the bytes
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
