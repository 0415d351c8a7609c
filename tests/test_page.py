"""The pages, also in a real browser: what stands where, what fits, and no hostile markup."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import finetune_kit as ftk
from finetune_kit._report import page as _page
from finetune_kit._report import pictures
from finetune_kit._report.results import Example

HOSTILE = '<img src=x onerror="alert(1)">'
NAMES = (HOSTILE, "a & b \"quoted\" 'too'", "$x_1$ \\frac `code` | *bold*")


def jpeg(side: int = 64) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


def random_report(names, count: int = 60, noise: float = 2.0, **context) -> ftk.Report:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % len(names)
    scores = noise * rng.random((count, len(names))) + np.eye(len(names))[labels]
    return ftk.Report.from_scores(
        labels, scores / scores.sum(axis=1, keepdims=True), names, resamples=200, **context
    )


def with_examples(report: ftk.Report, heat_maps: int, *, folder: str = "images") -> ftk.Report:
    """Add every image as an example; the most confident misclassified ones have heat maps."""
    picture = jpeg()
    examples = [
        Example(f"{folder}/{i}.png", (int(true), int(predicted)), float(score), picture)
        for i, (true, predicted, score) in enumerate(
            zip(report.labels, report.predicted, report.scores.max(axis=1), strict=True)
        )
    ]
    examples.sort(key=lambda example: -example.probability)
    wrong = [e for e in examples if report.is_misclassified(e)][:heat_maps]
    return replace(
        report,
        examples=tuple(replace(e, heat_map=picture if e in wrong else None) for e in examples),
    )


def page_of(report: ftk.Report) -> str:
    """The page of a report without pictures, as people read it."""
    return html.unescape(_page.of_report(report, "title", {}))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A saved report whose names and texts are markup."""
    report = random_report(
        NAMES,
        history={"loss": [1.0, 0.5], "val_loss": [1.0, 0.7], "epoch": [1.0, 2.0],
                 "phase": [1.0, 2.0]},
        about={"data": {"manifest": "</dd><script>alert(1)</script>" + "long" * 60},
               "training": {"kept_epoch": 2, "optimizer": HOSTILE},
               "cautions": [f"caution {HOSTILE}", f"another {HOSTILE}"]},
    )  # fmt: skip
    report = with_examples(report, 8, folder=HOSTILE)
    return report.save(tmp_path_factory.mktemp("hostile"), title=f"Report of {HOSTILE}")


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory):
    """A saved report on ten classes with names of real findings."""
    names = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Fibrosis",
             "Lung_Opacity", "Normal", "Pneumothorax", "Viral Pneumonia")  # fmt: skip
    report = random_report(names, 600)
    return report.save(tmp_path_factory.mktemp("ten"))


def test_a_page_needs_no_other_file_and_runs_no_script(hostile):
    page = (hostile / "report.html").read_text()
    links = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            links.extend(value for name, value in attrs if name.endswith(("src", "href")))

    Links().feed(page)
    assert len(links) > 60
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert all(link.startswith("#") for link in re.findall(r"url\((.*?)\)", page))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html.unescape(page)
    assert "<script" not in page
    assert HOSTILE not in page
    assert html.escape(HOSTILE) in page


def test_a_comparison_page_escapes_names(tmp_path):
    labels = np.arange(20) % 2
    reports = {HOSTILE: ftk.Report.from_scores(labels, labels * 0.8 + 0.1),
               "B": ftk.Report.from_scores(labels, 1 - labels * 0.8)}  # fmt: skip
    page = ftk.compare(reports).save(tmp_path / "page.html").read_text()
    assert HOSTILE not in page
    assert html.escape(HOSTILE) in page


def test_the_card_escapes_names(hostile):
    card = (hostile / "model_card.md").read_text()
    assert "<img" not in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 2  # two tables


def test_the_first_number_comes_before_the_cautions_which_are_one_box(hostile):
    page = (hostile / "report.html").read_text()
    assert page.count('class="caution"') == 1
    assert page.index('class="tile"') < page.index('class="caution"') < page.index("<h2")


def test_the_sections_are_in_the_order_of_their_use(hostile):
    page = (hostile / "report.html").read_text()
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == [
        "Confusion matrix and metrics", "Metrics per class", "Misclassified images", "Curves",
        "Training", "Provenance"]  # fmt: skip


@pytest.mark.parametrize(
    ("heat_maps", "says"),
    [
        (0, "images, the most confident first.</p>"),
        (5, "first; heat maps for the first 5. Warmer regions raised the predicted class's score "
            "most.</p>"),
        (1, "first; heat maps for the first one. Warmer"),
        (60, "first; heat maps for all. Warmer"),
    ],
)  # fmt: skip
def test_the_page_says_where_the_heat_maps_stop(heat_maps, says):
    report = with_examples(random_report(list("abc"), 30, noise=4), heat_maps)
    assert 5 < report.misclassified <= 24
    page = page_of(report)
    assert f"<p>{report.misclassified} misclassified images, the most confident first" in page
    assert says in page


def test_the_page_says_how_many_misclassified_images_it_leaves_out():
    report = with_examples(random_report(list("abc"), 120, noise=4), 0)
    assert report.misclassified > 24
    assert f"The 24 most confident of {report.misclassified} misclassified images." in page_of(
        report
    )


@pytest.mark.parametrize("kept", [2, None])
def test_the_kept_epoch_is_marked_in_the_learning_curves(kept):
    history = {"loss": [1.0, 0.5, 0.4], "val_loss": [0.9, 0.6, 0.7]}
    report = random_report(list("abc"), history=history, about={"training": {"kept_epoch": kept}})
    page = _page.of_report(report, "title", pictures.of_report(report))
    assert ("epoch 2 was kept" in page) == bool(kept)
    assert ("the vertical line marks epoch 2, whose weights were kept" in page) == bool(kept)


@pytest.mark.parametrize(("count", "bins"), [(112, 5), (1000, 10)])
def test_the_reliability_diagram_has_few_bins_and_says_so(count, bins):
    report = random_report(list("abc"), count)
    drawn = pictures.reliability(report)
    (container, *_), bars = drawn.axes[0].containers, drawn.axes[1].patches
    assert container.get_label() == f"accuracy in {bins} bins (95% intervals)"
    assert len(bars) == bins
    assert sum(bar.get_height() for bar in bars) == count
    title = drawn.legends[0].get_title().get_text()
    assert title.startswith("ECE 0.")
    assert title.endswith(f"; it uses 15 bins, the diagram {bins}")


def test_missing_intervals_have_one_footnote():
    labels = np.arange(30) % 3
    page = page_of(ftk.Report.from_scores(labels, np.eye(3)[labels]))
    assert page.count("<small>no interval</small>") > 6
    assert page.count("No interval: every bootstrap resample") == 1
    assert "Undefined:" not in page


def test_misclassified_images_are_drawn_beside_their_heat_maps():
    report = with_examples(random_report(list("abc"), 60, noise=4), 3)
    wrong = [example for example in report.examples if report.is_misclassified(example)]
    axes = pictures.misclassified(report).axes
    shapes = [a.images[0].get_array().shape[:2] for a in axes]
    assert shapes == [(64, 64 + 1 + 64)] * 12  # pairs, then single images
    titles = [a.get_title("left").replace("\n", " ") for a in axes]
    assert titles == [report.caption(example) for example in wrong[:12]]
    assert min(a.title.get_fontsize() for a in axes) >= 12


def test_an_image_without_a_heat_map_region_says_so():
    report = with_examples(random_report(list("abc"), 30, noise=4), 1)
    wrong = [example for example in report.examples if report.is_misclassified(example)]
    empty = replace(wrong[0], heat_map=b"")
    page = page_of(replace(report, examples=(empty,)))
    assert page.count("No region raised the score.") == page.count("<img") == 2  # also in the cell
    assert "images/<wbr>" in page
    (axes,) = pictures.misclassified(replace(report, examples=(empty,))).axes
    assert axes.images[0].get_array().shape[:2] == (64, 64)
    assert "no region" in axes.get_title("left").replace("\n", " ")


def test_the_title_of_the_misclassified_images_says_whether_all_are_shown():
    titles = []
    for count in (30, 60):
        report = with_examples(random_report(list("abc"), count, noise=4), 0)
        wrong = [example for example in report.examples if report.is_misclassified(example)]
        titles.append(pictures.misclassified(report).get_suptitle())
    assert titles == [
        "All 11 misclassified images, most confident first",
        f"The 12 most confident of {len(wrong)} misclassified images",
    ]


# The program that runs in the browser: it shows pages in frames of a phone's and a desk's width and
# measures them from outside, because the pages' own policy allows no script.
HARNESS = """<!DOCTYPE html><meta charset=utf-8><body><script>
const pages = %s, found = [];
async function look(name, width) {
  const frame = document.createElement('iframe');
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.srcdoc = pages[name];
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  const page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.querySelectorAll('[popover]')], opened = [];
  for (const button of page.querySelectorAll('.cell button')) {
    button.focus(); button.click();
    const box = page.getElementById(button.getAttribute('popovertarget'));
    opened.push(box.matches(':popover-open') && page.activeElement !== page.body
      && box.querySelectorAll('img').length > 0);
    box.querySelector('.close').click();
    opened.push(!box.matches(':popover-open'));
  }
  const images = [...page.images], tables = [...page.querySelectorAll('.wide')];
  const wide = [...page.querySelectorAll('main *, header *')].filter(x => !x.closest('.wide')
    && x.getBoundingClientRect().right > root.clientWidth).map(x => x.tagName + '.' + x.className);
  const split = [...page.querySelectorAll('table')].flatMap(table => {
    const walker = page.createTreeWalker(table, NodeFilter.SHOW_TEXT), words = [];
    for (let node; node = walker.nextNode();)
      for (const word of node.data.matchAll(/[A-Za-z]{2,14}/g)) {
        const range = page.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map(x => x.top)).size > 1) words.push(word[0]);
      }
    return words;
  });
  const top = css => page.querySelector(css).getBoundingClientRect().top;
  found.push({name, width, wide, split, overflow: root.scrollWidth - root.clientWidth,
    scrolling: tables.filter(x => x.scrollWidth > x.clientWidth).map(x => x.ariaLabel),
    hints: [...page.querySelectorAll('.hint')].filter(x => x.offsetHeight).length,
    beside: Math.abs(top('.beside>:first-child') - top('.beside>:last-child')) < 5,
    boxes: boxes.length, opened,
    broken: images.filter(image => !image.naturalWidth).length, images: images.length,
    bare: images.filter(image => !image.alt).length, scripts: page.scripts.length,
    hostile: page.querySelectorAll('[onerror]').length,
    drawings: page.querySelectorAll('svg').length,
    unnamed: [...page.querySelectorAll('section,[role=region],[role=img],[role=dialog]')].filter(
      x => !x.getAttribute('aria-label') && !x.getAttribute('aria-labelledby')).length,
    ids: page.querySelectorAll('[id]').length,
    different: new Set([...page.querySelectorAll('[id]')].map(x => x.id)).size});
}
(async () => {
  for (const name of Object.keys(pages))
    for (const width of [390, 1200]) await look(name, width);
  document.body.innerHTML = '';
  document.body.dataset.found = JSON.stringify(found);
})();
</script>"""


@pytest.fixture(scope="module")
def measured(hostile, ten_classes, tmp_path_factory):
    """What a real browser measures on both pages, by name and width."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium on the path")
    pages = {
        # The browser's clock does not wait for images that load lazily.
        name: (folder / "report.html").read_text().replace('loading="lazy"', "")
        for name, folder in (("hostile", hostile), ("ten", ten_classes))
    }
    names = ["COVID", "Lung_Opacity", "Viral_Pneumonia", "Pleural_Thickening", "Consolidation"]
    pages["words"] = _page.of_report(random_report(names), "title", {})
    folder = tmp_path_factory.mktemp("browser")
    harness = folder / "harness.html"
    harness.write_text(HARNESS % json.dumps(pages).replace("</", "<\\/"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000",
               "--dump-dom", harness.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    looks = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', shown)[1]))
    return {(look["name"], look["width"]): look for look in looks}


@pytest.mark.slow
def test_pages_work_in_a_real_browser(measured):
    assert len(measured) == 6
    for look in measured.values():
        assert look["overflow"] == 0, f"the page scrolls sideways: {look['wide']}"
        assert all(look["opened"])
        assert len(look["opened"]) == 2 * look["boxes"]
        assert look["broken"] == look["bare"] == look["scripts"] == look["hostile"] == 0
        assert look["unnamed"] == 0
        assert look["ids"] == look["different"]
    for width in (390, 1200):
        look = measured["hostile", width]
        assert look["boxes"] >= 6
        assert look["images"] > 60
        assert look["drawings"] == 3


@pytest.mark.slow
def test_ten_classes_need_no_sideways_scrolling_at_1200_pixels(measured):
    look = measured["ten", 1200]
    assert look["scrolling"] == []
    assert look["hints"] == 0
    assert look["beside"]


@pytest.mark.slow
def test_tables_break_no_word(measured):
    assert measured["words", 390]["split"] == measured["words", 1200]["split"] == []


@pytest.mark.slow
def test_narrow_screens_have_a_hint_where_tables_scroll(measured):
    look = measured["ten", 390]
    assert {"Confusion matrix", "Metrics per class"} <= set(look["scrolling"])
    assert look["hints"] == 2
    assert not look["beside"]


def test_names_in_any_script_are_saved_without_a_warning(tmp_path):
    """Warnings are errors in tests, and matplotlib warns of letters that its font lacks."""
    names = ["\u80ba\u708e", "\u6b63\u5e38"]
    reports = {
        "one": ftk.Report.from_scores([0, 1, 1], [0.2, 0.9, 0.4], names),
        "two \u6a21": ftk.Report.from_scores([0, 1, 1], [0.3, 0.8, 0.6], names),
    }
    reports["one"].save(tmp_path)
    ftk.compare(reports).save(tmp_path)
    assert names[0] in (tmp_path / "report.html").read_text(encoding="utf-8")
