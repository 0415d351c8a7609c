"""All public values are pickled and copied, and compare as documented."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import finetune_kit as ftk


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """One value of each public class, from one run."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    images = ftk.ImageSet.from_arrays(pixels, ["a", "b"] * 6, groups=[*"aabbccddeeff"])
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, strides=4, name="first")(inputs)
    backbone = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="second")(x), name="small")
    scale = keras.layers.Rescaling(1 / 255)
    tuned = ftk.fine_tune(
        backbone, ftk.classification_head(2), ftk.FineTuneSpec(1), images, preprocessing=scale,
        verbose=0,
    )  # fmt: skip
    report = ftk.Report.from_scores([0, 1, 1, 0], [0.2, 0.9, 0.4, 0.7], resamples=10)
    return {
        "ImageSet": images,
        "Split": ftk.stratified_split([0, 1] * 10),
        "StratifiedFolds": ftk.StratifiedFolds(3),
        "Duplicates": ftk.find_duplicates(images),
        "Block": ftk.conv_blocks(backbone)[0],
        "FineTuneSpec": ftk.FineTuneSpec("all", epochs=2),
        "FreezePlan": tuned.plan,
        "Augmentation": ftk.Augmentation(keras.layers.RandomFlip(seed=0), views=2),
        "FeatureCache": ftk.FeatureCache("features"),
        "FineTuned": tuned,
        "Recommendation": ftk.recommend(
            backbone,
            images.take(range(8)),
            images.take(range(8, 12)),
            preprocessing=scale,
            verbose=0,
        ),
        "Report": report,
        "Predictions": ftk.predict(tuned, pixels),
        "Estimate": report.metrics["accuracy"],
    }


# What must stay the same where values compare by identity.
CONTENTS: dict[str, Callable[[Any], Any]] = {
    "ImageSet": lambda images: [
        images.load(size=(8, 8)).tolist(),
        images.labels.tolist(),
        images.groups.tolist(),
        images.digests(),
    ],
    "Split": lambda split: [part.tolist() for part in (split.train, split.validation, split.test)],
    "Duplicates": repr,
    "Augmentation": lambda augmentation: [
        keras.saving.serialize_keras_object(augmentation.layer),
        augmentation.views,
    ],
    "FineTuned": lambda tuned: [
        tuned.model.predict(tuned.train.load(size=(16, 16)), verbose=0).tolist(),
        tuned.history,
        tuned.settings,
        tuned.plans,
        repr(tuned),
    ],
    "Recommendation": lambda found: [
        [weight.tolist() for weight in found.head.get_weights()],
        found.specs,
        str(found),
        found.learning_curve().reason,
    ],
    "Predictions": lambda found: [list(found), found.probabilities.tolist()],
    "Report": lambda report: [report.to_dict(), report.labels.tolist(), report.scores.tolist()],
}


def same(name: str, value: Any, other: Any) -> bool:
    if name not in CONTENTS:
        return value == other and hash(value) == hash(other)
    return CONTENTS[name](value) == CONTENTS[name](other)


def test_there_is_a_value_of_each_public_class(values):
    classes = {name for name in ftk.__all__ if inspect.isclass(getattr(ftk, name))}
    assert classes == set(values)


@pytest.mark.parametrize(
    "copied", [lambda v: pickle.loads(pickle.dumps(v)), copy.copy, copy.deepcopy]
)
def test_each_public_value_is_pickled_and_copied(values, copied):
    for name, value in values.items():
        assert same(name, value, copied(value)), name
        assert isinstance(value != 1, bool), name


@pytest.mark.once
@pytest.mark.slow
def test_another_process_reads_the_pickles(values, tmp_path):
    (tmp_path / "values.pkl").write_bytes(pickle.dumps(values))
    code = (
        "import pickle, sys; values = pickle.load(open(sys.argv[1], 'rb')); "
        "print(*values); t = values['FineTuned']; "
        "print(t.model.predict(t.train.load(size=(16, 16)), verbose=0).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "values.pkl")],
        capture_output=True,
        text=True,
        check=True,
    )
    names, predictions = done.stdout.strip().splitlines()
    assert names.split() == list(values)
    expected = CONTENTS["FineTuned"](values["FineTuned"])[0]
    np.testing.assert_allclose(json.loads(predictions), expected, atol=1e-6)
