"""Law 8: a run that was killed and resumed ends with the weights of a run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune_kit as ftk

SPLIT = ftk.Split(np.arange(12), np.arange(12, 18), np.arange(18, 24))
SPECS = [ftk.FineTuneSpec(0, epochs=2), ftk.FineTuneSpec(2, epochs=3, batch_norm="train")]


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
    """Ends the process' patience in one epoch, before or after the epoch is trained."""

    def __init__(self, epoch, when):
        super().__init__()
        setattr(self, f"on_epoch_{when}", lambda e, logs=None: self.stop(e == epoch))

    def stop(self, now):
        if now:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(small_backbone):
    """A run that nothing interrupted, and its images."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pixels = rng.integers(0, 80, (24, 32, 32, 3)) + 80 * labels[:, None, None, None]
    images = ftk.ImageSet.from_arrays(pixels.astype(np.uint8), labels, ["dark", "gray", "light"])
    return tune(small_backbone, images)


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
        ({"split": ftk.Split(np.arange(1, 12), SPLIT.validation, SPLIT.test)}, "train images"),
        ({"split": ftk.Split(SPLIT.train[::-1], SPLIT.validation, SPLIT.test)}, "train split"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"batch_size": 4}, "batch_size: 5 there, 4 now"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"class_weight": {"dark": 2.0}}, "class_weight"),
        ({"cache_dir": False}, "features"),
        ({"preprocessing": keras.layers.Rescaling(0.5)}, "preprocessing"),
    ],
)
def test_another_run_is_refused(small_backbone, tiny_images, tmp_path, change, says):
    with pytest.raises(KeyboardInterrupt):
        tune(small_backbone, tiny_images, run_dir=tmp_path, callbacks=[Interruption(1, "begin")])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"(?s)`run_dir` must be.*{says}"):
        tune(small_backbone, tiny_images, run_dir=tmp_path, **change)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


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


# A two-phase run that tells the digest of what it ends with.
RUNNER = """
import sys, json, hashlib, numpy as np, keras
import finetune_kit as ftk
backbone = keras.models.load_model(sys.argv[1])
pixels = np.load(sys.argv[2])
images = ftk.ImageSet.from_arrays(pixels, np.arange(len(pixels)) % 3)
split = ftk.Split(np.arange(40), np.arange(40, 48), np.arange(0))
specs = [ftk.FineTuneSpec(0, epochs=4), ftk.FineTuneSpec(2, epochs=4, layer_decay=0.5)]
head = ftk.classification_head(3, units=(4,), dropout=0.3)
run = ftk.fine_tune(backbone, head, specs, images, split, batch_size=4, preprocessing=None,
                    run_dir=sys.argv[3], verbose=0)
digest = hashlib.sha256()
for weight in run.model.weights:
    digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
print(json.dumps([digest.hexdigest(), dict(run.history)]))
"""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(small_backbone, tmp_path):
    """FTK_KILLS tells how many times; each kill is followed by a run to the end or the next."""
    small_backbone.save(tmp_path / "backbone.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    environment = {**os.environ, "PYTHONPATH": str(Path(ftk.__file__).parents[1])}

    def start(folder):
        arguments = [tmp_path / "backbone.keras", tmp_path / "x.npy", folder]
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, *map(str, arguments)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        while not (folder / "run.json").exists() and process.poll() is None:
            time.sleep(0.01)
        return process

    clean = start(tmp_path / "clean")
    begun = time.perf_counter()
    expected = json.loads(clean.communicate()[0])
    lasts = time.perf_counter() - begun
    kills = int(os.environ.get("FTK_KILLS", "3"))
    moments = random.Random(0)
    done = 0
    while done < kills:
        folder = tmp_path / f"killed-{done}"
        while True:  # kill until a run gets to its end
            process = start(folder)
            time.sleep(moments.uniform(0, 0.9 * lasts))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done += 1
            if done >= kills:
                process = start(folder)
                break
        assert json.loads(process.communicate()[0]) == expected
