"""An exported model predicts in another runtime what it predicts in Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import finetune_kit as ftk

BACKEND = keras.backend.backend()

# The backends that Keras 3.15 exports from; on the others it says what is missing.
FORMATS = {
    "onnx": ("tensorflow", "torch"),
    "openvino": ("tensorflow", "torch"),
    "litert": ("tensorflow",),
    "tf_saved_model": ("tensorflow", "jax"),
}


@pytest.fixture(scope="module")
def tuned(tune):
    spec = ftk.FineTuneSpec(2, epochs=10, learning_rate=0.01)
    return tune(spec, preprocessing=keras.layers.Rescaling(0.9))


def _onnx(path, pixels):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def _openvino(path, pixels):
    openvino = pytest.importorskip("openvino")
    return openvino.Core().compile_model(path, "CPU")(pixels)[0]


def _litert(path, pixels):
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    lite = runtime.Interpreter(path)
    lite.allocate_tensors()
    scores = []
    for row in pixels:
        lite.set_tensor(lite.get_input_details()[0]["index"], row[None])
        lite.invoke()
        scores.append(lite.get_tensor(lite.get_output_details()[0]["index"])[0])
    return np.stack(scores)


def _tf_saved_model(path, pixels):
    tensorflow = pytest.importorskip("tensorflow")
    artifact = tensorflow.saved_model.load(path)
    return np.asarray(artifact.serve(pixels))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize(
    ("format", "suffix", "run"),
    [
        ("onnx", ".onnx", _onnx),
        ("openvino", ".xml", _openvino),
        ("litert", ".tflite", _litert),
        ("tf_saved_model", "", _tf_saved_model),
    ],
)
def test_another_runtime_predicts_the_same(tuned, sets, tmp_path, format, suffix, run):
    if BACKEND not in FORMATS[format]:
        pytest.skip(f"Keras does not export {format} on {BACKEND}")
    if format == "onnx":
        pytest.importorskip("tf2onnx" if BACKEND == "tensorflow" else "onnxscript")
    if format == "openvino":
        pytest.importorskip("openvino")
    if format == "tf_saved_model":  # written by TensorFlow, whatever the backend
        pytest.importorskip("tensorflow")
    pixels = sets.test.load(size=(32, 32)).astype("float32")
    path = str(tmp_path / f"model{suffix}")
    tuned.model.export(path, format=format, verbose=False)  # before it has predicted anything
    expected = tuned.model.predict(pixels, verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.1  # the images differ in their predictions
    # Keras saves OpenVINO's weights in half precision.
    tolerance = 2e-3 if format == "openvino" else 1e-4
    np.testing.assert_allclose(run(path, pixels), expected, rtol=0, atol=tolerance)
