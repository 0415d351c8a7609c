"""Features and images in buckets: a real S3 server, behind a proxy that breaks requests."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import pickle
import re
import shutil
import signal
import subprocess
import sys
import traceback
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from s3_server import Fault, s3_server
from typer.testing import CliRunner

import finetune_kit as ftk
from finetune_kit import _buckets
from finetune_kit._cli.app import app
from finetune_kit._features import entry, store

SECRET = "do-not-show-this"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("moto", reason="needs moto[s3], flask, flask-cors and s3fs")
    s3fs = pytest.importorskip("s3fs")
    with s3_server(tmp_path_factory.mktemp("moto") / "log.txt") as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", "testing")
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_ENDPOINT_URL_S3", running.url)
            patch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own tries take seconds
            s3fs.S3FileSystem().mkdir("bucket")
            yield running
            s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(server, monkeypatch):
    """The server without faults, with short pauses between tries."""
    server.faults.clear()
    server.requests.clear()
    monkeypatch.setattr(_buckets, "_PAUSES", (0.01, 0.02, 0.03))
    yield server
    server.faults.clear()


@pytest.fixture
def folder(s3):
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture
def cache(folder, tmp_path):
    return ftk.FeatureCache(folder, local_folder=tmp_path / "local")


def objects(folder):
    import fsspec

    system, path = fsspec.url_to_fs(folder)
    system.invalidate_cache()
    return {Path(name).name: system.cat_file(name) for name in system.find(path)}


OPTIONS = {"pooling": None, "batch_size": 4, "preprocessing": None, "verbose": 0}


@pytest.fixture
def extract(build_small, tiny_images, monkeypatch):
    """Reads all features from a cache, in chunks of four rows, as a new process does."""
    backbone = build_small()
    monkeypatch.setattr(entry, "_CHUNK_ROWS", 4)

    def call(features):
        store._verified.clear()
        return ftk.extract_features(backbone, tiny_images, features=features, **OPTIONS)

    call.backbone = backbone
    return call


@pytest.fixture
def expected(extract):
    return extract(None)


def emptied(cache):
    """The same cache as another machine sees it, without local copies."""
    shutil.rmtree(cache.local_folder, ignore_errors=True)
    return cache


@pytest.mark.once
def test_features_in_a_bucket_are_computed_once_for_all_machines(cache, extract, expected, s3):
    assert (extract(cache) == expected).all()
    chunks = [name for name in objects(cache.folder) if name.endswith(".npy")]
    assert len(chunks) == 6
    before = objects(cache.folder)
    s3.requests.clear()
    assert (extract(emptied(cache)) == expected).all()
    assert s3.count("PUT") == 0
    assert s3.count("GET", r"\.npy$") == 6, "each chunk is downloaded once"
    assert objects(cache.folder) == before
    s3.requests.clear()
    assert (extract(cache) == expected).all()
    assert s3.count("GET", r"\.(npy|index)$") == 0, "copies are read"
    for name, content in before.items():
        if name.endswith(".npy"):
            assert hashlib.sha256(content).hexdigest() == Path(name).stem


@pytest.mark.once
@pytest.mark.parametrize("kind", ["reset", 503, "slow", "cut"])
def test_a_request_that_fails_is_tried_again(kind, cache, extract, expected, s3):
    paths = (r"\.npy$", r"\.index$", r"\.json$")
    s3.faults += [Fault("PUT", path, kind, times=2) for path in paths]
    assert (extract(cache) == expected).all()
    s3.faults += [Fault("GET", path, kind, times=2) for path in (*paths, "list-type")]
    emptied(cache).entries()
    assert (extract(cache) == expected).all()
    assert all(fault.times < 2 for fault in s3.faults), "each fault happened"
    assert len([name for name in objects(cache.folder) if name.endswith(".npy")]) == 6


@pytest.mark.once
@pytest.mark.parametrize("kind", ["reset", 503, "cut"])
def test_what_was_computed_before_an_outage_is_kept(kind, cache, extract, expected, s3):
    """The third chunk cannot be put; the next call computes the rest."""
    put = store.write_chunk
    written = []

    def third_fails(place, rows):
        if len(written) == 2:
            s3.faults.append(Fault("PUT", r"\.npy$", kind, times=1000))
        written.append(put(place, rows))
        return written[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "write_chunk", third_fails)
        with pytest.raises(OSError, match=rf"'{cache.folder}/\w+/\w+.npy' cannot be written.*call"):
            extract(cache)
    s3.faults.clear()
    assert len([name for name in objects(cache.folder) if name.endswith(".npy")]) == 2
    s3.requests.clear()
    assert (extract(emptied(cache)) == expected).all()
    assert s3.count("PUT", r"\.npy$") == 4


@pytest.mark.once
def test_a_read_that_fails_is_an_error_and_nothing_is_deleted(cache, extract, expected, s3):
    extract(cache)
    before = objects(cache.folder)
    for kind in ("reset", "cut", 503):
        for suffix in ("npy", "index"):
            s3.faults.append(Fault("GET", rf"\.{suffix}$", kind, times=1000))
            with pytest.raises(OSError, match=rf"\.{suffix}' cannot be read.* tries"):
                extract(emptied(cache))
            s3.faults.clear()
    assert objects(cache.folder) == before
    assert (extract(cache) == expected).all()


@pytest.mark.once
def test_errors_that_another_try_does_not_change_name_the_reason(cache, extract, folder, s3):
    extract(cache)
    s3.faults.append(Fault("PUT", "", 403, times=1000))
    s3.requests.clear()
    other = ftk.FeatureCache(f"{folder}-other", local_folder=cache.local_folder)
    with pytest.raises(
        OSError, match=r"json' cannot be written: PermissionError.*credentials"
    ) as e:
        extract(other)
    assert SECRET not in "".join(traceback.format_exception(e.value))
    assert s3.count("PUT") == 1, "it is not tried again, and nothing was computed"
    s3.faults[:] = [Fault("GET", "list-type", 403, times=1000)]
    with pytest.raises(OSError, match=f"'{folder}/\\w+' cannot be listed: PermissionError"):
        extract(emptied(cache))
    s3.faults.clear()
    with pytest.raises(OSError, match=r"The bucket must exist.*'s3://no-such-bucket/f/"):
        extract("s3://no-such-bucket/f")
    import s3fs

    with pytest.raises(FileNotFoundError):
        s3fs.S3FileSystem().ls("no-such-bucket", refresh=True)


@pytest.mark.once
def test_without_credentials_the_error_says_where_they_are_looked_for(
    cache, extract, s3, tmp_path, monkeypatch
):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(OSError, match=r"NoCredentialsError.*that fsspec finds \(environment"):
            extract(cache)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.once
def test_damage_is_noticed_and_repaired(cache, extract, expected, s3, tmp_path):
    extract(cache)
    import fsspec

    system, path = fsspec.url_to_fs(cache.folder)
    first, second, third = sorted(n for n in system.find(path) if n.endswith(".npy"))[:3]
    before = objects(cache.folder)
    content = bytearray(system.cat_file(first))
    content[-1] ^= 1
    system.pipe_file(first, bytes(content))  # a damaged chunk,
    system.rm_file(second.replace(".npy", ".index"))  # one whose writer died before its index,
    system.pipe_file(third.replace(".npy", ".index"), b"short")  # and a damaged index
    system.pipe_file(f"{Path(first).parent}/{'0' * 64}.index", b"short")  # that of no chunk
    assert (extract(emptied(cache)) == expected).all()
    assert {**before, "0" * 64 + ".index": b"short"} == {
        "0" * 64 + ".index": b"short", **objects(cache.folder)
    }  # fmt: skip
    copies = sorted(Path(cache.local_folder).glob("*/*/*.npy"))
    copies[0].write_bytes(b"damaged")
    s3.requests.clear()
    assert (extract(cache) == expected).all()
    assert s3.count("GET", r"\.npy$") == 1
    assert s3.count("PUT") == s3.count("DELETE") == s3.count("POST") == 0


@pytest.mark.once
def test_copies_stay_within_their_limit(cache, extract, expected, tmp_path, s3):
    extract(cache)
    chunk = max(len(c) for n, c in objects(cache.folder).items() if n.endswith(".npy"))
    small = ftk.FeatureCache(cache.folder, local_folder=tmp_path / "small", local_bytes=2 * chunk)
    source = opened(small, extract)
    for i in (0, 7, 13, 21, 3, 0):
        assert (source.load(np.array([i])) == expected[[i]]).all()
        copies = list((tmp_path / "small").glob("*/*/*.npy"))
        assert 0 < sum(path.stat().st_size for path in copies) <= 2 * chunk
        assert len(source.entry._mapped) <= 2, "what is mapped takes space too"


def opened(cache, extract):
    """Return the features that `extract` reads."""
    found, load = [], entry.Features.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry.Features, "load", lambda *args: found.append(args[0]) or load(*args))
        extract(cache)
    return found[-1]


@pytest.mark.once
def test_entries_of_a_bucket_are_listed_and_cleared(cache, extract, s3):
    assert cache.entries() == ()
    assert cache.size == 0
    extract(cache)
    found = objects(cache.folder)
    import fsspec

    system, path = fsspec.url_to_fs(cache.folder)
    system.pipe_file(f"{path}/mine/notes.txt", b"not of the cache")
    (one,) = emptied(cache).entries()
    assert one.images == 24
    assert one.bytes == cache.size == sum(map(len, found.values()))
    assert one.folder == f"{cache.folder}/{one.key}"
    with pytest.raises(ValueError, match="`key` must be"):
        cache.clear("other")
    assert cache.clear(one.key) == one.bytes
    assert cache.entries() == ()
    assert set(objects(cache.folder)) == {"notes.txt"}
    assert not list(Path(cache.local_folder).glob("*/*/*"))


WRITER = """
import sys, pickle
import numpy as np, keras, finetune_kit as ftk
backbone, pixels, cache, i, n = sys.argv[1], sys.argv[2], *pickle.loads(bytes.fromhex(sys.argv[3]))
images = ftk.ImageSet.from_arrays(np.load(pixels), list("ab" * 12))
print(ftk.compute_features(keras.models.load_model(backbone), ftk.FineTuneSpec(1), images, cache,
      shard=(i, n), preprocessing=None, batch_size=4, verbose=0))
"""


@pytest.mark.once
@pytest.mark.slow
def test_writers_in_several_processes_fill_one_bucket(
    cache, build_small, tiny_images, tmp_path, s3
):
    pixels = tiny_images.load(size=(32, 32))
    np.save(tmp_path / "pixels.npy", pixels)
    backbone = build_small()
    backbone.save(tmp_path / "backbone.keras")
    parts = [pickle.dumps((cache, i, 3)).hex() for i in (0, 1)]
    command = [sys.executable, "-c", WRITER, tmp_path / "backbone.keras", tmp_path / "pixels.npy"]
    killed = subprocess.Popen([*command, parts[0]])  # when half of its chunk is put
    s3.faults.append(Fault("PUT", r"\.npy$", killed.kill))
    assert killed.wait() == -signal.SIGKILL
    assert list(objects(cache.folder)) == ["entry.json"]
    writers = [subprocess.Popen([*command, part]) for part in parts]
    images = ftk.ImageSet.from_arrays(pixels, list("ab" * 12))
    options = {"preprocessing": None, "batch_size": 4, "verbose": 0}
    for part in (1, 2):  # the first is also computed by one of the others
        ftk.compute_features(
            backbone, ftk.FineTuneSpec(1), images, cache, shard=(part, 3), **options
        )
    assert [writer.wait() for writer in writers] == [0, 0]
    done = ftk.compute_features(backbone, ftk.FineTuneSpec(1), images, emptied(cache), **options)
    assert done == {"images": 24, "computed": 0}


@given(order=st.permutations(range(4)), again=st.lists(st.integers(0, 3), max_size=3))
@settings(max_examples=3)
@pytest.mark.once
def test_parts_in_any_order_hold_the_rows_of_one_run(order, again, build_small, tmp_path_factory):
    pytest.importorskip("fsspec")
    backbone, local = _backbone(build_small), tmp_path_factory.mktemp("local")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    images = ftk.ImageSet.from_arrays(pixels, list("ab" * 12))
    options = {"preprocessing": None, "batch_size": 4, "verbose": 0}
    url = f"memory://{uuid.uuid4().hex}"
    for part in [*order, *again]:
        machine = ftk.FeatureCache(url, local_folder=local / str(part))
        ftk.compute_features(
            backbone, ftk.FineTuneSpec(1), images, machine, shard=(part, 4), **options
        )
    cache = ftk.FeatureCache(url, local_folder=local / "reader")
    assert [e.images for e in cache.entries()] == [24]
    done = ftk.compute_features(backbone, ftk.FineTuneSpec(1), images, cache, **options)
    assert done == {"images": 24, "computed": 0}


_built = []


def _backbone(build):
    if not _built:
        _built.append(build())
    return _built[0]


def test_training_on_features_in_a_bucket_is_training(tune, tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    url = f"memory://{uuid.uuid4().hex}"
    tuned = tune(features=url)
    assert [entry.images for entry in ftk.FeatureCache(url).entries()] == [18]
    assert tuned.history["loss"] == tune().history["loss"]
    assert (tmp_path / "home" / "finetune-kit").is_dir()


@pytest.mark.once
def test_a_folder_by_its_url_is_a_folder(extract, expected, tmp_path):
    pytest.importorskip("fsspec")
    url = f"file://{tmp_path}/deep/features"
    assert (extract(ftk.FeatureCache(url, local_folder=tmp_path / "local")) == expected).all()
    assert (extract(tmp_path / "deep" / "features") == expected).all()
    there = ftk.FeatureCache(url).entries()
    assert [e.key for e in there] == [e.key for e in ftk.FeatureCache(url[7:]).entries()]
    assert there[0].bytes == ftk.FeatureCache(url[7:]).size > 0


@pytest.mark.parametrize("secret", [SECRET, "with/slash+and=" + SECRET])
def test_credentials_are_not_accepted_in_a_url(secret, tmp_path):
    table = {"path": [f"s3://key:{secret}@bucket/a.png"], "label": ["a"]}
    for call in (
        lambda url: ftk.read_image_table(pd.DataFrame(table)),
        lambda url: ftk.FeatureCache(url),
        lambda url: ftk.read_image_folder(url),
        lambda url: ftk.read_image_table(f"{url}/a.csv"),
        lambda url: ftk.read_manifest(f"{url}/a.json"),
        lambda url: ftk.predict("model.keras", url),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            call(f"s3://key:{secret}@bucket/folder")
        assert SECRET not in str(caught.value)


@pytest.mark.once
@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://example.org/photos", "download files of other servers first"),
        ("simplecache::s3://bucket/photos", "leave out what stands before ::"),
        ("no-such-kind://bucket/photos", "of a kind that fsspec knows"),
    ],
)
def test_urls_of_other_kinds_are_rejected(url, text):
    pytest.importorskip("fsspec")
    for call in (ftk.FeatureCache, ftk.read_image_folder):
        with pytest.raises(ValueError, match=text) as caught:
            call(url)
        assert f"Received: {url!r}" in str(caught.value)


@pytest.fixture
def missing(monkeypatch):
    """Make a package as one that is not installed."""

    def hide(package):
        registry = pytest.importorskip("fsspec.registry")
        monkeypatch.delitem(registry._registry, "s3", raising=False)
        for name in (package, f"{package}.core"):
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.once
@pytest.mark.parametrize("package", ["fsspec", "s3fs"])
def test_a_missing_package_is_named(package, missing):
    missing(package)
    for call in (ftk.FeatureCache, ftk.read_image_folder, ftk.read_image_table):
        with pytest.raises(ImportError, match=r"pip install 'finetune-kit\[cloud\]'"):
            call("s3://bucket/folder")


@pytest.mark.once
def test_paths_of_this_machine_do_not_need_fsspec(tmp_path, missing, extract, expected):
    missing("fsspec")
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name)
    images = ftk.read_image_folder(tmp_path)
    assert len(set(images.digests())) == 1
    assert images.load().shape == (2, 224, 224, 3)
    assert (extract(tmp_path / "features") == expected).all()
    assert ftk.FeatureCache(tmp_path / "features").size > 0


@pytest.mark.once
def test_a_full_disk_is_an_error_that_names_the_folder(cache, extract, monkeypatch):
    extract(cache)
    usage = shutil.disk_usage(cache.local_folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OSError, match=r"pass FeatureCache\(url, local_folder=") as caught:
        extract(emptied(cache))
    assert caught.value.filename == str(cache.local_folder)


@pytest.mark.once
@pytest.mark.parametrize("reads", [True, False])
def test_a_disk_that_becomes_full_is_named_and_nothing_is_lost(reads, cache, extract, expected, s3):
    """Another program takes the space after it was checked."""
    system, _ = _buckets._system(_buckets.Url(cache.folder))
    if reads:
        extract(cache)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*((system, "get_file") if reads else (np, "save")), full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            extract(emptied(cache))
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).startswith(str(cache.local_folder))
    assert not list(Path(cache.local_folder).rglob("*.part"))
    assert (extract(cache) == expected).all()


# Images


@pytest.fixture
def photos(s3, folder, tmp_path):
    """Twelve images of two classes, on disk and in the bucket."""
    import fsspec

    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for i in range(12):
        path = root / ("cat", "dog")[i % 2] / f"p{i // 4}_{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "images.csv").write_text(
        "path,label\n" + "".join(f"{p.parent.name}/{p.name},{p.parent.name}\n"
                                 for p in sorted(root.glob("*/*.png"))))  # fmt: skip
    system, path = fsspec.url_to_fs(folder)
    system.put(str(root), path, recursive=True)
    return root, folder


@pytest.mark.once
def test_a_folder_in_a_bucket_is_read_as_one_on_disk(photos, s3):
    root, url = photos
    s3.requests.clear()
    there = ftk.read_image_folder(url, groups=r"(p\d)_")
    assert s3.count("GET", r"\.png$") == 12, "each image is read once"
    assert s3.count("HEAD") <= 1
    here = ftk.read_image_folder(root, groups=r"(p\d)_")
    assert there.paths == tuple(p.replace(str(root), url) for p in here.paths)
    assert there.skipped == (f"{url}/cat/notes.txt", f"{url}/images.csv")
    s3.requests.clear()
    assert there.digests() == here.digests()
    assert s3.count("GET", r"\.png$") == 0, "the digests are known from the first reading"
    assert (there.load() == here.load()).all()
    assert (there.labels == here.labels).all()
    assert (there.groups == here.groups).all()
    for i, original in enumerate(map(there.source.original, range(12))):
        assert (original == here.source.original(i)).all()
    assert (pickle.loads(pickle.dumps(there)).load([3]) == here.load([3])).all()


@pytest.mark.once
def test_a_replaced_object_has_another_digest(photos):
    import fsspec

    _, url = photos
    images = ftk.read_image_folder(url)
    before = images.digests()
    content = io.BytesIO()
    Image.new("RGB", (40, 40)).save(content, "png")
    system, _ = fsspec.url_to_fs(url)
    system.pipe_file(images.paths[5], content.getvalue())
    after = images.digests()
    assert [i for i in range(12) if before[i] != after[i]] == [5]
    assert after[5] == hashlib.sha256(content.getvalue()).hexdigest()
    assert (images.load([5]) == 0).all()


@pytest.mark.once
def test_tables_and_manifests_hold_urls(photos, tmp_path):
    root, url = photos
    folder = ftk.read_image_folder(url)
    table = ftk.read_image_table(f"{url}/images.csv")
    assert table.paths == folder.paths
    assert ftk.read_image_table(root / "images.csv", root=url).paths == folder.paths
    (tmp_path / "urls.csv").write_text(
        "path,label\n" + "".join(f"{p},{p.split('/')[-2]}\n" for p in folder.paths)
    )
    assert ftk.read_image_table(tmp_path / "urls.csv").paths == folder.paths
    for name in ("manifest.json", "manifest.csv"):
        train, _, test = folder.split((0.5, 0, 0.5))
        ftk.write_manifest(tmp_path / name, train=train, test=test)
        read = ftk.read_manifest(tmp_path / name)
        assert (read["train"].paths, read["test"].paths) == (train.paths, test.paths)
        assert read["train"].digests() == train.digests()
    with pytest.raises(ValueError, match="`file` must be on this machine"):
        ftk.write_manifest(f"{url}/manifest.json", all=folder)
    import fsspec

    fsspec.url_to_fs(url)[0].rm_file(test.paths[0])
    with pytest.raises(ValueError, match=f"'{test.paths[0]}': is missing"):
        ftk.read_manifest(tmp_path / "manifest.json")


@pytest.mark.once
def test_a_broken_image_is_skipped_and_a_broken_connection_is_an_error(photos, s3):
    import fsspec

    _, url = photos
    images = ftk.read_image_folder(url)
    path = images.paths[0]
    s3.faults.append(Fault("GET", r"\.png$", 503, times=2))
    s3.faults.append(Fault("GET", r"\.png$", "cut", times=2))
    s3.faults.append(Fault("GET", r"\.png$", "reset", times=2))
    assert len(ftk.read_image_folder(url)) == 12
    s3.faults.append(Fault("GET", path.removeprefix(url), "cut", times=1000))
    for call in (
        lambda: ftk.read_image_folder(url, on_error="skip"),
        lambda: images.load([0]),
        lambda: images.source.original(0),
    ):
        with pytest.raises(OSError, match=f"'{path}' cannot be read"):
            call()
    s3.faults.clear()
    s3.faults.append(Fault("GET", "list-type", 503, times=1000))
    with pytest.raises(OSError, match="cannot be"):
        ftk.read_image_folder(url, on_error="skip")
    s3.faults.clear()
    fsspec.url_to_fs(url)[0].pipe_file(path, b"no image")
    with pytest.raises(ValueError, match=f"'{path}' is not an image"):
        ftk.read_image_folder(url)
    assert ftk.read_image_folder(url, on_error="skip").skipped[-1] == path
    with pytest.raises(FileNotFoundError, match=f"'{url}/none', which does not exist"):
        ftk.read_image_folder(f"{url}/none")


@pytest.mark.once
@pytest.mark.parametrize("place", ["s3://no-such-bucket/x", "s3://bucket/no-such-folder"])
def test_where_nothing_is_found_the_bucket_and_the_credentials_are_named(place, s3, tmp_path):
    remedy = f"'{place}', which does not exist; check the names of the bucket and the folder, and"
    for call in (
        lambda: ftk.read_image_folder(place),
        lambda: ftk.read_image_table(place),
        lambda: ftk.predict("never.keras", place),
    ):
        with pytest.raises(FileNotFoundError, match=f"{remedy}.*endpoint and the credentials"):
            call()
    done = CliRunner().invoke(app, ["split", place, "--out", str(tmp_path / "never.csv")])
    assert (done.exit_code, done.stderr.count(remedy)) == (2, 1)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")  # the file is a TIFF too, and dark
def test_dicom_files_in_a_bucket_are_read(tmp_path):
    pytest.importorskip("pydicom")
    fsspec = pytest.importorskip("fsspec")
    from pydicom.data import get_testdata_file

    scan = Path(get_testdata_file("CT_small.dcm"))
    for name in ("a/1.dcm", "b/no_suffix"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(scan, tmp_path / name)
        fsspec.filesystem("memory").pipe_file(f"/scans/{name}", scan.read_bytes())
    there, here = ftk.read_image_folder("memory://scans"), ftk.read_image_folder(tmp_path)
    assert there.digests() == here.digests()
    assert (there.load() == here.load()).all()


@pytest.mark.once
def test_a_run_on_a_bucket_shows_no_credentials(
    photos, folder, tune, tmp_path, monkeypatch, capfd, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    _, url = photos
    images = ftk.read_image_folder(url)
    cache = ftk.FeatureCache(f"{folder}-features")
    tuned = tune(train=images, validation=None, head=ftk.classification_head(images.class_names),
                 features=cache, run_dir=tmp_path / "run", verbose=2)  # fmt: skip
    assert [e.images for e in cache.entries()] == [12]
    ftk.evaluate(tuned, images).save(tmp_path / "report")
    tuned.save(tmp_path / "model.keras")
    found = ftk.predict(tmp_path / "model.keras", url)
    assert found.paths == images.paths
    assert len(ftk.predict(tmp_path / "model.keras", images.paths[0])) == 1
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    shown = [
        *capfd.readouterr(),
        caplog.text,
        repr(cache),
        repr(images),
        repr(cache.entries()),
        str(tuned),
    ]
    kept = objects(f"{folder}-features").values()
    for content in [*written, *kept, *(text.encode() for text in shown)]:
        assert SECRET.encode() not in content
    assert json.loads(objects(f"{folder}-features")["entry.json"])["dtype"] == "float32"


@pytest.mark.once
def test_the_command_line_takes_urls(photos, tmp_path):
    _, url = photos
    manifest = tmp_path / "split.csv"
    options = ["--out", str(manifest), "--sizes", "0.5,0,0.5", "--no-duplicates"]
    done = CliRunner().invoke(app, ["split", url, *options])
    assert done.exit_code == 0, done.output
    assert manifest.read_text().count(url) == 12
    assert CliRunner().invoke(app, ["split", f"{url}/images.csv", *options]).exit_code == 0
    assert manifest.read_text().count(url) == 12


@pytest.mark.once
def test_the_code_of_the_page_runs(photos, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs/howto/buckets.md").read_text("utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    names = {}
    exec("from quickstart_setup import *", names)
    names["head"] = ftk.classification_head(("cat", "dog"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    features = f"{photos[1]}-features"
    code = code.replace("s3://bucket/photos", photos[1]).replace("s3://bucket/features", features)
    exec(code, names)
    assert [e.folder for e in names["cache"].entries()] == [names["entry"].folder]
    assert (tmp_path / "copies").is_dir()
