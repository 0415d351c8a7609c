"""Search for the images of a folder that holds one folder per class."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit._data.decoding import SUFFIXES
from finetune_kit._data.labels import missing, shown
from finetune_kit._text import listed, shortened

Groups = Callable[[str], Hashable] | str | re.Pattern[str]

_PARTS = {"train", "valid", "val", "validation", "test"}  # usual folder names of a split


def checked_folder(path: Any) -> Path:
    """Return the folder as a path, with `~` expanded, if it exists."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        hint, received = "", f"path={shortened(path)} of type {type(path).__name__}"
        if hasattr(path, "columns"):
            hint, received = "; read_image_table reads a DataFrame", f"a {type(path).__name__}"
        elif isinstance(path, (list, tuple, set)):
            hint = "; read each folder by itself and join the sets with +"
        raise ValueError(
            f"`path` must be one folder, as text or a path object{hint}. Received: {received}"
        )
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        reason = "is a file" if root.exists() else "does not exist"
        pattern = "; patterns are not expanded" if re.search(r"[*?\[]", str(root)) else ""
        raise FileNotFoundError(
            "`path` must be a folder with one folder per class. "
            f"Received: {str(root)!r}, which {reason}{pattern}"
        )
    return root


@dataclass(frozen=True)
class ClassFolders:
    """What was found in a folder, in the order of the names.

    Attributes:
        root: the folder.
        images: the image files of each class, at least one.
        skipped: files and folders that are not images of a class.
        closed: folders that cannot be read, with the reason.
    """

    root: Path
    images: dict[str, list[Path]]
    skipped: list[Path]
    closed: dict[Path, str]


def class_folders(root: Path) -> ClassFolders:
    """Search a folder for class folders and their images."""
    found = ClassFolders(root, {}, [], {})
    for entry in _entries(root, found):
        inside = os.path.isdir(entry) and entry.name != "masks"
        before = len(found.skipped)
        files = _images_of_class(entry, found) if inside else []
        if files:
            found.images[entry.name] = files
        elif entry not in found.closed:
            found.skipped[before:] = [entry]  # the folder stands for its content
    return found


def _images_of_class(folder: Path, found: ClassFolders, *, inner: bool = False) -> list[Path]:
    files: list[Path] = []
    for entry in _entries(folder, found):
        is_folder = os.path.isdir(entry)
        if entry.name == "images" and is_folder and not inner:  # links may form a circle
            files += _images_of_class(entry, found, inner=True)
        elif entry.suffix.lower() in SUFFIXES and not is_folder:
            files.append(entry)
        else:
            found.skipped.append(entry)
    return files


def _entries(folder: Path, found: ClassFolders) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        found.closed[folder] = f"fails with {type(error).__name__}: {error.strerror}"
        return []


def check_classes(found: ClassFolders, class_names: Sequence[str] | None) -> None:
    """Check that the folder has classes and that they fit `class_names`, if these are given."""
    root, names = str(found.root), list(found.images)
    if not found.closed and (not names or names == ["images"]):
        there = [entry.name for entry in _entries(found.root, found)]
        parts = [name for name in there if name in _PARTS]
        hint = _by_part(found, parts) or _parent_hint(found.root)
        raise ValueError(
            "`path` must hold one folder per class with images in it, such as "
            f"{found.root / 'CLASS'} or {found.root / 'CLASS' / 'images'}{hint}. "
            f"Received: {root!r}, which holds {shown(there)}"
        )
    unknown = [name for name in names if class_names is not None and name not in class_names]
    if unknown:
        raise ValueError(
            f"The class folders of `path` must be among class_names={list(class_names or ())}. "
            f"Received: {root!r} with the folders {shown(unknown)} too"
        )


def _parent_hint(root: Path) -> str:
    """Suggest the parent if the folder looks like one of several class folders."""
    folder = Path(os.path.abspath(root))
    folder = folder.parent if folder.name == "images" else folder
    scratch = ClassFolders(folder.parent, {}, [], {})
    siblings = [entry for entry in _entries(folder.parent, scratch) if os.path.isdir(entry)]
    others = (entry for entry in siblings if entry != folder and entry.name != "masks")
    if _images_of_class(folder, scratch) and any(_images_of_class(o, scratch) for o in others):
        return f"; did you mean the parent, {str(folder.parent)!r}?"
    return ""


def count_images(paths: Sequence[Path]) -> int:
    """Count the image files among paths and in the folders among them."""
    inside = [name for path in paths for _, _, names in os.walk(path) for name in names]
    names = [*inside, *(path.name for path in paths if not path.is_dir())]
    return sum(Path(name).suffix.lower() in SUFFIXES and name[0] != "." for name in names)


def warn_of_classes(found: ClassFolders) -> None:
    """Warn if the class folders look like parts of a split, or if there is only one."""
    root, names = str(found.root), list(found.images)
    if names and set(names) <= _PARTS:
        warnings.warn(
            f"The class folders of {root!r} are {names}{_by_part(found, names)}",
            stacklevel=3,
        )
    elif len(names) == 1:
        warnings.warn(
            f"{root!r} holds images of one class only, {names[0]!r}; if this is intended, pass "
            f"class_names={names}",
            stacklevel=3,
        )


def _by_part(found: ClassFolders, parts: Sequence[str]) -> str:
    if not parts:
        return ""
    example = f"read_image_folder({str(found.root / parts[0])!r})"
    return f"; if it is a split, read each part by itself, such as {example}"


def checked_groups(groups: Any) -> Callable[[str], Hashable] | re.Pattern[str]:
    """Return a function or a compiled regular expression that gives the group of a path."""
    if callable(groups):
        return groups
    pattern, reason = groups, ""
    if isinstance(groups, str):
        try:
            pattern = re.compile(groups)
        except re.error as error:
            reason = f", which fails with {error}"
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
        if pattern.groups == 1:
            return pattern
        reason = f", which has {pattern.groups}"
    raise ValueError(
        "`groups` must be a function of the relative path, or a regular expression with one group "
        r"in parentheses, such as r'(patient\d+)'. "
        f"Received: groups={shortened(groups)}{reason}"
    )


def groups_of(
    groups: Callable[[str], Hashable] | re.Pattern[str], paths: Sequence[str]
) -> list[str]:
    """Return the group of each path as text. An error names the first paths without one."""
    if isinstance(groups, re.Pattern):
        matches = [groups.search(path) for path in paths]
        values: list[Any] = [match and match[1] for match in matches]
    else:
        values = [_called(groups, path) for path in paths]
    gaps = missing(np.fromiter(values, object, len(values)))
    if gaps:
        reason = "does not match" if isinstance(groups, re.Pattern) else "returns none for"
        raise ValueError(
            "`groups` must give a group for each image. "
            f"Received: {shortened(groups)}, which {reason} {listed([paths[i] for i in gaps])}"
        )
    return list(map(str, values))


def _called(groups: Callable[[str], Hashable], path: str) -> Hashable:
    try:
        return groups(path)
    except Exception as error:  # the function is the user's
        raise ValueError(
            "`groups` must return the group of an image, given its path relative to the folder. "
            f"Received: a function that fails for {path!r} with {type(error).__name__}: {error}"
        ) from error
