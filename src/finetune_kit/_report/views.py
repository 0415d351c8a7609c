"""What a notebook shows for a report, a comparison and predictions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_kit import _html
from finetune_kit._data.decoding import decode
from finetune_kit._data.threads import in_threads
from finetune_kit._report.difference import Difference, p_text
from finetune_kit._report.estimate import Estimate
from finetune_kit._report.markup import cautions_box, estimate_cell
from finetune_kit._report.metrics import OVERALL, PER_CLASS
from finetune_kit._report.results import Example, Results
from finetune_kit._report.summary import matrix, tiles
from finetune_kit._text import plural, printable

MAIN = ("accuracy", "macro_f1", "roc_auc")  # the metrics of a comparison
_PICTURES = 12  # misclassified images at most
_CAUTIONS = 6  # at most


def of_report(title: str, report: Results) -> str:
    """Return the main metrics, cautions, the confusion matrix, and what is misclassified."""
    classes = _html.folded(f"Metrics per {_kind(report)}", _class_table(report))
    return _html.view(
        _html.title(title),
        tiles(report),
        _cautions(report.cautions()),
        matrix(report, name=lambda name: _html.text(name, 40)),
        classes,
        _misclassified(report),
    )


def _kind(report: Results) -> str:
    return "label" if report.multi_label else "class"


def _cautions(cautions: Sequence[str]) -> str:
    more = len(cautions) - _CAUTIONS
    texts = [printable(text) for text in cautions[:_CAUTIONS]]
    texts = [text if len(text) <= 500 else f"{text[:499]}…" for text in texts]
    return cautions_box([*texts, *([f"{more} more: cautions()"] if more > 0 else [])])


def _class_table(report: Results) -> str:
    shown = report.listed_classes
    rows = [
        [
            _html.text(name),
            *(estimate_cell(report.class_metrics[name][key]) for key in PER_CLASS),
            f"{report.support[name]:,}",
        ]
        for name in shown
    ]
    head = [_kind(report), *PER_CLASS.values(), "images"]
    left = len(report.class_names) - len(shown)
    rest = f"The {len(shown)} with the lowest F1, of {len(report.class_names):,}." if left else ""
    return _html.table(head, rows, f"Metrics per {_kind(report)}") + _html.note(rest)


def _misclassified(report: Results) -> str:
    wrong = [example for example in report.examples if report.is_misclassified(example)]
    if not wrong:
        return ""
    shown = sorted(wrong, key=lambda example: -example.probability)[:_PICTURES]
    figures = [
        _html.thumbnail(_pixels(example), example.name, _html.text(report.caption(example)))
        for example in shown
    ]
    total = report.misclassified
    noun = "wrong label" if report.multi_label else "misclassified image"
    some = f"The {len(shown)} most confident of " if len(shown) < total else ""
    return _html.note(f"{some}{plural(total, noun)}:") + _html.sheet(figures)


def _pixels(example: Example) -> NDArray[np.uint8] | None:
    try:
        return np.asarray(Image.open(io.BytesIO(example.picture)).convert("RGB"))
    except Exception:  # a decoder may raise anything on broken content
        return None


def of_comparison(
    summary: Sequence[str],
    models: Mapping[str, Mapping[str, Estimate]],
    differences: Sequence[Difference],
    cautions: Sequence[str],
) -> str:
    """Return the conclusion, the main metrics of each model, and their differences.

    Args:
        summary: the conclusion from all pairs, and what does not follow from it.
        models: the metrics of each model by name.
        differences: one for each pair of models.
        cautions: sentences that a reader should know.
    """
    head = ["", *(OVERALL[key] for key in MAIN)]
    rows = [
        [_html.text(name), *(estimate_cell(metrics[key]) for key in MAIN)]
        for name, metrics in list(models.items())[: _html.MOST_ROWS]
    ]
    pairs = [
        [
            f"{_html.text(pair.second)} &minus; {_html.text(pair.first)}",
            *(estimate_cell(pair.metrics[key], "+.3f") for key in MAIN),
            _html.text(p_text(pair.adjusted_p_value)),
        ]
        for pair in differences[: _html.MOST_ROWS]
    ]
    more = len(differences) - len(pairs)
    return _html.view(
        _html.title(summary[0]),
        _cautions(cautions),
        _html.table(head, rows, "Metrics of each model"),
        _html.table([*head, "corrected p"], pairs, "Differences between models"),
        _html.note(f"and {plural(more, 'more pair')}" if more > 0 else ""),
        _html.note(" ".join(["95% intervals are below the values.", *summary[1:]])),
    )


def of_predictions(title: str, rows: Sequence[Sequence[str]], paths: Sequence[str]) -> str:
    """Return a table of predictions, with thumbnails of the images that are files.

    Args:
        title: the title.
        rows: the heading, and a row of text for each image: its path first.
        paths: the images of the rows, which may be made-up names.
    """
    head, *cells = ([_html.text(cell, 200) for cell in row] for row in rows)
    pictures = in_threads(_thumbnail, list(paths))
    if any(picture is not None for picture in pictures):
        head.insert(1, "")
        for row, path, picture in zip(cells, paths, pictures, strict=True):
            row.insert(1, _html.thumbnail(picture, path))
    return _html.view(_html.title(title), _html.table(head, cells, "Predictions", kind="text"))


def _thumbnail(path: str) -> NDArray[np.uint8] | None:
    try:
        return decode(path, (_html.SIDE, _html.SIDE))
    except Exception:  # not a file, or broken
        return None
