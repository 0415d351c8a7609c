"""Search for the images of a folder that holds one folder per class."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit._buckets import RemoteError
from finetune_kit._data.decoding import SUFFIXES, format_of
from finetune_kit._data.labels import missing, shown
from finetune_kit._data.paths import (
    absence,
    absolute,
    as_path,
    entries,
    exists,
    files_below,
    is_archive,
    is_file,
    is_folder,
    joined_path,
)
from finetune_kit._text import listed, shortened

Groups = Callable[[str], Hashable] | str | re.Pattern[str]

# The parts of a split, with the usual names of their folders.
PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
ALL_PARTS = {name for names in PARTS.values() for name in names}


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
    root = as_path("path", path)
    if not is_folder(root) and not is_archive(root):
        reason = "is a file" if exists(root) else absence(root)
        pattern = "; patterns are not expanded" if re.search(r"[*?\[]", str(root)) else ""
        raise FileNotFoundError(
            "`path` must be a folder with one folder per class. "
            f"Received: {str(root)!r}, which {reason}{pattern}"
        )
    return top_folder(root)


def top_folder(root: Path) -> Path:
    """Return the only folder in an archive if it holds folders, as many programs pack it."""
    inside = entries(root) if is_archive(root) else []
    if len(inside) == 1 and is_folder(inside[0]) and any(map(is_folder, entries(inside[0]))):
        return inside[0]
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
    for entry, to_read in _entries_to_read(root, found):
        before = len(found.skipped)
        files = images_in(entry, found, {os.path.realpath(root)}) if to_read else []
        if files:
            found.images[entry.name] = files
        elif entry not in found.closed:
            found.skipped[before:] = [entry]  # the folder stands for its content
    return found


def images_in(folder: Path, found: ClassFolders, seen: set[str]) -> list[Path]:
    """Return the images in a folder, and in the folders in it."""
    if os.path.realpath(folder) in seen:  # links may form a circle
        return []
    seen.add(os.path.realpath(folder))
    files: list[Path] = []
    for entry, to_read in _entries_to_read(folder, found):
        before = len(found.skipped)
        alone = [entry] if is_image(entry) else []
        inside = images_in(entry, found, seen) if to_read else alone
        files += inside
        if not inside and entry not in found.closed:
            found.skipped[before:] = [entry]
    return files


def _entries_to_read(folder: Path, found: ClassFolders) -> list[tuple[Path, bool]]:
    """Return the entries of a folder, and whether each is a folder to read.

    Lung masks lie in a folder `masks` beside the `images`.
    """
    pairs = [(entry, is_folder(entry)) for entry in _entries(folder, found)]
    has_images = any(inside and entry.name == "images" for entry, inside in pairs)
    return [(e, inside and not (has_images and e.name == "masks")) for e, inside in pairs]


def is_image(file: Path) -> bool:
    """Return whether a file is an image by its suffix, or else by its content."""
    if file.suffix.lower() in SUFFIXES:
        return not is_folder(file)
    try:
        return is_file(file) and bool(format_of(file))
    except RemoteError:
        raise
    except (OSError, ValueError):
        return False


def _entries(folder: Path, found: ClassFolders) -> list[Path]:
    try:
        return entries(folder)
    except RemoteError:
        raise
    except OSError as error:
        found.closed[folder] = f"fails with {type(error).__name__}: {error.strerror}"
        return []


def check_classes(found: ClassFolders, class_names: Sequence[str] | None) -> None:
    """Check that the folder has classes and that they fit `class_names`, if these are given."""
    root, names = str(found.root), list(found.images)
    direct = any(
        file.parent.parent == found.root for files in found.images.values() for file in files
    )
    of_parts = bool(names) and {*names} <= ALL_PARTS and not direct
    if not found.closed and (not names or names == ["images"] or of_parts):
        there = [entry.name for entry in _entries(found.root, found)]
        parts = [name for name in there if name in ALL_PARTS]
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


def parts_in(root: Path) -> dict[str, Path]:
    """Return the folders of the parts if a folder is split already, and else none.

    It is if it holds a part for training, another one, and no folder besides them.
    """
    folders = {entry.name.lower(): entry for entry in entries(root) if is_folder(entry)}
    found = {
        part: folders[name] for part, names in PARTS.items() for name in names if name in folders
    }
    return found if "train" in found and len(found) == len(folders) > 1 else {}


def folder_of(root: Path, part: str) -> Path:
    """Return the folder of a part of a split.

    Raises:
        FileNotFoundError: if there is none.
    """
    names = {entry.name.lower(): entry for entry in entries(root) if is_folder(entry)}
    found = [names[name] for name in PARTS[part] if name in names]
    if not found:
        raise FileNotFoundError(
            f"`path` must hold a folder of the part, named {' or '.join(PARTS[part])}. "
            f"Received: {str(root)!r} with part={part!r}, which holds {shown(sorted(names))}"
        )
    return found[0]


def _parent_hint(root: Path) -> str:
    """Suggest the parent if the folder looks like one of several class folders."""
    folder = joined_path(Path(), absolute(root))
    folder = folder.parent if folder.name == "images" else folder
    scratch = ClassFolders(folder.parent, {}, [], {})
    siblings = [entry for entry, read in _entries_to_read(folder.parent, scratch) if read]
    others = (entry for entry in siblings if entry != folder)
    if images_in(folder, scratch, set()) and any(images_in(o, scratch, set()) for o in others):
        return f"; did you mean the parent, {str(folder.parent)!r}?"
    return ""


def count_images(paths: Sequence[Path]) -> int:
    """Count the image files among paths and in the folders among them."""
    files = [f for path in paths for f in (files_below(path) if is_folder(path) else [path])]
    return sum(file.suffix.lower() in SUFFIXES for file in files)


def warn_of_classes(found: ClassFolders, bad: Sequence[Path], *, fixed: bool) -> None:
    """Warn of class folders that lost most of their files, that are parts, or of a single one."""
    root, names = str(found.root), list(found.images)
    lost = Counter(path.relative_to(found.root).parts[0] for path in [*bad, *_lost(found)])
    broken = {*bad}
    kept = {name: sum(f not in broken for f in files) for name, files in found.images.items()}
    poor = [
        f"{name!r} ({kept.get(name, 0):,} of {kept.get(name, 0) + count:,} files)"
        for name, count in lost.items()
        if count > kept.get(name, 0)
    ]
    if poor:
        warnings.warn(
            f"Most files of these folders in {root!r} were skipped, because they are not images or "
            f"cannot be read: {listed(poor, 20)}; `skipped` of the set lists them",
            stacklevel=3,
        )
    if fixed:
        return
    if names and set(names) <= ALL_PARTS:
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


def _lost(found: ClassFolders) -> list[Path]:
    """Return the skipped files in folders, without masks beside images."""
    lost: list[Path] = []
    for path in found.skipped:
        if is_folder(path) and not path.is_symlink():
            beside = path.name == "masks" and is_folder(path.parent / "images")
            lost += [] if beside else files_below(path)
        elif path.parent != found.root and not is_folder(path):
            lost.append(path)
    return lost


def _by_part(found: ClassFolders, parts: Sequence[str]) -> str:
    if not parts:
        return ""
    part = next(part for part, names in PARTS.items() if parts[0] in names)
    return f"; if they are the parts of a split, read each by itself, with part={part!r} and so on"


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
