"""URLs as paths, such as `s3://bucket/folder`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

# The colons are those of fsspec's chains, such as simplecache::s3://, which are not supported.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_SINGLE = re.compile(r"^([A-Za-z][A-Za-z0-9+.:-]*:)/+")
# A name and a password, which may hold slashes; not a port.
_SECRET = re.compile(r"(?<=://)[^/@:\s]*:(?!\d+/)\S*@")


class Url(PurePosixPath):
    """A URL that is joined, compared and sorted as a path.

    Attributes:
        facts: size, type and so on, if a listing of its folder has shown them, or else None.
    """

    facts: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        text = super().__str__()  # in which all slashes are single
        slashes = "///" if text.startswith(("file:", "local:")) else "//"
        return _SINGLE.sub(rf"\1{slashes}", text)

    def __fspath__(self) -> str:
        return str(self)

    def is_symlink(self) -> bool:
        """Return False."""
        return False


def is_url(path: Any) -> bool:
    """Return whether a path is a URL, by its text alone."""
    if not isinstance(path, (str, os.PathLike)):
        return False
    text = os.fspath(path)
    return "://" in text and _URL.match(text) is not None


def shown_url(url: Any) -> str:
    """Return a URL, or a text that holds one, without a password."""
    return _SECRET.sub("***@", str(url))


def without_password(name: str, url: Any) -> Url:
    """Return an argument as a URL.

    Raises:
        ValueError: if it holds a password.
    """
    if _SECRET.search(str(url)):
        raise ValueError(
            f"`{name}` must be a URL without a password, because it is shown in reports. Set it "
            "where fsspec looks for it: in the environment or in its configuration files. "
            f"Received: {name}={shown_url(url)!r}"
        )
    return Url(url)
