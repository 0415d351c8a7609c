"""Files and folders on disk, and in zip archives by paths such as `archive.zip/train/cat/1.png`.

Archives are read in place; nothing is unpacked.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path
from typing import IO

_MOST_BYTES = 1 << 30  # of one file: a small archive may expand to anything


@dataclass(frozen=True, eq=False)
class _Archive:
    """An open archive: its members by name, and the names in each folder."""

    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]
    folders: Mapping[str, frozenset[str]]


def member_of(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the archive of a path and the name in it, empty for the archive; None for others."""
    text = os.fspath(path)
    if ".zip" not in text.lower():
        return None
    for match in re.finditer(r"\.zip(?=[/\\]|$)", text, re.IGNORECASE):
        archive, name = text[: match.end()], text[match.end() :]
        if os.path.isfile(archive):
            return archive, name.replace(os.sep, "/").strip("/")
    return None


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder exists, on disk or in an archive."""
    found = member_of(path)
    if found is None:
        return os.path.exists(path)
    opened = _open(found[0])
    return found[1] in opened.members or found[1] in opened.folders


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a file, on disk or in an archive."""
    found = member_of(path)
    if found is None or not found[1]:
        return os.path.isfile(path)
    return found[1] in _open(found[0]).members


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder, on disk or in an archive. An archive is a file."""
    found = member_of(path)
    if found is None:
        return os.path.isdir(path)
    return bool(found[1]) and found[1] in _open(found[0]).folders


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a zip archive."""
    found = member_of(path)
    return found is not None and not found[1]


def entries(folder: Path) -> list[Path]:
    """Return the files and folders in a folder or an archive, without hidden ones.

    Raises:
        OSError: if the folder cannot be read.
        ValueError: if the archive cannot be read.
    """
    found = member_of(folder)
    if found is None:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    names = _open(found[0]).folders[found[1]]
    # macOS adds a folder of that name, whose files repeat the names of the images.
    shown = (name for name in names if not name.startswith(".") and name != "__MACOSX")
    return sorted(folder / name for name in shown)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder at any depth, without hidden ones; links are not followed."""
    try:
        inside = entries(folder)
    except OSError:
        return
    for entry in inside:
        if not is_folder(entry):
            yield entry
        elif not entry.is_symlink():
            yield from files_below(entry)


def open_binary(path: str | os.PathLike[str]) -> BufferedIOBase:
    """Open a file on disk or in an archive for reading."""
    found = member_of(path)
    return open(path, "rb") if found is None else io.BytesIO(read_member(*found))


def open_text(path: str | os.PathLike[str]) -> IO[str]:
    """Open a text file (UTF-8) on disk or in an archive; line ends stay as they are."""
    found = member_of(path)
    if found is None:
        return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")
    content = io.BytesIO(read_member(*found))
    # utf-8-sig drops the mark that Excel writes at the beginning.
    return io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="")


def read_member(archive: str, name: str) -> bytes:
    """Return the content of a file in an archive, whose checksum is verified.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is too large, encrypted or damaged.
    """
    opened = _open(archive)
    if name not in opened.members:
        raise FileNotFoundError("is not a file" if name in opened.folders else "does not exist")
    info = opened.members[name]
    if info.file_size > _MOST_BYTES:
        raise ValueError(f"it expands to {info.file_size:,} bytes, more than {_MOST_BYTES:,}")
    if info.flag_bits & 1:
        raise ValueError("it is encrypted; unpack the archive")
    return opened.file.read(info)


def file_state(path: str) -> tuple[int, int, int]:
    """Return numbers of a file that change when its content changes, on disk or in an archive."""
    found = member_of(path)
    stat = os.stat(path if found is None else found[0])
    # The last time reveals a file that was replaced by one of the same size and write time.
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return state


def _open(archive: str) -> _Archive:
    stat = os.stat(archive)
    return _opened(os.path.join(os.getcwd(), archive), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(archive: str, size: int, modified: int) -> _Archive:
    """Open an archive and index its members, again only if it has changed."""
    try:
        file = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive!r} must be a zip archive. Received: {error}") from error
    members: dict[str, zipfile.ZipInfo] = {}
    folders: dict[str, set[str]] = {"": set()}
    for info in file.infolist():
        parts = [
            part for part in info.filename.replace("\\", "/").split("/") if part not in ("", ".")
        ]
        if ".." in parts:  # it would lead out of the archive
            continue
        name = "/".join(parts)
        if info.is_dir():
            folders.setdefault(name, set())
        else:
            members[name] = info
        for i, part in enumerate(parts):
            folders.setdefault("/".join(parts[:i]), set()).add(part)
    return _Archive(file, members, {name: frozenset(inside) for name, inside in folders.items()})
