"""HTML elements that the pages share, besides those of `_html`.

A page has no script; the browser's own popovers and details open and close. All text from outside
(class names, file names) passes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from finetune_kit import _html
from finetune_kit._report.estimate import Estimate
from finetune_kit._report.style import STYLE

_NO_INTERVAL = (
    "No interval: every bootstrap resample gives the same value (for example because the class is "
    "perfectly separated), or the class was never predicted. This does not mean that the value is "
    "exact."
)
_UNDEFINED = "Undefined: there is no image of the class, or no image of another class."


def document(title: str, top: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole page.

    Args:
        title: title of the page, as text.
        top: what stands between the title and the first section, as HTML.
        sections: heading (text) and content (HTML) of each section; empty sections are left out.
    """
    shown = [(heading, html) for heading, html in sections if html]
    links = "".join(f'<li><a href="#s{i}">{escape(h)}</a></li>' for i, (h, _) in enumerate(shown))
    contents = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(shown) > 1 else ""
    body = "".join(
        f'<section id="s{i}" aria-labelledby="h{i}"><h2 id="h{i}">{escape(heading)}</h2>{html}'
        "</section>"
        for i, (heading, html) in enumerate(shown)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1></header><main>{top}"
        f"{contents}{body}</main></body></html>\n"
    )


def breakable(name: str) -> str:
    """Return a name as HTML that is broken behind `/` and `_` rather than within a word."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    name: str,
    *,
    kind: str = "",
    hint: bool = False,
    ranks: Sequence[Sequence[int]] = (),
) -> str:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        head: the column headings, as HTML.
        rows: the cells, as HTML; the first cell of each row is its heading.
        name: accessible name of the table.
        kind: CSS class of the table.
        hint: whether a hint to scroll stands above the table on narrow screens.
        ranks: for each column, the place of each row if the table is sorted by it. The reader can
            then choose the column; without ranks the rows keep their order.
    """
    orders = [
        "".join(f"--o{i}:{place};" for i, place in enumerate(p)) for p in zip(*ranks, strict=True)
    ]
    plain = _html.table(head, rows, name, kind=kind, styles=orders)
    shown = f"{SCROLL_HINT if hint else ''}{plain}"
    return _sortable(head, shown) if ranks else shown


def _sortable(head: Sequence[str], shown: str) -> str:
    """Return a table whose rows the reader sorts by a column, without a script."""
    buttons = "".join(
        f'<label><input type="radio" name="sort" value="{i}"{" checked" * (not i)}>{cell}</label> '
        for i, cell in enumerate(head)
    )
    return (
        f'<div class="sortable" style="--columns:{len(head) - 1}"><fieldset><legend>Sort by'
        f"</legend>{buttons}</fieldset>{shown}</div>"
    )


SCROLL_HINT = '<p class="hint">Scroll sideways to see all columns. →</p>'


def estimate_cell(estimate: Estimate, form: str = ".3f") -> str:
    """Return a value with its interval below it; the tooltip names the interval method."""
    method = escape(estimate.method)
    if not estimate.is_defined:
        return f'<span title="{method}">undefined</span>'
    value, ends = format(estimate.value, form), estimate.interval(form)
    return f'<span title="{method}">{value}<br><small>{ends}</small></span>'


def footnote(estimates: Iterable[Estimate], *, above: Iterable[Estimate] = ()) -> str:
    """Explain, below a table, why some estimates have no interval or no value.

    Notes that stand below a table with the estimates `above` are not repeated.
    """
    known = _notes(above)
    notes = [note for note in _notes(estimates) if note not in known]
    return f"<p><small>{' '.join(notes)}</small></p>" if notes else ""


def _notes(estimates: Iterable[Estimate]) -> list[str]:
    shown = list(estimates)
    notes = []
    if any(estimate.is_defined and not estimate.has_interval for estimate in shown):
        notes.append(_NO_INTERVAL)
    if any(not estimate.is_defined for estimate in shown):
        notes.append(_UNDEFINED)
    return notes


def cautions_box(cautions: Sequence[str]) -> str:
    """Return one box with all cautions; the first is visible, the others are folded."""
    if not cautions:
        return ""
    first = f"<b>Caution:</b> {escape(cautions[0])}"
    if len(cautions) == 1:
        return f'<p class="caution">{first}</p>'
    rest = "".join(f"<li>{escape(text)}</li>" for text in cautions[1:])
    more = f"{len(cautions) - 1} more caution{'s' if len(cautions) > 2 else ''}"
    return (
        f'<details class="caution"><summary>{first} <i>({more})</i></summary><ul>{rest}</ul>'
        "</details>"
    )


def drawing(svg: str, title: str, description: str) -> str:
    """Return a picture with its caption."""
    return (
        f'<figure class="drawing" role="img" aria-label="{escape(title)}: {escape(description)}">'
        f"{svg}<figcaption><b>{escape(title)}</b>: {escape(description)}</figcaption></figure>"
    )
