"""Laws 5 and 6: cached training is uncached training, and a cache never serves what is stale."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._features import frozen, store
from finetune_kit._features.augmentation import augmented, views_of_epoch
from finetune_kit._features.inputs import Decode, Views
from finetune_kit._model import digest
from finetune_kit._train import phases


def agree(run, other, rtol=1e-4) -> None:
    """Check that two runs have the same losses and metrics in each epoch."""
    assert run.history.keys() == other.history.keys()
    for name, values in run.history.items():
        assert values == pytest.approx(other.history[name], rel=rtol), name


def chunks(folder) -> set[Path]:
    return set(Path(folder).glob("*/*.npy"))


def names(folder) -> set[str]:
    return {path.name for path in chunks(folder)}


@pytest.fixture(scope="module")
def filled(tune, tmp_path_factory):
    """A cache with the features behind block3, and the run that filled it. Tests copy it."""
    folder = tmp_path_factory.mktemp("filled")
    return folder, tune(features=folder)


@pytest.fixture
def cache(filled, tmp_path):
    """A folder of the test's own with the content of `filled`."""
    return Path(shutil.copytree(filled[0], tmp_path / "cache"))


@pytest.fixture
def no_training(monkeypatch):
    """Runs compute what is frozen, and train nothing."""
    monkeypatch.setattr("finetune_kit._train.phases._fit", lambda *args: None)


@pytest.mark.parametrize(
    ("blocks", "batch_norm", "optimizer"),
    [
        (0, "frozen", "sgd"),
        (1, "train", "adam"),
        (2, "frozen", "adam"),
        (("block2", "block4"), "train", "sgd"),
    ],
)
def test_cached_training_is_uncached_training(tune, tiny_images, blocks, batch_norm, optimizer):
    spec = ftk.FineTuneSpec(blocks, batch_norm=batch_norm, epochs=3)
    options = {"optimizer": optimizer, "batch_size": 5}  # the last batch of an epoch is shorter
    runs = [tune(spec, features=features, **options) for features in (None, False)]
    agree(*runs)
    pixels = tiny_images.load(size=(32, 32))
    assert np.allclose(*(run.model.predict(pixels, verbose=0) for run in runs), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "optimizer", "rate"), [(0, "sgd", 1e-2), (2, "adam", 1e-3)])
def test_it_is_so_for_real_weights_and_images(
    tune, blocks, optimizer, rate, xrays, imagenet_weights
):
    train, validation, _ = ftk.read_image_folder(xrays).split((0.02, 0.01, 0.97))
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=(96, 96, 3)
    )
    backbone.load_weights(imagenet_weights)
    spec = ftk.FineTuneSpec(blocks, epochs=3, learning_rate=rate)
    options = {"backbone": backbone, "train": train, "validation": validation,
               "optimizer": optimizer, "preprocessing": "auto", "batch_size": 38}  # fmt: skip
    agree(*(tune(spec, features=features, **options) for features in (None, False)))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the trainer is used elsewhere")
def test_the_prefix_does_not_run_through_the_trainer_on_torch(tune, monkeypatch):
    """From Keras 3.16 on, it wraps the model in what rejects a model that does not train."""
    expected = tune()

    def fail(*args, **kwargs):
        raise AssertionError("the trainer was used")

    for name in ("predict_on_batch", "predict", "make_predict_function"):
        monkeypatch.setattr(keras.Model, name, fail)
    agree(tune(), expected, rtol=1e-6)


def test_each_cut_is_an_entry_and_without_trained_blocks_the_features_are_pooled(
    tune, tmp_path, no_training
):
    for blocks in (0, 1, "all"):
        tune(ftk.FineTuneSpec(blocks), features=tmp_path)
    cache = ftk.FeatureCache(tmp_path)
    pooled, maps, pixels = cache.entries()
    assert (pooled.shapes, maps.shapes) == (((8,),), ((4, 4, 8),))
    assert (pixels.shapes, pixels.dtype, pixels.model) == (((32, 32, 3),), "uint8", "pixels")
    assert [entry.images for entry in (pooled, maps, pixels)] == [18, 18, 18]
    # One entry can be cleared.
    assert cache.clear(pooled.key) == pooled.bytes
    assert cache.entries() == (maps, pixels)
    with pytest.raises(ValueError, match=f"`key` must be .*{pixels.key}.*key='{pooled.key}'"):
        cache.clear(pooled.key)
    # And all of them, but not what belongs to others.
    (tmp_path / "thesis.txt").write_text("mine")
    for name, content in (("data", b"{}"), ("more", b"\xff not JSON")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "entry.json").write_bytes(content)
    assert cache.size == maps.bytes + pixels.bytes
    assert cache.clear() == maps.bytes + pixels.bytes > 0
    assert (cache.entries(), cache.size) == ((), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "more", "thesis.txt"]


def test_a_feature_cache_has_short_forms(tune, tmp_path, monkeypatch):
    """A path is a cache in that folder, None a temporary one, and `~` the home folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: seen.append(len(list(tmp_path.rglob("*.npy"))))
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    runs = [
        tune(ftk.FineTuneSpec(0), features=features, callbacks=look)
        for features in (tmp_path / "a", str(tmp_path / "a"), ftk.FeatureCache(tmp_path / "a"),
                         "~/b", ftk.FeatureCache(), None, False)
    ]  # fmt: skip
    assert seen == [1, 1, 1, 2, 3, 3, 2]
    for run in runs[1:]:
        agree(run, runs[0])
    assert names(tmp_path / "a") == names(tmp_path / "b")
    assert ftk.FeatureCache("~/b").entries() == ftk.FeatureCache(tmp_path / "b").entries() != ()
    assert ftk.FeatureCache().entries() == ()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert all("features" not in run.settings for run in runs)


def test_a_second_run_computes_nothing(tune, cache, filled, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in chunks(cache)}
    monkeypatch.setattr(Decode, "load", None)
    agree(tune(features=cache), filled[1], rtol=1e-6)
    assert {path: path.stat().st_mtime_ns for path in chunks(cache)} == before


def test_rows_are_found_by_content_not_by_position(tune, tiny_images, cache, monkeypatch):
    before = chunks(cache)
    other = {
        "train": tiny_images.take(np.arange(17, 2, -1)),
        "validation": tiny_images.take(np.arange(3)),
    }
    cached = tune(features=cache, **other)
    assert chunks(cache) == before
    agree(cached, tune(features=False, **other))
    pixels = tiny_images.load(size=(32, 32))[::-1]
    turned = ftk.ImageSet.from_arrays(pixels, tiny_images.labels[::-1], tiny_images.class_names)
    monkeypatch.setattr("finetune_kit._train.phases._fit", lambda *args: None)
    tune(features=cache, train=turned.take(np.arange(6, 24)), validation=None)
    assert chunks(cache) == before


def changed_weights(backbone):
    weights = backbone.get_weights()
    weights[0].flat[0] += 1e-3
    backbone.set_weights(weights)
    return {"backbone": backbone}


def changed_graph(backbone):
    def leaky(layer):
        slope = {"negative_slope": 0.1} if "relu" in layer.name else {}
        return layer.__class__.from_config({**layer.get_config(), **slope})

    return {"backbone": keras.models.clone_model(backbone, clone_function=leaky)}


def changed_preprocessing(backbone):
    return {"backbone": backbone, "preprocessing": keras.layers.Rescaling(0.9)}


def changed_type(backbone):
    return {"backbone": backbone}


def changed_size(backbone):
    inputs = keras.Input((48, 48, 3))
    other = keras.models.clone_model(backbone, input_tensors=inputs)
    other.set_weights(backbone.get_weights())
    return {"backbone": other}


@pytest.mark.parametrize(
    "change", [changed_weights, changed_graph, changed_preprocessing, changed_type, changed_size]
)
def test_whatever_changes_the_features_is_another_entry(tune, small_backbone, cache, change):
    backbone = keras.models.clone_model(small_backbone)
    backbone.set_weights(small_backbone.get_weights())
    options, half = change(backbone), change is changed_type
    features = ftk.FeatureCache(cache, dtype="float16" if half else "float32")
    assert len(features.entries()) == 1
    run = tune(features=features, **options)
    first, second = features.entries()
    agree(run, tune(features=False, **options), rtol=1e-2 if half else 1e-4)
    if half:
        assert (first.dtype, second.dtype) == ("float32", "float16")
        assert second.bytes < 0.75 * first.bytes


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        ("finetune_kit._features.store", "FORMAT", "another"),
        ("finetune_kit._features.frozen", "DECODING", {"resize": "nearest"}),
        ("keras", "__version__", "0.1"),
        (keras.backend.backend(), "__version__", "0.1"),
    ],
    ids=["format", "decoding", "Keras", "backend"],
)
def test_another_format_decoding_or_version_is_another_entry(
    tune, cache, monkeypatch, no_training, module, name, value
):
    before = chunks(cache)
    monkeypatch.setattr(sys.modules[module], name, value)
    tune(features=cache)
    (new,) = chunks(cache) - before
    assert new.parent not in {path.parent for path in before}


def test_whatever_does_not_change_the_features_is_the_same_entry(
    tune, small_backbone, cache, no_training
):
    before = chunks(cache)
    renamed = keras.models.clone_model(
        small_backbone,
        clone_function=lambda layer: layer.__class__.from_config(
            {**layer.get_config(), "name": f"my_{layer.name}"}
        ),
    )
    renamed.set_weights(small_backbone.get_weights())
    weights = renamed.get_layer("my_block4_conv").get_weights()  # behind the cut
    renamed.get_layer("my_block4_conv").set_weights([2 * w for w in weights])
    spec = ftk.FineTuneSpec(1, batch_norm="train", learning_rate=0.1)
    tune(spec, backbone=renamed, features=cache, seed=7, batch_size=3)
    assert chunks(cache) == before


def test_another_content_is_another_row(tune, sets, cache):
    pixels = sets.train.load(size=(32, 32))
    pixels[3, 0, 0, 0] ^= 255
    other = ftk.ImageSet.from_arrays(pixels, sets.train.labels, sets.train.class_names)
    run = tune(train=other, features=cache)
    (entry,) = ftk.FeatureCache(cache).entries()
    assert entry.images == 18 + 1
    agree(run, tune(train=other, features=False))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, empty])
def test_a_damaged_chunk_is_noticed_at_first_use_and_computed_again(
    tune, cache, filled, damage, caplog
):
    (path,) = chunks(cache)
    damage(path)
    agree(tune(features=cache), filled[1], rtol=1e-6)
    assert chunks(cache) == {path}  # the same bytes again, so the same name
    (record,) = caplog.records
    said = f"Damaged or missing, and not used: 1 file of features in {path.parent}: "
    assert (record.levelname, record.getMessage()) == ("WARNING", said + path.name)
    tune(features=cache)
    assert len(caplog.records) == 1  # it is whole again


def test_damage_that_shows_in_an_index_is_said_too(tune, cache, filled, caplog):
    (path,) = chunks(cache)
    empty(path)
    path.with_suffix(".index").unlink()
    agree(tune(features=cache), filled[1], rtol=1e-6)
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == [path.name]


@pytest.mark.parametrize("damage", [Path.unlink, empty, cut_short])
def test_an_entry_whose_description_is_lost_is_listed_and_can_be_cleared(
    tune, cache, filled, damage
):
    caches = ftk.FeatureCache(cache)
    (before,) = caches.entries()
    damage(Path(before.folder) / "entry.json")
    (entry,) = caches.entries()
    assert (entry.key, entry.images, entry.model, entry.shapes) == (before.key, 18, "?", ())
    assert before.bytes * 0.9 < entry.bytes == caches.size
    agree(tune(features=cache), filled[1], rtol=1e-6)  # its features are used
    foreign = Path(before.folder) / "thesis.txt"
    foreign.write_text("mine")
    assert caches.clear() == 0  # not with files of others in it
    foreign.unlink()
    assert caches.clear() == entry.bytes
    assert list(Path(cache).iterdir()) == []


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": "of another program"}'])
def test_a_folder_that_is_not_an_entry_is_not_touched(cache, filled, content):
    (before,) = ftk.FeatureCache(cache).entries()
    for name, text in (("entry.json", content), ("0" * 32 + ".part", "")):
        folder = Path(cache) / uuid.uuid4().hex
        folder.mkdir()
        (folder / name).write_text(text)  # the second one is an entry that has just begun
    assert ftk.FeatureCache(cache).entries() == (before,)
    assert ftk.FeatureCache(cache).clear() == before.bytes
    assert len(list(Path(cache).iterdir())) == 2


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, empty])
def test_a_damaged_chunk_is_computed_again_before_another_entry_starts_from_it(
    tune, cache, filled, tmp_path, no_training, damage
):
    """The features of a deeper cut are computed from it."""
    (path,) = chunks(cache)
    damage(path)
    for folder in (cache, tmp_path / "fresh"):
        tune(ftk.FineTuneSpec(0), features=folder)
    assert path.read_bytes() == (filled[0] / path.relative_to(cache)).read_bytes()
    (deeper,), (fresh,) = chunks(cache) - {path}, chunks(tmp_path / "fresh")
    one, other = (np.sort(np.load(file), order="image") for file in (deeper, fresh))
    assert one["image"].tolist() == other["image"].tolist()
    assert np.allclose(one["f0"], other["f0"], atol=1e-6)


def test_chunks_that_vanish_after_the_opening_are_computed_again(tune, cache, filled, monkeypatch):
    """Another process clears the cache, or finds a damaged chunk."""
    before, fit = chunks(cache), phases._fit

    def clearing(*args):
        for path in before:
            path.unlink()
        return fit(*args)

    monkeypatch.setattr(phases, "_fit", clearing)
    agree(tune(features=cache), filled[1], rtol=1e-6)
    assert chunks(cache) == before


@pytest.fixture
def hashed(monkeypatch) -> Counter[str]:
    """How often each chunk is hashed; as in a new process, none has been verified yet."""
    found: Counter[str] = Counter()
    file_digest = store.hashlib.file_digest

    class Hashlib:
        sha256 = store.hashlib.sha256

        @staticmethod
        def file_digest(file, kind):
            found[Path(file.name).name] += 1
            return file_digest(file, kind)

    monkeypatch.setattr(store, "hashlib", Hashlib)
    monkeypatch.setattr(store, "_verified", set())
    return found


def test_a_chunk_is_hashed_once_a_process_and_only_if_it_is_used(tune, sets, tmp_path, hashed):
    def run(spec, **options):
        store._verified.clear()  # the next process
        tune(spec, features=tmp_path, **options)

    spec = ftk.FineTuneSpec(1)
    run(spec, train=sets.train, validation=None)
    (first,) = names(tmp_path)
    run(spec, train=sets.test, validation=None)
    (second,) = names(tmp_path) - {first}
    assert not hashed  # none of these rows was there before
    run([spec, spec], train=sets.train, validation=None)
    assert hashed == {first: 1}
    run([spec, spec], train=sets.train + sets.test, validation=None)
    assert hashed == {first: 2, second: 1}
    run(ftk.FineTuneSpec(0), train=sets.test, validation=None)  # starts from the features there
    assert hashed == {first: 2, second: 2}
    tune([spec, ftk.FineTuneSpec(0), spec], features=tmp_path, train=sets.test, validation=None)
    assert hashed == {first: 2, second: 2}  # in this process it is verified


def test_the_weights_of_the_frozen_part_are_hashed_once_a_run(
    tune, small_backbone, tmp_path, monkeypatch, no_training
):
    """Before training; after each phase they are compared with that digest."""
    count: Counter[str] = Counter()
    compute = digest.variable_digest

    def counting(variable):
        count[variable.path] += 1
        return compute(variable)

    for module in ("_model.digest", "_train.arguments", "_train.setup", "_train.phases"):
        monkeypatch.setattr(f"finetune_kit.{module}.variable_digest", counting)
    run = tune([ftk.FineTuneSpec(n) for n in (0, 1, 2)], features=tmp_path / "a",
               run_dir=tmp_path / "b")  # fmt: skip
    moving = {path for plan in run.plans for path in plan.trainable_variables}
    frozen = {v.path: count[v.path] for v in small_backbone.weights if v.path not in moving}
    assert {path[:6] for path in frozen} == {"block1", "block2", "block3", "block4"}
    assert set(frozen.values()) == {1}


def test_nothing_in_a_cache_is_executable(cache):
    for path in cache.glob("*/*"):
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    assert {path.suffix for path in cache.glob("*/*")} == {".npy", ".index", ".json"}


def test_too_little_space_is_an_error_before_the_first_byte(tune, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"need 0\.00 GB.*dtype='float16'.*features=False"):
        tune(features=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_half_written(tune, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(OSError, match="No space"):
            tune(features=tmp_path)
    assert [path.name for path in tmp_path.glob("*/*")] == ["entry.json"]


@pytest.mark.parametrize("name", ["features", "run_dir"])
def test_a_folder_that_cannot_be_written_is_named_with_its_argument(tune, tmp_path, rejected, name):
    (tmp_path / "file").write_text("in the way")
    folder = str(tmp_path / "file" / "inside")
    with rejected(f"`{name}` must be a folder that can be written.*{name}='{folder}'", OSError):
        tune(**{name: folder})


# A process that fills a cache in chunks of four rows and prints its losses.
FILLER = """
import sys, json, time, numpy as np, keras
import finetune_kit as ftk
from finetune_kit._features import entry, store
entry._CHUNK_ROWS = 4
write = store.write_chunk
# So slow that a process on a busy machine is killed before it has written all.
store.write_chunk = lambda *args: time.sleep(0.02) or write(*args)
backbone, head = map(keras.models.load_model, sys.argv[1:3])
pixels = np.load(sys.argv[3])
images = ftk.ImageSet.from_arrays(pixels, np.arange(len(pixels)) % 3)
run = ftk.fine_tune(backbone, head, ftk.FineTuneSpec(1), images,
                    batch_size=4, preprocessing=None, features=sys.argv[4], verbose=0)
print(json.dumps(run.history["loss"]))
"""


@pytest.mark.once
@pytest.mark.slow
def test_killed_processes_leave_whole_rows_and_others_can_fill_the_same_cache(
    tune, small_backbone, tmp_path
):
    """Two processes fill one cache until one of them is killed, and a third one its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (160, 32, 32, 3), np.uint8)
    head = ftk.classification_head(3)
    head.build((None, 2, 2, 8))
    files = [tmp_path / name for name in ("backbone.keras", "head.keras", "x.npy")]
    small_backbone.save(files[0])
    head.save(files[1])
    np.save(files[2], pixels)
    shared, own = tmp_path / "shared", tmp_path / "own"
    victim, other, alone = processes = [
        subprocess.Popen(
            [sys.executable, "-c", FILLER, *map(str, files), str(cache)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(ftk.__file__).parents[1])},
        )
        for cache in (shared, shared, own)
    ]
    pending = {victim: (shared, 1), alone: (own, 20)}
    while pending:
        for process, (cache, least) in [*pending.items()]:
            if len(chunks(cache)) >= least or process.poll() is not None:
                process.kill()
                assert process.wait() == -signal.SIGKILL
                del pending[process]
        time.sleep(0.002)
    assert 20 <= len(chunks(own)) < 40
    losses = json.loads(other.communicate()[0])
    for process in processes:
        process.stdout.close()
    images = ftk.ImageSet.from_arrays(pixels, np.arange(160) % 3)
    options = {"train": images, "validation": None, "head": head, "batch_size": 4}
    for features in (own, shared, False):
        run = tune(ftk.FineTuneSpec(1), features=features, **options)
        assert run.history["loss"] == pytest.approx(losses, rel=1e-5)
    for cache in (own, shared):
        (entry,) = ftk.FeatureCache(cache).entries()
        assert entry.images == 160


def test_a_sweep_is_the_runs_by_themselves_for_one_decoding(
    tune, small_backbone, sets, monkeypatch
):
    specs = [ftk.FineTuneSpec(blocks, epochs=2) for blocks in (0, 2, 1)]
    head = ftk.classification_head(3, units=(4,), dropout=0.3)
    options = {"batch_size": 6, "preprocessing": None, "verbose": 0}
    arguments = small_backbone, head, specs, sets.train, sets.validation
    decoded, load = [], Decode.load

    def counting(self, positions, epoch=0):
        decoded.extend(positions.tolist())
        return load(self, positions, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Decode, "load", counting)
        runs = ftk.sweep(*arguments, **options)
    assert sorted(decoded) == list(range(18))
    for run, spec in zip(runs, specs, strict=True):
        assert sum(run.plan.trainable) == spec.trainable_blocks
        agree(run, tune(spec, head=head))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"specs": []}, "`specs` must be a list of one or more FineTuneSpec"),
        ({"specs": ftk.FineTuneSpec(1)}, "`specs` must be a list of one or more FineTuneSpec"),
        ({"specs": [ftk.FineTuneSpec(1), 2]}, r"`specs\[1\]` must be of type FineTuneSpec"),
        ({"specs": [ftk.FineTuneSpec(1), ftk.FineTuneSpec(9)]}, "`trainable_blocks` must be"),
        ({"backbone": "mobilenet"}, "`backbone` must be of type"),
        ({"features": True}, "`features` must be a folder"),
        ({"run_dir": __file__}, "`run_dir` must be a folder.*which is a file"),
    ],
)
def test_arguments_that_do_not_fit_a_sweep_are_rejected(
    small_backbone, sets, rejected, change, says
):
    call = {"backbone": small_backbone, "head": ftk.classification_head(3), "train": sets.train,
            "specs": [ftk.FineTuneSpec(1)]}  # fmt: skip
    with rejected(says):
        ftk.sweep(**{**call, **change})


def changing() -> keras.Sequential:
    """A new layer that changes images at random."""
    return keras.Sequential(
        [keras.layers.RandomFlip("horizontal"), keras.layers.RandomBrightness(0.4)]
    )


def test_views_are_kept_and_validation_images_have_none(tune, sets, tmp_path):
    def augment(views, **options):
        return tune(spec, augmentation=ftk.Augmentation(changing(), views), features=tmp_path,
                    **options)  # fmt: skip

    spec, cache = ftk.FineTuneSpec(0, epochs=4), ftk.FeatureCache(tmp_path)
    first = augment(3)
    assert cache.entries()[0].images == 12 * 3 + 6
    before = chunks(tmp_path)
    agree(augment(3), first, rtol=1e-6)  # another layer object of the same configuration
    part = sets.train.take(np.arange(4, 10))
    augment(2, train=part, validation=sets.validation.take(np.arange(3)))
    assert chunks(tmp_path) == before  # fewer views and fewer images: nothing is new
    plain = tune(spec, features=tmp_path)
    assert first.history["loss"] != pytest.approx(plain.history["loss"], rel=1e-3)
    augment(3, seed=1)
    assert cache.entries()[0].images == 12 * 3 + 6 + 12 + 12 * 3


def test_a_bare_layer_is_an_augmentation_with_eight_views(tune, tmp_path, capsys, no_training):
    tune(ftk.FineTuneSpec(0), augmentation=keras.layers.RandomFlip(), features=tmp_path, verbose=2)
    (entry,) = ftk.FeatureCache(tmp_path).entries()
    assert entry.images == 12 * 8 + 6
    printed = capsys.readouterr().out
    assert "Computing the frozen part up to block4, once for each of 96 augmented" in printed
    assert "Computing the frozen part up to block4, once for each of 6 images:" in printed


def test_what_is_computed_is_named_by_its_last_block(tune, capsys, no_training):
    tune([ftk.FineTuneSpec(0), ftk.FineTuneSpec(2)], verbose=2)
    printed = capsys.readouterr().out
    for block in ("block2", "block4"):
        assert printed.count(f"frozen part up to {block}, once for each of 18 images:") == 1


def test_views_are_chosen_once_an_epoch(tune):
    views_of_epoch.cache_clear()
    flip = ftk.Augmentation(keras.layers.RandomFlip("horizontal"), views=3)
    tune(ftk.FineTuneSpec(0, epochs=4), augmentation=flip, batch_size=3)
    assert 4 <= views_of_epoch.cache_info().misses <= 5  # `fit` may look at the next epoch
    assert views_of_epoch.cache_info().hits >= 4 * 3  # the other batches
    chosen = [views_of_epoch(0, epoch, 100, 3) for epoch in (0, 0, 1)]
    assert np.array_equal(chosen[0], chosen[1])
    assert not np.array_equal(chosen[0], chosen[2])
    assert set(chosen[0]) == {0, 1, 2}


def test_a_view_depends_on_its_image_and_number_alone(tiny_images):
    layer, pixels = changing(), tiny_images.load(np.arange(2), (32, 32))
    keys = [("a" * 64, 0), ("b" * 64, 1)]
    once = augmented(layer, pixels, keys, seed=0)
    assert once.dtype == np.uint8
    assert np.array_equal(augmented(layer, pixels, keys, seed=0), once)
    # Whatever is beside it.
    assert np.array_equal(augmented(layer, pixels[::-1], keys[::-1], seed=0)[::-1], once)
    others = [augmented(layer, pixels[:1], [("a" * 64, view)], seed=0) for view in range(4)]
    assert len({other.tobytes() for other in others}) > 1
    growing, shrinking = keras.layers.ZeroPadding2D(1), keras.layers.Rescaling(1 / 255)
    with pytest.raises(ValueError, match="`augmentation` must keep the shape"):
        augmented(growing, pixels, keys, seed=0)
    with pytest.raises(ValueError, match="`augmentation` must keep pixels in their range"):
        augmented(shrinking, pixels, keys, seed=0)


def test_what_loads_inputs_can_be_sent_to_another_process(
    tune, tiny_images, cache, monkeypatch, no_training
):
    positions = np.array([3, 0, 5])
    decode = Decode(tiny_images, (16, 16))
    assert np.array_equal(
        pickle.loads(pickle.dumps(decode)).load(positions), tiny_images.load(positions, (16, 16))
    )
    layer = ftk.Augmentation(changing(), views=2)
    views = Views(decode, layer, tiny_images.digests(), seed=3)
    assert np.array_equal(pickle.loads(pickle.dumps(views)).load(positions), views.load(positions))
    found, original = [], frozen.Features
    monkeypatch.setattr(frozen, "Features", lambda *a: found.append(original(*a)) or found[-1])
    tune(features=cache)
    content = pickle.dumps(found[-1])
    assert len(content) < 5_000 < ftk.FeatureCache(cache).size  # paths, not the rows
    loaded = pickle.loads(content).load(positions)
    assert loaded.shape == (3, 4, 4, 8)
    assert np.array_equal(loaded, found[-1].load(positions))
    flip_a_byte(*chunks(cache))
    with pytest.raises(OSError, match="does not keep what is written"):
        pickle.loads(content).load(positions)  # there it cannot be computed again


class Pixels(keras.callbacks.Callback):
    """Asks the model for predictions of pixels, as users' callbacks do."""

    def __init__(self, pixels):
        super().__init__()
        self.pixels, self.scores, self.batches = pixels, [], 0

    def on_epoch_end(self, epoch, logs=None):
        self.scores.append(self.model.predict(self.pixels, verbose=0))

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1


def test_callbacks_see_the_whole_model(tune, tiny_images, tmp_path):
    pixels = tiny_images.load(np.arange(4), (32, 32))
    mine = Pixels(pixels)
    saving = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.weights.h5", save_weights_only=True
    )
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))
    run = tune(ftk.FineTuneSpec(1, epochs=3), callbacks=[mine, saving, rates])
    assert len(mine.scores) == 3
    assert mine.batches == 3 * 2
    assert np.allclose(mine.scores[-1], run.model.predict(pixels, verbose=0), atol=1e-6)
    assert not np.allclose(mine.scores[0], mine.scores[-1], atol=1e-6)
    assert run.history["learning_rate"] == pytest.approx([0.1, 0.05, 0.1 / 3])
    run.model.load_weights(tmp_path / "1.weights.h5")
    assert np.allclose(run.model.predict(pixels, verbose=0), mine.scores[0], atol=1e-6)


def test_callbacks_stop_the_run_and_restore_the_best_weights(tune, tiny_images):
    spec = ftk.FineTuneSpec(1, epochs=9, learning_rate=3.0)  # too fast: the first epoch is best
    head = ftk.classification_head(3, units=(4,))
    runs = []
    for features in (None, False):
        stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
        runs.append(tune(spec, head=head, callbacks=[stop], optimizer="sgd", features=features))
    assert 3 <= len(runs[0].history["loss"]) < 9
    best = 1 + int(np.argmin(runs[0].history["val_loss"]))
    assert [run.settings["kept_epoch"] for run in runs] == [best, best]
    assert best < len(runs[0].history["loss"])
    agree(*runs)
    pixels = tiny_images.load(size=(32, 32))
    assert np.allclose(*(run.model.predict(pixels, verbose=0) for run in runs), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"features": True}, "`features` must be a folder, a FeatureCache, None .*features=True$"),
        ({"features": ""}, "`features` must be a folder.*features=''$"),
        ({"features": 3}, "`features` must be a folder.*features=3$"),
        ({"features": __file__}, "`features` must be a folder.*which is a file"),
        ({"run_dir": ""}, "`run_dir` must be a folder.*run_dir=''$"),
        ({"run_dir": __file__}, "`run_dir` must be a folder.*which is a file"),
        ({"augmentation": "flip"}, "`augmentation` must be a Keras layer"),
        ({"augmentation": keras.layers.RandomFlip(), "features": False}, "`augmentation` makes"),
        ({"preprocessing": keras.layers.RandomFlip()}, "`preprocessing` must be deterministic"),
    ],
)
def test_arguments_that_do_not_fit_are_rejected(tune, rejected, options, says):
    with rejected(says):
        tune(**options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ftk.FeatureCache(""), "`folder` must be a folder.*folder=''$"),
        (lambda: ftk.FeatureCache(3), "`folder` must be a folder.*folder=3$"),
        (lambda: ftk.FeatureCache(__file__), "`folder` must be a folder.*which is a file"),
        (lambda: ftk.FeatureCache(dtype="int8"), r"`dtype` must be one of \('float32', 'float16'"),
        (lambda: ftk.FeatureCache("none").clear("x"), r"`key` must be .*one of \[\].*key='x'$"),
        (lambda: ftk.Augmentation("flip"), "`augmentation` must be a Keras layer"),
        (lambda: ftk.Augmentation(changing(), 0), "`views` must be a whole number of at least 1"),
        (lambda: ftk.Augmentation(views=4, mixup=0.2), "`views` must be left out .*views=4 with"),
        (
            lambda: ftk.Augmentation(keras.Sequential([keras.layers.CutMix()])),
            "MixUp and CutMix mix several",
        ),
    ],
)
def test_a_cache_or_augmentation_that_makes_no_sense_is_rejected(call, says):
    with pytest.raises(ValueError, match=says):
        call()


class Doubling(keras.layers.Layer):
    """A layer without a config."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def call(self, x):
        return x * self.by

    def get_config(self):
        raise NotImplementedError("no config")


def test_a_layer_without_a_config_is_rejected():
    with pytest.raises(ValueError, match=r"get_config.*features=False"):
        digest.fingerprint(Doubling(2.0))
