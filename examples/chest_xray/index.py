"""The page that links what the example wrote: `index.html`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from drawn import described
from PIL import Image
from tables import reported

import finetune_kit as ftk

SHOWN = 4  # images of each class in the picture
SIDE = 160  # of each image, in pixels

STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --accent: #0b6bcb; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; }
a { color: var(--accent); }
p.sub { color: var(--quiet); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
.scroll { overflow-x: auto; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tr.study td, tr.study th { color: var(--quiet); font-weight: normal; font-size: .92em; }
th:first-child, td:first-child, .num { white-space: nowrap; }
img { max-width: 100%; border-radius: 6px; }
.picture { background: white; padding: .5rem; border-radius: 6px; max-width: 36rem; }
.grid { display: grid; grid-template-columns: 12rem 1fr; gap: .4rem 1rem; align-items: center; }
@media (prefers-color-scheme: dark) {
  :root { --accent: #6db3f2; }
  body { background: #16181c; color: #e6e6e6; }
}
"""


def write_index(
    out: Path, results: dict[str, Any], images: ftk.ImageSet, sentences: Sequence[str]
) -> Path:
    """Write the page, and a picture of the classes beside it.

    Args:
        out: folder of the results.
        results: content of `results.json`.
        images: the training images, some of which are shown.
        sentences: what may be concluded.

    Returns:
        The page.
    """
    strips = _write_strips(out / "samples", images)
    data, weights = results["data"], escape(described(results["weights"]))
    kind = "phantoms (drawn images that show no patient)" if data["phantoms"] else "images"
    total = sum(data["classes"].values())
    sizes = ", ".join(f"{size:,} {name}" for name, size in data["split"].items())
    clusters = len(results["duplicates"]["clusters"])
    rows = "".join(_rows(model, images.class_names) for model in results["models"])
    recalls = [f"recall {name}" for name in images.class_names]
    titles = ["", "trainable params", "accuracy (95% interval)", "macro F1", *recalls, "", ""]
    body = [
        "<h1>How many blocks should one fine-tune?</h1>",
        f'<p class="sub">Models 1-3 of the chest X-ray study on {total:,} {kind}. MobileNetV2 '
        f"x0.5 with {weights}, recipe: {escape(results['recipe'])}, seed {results['seed']}.</p>",
        "<h2>Result</h2>",
        f"<p>Each model on the same {data['split']['test']:,} test images; below it what the study "
        "reported on its own 794 (-: not reported). The recall of a class is the sensitivity for "
        "it.</p>",
        f'<div class="scroll"><table><tr>{"".join(f"<th>{escape(t)}</th>" for t in titles)}</tr>'
        f"{rows}</table></div>",
        _comparison(out, sentences),
        "<h2>Images</h2>",
        f'<p>{total:,} images: {sizes} (<a href="manifest.csv">manifest</a>). Clusters of copies, '
        f'each kept in one of the sets: <a href="duplicates.txt">{clusters}</a>.</p>',
        '<div class="grid">',
        *(
            f"<b>{escape(name)} ({data['classes'][name]:,})</b>"
            f'<img alt="{SHOWN} training images of {escape(name)}" src="{strip}">'
            for name, strip in strips.items()
        ),
        "</div>",
        '<h2>Files</h2><p><a href="results.json">results.json</a> holds all numbers of this page, '
        "and the history and the time of each model.</p>",
    ]
    page = out / "index.html"
    draft = page.with_name("index.html.part")
    draft.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><title>Chest X-ray study</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n",
        encoding="utf-8",
    )
    os.replace(draft, page)
    return page


def _rows(model: dict[str, Any], class_names: Sequence[str]) -> str:
    """Return the rows of one model: its own values, and those of the study."""
    name, test = model["name"], model["test"]
    slug = name.lower().replace(" ", "-")
    accuracy = test["metrics"]["accuracy"]
    interval = "" if accuracy["low"] is None else f" ({accuracy['low']:.3f}-{accuracy['high']:.3f})"
    cells = [f"{model['trainable_params']:,}", f"{test['accuracy']:.3f}{interval}"]
    cells += [f"{test['macro_f1']:.3f}"]
    cells += [f"{test['per_class'][c]['recall']:.3f}" for c in class_names]
    cells += [f'<a href="reports/{slug}/report.html">report</a>']
    cells += [f'<a href="models/{slug}.keras">model</a>']
    study = ["", *reported(name, class_names), "", ""]
    own = "".join(f'<td class="num">{cell}</td>' for cell in cells)
    theirs = "".join(f"<td>{cell}</td>" for cell in study)
    return f'<tr><th>{name}</th>{own}</tr><tr class="study"><td>in the study</td>{theirs}</tr>'


def _comparison(out: Path, sentences: Sequence[str]) -> str:
    """Return what may be concluded, with the picture and the link of the comparison."""
    html = ""
    if sentences:
        html += "<h2>What may be concluded</h2><ul>"
        html += "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"
    if (out / "reports" / "comparison.png").is_file():
        html += (
            '<p class="picture"><img alt="Accuracy and macro F1 of each model, with 95% intervals" '
            'src="reports/comparison.png"></p>'
        )
    if (out / "reports" / "comparison.html").is_file():
        html += '<p><a href="reports/comparison.html">All comparisons of the models</a></p>'
    return html


def _write_strips(folder: Path, images: ftk.ImageSet) -> dict[str, str]:
    """Write some images of each class side by side. Return the picture of each class."""
    folder.mkdir(parents=True, exist_ok=True)
    strips = {}
    for number, name in enumerate(images.class_names):
        some = images.take(np.flatnonzero(images.labels == number)[:SHOWN])
        strip = np.hstack(list(some.load(size=(SIDE, SIDE))))
        file = folder / f"class-{number + 1}.jpg"
        Image.fromarray(np.asarray(strip).round().astype(np.uint8)).save(file, quality=88)
        strips[name] = f"{folder.name}/{file.name}"
    return strips
