"""Images for the command line: read from whatever is given, and split."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import finetune_kit as ftk
from finetune_kit._cli.job import Job
from finetune_kit._cli.output import say
from finetune_kit._data.folders import parts_in, top_folder
from finetune_kit._data.paths import absence, as_path, exists, is_archive, is_folder, open_text
from finetune_kit._text import plural


@dataclass(frozen=True)
class Data:
    """Where the images are, and how their labels and groups are found.

    Attributes:
        path: a folder or zip archive with a folder for each class, or with the parts of a split;
            a CSV file; or a manifest.
        groups_from: regular expression that finds the group in the path of an image, or None.
        root: folder that the paths of a CSV file are relative to, or None for its own folder.
        path_column: column of the paths of a CSV file.
        label_column: column of its labels; several, separated by commas, for multi-label images.
        group_column: column of its groups, or None.
        on_error: `"raise"` or `"skip"`, for files that cannot be read.
        check_files: whether all files of a manifest are compared with it first, or each when used.
    """

    path: str
    groups_from: str | None = None
    root: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    group_column: str | None = None
    on_error: str = "raise"
    check_files: bool = True

    def parts(self, class_names: Sequence[str] | None = None) -> dict[str, ftk.ImageSet]:
        """Read the images: the parts by name if they are split already, or `all`."""
        path = as_path("data", self.path)
        if not (is_folder(path) or is_archive(path)):
            return self._listed(path, class_names)
        names: list[str | None] = [*parts_in(top_folder(path))] or [None]
        return {
            name or "all": ftk.read_image_folder(
                path,
                part=name,
                groups=self.groups_from,
                class_names=class_names,
                on_error=self.on_error,
            )
            for name in names
        }

    def images(
        self, class_names: Sequence[str] | None = None, *, part: str | None = None
    ) -> ftk.ImageSet:
        """Read the images as one set, or a part of them if they are split already."""
        parts = self.parts(class_names)
        first, *others = [parts[part]] if part in parts else parts.values()
        for other in others:
            first = first + other
        return first

    def _listed(self, path: Path, class_names: Sequence[str] | None) -> dict[str, ftk.ImageSet]:
        """Read the images that a manifest or a CSV file lists."""
        if path.suffix.lower() == ".json" or _is_manifest(path):
            return ftk.read_manifest(path, check_files=self.check_files)
        if path.suffix.lower() != ".csv":
            reason = "is a file of another kind" if exists(path) else absence(path)
            raise FileNotFoundError(
                "The images must be a folder or a .zip file with a folder for each class, a .csv "
                f"file that lists images, or a manifest. Received: {self.path!r}, which {reason}"
            )
        columns = [name.strip() for name in self.label_column.split(",")]
        images = ftk.read_image_table(
            path,
            path=self.path_column,
            label=columns if len(columns) > 1 else columns[0],
            group=self.group_column,
            root=self.root,
            class_names=class_names,
            on_error=self.on_error,
        )
        return {"all": images}


@dataclass(frozen=True)
class Parts:
    """The sets of a training, and the duplicates among all of them if they were searched."""

    train: ftk.ImageSet
    validation: ftk.ImageSet
    test: ftk.ImageSet
    duplicates: ftk.Duplicates | None


def split_parts(
    parts: dict[str, ftk.ImageSet], sizes: Sequence[float], seed: int, *, duplicates: bool
) -> Parts:
    """Split images, with copies of a picture on one side; parts that are there already stay.

    Args:
        parts: the images as `all`, or as `train`, with `validation` and `test` where they are split
            already.
        sizes: shares of the three sets; those of parts that are there do not count.
        seed: of the split.
        duplicates: whether to search for them.
    """
    given = {name: images for name, images in parts.items() if name in ("validation", "test")}
    rest = [images for name, images in parts.items() if name in ("all", "train")]
    if len(rest) != 1 or len(given) + 1 != len(parts):
        raise ValueError(
            "The parts of a split must be named 'train', 'validation' and 'test'. "
            f"Received: {list(parts)}"
        )
    names = ("train", "validation", "test")
    shares = [0 if name in given else size for name, size in zip(names, sizes, strict=True)]
    shares = [share / sum(shares) for share in shares]
    found = ftk.find_duplicates(*rest, *given.values()) if duplicates else None
    if given and found is not None and found.crossing:
        warnings.warn(
            "Copies of an image lie in more than one of the given sets "
            f"({plural(len(found.crossing), 'cluster')}); `finetune-kit duplicates` lists them, "
            "and the report counts them",
            stacklevel=2,
        )
    groups = None if found is None else found.groups[: len(rest[0])]
    made = rest[0].split(shares, groups=groups, seed=seed)
    sets = {**dict(zip(names, made, strict=True)), **given}
    return Parts(**sets, duplicates=found)


def _is_manifest(path: Path) -> bool:
    """Return whether a CSV file is a manifest by its columns."""
    if path.suffix.lower() != ".csv":
        return False
    try:
        with open_text(path) as file:
            return {"part", "path", "sha256"} <= {*next(csv.reader(file), [])}
    except (OSError, ValueError, csv.Error):
        return False


def parts_of(job: Job, sizes: tuple[float, ...]) -> Parts:
    """Read the images of a job and split them, by default into sets of these sizes."""
    sizes = sizes if job.sizes is None else job.sizes
    options = {
        name: getattr(job, name)
        for name in (
            "groups_from", "root", "path_column", "label_column", "group_column", "on_error",
        )
    }  # fmt: skip
    parts = Data(job.data, **options).parts()
    names = next(iter(parts.values())).class_names
    for part, path in (("validation", job.validation), ("test", job.test)):
        if path is not None:
            parts[part] = Data(path, **options).images(names, part=part)
            others = [images for name, images in parts.items() if name != part]
            _check_apart(f"--{part}", path, parts[part], others)
    if "test" not in parts and not sizes[2]:
        raise ValueError(
            "The share of the test set must be above 0, or --test must name a folder. "
            f"Received: --sizes {','.join(map(str, sizes))}"
        )
    return split_parts(parts, sizes, job.seed, duplicates=job.duplicates)


def _check_apart(option: str, path: str, images: ftk.ImageSet, others: list[ftk.ImageSet]) -> None:
    """Check that no image file of a set is in another one too."""
    places, known = _places(images), set().union(*map(_places, others))
    if places & known:
        raise ValueError(
            f"{option} must hold other images than the other sets. Received: {path!r}, of whose "
            f"{plural(len(places), 'image')} {len(places & known):,} are in them too"
        )


def _places(images: ftk.ImageSet) -> set[Any]:
    return {images.source.place(row) for row in images.rows.tolist()}


def show_parts(parts: Parts, *, silent: bool) -> None:
    """Print how many images there are of each class and in each set."""
    sets = (parts.train, parts.validation, parts.test)
    counts = np.sum([images.counts() for images in sets], axis=0)
    shown = zip(parts.train.class_names, counts.tolist(), strict=True)
    text = ", ".join(f"{name} {count:,}" for name, count in shown)
    say(f"   {sum(map(len, sets)):,} images: {text}", silent=silent)
    if parts.duplicates is not None:
        count = len(parts.duplicates.clusters)
        found = (
            f"{plural(count, 'cluster')} of copies" if count else "No image is a copy of another"
        )
        say(f"   {found}", silent=silent)
    sizes = [
        f"{len(images):,} {name}"
        for name, images in (
            ("to train on", parts.train),
            ("to validate on", parts.validation),
            ("to test on", parts.test),
        )
        if len(images)
    ]
    say(f"   {', '.join(sizes)}", silent=silent)
