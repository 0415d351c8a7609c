"""Laws 5 and 6: cached training is uncached training, and a cache never serves what is stale."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import finetune_kit as ftk

SPLIT = ftk.Split(np.arange(12), np.arange(12, 18), np.arange(18, 24))


def tune(backbone, images, spec=None, *, split=SPLIT, dropout=0.3, **options):
    head = ftk.classification_head(3, units=(4,), dropout=dropout)
    spec = spec or ftk.FineTuneSpec(1, epochs=2)
    options = {"verbose": 0, "batch_size": 5, "preprocessing": None, **options}
    return ftk.fine_tune(backbone, head, spec, images, split, **options)


def names(folder) -> set[str]:
    return {path.name for path in chunks(folder)}


def agree(run, other, rtol=1e-4) -> None:
    """The same losses and metrics in each epoch."""
    assert run.history.keys() == other.history.keys()
    for name, values in run.history.items():
        assert values == pytest.approx(other.history[name], rel=rtol), name


def chunks(folder) -> set[Path]:
    return set(Path(folder).glob("*/*.npy"))


@settings(max_examples=3 if keras.backend.backend() == "jax" else 6)  # it compiles each time
@given(
    blocks=st.sampled_from([0, 1, 2, ("block2", "block4")]),
    batch_norm=st.sampled_from(["frozen", "train"]),
    optimizer=st.sampled_from(["sgd", "adam"]),
)
def test_cached_training_is_uncached_training(
    small_backbone, tiny_images, blocks, batch_norm, optimizer
):
    spec = ftk.FineTuneSpec(blocks, batch_norm=batch_norm, epochs=3)
    runs = [
        tune(small_backbone, tiny_images, spec, optimizer=optimizer, cache_dir=cache)
        for cache in (None, False)
    ]
    agree(*runs)
    pixels = tiny_images.load(size=(32, 32))
    assert np.allclose(*(run.model.predict(pixels, verbose=0) for run in runs), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "optimizer", "rate"), [(0, "sgd", 1e-2), (2, "adam", 1e-3)])
def test_it_is_so_for_real_weights_and_images(blocks, optimizer, rate, xrays, imagenet_weights):
    images = ftk.read_image_folder(xrays)
    split = ftk.stratified_split(images.labels, (0.02, 0.01, 0.97))
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=(96, 96, 3)
    )
    backbone.load_weights(imagenet_weights)
    spec = ftk.FineTuneSpec(blocks, epochs=3, learning_rate=rate)
    options = {"split": split, "optimizer": optimizer, "preprocessing": "auto", "batch_size": 32}
    agree(*(tune(backbone, images, spec, cache_dir=kept, **options) for kept in (None, False)))


def test_what_trains_nothing_keeps_pooled_features(small_backbone, tiny_images, tmp_path):
    tune(small_backbone, tiny_images, ftk.FineTuneSpec(0), cache_dir=tmp_path)
    tune(small_backbone, tiny_images, ftk.FineTuneSpec(1), cache_dir=tmp_path)
    tune(small_backbone, tiny_images, ftk.FineTuneSpec("all"), cache_dir=tmp_path)
    pooled, maps, pixels = ftk.cached_features(tmp_path)
    assert (pooled.shapes, maps.shapes) == (((8,),), ((4, 4, 8),))
    assert (pixels.shapes, pixels.dtype, pixels.model) == (((32, 32, 3),), "uint8", "pixels")
    assert [entry.images for entry in (pooled, maps, pixels)] == [18, 18, 18]


def test_a_second_run_computes_nothing(small_backbone, tiny_images, tmp_path):
    first = tune(small_backbone, tiny_images, cache_dir=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in chunks(tmp_path)}
    agree(tune(small_backbone, tiny_images, cache_dir=str(tmp_path)), first, rtol=1e-6)
    assert {path: path.stat().st_mtime_ns for path in chunks(tmp_path)} == before


def test_rows_are_found_by_image_not_by_position(small_backbone, tiny_images, tmp_path):
    tune(small_backbone, tiny_images, cache_dir=tmp_path)
    before = chunks(tmp_path)
    other = ftk.Split(np.arange(17, 2, -1), np.arange(3), np.arange(18, 24))
    cached = tune(small_backbone, tiny_images, split=other, cache_dir=tmp_path)
    assert chunks(tmp_path) == before
    agree(cached, tune(small_backbone, tiny_images, split=other, cache_dir=False))
    pixels = tiny_images.load(size=(32, 32))[::-1]
    turned = ftk.ImageSet.from_arrays(pixels, tiny_images.labels[::-1], tiny_images.class_names)
    tune(small_backbone, turned, split=ftk.Split(np.arange(6, 24), np.arange(0), np.arange(6)),
         cache_dir=tmp_path)  # fmt: skip
    assert chunks(tmp_path) == before


def changed_weights(backbone, images, options):
    weights = backbone.get_weights()
    weights[0].flat[0] += 1e-3
    backbone.set_weights(weights)
    return backbone, images, options


def changed_graph(backbone, images, options):
    return (
        keras.models.clone_model(
            backbone,
            clone_function=lambda layer: layer.__class__.from_config(
                {**layer.get_config(), **({"negative_slope": 0.1} if "relu" in layer.name else {})}
            ),
        ),
        images,
        options,
    )


def changed_preprocessing(backbone, images, options):
    return backbone, images, {**options, "preprocessing": keras.layers.Rescaling(0.9)}


def changed_type(backbone, images, options):
    return backbone, images, {**options, "cache_dtype": "float16"}


def changed_size(backbone, images, options):
    inputs = keras.Input((48, 48, 3))
    other = keras.models.clone_model(backbone, input_tensors=inputs)
    other.set_weights(backbone.get_weights())
    return other, images, options


@pytest.mark.parametrize(
    "change",
    [changed_weights, changed_graph, changed_preprocessing, changed_type, changed_size],
)
def test_whatever_changes_the_features_is_another_entry(
    small_backbone, tiny_images, tmp_path, change
):
    backbone = keras.models.clone_model(small_backbone)
    backbone.set_weights(small_backbone.get_weights())
    tune(backbone, tiny_images, ftk.FineTuneSpec(1), cache_dir=tmp_path)
    assert len(ftk.cached_features(tmp_path)) == 1
    backbone, images, options = change(backbone, tiny_images, {})
    run = tune(backbone, images, ftk.FineTuneSpec(1), cache_dir=tmp_path, **options)
    assert len(ftk.cached_features(tmp_path)) == 2
    options.pop("cache_dtype", None)
    uncached = tune(backbone, images, ftk.FineTuneSpec(1), cache_dir=False, **options)
    agree(run, uncached, rtol=1e-2 if change is changed_type else 1e-4)


@pytest.mark.parametrize(
    ("room", "name", "value"),
    [("store", "FORMAT", "another"), ("frozen", "DECODING", {"resize": "nearest"})],
    ids=["format", "decoding"],
)
def test_another_format_or_decoding_is_another_entry(
    small_backbone, tiny_images, tmp_path, monkeypatch, room, name, value
):
    tune(small_backbone, tiny_images, ftk.FineTuneSpec(0), cache_dir=tmp_path)
    before = chunks(tmp_path)
    monkeypatch.setattr(f"finetune_kit._features.{room}.{name}", value)
    tune(small_backbone, tiny_images, ftk.FineTuneSpec(0), cache_dir=tmp_path)
    (new,) = chunks(tmp_path) - before
    assert new.parent not in {path.parent for path in before}


def test_whatever_does_not_change_them_is_not(small_backbone, tiny_images, tmp_path):
    tune(small_backbone, tiny_images, ftk.FineTuneSpec(1), cache_dir=tmp_path)
    before = chunks(tmp_path)
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
    tune(renamed, tiny_images, spec, cache_dir=tmp_path, seed=7, batch_size=3)
    assert chunks(tmp_path) == before


def test_another_content_is_another_row(small_backbone, tiny_images, tmp_path):
    pixels = tiny_images.load(size=(32, 32))
    tune(small_backbone, tiny_images, ftk.FineTuneSpec(1), cache_dir=tmp_path)
    pixels[3, 0, 0, 0] ^= 255
    other = ftk.ImageSet.from_arrays(pixels, tiny_images.labels, tiny_images.class_names)
    run = tune(small_backbone, other, ftk.FineTuneSpec(1), cache_dir=tmp_path)
    (entry,) = ftk.cached_features(tmp_path)
    assert entry.images == 18 + 1
    agree(run, tune(small_backbone, other, ftk.FineTuneSpec(1), cache_dir=False))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, empty])
def test_what_is_damaged_is_computed_again(small_backbone, tiny_images, tmp_path, damage):
    first = tune(small_backbone, tiny_images, cache_dir=tmp_path)
    (path,) = chunks(tmp_path)
    damage(path)
    agree(tune(small_backbone, tiny_images, cache_dir=tmp_path), first, rtol=1e-6)
    assert chunks(tmp_path) == {path}  # the same bytes again, so the same name


def test_files_of_others_are_left_alone(small_backbone, tiny_images, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "entry.json").write_text("{}")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "entry.json").write_bytes(b"\xff not JSON")
    tune(small_backbone, tiny_images, cache_dir=tmp_path)
    (entry,) = ftk.cached_features(tmp_path)
    assert ftk.clear_cached_features(tmp_path) == entry.bytes > 0
    assert ftk.cached_features(tmp_path) == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "more", "thesis.txt"]


def test_one_entry_can_be_cleared(small_backbone, tiny_images, tmp_path):
    for blocks in (0, 1):
        tune(small_backbone, tiny_images, ftk.FineTuneSpec(blocks), cache_dir=tmp_path)
    first, second = ftk.cached_features(tmp_path)
    ftk.clear_cached_features(tmp_path, first.key)
    assert ftk.cached_features(tmp_path) == (second,)
    with pytest.raises(ValueError, match=second.key):
        ftk.clear_cached_features(tmp_path, first.key)


def test_nothing_in_a_cache_is_executable(small_backbone, tiny_images, tmp_path):
    tune(small_backbone, tiny_images, cache_dir=tmp_path)
    for path in tmp_path.glob("*/*"):
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        else:
            json.loads(path.read_text())
    assert {path.suffix for path in tmp_path.glob("*/*")} == {".npy", ".json"}


def test_a_temporary_cache_is_removed(small_backbone, tiny_images, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []
    callback = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: seen.extend(tmp_path.glob("*/*/*.npy"))
    )
    tune(small_backbone, tiny_images, callbacks=[callback])
    assert seen
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_told_before_the_first_byte(
    small_backbone, tiny_images, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs 0\.00 GB.*float16.*cache_dir=False"):
        tune(small_backbone, tiny_images, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_half_written(
    small_backbone, tiny_images, tmp_path, monkeypatch
):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(OSError, match="No space"):
            tune(small_backbone, tiny_images, cache_dir=tmp_path)
    assert [path.name for path in tmp_path.glob("*/*")] == ["entry.json"]


def test_half_precision_takes_half_the_space(small_backbone, tiny_images, tmp_path):
    for dtype in ("float32", "float16"):
        tune(small_backbone, tiny_images, cache_dir=tmp_path, cache_dtype=dtype)
    whole, half = ftk.cached_features(tmp_path)
    assert half.dtype == "float16"
    assert half.bytes < 0.75 * whole.bytes


# A process that fills a cache in chunks of four rows and prints the losses it ends with.
FILLER = """
import sys, json, numpy as np, keras
import finetune_kit as ftk
from finetune_kit._features import store as _features
_features._CHUNK_ROWS = 4
backbone = keras.models.load_model(sys.argv[1])
pixels = np.load(sys.argv[2])
images = ftk.ImageSet.from_arrays(pixels, np.arange(len(pixels)) % 3)
split = ftk.Split(np.arange(len(pixels)), np.arange(0), np.arange(0))
head = ftk.classification_head(3)
run = ftk.fine_tune(backbone, head, ftk.FineTuneSpec(1), images, split, batch_size=4,
                    preprocessing=None, cache_dir=sys.argv[3], verbose=0)
print(json.dumps(run.history["loss"]))
"""


@pytest.fixture
def filler(small_backbone, tmp_path):
    """Starts processes that fill one cache."""
    small_backbone.save(tmp_path / "backbone.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (160, 32, 32, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    source = Path(ftk.__file__).parents[1]

    def start(cache):
        arguments = [tmp_path / "backbone.keras", tmp_path / "x.npy", cache]
        return subprocess.Popen(
            [sys.executable, "-c", FILLER, *map(str, arguments)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(source)},
        )

    return start


@pytest.mark.slow
def test_a_killed_process_leaves_good_rows_and_the_next_goes_on(filler, tmp_path):
    clean = filler(tmp_path / "clean")
    expected = json.loads(clean.communicate()[0])
    cache = tmp_path / "killed"
    for least in (1, 12, 25):
        process = filler(cache)
        while len(chunks(cache)) < least and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        there = chunks(cache)
        assert least <= len(there)
        assert {path.name for path in there} <= names(tmp_path / "clean")
    last = filler(cache)
    assert json.loads(last.communicate()[0]) == expected
    assert names(cache) == names(tmp_path / "clean")


@pytest.mark.slow
def test_two_processes_share_a_cache(filler, tmp_path):
    pair = [filler(tmp_path / "shared") for _ in range(2)]
    losses = [json.loads(process.communicate()[0]) for process in pair]
    assert losses[0] == losses[1]
    (entry,) = ftk.cached_features(tmp_path / "shared")
    assert entry.images == 160


def test_a_sweep_is_the_runs_by_themselves_for_one_decoding(
    small_backbone, tiny_images, monkeypatch
):
    specs = [ftk.FineTuneSpec(blocks, epochs=2) for blocks in (0, 2, 1)]
    head = ftk.classification_head(3, units=(4,), dropout=0.3)
    options = {"batch_size": 5, "preprocessing": None, "verbose": 0}
    decoded = []
    load = ftk.ImageSet.load

    def counting(self, indices=None, size=(224, 224)):
        decoded.extend(np.asarray(indices).tolist())
        return load(self, indices, size)

    with monkeypatch.context() as patch:
        patch.setattr(ftk.ImageSet, "load", counting)
        runs = ftk.sweep(small_backbone, head, specs, tiny_images, SPLIT, **options)
    assert sorted(decoded) == list(range(18))
    for run, spec in zip(runs, specs, strict=True):
        assert sum(run.plan.trainable) == spec.trainable_blocks
        agree(run, ftk.fine_tune(small_backbone, head, spec, tiny_images, SPLIT, **options))
    for bad in ([], ftk.FineTuneSpec(1)):
        with pytest.raises(ValueError, match="`specs` must be one or more"):
            ftk.sweep(small_backbone, head, bad, tiny_images, SPLIT)


def augmentation() -> keras.Sequential:
    return keras.Sequential(
        [keras.layers.RandomFlip("horizontal"), keras.layers.RandomBrightness(0.4)]
    )


def test_views_are_drawn_once_and_never_of_validation_images(small_backbone, tiny_images, tmp_path):
    options = {"cache_dir": tmp_path, "augmentation": augmentation(), "views": 3}
    spec = ftk.FineTuneSpec(1, epochs=4)
    first = tune(small_backbone, tiny_images, spec, **options)
    (entry,) = ftk.cached_features(tmp_path)
    assert entry.images == 12 * 3 + 6
    before = chunks(tmp_path)
    # Other objects of the same configuration, fewer views, part of the images: nothing is new.
    agree(tune(small_backbone, tiny_images, spec, **{**options, "augmentation": augmentation()}),
          first, rtol=1e-6)  # fmt: skip
    part = ftk.Split(np.arange(4, 10), np.arange(12, 15), np.arange(18, 24))
    tune(small_backbone, tiny_images, spec, split=part, **{**options, "views": 2})
    assert chunks(tmp_path) == before
    plain = tune(small_backbone, tiny_images, spec, cache_dir=tmp_path)
    assert not np.allclose(plain.history["loss"], first.history["loss"], rtol=1e-3)
    tune(small_backbone, tiny_images, spec, **{**options, "seed": 1})
    assert ftk.cached_features(tmp_path)[0].images > 12 * 3 + 6


def test_each_epoch_draws_a_view(small_backbone, tiny_images):
    from finetune_kit._features.frozen import Augmentation

    flip = Augmentation(augmentation(), 4, seed=0)
    pixels = tiny_images.load(np.arange(2), (32, 32))
    keys = [("a" * 64, 0), ("b" * 64, 1)]
    once = flip(pixels, keys)
    assert once.dtype == np.uint8
    assert np.array_equal(flip(pixels, keys), once)
    assert np.array_equal(flip(pixels[::-1], keys[::-1])[::-1], once)  # whatever is beside it
    others = [flip(pixels[:1], [("a" * 64, view)]) for view in range(4)]
    assert len({other.tobytes() for other in others}) > 1
    growing = Augmentation(keras.layers.ZeroPadding2D(1), 1, seed=0)
    with pytest.raises(ValueError, match="`augmentation` must keep the shape"):
        growing(pixels, keys)
    shrinking = Augmentation(keras.layers.Rescaling(1 / 255), 1, seed=0)
    with pytest.raises(ValueError, match="`augmentation` must keep pixels in their range"):
        shrinking(pixels, keys)


class Pixels(keras.callbacks.Callback):
    """Asks the model for predictions of pixels, as users' callbacks do."""

    def __init__(self, pixels):
        super().__init__()
        self.pixels, self.scores, self.batches = pixels, [], 0

    def on_epoch_end(self, epoch, logs=None):
        self.scores.append(self.model.predict(self.pixels, verbose=0))

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1


def test_callbacks_see_the_whole_model(small_backbone, tiny_images, tmp_path):
    pixels = tiny_images.load(np.arange(4), (32, 32))
    mine = Pixels(pixels)
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5",
                                             save_weights_only=True)  # fmt: skip
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))
    spec = ftk.FineTuneSpec(1, epochs=3)
    run = tune(small_backbone, tiny_images, spec, callbacks=[mine, saving, rates])
    assert len(mine.scores) == 3
    assert mine.batches == 3 * 3
    assert np.allclose(mine.scores[-1], run.model.predict(pixels, verbose=0), atol=1e-6)
    assert not np.allclose(mine.scores[0], mine.scores[-1], atol=1e-6)
    assert run.history["learning_rate"] == pytest.approx([0.1, 0.05, 0.1 / 3])
    run.model.load_weights(tmp_path / "1.weights.h5")
    assert np.allclose(run.model.predict(pixels, verbose=0), mine.scores[0], atol=1e-6)


def test_callbacks_stop_the_run_and_restore_the_best_weights(small_backbone, tiny_images):
    spec = ftk.FineTuneSpec(1, epochs=9, learning_rate=3.0)  # too fast: the first epoch is best
    runs = []
    for cache in (None, False):
        stopping = keras.callbacks.EarlyStopping(
            "val_loss", patience=2, restore_best_weights=True, start_from_epoch=0
        )
        runs.append(
            tune(small_backbone, tiny_images, spec, dropout=0.0, callbacks=[stopping],
                 optimizer="sgd", cache_dir=cache)
        )  # fmt: skip
    assert 3 <= len(runs[0].history["loss"]) < 9
    agree(*runs)
    pixels = tiny_images.load(size=(32, 32))
    assert np.allclose(*(run.model.predict(pixels, verbose=0) for run in runs), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cache_dir": True}, "`cache_dir` must be a folder"),
        ({"cache_dir": ""}, "`cache_dir` must be a folder.*cache_dir=''$"),
        ({"run_dir": ""}, "`run_dir` must be a folder.*run_dir=''$"),
        ({"cache_dir": __file__}, "`cache_dir` must be a folder.*which is a file"),
        ({"run_dir": __file__}, "`run_dir` must be a folder.*which is a file"),
        ({"cache_dtype": "int8"}, "`cache_dtype` must be one of"),
        ({"views": 0}, "`views`"),
        ({"augmentation": "flip"}, "`augmentation` must be a Keras layer"),
        ({"augmentation": keras.layers.RandomFlip(), "cache_dir": False}, "`augmentation` makes"),
        ({"preprocessing": keras.layers.RandomFlip()}, "`preprocessing` must make the same"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(small_backbone, tiny_images, options, says):
    with pytest.raises(ValueError, match=says):
        tune(small_backbone, tiny_images, **options)


@pytest.mark.parametrize("folder", [None, "", __file__])
def test_what_is_no_folder_of_features_is_refused(folder):
    for call in (ftk.cached_features, ftk.clear_cached_features):
        with pytest.raises(ValueError, match="`cache_dir` must be a folder"):
            call(folder)


class Doubling(keras.layers.Layer):
    """A layer that cannot tell how it is made."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def call(self, x):
        return x * self.by

    def get_config(self):
        raise NotImplementedError("no config")


def test_a_layer_without_a_config_is_refused(tiny_images):
    from finetune_kit._model.digest import fingerprint

    with pytest.raises(ValueError, match=r"get_config.*cache_dir=False"):
        fingerprint(Doubling(2.0))
