"""Law 8: a run that was killed and resumed ends with the weights of a run that was not."""

from __future__ import annotations

import crash
import keras
import numpy as np
import pytest

import finetune_kit as ftk

SPLIT = ftk.Split(np.arange(12), np.arange(12, 18), np.arange(18, 24))
SPECS = [ftk.FineTuneSpec(0, epochs=2), ftk.FineTuneSpec(2, epochs=3, batch_norm="train")]
LONG = [SPECS[0], ftk.FineTuneSpec(2, epochs=6, layer_decay=0.5)]


def tune(backbone, images, specs=SPECS, split=SPLIT, **options):
    head = ftk.classification_head(3, units=(4,), dropout=0.3)
    options = {"verbose": 0, "batch_size": 5, "preprocessing": None, **options}
    return ftk.fine_tune(backbone, head, specs, images, split, **options)


def same(run, other) -> None:
    """To the last bit."""
    assert dict(run.history) == dict(other.history)
    pairs = zip(run.model.weights, other.model.weights, strict=True)
    for a, b in pairs:
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (a, b))), a.path


class Interruption(keras.callbacks.Callback):
    """Ends the process' patience before or after one epoch is trained, or as a phase ends."""

    def __init__(self, epoch, when):
        super().__init__()
        if when == "train":  # the end of so many phases
            self.ends = 0
            self.on_train_end = lambda logs=None: self.count(epoch)
        else:
            setattr(self, f"on_epoch_{when}", lambda e, logs=None: self.stop(e == epoch))

    def count(self, last):
        self.ends += 1
        self.stop(self.ends == last)

    def stop(self, now):
        if now:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole_images():
    """The tiny images, once for all tests."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pixels = rng.integers(0, 80, (24, 32, 32, 3)) + 80 * labels[:, None, None, None]
    return ftk.ImageSet.from_arrays(pixels.astype(np.uint8), labels, ["dark", "gray", "light"])


@pytest.fixture(scope="module")
def whole(small_backbone, whole_images):
    """A run that nothing interrupted."""
    return tune(small_backbone, whole_images)


@pytest.mark.parametrize(("epoch", "when"), [(0, "begin"), (1, "end"), (3, "end")])
def test_an_interrupted_run_goes_on(small_backbone, tiny_images, whole, tmp_path, epoch, when):
    with pytest.raises(KeyboardInterrupt):
        tune(small_backbone, tiny_images, run_dir=tmp_path, callbacks=[Interruption(epoch, when)])
    run = tune(small_backbone, tiny_images, run_dir=tmp_path)
    same(run, whole)
    again = tune(small_backbone, tiny_images, run_dir=tmp_path)
    assert again.timings["fit"] == again.timings["prefix"] == 0
    same(again, whole)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    small_backbone, tiny_images, whole, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        tune(small_backbone, tiny_images, run_dir=tmp_path, callbacks=[Interruption(3, "begin")])
    newest = max(tmp_path.glob("checkpoint-*.npz"))
    newest.write_bytes(newest.read_bytes()[:-7])
    (tmp_path / "abc.part").write_bytes(b"half")
    same(tune(small_backbone, tiny_images, run_dir=tmp_path), whole)
    assert not list(tmp_path.glob("*.part"))


def careful():
    """Callbacks that end the second phase early, turn the rate down and go back to its best."""
    return [
        keras.callbacks.EarlyStopping(patience=3, min_delta=10, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=10),
    ]


@pytest.fixture(scope="module")
def stopped(small_backbone, whole_images):
    """A run that early stopping ended, and nothing interrupted."""
    return tune(small_backbone, whole_images, LONG, callbacks=careful())


@pytest.mark.parametrize(("epoch", "when"), [(4, "begin"), (2, "train")])
def test_callbacks_go_on_with_what_they_knew(
    small_backbone, tiny_images, stopped, tmp_path, epoch, when
):
    """Patience, the best weights and the rate; `train`: as the phase ends, stopped already."""
    assert stopped.history["phase"] == [1, 1, 2, 2, 2, 2]  # of 2 and 6
    with pytest.raises(KeyboardInterrupt):
        tune(small_backbone, tiny_images, LONG, run_dir=tmp_path,
             callbacks=[*careful(), Interruption(epoch, when)])  # fmt: skip
    quiet = keras.callbacks.LambdaCallback()
    same(
        tune(small_backbone, tiny_images, LONG, run_dir=tmp_path, callbacks=[*careful(), quiet]),
        stopped,
    )


def test_other_callbacks_start_anew(small_backbone, tiny_images, tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        tune(small_backbone, tiny_images, SPECS[:1], run_dir=tmp_path,
             callbacks=[*careful(), Interruption(1, "begin")])  # fmt: skip
    tune(small_backbone, tiny_images, SPECS[:1], run_dir=tmp_path, callbacks=careful()[1:])
    assert "they start anew" in caplog.text


def test_what_is_drawn_and_averaged_goes_on(small_backbone, tiny_images, tmp_path):
    """Views of images, dropout, gradients that are added up, averages of weights, a schedule."""
    options = {
        "specs": [ftk.FineTuneSpec(1, epochs=3)],
        "augmentation": keras.layers.RandomFlip("horizontal"),
        "views": 2,
        "optimizer": keras.optimizers.Adam(
            keras.optimizers.schedules.ExponentialDecay(0.01, 4, 0.5),
            use_ema=True,
            gradient_accumulation_steps=2,
        ),
    }
    with pytest.raises(KeyboardInterrupt):
        tune(small_backbone, tiny_images, run_dir=tmp_path, callbacks=[Interruption(2, "begin")],
             **options)  # fmt: skip
    run = tune(small_backbone, tiny_images, run_dir=tmp_path, **options)
    same(run, tune(small_backbone, tiny_images, **options))


def test_half_precision_goes_on(small_backbone, tiny_images, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")  # the head's
    stop = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
    specs = [ftk.FineTuneSpec(0, epochs=2)]
    try:
        with pytest.raises(KeyboardInterrupt):
            tune(small_backbone, tiny_images, specs, run_dir=tmp_path,
                 callbacks=[stop, Interruption(1, "begin")])  # fmt: skip
        run = tune(small_backbone, tiny_images, specs, run_dir=tmp_path, callbacks=[stop])
        assert "bfloat16" in {v.dtype for v in run.model.trainable_weights}
        same(run, tune(small_backbone, tiny_images, specs, callbacks=[stop]))
    finally:
        keras.config.set_dtype_policy(before)


def test_features_outlive_an_interruption(small_backbone, tiny_images, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune(small_backbone, tiny_images, run_dir=tmp_path, callbacks=[Interruption(0, "begin")])
    assert any((tmp_path / "features").iterdir())
    run = tune(small_backbone, tiny_images, run_dir=tmp_path)
    assert run.timings["decode"] == 0
    assert not (tmp_path / "features").exists()


def test_few_checkpoints_are_kept_and_none_is_executable(small_backbone, tiny_images, tmp_path):
    tune(small_backbone, tiny_images, run_dir=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [path.name[:10] for path in files] == ["checkpoint", "checkpoint", "run.json"]
    for path in files[:2]:
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays.files)


def other_weights(backbone):
    twin = keras.models.clone_model(backbone)
    twin.set_weights([w * 1.5 for w in backbone.get_weights()])
    return twin


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"specs": [SPECS[0]]}, "specs"),
        (
            {"specs": [SPECS[0], ftk.FineTuneSpec(1, epochs=3, batch_norm="train")]},
            r"specs\[1\].trainable_blocks: 2 there, 1 now",
        ),
        ({"split": ftk.Split(np.arange(1, 12), SPLIT.validation, SPLIT.test)}, "train images"),
        ({"split": ftk.Split(SPLIT.train[::-1], SPLIT.validation, SPLIT.test)}, "train split"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"batch_size": 4}, "batch_size: 5 there, 4 now"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"class_weight": {"dark": 2.0}}, "class_weight"),
        ({"cache_dir": False}, "features"),
        ({"preprocessing": keras.layers.Rescaling(0.9)}, "preprocessing"),
    ],
)
def test_another_run_is_refused(small_backbone, tiny_images, tmp_path, change, says):
    with pytest.raises(KeyboardInterrupt):
        tune(small_backbone, tiny_images, run_dir=tmp_path, callbacks=[Interruption(1, "begin")])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(ValueError, match=rf"(?s)`run_dir` must be.*{says}"):
        tune(small_backbone, tiny_images, run_dir=tmp_path, **change)
    assert {path: path.read_bytes() for path in files} == before


def test_a_call_that_failed_leaves_a_folder_that_can_be_used(
    small_backbone, tiny_images, whole, tmp_path
):
    wrong = ftk.classification_head(4)
    with pytest.raises(ValueError, match="`head` must give"):
        ftk.fine_tune(small_backbone, wrong, SPECS, tiny_images, SPLIT, preprocessing=None,
                      run_dir=tmp_path)  # fmt: skip
    same(tune(small_backbone, tiny_images, run_dir=tmp_path), whole)


def test_other_images_or_weights_are_refused(small_backbone, tiny_images, tmp_path):
    tune(small_backbone, tiny_images, SPECS[:1], run_dir=tmp_path)
    pixels = tiny_images.load(size=(32, 32))
    pixels[0] = 255 - pixels[0]
    images = ftk.ImageSet.from_arrays(pixels, tiny_images.labels, tiny_images.class_names)
    with pytest.raises(ValueError, match="train data"):
        tune(small_backbone, images, SPECS[:1], run_dir=tmp_path)
    with pytest.raises(ValueError, match="backbone"):
        tune(other_weights(small_backbone), tiny_images, SPECS[:1], run_dir=tmp_path)
    (tmp_path / "run.json").write_text("no JSON")
    with pytest.raises(ValueError, match="delete its folder"):
        tune(small_backbone, tiny_images, SPECS[:1], run_dir=tmp_path)


def test_a_sweep_resumes_its_runs(small_backbone, tiny_images, tmp_path):
    specs = [ftk.FineTuneSpec(blocks, epochs=2) for blocks in (0, 1)]
    head = ftk.classification_head(3)
    options = {"batch_size": 5, "preprocessing": None, "verbose": 0, "run_dir": tmp_path}
    first = ftk.sweep(small_backbone, head, specs, tiny_images, SPLIT, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    for run, other in zip(
        first, ftk.sweep(small_backbone, head, specs, tiny_images, SPLIT, **options), strict=True
    ):
        assert other.timings["fit"] == 0
        same(run, other)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tmp_path):
    """One kill of each kind; `benchmarks/crash.py` does more of them."""
    same, where = crash.measure(3, tmp_path)
    assert (same, where.total()) == (3, 3)
    assert "a checkpoint being written" in where
