"""Files and folders on disk, in buckets, and in zip archives by `archive.zip/train/cat/1.png`.

Archives on disk are read in place; nothing is unpacked. A path in a bucket is a `Url`, which only
the functions of this module can read.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, cast

from finetune_kit import _buckets
from finetune_kit._buckets import check_url
from finetune_kit._urls import Url, is_url, without_password

_MOST_BYTES = 1 << 30  # of one file: a small archive may expand to anything


@dataclass(frozen=True, eq=False)
class _Archive:
    """An open archive: its members by name, and the names in each folder."""

    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]
    folders: Mapping[str, frozenset[str]]


def as_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Return the path that was given as an argument, with `~` expanded.

    Raises:
        ValueError: if it is a URL that holds a password.
        ImportError: if it is a URL, and fsspec or its package for such URLs is missing.
    """
    if not is_url(path):
        return Path(os.path.expanduser(path))
    return cast(Path, check_url(name, path))


def joined_path(folder: Path, path: str) -> Path:
    """Return a path relative to a folder; a URL stays as it is."""
    return cast(Path, without_password("path", path)) if is_url(path) else folder / path


def normal(path: str | os.PathLike[str]) -> str:
    """Return a path without `..` and repeated separators."""
    return str(Url(path)) if is_url(path) else os.path.normpath(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path that does not depend on the current folder."""
    return str(Url(path)) if is_url(path) else os.path.abspath(path)


def _url(path: Any) -> Url:
    return path if isinstance(path, Url) else Url(path)


def member_of(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the archive of a path and the name in it, empty for the archive; None for others."""
    text = os.fspath(path)
    if ".zip" not in text.lower() or is_url(text):
        return None
    for match in re.finditer(r"\.zip(?=[/\\]|$)", text, re.IGNORECASE):
        archive, name = text[: match.end()], text[match.end() :]
        if os.path.isfile(archive):
            return archive, name.replace(os.sep, "/").strip("/")
    return None


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder exists."""
    if is_url(path):
        return _buckets.kind_of(_url(path)) is not None
    found = member_of(path)
    if found is None:
        return os.path.exists(path)
    opened = _open(found[0])
    return found[1] in opened.members or found[1] in opened.folders


def absence(path: str | os.PathLike[str]) -> str:
    """Return what an error says of a path that does not exist, and what to check in a bucket."""
    check = (
        "; check the names of the bucket and the folder, and that the endpoint and the credentials "
        "that fsspec finds are those of the bucket"
    )
    return f"does not exist{check if is_url(path) else ''}"


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a file."""
    if is_url(path):
        return _buckets.kind_of(_url(path)) == "file"
    found = member_of(path)
    if found is None or not found[1]:
        return os.path.isfile(path)
    return found[1] in _open(found[0]).members


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder. An archive is a file."""
    if is_url(path):
        return _buckets.kind_of(_url(path)) == "directory"
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
    if is_url(folder):
        inside = cast(list[Path], _buckets.listed(_url(folder)))
        return [entry for entry in inside if not entry.name.startswith(".")]
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
    except _buckets.RemoteError:
        raise
    except OSError:
        return
    for entry in inside:
        if not is_folder(entry):
            yield entry
        elif not entry.is_symlink():
            yield from files_below(entry)


def open_binary(path: str | os.PathLike[str]) -> BufferedIOBase:
    """Open a file for reading."""
    content = content_of(path)
    return open(path, "rb") if content is None else io.BytesIO(content)


def open_text(path: str | os.PathLike[str]) -> IO[str]:
    """Open a text file (UTF-8) for reading; line ends stay as they are."""
    content = content_of(path)
    if content is None:
        return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")
    # utf-8-sig drops the mark that Excel writes at the beginning.
    return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", "surrogateescape", newline="")


def content_of(path: str | os.PathLike[str]) -> bytes | None:
    """Return the content of a file in an archive or a bucket; None for a file on disk.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it cannot be read from the archive.
        RemoteError: if it cannot be read from the bucket.
    """
    if is_url(path):
        url = _url(path)
        content = _buckets.read(url)
        if url.facts is not None:  # the digest of what was listed, without another download
            digest = hashlib.sha256(content).hexdigest()
            _KNOWN[str(url)] = (_buckets.version_of(url.facts), digest)
        return content
    found = member_of(path)
    return None if found is None else read_member(*found)


def first_bytes(path: str | os.PathLike[str], count: int) -> bytes:
    """Return the first bytes of a file."""
    if is_url(path):
        return _buckets.read(_url(path), count)
    with open_binary(path) as file:
        return file.read(count)


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
    try:
        return opened.file.read(info)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError) as error:
        raise ValueError(f"it is damaged: {error}") from error


# Of files that were read in this process, by absolute path: their state, and SHA-256.
_KNOWN: dict[str, tuple[Hashable, str]] = {}


def digest_of(path: str) -> str:
    """Return the SHA-256 of a file. It is read again only after its size or a time has changed.

    Raises:
        OSError: if it cannot be read, or does not exist.
        ValueError: if it cannot be read from an archive.
    """
    # Not abspath, which would take `link/../a.png` for `a.png`.
    where = str(Url(path)) if is_url(path) else os.path.join(os.getcwd(), path)
    state = _state(where)
    known, digest = _KNOWN.get(where, (None, ""))
    if known != state:
        with open_binary(where) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _KNOWN[where] = (state, digest)
    return digest


def _state(path: str) -> Hashable:
    """Return what changes when the content of a file changes."""
    if is_url(path):
        return _buckets.version_of(_buckets.facts_of(Url(path)))
    found = member_of(path)
    stat = os.stat(path if found is None else found[0])
    # The last time reveals a file that was replaced by one of the same size and write time.
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


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
