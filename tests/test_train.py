"""Training moves what the plan says and nothing else; what comes out is plain Keras."""

from __future__ import annotations

import gc
import logging
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from strategies import specs

import finetune_kit as ftk

SPLIT = ftk.Split(np.arange(12), np.arange(12, 18), np.arange(18, 24))


def tune(backbone, images, spec=None, head=None, split=SPLIT, **options):
    head = head or ftk.classification_head(3, units=(4,), dropout=0.2)
    spec = spec or ftk.FineTuneSpec(1)
    return ftk.fine_tune(backbone, head, spec, images, split, **{"verbose": 0, **options})


def weights(model) -> dict[str, np.ndarray]:
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


@settings(max_examples=6)
@given(spec=specs)
def test_exactly_the_planned_variables_move(small_backbone, tiny_images, spec):
    spec = ftk.FineTuneSpec.from_dict({**spec.to_dict(), "epochs": 1, "learning_rate": 0.1})
    before = weights(small_backbone)
    tuned = tune(small_backbone, tiny_images, spec)
    after = weights(tuned.model)
    assert before.keys() <= after.keys()
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    planned = {*tuned.plan.trainable_variables, *tuned.plan.moving_statistics}
    assert moved <= planned
    # A weight may rest where its gradient is 0 (behind a dead ReLU); most may not.
    assert len(moved) >= 0.6 * len(planned)


def test_the_backbone_and_the_head_stay_as_they_are(small_backbone, tiny_images):
    head = ftk.classification_head(3)
    head.build((None, 2, 2, 8))
    before, first = weights(small_backbone), weights(head)
    tuned = tune(small_backbone, tiny_images, ftk.FineTuneSpec("all", epochs=2), head)
    for path, value in weights(small_backbone).items():
        assert np.array_equal(value, before[path])
    for path, value in weights(head).items():
        assert np.array_equal(value, first[path])
    assert all(layer.trainable for layer in small_backbone.layers)
    assert tuned.plan.backbone == small_backbone.name


def test_the_same_seed_gives_the_same_run(small_backbone, tiny_images):
    runs = [
        tune(small_backbone, tiny_images, ftk.FineTuneSpec(1, epochs=2), seed=s) for s in (3, 3, 4)
    ]
    losses = [run.history["loss"] for run in runs]
    assert np.allclose(losses[0], losses[1], rtol=1e-5)
    assert not np.allclose(losses[0], losses[2], rtol=1e-3)


def test_history_has_one_value_an_epoch(small_backbone, tiny_images):
    tuned = tune(small_backbone, tiny_images, ftk.FineTuneSpec(epochs=3))
    measured = {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert set(tuned.history) == {*measured, "epoch", "phase"}
    assert tuned.history["epoch"] == [1, 2, 3]
    assert tuned.history["phase"] == [1, 1, 1]
    assert all(len(values) == 3 for values in tuned.history.values())
    assert set(tuned.timings) == {"build", "prefix", "decode", "fit"}


def test_a_split_without_validation_trains_too(small_backbone, tiny_images):
    split = ftk.Split(np.arange(24), np.arange(0), np.arange(0))
    history = tune(small_backbone, tiny_images, split=split).history
    assert set(history) == {"loss", "accuracy", "epoch", "phase"}


@pytest.mark.parametrize("threads", [0, 2])
def test_each_epoch_shows_every_image_once_in_another_order(threads):
    """Seen from inside `fit`: Keras' own threads would shift the batches on PyTorch."""
    from finetune_kit._data.batches import Batches

    def load(indices, epoch):
        return np.stack([indices, np.full(len(indices), epoch)], axis=1).astype("float32")

    class Notes(keras.layers.Layer):
        def call(self, x):
            seen.append(keras.ops.convert_to_numpy(x))
            return x

    seen: list = []
    batches = Batches(load, np.zeros_like, np.arange(24), 5, seed=1, threads=threads)
    if keras.backend.backend() == "jax":  # its `fit` is traced: no numbers to see
        rows = [batches[i][0] for i in range(2 * batches.steps)]
    else:
        model = keras.Sequential([keras.Input((2,)), Notes(), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        model.fit(batches, epochs=2, steps_per_epoch=batches.steps, shuffle=False, verbose=0)
        rows = seen[-2 * batches.steps :]
    flat = np.concatenate(rows)
    assert flat[:, 1].tolist() == [0] * 24 + [1] * 24
    first, second = flat[:24, 0], flat[24:, 0]
    assert sorted(first) == sorted(second) == list(range(24))
    assert not np.array_equal(first, second)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow waits there")
def test_data_iterators_are_let_go_of_aside(small_backbone, tiny_images):
    """TensorFlow may wait as long again as one has lived: nobody has to wait for that."""

    class Iterators(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            step = self.model.train_function

            def noting(iterator):
                if not noted:
                    weakref.finalize(iterator, lambda: gone.put(threading.current_thread().name))
                    noted.append(True)
                return step(iterator)

            self.model.train_function = noting

    noted, gone = [], queue.Queue()
    # Without kept features the model that is trained is the one that callbacks see.
    tuned = tune(small_backbone, tiny_images, callbacks=[Iterators()], cache_dir=False)
    assert gone.get(timeout=60) == "let_go"
    assert np.isfinite(tuned.history["loss"]).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shows mapped files on Linux")
def test_nothing_of_the_features_is_held_after_a_run(small_backbone, tiny_images):
    """TensorFlow keeps the generator of each dataset, and with it all that it refers to."""

    def held() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("finetune-kit-")

    before = held()
    tune(small_backbone, tiny_images, ftk.linear_probe_then_fine_tune(1, probe_epochs=1, epochs=1))
    ends = time.monotonic() + 60  # a thread aside lets go of it
    while held() > before and time.monotonic() < ends:
        time.sleep(0.1)
    assert held() <= before


class Optimizer(keras.callbacks.Callback):
    """Notes the optimizer of the run."""

    def on_train_begin(self, logs=None):
        self.seen = self.model.optimizer


def test_the_optimizer_is_new_and_takes_the_rate_of_the_spec(small_backbone, tiny_images):
    spec, used = ftk.FineTuneSpec(0, learning_rate=0.25), Optimizer()
    tune(small_backbone, tiny_images, spec, optimizer="sgd", callbacks=[used])
    assert isinstance(used.seen, keras.optimizers.SGD)
    assert float(used.seen.learning_rate) == 0.25
    mine = keras.optimizers.RMSprop(0.125, clipnorm=1.0)
    for _ in range(2):  # used twice, as a Keras optimizer cannot be
        tune(small_backbone, tiny_images, spec, optimizer=mine, callbacks=[used])
        assert float(used.seen.learning_rate) == 0.125
        assert used.seen.clipnorm == 1.0
    assert not mine.built


def test_class_weights_reach_the_loss(small_backbone, tiny_images):
    spec = ftk.FineTuneSpec(0)
    plain = tune(small_backbone, tiny_images, spec).history["loss"][0]
    same = tune(small_backbone, tiny_images, spec, class_weight={"dark": 1, 2: 1}).history["loss"][
        0
    ]
    heavy = tune(small_backbone, tiny_images, spec, class_weight={n: 3.0 for n in range(3)})
    even = tune(small_backbone, tiny_images, spec, class_weight="balanced").history["loss"][0]
    assert same == pytest.approx(plain, rel=1e-4)
    assert even == pytest.approx(plain, rel=1e-4)  # the classes are balanced already
    assert heavy.history["loss"][0] > 1.5 * plain


def test_callbacks_are_called(small_backbone, tiny_images):
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    tune(small_backbone, tiny_images, ftk.FineTuneSpec(epochs=2), callbacks=[callback])
    assert seen == [0, 1]


def test_preprocessing_becomes_part_of_the_model(small_backbone, tiny_images):
    mine = keras.layers.Rescaling(0.9, name="mine")
    names = [
        layer.name for layer in tune(small_backbone, tiny_images, preprocessing=mine).model.layers
    ]
    assert "mine" in names
    names = [
        layer.name for layer in tune(small_backbone, tiny_images, preprocessing=None).model.layers
    ]
    assert "preprocessing" not in names


def test_a_binary_head_learns_two_classes(small_backbone):
    pixels = np.zeros((16, 32, 32, 3), np.uint8)
    pixels[8:] = 200
    images = ftk.ImageSet.from_arrays(pixels, np.arange(16) // 8, ["black", "bright"])
    split = ftk.stratified_split(images.labels, (0.5, 0, 0.5))
    tuned = tune(
        small_backbone,
        images,
        ftk.FineTuneSpec(epochs=12, learning_rate=0.05),
        ftk.classification_head(1),
        split,
        batch_size=4,
    )
    report = ftk.evaluate(tuned.model, images, split.test)
    assert report.accuracy == 1.0
    assert report.scores.shape == (8, 2)


def test_training_learns(small_backbone, tiny_images):
    spec = ftk.FineTuneSpec("all", epochs=60, learning_rate=0.005)
    tuned = tune(small_backbone, tiny_images, spec, ftk.classification_head(3), batch_size=6)
    assert ftk.evaluate(tuned.model, tiny_images, SPLIT.train).accuracy > 0.9


LOADER = """
import sys, numpy as np, keras
assert "finetune_kit" not in sys.modules
model = keras.models.load_model(sys.argv[1])
scores = model.predict(np.load(sys.argv[2]), verbose=0)
np.save(sys.argv[3], scores)
assert not any(name.startswith("finetune_kit") for name in sys.modules)
"""


def interpreter(backend: str) -> str:
    """A Python that has the backend: this one, or that of the environment `make test` made."""
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
    backend, mobilenet, tiny_images, tmp_path
):
    python = interpreter(backend)
    tuned = tune(
        mobilenet,
        tiny_images,
        ftk.FineTuneSpec(2, batch_norm="train"),
        ftk.classification_head(3, units=(4,), pooling="avgmax", dropout=0.3),
    )
    tuned.model.save(tmp_path / "model.keras")
    pixels = tiny_images.load(size=(32, 32))
    np.save(tmp_path / "x.npy", pixels)
    # -I: no user site, no PYTHONPATH, no current folder; the code never asks for finetune_kit.
    subprocess.run(
        [
            python,
            "-I",
            "-c",
            LOADER,
            *(str(tmp_path / n) for n in ("model.keras", "x.npy", "y.npy")),
        ],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    expected = tuned.model.predict(pixels, verbose=0)
    assert np.allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)


def saved_predictions(model, path, x):
    model.save(path)
    return keras.models.load_model(path).predict(x, verbose=0)


@pytest.mark.parametrize("family", ["VGG16", "ConvNeXtTiny", "DenseNet121"])
@pytest.mark.slow
def test_other_conventions_survive_saving(family, tiny_images, tmp_path):
    backbone = getattr(keras.applications, family)(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    model = ftk.FineTuneSpec(1).build(
        backbone, ftk.classification_head(3), preprocessing=ftk.preprocessing(backbone)
    )
    x = tiny_images.load(size=(32, 32))
    assert np.allclose(
        saved_predictions(model, tmp_path / "m.keras", x), model.predict(x, verbose=0), atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"head": ftk.classification_head(4)},
            r"`head` must give one probability for each of the 3",
        ),
        ({"head": ftk.classification_head(1)}, "`head` must give"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"class_weight": {"purple": 1}}, "`class_weight`"),
        ({"class_weight": "even"}, "`class_weight`"),
        ({"optimizer": 0.1}, "`optimizer`"),
        ({"metrics": ["sparse_categorical_accuracy"]}, "`metrics` is given one-hot labels"),
        ({"augmentation": keras.layers.MixUp()}, "MixUp and CutMix mix several"),
        ({"head": ftk.classification_head(3, pooling=None)}, "it lacks pooling"),
        ({"preprocessing": "tf"}, "`preprocessing`"),
        ({"split": ftk.Split(np.arange(30), np.arange(0), np.arange(0))}, r"from 0 to 23"),
        ({"split": ftk.Split(np.arange(0), np.arange(3), np.arange(0))}, "at least one image"),
        ({"split": ftk.Split(np.array([0, 3]), np.arange(4, 7), np.arange(0))}, "gray.*light"),
        ({"split": "all"}, "`split` must be of type Split.*split='all' of type str"),
        ({"images": ftk.FineTuneSpec(1)}, "`images` must be of type ImageSet"),
        ({"spec": 2}, "`spec` must be of type FineTuneSpec.*spec=2 of type int"),
        ({"head": None}, r"`head` must be of type Layer \(see classification_head\)"),
        ({"seed": "a"}, "`seed` must be a whole number from 0 up"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(small_backbone, tiny_images, options, says):
    call = {"head": ftk.classification_head(3), "spec": ftk.FineTuneSpec(1), "images": tiny_images}
    with pytest.raises(ValueError, match=says):
        ftk.fine_tune(small_backbone, **{**call, "split": SPLIT, "verbose": 0, **options})


def test_advice_against_making_models_in_a_loop_is_left_out(small_backbone, tiny_images, caplog):
    """TensorFlow's, after five models in one process; all else that it says is heard."""
    log = logging.getLogger("tensorflow")
    caplog.set_level("WARNING", "tensorflow")
    log.propagate, before = True, log.propagate

    class Log(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            log.warning("5 out of the last 5 calls to %s triggered tf.function retracing.", "f")
            log.warning("disk full")

    tune(small_backbone, tiny_images, callbacks=[Log()])
    said = [record.getMessage() for record in caplog.records if record.name == "tensorflow"]
    log.warning("something about tf.function retracing")
    log.propagate = before
    assert said == ["disk full"]
    assert "something about tf.function retracing" in caplog.messages


def test_a_head_that_gives_logits_is_refused(small_backbone, tiny_images):
    head = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="must end in probabilities"):
        tune(small_backbone, tiny_images, head=head)


def test_a_backbone_for_images_of_any_size_is_refused(tiny_images):
    backbone = keras.applications.MobileNet(
        weights=None, alpha=0.25, include_top=False, input_shape=(None, None, 3)
    )
    assert len(ftk.conv_blocks(backbone)) == 14
    with pytest.raises(ValueError, match="fixed size"):
        tune(backbone, tiny_images)


@pytest.mark.slow
def test_real_weights_tell_real_xrays_apart(xrays, imagenet_weights):
    """A short run of the README's example: clearly better than the majority class (0.67)."""
    images = ftk.read_image_folder(xrays)
    chosen = ftk.stratified_split(images.labels, (0.08, 0.08, 0.84)).train
    part = ftk.stratified_split(images.labels[chosen], (0.6, 0.1, 0.3))
    split = ftk.Split(*(chosen[getattr(part, p)] for p in ("train", "validation", "test")))
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=(224, 224, 3)
    )
    backbone.load_weights(imagenet_weights)
    head = ftk.classification_head(3, units=(64,))
    tuned = ftk.fine_tune(backbone, head, ftk.FineTuneSpec(0, epochs=15), images, split, verbose=0)
    assert ftk.evaluate(tuned.model, images, split.test).accuracy > 0.8
