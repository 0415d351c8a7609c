"""Bytes or text come in, a file that is whole goes out.

Below all rooms that write: a process that is killed leaves the old file or the new one.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    draft = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with draft.open("wb") as file:
            file.write(
                content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
            )
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the bytes
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
