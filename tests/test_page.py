"""The report's page in a real browser: it fits, it opens, and nothing hostile gets in."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import finetune_kit as ftk

HOSTILE = '<img src=x onerror="alert(1)">'
NAMES = (HOSTILE, "a & b \"quoted\" 'too'", "$x_1$ \\frac `code` | *bold*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved report with hostile names, images and heat maps (drawn, not computed)."""
    import dataclasses
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    scores = 2 * rng.random((60, 3)) + np.eye(3)[labels]
    scores /= scores.sum(axis=1, keepdims=True)
    report = ftk.Report.from_scores(
        labels, scores, NAMES, history={"loss": [1.0, 0.5], "val_loss": [1.0, 0.7],
                                        "epoch": [1.0, 2.0], "phase": [1.0, 2.0]},
        about={"data": {"manifest": "</dd><script>alert(1)</script>" + "long" * 60},
               "cautions": [f"mind {HOSTILE}"]},
    )  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "jpeg")
    jpeg = buffer.getvalue()
    examples = [
        ftk.Example(f"{HOSTILE}/{i}.png", (int(labels[i]), int(scores[i].argmax())),
                    float(scores[i].max()), jpeg, jpeg if i % 2 else None)
        for i in range(60)
    ]  # fmt: skip
    report = dataclasses.replace(report, examples=tuple(examples))
    return report.save(tmp_path_factory.mktemp("report"), title=f"Report of {HOSTILE}")


def test_the_page_needs_nothing_else(folder):
    page = (folder / "report.html").read_text()
    links = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            links.extend(value for name, value in attrs if name.endswith(("src", "href")))

    Links().feed(page)
    assert len(links) > 60
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert all(link.startswith("#") for link in re.findall(r"url\((.*?)\)", page))
    assert "<script" not in page
    assert HOSTILE not in page
    assert html.escape(HOSTILE) in page


def test_the_card_takes_hostile_names_for_text(folder):
    card = (folder / "model_card.md").read_text()
    assert "<img" not in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 2  # two tables


# What runs in the browser: the page in a frame of a phone's or a desk's width, looked at from
# outside (its own policy lets no script run in it).
HARNESS = """<!DOCTYPE html><meta charset=utf-8><body><script>
const pages = %s, told = [];
async function look(width, scheme) {
  const frame = document.createElement('iframe');
  frame.style = `width:${width}px;height:900px;border:0;color-scheme:${scheme}`;
  frame.srcdoc = pages;
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
  const images = [...page.images];
  const wide = [...page.querySelectorAll('main *, header *')].filter(x => !x.closest('.wide')
    && x.getBoundingClientRect().right > root.clientWidth).map(x => x.tagName + '.' + x.className);
  told.push({width, wide, overflow: root.scrollWidth - root.clientWidth, boxes: boxes.length,
    opened,
    broken: images.filter(image => !image.naturalWidth).length, images: images.length,
    bare: images.filter(image => !image.alt).length, scripts: page.scripts.length,
    hostile: page.querySelectorAll('[onerror]').length,
    drawings: page.querySelectorAll('svg').length,
    unnamed: [...page.querySelectorAll('section,[role=region],[role=img],[role=dialog]')].filter(
      x => !x.getAttribute('aria-label') && !x.getAttribute('aria-labelledby')).length,
    ids: page.querySelectorAll('[id]').length,
    different: new Set([...page.querySelectorAll('[id]')].map(x => x.id)).size});
}
look(390).then(() => look(1280)).then(() => {
  document.body.innerHTML = '';
  document.body.dataset.told = JSON.stringify(told);
});
</script>"""


@pytest.mark.slow
def test_a_real_browser_shows_the_page(folder, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs a Chromium on the path")
    # Images that load at once are there when the frame is; its clock waits no longer.
    page = (folder / "report.html").read_text().replace('loading="lazy"', "")
    page = json.dumps(page).replace("</", "<\\/")
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS % page)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000",
               "--dump-dom", harness.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    looks = json.loads(html.unescape(re.search(r'data-told="([^"]*)"', shown)[1]))
    assert [look["width"] for look in looks] == [390, 1280]
    for look in looks:
        assert look["overflow"] == 0, f"it scrolls sideways: {look['wide']}"
        assert look["boxes"] >= 6
        assert len(look["opened"]) == 2 * look["boxes"]
        assert all(look["opened"])
        assert look["images"] > 60
        assert look["broken"] == look["bare"] == look["scripts"] == look["hostile"] == 0
        assert look["drawings"] >= 3
        assert look["unnamed"] == 0
        assert look["ids"] == look["different"]


def test_names_in_any_script_are_saved_without_a_warning(tmp_path):
    """Warnings are errors here: matplotlib has one for each letter that its font lacks."""
    names = ["\u80ba\u708e", "\u6b63\u5e38"]
    reports = {
        "one": ftk.Report.from_scores([0, 1, 1], [0.2, 0.9, 0.4], names),
        "two \u6a21": ftk.Report.from_scores([0, 1, 1], [0.3, 0.8, 0.6], names),
    }
    reports["one"].save(tmp_path)
    ftk.compare(reports).save(tmp_path)
    assert names[0] in (tmp_path / "report.html").read_text(encoding="utf-8")
