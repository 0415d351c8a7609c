"""Every public metric, loss and callback of Keras is right, or a clear error before training."""

from __future__ import annotations

import csv
import inspect

import keras
import numpy as np
import pytest

import finetune_kit as ftk

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
IMAGES = ftk.ImageSet.from_arrays(PIXELS, ["a", "b", "c"] * 4)
VALIDATION = ftk.ImageSet.from_arrays(PIXELS[:6, ::-1], ["a", "b", "c"] * 2)

# What cannot compare probabilities with one-hot labels of three classes, and a part of the error.
REJECTED_METRICS = {
    "Accuracy": "pass 'accuracy'",
    "F1Score": r"single number.*average='macro'",
    "FBetaScore": r"single number.*average='macro'",
    "Mean": "must compare labels and probabilities",
    "MeanMetricWrapper": "",  # cannot be made without a function
    "Metric": "must compare labels and probabilities",
    "SparseCategoricalAccuracy": "takes no integers",
    "SparseCategoricalCrossentropy": "takes no integers",
    "SparseTopKCategoricalAccuracy": "takes no integers",
    "Sum": "must compare labels and probabilities",
    "TopKCategoricalAccuracy": "",  # five classes of three: PyTorch rejects it, others clip
}
REJECTED_LOSSES = {
    "CTC": "takes no integers",
    "CategoricalGeneralizedCrossEntropy": "takes no integers",
    "Circle": "takes no integers",
    "Loss": "must compare labels and probabilities",
    "SparseCategoricalCrossentropy": "takes no integers",
}


@pytest.fixture(scope="module")
def backbone() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, strides=4, name="first")(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras.layers.Conv2D(4, 3, name="second")(x), name="small")


@pytest.fixture
def run(backbone):
    def call(*specs: ftk.FineTuneSpec, **options) -> ftk.FineTuned:
        options = {"preprocessing": None, "verbose": 0, **options}
        head = ftk.classification_head(3)
        specs = specs or (ftk.FineTuneSpec(),)
        return ftk.fine_tune(backbone, head, list(specs), IMAGES, VALIDATION, **options)

    return call


def public(module, base: type) -> dict[str, type]:
    classes = inspect.getmembers(module, inspect.isclass)
    return {name: kind for name, kind in classes if issubclass(kind, base)}


def made(kind: type) -> keras.Metric:
    needed = {
        "num_classes": 3, "target_class_ids": [0], "recall": 0.5, "precision": 0.5,
        "specificity": 0.5, "sensitivity": 0.5,
    }  # fmt: skip
    parameters = inspect.signature(kind).parameters.values()
    required = {p.name for p in parameters if p.default is p.empty and p.name in needed}
    return kind(**{name: needed[name] for name in required})


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # of IoU, on JAX
def test_every_metric_is_recorded_or_rejected_before_training(run):
    kinds = public(keras.metrics, keras.metrics.Metric)
    good = [made(kind) for name, kind in kinds.items() if name not in REJECTED_METRICS]
    assert len(good) > 25
    history = run(metrics=good).history
    assert {metric.name for metric in good} <= set(history)
    for name, says in REJECTED_METRICS.items():
        if says:
            with pytest.raises(ValueError, match=says):
                run(metrics=[made(kinds[name])])


@pytest.mark.slow
def test_every_loss_trains_or_is_rejected_before_training(run, tmp_path):
    kinds = public(keras.losses, keras.losses.Loss)
    for name, kind in kinds.items():
        if name not in REJECTED_LOSSES:
            history = run(loss=kind(), metrics=[], features=tmp_path).history
            assert np.isfinite(history["loss"]).all(), name
    for name, says in REJECTED_LOSSES.items():
        if says:
            with pytest.raises(ValueError, match=says):
                run(loss=kinds[name]())


def test_a_csv_log_holds_all_phases_and_goes_on_after_an_interruption(run, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:
                raise OSError("power cut")

    file = tmp_path / "log.csv"
    specs = [ftk.FineTuneSpec(epochs=2), ftk.FineTuneSpec(1, epochs=3, layer_decay=0.5)]
    logger = keras.callbacks.CSVLogger(file)
    with pytest.raises(OSError, match="power cut"):
        run(*specs, callbacks=[logger, Stop()], run_dir=tmp_path / "run")
    with file.open() as opened:
        assert [row["epoch"] for row in csv.DictReader(opened)] == ["0", "1", "2", "3"]
    tuned = run(*specs, callbacks=[keras.callbacks.CSVLogger(file)], run_dir=tmp_path / "run")
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3, 4]
    assert [float(row["loss"]) for row in rows] == pytest.approx(tuned.history["loss"])
    assert logger.append is False


@pytest.mark.parametrize("takes_rate", [True, False])
def test_a_rate_scheduler_keeps_the_ratios_of_layer_decay(run, takes_rate):
    schedule = (lambda epoch, rate: rate / 2) if takes_rate else (lambda epoch: 0.1 / (1 + epoch))
    scheduler = keras.callbacks.LearningRateScheduler(schedule)
    specs = [ftk.FineTuneSpec(1, epochs=2, layer_decay=0.5), ftk.FineTuneSpec(2, layer_decay=0.5)]
    history = run(*specs, callbacks=[scheduler]).history
    full = np.array(history["learning_rate_adam_phase1_x1"])
    np.testing.assert_allclose(history["learning_rate_adam_phase1_x0.5"], full / 2, rtol=1e-6)
    np.testing.assert_allclose(
        history["learning_rate_adam_phase2_x0.25"][2:], full[2:] / 4, rtol=1e-6
    )
    assert full[0] > full[1]


@pytest.mark.parametrize(
    "schedule",
    [
        keras.optimizers.schedules.CosineDecay(1e-2, 8),
        keras.optimizers.schedules.ExponentialDecay(1e-2, 8, 0.9),
    ],
)
def test_a_schedule_over_phases_that_add_blocks_is_an_error(run, schedule):
    with pytest.raises(ValueError, match=r"schedule would start anew.*Give each spec its"):
        run(ftk.FineTuneSpec(), ftk.FineTuneSpec(1), optimizer=keras.optimizers.Adam(schedule))
    run(ftk.FineTuneSpec(1), ftk.FineTuneSpec(1), optimizer=keras.optimizers.Adam(schedule))


def scaled(factor):
    def loss(true, predicted):
        return factor * keras.losses.categorical_crossentropy(true, predicted)

    return loss


def test_a_run_with_another_function_as_loss_is_not_resumed(run, tmp_path):
    first = run(loss=scaled(1.0), run_dir=tmp_path)
    again = run(loss=scaled(1.0), run_dir=tmp_path)
    assert again.history == first.history
    for other in (scaled(2.0), lambda t, p: keras.losses.categorical_crossentropy(t, p)):
        with pytest.raises(ValueError, match="whose run differs in"):
            run(loss=other, run_dir=tmp_path)
    table = keras.ops.ones((3,))
    for option in ("loss", "metrics"):
        value = scaled(table) if option == "loss" else [scaled(table)]
        with pytest.raises(ValueError, match=f"`{option}` must be comparable.*captures other"):
            run(run_dir=tmp_path / option, **{option: value})


CALLBACKS = {
    "BackupAndRestore": lambda c, folder: c.BackupAndRestore(folder / "backup"),
    "CSVLogger": lambda c, folder: c.CSVLogger(folder / "log.csv"),
    "CallbackList": lambda c, folder: c.CallbackList([c.Callback()]),
    "LambdaCallback": lambda c, folder: c.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
    "LearningRateScheduler": lambda c, folder: c.LearningRateScheduler(lambda epoch: 1e-3),
    "ModelCheckpoint": lambda c, folder: c.ModelCheckpoint(folder / "{epoch}.keras"),
    "OrbaxCheckpoint": lambda c, folder: c.OrbaxCheckpoint(folder / "orbax"),
    "TensorBoard": lambda c, folder: c.TensorBoard(folder / "board"),
}
REJECTED_CALLBACKS = {
    "BackupAndRestore": "pass run_dir= instead",
    "SwapEMAWeights": "only in a run of one phase",
}


def test_every_callback_runs_over_phases_or_is_rejected_before_training(run, tmp_path):
    """Those that run leave the training as it is."""
    specs = [ftk.FineTuneSpec(epochs=2), ftk.FineTuneSpec(1, epochs=2)]
    kinds = public(keras.callbacks, keras.callbacks.Callback)
    kinds |= {"CallbackList": keras.callbacks.CallbackList}
    del kinds["RemoteMonitor"]  # needs a server
    expected, tried = run(*specs).history["loss"], 0
    for name in kinds:
        try:
            make = CALLBACKS.get(name, lambda c, folder: getattr(c, name)())  # noqa: B023
            callback = make(keras.callbacks, tmp_path)
        except ImportError:
            continue  # OrbaxCheckpoint and TensorBoard need other packages
        if name in REJECTED_CALLBACKS:
            with pytest.raises(ValueError, match=REJECTED_CALLBACKS[name]):
                run(*specs, callbacks=[callback])
        elif not (name == "TensorBoard" and keras.backend.backend() != "tensorflow"):
            assert run(*specs, callbacks=[callback]).history["loss"] == expected, name
            tried += 1
    assert tried >= 10
    assert len(list(tmp_path.glob("*.keras"))) == 4
