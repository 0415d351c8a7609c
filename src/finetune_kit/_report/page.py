"""The HTML page of a report and of a comparison: one file that needs no other and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from finetune_kit._html import definitions, image
from finetune_kit._report.difference import Difference
from finetune_kit._report.estimate import Estimate
from finetune_kit._report.markup import (
    SCROLL_HINT,
    breakable,
    cautions_box,
    document,
    drawing,
    estimate_cell,
    footnote,
    table,
)
from finetune_kit._report.metrics import OVERALL, PER_CLASS
from finetune_kit._report.results import MOST_CLASSES, Example, Results
from finetune_kit._report.summary import matrix, tiles
from finetune_kit._text import listed, plural
from finetune_kit._train.settings import changed_settings

_SHOWN = 24  # misclassified images in the gallery at most
_SUBTRACTION = (
    "A &minus; B is the metric of A minus that of B on the same images, with a paired 95% interval."
)
_HEAT = "Warmer regions raised the predicted class's score most."


def of_report(report: Results, title: str, drawn: Mapping[str, tuple[bytes, str]]) -> str:
    """Return the page of a report, with its pictures (PNG, SVG) by name."""
    training = changed_settings(report.about.get("training", {}))
    plans = "".join(plan._repr_html_() for plan in report.plans)
    plans = f'{SCROLL_HINT}<div class="wide">{plans}</div>' if plans else ""
    sections = [
        ("Confusion matrix and metrics", _matrix_and_metrics(report)),
        (f"Metrics per {_kind(report)}", _class_table(report)),
        ("Wrong labels" if report.multi_label else "Misclassified images", _misclassified(report)),
        ("Correct predictions", _correct(report)),
        ("Curves", _curves(report, drawn)),
        ("Training", plans + (definitions(training) if training else "")),
        ("Provenance", _provenance(report.about)),
    ]
    names = listed(report.class_names, MOST_CLASSES)
    top = f'<p class="lead">{escape(f"{report.size}: {names}")}</p>{tiles(report)}'
    return document(title, top + cautions_box(report.cautions()), sections)


def of_comparison(
    title: str,
    summary: Sequence[str],
    models: Mapping[str, Mapping[str, Estimate]],
    differences: Sequence[Difference],
    *,
    picture: str,
    cautions: Sequence[str],
) -> str:
    """Return the page of a comparison.

    Args:
        title: title of the page.
        summary: the conclusion from all pairs, and what does not follow from it.
        models: the metrics of each model by name.
        differences: one for each pair of models.
        picture: the metrics as a picture with caption, as HTML.
        cautions: sentences that a reader should know.
    """
    rows = [
        [escape(label), *(estimate_cell(metrics[name]) for metrics in models.values())]
        for name, label in OVERALL.items()
    ]
    pairs = [
        [escape(label), *(estimate_cell(pair.metrics[name], "+.3f") for pair in differences)]
        for name, label in OVERALL.items()
    ]
    names = [f"{escape(pair.second)}<br>&minus; {escape(pair.first)}" for pair in differences]
    items = "".join(f"<li>{escape(pair.conclusion)}</li>" for pair in differences)
    conclusions = (
        f"<p>{escape(' '.join(summary[1:]))}</p>"
        f"<details><summary>Each pair of models</summary><ul>{items}</ul></details>{picture}"
    )
    every = [estimate for metrics in models.values() for estimate in metrics.values()]
    gaps = [estimate for pair in differences for estimate in pair.metrics.values()]
    metrics = table(["", *map(breakable, models)], rows, "Metrics of each model", hint=True)
    gap_table = table(["", *names], pairs, "Differences between models", hint=True)
    sections = [
        ("Conclusions", conclusions),
        ("Metrics", metrics + footnote(every)),
        ("Differences", f"<p>{_SUBTRACTION}</p>{gap_table}{footnote(gaps, above=every)}"),
    ]
    top = f"<p><b>{escape(summary[0])}</b></p>{cautions_box(cautions)}"
    return document(title, top, sections)


def _kind(report: Results) -> str:
    return "label" if report.multi_label else "class"


def _matrix_and_metrics(report: Results) -> str:
    rows = [
        [escape(label), f"{estimate.value:.3f}", f"<small>{estimate.interval()}</small>"]
        if (estimate := report.metrics[name]).is_defined
        else [escape(label), "undefined", ""]
        for name, label in OVERALL.items()
    ]
    head = ["", "value", "95% interval"]
    metrics = table(head, rows, "Metrics of all images", kind="compact")
    notes = footnote(report.metrics.values()) + _methods(report)
    return f'<div class="beside"><div>{_matrix(report)}</div><div>{metrics}{notes}</div></div>'


def _methods(report: Results) -> str:
    """Name the interval method of each metric, the most frequent one last."""
    by_method: dict[str, list[str]] = {}
    for name, label in OVERALL.items():
        by_method.setdefault(report.metrics[name].method, []).append(label)
    order = sorted(by_method, key=lambda method: len(by_method[method]))
    texts = [f"{', '.join(by_method[method])}: {method}" for method in order[:-1]]
    texts.append(f"{'others' if texts else 'all'}: {order[-1]}")
    return (
        f"<details><summary><small>Interval methods</small></summary><p><small>"
        f"{escape('; '.join(texts))}. {report.resamples:,} resamples, seed {report.seed}."
        "</small></p></details>"
    )


def _class_table(report: Results) -> str:
    rows = [
        [
            breakable(name),
            *(estimate_cell(report.class_metrics[name][key]) for key in PER_CLASS),
            f"{report.support[name]:,}",
        ]
        for name in report.class_names
    ]
    shown = [estimate for each in report.class_metrics.values() for estimate in each.values()]
    head = [_kind(report), *PER_CLASS.values(), "images"]
    notes = footnote(shown, above=report.metrics.values())
    ranks = _ranks(report) if len(rows) > MOST_CLASSES else ()
    return table(head, rows, f"Metrics per {_kind(report)}", hint=True, ranks=ranks) + notes


def _ranks(report: Results) -> list[list[int]]:
    """Return the place of each class if they are sorted by name, by a metric, or by images."""
    each = report.class_metrics.values()
    keys = [[metrics[name].value for metrics in each] for name in PER_CLASS]
    keys = [list(range(len(each))), *keys, [-count for count in report.support.values()]]
    return [np.argsort(np.argsort(key, kind="stable")).tolist() for key in keys]


def _matrix(report: Results) -> str:
    """Return the confusion matrix, whose cells open the images in them."""
    shown: dict[tuple[int, int], list[Example]] = {}
    for example in report.examples:
        shown.setdefault(example.cell, []).append(example)
    popovers = []

    def opening(cell: tuple[int, int], what: str, count: int, text: str) -> str:
        if cell not in shown:
            return text
        name = f"c{cell[0]}-{cell[1]}"
        popovers.append(_popover(report, name, what, count, shown[cell]))
        return (
            f'<button popovertarget="{name}" aria-label="{escape(what)}, show images">'
            f"{text}</button>"
        )

    hint = " Select a cell to see its images." if shown else ""
    return matrix(report, hint=hint, content=opening) + "".join(popovers)


def _popover(report: Results, name: str, what: str, count: int, examples: Sequence[Example]) -> str:
    rest = f", the {len(examples)} most confident" if len(examples) < count else ""
    return (
        f'<div popover id="{name}" role="dialog" aria-label="{escape(what)}">'
        f'<button class="close" popovertarget="{name}" popovertargetaction="hide">Close</button>'
        f"<h3>{escape(what)}{rest}</h3>{_gallery(report, examples)}</div>"
    )


def _misclassified(report: Results) -> str:
    wrong = [example for example in report.examples if report.is_misclassified(example)]
    if not wrong:
        return ""
    wrong.sort(key=lambda example: -example.probability)
    shown = wrong[:_SHOWN]
    total = report.misclassified
    maps = sum(example.heat_map is not None for example in shown)
    noun = "wrong label" if report.multi_label else "misclassified image"
    text = f"{plural(total, noun)}, the most confident first"
    if len(shown) < total:
        text = f"The {len(shown)} most confident of {plural(total, noun)}"
    if maps:
        first = "the first one" if maps == 1 else f"the first {maps}"
        text += f"; heat maps for {'all' if maps == total else first}"
    text += f". {_HEAT}" if maps else "."
    return f"<p>{text}</p>{_gallery(report, shown)}"


def _correct(report: Results) -> str:
    mapped = (example for example in report.examples if example.heat_map is not None)
    right = [example for example in mapped if not report.is_misclassified(example)]
    if not right:
        return ""
    right.sort(key=lambda example: -example.probability)
    text = f"Heat maps of {plural(len(right), 'correct prediction')}. {_HEAT}"
    return f"<p>{text}</p>{_gallery(report, right)}"


def _gallery(report: Results, examples: Sequence[Example]) -> str:
    figures = []
    for example in examples:
        caption = report.caption(example)
        images = image(example.picture, caption)
        if example.heat_map:
            images += image(example.heat_map, f"heat map: {caption}")
        none = "<br>No region raised the score." if example.heat_map == b"" else ""
        name = breakable(example.name)
        figures.append(
            f"<figure>{images}<figcaption>{escape(caption)}{none}<br>"
            f"<small>{name}</small></figcaption></figure>"
        )
    return f'<div class="gallery">{"".join(figures)}</div>'


def _curves(report: Results, drawn: Mapping[str, tuple[bytes, str]]) -> str:
    kept = report.kept_epoch
    kept_text = f"; the vertical line marks epoch {kept}, whose weights were kept" if kept else ""
    texts = {
        "learning_curves": ("Learning curves", f"training and validation per epoch{kept_text}"),
        "curves": ("ROC and precision-recall curves", "each class against the rest"),
        "calibration": ("Reliability diagram", "observed accuracy against predicted probability"),
    }
    return "".join(
        drawing(drawn[name][1], title, description)
        for name, (title, description) in texts.items()
        if name in drawn
    )


def _provenance(about: Mapping[str, Any]) -> str:
    return "".join(
        f"<h3>{escape(name.capitalize())}</h3>{definitions(values)}"
        for name, values in about.items()
        if name != "training" and isinstance(values, Mapping)
    )
