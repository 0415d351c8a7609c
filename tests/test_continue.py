"""Training that starts from a trained model: more epochs, more blocks, other classes."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest

import finetune_kit as ftk


@pytest.fixture(scope="module")
def parts(tiny_images) -> tuple[ftk.ImageSet, ftk.ImageSet]:
    train, validation, _ = tiny_images.split((18, 6, 0))
    return train, validation


@pytest.fixture(scope="module")
def tuned(mobilenet, parts) -> ftk.FineTuned:
    head = ftk.classification_head(3, units=(8,))
    return ftk.fine_tune(mobilenet, head, ftk.FineTuneSpec(1, epochs=2), *parts, verbose=0)


@pytest.fixture(scope="module")
def file(tuned, tmp_path_factory):
    return tuned.save(tmp_path_factory.mktemp("saved") / "model.keras")


def weights(model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(w) for w in model.weights]


def probabilities(model, images) -> np.ndarray:
    return ftk.predict(model, images).probabilities


def test_a_result_and_its_file_are_the_same_start(tuned, file, parts):
    spec = ftk.FineTuneSpec(2, epochs=1, learning_rate=1e-3)
    one = ftk.fine_tune(tuned, None, spec, *parts, verbose=0)
    other = ftk.fine_tune(file, None, spec, *parts, verbose=0)
    for a, b in zip(weights(one.model), weights(other.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert one.plan.trainable == other.plan.trainable
    assert one.settings["started_from"] == other.settings["started_from"]


def test_training_starts_from_the_trained_weights(tuned, parts):
    train, _ = parts
    spec = ftk.FineTuneSpec(0, learning_rate=1e-30)  # nothing moves
    again = ftk.fine_tune(tuned, None, spec, train, verbose=0)
    np.testing.assert_allclose(
        probabilities(again, train), probabilities(tuned, train), rtol=1e-4, atol=1e-6
    )
    assert again.class_names == tuned.class_names


def test_the_trained_model_is_not_changed(tuned, parts):
    before = weights(tuned.model)
    ftk.fine_tune(tuned, None, ftk.FineTuneSpec("all", epochs=1), *parts, verbose=0)
    for a, b in zip(before, weights(tuned.model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("level", ["stage", "block", "layer"])
def test_a_trained_backbone_has_the_blocks_of_the_first_one(tuned, mobilenet, parts, level):
    spec = ftk.FineTuneSpec(2, level=level)
    again = ftk.fine_tune(tuned, None, spec, *parts, verbose=0)
    first = spec.plan(mobilenet)
    assert again.plan.backbone == first.backbone
    assert [b.name for b in again.plan.blocks] == [b.name for b in first.blocks]
    assert again.plan.trainable_variables == first.trainable_variables


def test_a_new_head_serves_other_classes(file, tiny_images, parts):
    two = ftk.ImageSet.from_arrays(tiny_images.load(size=(32, 32)), ["no", "yes"] * 12)
    again = ftk.fine_tune(file, ftk.classification_head(2), ftk.FineTuneSpec(), two, verbose=0)
    assert again.class_names == ("no", "yes")
    assert again.settings["started_from"]["class_names"] == ["dark", "gray", "light"]
    assert probabilities(again, two).shape == (24, 2)


def test_a_continued_model_is_saved_and_continued_again(tuned, parts, tmp_path):
    again = ftk.fine_tune(tuned, None, ftk.FineTuneSpec(1), *parts, verbose=0)
    path = again.save(tmp_path / "again.keras")
    third = ftk.fine_tune(path, None, ftk.FineTuneSpec(1), *parts, verbose=0)
    assert third.plan.backbone == tuned.plan.backbone
    np.testing.assert_allclose(
        probabilities(path, parts[1]), probabilities(again, parts[1]), atol=1e-6
    )


def test_a_sweep_starts_from_a_file(file, parts):
    specs = [ftk.FineTuneSpec(0), ftk.FineTuneSpec(1)]
    runs = ftk.sweep(file, None, specs, *parts, verbose=0)
    assert [run.plan.trainable.count(True) for run in runs] == [0, 1]
    alone = ftk.fine_tune(file, None, specs[1], *parts, verbose=0)
    for a, b in zip(weights(runs[1].model), weights(alone.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_continued_run_resumes(file, parts, tmp_path):
    spec = ftk.FineTuneSpec(1, epochs=2)
    one = ftk.fine_tune(file, None, spec, *parts, run_dir=tmp_path / "run", verbose=0)
    other = ftk.fine_tune(file, None, spec, *parts, run_dir=tmp_path / "run", verbose=0)
    for a, b in zip(weights(one.model), weights(other.model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", ["EfficientNetB0", "ResNet50", "MobileNetV3Small"])
@pytest.mark.slow
def test_any_preprocessing_stays_part_of_the_model(name, multi_label, tiny_images):
    backbone = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    labels = np.eye(3, dtype=int)[tiny_images.labels] if multi_label else tiny_images.labels
    if multi_label:
        labels[0] = 1
    images = ftk.ImageSet.from_arrays(tiny_images.load(size=(32, 32)), labels, ["a", "b", "c"])
    head = ftk.classification_head(3, multi_label=multi_label)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = ftk.fine_tune(backbone, head, ftk.FineTuneSpec(), images, verbose=0)
        again = ftk.fine_tune(first, None, ftk.FineTuneSpec(learning_rate=1e-30), images, verbose=0)
    np.testing.assert_allclose(
        probabilities(again, images), probabilities(first, images), rtol=1e-3, atol=1e-5
    )


def test_validation_images_that_the_model_was_trained_on_are_reported(tuned, parts):
    train, validation = parts
    with pytest.warns(UserWarning, match="trained on 18 images of `validation`"):
        ftk.fine_tune(tuned, None, ftk.FineTuneSpec(), validation, train, verbose=0)


@pytest.mark.parametrize("start", ["result", "file"])
def test_images_of_an_earlier_training_are_reported(tuned, file, parts, start, tmp_path):
    train, validation = parts
    model = tuned if start == "result" else file
    spec = ftk.FineTuneSpec(0)
    with pytest.warns(UserWarning, match="trained on 18 images of `validation`"):
        ftk.fine_tune(model, None, spec, validation, train, verbose=0)
    again = ftk.fine_tune(model, None, spec, validation, verbose=0)
    text = "18 of these images are images of an earlier training"
    assert text in " ".join(ftk.evaluate(again, train).about["cautions"]).replace("All", "18 of")
    saved = ftk.evaluate(again.save(tmp_path / "x.keras"), train + validation)
    assert saved.about["data"]["test_images_in_earlier_training"] == 24
    assert any("training images of the model" in text for text in saved.about["cautions"])


def test_a_file_is_evaluated(tuned, file, parts):
    report, expected = ftk.evaluate(file, parts[1]), ftk.evaluate(tuned, parts[1])
    np.testing.assert_allclose(report.accuracy, expected.accuracy)
    assert report.about["training"]["specs"] == expected.about["training"]["specs"]


def test_other_classes_without_a_new_head_are_rejected(tuned, tiny_images, rejected):
    two = ftk.ImageSet.from_arrays(tiny_images.load(size=(32, 32)), ["no", "yes"] * 12)
    with rejected(r"classification_head\(2\).*predicts \['dark', 'gray', 'light'\]"):
        ftk.fine_tune(tuned, None, ftk.FineTuneSpec(), two)


def test_preprocessing_of_a_trained_model_is_rejected(tuned, parts, rejected):
    with rejected("which takes raw pixels"):
        ftk.fine_tune(tuned, None, ftk.FineTuneSpec(), *parts, preprocessing=None)


def test_a_backbone_without_a_head_is_rejected(mobilenet, parts, rejected):
    with rejected("`head` must be"):
        ftk.fine_tune(mobilenet, None, ftk.FineTuneSpec(), *parts)


def test_files_that_hold_no_result_are_rejected(mobilenet, parts, tmp_path):
    mobilenet.save(tmp_path / "plain.keras")
    (tmp_path / "broken.keras").write_bytes(b"no archive")
    cases = {
        "plain.keras": "without the facts",
        "broken.keras": "zip archive",
        "no.keras": "does not exist",
    }
    for name, text in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=f"`backbone` must.*{text}"):
            ftk.fine_tune(tmp_path / name, None, ftk.FineTuneSpec(), *parts)
