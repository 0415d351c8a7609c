"""What all tests share: hypothesis profiles, the shared real data, small backbones built once."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Model building dominates and its time varies, so no deadline; the same examples on every run.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.5_224_no_top.h5"


def _shared(path: Path, what: str) -> Path:
    """A path of the real data; its absence skips the test, but fails it where CI asks for it."""
    if not path.exists():
        if os.environ.get("FTK_REQUIRE_SHARED"):
            pytest.fail(f"CI requires {what} at {path}")
        pytest.skip(f"needs {what} at {path}")
    return path


@pytest.fixture(scope="session")
def xrays() -> Path:
    """The real chest X-rays: 3,788 images in 3 classes."""
    return _shared(SHARED / "data" / "COVID-19_Radiography_Dataset", "the real X-rays")


@pytest.fixture(scope="session")
def imagenet_weights() -> Path:
    """The weights file of MobileNetV2 x0.5."""
    return _shared(SHARED / "weights" / WEIGHTS, "the ImageNet weights")


@pytest.fixture
def tiny_images():
    """24 random 32 x 32 images of three classes, the class written into their brightness."""
    import finetune_kit as ftk

    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pixels = rng.integers(0, 80, (24, 32, 32, 3)) + 80 * labels[:, None, None, None]
    return ftk.ImageSet.from_arrays(pixels.astype(np.uint8), labels, ["dark", "gray", "light"])


@pytest.fixture(scope="session")
def mobilenet() -> keras.Model:
    """MobileNetV2 x0.35 with random weights for 32 x 32 images. Tests must not change it."""
    keras.utils.set_random_seed(0)
    return keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3)
    )


@pytest.fixture(scope="session")
def small_backbone() -> keras.Model:
    """Four blocks for 32 x 32 raw pixels, with BatchNorm and Dropout. Tests must not change it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    for i in range(1, 5):
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"block{i}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{i}_conv_bn")(x)
        x = keras.layers.ReLU(name=f"block{i}_conv_relu")(x)
        x = keras.layers.Dropout(0.1, name=f"block{i}_conv_drop")(x)
    return keras.Model(inputs, x, name="small")


@pytest.fixture(autouse=True)
def _shared_backbones_stay(request):
    """A test that freezes what others use fails itself, and not one of the others."""
    shared = {n: request.getfixturevalue(n) for n in ("mobilenet", "small_backbone")
              if n in request.fixturenames}  # fmt: skip
    yield
    for name, backbone in shared.items():
        frozen = [layer.name for layer in backbone.layers if not layer.trainable]
        for layer in backbone.layers:
            layer.trainable = True
        assert not frozen, f"the test froze layers of {name}: clone it with clone_model first"
