"""Law 8: a run that was killed and resumed ends with the weights of a run that was not."""

from __future__ import annotations

import crash
import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._features.inputs import Decode

SPECS = [ftk.FineTuneSpec(0, epochs=2), ftk.FineTuneSpec(2, epochs=3, batch_norm="train")]
LONG = [SPECS[0], ftk.FineTuneSpec(2, epochs=6, layer_decay=0.5)]


def same(run, other) -> None:
    """Check that history and weights are equal to the last bit."""
    assert dict(run.history) == dict(other.history)
    pairs = zip(run.model.weights, other.model.weights, strict=True)
    for a, b in pairs:
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (a, b))), a.path


class Interruption(keras.callbacks.Callback):
    """Interrupts the run before or after one epoch, or as a phase ends."""

    def __init__(self, number, when):
        super().__init__()
        if when == "train":  # the end of so many phases
            self.ends = 0
            self.on_train_end = lambda logs=None: self.count(number)
        else:
            setattr(self, f"on_epoch_{when}", lambda e, logs=None: self.stop(e == number))

    def count(self, last):
        self.ends += 1
        self.stop(self.ends == last)

    def stop(self, now):
        if now:
            raise KeyboardInterrupt


def interrupt(tune, specs, number, when="begin", callbacks=(), match=None, **options):
    """Interrupt a run at an epoch (from 0), or at the end of a phase (from 1)."""
    with pytest.raises(KeyboardInterrupt, match=match):
        tune(specs, callbacks=[*callbacks, Interruption(number, when)], **options)


@pytest.fixture(scope="module")
def whole(tune):
    """A run that was not interrupted."""
    return tune(SPECS)


@pytest.mark.parametrize(("epoch", "when"), [(0, "begin"), (1, "end"), (3, "end")])
def test_an_interrupted_run_resumes(tune, whole, tmp_path, epoch, when):
    says = f"^interrupted in epoch {epoch + 1}; the same call resumes there$"
    interrupt(tune, SPECS, epoch, when, match=says, run_dir=tmp_path)
    run = tune(SPECS, run_dir=tmp_path)
    same(run, whole)
    again = tune(SPECS, run_dir=tmp_path)
    assert {n: again.timings[n] for n in ("fit", "prefix")} == {  # nothing was trained again
        n: run.timings[n] for n in ("fit", "prefix")
    }
    same(again, whole)
    assert run.settings == again.settings == whole.settings
    # Few checkpoints are kept, and nothing that is executable.
    files = sorted(tmp_path.iterdir())
    assert [path.name[:10] for path in files] == ["checkpoint", "checkpoint", "run.json"]
    for path in files[:2]:
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays.files)


def test_an_interruption_says_how_a_run_can_be_resumed(tune):
    says = r"^interrupted in epoch 2; with run_dir= a run can be resumed$"
    interrupt(tune, [ftk.FineTuneSpec(0, epochs=2)], 1, match=says)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tune, whole, tmp_path):
    interrupt(tune, SPECS, 3, run_dir=tmp_path)
    newest = max(tmp_path.glob("checkpoint-*.npz"))
    newest.write_bytes(newest.read_bytes()[:-7])
    (tmp_path / "abc.part").write_bytes(b"half")
    same(tune(SPECS, run_dir=tmp_path), whole)
    assert not list(tmp_path.glob("*.part"))


def careful():
    """Callbacks that end the second phase early, lower the rate and restore the best weights."""
    return [
        keras.callbacks.EarlyStopping(patience=3, min_delta=10, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=10),
    ]


@pytest.fixture(scope="module")
def stopped(tune):
    """A run that early stopping ended, and that was not interrupted."""
    return tune(LONG, callbacks=careful())


@pytest.mark.parametrize(("number", "when"), [(4, "begin"), (2, "train")])
def test_callbacks_keep_their_state(tune, stopped, tmp_path, number, when):
    """Patience, the best weights and the rate; `train`: interrupted as the stopped phase ends."""
    assert stopped.history["phase"] == [1, 1, 2, 2, 2, 2]  # of 2 and 6
    assert stopped.settings["kept_epoch"] == 3  # nothing is 10 better than the first of a phase
    interrupt(tune, LONG, number, when, callbacks=careful(), run_dir=tmp_path)
    extra = keras.callbacks.LambdaCallback()
    resumed = tune(LONG, run_dir=tmp_path, callbacks=[*careful(), extra])
    same(resumed, stopped)
    again = tune(LONG, run_dir=tmp_path)
    assert resumed.settings["kept_epoch"] == again.settings["kept_epoch"] == 3
    assert "epoch 3 of 6 kept" in repr(again)


@pytest.mark.parametrize("extra", [[], [keras.callbacks.ReduceLROnPlateau(patience=9)]])
def test_the_best_epoch_is_known_after_an_interruption(tune, sets, tmp_path, caplog, extra):
    """Also if the user's own callbacks are others now: it lies before the interruption."""
    images = sets.train  # with wrong labels, so that the validation loss rises
    wrong = ftk.ImageSet.from_arrays(
        images.load(size=(32, 32)), (images.labels + 1) % 3, images.class_names
    )
    spec = ftk.FineTuneSpec(0, epochs=4, learning_rate=0.05)
    options = {"validation": wrong, "optimizer": "sgd"}
    whole = tune(spec, **options)
    interrupt(tune, spec, 3, run_dir=tmp_path, **options)
    resumed = tune(spec, run_dir=tmp_path, callbacks=extra, **options)
    assert whole.settings["kept_epoch"] == resumed.settings["kept_epoch"] < 4
    pairs = zip(whole.model.weights, resumed.model.weights, strict=True)
    assert all(np.array_equal(*map(keras.ops.convert_to_numpy, pair)) for pair in pairs)
    assert ("their state starts anew" in caplog.text) == bool(extra)


def test_callbacks_of_other_kinds_start_anew(tune, tmp_path, caplog):
    interrupt(tune, SPECS[:1], 1, callbacks=careful(), run_dir=tmp_path)
    tune(SPECS[:1], run_dir=tmp_path, callbacks=careful()[1:])
    assert "their state starts anew" in caplog.text


def test_random_numbers_averages_and_schedules_resume(tune, tmp_path):
    """Augmented copies, dropout, accumulated gradients, averages of weights, a schedule."""
    specs = [ftk.FineTuneSpec(1, epochs=3)]
    options = {
        "batch_size": 5,  # three steps in an epoch: gradients of an odd step are left over
        "augmentation": ftk.Augmentation(keras.layers.RandomFlip("horizontal"), views=2),
        "optimizer": keras.optimizers.Adam(
            keras.optimizers.schedules.ExponentialDecay(0.01, 4, 0.5),
            use_ema=True,
            gradient_accumulation_steps=2,
        ),
    }
    interrupt(tune, specs, 1, run_dir=tmp_path, **options)
    same(tune(specs, run_dir=tmp_path, **options), tune(specs, **options))


def test_half_precision_resumes(tune, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")  # that of the head
    head = ftk.classification_head(3, units=(4,), dropout=0.3)
    stop = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
    specs = [ftk.FineTuneSpec(0, epochs=2)]
    try:
        interrupt(tune, specs, 1, callbacks=[stop], head=head, run_dir=tmp_path)
        run = tune(specs, head=head, run_dir=tmp_path, callbacks=[stop])
        assert "bfloat16" in {v.dtype for v in run.model.trainable_weights}
        same(run, tune(specs, head=head, callbacks=[stop]))
    finally:
        keras.config.set_dtype_policy(before)


def test_features_are_kept_for_a_run_that_was_interrupted(tune, tmp_path, monkeypatch):
    specs = [ftk.FineTuneSpec(1), ftk.FineTuneSpec(0)]
    interrupt(tune, specs, 0, run_dir=tmp_path)
    assert any((tmp_path / "features").iterdir())
    monkeypatch.setattr(Decode, "load", None)  # nothing is decoded again
    tune(specs, run_dir=tmp_path)
    assert not (tmp_path / "features").exists()


def other_weights(backbone):
    twin = keras.models.clone_model(backbone)
    twin.set_weights([w * 1.5 for w in backbone.get_weights()])
    return twin


def changed_pixels(images):
    pixels = images.load(size=(32, 32))
    pixels[0] = 255 - pixels[0]
    return ftk.ImageSet.from_arrays(pixels, images.labels, images.class_names)


def changed_label(images):
    labels = np.array([1, *images.labels[1:]])
    return ftk.ImageSet.from_arrays(images.load(size=(32, 32)), labels, images.class_names)


def test_a_run_with_other_settings_cannot_use_the_folder(
    tune, small_backbone, sets, tmp_path, rejected
):
    """The error names what differs, and the folder stays as it is."""
    train, validation = sets.train, sets.validation
    interrupt(tune, SPECS, 1, run_dir=tmp_path)
    one_block = ftk.FineTuneSpec(1, epochs=3, batch_norm="train")
    for change, says in [
        ({"spec": [SPECS[0]]}, "specs"),
        ({"spec": [SPECS[0], one_block]}, r"specs\[1\].trainable_blocks: 2 there, 1 now"),
        ({"train": train.take(np.arange(1, 12))}, "train images: 12 there, 11 now"),
        ({"train": train.take(np.arange(12)[::-1])}, "train data: "),
        ({"train": changed_pixels(train)}, "train data: "),
        ({"train": changed_label(train)}, "train data: "),
        ({"validation": changed_pixels(validation)}, "validation data: "),
        ({"validation": None}, "validation images: 6 there, 0 now"),
        ({"backbone": other_weights(small_backbone)}, "backbone: "),
        ({"head": ftk.classification_head(3)}, "head: "),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"batch_size": 4}, "batch_size: 6 there, 4 now"),
        ({"optimizer": "sgd"}, "optimizer.class_name: "),
        ({"loss": "categorical_focal_crossentropy"}, "objective.loss: "),
        ({"metrics": []}, "objective.metrics: "),
        ({"class_weight": {"dark": 2.0}}, "class_weight: "),
        ({"features": False}, "features: 'float32' there, None now"),
        ({"augmentation": keras.layers.RandomFlip()}, "augmentation: "),
        ({"preprocessing": keras.layers.Rescaling(0.9)}, "preprocessing: "),
    ]:
        with rejected(rf"(?s)`run_dir` must be.*\n  {says}"):
            tune(**{"spec": SPECS, "run_dir": tmp_path, **change})


def test_a_file_that_no_run_wrote_is_an_error(tune, tmp_path):
    interrupt(tune, SPECS[:1], 1, run_dir=tmp_path)
    (tmp_path / "run.json").write_text("no JSON")
    with pytest.raises(ValueError, match="delete its folder to start anew"):
        tune(SPECS[:1], run_dir=tmp_path)


def test_a_call_that_failed_leaves_a_folder_that_can_be_used(tune, tmp_path):
    with pytest.raises(ValueError, match="`head` must give"):
        tune(SPECS[:1], head=ftk.classification_head(4), run_dir=tmp_path)
    same(tune(SPECS[:1], run_dir=tmp_path), tune(SPECS[:1]))


def test_a_sweep_resumes_its_runs(small_backbone, sets, tmp_path):
    specs = [ftk.FineTuneSpec(blocks, epochs=2) for blocks in (0, 1)]
    arguments = small_backbone, ftk.classification_head(3), specs, sets.train, sets.validation
    options = {"batch_size": 6, "preprocessing": None, "verbose": 0, "run_dir": tmp_path}
    first = ftk.sweep(*arguments, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    for run, other in zip(first, ftk.sweep(*arguments, **options), strict=True):
        assert other.timings["fit"] == run.timings["fit"] > 0
        same(run, other)


@pytest.mark.once
@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_was_not(tmp_path):
    """One kill of each kind; `benchmarks/crash.py` does more of them."""
    identical, where = crash.measure(3, tmp_path)
    assert (identical, where.total()) == (3, 3)
    assert "a checkpoint being written" in where
