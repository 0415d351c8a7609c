"""Planted copies of images are found, and nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn import datasets

import finetune_kit as ftk


def scenes(count: int, seed: int, side: int = 96) -> list[Image.Image]:
    """Different random pictures with structure at all scales."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        noise = rng.normal(size=(4, side, side))
        x = sum(s * gaussian_filter(n, s) for n, s in zip(noise, (1, 3, 9, 20), strict=True))
        pictures.append(Image.fromarray(np.clip(128 + 60 * x / x.std(), 0, 255).astype(np.uint8)))
    return pictures


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def cropped(image, share=0.04):
    w, h = image.size
    return image.crop((int(share * w), int(share * h), w - 1, h - 2))


def lighter(image):
    return image.point(lambda value: min(255, int(0.8 * value + 40)))


CHANGES = {
    "copy.png": lambda image: encoded(image, "PNG"),
    "pixels.bmp": lambda image: encoded(image, "BMP"),
    "again.jpg": lambda image: encoded(image, "JPEG", quality=60),
    "small.png": lambda image: encoded(image.resize((48, 48)), "PNG"),
    "crop.png": lambda image: encoded(cropped(image), "PNG"),
    "lighter.png": lambda image: encoded(lighter(image), "PNG"),
    "all.jpg": lambda image: encoded(lighter(cropped(image, 0.03)).resize((70, 70)), "JPEG"),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> ftk.ImageSet:
    """20 pictures of class a; in class b 20 others, and a changed copy of each of the first 7."""
    folder = tmp_path_factory.mktemp("planted")
    for seed, name in enumerate("ab"):
        (folder / name).mkdir()
        for i, image in enumerate(scenes(20, seed)):
            (folder / name / f"{i:02}.png").write_bytes(encoded(image, "PNG"))
    for i, (name, change) in enumerate(CHANGES.items()):
        original = Image.open(folder / "a" / f"{i:02}.png")
        (folder / "b" / f"{i:02} {name}").write_bytes(change(original))
    return ftk.read_image_folder(folder)


@pytest.fixture(scope="module")
def found(planted) -> ftk.Duplicates:
    return ftk.find_duplicates(planted)


def file_numbers(cluster, paths) -> tuple[str, ...]:
    return tuple(Path(paths[i]).name[:2] for i in cluster)


def test_planted_copies_are_found_and_nothing_else(planted, found):
    names = {file_numbers(cluster, planted.paths) for cluster in found.clusters}
    assert names == {(f"{i:02}", f"{i:02}") for i in range(7)}
    assert [kind for _, _, kind, _ in found.pairs] == ["bytes", "pixels"] + ["near"] * 5
    assert all(0.86 <= similarity <= 1 for *_, similarity in found.pairs)
    assert found.crossing == ()
    assert found.samples == planted.digests()
    assert repr(found) == (
        "Duplicates(7 clusters with 14 of 47 images; pairs: 1 bytes, 1 pixels, 5 near; "
        "0 clusters in more than one set)"
    )


def test_indices_count_through_the_sets_in_order(planted, found):
    first, second = planted.take(range(20)), planted.take(range(20, 47))
    across = ftk.find_duplicates(first, second)
    assert across.clusters == across.crossing == found.clusters
    assert across.pairs == found.pairs
    assert across.samples == planted.digests()
    assert across.groups.tolist() == found.groups.tolist()
    assert "7 clusters in more than one set" in repr(across)
    assert ftk.find_duplicates(second).clusters == ()


def test_the_order_of_the_images_does_not_matter(planted, found):
    turned = planted.take(np.arange(len(planted))[::-1])
    table = {"path": list(turned.paths), "label": [turned.class_names[i] for i in turned.labels]}
    again = ftk.read_image_table(pandas.DataFrame(table))
    pairs = [
        {(frozenset({images.paths[i], images.paths[j]}), *rest) for i, j, *rest in result.pairs}
        for images, result in ((planted, found), (again, ftk.find_duplicates(again)))
    ]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_parts_of_a_split_have_the_duplicates_of_the_whole_set(planted, found, seed):
    """Though the alignment of two images depends a little on their order."""
    parts = planted.split((0.2, 0.4, 0.4), seed=seed)
    paths = sum((part.paths for part in parts), ())
    pairs = {
        (frozenset({paths[i], paths[j]}), *rest)
        for i, j, *rest in ftk.find_duplicates(*parts).pairs
    }
    whole = {
        (frozenset({planted.paths[i], planted.paths[j]}), *rest) for i, j, *rest in found.pairs
    }
    assert pairs == whole


def test_groups_keep_duplicates_in_one_part_of_a_split(planted, found):
    sizes = (0.4, 0.3, 0.3)
    assert ftk.find_duplicates(*planted.split(sizes, seed=3)).crossing
    parts = planted.split(sizes, groups=found.groups, seed=3)
    assert ftk.find_duplicates(*parts).crossing == ()
    assert len(set(found.groups.tolist())) == len(planted) - 7


def test_clusters_are_joined_with_the_groups_of_the_images(planted, found):
    """Two patients whose images are duplicates are one group."""
    patients = np.arange(len(planted)) // 2
    images = ftk.ImageSet(planted.source, planted.labels, planted.class_names, patients)
    joined = ftk.find_duplicates(images).groups
    for cluster in found.clusters:
        assert len(set(joined[list(cluster)])) == 1
    for patient in range(patients.max() + 1):
        assert len(set(joined[patients == patient])) == 1
    assert len(set(joined.tolist())) == 24 - 7


def test_a_group_of_the_same_name_is_one_group_in_all_sets():
    x = np.stack([np.asarray(image) for image in SCENES])
    one = ftk.ImageSet.from_arrays(x[:3], ["a"] * 3, groups=["p", "q", "r"])
    two = ftk.ImageSet.from_arrays(x[3:5], ["b"] * 2, groups=["q", "s"])
    three = ftk.ImageSet.from_arrays(x[5:], ["c"])
    groups = ftk.find_duplicates(one, two, three).groups.tolist()
    assert groups[1] == groups[3]
    assert len(set(groups)) == 5


SCENES = scenes(6, seed=2, side=32)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 12))
def test_images_of_equal_pixels_form_a_cluster(which, at):
    kinds = np.stack([np.asarray(image.convert("RGB")) for image in SCENES])
    images = ftk.ImageSet.from_arrays(kinds[which], ["x"] * len(which))
    found = ftk.find_duplicates(images.take(range(min(at, len(which)))),
                                images.take(range(at, len(which))))  # fmt: skip
    expected = {tuple(np.flatnonzero(np.array(which) == kind).tolist()) for kind in which}
    clusters = {cluster for cluster in expected if len(cluster) > 1}
    assert set(found.clusters) == clusters
    assert set(found.crossing) == {c for c in clusters if c[0] < at <= c[-1]}
    assert sum(map(len, found.clusters)) - len(found.clusters) == len(found.pairs)


def test_a_file_and_an_array_of_equal_pixels_are_duplicates(planted):
    chosen = planted.take([3, 8])
    arrays = ftk.ImageSet.from_arrays(chosen.load(size=(96, 96)), ["x", "y"])
    found = ftk.find_duplicates(planted, arrays)
    assert [pair for pair in found.pairs if pair[2] == "pixels" and pair[1] >= len(planted)] == [
        (3, 47, "pixels", 1.0),
        (8, 48, "pixels", 1.0),
    ]


def test_images_of_equal_thumbnails_but_different_pixels_are_near():
    pixels = np.asarray(scenes(1, seed=3, side=128)[0].convert("RGB")).copy()
    other = pixels.copy()
    other[9, 9] ^= 1
    images = ftk.ImageSet.from_arrays(np.stack([pixels, other]), ["x", "x"])
    small = images.load(size=(64, 64))
    assert np.array_equal(small[0], small[1])
    ((i, j, kind, similarity),) = ftk.find_duplicates(images).pairs
    assert (i, j, kind) == (0, 1, "near")
    assert similarity > 0.99


def test_blank_pictures_of_different_brightness_are_not_near_duplicates():
    x = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 255)])
    images = ftk.ImageSet.from_arrays(x, ["x"] * 3)
    assert ftk.find_duplicates(images).clusters == ()
    for few in (images.take([1]), images.take([])):
        found = ftk.find_duplicates(few)
        assert (found.clusters, len(found.groups)) == ((), len(few))


def test_other_arguments_are_errors(tiny_images):
    with pytest.raises(ValueError, match="at least one ImageSet"):
        ftk.find_duplicates()
    with pytest.raises(
        ValueError, match=r"each argument must be an ImageSet.*Received: 'folder' of type str"
    ):
        ftk.find_duplicates("folder")
    split = ftk.stratified_split(tiny_images.labels)
    with pytest.raises(ValueError, match=r"each argument .* of type Split"):
        ftk.find_duplicates(tiny_images, split)
    with pytest.raises(ValueError, match=r"pass duplicates\.groups\. Received: type Duplicates"):
        tiny_images.split(groups=ftk.find_duplicates(tiny_images))
    for threshold in (5, "high", float("nan")):
        with pytest.raises(ValueError, match="`threshold` must be from -1 to 1"):
            ftk.find_duplicates(tiny_images, threshold=threshold)


@pytest.mark.slow
def test_planted_copies_of_real_xrays_are_found(xrays, tmp_path):
    """X-rays of different people look alike, so they are the hardest images to tell apart."""
    files = sorted(xrays.glob("*/images/*.jpg"))
    chosen = np.random.default_rng(1).choice(len(files), 140, replace=False)
    (tmp_path / "a").mkdir()
    for n, i in enumerate(chosen):
        image = Image.open(files[i]).convert("L")
        (tmp_path / "a" / f"{n:03}.png").write_bytes(encoded(image, "PNG"))
        if n < 70:
            name, change = list(CHANGES.items())[n % 7]
            (tmp_path / "a" / f"{n:03} {name}").write_bytes(change(image))
    images = ftk.read_image_folder(tmp_path, class_names=["a"])
    with pytest.warns(UserWarning, match=r"of 210 images are near duplicates.*raise `threshold`"):
        clusters = ftk.find_duplicates(images).clusters
    names = [{Path(images.paths[i]).name[:3] for i in cluster} for cluster in clusters]
    assert sum(len(name) == 1 for name in names) >= 68  # of 70 copies
    assert sum(len(name) > 1 for name in names) <= 1  # clusters of different X-rays


@pytest.mark.slow
def test_simple_pictures_that_differ_are_no_duplicates_and_their_copies_are():
    """Handwritten digits have little structure; two of the same class are often alike."""
    digits = datasets.load_digits()
    pixels = (digits.images[:900] / 16 * 255).astype(np.uint8)
    copies = (pixels[:40] * 0.8).astype(np.uint8)  # darker
    labels = [*digits.target[:900], *digits.target[:40]]
    images = ftk.ImageSet.from_arrays(np.concatenate([pixels, copies]), labels)
    clusters = ftk.find_duplicates(images).clusters
    found = [cluster for cluster in clusters if any(i >= 900 for i in cluster)]
    assert sum({i, 900 + i} <= {*cluster} for cluster in found for i in range(40)) == 40
    others = {i for cluster in clusters for i in cluster} - {*range(40), *range(900, 940)}
    assert len(others) < 0.1 * len(pixels)
