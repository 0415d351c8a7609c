"""Fixtures for all tests: tiny images and backbones, built once a session, and the real data."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import finetune_kit as ftk

# Model building dominates and its time varies, so no deadline; the same examples on every run.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")

# Their tests use no backend: one run of them, on TensorFlow, is enough.
WITHOUT_BACKEND = {
    f"test_{name}.py"
    for name in (
        "compare", "decoding", "duplicates", "floors", "images", "manifest",
        "page", "reading", "report", "split", "store", "user_project",
    )
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose result does not depend on the backend on all backends but one."""
    if keras.backend.backend() != "tensorflow":
        skip = pytest.mark.skip(reason="does not depend on the backend, so once is enough")
        for item in items:
            if item.path.name in WITHOUT_BACKEND or item.get_closest_marker("once"):
                item.add_marker(skip)


SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.5_224_no_top.h5"


def _shared(path: Path, what: str) -> Path:
    """Return a path of the real data. Without it the test is skipped, or fails where CI runs."""
    if not path.exists():
        if os.environ.get("FTK_REQUIRE_SHARED"):
            pytest.fail(f"CI requires {what} at {path}")
        pytest.skip(f"needs {what} at {path}")
    return path


@pytest.fixture(scope="session")
def xrays() -> Path:
    """The folder of real chest X-rays: 3,788 images in 3 classes."""
    return _shared(SHARED / "data" / "COVID-19_Radiography_Dataset", "the real X-rays")


@pytest.fixture(scope="session")
def imagenet_weights() -> Path:
    """The file with the ImageNet weights of MobileNetV2 x0.5."""
    return _shared(SHARED / "weights" / WEIGHTS, "the ImageNet weights")


@pytest.fixture(scope="session")
def tiny_images() -> ftk.ImageSet:
    """24 random 32 x 32 images of three classes, which differ in brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pixels = rng.integers(0, 80, (24, 32, 32, 3)) + 80 * labels[:, None, None, None]
    return ftk.ImageSet.from_arrays(pixels.astype(np.uint8), labels, ["dark", "gray", "light"])


class Sets(NamedTuple):
    """The tiny images in three sets. Each of their batches of 6 is full."""

    train: ftk.ImageSet
    validation: ftk.ImageSet
    test: ftk.ImageSet


@pytest.fixture(scope="session")
def sets(tiny_images) -> Sets:
    """12 training, 6 validation and 6 test images."""
    return Sets(*(tiny_images.take(range(*ends)) for ends in ((0, 12), (12, 18), (18, 24))))


@pytest.fixture(scope="session")
def mobilenet() -> keras.Model:
    """MobileNetV2 x0.35 with random weights for 32 x 32 images. Tests must not change it."""
    keras.utils.set_random_seed(0)
    return keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3)
    )


@pytest.fixture(scope="session")
def build_small() -> Callable[[], keras.Model]:
    """Build a backbone of four blocks for 32 x 32 raw pixels, with BatchNorm and Dropout."""

    def build() -> keras.Model:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
        for i in range(1, 5):
            x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"block{i}_conv")(x)
            x = keras.layers.BatchNormalization(name=f"block{i}_conv_bn")(x)
            x = keras.layers.ReLU(name=f"block{i}_conv_relu")(x)
            x = keras.layers.Dropout(0.1, name=f"block{i}_conv_drop")(x)
        return keras.Model(inputs, x, name="small")

    return build


@pytest.fixture(scope="session")
def small_backbone(build_small) -> keras.Model:
    """The backbone of `build_small`, built once. Tests must not change it."""
    return build_small()


@pytest.fixture(scope="session")
def tune(small_backbone, sets) -> Callable[..., ftk.FineTuned]:
    """Fine-tune the small backbone on the tiny images; takes the arguments of `fine_tune`.

    All batches have the same shape, so that one step is compiled, and not one for each shape.
    """

    head = ftk.classification_head(3, units=(4,), dropout=0.3)

    def call(spec=None, **options):
        defaults = {
            "backbone": small_backbone,
            "head": head,
            "train": sets.train,
            "validation": sets.validation,
            "batch_size": 6,
            "preprocessing": None,
            "verbose": 0,
        }
        spec = ftk.FineTuneSpec(1, epochs=2) if spec is None else spec
        return ftk.fine_tune(spec=spec, **{**defaults, **options})

    return call


@pytest.fixture
def rejected(tmp_path) -> Callable[..., AbstractContextManager[None]]:
    """Check that a call fails before it draws a random number or writes a file."""

    @contextmanager
    def check(match: str, error: type[Exception] = ValueError) -> Iterator[None]:
        keras.utils.set_random_seed(7)
        before, files = _random_states(), _contents(tmp_path)
        with pytest.raises(error, match=match):
            yield
        assert _random_states() == before, "the call changed a global random state"
        drawn = keras.ops.convert_to_numpy(keras.random.uniform((4,))).tolist()
        keras.utils.set_random_seed(7)
        first = keras.ops.convert_to_numpy(keras.random.uniform((4,))).tolist()
        assert drawn == first, "the call drew random numbers with Keras"
        assert _contents(tmp_path) == files, "the call wrote files"

    return check


def _random_states() -> list[Any]:
    states = [random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist(),
              np.random.get_state(legacy=False)["state"]["pos"]]  # fmt: skip
    if keras.backend.backend() == "torch":
        import torch

        states.append(torch.get_rng_state().tolist())
    return states


def _contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def _shared_backbones_stay(request):
    """Fail the test that froze a shared backbone, and not the next one that uses it."""
    shared = {n: request.getfixturevalue(n) for n in ("mobilenet", "small_backbone")
              if n in request.fixturenames}  # fmt: skip
    yield
    for name, backbone in shared.items():
        frozen = [layer.name for layer in backbone.layers if not layer.trainable]
        for layer in backbone.layers:
            layer.trainable = True
        assert not frozen, f"the test froze layers of {name}: clone it with clone_model first"
