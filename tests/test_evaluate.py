"""Evaluation of models: predictions, provenance, cautions, and the images that a report shows."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

import finetune_kit as ftk
from finetune_kit._features.inputs import Decode
from finetune_kit._report import examples as _examples
from finetune_kit._report import report as _report
from finetune_kit._report.examples import most_telling


class Scores(keras.layers.Layer):
    """Returns scores that are written into the pixels of the first row."""

    def call(self, x):
        corner = keras.ops.cast(x[:, 0, :3, 0], "float32")
        return corner / keras.ops.sum(corner, axis=1, keepdims=True)


def evaluated(labels, scores, **options) -> ftk.Report:
    """Evaluate a model that returns these scores (whole numbers)."""
    pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
    pixels[:, 0, :3] = np.asarray(scores)[:, :, None]
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, Scores()(inputs))
    return ftk.evaluate(model, ftk.ImageSet.from_arrays(pixels, labels, list("abc")), **options)


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    """Reports are saved without pictures, which take most of the time; `test_page` draws them."""
    monkeypatch.setattr(_report, "available", lambda path: False)


@pytest.fixture(scope="module")
def images() -> ftk.ImageSet:
    """24 random images of three classes; the class decides the brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pixels = rng.integers(0, 80, (24, 32, 32, 3)) + 80 * labels[:, None, None, None]
    return ftk.ImageSet.from_arrays(pixels.astype(np.uint8), labels, ["dark", "gray", "light"])


@pytest.fixture(scope="module")
def sets(images) -> tuple[ftk.ImageSet, ftk.ImageSet, ftk.ImageSet]:
    """Training, validation and test images: 12, 6 and 6."""
    return tuple(images.take(np.arange(*ends)) for ends in ((12,), (12, 18), (18, 24)))


@pytest.fixture(scope="module")
def tuned(small_backbone, sets) -> ftk.FineTuned:
    specs = [ftk.FineTuneSpec(epochs=2), ftk.FineTuneSpec(1)]
    train, validation, _ = sets
    head = ftk.classification_head(3)
    return ftk.fine_tune(small_backbone, head, specs, train, validation, verbose=0)


def test_the_scores_are_those_of_the_model(tuned, images):
    report = ftk.evaluate(tuned, images, batch_size=5)
    expected = tuned.model.predict(images.load(size=(32, 32)), verbose=0)
    np.testing.assert_allclose(report.scores, expected, atol=1e-6)
    assert report.labels.tolist() == images.labels.tolist()
    assert report.samples == images.digests()
    assert report.class_names == images.class_names


def test_kept_features_give_the_same_scores_and_are_computed_once(
    tuned, sets, tmp_path, monkeypatch
):
    expected = ftk.evaluate(tuned, sets[2]).scores
    features, file = tmp_path / "features", tuned.save(tmp_path / "model.keras")
    first = ftk.evaluate(tuned, sets[2], features=features)
    np.testing.assert_allclose(first.scores, expected, rtol=1e-5, atol=1e-6)
    backend = keras.backend.backend()
    assert first.about["model"]["features"] == {"dtype": "float32", "backend": backend}
    (entry,) = ftk.FeatureCache(features).entries()
    assert entry.images == len(sets[2])
    monkeypatch.setattr(Decode, "load", None)
    for model in (tuned, file):
        again = ftk.evaluate(model, sets[2], features=features, batch_size=4)
        np.testing.assert_allclose(again.scores, expected, rtol=1e-5, atol=1e-6)


def test_test_features_are_those_of_the_training(small_backbone, sets, tmp_path, monkeypatch):
    """What was frozen in all phases: the first phase trains more than the last one."""
    specs = [ftk.FineTuneSpec(1), ftk.FineTuneSpec()]
    head = ftk.classification_head(3)
    run = ftk.fine_tune(small_backbone, head, specs, sets[0], features=tmp_path, verbose=0)
    expected = ftk.evaluate(run, sets[0]).scores
    monkeypatch.setattr(Decode, "load", None)
    found = ftk.evaluate(run, sets[0], features=tmp_path).scores
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_with_mirror_images_the_scores_are_means(tuned, images, tmp_path):
    report = ftk.evaluate(tuned, images, flip=True, batch_size=5)
    pixels = images.load(size=(32, 32))
    pair = [tuned.model.predict(x, verbose=0) for x in (pixels, pixels[:, :, ::-1])]
    assert np.abs(pair[0] - pair[1]).max() > 1e-3
    np.testing.assert_allclose(report.scores, (pair[0] + pair[1]) / 2, atol=1e-6)
    assert report.about["model"]["flip"] is True
    plain, found = ftk.evaluate(tuned, images), ftk.predict(tuned, images, flip=True)
    assert "flip" not in plain.about["model"]
    np.testing.assert_allclose(found.probabilities, report.scores, atol=1e-6)
    # All that is printed and saved says so, and only then.
    report.save(tmp_path / "flip")
    plain.save(tmp_path / "plain")
    pages = [
        [(tmp_path / kind / name).read_text("utf-8") for kind in ("flip", "plain")]
        for name in ("report.txt", "report.html", "model_card.md")
    ]
    texts = [(repr(found), repr(ftk.predict(tuned, images))), (repr(report), repr(plain))]
    for flipped, other in [*pages, *texts]:
        assert "mirror image" in flipped
        assert "mirror image" not in other


def test_a_single_sigmoid_gives_two_classes(small_backbone, images):
    binary = replace(images, labels=(images.labels > 0).astype(int), class_names=("dark", "other"))
    head = ftk.classification_head(1)
    model = ftk.FineTuneSpec().build(keras.models.clone_model(small_backbone), head)
    report = ftk.evaluate(model, binary, heat_maps=2)
    expected = model.predict(images.load(size=(32, 32)), verbose=0)[:, 0]
    np.testing.assert_allclose(report.scores[:, 1], expected, atol=1e-6)
    np.testing.assert_allclose(report.scores.sum(axis=1), 1)
    assert sum(example.heat_map is not None for example in report.examples) == 2


# Provenance and cautions.


def test_a_report_says_how_the_model_was_trained(tuned, sets):
    report = ftk.evaluate(tuned, sets[2])
    assert report.plans == tuned.plans
    assert report.history == {name: list(values) for name, values in tuned.history.items()}
    assert report.history["phase"] == [1, 1, 2]
    assert report.kept_epoch == tuned.settings["kept_epoch"]
    about = report.about
    assert about["training"]["specs"] == [ftk.FineTuneSpec(epochs=2).to_dict(),
                                          ftk.FineTuneSpec(1).to_dict()]  # fmt: skip
    assert about["data"]["test_images"] == about["data"]["validation_images"] == 6
    assert about["data"]["training_images"] == 12
    assert about["environment"]["keras"] == keras.__version__
    assert report.title == "small on 6 images"


def test_a_plain_model_has_its_learning_curves(tuned, sets):
    report = ftk.evaluate(tuned.model, sets[2])
    assert report.history["loss"] == tuned.history["loss"]
    assert report.plans == ()
    assert "training" not in report.about


def test_images_that_the_model_has_not_seen_cause_no_caution(tuned, sets):
    assert ftk.evaluate(tuned, sets[2]).about["cautions"] == []


def test_training_images_are_found_by_their_content(tuned, images):
    """A copy of a training image under another name is one."""
    pixels = images.load([20, 3, 21], (32, 32))
    copied = ftk.ImageSet.from_arrays(pixels, [2, 0, 0], images.class_names)
    report = ftk.evaluate(tuned, copied)
    assert report.about["data"]["test_images_in_training_set"] == 1
    assert report.about["cautions"][0] == (
        "1 of these images is a training image, so the metrics are too optimistic."
    )


def test_training_images_are_a_caution_wherever_the_metrics_are_shown(tuned, sets, tmp_path):
    report = ftk.evaluate(tuned, sets[0])
    first = "12 of these images are training images, so the metrics are too optimistic."
    assert f"\nCaution: {first}\n" in str(report)
    comparison = ftk.compare({"A": report, "B": report})
    assert comparison.cautions() == [f"A, B: {first}"]
    report.save(tmp_path)
    comparison.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".html", ".md")}
    assert len(names) == 5
    for name in names:
        assert first in (tmp_path / name).read_text(encoding="utf-8"), name


def test_validation_images_are_a_caution(tuned, sets):
    report = ftk.evaluate(tuned, sets[1])
    assert report.about["data"]["test_images_in_validation_set"] == 6
    assert report.about["cautions"][0].startswith("6 of these images are validation images. If")


def test_copies_within_the_images_are_a_caution(tuned, sets):
    report = ftk.evaluate(tuned, sets[2].take([0, 1, 2, 3, 4, 5, 0, 1]))
    assert report.about["data"]["copies_among_test_images"] == 2
    assert report.about["cautions"][0] == (
        "2 of these images are copies of other images in this set, so the intervals are too narrow."
    )


def duplicates_of(images: ftk.ImageSet, groups) -> ftk.Duplicates:
    """What `find_duplicates` returns if it finds these groups."""
    samples = images.digests()
    return ftk.Duplicates(
        clusters=(), groups=np.asarray(groups).astype(str), crossing=(), pairs=(), samples=samples
    )


def test_near_duplicates_of_training_images_are_a_caution(tuned, sets, images):
    groups = np.arange(24)
    groups[[20, 22]] = groups[3]  # two test images are near duplicates of a training image
    report = ftk.evaluate(tuned, sets[2], duplicates=duplicates_of(images, groups))
    assert report.about["data"]["test_images_grouped_with_training_images"] == 2
    assert report.about["cautions"][0].startswith(
        "2 of these images are in one group (near duplicates"
    )


def test_duplicates_must_cover_training_and_test_images(tuned, sets, images):
    partial = duplicates_of(images.take(np.arange(10, 20)), np.arange(10))
    says = "4 of 6 evaluated images missing and 10 of 12 training images missing"
    with pytest.raises(ValueError, match=f"`duplicates` must cover.*Received: {says}"):
        ftk.evaluate(tuned, sets[2], duplicates=partial)
    with pytest.raises(ValueError, match="what find_duplicates returned"):
        ftk.evaluate(tuned, sets[2], duplicates=[(3, 20)])


def test_the_report_names_the_manifest(tuned, sets):
    report = ftk.evaluate(tuned, replace(sets[2], manifest="ab" * 32))
    assert report.manifest == report.about["data"]["manifest"] == "ab" * 32


def test_the_report_has_the_learning_rates_of_spec_and_optimizer(small_backbone, sets):
    spec = ftk.FineTuneSpec(learning_rate=1e-5)
    for optimizer, rate in ((None, None), (keras.optimizers.SGD(0.25), 0.25)):
        run = ftk.fine_tune(small_backbone, ftk.classification_head(3), spec, sets[0],
                            optimizer=optimizer, verbose=0)  # fmt: skip
        training = ftk.evaluate(run, sets[2]).about["training"]
        assert training["specs"][0]["learning_rate"] == 1e-5
        assert training["optimizer"].get("learning_rate") == rate


# The images that a report shows.


def test_examples_are_the_most_confident_images_of_each_cell(tuned, images):
    report = ftk.evaluate(tuned, images, examples=2)
    shown: dict[tuple[int, int], list[float]] = {}
    for example in report.examples:
        i = int(example.name.split()[1])
        assert example.cell == (report.labels[i], report.predicted[i])
        assert example.probability == report.scores[i].max()
        shown.setdefault(example.cell, []).append(example.probability)
    for row, column in np.argwhere(report.confusion_matrix):
        inside = (report.labels == row) & (report.predicted == column)
        assert shown[row, column] == sorted(report.scores.max(axis=1)[inside])[::-1][:2]
    assert ftk.evaluate(tuned, images, examples=0).examples == ()


def test_examples_of_multi_label_images_belong_to_one_label(small_backbone, images, tmp_path):
    several = replace(images, labels=np.eye(3, dtype=int)[images.labels])
    head = ftk.classification_head(3, multi_label=True)
    model = ftk.FineTuneSpec().build(keras.models.clone_model(small_backbone), head)
    report = ftk.evaluate(model, several, heat_maps=2)
    assert report.confusion_matrix.shape == (3, 2, 2)
    names = ("true positive", "false negative", "false positive", "true negative")
    assert report.confusion_table().columns == names
    assert {example.cell[0] for example in report.examples} == {0, 1, 2}
    for example in report.examples:
        label, outcome = example.cell
        i = int(example.name.split()[1])
        assert (outcome < 2) == (several.labels[i, label] == 1)
        wrong = report.predicted[i, label] != several.labels[i, label]
        assert report.is_misclassified(example) == wrong
        assert example.probability >= 0.5
    page = (report.save(tmp_path) / "report.html").read_text()
    assert "false negative" in page


def test_heat_maps_go_to_misclassified_images_first():
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2]
    report = evaluated(labels, np.eye(3)[[1, 1, 2, 0, 1, 2, 0, 2, 0]] * 9 + 1)
    chosen = most_telling(report, report.examples, 6)
    wrong = [report.is_misclassified(report.examples[i]) for i in chosen]
    assert wrong == [True, True, True, False, False, False]
    cells = [report.examples[i].cell for i in chosen[3:]]
    assert sorted(cells) == [(0, 0), (1, 1), (2, 2)]  # one of each class


def test_a_model_without_a_feature_map_has_no_heat_maps(caplog):
    report = evaluated([0, 1, 2], np.eye(3) * 9 + 1, heat_maps=3)
    assert len(report.examples) == 3
    assert not any(example.heat_map for example in report.examples)
    assert "no heat maps" in caplog.text


def test_a_report_does_not_reveal_the_folders_of_the_machine(tuned, images, tmp_path):
    scans = tmp_path / "scans"
    for i in range(4):
        folder = scans / ("dark", "gray")[i % 2]
        folder.mkdir(exist_ok=True, parents=True)
        Image.fromarray(images.load([i], (32, 32))[0]).save(folder / f"{i}.png")
    read = replace(ftk.read_image_folder(scans), class_names=("dark", "gray", "light"))
    report = ftk.evaluate(tuned, read)
    names = {example.name for example in report.examples}
    assert names == {"dark/0.png", "gray/1.png", "dark/2.png", "gray/3.png"}
    assert report.title == "small on scans"
    assert str(tmp_path) not in (report.save(tmp_path / "report") / "report.html").read_text()


# Arguments and progress.


def test_arguments_are_checked_before_anything_is_computed(tuned, sets, monkeypatch):
    inputs = keras.Input((32, 32, 3))
    other = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(inputs)))
    renamed = replace(sets[2], class_names=("light", "gray", "dark"))
    monkeypatch.setattr(keras.Model, "predict", lambda *_, **__: pytest.fail("computed"))
    for model, images, options, message in (
        (other, sets[2], {}, r"`model` must .*\(None, 5\)"),
        (3, sets[2], {}, "must be the result of fine_tune, the path of a saved model"),
        (sets[2], tuned, {}, r"evaluate\(model, images\). Received: an ImageSet as `model`"),
        (tuned, "folder", {}, "`images` must be of type ImageSet"),
        (tuned, sets[2].take([]), {}, "at least one image"),
        (tuned, renamed, {}, r"\['dark', 'gray', 'light'\].*\['light', 'gray', 'dark'\]"),
        (tuned, sets[2], {"batch_size": 0}, "`batch_size` must be"),
        (tuned, sets[2], {"examples": -1}, "`examples` must be"),
        (tuned, sets[2], {"heat_maps": -1}, "`heat_maps` must be"),
        (tuned, sets[2], {"resamples": 0}, "`resamples` must be"),
        (tuned, sets[2], {"seed": -1}, "`seed` must be"),
        (tuned, sets[2], {"flip": "left"}, "`flip` must be one of"),
        (tuned, sets[2], {"flip": True, "features": "never"}, "`flip` must be False where"),
        (tuned.model, sets[2], {"features": "never"}, "needs a model whose frozen part is known"),
        (tuned, sets[2], {"features": 3}, "`features` must be"),
        (tuned, sets[2], {"verbose": "loud"}, "`verbose` must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ftk.evaluate(model, images, **options)


def test_a_misspelled_argument_gets_a_hint(tuned, sets):
    with pytest.raises(TypeError, match="no argument `heatmaps`; did you mean `heat_maps`"):
        ftk.evaluate(tuned, sets[2], heatmaps=3)


def test_settings_that_equal_the_defaults_are_not_on_the_page(tuned, sets, tmp_path):
    report = ftk.evaluate(tuned, sets[2])
    page = report.save(tmp_path / "page.html").read_text()
    assert "<dt>optimizer</dt><dd>Adam</dd>" in page
    assert "trainable_blocks=1, batch_norm=frozen, epochs=1, learning_rate=0.001<" in page
    assert report.to_dict()["about"]["training"]["optimizer"]["beta_1"] == 0.9


def test_a_heat_map_without_a_region_is_empty(tuned, sets, monkeypatch):
    monkeypatch.setattr(_examples, "grad_cam", lambda model, pixels, _: np.zeros(pixels.shape[:3]))
    report = ftk.evaluate(tuned, sets[2], heat_maps=1)
    assert [e.heat_map for e in report.examples if e.heat_map is not None] == [b""]


def test_progress_says_what_is_computed(tuned, sets, capsys):
    ftk.evaluate(tuned, sets[2], heat_maps=2)
    assert capsys.readouterr().out == ""
    ftk.evaluate(tuned, sets[2], heat_maps=2, verbose=2)
    printed = capsys.readouterr().out
    assert printed.startswith("Predicting 6 images\n")
    assert "Heat maps of 2 images\n" in printed


def test_the_folder_names_the_data_whether_its_path_is_relative_or_not(
    tuned, images, tmp_path, monkeypatch
):
    for i, (pixels, label) in enumerate(zip(images.load(), images.labels, strict=True)):
        (tmp_path / "scans" / images.class_names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "scans" / images.class_names[label] / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    for path in ("scans", tmp_path / "scans"):
        report = ftk.evaluate(tuned, ftk.read_image_folder(path))
        assert report.about["data"]["name"] == "scans"
