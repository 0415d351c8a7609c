"""Files in buckets, by URLs such as `s3://bucket/folder`, through fsspec (the extra `cloud`).

fsspec is imported when the first URL is used, and finds the credentials itself. What fails is tried
again a few times; then the error names the object. No object is renamed: stores of objects cannot.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from finetune_kit._urls import Url, shown_url, without_password

THREADS = 32  # requests at once; they wait for the network, not for a processor
_PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between tries; each is up to twice as long, at random
_PATIENCE = 60.0  # seconds; a server that takes longer to fail is not asked again

# Errors that another try does not change.
_FINAL = (
    PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError,
    ImportError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError,
)  # fmt: skip
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# File systems whose folders must be made. In a store of objects that could make a bucket.
_WITH_FOLDERS = {"sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs"}
# What changes when an object is replaced: the name differs between file systems.
_CHANGES = (
    "ETag", "etag", "md5Hash", "content_md5", "mtime", "updated", "last_modified", "created",
)  # fmt: skip


Result = TypeVar("Result")


class RemoteError(OSError):
    """An object could not be read or written. The message names it, and says what to do."""


def check_url(name: str, url: Any) -> Url:
    """Return an argument as a URL without a password, of a file system that is installed.

    Raises:
        ValueError: if it holds a password, or fsspec does not know its kind.
        ImportError: if a package is missing.
    """
    checked = without_password(name, url)
    _system(checked)
    return checked


def read(url: Url, end: int | None = None) -> bytes:
    """Return the content of an object, or the first `end` bytes.

    Raises:
        FileNotFoundError: if it does not exist.
        RemoteError: if it cannot be read.
    """
    system, path = _system(url)
    return _tried("read", url, lambda: bytes(system.cat_file(path, end=end)))


def download(url: Url, file: Path) -> None:
    """Copy an object to a file; errors as in `read`."""
    system, path = _system(url)

    def copy() -> None:
        system.get_file(path, str(file))
        arrived, size = file.stat().st_size, system.info(path)["size"]
        if arrived != size:
            _forget(system, _parent(path))  # it may have been replaced
            raise ConnectionError(f"{arrived:,} of {size:,} bytes arrived")

    _tried("read", url, copy)


def upload(file: Path, url: Url) -> None:
    """Put the content of a file as a whole object.

    Raises:
        RemoteError: if it cannot be written.
    """
    system, path = _system(url)

    def put() -> None:
        if _kind(url) in _WITH_FOLDERS:
            system.makedirs(_parent(path), exist_ok=True)
        system.put_file(str(file), path)

    try:
        _tried("written", url, put)
    except FileNotFoundError as error:
        raise RemoteError(
            errno.ENOENT,
            "The bucket must exist; create it, or correct its name. "
            f"Received: {str(url)!r}, which cannot be written: {_text(error)}",
        ) from error


def delete(urls: Iterable[Url]) -> None:
    """Delete objects; those that do not exist any more are left out."""
    found = list(urls)
    if not found:
        return
    system = _system(found[0])[0]
    paths = [_system(url)[1] for url in found]

    def remove() -> None:
        try:
            system.rm(paths)
        except FileNotFoundError:  # some of them, so one by one
            for path in paths:
                try:
                    system.rm_file(path)
                except FileNotFoundError:
                    continue

    _tried("deleted", found[0], remove)


def listed(folder: Url) -> list[Url]:
    """Return what lies in a folder, sorted, with `facts`; nothing if it does not exist."""
    system, path = _system(folder)

    def names() -> list[Any]:
        _forget(system, path)
        return list(system.ls(path, detail=True))

    try:
        found = _tried("listed", folder, names)
    except (FileNotFoundError, NotADirectoryError):
        return []
    inside = []
    for facts in found:
        name = facts["name"].rstrip("/")
        if name.rpartition("/")[2] and name.strip("/") != path.strip("/"):
            url = folder / name.rpartition("/")[2]
            url.facts = facts
            inside.append(url)
    return sorted(inside)


def facts_of(url: Url) -> Mapping[str, Any]:
    """Return size, type and so on of an object or folder as they are now.

    Raises:
        FileNotFoundError: if it does not exist.
        RemoteError: if it cannot be read.
    """
    system, path = _system(url)

    def ask() -> Mapping[str, Any]:
        _forget(system, _parent(path))
        return system.info(path)

    return _tried("read", url, ask)


def kind_of(url: Url) -> str | None:
    """Return `"file"`, `"directory"` or, if it does not exist, None."""
    try:
        return str((url.facts or facts_of(url))["type"])
    except FileNotFoundError:
        return None


def version_of(facts: Mapping[str, Any]) -> tuple[int, str]:
    """Return the size of an object, and what changes when it is replaced."""
    changes = [str(facts[name]) for name in _CHANGES if facts.get(name)]
    return int(facts["size"] or 0), changes[0] if changes else ""


def modified(facts: Mapping[str, Any]) -> float:
    """Return when an object was written, in seconds; 0 if the file system does not tell."""
    names = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")
    when = next((facts[name] for name in names if facts.get(name)), 0.0)
    if hasattr(when, "timestamp"):
        return float(when.timestamp())
    return datetime.fromisoformat(when).timestamp() if isinstance(when, str) else float(when)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _forget(system: Any, folder: str) -> None:
    """Make fsspec list a folder anew: others write to the bucket too."""
    with suppress(KeyError):  # another thread has done it
        system.invalidate_cache(folder)


def _kind(url: Url) -> str:
    return str(url).partition("://")[0].lower()


def _system(url: Url) -> tuple[Any, str]:
    """Return the file system of a URL, which fsspec keeps, and the path in it."""
    kind = _kind(url)
    if kind in ("http", "https"):
        raise ValueError(
            "A URL must be that of a bucket, such as s3://bucket/folder; download files of other "
            f"servers first. Received: {str(url)!r}"
        )
    if "::" in kind:
        raise ValueError(
            "A URL must name one file system, such as s3://bucket/folder, because copies are kept "
            f"without another one; leave out what stands before ::. Received: {str(url)!r}"
        )
    try:
        from fsspec.core import url_to_fs  # the extra `cloud`, imported when needed

        return url_to_fs(str(url), **_options(kind))
    except ImportError as error:
        raise ImportError(
            f"Paths such as {str(url)!r} need fsspec and its package for {kind}:// "
            "(pip install 'finetune-kit[cloud]' for s3://; for other kinds, also the package that "
            f"fsspec names). {_text(error)}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"A URL must be of a kind that fsspec knows, such as s3://. Received: {str(url)!r}, "
            f"which fails with {_text(error)}"
        ) from error


def _options(kind: str) -> dict[str, Any]:
    if kind in ("file", "local"):
        return {"auto_mkdir": True}
    if kind not in ("s3", "s3a"):
        return {}
    from fsspec.config import conf

    own = conf.get(kind, {})
    # One GET for an object, without a HEAD before it; as many connections as threads; and the tries
    # are ours, as those of botocore, s3fs and this module would be multiplied.
    config = {"max_pool_connections": THREADS, "retries": {"total_max_attempts": 1}}
    return {
        "max_concurrency": 1,
        **own,
        "config_kwargs": {**config, **own.get("config_kwargs", {})},
    }


def _tried(done: str, url: Url, work: Callable[[], Result]) -> Result:
    """Return what `work` returns. If it fails it is tried again, unless that cannot help."""
    began = time.monotonic()
    for pause in (*_PAUSES, None):
        try:
            return work()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:  # each file system has errors of its own
            if pause is None or _is_final(error) or time.monotonic() - began > _PATIENCE:
                raise _failure(done, url, error) from error
            time.sleep(pause * random.uniform(1, 2))
    raise AssertionError  # not reached


def _is_final(error: Exception) -> bool:
    lacks_key = "Credentials" in type(error).__name__  # botocore's NoCredentialsError
    full = isinstance(error, OSError) and error.errno in {*_FULL, errno.EINVAL, errno.EROFS}
    return isinstance(error, _FINAL) or lacks_key or full


def _failure(done: str, url: Url, error: Exception) -> Exception:
    final = _is_final(error)
    tries = "" if final else " after several tries"
    reason = f"{str(url)!r} cannot be {done}{tries}: {_text(error)}"
    if isinstance(error, OSError) and error.errno in _FULL:
        return OSError(error.errno, f"{reason}. Free space, or choose another folder")
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return RemoteError(
            errno.EACCES,
            f"{reason}. Check that the credentials that fsspec finds (environment, configuration "
            "files) permit it",
        )
    if final:
        return RemoteError(getattr(error, "errno", None) or errno.EIO, reason)
    return RemoteError(
        errno.EIO,
        f"{reason}. Check the connection and call again: what was finished before is kept",
    )


def _text(error: BaseException) -> str:
    """Return an error as text, without passwords of URLs in it."""
    return f"{type(error).__name__}: {shown_url(' '.join(str(error).split()))}"
