"""Cross-validation: each image once, by a model that was not trained on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

import finetune_kit as ftk
from finetune_kit._features import entry

SPEC = ftk.FineTuneSpec(0, epochs=3, learning_rate=0.05)


@pytest.fixture(scope="module")
def images() -> ftk.ImageSet:
    """30 noisy images of three classes, in 15 groups of two."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 10)
    tones = 60 * labels[:, None, None, None] + 30
    pixels = (tones + rng.integers(-30, 90, (30, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    return ftk.ImageSet.from_arrays(pixels, labels, list("abc"), groups=np.arange(30) // 2)


@pytest.fixture(scope="module")
def run(small_backbone, images):
    def call(images=images, head=None, **options):
        options = {"preprocessing": None, "batch_size": 6, "verbose": 0, "k": 5, **options}
        head = ftk.classification_head(3) if head is None else head
        return ftk.cross_validate(small_backbone, head, SPEC, images, **options)

    return call


@pytest.fixture(scope="module")
def done(run, tmp_path_factory) -> tuple[ftk.Report, Path, list[int]]:
    """A report, the folder of its runs, and how many rows each pass computed."""
    rows: list[int] = []
    original = entry.Entry.fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            entry.Entry,
            "fill",
            lambda self, *a: rows.append(len(self.missing)) or original(self, *a),
        )
        folder = tmp_path_factory.mktemp("folds")
        return run(run_dir=folder), folder, rows


@pytest.fixture
def report(done) -> ftk.Report:
    return done[0]


def test_each_image_is_predicted_by_the_model_of_its_fold(report, small_backbone, images):
    assert report.samples == images.digests()
    assert np.array_equal(report.labels, images.labels)
    folds = ftk.stratified_folds(images.labels, 5, groups=images.groups)
    for number, fold in list(enumerate(folds, start=1))[1:3]:
        tuned = ftk.fine_tune(
            small_backbone, ftk.classification_head(3), SPEC, images.take(fold.train),
            images.take(fold.validation), preprocessing=None, batch_size=6, verbose=0,
        )  # fmt: skip
        expected = ftk.evaluate(tuned, images.take(fold.test), batch_size=6)
        np.testing.assert_allclose(report.scores[fold.test], expected.scores, rtol=1e-4, atol=1e-5)
        about = report.about["folds"][f"fold {number}"]
        assert about["accuracy"] == expected.accuracy
        assert about["kept_epoch"] == tuned.settings["kept_epoch"]


def test_each_fold_has_a_folder_from_which_it_resumes(done, run):
    report, folder, _ = done
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3", "4", "5"]
    again = run(run_dir=folder)  # trains nothing
    np.testing.assert_array_equal(again.scores, report.scores)


def test_the_images_of_a_group_are_in_one_fold(run, images):
    with pytest.raises(ValueError, match="Each class must have at least 5 groups"):
        run(groups=images.labels)


def test_the_folds_share_one_pass(done):
    assert sum(done[2]) == 30


def test_the_intervals_come_from_the_folds(report):
    """The corrected resampled t-test, written out."""
    values = np.array([fold["accuracy"] for fold in report.about["folds"].values()])
    estimate = report.metrics["accuracy"]
    assert estimate.value == pytest.approx((report.predicted == report.labels).mean())
    half = student.ppf(0.975, 4) * np.sqrt((1 / 5 + 6 / 18) * values.var(ddof=1))
    if half:
        assert estimate.low == pytest.approx(max(0, estimate.value - half))
        assert estimate.high == pytest.approx(min(1, estimate.value + half))
    else:
        assert not estimate.has_interval
    assert {e.method for e in report.metrics.values()} == {"corrected resampled t over 5 folds"}
    for name, each in report.metrics.items():
        assert not each.has_interval or each.low <= each.value <= each.high, name


def test_the_report_can_be_read_and_saved(report, tmp_path):
    assert "5-fold cross-validation" in report.about["model"]["name"]
    assert any("predictions of 5 models" in caution for caution in report.cautions())
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "5-fold cross-validation" in page
    assert "fold 3" in page


def test_two_classes_with_one_probability_and_multi_label_images(run, images):
    two = images.take(np.arange(20))
    two = ftk.ImageSet.from_arrays(two.load(size=(32, 32)), two.labels, ["a", "b"])
    report = run(two, head=ftk.classification_head(1), k=3)
    assert report.scores.shape == (20, 2)
    several = np.stack([images.labels == 0, images.labels > 0, images.labels == 2], 1).astype(int)
    several = ftk.ImageSet.from_arrays(images.load(size=(32, 32)), several, list("abc"))
    head = ftk.classification_head(3, multi_label=True)
    assert run(several, head=head, k=3).labels.shape == (30, 3)


def test_a_head_with_weights_is_reported(run, images):
    """It may have been fitted to the images, as that of `recommend`."""
    head = ftk.classification_head(3)
    head.build((None, 2, 2, 8))
    with pytest.warns(UserWarning, match="`head` has weights already"):
        run(images.take(np.flatnonzero(np.arange(30) % 10 < 6)), head=head, k=3, resamples=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 2}, "`k` must be a whole number from 3 up"),
        ({"k": 11, "groups": np.arange(30)}, "Each class must have at least 11"),
        ({"groups": [1, 2]}, "`groups` must hold one group for each"),
        ({"images": "folder"}, "`images` must be of type ImageSet"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"resamples": 0}, "`resamples` must be"),
    ],
)
def test_bad_input_is_rejected(small_backbone, images, options, says, rejected):
    given = options.pop("images", images)
    head = ftk.classification_head(3)
    with rejected(says):
        ftk.cross_validate(
            small_backbone, head, SPEC, given, **{"preprocessing": None, "verbose": 0, **options}
        )
