"""Training moves what the plan says and nothing else, and returns a plain Keras model."""

from __future__ import annotations

import gc
import inspect
import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from strategies import specs

import finetune_kit as ftk
from finetune_kit._data.batches import Batches


def weights(model) -> dict[str, np.ndarray]:
    return {v.path: np.array(keras.ops.convert_to_numpy(v)) for v in model.weights}


@settings(max_examples=6)
@given(spec=specs)
def test_exactly_the_planned_variables_move(small_backbone, tune, spec):
    spec = ftk.FineTuneSpec.from_dict({**spec.to_dict(), "epochs": 1, "learning_rate": 0.1})
    before = weights(small_backbone)
    tuned = tune(spec)
    after = weights(tuned.model)
    assert before.keys() <= after.keys()
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    planned = {*tuned.plan.trainable_variables, *tuned.plan.moving_statistics}
    assert moved <= planned
    # A weight may stay where its gradient is 0 (behind a dead ReLU); most may not.
    assert len(moved) >= 0.6 * len(planned)


def test_backbone_and_head_are_not_changed(small_backbone, tune):
    head = ftk.classification_head(3)
    head.build((None, 2, 2, 8))
    before, first = weights(small_backbone), weights(head)
    tuned = tune(ftk.FineTuneSpec("all", epochs=2), head=head)
    for model, values in ((small_backbone, before), (head, first)):
        for path, value in weights(model).items():
            assert np.array_equal(value, values[path])
    assert all(layer.trainable for layer in small_backbone.layers)
    trained = weights(tuned.model)
    assert all(not np.array_equal(trained[path], value) for path, value in first.items())
    assert tuned.plan.backbone == small_backbone.name


def test_the_same_seed_gives_the_same_run(tune):
    losses = [tune(seed=seed).history["loss"] for seed in (3, 3, 4)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_the_result_holds_the_sets_and_one_value_for_each_epoch(tune, sets):
    tuned = tune(ftk.FineTuneSpec(epochs=3))
    measured = {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert set(tuned.history) == {*measured, "epoch", "phase"}
    assert tuned.history["epoch"] == [1, 2, 3]
    assert tuned.history["phase"] == [1, 1, 1]
    assert all(len(values) == 3 for values in tuned.history.values())
    assert tuned.model.history.history == tuned.history
    assert set(tuned.timings) == {"build", "prefix", "prefix_decode", "prefix_compute", "fit"}
    inside = tuned.timings["prefix_decode"], tuned.timings["prefix_compute"]
    assert 0 < min(inside) < max(inside) < tuned.timings["prefix"]
    assert (tuned.train, tuned.validation) == (sets.train, sets.validation)
    assert tuned.class_names == ("dark", "gray", "light")
    assert tuned.plan is tuned.plans[-1]
    assert tuned.manifest is None
    loss, accuracy = tuned.history["val_loss"][-1], tuned.history["val_accuracy"][-1]
    assert repr(tuned) == (
        "FineTuned(small: 0 of 4 blocks trained on 12 images; epoch 3 of 3 kept: "
        f"val_loss {loss:.3f}, val_accuracy {accuracy:.3f})"
    )


def test_the_settings_are_plain_values_that_say_how_the_model_was_trained(tune):
    def mean_probability(y_true, y_pred):
        return keras.ops.mean(y_pred, axis=-1)

    tuned = tune(
        [ftk.FineTuneSpec(0), ftk.FineTuneSpec(0)],
        optimizer=keras.optimizers.SGD(0.1, momentum=0.5),
        metrics=["accuracy", mean_probability, keras.metrics.AUC(name="auc")],
        class_weight={"dark": 2.0},
        augmentation=ftk.Augmentation(keras.layers.RandomFlip("horizontal", name="flip"), views=2),
        seed=5,
    )
    settings = json.loads(json.dumps(dict(tuned.settings)))
    assert [spec["trainable_blocks"] for spec in settings["specs"]] == [0, 0]
    assert settings["optimizer"]["momentum"] == 0.5
    assert settings["metrics"][0] == "accuracy"
    assert len(settings["metrics"]) == 3
    assert settings["class_weight"] == {"0": 2.0, "1": 1.0, "2": 1.0}
    assert (settings["batch_size"], settings["seed"]) == (6, 5)
    assert settings["augmentation"] == "flip, 2 copies of each image"
    assert settings["preprocessing"] == "pixels from 0 to 255 become 0 to 255"
    assert settings["kept_epoch"] == int(np.argmin(tuned.history["val_loss"])) + 1
    assert settings["temperature"] is None


@pytest.mark.parametrize("empty", [False, True], ids=["None", "an empty set"])
def test_validation_images_are_optional(tune, sets, empty, caplog):
    tuned = tune(validation=sets.validation.take([]) if empty else None)
    assert ("`validation` holds no image" in caplog.text) == empty
    assert set(tuned.history) == {"loss", "accuracy", "epoch", "phase"}
    assert tuned.validation is None
    assert f"kept: loss {tuned.history['loss'][-1]:.3f}" in repr(tuned)


def test_groups_in_both_sets_are_named(tune, sets, caplog):
    def grouped(images, first):
        groups = [f"patient {first + i}" for i in range(len(images))]
        return replace(images, groups=np.array(groups))

    train, validation = grouped(sets.train, 0), grouped(sets.validation, len(sets.train))
    tune(train=train, validation=validation)
    assert "share" not in caplog.text
    tune(train=train, validation=grouped(sets.validation, len(sets.train) - 1))
    expected = rf"`train` and `validation` share 1 group \(patient {len(sets.train) - 1}\)"
    assert re.search(expected, caplog.text)


@pytest.mark.parametrize("threads", [0, 2])
def test_each_epoch_shows_every_image_once_in_another_order(threads):
    """Seen from inside `fit`, because Keras' own threads would shift the batches on PyTorch."""

    def load(indices, epoch):
        return np.stack([indices, np.full(len(indices), epoch)], axis=1).astype("float32")

    class Record(keras.layers.Layer):
        def call(self, x):
            seen.append(keras.ops.convert_to_numpy(x))
            return x

    seen: list = []
    batches = Batches(load, np.zeros_like, np.arange(24), 5, seed=1, threads=threads)
    if keras.backend.backend() == "jax":  # its `fit` is traced, so a layer sees no numbers
        rows = [batches[i][0] for i in range(2 * batches.steps)]
    else:
        model = keras.Sequential([keras.Input((2,)), Record(), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        model.fit(batches, epochs=2, steps_per_epoch=batches.steps, shuffle=False, verbose=0)
        rows = seen[-2 * batches.steps :]
    flat = np.concatenate(rows)
    assert flat[:, 1].tolist() == [0] * 24 + [1] * 24
    first, second = flat[:24, 0], flat[24:, 0]
    assert sorted(first) == sorted(second) == list(range(24))
    assert not np.array_equal(first, second)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow waits there")
def test_data_iterators_are_released_in_a_thread_of_their_own(tune):
    """Dropping one may take as long as it has lived, so the caller must not wait for it."""

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            step = self.model.train_function

            def watched(iterator):
                if not seen:
                    weakref.finalize(iterator, lambda: gone.put(threading.current_thread().name))
                    seen.append(True)
                return step(iterator)

            self.model.train_function = watched

    seen, gone = [], queue.Queue()
    # Without features the trained model is the one that callbacks see.
    tune(callbacks=[Watch()], features=False)
    assert seen
    assert gone.get(timeout=60) == "release_iterators"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="lists mapped files on Linux")
def test_no_file_of_the_features_is_mapped_after_a_run(tune):
    """TensorFlow keeps the generator of each dataset, and all that it refers to."""

    def mapped() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("finetune-kit-")

    during = []
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: during.append(mapped()))
    before = mapped()
    tune(ftk.linear_probe_then_fine_tune(1, probe_epochs=1, epochs=1), callbacks=[count])
    ends = time.monotonic() + 60  # a thread releases them
    while mapped() > before and time.monotonic() < ends:
        time.sleep(0.1)
    assert max(during) > before
    assert mapped() <= before


class Optimizer(keras.callbacks.Callback):
    """Keeps the optimizer of the run."""

    def on_train_begin(self, logs=None):
        self.seen = self.model.optimizer


def test_the_optimizer_is_new_and_has_the_learning_rate_of_the_spec(tune):
    spec, used = ftk.FineTuneSpec(0, learning_rate=0.25), Optimizer()
    tune(spec, optimizer="sgd", callbacks=[used])
    assert isinstance(used.seen, keras.optimizers.SGD)
    assert float(used.seen.learning_rate) == 0.25
    mine = keras.optimizers.RMSprop(0.125, clipnorm=1.0)
    for _ in range(2):  # a Keras optimizer itself cannot be used twice
        tune(spec, optimizer=mine, callbacks=[used])
        assert float(used.seen.learning_rate) == 0.125
        assert used.seen.clipnorm == 1.0
    assert not mine.built


def test_class_weights_multiply_the_loss_of_their_class(tune):
    spec = ftk.FineTuneSpec(0, learning_rate=1e-12)  # the head stays, so the losses compare
    dropless = {"spec": spec, "head": ftk.classification_head(3), "validation": None}
    losses = {}
    for weight in ("dark", "gray", "light"):
        only = {name: float(name == weight) for name in ("dark", "gray", "light")}
        losses[weight] = tune(**dropless, class_weight=only).history["loss"][0]
    plain = tune(**dropless).history["loss"][0]
    assert plain == pytest.approx(sum(losses.values()), rel=1e-5)
    mixed = tune(**dropless, class_weight={"dark": 5.0, 2: 0.5}).history["loss"][0]
    expected = 5 * losses["dark"] + losses["gray"] + 0.5 * losses["light"]
    assert mixed == pytest.approx(expected, rel=1e-5)


def test_balanced_class_weights_give_each_class_the_same_total(tune, tiny_images):
    unequal = tiny_images.take([0, 3, 6, 9, 12, 1, 4, 2])  # 5 dark, 2 gray, 1 light
    tuned = tune(train=unequal, validation=None, batch_size=8, class_weight="balanced")
    totals = np.array(list(tuned.settings["class_weight"].values())) * unequal.counts()
    assert totals == pytest.approx([8 / 3] * 3)


@pytest.mark.parametrize("several", [False, True])
def test_one_callback_needs_no_list(tune, several):
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    tune(callbacks=[callback] if several else callback)
    assert seen == [0, 1]


def test_preprocessing_becomes_part_of_the_model(tune):
    mine = keras.layers.Rescaling(0.9, name="mine")
    names = [[layer.name for layer in tune(preprocessing=p).model.layers] for p in (mine, None)]
    assert "mine" in names[0]
    assert not {"mine", "preprocessing"} & {*names[1]}


def test_a_binary_head_learns_two_classes(tune):
    pixels = np.zeros((16, 32, 32, 3), np.uint8)
    pixels[8:] = 200
    images = ftk.ImageSet.from_arrays(pixels, np.arange(16) // 8, ["black", "bright"])
    train, _, test = images.split((0.5, 0, 0.5))
    spec = ftk.FineTuneSpec(epochs=12, learning_rate=0.05)
    head = ftk.classification_head(1)
    tuned = tune(spec, head=head, train=train, validation=None, batch_size=4)
    report = ftk.evaluate(tuned, test)
    assert report.accuracy == 1.0
    assert report.scores.shape == (8, 2)


def test_training_learns(tune, sets):
    spec = ftk.FineTuneSpec("all", epochs=25, learning_rate=0.01)
    tuned = tune(spec, head=ftk.classification_head(3))
    assert ftk.evaluate(tuned.model, sets.train).accuracy > 0.9
    assert ftk.evaluate(tuned, sets.test).accuracy > 0.8


@pytest.fixture
def files(tiny_images, tmp_path):
    """The tiny images as lossless files of one folder per class."""
    for i, pixels in enumerate(tiny_images.load(size=(32, 32))):
        folder = tmp_path / "files" / tiny_images.class_names[tiny_images.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return tmp_path / "files"


@pytest.mark.parametrize("features", [None, False])
def test_files_and_arrays_train_together(tune, files, sets, features):
    read = ftk.read_image_folder(files)
    order = np.argsort([int(Path(path).stem) for path in read.paths])
    train = read.take(order[:6]) + sets.train.take(range(6, 12))
    validation = sets.validation.take(range(3)) + read.take(order[15:18])
    mixed, plain = (tune(features=features, **parts).history
                    for parts in ({"train": train, "validation": validation}, {}))  # fmt: skip
    assert mixed.keys() == plain.keys()
    for name, values in mixed.items():
        assert values == pytest.approx(plain[name])


def test_images_in_both_sets_are_an_error_that_names_them(tune, files, sets, rejected, monkeypatch):
    read = ftk.read_image_folder(files)
    with rejected(r"`validation` must not hold images of `train`.*2 images.*image 3, image 5$"):
        tune(validation=sets.train.take([3, 5]) + sets.validation)
    with rejected(r"1 image that is in both: .*00\.png$"):
        tune(train=read, validation=read.take([0]))
    with rejected(r"1 image that is in both: image 1$"):
        tune(train=read + sets.train, validation=sets.train.take([1]))
    monkeypatch.chdir(files.parent)  # the same files by other paths
    (files.parent / "linked").symlink_to(files)
    for path in ("files", "linked"):
        with rejected("24 images that are in both: .*and 20 more$"):
            tune(train=read, validation=ftk.read_image_folder(path))


def test_copies_of_images_are_no_error(tune, files, sets):
    """They are found by `find_duplicates`; here they may be intended."""
    copy = ftk.ImageSet.from_arrays(
        sets.train.load(size=(32, 32)), sets.train.labels, sets.train.class_names
    )
    tuned = tune(ftk.FineTuneSpec(0), validation=copy + ftk.read_image_folder(files))
    assert len(tuned.validation) == 12 + 24


LOADER = """
import sys, numpy as np, keras
assert "finetune_kit" not in sys.modules
model = keras.models.load_model(sys.argv[1])
scores = model.predict(np.load(sys.argv[2]), verbose=0)
np.save(sys.argv[3], scores)
assert not any(name.startswith("finetune_kit") for name in sys.modules)
"""


def interpreter(backend: str) -> str:
    """Return a Python that has the backend: this one, or one that `make test` made."""
    if find_spec(backend):
        return sys.executable
    name = ".venv" if backend == "tensorflow" else f".venv-{backend}"
    environment = Path(__file__).parents[1] / name
    if not (environment / ".test").exists():  # the stamp of a finished installation
        pytest.skip(f"{backend} is not installed; `make test BACKEND={backend}` does that")
    return str(environment / "bin" / "python")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_saved_model_loads_with_keras_alone_on_each_backend(
    backend, mobilenet, tune, tiny_images, tmp_path
):
    python = interpreter(backend)
    head = ftk.classification_head(3, units=(4,), pooling="avgmax", dropout=0.3)
    spec = ftk.FineTuneSpec(2, batch_norm="train")
    tuned = tune(spec, backbone=mobilenet, head=head, preprocessing="auto", batch_size=12)
    saved, x, y = (tmp_path / name for name in ("model.keras", "x.npy", "y.npy"))
    tuned.model.save(saved)
    pixels = tiny_images.load(size=(32, 32))
    np.save(x, pixels)
    # -I: no user site, no PYTHONPATH, no current folder; the code never asks for finetune_kit.
    subprocess.run(
        [python, "-I", "-c", LOADER, str(saved), str(x), str(y)],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    expected = tuned.model.predict(pixels, verbose=0)
    assert np.allclose(np.load(y), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["VGG16", "ConvNeXtTiny", "DenseNet121"])
@pytest.mark.slow
def test_other_pixel_conventions_survive_saving(family, tiny_images, tmp_path):
    backbone = getattr(keras.applications, family)(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    model = ftk.FineTuneSpec(1).build(
        backbone, ftk.classification_head(3), preprocessing=ftk.preprocessing(backbone)
    )
    x = tiny_images.load(np.arange(4), (32, 32))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    expected = model.predict(x, verbose=0)
    assert np.allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)


def empty(sets):
    return sets.train.take([])


def one_class(sets):
    return sets.train.take([0, 3])


def one_named(sets):
    return ftk.ImageSet.from_arrays(sets.train.load(size=(32, 32)), ["dark"] * len(sets.train))


def other_classes(sets):
    pixels = sets.validation.load(size=(32, 32))
    return ftk.ImageSet.from_arrays(pixels, sets.validation.labels, ["light", "gray", "dark"])


HEAD = ftk.classification_head(3)
BUILT = ftk.classification_head(3)
BUILT.build((None, 2, 2, 8))
LOGITS = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
NOISE = keras.Sequential([keras.layers.GaussianNoise(0.1)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"head": ftk.classification_head(4)},
            r"`head` must give one probability for each of .* 3",
        ),
        ({"head": ftk.classification_head(1)}, "`head` must give"),
        ({"head": ftk.classification_head(3, pooling=None)}, "pooling is missing"),
        ({"head": LOGITS}, "`head` must end in a softmax"),
        ({"head": None}, r"`head` must be of type Layer \(see classification_head\)"),
        ({"backbone": "mobilenet"}, "`backbone` must be of type Functional|Model"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"class_weight": {"purple": 1}}, r"`class_weight` must be .*\['dark', 'gray', 'light'\]"),
        ({"class_weight": "even"}, "`class_weight`"),
        ({"optimizer": 0.1}, "`optimizer`"),
        ({"augmentation": keras.layers.MixUp()}, "MixUp and CutMix mix several"),
        ({"preprocessing": "tf"}, "`preprocessing` must be 'auto', None or a Keras layer"),
        ({"train": empty}, "`train` must hold at least one image"),
        ({"train": one_class}, r"`train` must hold images of every class.*\['gray', 'light'\]"),
        ({"train": one_named}, "`train` must hold images of two classes or more.*'dark' alone"),
        ({"train": "folder/"}, "`train` must be of type ImageSet .*Received: train='folder/'"),
        ({"validation": np.arange(6)}, "`validation` must be of type ImageSet .*ndarray"),
        ({"validation": other_classes}, r"`validation` must have the classes of `train`.*class_n"),
        ({"spec": 2}, "`spec` must be of type FineTuneSpec.*spec=2 of type int"),
        ({"spec": ftk.FineTuneSpec(9)}, "`trainable_blocks` must be between 0 and 4"),
        ({"seed": "a"}, "`seed` must be a whole number of at least 0"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0"),
        ({"callbacks": "early"}, "`callbacks` must be a list of Keras callbacks"),
        # The last thing that is checked, with layers that draw numbers when they are copied.
        ({"preprocessing": NOISE, "features": False, "class_weight": "even"}, "`class_weight`"),
        ({"preprocessing": NOISE, "features": False, "augmentation": NOISE}, "`augmentation`"),
    ],
)
def test_arguments_that_do_not_fit_are_rejected(tune, sets, rejected, options, says):
    made = {name: value(sets) for name, value in options.items() if inspect.isfunction(value)}
    with rejected(says):
        tune(**{**options, **made})


MISPLACED = ["epochs", "learning_rate", "trainable_blocks", "label_smoothing", "dropout",
             "validation_data"]  # fmt: skip


def test_an_argument_of_another_function_is_an_error_that_says_where_it_belongs(
    tune, small_backbone, sets, rejected
):
    for name in MISPLACED:
        with rejected(f"fine_tune has no argument `{name}`; use .*{name}=1", TypeError):
            tune(**{name: 1})
    with rejected("fine_tune has no argument `batchsize`; did you mean `batch_size`?", TypeError):
        tune(batchsize=1)
    with rejected("fine_tune has no argument `epochs`; use FineTuneSpec", TypeError):
        ftk.sweep(small_backbone, HEAD, [ftk.FineTuneSpec(1)], *sets[:2], epochs=1, verbose=0)


@pytest.mark.parametrize("head", [HEAD, BUILT], ids=["unbuilt", "built"])
def test_swapped_backbone_and_head_are_noticed(tune, small_backbone, rejected, head):
    with rejected("seem to be swapped.*backbone='head', .*head='small', which does"):
        tune(backbone=head, head=small_backbone)


def test_a_backbone_for_images_of_any_size_is_rejected(tune, rejected):
    backbone = keras.applications.MobileNet(
        weights=None, alpha=0.25, include_top=False, input_shape=(None, None, 3)
    )
    assert len(ftk.conv_blocks(backbone)) == 14
    with rejected("`backbone` must take RGB images of a fixed size"):
        tune(backbone=backbone)


def test_a_backbone_with_a_classifier_is_rejected(tune, rejected):
    backbone = keras.applications.MobileNet(
        weights=None, alpha=0.25, classes=5, input_shape=(32, 32, 3)
    )
    with rejected("`backbone` must have no classifier.*include_top=False"):
        tune(backbone=backbone, preprocessing="auto")


def test_a_head_that_pools_what_is_pooled_is_rejected(tune, rejected):
    backbone = keras.applications.MobileNet(
        weights=None, alpha=0.25, include_top=False, pooling="avg", input_shape=(32, 32, 3)
    )
    with rejected("`head` must take the output of `backbone`.*pooling=None"):
        tune(backbone=backbone, preprocessing="auto")


def test_only_tensorflows_retracing_warnings_are_silenced(tune, caplog):
    """They come after five models in one process."""
    log = logging.getLogger("tensorflow")
    caplog.set_level("WARNING", "tensorflow")
    log.propagate, before = True, log.propagate

    class Log(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            log.warning("5 out of the last 5 calls to %s triggered tf.function retracing.", "f")
            log.warning("disk full")

    tune(ftk.FineTuneSpec(1), callbacks=[Log()])
    during = [record.getMessage() for record in caplog.records if record.name == "tensorflow"]
    log.warning("something about tf.function retracing")
    log.propagate = before
    assert during == ["disk full"]
    assert "something about tf.function retracing" in caplog.messages


@pytest.mark.slow
def test_real_weights_tell_real_xrays_apart(xrays, imagenet_weights):
    """A short run of the README's example: clearly better than the majority class (0.67)."""
    images, _, _ = ftk.read_image_folder(xrays).split((0.08, 0.08, 0.84))
    train, validation, test = images.split((0.6, 0.1, 0.3))
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=(160, 160, 3)
    )
    backbone.load_weights(imagenet_weights)
    head, spec = ftk.classification_head(3, units=(64,)), ftk.FineTuneSpec(0, epochs=15)
    tuned = ftk.fine_tune(backbone, head, spec, train, validation, verbose=0)
    assert ftk.evaluate(tuned, test).accuracy > 0.8


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping("val_acc"),
        keras.callbacks.ReduceLROnPlateau("f1"),
        keras.callbacks.ModelCheckpoint("unused.keras", "val_auc", save_best_only=True),
    ],
)
def test_a_callback_that_monitors_what_is_not_measured_is_an_error(tune, rejected, callback):
    measured = "one of loss, accuracy, val_loss, val_accuracy"
    with rejected(rf"must monitor {measured}. Received: {type(callback).__name__}\(monitor="):
        tune(callbacks=callback)
    with rejected(r"one of loss, accuracy; without `validation` nothing starts with val_\."):
        tune(callbacks=keras.callbacks.EarlyStopping(restore_best_weights=True), validation=None)


def test_a_callback_may_monitor_what_another_one_measures(tune):
    class Mine(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["mine"] = float(epoch)

    stop = keras.callbacks.EarlyStopping("mine", mode="max", patience=5)
    assert tune(callbacks=[Mine(), stop]).history["mine"] == [0.0, 1.0]


def test_a_warning_about_pixels_points_to_the_line_of_the_caller(mobilenet, sets):
    with pytest.warns(UserWarning, match="expects pixels from -1 to 1") as caught:
        ftk.fine_tune(mobilenet, ftk.classification_head(3), ftk.FineTuneSpec(0), sets.train,
                      preprocessing=None, verbose=0)  # fmt: skip
    ours = [w.filename for w in caught if "expects pixels" in str(w.message)]
    assert ours == [__file__]


@pytest.mark.parametrize(("optimizer", "says"), [("adamm", "such as 'adam'"), (1e-3, "belongs")])
def test_what_is_not_an_optimizer_is_an_error(tune, rejected, optimizer, says):
    with rejected(rf"`optimizer` must be the name.*{says}"):
        tune(optimizer=optimizer)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="traces steps into graphs")
@pytest.mark.parametrize("features", [None, False])
def test_each_step_is_traced_once(tune, tiny_images, monkeypatch, features):
    """Once a phase, although the last batch of an epoch is shorter; and once in `evaluate`."""
    traced: list[str] = []

    def count(name: str) -> None:
        step = getattr(keras.Model, name)
        monkeypatch.setattr(
            keras.Model, name, lambda self, data: traced.append(name) or step(self, data)
        )

    for name in ("train_step", "test_step"):
        count(name)
    phases = ftk.linear_probe_then_fine_tune(1, probe_epochs=2, epochs=2)
    tuned = tune(phases, batch_size=5, features=features)
    assert sorted(traced) == ["test_step", "test_step", "train_step", "train_step"]
    count("predict_step")
    ftk.evaluate(tuned, tiny_images, batch_size=5)
    assert traced[4:] == ["predict_step"]
