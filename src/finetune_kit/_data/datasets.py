"""Data sets of other libraries as sources of images: Hugging Face `datasets`, and torch's.

Neither library is imported: a data set is recognized by its attributes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_kit._data.decoding import decode, decode_original, resize, upright
from finetune_kit._data.labels import remedy
from finetune_kit._data.pixels import Files, Source, file_digest, pixel_digest
from finetune_kit._text import listed, plural, shortened

_HINT = (
    "a Hugging Face `datasets.Dataset`, or a torch data set whose items are (image, label) or have "
    "these as keys"
)


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """The image files in a column of a Hugging Face data set, which are decoded on demand."""

    dataset: Any
    column: str
    _digests: dict[int, str] = field(init=False, repr=False, default_factory=dict)

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Decode and resize image i."""
        return decode(self._file(i), size)

    def original(self, i: int) -> NDArray[np.uint8]:
        """Decode image i in its original size."""
        return decode_original(self._file(i))

    def digest(self, i: int) -> str:
        """Hash the file of image i, once."""
        if i not in self._digests:
            file = self._file(i)
            self._digests[i] = (
                file_digest(file) if isinstance(file, str) else hashlib.sha256(file).hexdigest()
            )
        return self._digests[i]

    def file(self, i: int) -> str | None:
        """Return the path of image i, or None if the data set holds its content."""
        file = self._file(i)
        return file if isinstance(file, str) else None

    def place(self, i: int) -> Hashable:
        """Return the data set and the number of the image in it."""
        return id(self.dataset), i

    def _file(self, i: int) -> str | bytes:
        found = self.dataset[i][self.column] or {}
        file = found.get("bytes") or found.get("path")
        if not file:
            raise ValueError(
                "Each image of `dataset` must be there; leave out the rows without one with "
                f"dataset.filter. Received: none in row {i:,}"
            )
        return file


@dataclass(frozen=True, eq=False)
class ItemImages:
    """The images in the items of a map-style data set, such as those of torch."""

    dataset: Any
    key: Any
    _digests: dict[int, str] = field(init=False, repr=False, default_factory=dict)

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, i: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Resize image i."""
        return resize(Image.fromarray(self.original(i)), size)

    def original(self, i: int) -> NDArray[np.uint8]:
        """Return the RGB pixels of image i."""
        return _rgb(self.dataset[i][self.key], i)

    def digest(self, i: int) -> str:
        """Hash the shape and the pixels of image i, once."""
        if i not in self._digests:
            self._digests[i] = pixel_digest(self.original(i))
        return self._digests[i]

    def file(self, i: int) -> str | None:
        """Return None."""
        return None

    def place(self, i: int) -> Hashable:
        """Return the data set and the number of the image in it."""
        return id(self.dataset), i


@dataclass(frozen=True, eq=False)
class Contents:
    """What an `ImageSet` needs of a data set; `groups` and `class_names` are None if unknown."""

    source: Source
    labels: Any
    class_names: Sequence[str] | None
    groups: Any = None
    rows: NDArray[np.int64] | None = None


def contents_of(dataset: Any, image: Any, label: Any, groups: Any) -> Contents:
    """Return source, labels, class names and groups of a data set.

    Args:
        dataset: of Hugging Face or torch.
        image: name of the column (or key of the items) of the images, or None to find it.
        label: the same for the labels.
        groups: name of a column, a value for each image, or None.

    Raises:
        ValueError: if it is a data set of another kind, or a column is missing or ambiguous.
    """
    _check_kind(dataset)
    if hasattr(dataset, "column_names"):
        return _of_table(dataset, image, label, groups)
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # a Subset of torch
        whole = contents_of(dataset.dataset, image, label, None)
        rows = np.asarray(dataset.indices, np.int64)
        rows = rows if whole.rows is None else whole.rows[rows]
        labels = np.asarray(whole.labels)[np.asarray(dataset.indices, np.int64)]
        return replace(whole, labels=labels, rows=rows, groups=groups)
    names = getattr(dataset, "classes", None)
    plain_files = getattr(dataset, "samples", None)  # of an ImageFolder
    transforms = [getattr(dataset, f"{kind}transform", None) for kind in ("", "target_")]
    if plain_files and transforms == [None, None] and len(plain_files) == len(dataset):
        paths = tuple(str(path) for path, _ in plain_files)
        return Contents(Files(paths), [index for _, index in plain_files], names, groups)
    return _of_items(dataset, image, label, names, groups)


def _check_kind(dataset: Any) -> None:
    kind = f"{type(dataset).__module__}.{type(dataset).__name__}"
    if hasattr(dataset, "element_spec"):
        raise ValueError(
            "`dataset` must give an image by its number, which a tf.data pipeline cannot. Read the "
            "files with read_image_folder or read_image_table. Or, if they fit into memory: "
            "x, y = map(np.array, zip(*dataset.unbatch().as_numpy_iterator())) and "
            f"ImageSet.from_arrays(x.round().astype('uint8'), y). Received: a {kind}"
        )
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"`dataset` must be one of the parts; pass dataset[{next(iter(dataset), 'train')!r}]. "
            f"Received: a {kind} with {shortened(list(dataset))}"
        )
    readable = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, (str, bytes, np.ndarray)) or not readable:
        streaming = hasattr(dataset, "__iter__") and not isinstance(dataset, (str, bytes))
        reason = (
            "; a streaming data set has no length and cannot be split or read again by number: "
            "load it without streaming=True"
            if streaming and not readable
            else ""
        )
        raise ValueError(f"`dataset` must be {_HINT}{reason}. Received: a {kind}")
    if not len(dataset):
        raise ValueError(f"`dataset` must hold at least one image. Received: an empty {kind}")


def _of_table(dataset: Any, image: str | None, label: str | None, groups: Any) -> Contents:
    """Return what a Hugging Face data set holds."""
    table, features = dataset.with_format(None), dataset.features
    image = _column(features, "image", image, [n for n, f in features.items() if _is_image(f)])
    known = [n for n, f in features.items() if _names(f) is not None]
    label = _column(features, "label", label, known or [n for n in ("label",) if n in features])
    if not _is_image(features[image]):
        raise ValueError(
            "`image` must name a column of images; dataset.cast_column(name, datasets.Image()) "
            f"makes one of paths. Received: image={image!r}, of type {features[image]}"
        )
    encoded = table.cast_column(image, type(features[image])(decode=False)).select_columns([image])
    names = _names(features[label])
    labels: Any = list(table[label])
    if any(value is None for value in labels):
        labels = np.fromiter(labels, object, len(labels))
    elif labels and isinstance(labels[0], (list, tuple)):  # multi-label: the labels that are on
        labels = _matrix(labels, names, label)
    if isinstance(groups, str):
        groups = list(table[_column(features, "groups", groups, [])])
    return Contents(EncodedImages(encoded, image), labels, names, groups)


def _column(features: Mapping[str, Any], argument: str, name: str | None, found: list[str]) -> str:
    """Return the name of a column, given or found."""
    if name is None and len(found) == 1:
        return found[0]
    if name in features:
        return str(name)
    received = f"{argument}={name!r}" if name is not None else plural(len(found), "such column")
    raise ValueError(
        f"`{argument}` must name a column of `dataset`, which has {listed(list(features))}. "
        f"Received: {received}"
    )


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _names(feature: Any) -> list[str] | None:
    """Return the class names of a feature, or of the items of a list feature."""
    names = getattr(feature, "names", None) or getattr(
        getattr(feature, "feature", None), "names", None
    )
    return None if names is None else list(names)


def _matrix(labels: list[Any], names: list[str] | None, column: str) -> NDArray[np.int64]:
    if names is None:
        raise ValueError(
            "Lists of labels must have class names: cast the column to "
            "datasets.Sequence(datasets.ClassLabel(names=[...])). "
            f"Received: label={column!r}, without class names"
        )
    matrix = np.zeros((len(labels), len(names)), np.int64)
    for row, on in zip(matrix, labels, strict=True):
        row[list(on)] = 1
    return matrix


def _of_items(
    dataset: Any, image: Any, label: Any, names: Sequence[str] | None, groups: Any
) -> Contents:
    """Return what a map-style data set holds, whose items are pairs or dictionaries."""
    first = dataset[0]
    keyed = isinstance(first, Mapping)
    if not keyed and not (isinstance(first, (tuple, list)) and len(first) > 1):
        raise ValueError(
            f"`dataset` must be {_HINT}. Received: items of type {type(first).__name__}"
        )
    image, label = (image, label) if image is not None else (0, label)
    image = "image" if keyed and image == 0 else image
    label = ("label" if keyed else 1) if label is None else label
    if keyed and not {image, label} <= {*first}:
        raise ValueError(
            "`image` and `label` must be keys of the items of `dataset`. "
            f"Received: image={image!r}, label={label!r}; the keys are {shortened(list(first))}"
        )
    source = ItemImages(dataset, image)
    if not np.array_equal(source.original(0), source.original(0)):
        raise ValueError(
            "`dataset` must return the same pixels each time; leave out its random transforms, and "
            "pass augmentation= to fine_tune. Received: pixels that change"
        )
    labels = getattr(dataset, "targets", None)
    if keyed or label != 1 or labels is None or len(labels) != len(dataset):
        labels = [dataset[i][label] for i in range(len(dataset))]  # decodes the images too
    values = [value.item() if hasattr(value, "item") else value for value in labels]
    if isinstance(groups, str) and keyed:
        groups = [dataset[i][groups] for i in range(len(dataset))]
    return Contents(source, values, names, groups)


def _rgb(image: Any, i: int) -> NDArray[np.uint8]:
    """Return a PIL image, an array or a tensor of torch as RGB pixels."""
    if isinstance(image, Image.Image):
        return np.asarray(upright(image.copy(), b"").convert("RGB"))
    if hasattr(image, "detach"):  # a tensor of torch, which has the channels first
        image = np.moveaxis(image.detach().cpu().numpy(), 0, -1) if image.ndim == 3 else image
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ValueError(
            "`dataset` must return PIL images or uint8 pixels from 0 to 255; leave out transforms "
            f"such as ToTensor and Normalize{remedy(pixels)} in item {i:,}"
        )
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(
            "`dataset` must return images (h, w, 3), (h, w, 1) or (h, w). "
            f"Received: shape {pixels.shape} in item {i:,}"
        )
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
