"""Another Keras backend computes the frozen part: the same features, never mixed with others."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._features import engine, entry, process, remote
from finetune_kit._features.engine import BACKENDS

layers = keras.layers
HERE = keras.backend.backend()
MISSING = [name for name in BACKENDS if importlib.util.find_spec(name) is None]

needs_openvino = pytest.mark.skipif(
    "openvino" in MISSING, reason="needs OpenVINO (pip install 'finetune-kit[openvino]')"
)


def openvino(folder) -> ftk.FeatureCache:
    return ftk.FeatureCache(folder, backend="openvino")


def keys(folder) -> dict[str, int]:
    return {entry.key: entry.images for entry in ftk.FeatureCache(folder).entries()}


def extracted(backbone, images, features):
    return ftk.extract_features(
        backbone, images, features=features, preprocessing=None, batch_size=8, verbose=0
    )


class Pixels:
    """A map-style data set that counts what is read from it, and may do something else then."""

    def __init__(self, images: ftk.ImageSet, then=lambda count: None):
        self.pixels, self.labels = images.load(size=(32, 32)), images.labels.tolist()
        self.count, self.then = 0, then

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        self.count += 1
        self.then(self.count)
        return self.pixels[i], self.labels[i]


@pytest.fixture
def processes(monkeypatch) -> list[subprocess.Popen]:
    """The processes that a test starts. None from an earlier test waits for it."""
    process._end_waiting()
    started, start = [], subprocess.Popen

    def popen(*args, **options):
        started.append(start(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    return started


def test_a_backend_must_be_one_of_keras(rejected):
    with rejected("`backend` must be one of .*'openvino'.* Received: backend='onnx'"):
        ftk.FeatureCache(backend="onnx")


@pytest.mark.skipif(not MISSING, reason="needs an environment that lacks a backend")
def test_a_backend_must_be_installed(tiny_images, small_backbone, tmp_path, rejected):
    features = ftk.FeatureCache(tmp_path, backend=MISSING[0])
    remedy = rf"pip install 'finetune-kit\[{MISSING[0]}\]'"
    with rejected(f"{remedy}.*Received: backend='{MISSING[0]}'", ImportError):
        extracted(small_backbone, tiny_images, features)


def test_the_backend_of_the_training_is_the_default(
    tiny_images, small_backbone, tmp_path, processes
):
    extracted(small_backbone, tiny_images, tmp_path)
    before = keys(tmp_path)
    extracted(small_backbone, tiny_images, ftk.FeatureCache(tmp_path, backend=HERE))
    assert keys(tmp_path) == before
    assert not processes


def test_pytorch_takes_the_channels_first_where_the_features_stay_the_same(
    tiny_images, small_backbone, monkeypatch
):
    few = {"features": None, "preprocessing": None, "batch_size": 3, "verbose": 0}
    found = ftk.extract_features(small_backbone, tiny_images, **few)  # 8 batches
    monkeypatch.setattr(entry, "_WORTH_A_TWIN", 9)
    assert np.array_equal(found, ftk.extract_features(small_backbone, tiny_images, **few))
    pixels = tiny_images.load(size=(32, 32))
    outputs = engine.outputs_once(small_backbone, pixels)
    twin = engine.faster(small_backbone, pixels, outputs)
    assert (twin is small_backbone) == (HERE != "torch")
    assert engine.faster(small_backbone, pixels, outputs + 1) is small_backbone


@pytest.mark.slow
def test_each_backend_computes_in_a_process_of_its_own(
    small_backbone, tiny_images, tmp_path, monkeypatch, processes
):
    expected = extracted(small_backbone, tiny_images, tmp_path / "here")
    monkeypatch.setattr(entry, "is_other", lambda backend: True)
    found = extracted(small_backbone, tiny_images, ftk.FeatureCache(tmp_path, backend=HERE))
    assert len(processes) == 1
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@needs_openvino
@pytest.mark.slow
def test_openvino_computes_the_same_features_once(
    tiny_images, small_backbone, tmp_path, monkeypatch
):
    expected = extracted(small_backbone, tiny_images, tmp_path)
    before = keys(tmp_path)
    found = extracted(small_backbone, tiny_images, openvino(tmp_path))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    after = keys(tmp_path)
    assert len(after) == 2
    assert before.items() < after.items()
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is computed again
    assert np.array_equal(extracted(small_backbone, tiny_images, openvino(tmp_path)), found)


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("augmented", [False, True])
def test_training_on_openvino_features_gives_nearly_the_same_losses(tune, augmented):
    drawn = ftk.Augmentation(layers.RandomFlip(seed=0), views=2) if augmented else None
    expected = tune(augmentation=drawn).history
    found = tune(augmentation=drawn, features=ftk.FeatureCache(backend="openvino")).history
    assert np.allclose(found["loss"], expected["loss"], rtol=1e-3)


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_a_cut_continues_from_rows_of_its_own_backend_only(
    tiny_images, small_backbone, tmp_path, processes
):
    pixels = Pixels(tiny_images)
    images = ftk.ImageSet.from_dataset(pixels)

    def read(blocks: int, features) -> int:
        before = pixels.count
        counts = ftk.compute_features(
            small_backbone, ftk.FineTuneSpec(blocks), images, features, preprocessing=None,
            batch_size=8, verbose=0,
        )  # fmt: skip
        assert counts["computed"] == len(images)
        return pixels.count - before

    images.digests()
    assert read(2, tmp_path) == 24
    assert read(1, openvino(tmp_path)) == 24
    assert read(0, openvino(tmp_path)) == 0
    assert len(processes) == 1  # for both passes
    assert len(keys(tmp_path)) == 3


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_sweeps_and_folds_use_the_backend(tiny_images, small_backbone, tmp_path, processes):
    head, specs = ftk.classification_head(3), [ftk.FineTuneSpec(0), ftk.FineTuneSpec(1)]
    options = {"features": openvino(tmp_path), "preprocessing": None, "verbose": 0}
    ftk.sweep(small_backbone, head, specs, tiny_images, **options)
    assert len(processes) == 1  # for both passes
    found = ftk.compute_features(small_backbone, specs, tiny_images, head=head, **options)
    assert found["computed"] == 0
    ftk.cross_validate(small_backbone, head, specs[0], tiny_images, k=3, **options)
    assert len(processes) == 1


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_several_tensors_cross_the_cut(tiny_images, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = skip = layers.Conv2D(4, 3, padding="same", name="block1_conv")(inputs)
    for i in range(2, 5):
        y = layers.Conv2D(4, 3, padding="same", name=f"block{i}_conv")(x)
        x, skip = layers.Concatenate(name=f"block{i}_join")([y, skip]), x
    backbone = keras.Model(inputs, x)
    specs = [ftk.FineTuneSpec(2), ftk.FineTuneSpec(1)]
    options = {"head": ftk.classification_head(3), "preprocessing": None, "verbose": 0}
    ftk.compute_features(backbone, specs, tiny_images, openvino(tmp_path), **options)
    shapes = [entry.shapes for entry in ftk.FeatureCache(tmp_path).entries()]
    assert any(len(each) == 2 for each in shapes)


MODULE = """
import keras

class Scale(keras.layers.Layer):
    def __init__(self, on_openvino, **kwargs):
        super().__init__(**kwargs)
        self.on_openvino = on_openvino

    def call(self, x):
        return x * (self.on_openvino if keras.backend.backend() == "openvino" else 2.0)

    def get_config(self):
        return {**super().get_config(), "on_openvino": self.on_openvino}
"""


@pytest.fixture
def scaled(tmp_path, monkeypatch):
    """Build a backbone with a custom layer that multiplies by 2, or by a factor on OpenVINO."""
    (tmp_path / "scaling_layers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scaling_layers", raising=False)
    module = importlib.import_module("scaling_layers")

    def build(factor: float) -> keras.Model:
        keras.utils.set_random_seed(0)
        x = inputs = keras.Input((32, 32, 3))
        x = layers.Conv2D(4, 3, strides=2, name="first")(x)
        x = module.Scale(factor, name="scale")(x)
        return keras.Model(inputs, layers.Conv2D(4, 3, name="last")(x), name="scaled")

    return build


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_a_custom_layer_of_a_module_runs_channels_last_which_is_said_once(
    scaled, tiny_images, tmp_path, capsys
):
    expected = extracted(scaled(2.0), tiny_images, tmp_path / "cache")
    for part in (tiny_images.take(range(12)), tiny_images):
        found = ftk.extract_features(
            scaled(2.0), part, features=openvino(tmp_path / "cache"), preprocessing=None
        )
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert capsys.readouterr().out.count("1 layer with channels last") == 1


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.01, float("nan")])
def test_a_backend_that_computes_something_else_is_an_error(scaled, tiny_images, tmp_path, factor):
    where = "last equal layer is 'first', the first other one 'scale'"
    with pytest.raises(ValueError, match=f"`backend` must compute .*'openvino'.*{where}"):
        extracted(scaled(factor), tiny_images, openvino(tmp_path / "cache"))
    assert set(keys(tmp_path / "cache").values()) <= {0}


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_a_process_that_replaces_one_that_died_at_its_start_is_compared_too(
    scaled, tiny_images, tmp_path, monkeypatch, processes
):
    start = subprocess.Popen

    def popen(*args, **options):
        started = start(*args, **options)
        if len(processes) == 1:
            started.kill()
        return started

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(ValueError, match=r"`backend` must compute .*first other one 'scale'"):
        extracted(scaled(2.01), tiny_images, openvino(tmp_path / "cache"))
    assert processes[0].returncode == -signal.SIGKILL


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_a_layer_that_cannot_be_imported_is_an_error(tiny_images, tmp_path):
    class Inner(layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((32, 32, 3))
    backbone = keras.Model(inputs, layers.Conv2D(4, 3)(Inner()(inputs)), name="inner")
    with pytest.raises(ValueError, match=r"`backend` must be able .*module that can be imported"):
        extracted(backbone, tiny_images, openvino(tmp_path))


@pytest.mark.once
@pytest.mark.slow
def test_a_backend_that_cannot_be_imported_is_an_error_that_shows_why(
    tiny_images, small_backbone, tmp_path, monkeypatch, processes
):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('libopenvino.so')")
    monkeypatch.syspath_prepend(tmp_path)
    remedy = "Check that `KERAS_BACKEND=openvino python -c 'import keras'` works"
    with pytest.raises(RuntimeError, match=f"{remedy}.*code 1.*ImportError: libopenvino.so"):
        extracted(small_backbone, tiny_images, openvino(tmp_path / "cache"))


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_files_in_the_working_folder_do_not_hide_modules_of_python(
    tiny_images, small_backbone, tmp_path, monkeypatch, processes
):
    (tmp_path / "queue.py").write_text("raise ImportError('not that of Python')")
    monkeypatch.chdir(tmp_path)
    extracted(small_backbone, tiny_images.take(range(4)), openvino(tmp_path / "cache"))
    assert len(processes) == 1


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 2])
def test_a_process_that_is_killed_is_started_again_once(
    tiny_images, small_backbone, tmp_path, processes, kills, capsys
):
    def kill(count: int) -> None:
        if processes and count in (24 + 20, 24 + 20 + 20)[:kills]:
            processes[-1].kill()

    pixels = Pixels(tiny_images, kill)
    images = ftk.ImageSet.from_dataset(pixels)
    images.digests()
    pixels.count = 24

    def extract():
        return ftk.extract_features(
            small_backbone, images, features=openvino(tmp_path), preprocessing=None, batch_size=1
        )

    if kills == 2:
        message = r"must run until all.*Call again.*killed by signal 9 \(Killed\)"
        with pytest.raises(RuntimeError, match=message) as raised:
            extract()
        sent = pickle.loads(pickle.dumps(raised.value))  # as an executor does
        assert str(sent) == str(raised.value)
        assert not list(tmp_path.rglob("*.part"))
    found = extract()
    again = "\nThe process .* was killed by signal 9 .*It is started again.\n"
    assert len(re.findall(again, capsys.readouterr().out)) == 1
    assert [each.returncode for each in processes[:kills]] == [-signal.SIGKILL] * kills
    assert len(processes) == kills + 1
    expected = extracted(small_backbone, images, tmp_path)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_files_are_loaded_by_the_process_that_computes(
    small_backbone, tmp_path, processes, monkeypatch
):
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        keras.utils.save_img(tmp_path / f"{i}.png", pixels, scale=False)
    lines = ["path,label", *(f"{i}.png,{'ab'[i % 2]}" for i in range(12))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    images = ftk.read_image_table(tmp_path / "table.csv", root=tmp_path)
    expected = extracted(small_backbone, images, tmp_path / "cache")
    loaded, load = [], ftk.ImageSet.load

    def counting(self, indices=None, size=(224, 224)):
        loaded.extend(indices)
        return load(self, indices, size)

    monkeypatch.setattr(ftk.ImageSet, "load", counting)
    found = extracted(small_backbone, images, openvino(tmp_path / "cache"))
    assert loaded == [0, 1]  # for the comparison with the training backend
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    (tmp_path / "7.png").write_bytes(b"no image")
    monkeypatch.setattr(ftk.ImageSet, "digests", lambda self: tuple(f"{i:064}" for i in range(12)))
    with pytest.raises(ValueError, match=r"must be a file that can be decoded.*7\.png"):
        extracted(small_backbone, images, openvino(tmp_path / "cache"))


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_a_process_that_waits_too_long_ends_and_is_replaced(
    tiny_images, small_backbone, tmp_path, processes
):
    extracted(small_backbone, tiny_images.take(range(4)), openvino(tmp_path))
    processes[0].stdin.close()  # as the process that started it does when it ends
    processes[0].wait(10)
    extracted(small_backbone, tiny_images, openvino(tmp_path))
    assert len(processes) == 2


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_a_process_waits_as_long_as_the_training_backend_compiles_but_rests_for_a_minute_only(
    tiny_images, small_backbone, tmp_path, monkeypatch, processes
):
    start, compute = subprocess.Popen, remote.outputs_once

    def popen(command, **options):  # a minute is a second
        code = "from finetune_kit._features import worker; worker.IDLE = 1; worker.main()"
        return start([sys.executable, "-P", "-c", code, command[-1]], **options)

    def slow(*args):
        time.sleep(5)
        return compute(*args)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(remote, "outputs_once", slow)
    extracted(small_backbone, tiny_images, openvino(tmp_path))
    assert len(processes) == 1
    assert processes[0].wait(60) == 0


ENDLESS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
import keras, numpy as np
import finetune_kit as ftk

start = subprocess.Popen
def popen(*args, **options):
    process = start(*args, **options)
    print(process.pid, flush=True)
    return process
subprocess.Popen = popen

class Pixels:
    def __len__(self):
        return 24
    def __getitem__(self, i):
        if i == 20 and computing:
            print("computing", flush=True)
            time.sleep(0.5)
        return np.full((16, 16, 3), i, np.uint8), i % 2

computing = False
images = ftk.ImageSet.from_dataset(Pixels())
images.digests()
computing = True
inputs = keras.Input((16, 16, 3))
backbone = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
cache = ftk.FeatureCache(sys.argv[1], backend="openvino")
while True:
    cache.clear()
    ftk.extract_features(backbone, images, features=cache, preprocessing=None, batch_size=2)
"""


def is_alive(pid: int) -> bool:
    """Return whether a process runs. One that has ended may wait for long to be collected."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "State:\tZ" not in status


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the states of processes are read in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them_and_leave_nothing(tmp_path, number):
    (tmp_path / "temporary").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path / "cache")],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        lines = iter(process.stdout.readline, "")
        worker = int(next(line for line in lines if line.strip().isdigit()))
        assert any("computing" in line for line in lines)
        assert is_alive(worker)
        assert list((tmp_path / "temporary").glob("*/prefix.keras"))
        process.send_signal(number)
        last = time.monotonic() + 30
        while is_alive(worker) and time.monotonic() < last:
            time.sleep(0.02)
        process.kill()
    assert not is_alive(worker)
    assert process.returncode != 0
    assert not list((tmp_path / "temporary").glob("finetune-kit-*"))


FLOAT32 = """
import keras, numpy as np, openvino
from finetune_kit._features.computing import _OnOpenVINO

options, compile_model = [], openvino.compile_model
openvino.compile_model = lambda *a: options.append(a[1:]) or compile_model(*a)
inputs = keras.Input((3,))
model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
outputs = _OnOpenVINO(model)(np.ones((5, 3), np.float32))
print(options, [x.shape for x in outputs])
"""


@pytest.mark.once
@needs_openvino
@pytest.mark.slow
def test_keras_compiles_for_openvino_with_a_function_that_can_be_replaced():
    """`openvino.compile_model(model, device)`: used by `_compiled`.

    Without it, OpenVINO rounds to bfloat16 on processors that have it, and the features fail the
    comparison with those of the training backend.
    """
    done = subprocess.run(
        [sys.executable, "-c", FLOAT32],
        env={**os.environ, "KERAS_BACKEND": "openvino"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "('CPU', {'INFERENCE_PRECISION_HINT': 'f32'," in done.stdout
    assert "[(5, 2)]" in done.stdout
