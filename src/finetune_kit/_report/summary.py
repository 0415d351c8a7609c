"""What the page of a report and its view in a notebook share: main metrics and confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from finetune_kit._report.markup import breakable, table
from finetune_kit._report.results import Results

_TILES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC",
    "expected_calibration_error": "calibration error (ECE)",
}
_LARGE = 6  # columns of a confusion matrix above which their names are vertical


def tiles(report: Results) -> str:
    """Return the main metrics with their intervals."""
    shown = "".join(
        f'<div class="tile"><span>{label}</span><b>{estimate.value:.3f}</b>'
        f"<small>{estimate.interval()}</small></div>"
        for name, label in _TILES.items()
        if (estimate := report.metrics[name]).is_defined
    )
    return (
        f'<div class="tiles">{shown}</div><p><small>Below each value: its 95% interval. Of 100 '
        "test sets like this one, about 95 give an interval that holds the true value.</small></p>"
    )


def matrix(
    report: Results,
    *,
    hint: str = "",
    name: Callable[[str], str] = breakable,
    content: Callable[[tuple[int, int], str, int, str], str] = lambda cell, what, count, text: text,
) -> str:
    """Return the confusion matrix.

    Args:
        report: the report.
        hint: a further sentence above the matrix, as HTML.
        name: returns the name of a class as HTML.
        content: returns the HTML in a cell, from its row and column, what it counts, the count,
            and the count with its share as HTML.
    """
    counted = report.confusion_table()
    rows = []
    for i, true, counts, total in zip(
        counted.row_numbers,
        counted.rows,
        counted.counts.tolist(),
        counted.totals.tolist(),
        strict=True,
    ):
        row = [name(true)]
        for j, column, count in zip(counted.column_numbers, counted.columns, counts, strict=True):
            share = count / max(1, total)
            text = f"{count:,}<br><small>{share:.0%}</small>"
            what = f"{true}, {column}: {count}" if report.multi_label else (
                f"{true}, predicted as {column}: {count}")  # fmt: skip
            shown = content((i, j), what, count, text)
            row.append(f'<div class="cell" style="--share:{share:.3f}">{shown}</div>')
        rows.append(row)
    head = [escape(counted.corner)]
    head += [f"<span>{name(column)}</span>" for column in counted.columns]
    note = f"{counted.note} " if counted.note else ""
    note += f"Counts and shares of the row.{hint}"
    large = len(counted.columns) > _LARGE
    kind = f"matrix {'large' if large else 'small'}"
    shown = table(head, rows, "Confusion matrix", kind=kind, hint=large)
    return f"<p><small>{note}</small></p>{shown}"
