"""A set of images with their labels: `ImageSet`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_kit._checks import check_indices, is_count
from finetune_kit._data.datasets import contents_of
from finetune_kit._data.joining import check_joinable, joined_fields, warn_of_common_images
from finetune_kit._data.labels import as_groups, as_values, class_indices, group_names, rgb_pixels
from finetune_kit._data.pixels import Arrays, Source, is_remote, load_pixels
from finetune_kit._data.sheets import of_images
from finetune_kit._data.split import SPLIT_HINTS, stratified
from finetune_kit._data.threads import in_threads
from finetune_kit._hints import hints
from finetune_kit._text import plural, shortened


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels. No image is decoded before `load` is called.

    `read_image_folder`, `read_image_table`, `read_manifest`, `ImageSet.from_arrays` and
    `ImageSet.from_dataset` make one. A set never changes: `take`, `split` and `+` return new sets,
    which share the images.

    Attributes:
        source: the files or arrays that the pixels come from.
        labels: class index of each image, int array `(n,)`; or, for multi-label images, 0 or 1 for
            each label, int array `(n, num_labels)`.
        class_names: the classes (or labels) in the order of their indices.
        groups: the group of each image (such as the patient) as text, array `(n,)`, or None.
        skipped: files and folders that were found but are not in the set.
        manifest: fingerprint of the manifest that lists the images, or None.
        rows: number of each image in `source`, int array `(n,)`. Defaults to all, in order.
    """

    source: Source = field(repr=False)
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()
    groups: NDArray[np.str_] | None = None
    skipped: tuple[str, ...] = field(default=(), repr=False)
    manifest: str | None = None
    rows: NDArray[np.int64] = field(default=None, repr=False)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if not hasattr(self.source, "digest"):
            raise TypeError(
                "Use ImageSet.from_arrays(x, labels) for pixels in memory, and read_image_folder "
                "or read_image_table for files. "
                f"Received: a source of type {type(self.source).__name__}"
            )
        rows = np.arange(len(self.source)) if self.rows is None else np.asarray(self.rows)
        labels, names = class_indices(np.asarray(self.labels), self.class_names, len(rows))
        groups = None if self.groups is None else group_names(as_groups(self.groups), len(rows))
        checked = {"rows": rows, "labels": labels, "class_names": names, "groups": groups}
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # as the class is frozen

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        counts = zip(self.class_names, self.counts(), strict=True)
        kind = "multi-label" if self.multi_label else ""
        numbers = ", ".join(f"{name}: {count:,}" for name, count in counts)
        facts = [plural(len(self), "image"), kind, numbers]
        return f"ImageSet({'; '.join(fact for fact in facts if fact)})"

    def _repr_html_(self) -> str:
        kinds = plural(len(self.class_names), "label" if self.multi_label else "class")
        facts = [f"ImageSet: {plural(len(self), 'image')}, {kinds}"]
        if self.groups is not None:
            facts[0] += f", {plural(len(set(self.groups.tolist())), 'group')}"
        if self.skipped:
            facts.append(f"skipped: {plural(len(self.skipped), 'path')}; see ImageSet.skipped")
        counts = list(zip(self.class_names, self.counts().tolist(), strict=True))
        return of_images(facts, counts, self._rows_of, self.source)

    def _rows_of(self, label: int) -> NDArray[np.int64]:
        """Return the rows of the images of a class (with a label) in `source`."""
        return self.rows[self.labels[:, label] == 1 if self.multi_label else self.labels == label]

    def __getitem__(self, key: Any) -> NoReturn:
        """Raise an error that names `take` and `load`; Python iterates by this method too."""
        raise TypeError(
            "An ImageSet has no items. Use images.take([0, 1]) for some of its images, "
            "images.load([0]) for pixels, or images.labels and images.paths. "
            f"Received: images[{shortened(key)}]"
        )

    def __add__(self, other: ImageSet) -> ImageSet:
        """Join two sets of the same classes, such as `train + validation`."""
        if not isinstance(other, ImageSet):
            return NotImplemented
        check_joinable(self, other)
        warn_of_common_images(self, other)
        return replace(self, **joined_fields(self, other))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The image files, or made-up names for images in memory."""
        return tuple(self.source.file(row) or f"image {row}" for row in self.rows.tolist())

    def counts(self) -> NDArray[np.int64]:
        """Return the number of images of each class, int array `(num_classes,)`."""
        if self.multi_label:
            return self.labels.sum(axis=0)
        return np.bincount(self.labels, minlength=len(self.class_names))

    def take(self, indices: ArrayLike) -> ImageSet:
        """Return some of the images as a new set.

        Args:
            indices: the images to take, in this order, int array `(m,)`.

        Returns:
            An `ImageSet` with the labels and groups of these images.

        Raises:
            ValueError: if an index does not exist.

        Example:
            >>> images = ImageSet.from_arrays(np.full((4, 8, 8, 3), 9, np.uint8), list("abab"))
            >>> images.take([0, 2])
            ImageSet(2 images; a: 2, b: 0)
        """
        chosen = np.asarray(indices)
        check_indices("indices", chosen, len(self))
        chosen = chosen.astype(np.int64)  # an empty list is an array of floats
        return replace(
            self,
            labels=self.labels[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            rows=self.rows[chosen],
        )

    @hints(**SPLIT_HINTS)
    def split(
        self,
        sizes: Sequence[float] = (0.70, 0.15, 0.15),
        *,
        seed: int = 0,
        groups: ArrayLike | None = None,
    ) -> tuple[ImageSet, ImageSet, ImageSet]:
        """Split the images into train, validation and test sets with the same class shares.

        Images of one group (such as a patient) stay together. `stratified_split` describes the
        method and does the same for any labels.

        Args:
            sizes: shares of the three sets, which sum to 1, or counts, which sum to the number of
                images. Each may be 0. Defaults to `(0.70, 0.15, 0.15)`.
            seed: seed of the shuffle. The same seed gives the same sets. Defaults to 0.
            groups: group of each image, any values, `(n,)`, such as `Duplicates.groups`. Defaults
                to `ImageSet.groups`.

        Returns:
            The sets `(train, validation, test)`.

        Raises:
            ValueError: if the sizes do not sum up, or a class has fewer images (or groups) than
                there are sets to fill.

        Example:
            >>> images = ImageSet.from_arrays(np.full((8, 8, 8, 3), 9, np.uint8), list("abababab"))
            >>> train, validation, test = images.split((0.5, 0.25, 0.25), seed=0)
            >>> print(train)
            ImageSet(4 images; a: 2, b: 2)
        """
        groups = self.groups if groups is None else groups
        parts = stratified(self.labels, sizes, groups, seed, self.class_names)
        return self.take(parts.train), self.take(parts.validation), self.take(parts.test)

    def digests(self) -> tuple[str, ...]:
        """Return the SHA-256 of each image: of its file, or of its pixels in memory.

        Each file is read once in a process, and again only if its size or time has changed.

        Returns:
            A digest in hexadecimal for each image.

        Raises:
            ValueError: if a file cannot be read.
        """
        unique, place = np.unique(self.rows, return_inverse=True)
        found = in_threads(self.source.digest, unique.tolist(), 64, is_remote(self.source))
        return tuple(found[i] for i in place.tolist())

    def load(
        self, indices: ArrayLike | None = None, size: tuple[int, int] = (224, 224)
    ) -> NDArray[np.uint8]:
        """Decode images.

        Args:
            indices: the images to decode, in this order. Defaults to all.
            size: height and width in pixels to which each image is resized (bilinear, with
                antialiasing, without keeping the aspect ratio). Defaults to `(224, 224)`.

        Returns:
            RGB pixels from 0 to 255, uint8 `(n, height, width, 3)`.

        Raises:
            ValueError: if a file cannot be decoded, or an index does not exist.
        """
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices)
        check_indices("indices", chosen, len(self))
        if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(is_count, size)):
            raise ValueError(
                "`size` must be height and width, whole numbers such as (224, 224). "
                f"Received: size={size!r}"
            )
        return load_pixels(self.source, self.rows[chosen.astype(np.int64)], (size[0], size[1]))

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike,
        labels: ArrayLike,
        class_names: Sequence[str] | None = None,
        groups: ArrayLike | None = None,
    ) -> ImageSet:
        """Make a set of images that are in memory.

        Args:
            x: pixels from 0 to 255, uint8 `(n, h, w, 3)` RGB, `(n, h, w, 1)` or `(n, h, w)` gray.
                They are copied unless the array is read-only.
            labels: class index of each image, or its class name, `(n,)`; or, for multi-label
                images, 0 or 1 for each label, `(n, num_labels)`.
            class_names: the classes (or labels) in the order of their indices. Defaults to the
                sorted names found in `labels` (or the indices, as text).
            groups: a group (such as the patient) for each image, any values, `(n,)`.

        Returns:
            An `ImageSet`.

        Raises:
            ValueError: if a shape, the dtype or a label does not fit.

        Example:
            >>> x = np.full((4, 32, 32, 3), 128, np.uint8)
            >>> ImageSet.from_arrays(x, ["cat", "dog", "cat", "dog"])
            ImageSet(4 images; cat: 2, dog: 2)
        """
        values = as_values(labels)
        rgb = rgb_pixels(x, values)
        indices, names = class_indices(values, class_names, len(rgb))
        if indices.ndim == 2 and (indices.sum(axis=1) == 1).all():
            warnings.warn(
                "`labels` of shape (n, k) are read as multi-label, but each image has exactly one "
                "label. If they are one-hot, pass labels.argmax(axis=1)",
                stacklevel=2,
            )
        return cls(Arrays(rgb), indices, names, None if groups is None else as_groups(groups))

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        image: str | None = None,
        label: str | None = None,
        groups: str | ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
    ) -> ImageSet:
        """Make a set of the images of a Hugging Face or torch data set. They are read on demand.

        Images of a Hugging Face data set that are stored as files, and those of an `ImageFolder`
        without transforms, are decoded as files in a folder are, and have the same digests. The
        items of other data sets must be the same each time, without random transforms.

        Args:
            dataset: a `datasets.Dataset` that is not streaming; or a data set of torch or of your
                own, with `len()` and items `(image, label)` or dictionaries. Images are PIL
                images, or uint8 pixels `(h, w, 3)`, `(h, w, 1)` or `(h, w)` from 0 to 255 (torch
                tensors: channels first).
            image: name of the column of the images, or their key in the items. Defaults to the
                only column of images, or `"image"`.
            label: name of the column of the labels, or their key. Defaults to the only column of
                class labels, or `"label"`.
            groups: name of the column of the groups (such as the patients), or a value for each
                image, `(n,)`. Defaults to no groups.
            class_names: the classes in the order of their indices. Defaults to those of the data
                set, or the sorted labels.

        Returns:
            An `ImageSet`, with the images in the order of the data set.

        Raises:
            ValueError: if it is a data set of another kind (streaming, tf.data), a column is
                missing or ambiguous, or the images are not pixels from 0 to 255.

        Example:
            >>> x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
            >>> pairs = list(zip(x, ["cat", "dog", "cat", "dog"]))
            >>> ImageSet.from_dataset(pairs)
            ImageSet(4 images; cat: 2, dog: 2)
        """
        found = contents_of(dataset, image, label, groups)
        labels, count = as_values(found.labels), len(found.labels)
        known = found.class_names if class_names is None else class_names
        indices, names = class_indices(labels, known, count)
        grouping = None if found.groups is None else as_groups(found.groups)
        return cls(found.source, indices, names, grouping, rows=found.rows)  # type: ignore[arg-type]
