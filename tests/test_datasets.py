"""Data sets of Hugging Face and torch become image sets, with identity by content."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import png
from PIL import Image

import finetune_kit as ftk

hf = pytest.importorskip("datasets", reason="needs Hugging Face datasets")

NAMES = ["cat", "dog"]


def content(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for i in range(6):
        file = root / NAMES[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content(i))
    return root


def table(**columns):
    features = {
        "picture": hf.Image(),
        "kind": hf.ClassLabel(names=NAMES),
        "patient": hf.Value("int64"),
    }
    data = {
        "picture": [{"bytes": content(i), "path": None} for i in range(6)],
        "kind": [i % 2 for i in range(6)],
        "patient": [i // 2 for i in range(6)],
    }
    kinds = {name: feature for name, (feature, _) in columns.items()}
    values = {name: value for name, (_, value) in columns.items()}
    return hf.Dataset.from_dict(data | values, hf.Features(features | kinds))


class Pairs:
    """A map-style data set, as people write them for torch."""

    def __init__(self, images, labels, **attributes):
        self.images, self.labels = images, labels
        vars(self).update(attributes)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


class Subset:
    """The same attributes as torch's."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return self.dataset[self.indices[i]]


def pixels(n: int) -> list[np.ndarray]:
    return [np.array(Image.open(io.BytesIO(content(i)))) for i in range(n)]


def test_images_of_a_hugging_face_data_set_are_those_of_their_files(folder):
    files, images = ftk.read_image_folder(folder), ftk.ImageSet.from_dataset(table())
    order = [0, 2, 4, 1, 3, 5]
    assert images.class_names == files.class_names
    assert images.take(order).digests() == files.digests()
    assert (images.take(order).load(size=(8, 8)) == files.load(size=(8, 8))).all()
    assert images.take(order).labels.tolist() == files.labels.tolist()
    assert ftk.find_duplicates(files, images).crossing


def test_an_image_column_of_paths_is_read_as_files(folder):
    paths = sorted(map(str, folder.rglob("*.png")))
    data = hf.Dataset.from_dict({"image": paths, "label": [0] * 3 + [1] * 3})
    data = data.cast_column("image", hf.Image()).cast_column("label", hf.ClassLabel(names=NAMES))
    images = ftk.ImageSet.from_dataset(data)
    assert images.paths == tuple(paths)
    assert images.digests() == ftk.read_image_folder(folder).digests()


def test_a_format_or_a_transform_of_the_table_does_not_matter():
    images = ftk.ImageSet.from_dataset(table())
    formatted = ftk.ImageSet.from_dataset(table().with_format("numpy"))
    changed = ftk.ImageSet.from_dataset(table().with_transform(lambda batch: {"picture": []}))
    assert images.digests() == formatted.digests() == changed.digests()
    assert images.labels.tolist() == formatted.labels.tolist() == changed.labels.tolist()


def test_groups_and_labels_come_from_any_column():
    data = table(word=(hf.Value("string"), list("aabbcc")), year=(hf.Value("int32"), [7, 8] * 3))
    assert ftk.ImageSet.from_dataset(data, groups="patient").groups.tolist() == list("001122")
    assert ftk.ImageSet.from_dataset(data, groups=range(6)).groups.tolist() == list("012345")
    assert ftk.ImageSet.from_dataset(data, label="word").class_names == ("a", "b", "c")
    assert ftk.ImageSet.from_dataset(data, label="year").class_names == ("7", "8")


def test_lists_of_labels_are_multi_label():
    kind = hf.Sequence(hf.ClassLabel(names=["x", "y", "z"]))
    data = table(tags=(kind, [[0], [0, 2], [], [1], [2], [1, 2]]))
    images = ftk.ImageSet.from_dataset(data, label="tags")
    assert images.multi_label
    assert images.class_names == ("x", "y", "z")
    assert images.labels[:3].tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_a_data_set_is_split_and_trained_on(mobilenet):
    images = ftk.ImageSet.from_dataset(table(), groups="patient")
    train, validation, _ = images.split((4, 2, 0))
    tuned = ftk.fine_tune(
        mobilenet, ftk.classification_head(2), ftk.FineTuneSpec(), train, validation, verbose=0
    )
    assert tuned.class_names == ("cat", "dog")


def forms(array):
    tensor = pytest.importorskip("keras").ops.convert_to_tensor
    return {
        "pil": Image.fromarray(array),
        "array": array,
        "tensor": tensor(np.moveaxis(array, -1, 0)),
    }


@pytest.mark.parametrize("form", ["pil", "array", "tensor"])
def test_items_may_be_pictures_arrays_and_tensors(form):
    import keras

    if form == "tensor" and keras.backend.backend() != "torch":
        pytest.skip("tensors of torch have the channels first")
    data = Pairs([forms(array)[form] for array in pixels(4)], ["b", "a", "b", "a"])
    images = ftk.ImageSet.from_dataset(data)
    assert images.class_names == ("a", "b")
    arrays = ftk.ImageSet.from_arrays(np.stack(pixels(4)), ["b", "a", "b", "a"])
    assert images.digests() == arrays.digests()
    assert (images.load(size=(8, 8)) == arrays.load(size=(8, 8))).all()


def test_items_may_be_dictionaries():
    rows = [{"scan": array, "finding": "ab"[i % 2], "who": i} for i, array in enumerate(pixels(4))]
    images = ftk.ImageSet.from_dataset(rows, image="scan", label="finding", groups="who")
    assert images.counts().tolist() == [2, 2]
    assert images.groups.tolist() == list("0123")


def test_an_image_folder_of_torchvision_is_read_as_files(folder):
    files = ftk.read_image_folder(folder)
    samples = list(zip(files.paths, files.labels.tolist(), strict=True))
    data = Pairs(pixels(6), [0] * 6, samples=samples, classes=NAMES, transform=None)
    images = ftk.ImageSet.from_dataset(data)
    assert images.paths == files.paths
    assert images.digests() == files.digests()
    flipped = Pairs(pixels(6), [0, 1] * 3, samples=samples, classes=NAMES, transform=np.fliplr)
    assert ftk.ImageSet.from_dataset(flipped).paths[0] == "image 0"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.booleans())
def test_a_subset_is_what_take_gives(indices, nested):
    data = Pairs(pixels(6), [i % 2 for i in range(6)], classes=NAMES)
    whole = ftk.ImageSet.from_dataset(data)
    part = Subset(data, indices)
    if nested:
        part, indices = Subset(part, list(range(len(indices)))[::-1]), indices[::-1]
    images, expected = ftk.ImageSet.from_dataset(part), whole.take(indices)
    assert images.digests() == expected.digests()
    assert images.labels.tolist() == expected.labels.tolist()
    assert images.class_names == expected.class_names


class Pipeline:
    """A stand-in for tf.data.Dataset where TensorFlow is not installed."""

    element_spec = None


class Random(Pairs):
    def __getitem__(self, i):
        return np.random.default_rng().integers(0, 256, (8, 8, 3), np.uint8), 0


FLOATS = [array / 255 for array in pixels(2)]


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (lambda: Pipeline(), {}, "as_numpy_iterator"),
        (lambda: table().to_iterable_dataset(), {}, "streaming"),
        (lambda: iter([]), {}, "streaming"),
        (lambda: hf.DatasetDict(train=table()), {}, r"pass dataset\['train'\]"),
        (lambda: "user/name", {}, "Received: a builtins.str"),
        (lambda: [], {}, "at least one image"),
        (lambda: table(), {"image": "photo"}, "picture, kind, patient"),
        (lambda: table(), {"image": "kind"}, "must name a column of images"),
        (lambda: table(), {"label": "finding"}, "label='finding'"),
        (lambda: table(), {"groups": "hospital"}, "groups='hospital'"),
        (lambda: table(other=(hf.Image(), [None] * 6)), {}, "2 such columns"),
        (lambda: table().remove_columns("kind"), {}, "0 such columns"),
        (lambda: table(tags=(hf.Sequence(hf.Value("int64")), [[0]] * 6)), {"label": "tags"}, "Cla"),
        (lambda: table(gap=(hf.ClassLabel(names=NAMES), [0, None] * 3)), {"label": "gap"}, "none"),
        (lambda: [1, 2], {}, "items of type int"),
        (lambda: [{"x": 1}], {}, r"keys are \['x'\]"),
        (lambda: Pairs(FLOATS, [0, 1]), {}, "leave out transforms such as ToTensor"),
        (lambda: Pairs([np.zeros((2, 8, 8, 3), np.uint8)], [0]), {}, r"shape \(2, 8, 8, 3\)"),
        (lambda: Random([], [0, 1]), {}, "random transforms"),
        (lambda: Pairs(pixels(2), [0, 5], classes=NAMES), {}, "indices from 0 to 1"),
    ],
)
def test_bad_data_sets_are_rejected(make, options, text, rejected):
    dataset = make()
    with rejected(text):
        ftk.ImageSet.from_dataset(dataset, **options)


def test_a_row_without_an_image_is_named():
    rows = [None, *({"bytes": content(i), "path": None} for i in range(5))]
    images = ftk.ImageSet.from_dataset(table(picture=(hf.Image(), rows)))
    with pytest.raises(ValueError, match="none in row 0"):
        images.digests()


def test_a_data_frame_of_polars_is_a_table(folder):
    polars = pytest.importorskip("polars", reason="needs polars")
    paths = sorted(map(str, folder.rglob("*.png")))
    frame = polars.DataFrame({"file": paths, "finding": [Path(p).parent.name for p in paths]})
    images = ftk.read_image_table(frame, path="file", label="finding")
    assert images.digests() == ftk.read_image_folder(folder).digests()
