"""Training in several processes that `keras.distribution` sets up."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._processes import check_distribution

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="needs KERAS_BACKEND=jax")
# Trains as each of two processes does, and prints what it got as one line of JSON.
PROCESS = """
import json, os, sys
import keras
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_processes import train
number, port, options = int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
keras.distribution.initialize(f"127.0.0.1:{port}", 2, number)
keras.distribution.set_distribution(keras.distribution.DataParallel())
try:
    print(json.dumps(train(number, **options)), flush=True)
except ValueError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    os._exit(0)  # JAX would wait for the other process
"""


class Stop(keras.callbacks.Callback):
    """End the process without a warning in the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            sys.stdout.flush()
            sys.exit(3)


def backbone() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for i in (1, 2):
        x = keras.layers.Conv2D(4, 3, strides=2, name=f"block{i}_conv")(x)
        x = keras.layers.ReLU(name=f"block{i}_relu")(x)
        x = keras.layers.Dropout(0.2, name=f"block{i}_drop")(x)
    return keras.Model(inputs, x, name="tiny")


def pictures(count: int = 24) -> ftk.ImageSet:
    pixels = np.random.default_rng(0).integers(0, 200, (count, 16, 16, 3), np.uint8)
    pixels[::2, 4:12] += 50
    return ftk.ImageSet.from_arrays(pixels, ["bright", "dark"] * (count // 2))


def train(number=0, *, folder=None, seed=0, stop=False, batch_size=8, save=None, images=24):
    """Train, and return what can be compared."""
    train, validation, test = pictures(images).split((16, 4, 4), seed=0)
    run_dir = folder and str(Path(folder) / "run")
    tuned = ftk.fine_tune(
        backbone(),
        ftk.classification_head(2, dropout=0.2),
        ftk.FineTuneSpec(1, epochs=3, learning_rate=1e-2),
        train,
        validation,
        batch_size=batch_size,
        preprocessing=keras.layers.Rescaling(1 / 255),
        callbacks=[Stop()] if stop else [],
        features=folder and str(Path(folder) / "features"),
        run_dir=run_dir,
        calibrate=True,
        seed=seed,
        verbose=2,
    )
    report = ftk.evaluate(tuned, test, verbose=0)
    kept = folder and str(Path(folder) / "test")
    evaluated = [tuned]
    if number == 0 and save:
        evaluated.append(tuned.save(save))
        report.save(Path(save).with_suffix(""))
    for model in evaluated:
        again = ftk.evaluate(model, test, features=kept, verbose=0)
        assert np.allclose(again.scores, report.scores, atol=1e-6)
    return {
        "losses": tuned.history["loss"],
        "val_losses": tuned.history["val_loss"],
        "temperature": tuned.settings["temperature"],
        "scores": report.scores.tolist(),
    }


def together(*, options=({}, {})) -> list[subprocess.CompletedProcess]:
    """Run two processes to their ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    call = [sys.executable, "-c", PROCESS, str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(
            [*call, str(i), port, json.dumps(given)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i, given in enumerate(options)
    ]  # fmt: skip
    done = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def answers(done: list[subprocess.CompletedProcess]) -> list[dict]:
    for process in done:
        assert process.stdout.strip(), process.stderr
    return [json.loads(process.stdout.splitlines()[-1]) for process in done]


@on_jax
@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path):
    alone = train()
    shared = {"folder": str(tmp_path)}
    stopped = together(options=[shared | {"stop": True}] * 2)
    assert "Computing the frozen part" in stopped[0].stdout
    assert "Epoch" not in stopped[1].stdout  # the second process prints nothing
    run = sorted(path.name.split("-")[0] for path in (tmp_path / "run").iterdir())
    assert run == ["checkpoint", "run.json"]
    features = ftk.FeatureCache(tmp_path / "features")
    [entry] = features.entries()
    assert entry.images == 20
    chunks = [np.load(path) for path in Path(entry.folder).glob("*.npy")]
    assert len(chunks) == 2  # each process computes its share alone
    assert sum(map(len, chunks)) == 20
    resumed = together(options=[shared | {"save": str(tmp_path / "model.keras")}, shared])
    first, second = answers(resumed)
    assert "Resuming after epoch 1" in resumed[0].stdout
    assert first == second
    for name, values in alone.items():
        assert np.allclose(first[name], values, rtol=1e-4), name
    pixels = pictures().split((16, 4, 4), seed=0)[2].load(size=(16, 16))
    assert (tmp_path / "model" / "report.html").exists()
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert np.allclose(model.predict(pixels, verbose=0), first["scores"], atol=1e-5)


@on_jax
@pytest.mark.slow
def test_processes_must_agree_on_the_arguments():
    for answer in answers(together(options=[{"seed": 0}, {"seed": 1}])):
        assert answer["error"].startswith("All processes must call `fine_tune` with the same arg")


@on_jax
def test_a_batch_must_be_divisible_by_the_number_of_devices(monkeypatch):
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    with keras.distribution.DataParallel(mesh).scope():
        assert np.isfinite(train()["losses"]).all()
        monkeypatch.setattr(keras.distribution.DataParallel, "num_model_replicas", 3)
        with pytest.raises(ValueError, match=r"`batch_size` must be divisible by the 3 devices"):
            train()
        with pytest.raises(ValueError, match=r"`len\(train\)` must be divisible by the 3 devices"):
            train(batch_size=9)


@on_jax
def test_images_of_several_processes_are_not_mixed(monkeypatch):
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    monkeypatch.setattr("finetune_kit._processes.share", lambda: (0, 2))
    with (
        keras.distribution.DataParallel(mesh).scope(),
        pytest.raises(ValueError, match="`mixup` must be 0 where several processes train"),
    ):
        check_distribution(8, 8, 0, mixup=True)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="keras.distribution works with JAX")
def test_a_backend_that_divides_no_batches_is_named():
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    with (
        keras.distribution.DataParallel(mesh).scope(),
        pytest.raises(ValueError, match="must be used with KERAS_BACKEND=jax"),
    ):
        train()


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="needs KERAS_BACKEND=torch")
def test_each_process_of_torch_distributed_trains_by_itself(tmp_path):
    code = f"""
import json, sys
import torch.distributed
torch.distributed.init_process_group(
    "gloo", init_method="file://{tmp_path}/init", rank=int(sys.argv[1]), world_size=2)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_processes import train
print(json.dumps(train(folder=f"{tmp_path}/{{sys.argv[1]}}")))
torch.distributed.destroy_process_group()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    found = [process.communicate(timeout=300)[0].splitlines()[-1] for process in processes]
    for answer in map(json.loads, found):
        for name, values in train().items():
            assert np.allclose(answer[name], values, rtol=1e-4), name
