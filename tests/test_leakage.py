"""Planted copies are found, other pictures are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

import finetune_kit as ftk

RNG = np.random.default_rng(0)


def scenes(count: int, side: int = 96) -> list[Image.Image]:
    """Pictures with structure at all scales, each its own."""
    noise = [sum(s * gaussian_filter(RNG.normal(size=(side, side)), s) for s in (1, 3, 9, 20))
             for _ in range(count)]  # fmt: skip
    return [
        Image.fromarray(np.clip(128 + 60 * x / x.std(), 0, 255).astype(np.uint8)) for x in noise
    ]


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
def planted(tmp_path_factory):
    """20 pictures of class a; in class b 20 others and one change of each of the first seven."""
    folder = tmp_path_factory.mktemp("planted")
    for name in "ab":
        (folder / name).mkdir()
        for i, image in enumerate(scenes(20)):
            (folder / name / f"{i:02}.png").write_bytes(encoded(image, "PNG"))
    for i, (name, change) in enumerate(CHANGES.items()):
        original = Image.open(folder / "a" / f"{i:02}.png")
        (folder / "b" / f"{i:02} {name}").write_bytes(change(original))
    return ftk.read_image_folder(folder)


def test_planted_copies_are_found_and_nothing_else(planted):
    found = ftk.find_duplicates(planted)
    names = {tuple(planted.paths[i].rsplit("/")[-1][:2] for i in c) for c in found.clusters}
    assert names == {(f"{i:02}", f"{i:02}") for i in range(7)}
    assert [kind for _, _, kind, _ in found.pairs] == ["bytes", "pixels"] + ["near"] * 5
    assert all(0.86 <= similarity <= 1 for *_, similarity in found.pairs)
    assert found.crossing == ()
    assert "7 clusters of 14 of 47 images" in repr(found)


def test_groups_keep_clusters_on_one_side(planted):
    random = ftk.stratified_split(planted.labels, (0.4, 0.3, 0.3), seed=3)
    found = ftk.find_duplicates(planted, random)
    assert found.crossing  # that is what happens by chance
    split = ftk.stratified_split(planted.labels, (0.4, 0.3, 0.3), groups=found.groups, seed=3)
    assert ftk.find_duplicates(planted, split).crossing == ()
    assert len(set(found.groups)) == len(planted) - 7


def test_patients_and_clusters_are_joined(planted):
    """Two patients whose images are copies of each other are one group."""
    patients = np.arange(len(planted)) // 2
    images = ftk.ImageSet(planted.paths, planted.labels, planted.class_names, patients)
    found = ftk.find_duplicates(images)
    for cluster in found.clusters:
        assert len(set(found.groups[list(cluster)])) == 1
    for patient in set(patients):
        assert len(set(found.groups[patients == patient])) == 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_equal_pixels_in_memory_are_clusters(which):
    kinds = np.stack([np.asarray(image.convert("RGB")) for image in SCENES])
    images = ftk.ImageSet.from_arrays(kinds[which], ["x"] * len(which))
    found = ftk.find_duplicates(images)
    expected = {tuple(np.flatnonzero(np.array(which) == kind).tolist()) for kind in which}
    assert set(found.clusters) == {cluster for cluster in expected if len(cluster) > 1}
    assert sum(map(len, found.clusters)) - len(found.clusters) == len(found.pairs)


SCENES = scenes(6, 32)


def test_blank_pictures_are_no_near_duplicates():
    x = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 255)])
    images = ftk.ImageSet.from_arrays(x, ["x"] * 3)
    assert ftk.find_duplicates(images).clusters == ()
    assert ftk.find_duplicates(ftk.ImageSet.from_arrays(x[1:2], ["x"])).clusters == ()


def test_a_threshold_that_is_none_is_refused(tiny_images):
    with pytest.raises(ValueError, match="`images` must be of type ImageSet"):
        ftk.find_duplicates("folder")
    with pytest.raises(ValueError, match="`split` must be of type Split"):
        ftk.find_duplicates(tiny_images, (0.7, 0.15, 0.15))
    for threshold in (5, "high"):
        with pytest.raises(ValueError, match="`threshold` must be"):
            ftk.find_duplicates(tiny_images, threshold=threshold)
    other = ftk.Split(np.arange(99), np.arange(0), np.arange(0))
    with pytest.raises(ValueError, match=r"`split\.train` must be indices"):
        ftk.find_duplicates(tiny_images, other)


@pytest.mark.slow
def test_planted_copies_of_real_xrays_are_found(xrays, tmp_path):
    """Of X-rays, which look alike; measured on all of them in the docs."""
    real = ftk.read_image_folder(xrays)
    chosen = np.random.default_rng(1).choice(len(real), 140, replace=False)
    (tmp_path / "a").mkdir()
    for n, i in enumerate(chosen):
        image = Image.open(real.paths[i]).convert("L")
        (tmp_path / "a" / f"{n:03}.png").write_bytes(encoded(image, "PNG"))
        if n < 70:
            name, change = list(CHANGES.items())[n % 7]
            (tmp_path / "a" / f"{n:03} {name}").write_bytes(change(image))
    images = ftk.read_image_folder(tmp_path)
    clusters = ftk.find_duplicates(images).clusters
    names = [{images.paths[i].rsplit("/")[-1][:3] for i in cluster} for cluster in clusters]
    assert sum(len(name) == 1 for name in names) >= 68  # recall
    assert sum(len(name) > 1 for name in names) <= 1  # others joined
