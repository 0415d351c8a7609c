"""What a notebook shows for each value: sound HTML, small, legible in all themes, no errors."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import test_values
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import write
from test_page import HOSTILE, random_report, with_examples

import finetune_kit as ftk

VOID = {"img", "br", "wbr"}
WITH_VIEW = {"ImageSet", "Split", "Duplicates", "FreezePlan", "FineTuned", "Report", "Predictions"}
values = test_values.values  # a fixture with a value of each public class
PICTURE = "data:image/jpeg;base64,"


class Parsed(HTMLParser):
    """The tags of a view in order, its text, and its pictures. Each tag must be closed."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.css, self.sources, self._open = [], "", "", [], []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") or name == "id" for name, _ in attrs), attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] == ["style"]:
            self.css += data
        else:
            self.text += data


def view(value) -> Parsed:
    """Return the view of a value, which must be as all views."""
    html = value._repr_html_()
    assert len(html.encode("utf-8")) < 200_000
    for forbidden in ("<script", "http", "@import", "url("):
        assert forbidden not in html.lower()
    found = Parsed(html)
    assert all(source.startswith(PICTURE) for source in found.sources)
    for selectors, declarations in re.findall(r"([^{}]+){([^{}]*)}", found.css):
        for selector in selectors.strip().split(","):
            assert selector.startswith(("div.ftk-view", ".freeze-plan ")), selector
        settings = dict(part.split(":", 1) for part in declarations.strip().strip(";").split(";"))
        assert settings.get("color", "inherit").strip() == "inherit", "a fixed color of text"
        background = settings.get("background", "none").strip()
        assert re.match("none|currentColor|rgba|repeating-linear-gradient", background)
    return found


def images_named(names, count: int = 3) -> ftk.ImageSet:
    """Noisy images of classes with these names."""
    labels = np.repeat(np.arange(len(names)), count)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 72, 72, 3), np.uint8)
    return ftk.ImageSet.from_arrays(pixels, labels, names)


def report_named(names) -> ftk.Report:
    history = {"loss": [1.0, 0.5], "epoch": [1, 2], "phase": [1, 1]}
    return with_examples(random_report(names, history=history), 2)


def predictions_of(paths, names) -> ftk.Predictions:
    scores = np.full((len(paths), len(names)), 1 / len(names))
    return ftk.Predictions(tuple(paths), tuple(names), scores, {}, False, None, 0.5)


def views_of_names(names, tuned: ftk.FineTuned) -> list[Parsed]:
    """The views of values in which these names of classes, files and models stand."""
    images = images_named(names)
    double = ftk.find_duplicates(images, images.take([0]))
    report = report_named(names)
    models = ftk.compare({names[0]: report, names[1]: report})
    plan = dataclasses.replace(tuned.plan, backbone=names[0])
    settings = {**tuned.settings, "optimizer": names[0], "class_weight": dict.fromkeys(names, 1)}
    history = {names[0]: [1.0, 2.0], "epoch": [1, 2]}
    tuned = dataclasses.replace(tuned, plans=(plan,), settings=settings, history=history)
    shown = predictions_of([f"no/{name}" for name in names], names)
    failed = dataclasses.replace(shown, errors={0: names[1]})
    return [*map(view, (images, double, report, models, plan, tuned, shown, failed))]


@pytest.fixture(scope="module")
def plain(values):
    """The number of tags of each kind in the views of plain names."""
    found = views_of_names(["one", "two", "three"], values["FineTuned"])
    return [Counter(one.tags) for one in found]


def test_each_value_has_a_view(values):
    comparison = ftk.compare({"a": values["Report"], "b": values["Report"]})
    for value in [*(values[name] for name in sorted(WITH_VIEW)), comparison]:
        assert view(value).text.strip()


names = st.one_of(
    st.text(st.characters(), min_size=1),
    st.text("<>&\"'/= -x\n", min_size=1),
    st.sampled_from([HOSTILE, "</style><script>alert(1)</script>", "-->", "]]>", "${x} {0} %s"]),
).filter(lambda name: "http" not in name)


@settings(max_examples=15)
@given(st.lists(names, min_size=3, max_size=3, unique=True))
def test_names_are_never_markup(values, plain, given_names):
    found = views_of_names(given_names, values["FineTuned"])
    assert [Counter(one.tags) for one in found] == plain


@pytest.mark.parametrize("count", [0, 1, 2, 33, 1200])
def test_views_are_small_for_any_number_of_classes(count):
    names = [f"class {i} {'&' * 500}" for i in range(count)]
    images = images_named(names, 8 if count < 40 else 1)
    found = view(images)
    assert len(found.sources) <= 32
    assert bool(found.sources) == bool(count)
    if count > 1:
        view(report_named(names))
        view(predictions_of([f"{'&' * 3000}/{i}.png" for i in range(60)], names))
    if count == 1200:
        assert "and 1,170 more classes with 1,170 images" in found.text


def test_the_view_of_a_long_training_is_small(values):
    tuned = values["FineTuned"]
    rng = np.random.default_rng(0)
    long = {name: rng.random(30_000).tolist() for name in ("loss", "val_loss", "a", "b", "c", "d")}
    settings = {**tuned.settings, "class_weight": {f"{i}": 1.0 for i in range(9999)},
                "specs": tuned.settings["specs"] * 99, "kept_epoch": 7}  # fmt: skip
    history = {**long, "epoch": list(range(1, 30_001)), "phase": [1] * 15_000 + [2] * 15_000}
    found = view(dataclasses.replace(tuned, history=history, settings=settings))
    assert found.tags.count("svg") == 4
    assert found.tags.count("polyline") == 5
    assert "Dotted: epoch 7, whose weights were kept." in found.text


@pytest.mark.parametrize(
    ("losses", "lines", "dots"),
    [([0.5], 0, 1), ([1.0, 1.0], 1, 0), ([1.0, np.nan, 2.0, 3.0, np.inf], 1, 1),
     ([np.nan, np.nan], 0, 0)],
)  # fmt: skip
def test_learning_curves_have_gaps_where_a_value_is_not_finite(values, losses, lines, dots):
    epochs = {"epoch": [*range(1, len(losses) + 1)], "phase": [1] * len(losses)}
    settings = {**values["FineTuned"].settings, "kept_epoch": 1}
    history = {"loss": losses, **epochs}
    found = view(dataclasses.replace(values["FineTuned"], history=history, settings=settings))
    assert (found.tags.count("polyline"), found.tags.count("circle")) == (lines, dots)


def test_the_comparison_of_a_hundred_models_is_short():
    report = report_named(["a", "b"])
    one = ftk.compare({"first": report, "second": report})
    several = dataclasses.replace(
        one,
        reports={f"model {i}": report for i in range(100)},
        differences=one.differences * 4950,
    )
    assert "and 4,920 more pairs" in view(several).text


@pytest.fixture
def folder(tmp_path):
    """A folder of two classes in which one image is a copy of another."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for i in range(4):
            write(tmp_path / name / f"{i}.png", rng.integers(0, 256, (40, 60, 3), np.uint8))
    (tmp_path / "b" / "copy.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    return tmp_path


def test_files_that_break_or_vanish_are_placeholders(folder):
    images = ftk.read_image_folder(folder)
    duplicates = ftk.find_duplicates(images)
    predictions = predictions_of(images.paths, images.class_names)
    views = [images, duplicates, predictions]
    assert [len(view(value).sources) for value in views] == [9, 2, 9]
    (folder / "a" / "0.png").write_bytes(b"broken")
    (folder / "b" / "1.png").unlink()
    found = [view(value) for value in views]
    assert [len(one.sources) for one in found] == [7, 1, 7]
    assert [one.text.count("not readable") for one in found] == [2, 1, 2]


def test_a_broken_picture_of_a_report_is_a_placeholder():
    report = report_named(["a", "b"])
    broken = [dataclasses.replace(example, picture=b"") for example in report.examples]
    found = view(dataclasses.replace(report, examples=tuple(broken)))
    assert not found.sources
    assert "not readable" in found.text


def test_names_of_files_that_are_no_text_can_be_sent_to_a_notebook():
    view(predictions_of(["caf\udce9.png"], ["caf\udce9", "b"]))
    view(images_named(["caf\udce9", "b"]))
    view(report_named(["caf\udce9", "b"]))


def test_empty_values_have_views():
    images = images_named(["a", "b"])
    empty = images.take([])
    assert "ImageSet: 0 images, 2 classes" in view(empty).text
    assert "0 clusters with 0 of 6 images" in view(ftk.find_duplicates(images)).text
    assert "0.0%" in view(ftk.Split([], [], [])).text
    assert view(predictions_of([], ["a", "b"])).text


def test_metrics_without_a_value_have_views():
    report = ftk.Report.from_scores([0, 0], [0.2, 0.1], ["a", "b"], resamples=10)
    assert "There is no image of b." in view(report).text
    assert "undefined" in view(ftk.compare({"one": report, "two": report})).text


def test_several_labels_are_shown(values):
    labels = np.array([[1, 1], [0, 1], [0, 0]])
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    images = ftk.ImageSet.from_arrays(x, labels, ["ill", "old"], groups=["p", "p", "q"])
    found = view(images)
    assert "3 images, 2 labels, 2 groups" in found.text
    assert len(found.sources) == 3  # the first image has both labels
    assert "1 cluster" in view(ftk.find_duplicates(images, images.take([0]))).text
    scores = np.random.default_rng(0).random((3, 2))
    assert "true positive" in view(ftk.Report.from_scores(labels, scores)).text


def test_duplicates_show_those_in_several_sets_first(folder):
    images = ftk.read_image_folder(folder)
    found = view(ftk.find_duplicates(images, images.take([3])))
    first, second = found.text.index("set 2: a"), found.text.index("set 1: b")
    assert first < second
    assert found.text.count("in several sets") == 1
    assert "Pairs: 2 equal files, 0 equal pixels, 0 near duplicates" in found.text


def test_duplicates_without_their_images_show_indices():
    duplicates = ftk.find_duplicates(images_named(["a"]), images_named(["a"]))
    found = view(dataclasses.replace(duplicates, sets=()))
    assert not found.sources
    assert "3 clusters" in found.text


class Endless:
    """A million images, of which each that is read is noted."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 1_000_000

    def load(self, i, size):
        self.read.append(i)
        return np.zeros((*size, 3), np.uint8)

    def digest(self, i):
        raise AssertionError("a view must not read all files")

    def file(self, i):
        return f"{i}.png"


def test_only_the_images_that_are_shown_are_read():
    source = Endless()
    images = ftk.ImageSet(source, np.arange(1_000_000) % 3, ("a", "b", "c"))
    assert "1,000,000 images" in view(images).text
    assert len(source.read) == 18
    assert min(source.read) < 10
    assert max(source.read) > 999_990
