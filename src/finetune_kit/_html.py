"""HTML elements of the pages and of the views in notebooks.

A view inherits the colors of the notebook, so that it is legible in light and in dark themes, and
its style applies only inside it. Nothing has a script. All text from outside (class names, file
names) passes through `text` or `html.escape`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune_kit._text import printable

SIDE = 72  # height and width of a thumbnail in pixels
MOST_PICTURES = 32  # thumbnails of one view, about 150 kB at most
MOST_ROWS = 30  # rows of a table of one view
_LETTERS = 80  # of a name in a view, at most

# `div.ftk-view` outranks the tables' styles of Jupyter and of MyST-NB, some of which fix colors.
_STYLE = """
div.ftk-view{line-height:1.4}
div.ftk-view p,div.ftk-view details{margin:.4em 0}
div.ftk-view summary{cursor:pointer}
div.ftk-view small{opacity:.8}
div.ftk-view .wide{overflow-x:auto}
div.ftk-view table{border-collapse:collapse;margin:.5em 0;table-layout:auto;width:auto;
color:inherit;font-size:.9em;font-variant-numeric:tabular-nums;border:0}
div.ftk-view tr:nth-child(n){background:none}
div.ftk-view tr>*{padding:.2em .7em .2em 0;border:0;border-bottom:1px solid rgba(128,128,128,.4);
text-align:right;vertical-align:top;font-weight:normal;max-width:none;overflow-wrap:anywhere}
div.ftk-view thead th{font-weight:600;vertical-align:bottom;white-space:nowrap}
div.ftk-view tr>:first-child,div.ftk-view .text tr>*{text-align:left}
div.ftk-view .sheet{text-align:left}
div.ftk-view figure{display:inline-block;vertical-align:top;margin:0 .4em .2em 0;width:72px;
font-size:.8em;line-height:1.2;overflow-wrap:anywhere}
div.ftk-view figure:has(figcaption){width:8em}
div.ftk-view .beside figure:has(figcaption){width:auto}
div.ftk-view figure img,div.ftk-view .missing{display:block;width:72px;height:72px;margin:0 0 .2em}
div.ftk-view .missing{box-sizing:border-box;border:1px dashed;opacity:.7;padding:.4em}
div.ftk-view .text figure,div.ftk-view .text figure>*{width:48px;height:48px;margin:0}
div.ftk-view td small{white-space:nowrap}
div.ftk-view .beside{display:flex;flex-wrap:wrap;gap:.4em 1.5em}
div.ftk-view .tiles{display:flex;flex-wrap:wrap;gap:.4em 2em;margin:.5em 0}
div.ftk-view .tile{display:flex;flex-direction:column}
div.ftk-view .tile b{font-size:1.4em;line-height:1.3}
div.ftk-view .caution{border-left:.25em solid #d55e00;padding-left:.6em;margin:.5em 0}
div.ftk-view .cell{background:rgba(86,150,213,calc(var(--share)*.6));padding:.2em .6em;
text-align:center}
div.ftk-view .matrix tr>*{border:0;padding:.1em .3em .1em 0;vertical-align:middle}
div.ftk-view .matrix thead th:not(:first-child){text-align:center;padding:0 .5em}
div.ftk-view .large thead th:not(:first-child) span{writing-mode:vertical-rl;
transform:rotate(180deg);text-align:left}
div.ftk-view dl{margin:.4em 0;display:block}
div.ftk-view dl div{display:flex;flex-wrap:wrap;gap:0 1em}
div.ftk-view dt{min-width:9em;font-weight:600}
div.ftk-view dd{margin:0;flex:1 1 20em;overflow-wrap:anywhere}
"""


def view(*parts: str) -> str:
    """Return what a notebook shows for a value, from parts that are HTML."""
    return f'<div class="ftk-view"><style>{_STYLE}</style>{"".join(parts)}</div>'


def title(value: str) -> str:
    """Return the first line of a view."""
    return f"<p><strong>{text(value, 400)}</strong></p>"


def note(value: str) -> str:
    """Return a line in small letters, or nothing for an empty text."""
    return f"<p><small>{text(value, 400)}</small></p>" if value else ""


def folded(summary: str, html: str) -> str:
    """Return HTML that the reader unfolds."""
    return f"<details><summary>{text(summary)}</summary>{html}</details>"


def text(value: object, most: int = _LETTERS) -> str:
    """Return text from outside as HTML, on one line and cut off after `most` characters."""
    line = " ".join(printable(str(value)).split())
    return escape(line if len(line) <= most else f"{line[: most - 1]}…")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    name: str,
    *,
    kind: str = "",
    styles: Iterable[str] = (),
) -> str:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        head: the column headings, as HTML.
        rows: the cells, as HTML; the first cell of each row is its heading.
        name: accessible name of the table.
        kind: CSS class of the table.
        styles: a CSS style of each row.
    """
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    attributes = [f' style="{style}"' for style in styles]
    body = "".join(
        f'<tr{attribute}><th scope="row">{row[0]}</th>'
        f"{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row, attribute in zip(rows, attributes or repeat(""), strict=False)
    )
    css = f' class="{kind}"' if kind else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">'
        f"<table{css}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def thumbnail(pixels: NDArray[np.uint8] | None, description: str, caption: str = "") -> str:
    """Return a small picture with a tooltip, or a placeholder for an image that cannot be read.

    Args:
        pixels: RGB pixels, uint8 `(height, width, 3)`, or None.
        description: what it shows, as text.
        caption: what stands below it, as HTML.
    """
    shown = '<div class="missing">not readable</div>' if pixels is None else _small(pixels)
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure title="{text(description, 200)}">{shown}{below}</figure>'


def _small(pixels: NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    picture.save(content, "jpeg", quality=75)
    return image(content.getvalue(), "")  # the tooltip of the figure describes it


def image(jpeg: bytes, description: str) -> str:
    """Return an image that is part of the page."""
    data = base64.b64encode(jpeg).decode()
    return f'<img loading="lazy" alt="{escape(description)}" src="data:image/jpeg;base64,{data}">'


def sheet(figures: Iterable[str]) -> str:
    """Return figures side by side."""
    return f'<div class="sheet">{"".join(figures)}</div>'


def definitions(values: Mapping[str, Any]) -> str:
    """Return names and values as a list; None is left out."""
    pairs = (
        f"<div><dt>{escape(label(name))}</dt><dd>{_value(value)}</dd></div>"
        for name, value in values.items()
        if value is not None
    )
    return f"<dl>{''.join(pairs)}</dl>"


def label(name: str) -> str:
    """Return the name of a plain value as people write it."""
    return str(name).replace("_", " ").replace("sha256", "SHA-256")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ((k, _value(v)) for k, v in value.items() if v is not None)
        return ", ".join(f"{escape(str(name))}={text}" for name, text in pairs)
    if isinstance(value, (list, tuple)):
        return "<br>".join(map(_value, value))
    return escape(format(value, {int: ",", float: ".6g"}.get(type(value), "")))
