"""A report comes in, one HTML page goes out that needs no other file and no network.

No script runs in it: what opens is the browser's own popover. Every text from outside (class and
file names) passes through `html.escape`. It knows no model and writes no file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from finetune_kit._report import pictures as _pictures
from finetune_kit._report.metrics import OVERALL, PER_CLASS, Figure

_LABELS = {
    "learning_curves": ("Learning curves", "training and validation, epoch by epoch"),
    "curves": ("ROC and precision-recall curves", "each class against the rest"),
    "calibration": ("Calibration", "how often the model is right when it is how sure"),
}


def of_report(report: Any, title: str, pictures: Mapping[str, Any]) -> str:
    """The page of a `Report`, with its pictures by name (none without matplotlib)."""
    drawn = {name: _drawing(name, pictures[name]) for name in _LABELS if name in pictures}
    wrong = [example for example in report.examples if report.is_mistake(example)]
    right = [e for e in report.examples if not report.is_mistake(e) and e.heat_map]
    sections = [
        ("At a glance", _glance(report)),
        ("Figures", _overall(report) + _classes(report)),
        ("Which is taken for which", _matrix(report)),
        ("Mistakes", _gallery(report, wrong, "The most confident first.")),
        ("Hits", _gallery(report, right, "Where the model looked when it was right.")),
        ("Curves", "".join(drawn.values())),
        ("What trained", "".join(plan._repr_html_() for plan in report.plans)),
        ("Where this comes from", _about(report.about)),
    ]
    return document(title, [(heading, body) for heading, body in sections if body])


def of_comparison(
    title: str,
    figures: Mapping[str, Mapping[str, Figure]],
    differences: Sequence[Any],
    picture: str,
    cautions: Sequence[str],
) -> str:
    """The page of a `Comparison`: its models' figures by name, their differences, a picture."""
    models = [
        [escape(label), *(figure_cell(each[name]) for each in figures.values())]
        for name, label in OVERALL.items()
    ]
    pairs = [
        [
            escape(label),
            *(figure_cell(difference.figures[name], "+.3f") for difference in differences),
        ]
        for name, label in OVERALL.items()
    ]
    names = [f"{escape(d.second)} less {escape(d.first)}" for d in differences]
    told = "".join(f"<li>{escape(difference.conclusion)}</li>" for difference in differences)
    sections = [
        ("What may be concluded", f"{_minded(cautions)}<ul>{told}</ul>{picture}"),
        ("Figures", table(["", *map(escape, figures)], models, "Each model")),
        ("Differences", table(["", *names], pairs, "Paired, on the same images")),
    ]
    return document(title, sections)


def document(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page of headings with what stands below each."""
    links = "".join(
        f'<li><a href="#s{i}">{escape(h)}</a></li>' for i, (h, _) in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{i}" aria-labelledby="h{i}"><h2 id="h{i}">{escape(heading)}</h2>{html}'
        "</section>"
        for i, (heading, html) in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><nav aria-label="Sections"><ul>{links}</ul></nav>'
        "</header>"
        f"<main>{body}</main></body></html>\n"
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", *, name: str = ""
) -> str:
    """A table of HTML cells, the first of each row its heading; it scrolls where it is too wide."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name or caption)}">'
        f"<table>{told}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure_cell(figure: Figure, form: str = ".3f") -> str:
    """A figure with its interval below it; how that was found is its tooltip."""
    if figure.value != figure.value:
        return f'<span title="{escape(figure.method)}">undefined</span>'
    value, method = format(figure.value, form), escape(figure.method)
    if figure.low != figure.low:
        return f"{value}<br><small>{method}</small>"
    ends = f"{figure.low:{form}} to {figure.high:{form}}"
    return f'<span title="{method}">{value}<br><small>{ends}</small></span>'


def _minded(cautions: Sequence[str]) -> str:
    return "".join(f'<p class="warning"><b>Mind:</b> {escape(text)}</p>' for text in cautions)


def _glance(report: Any) -> str:
    tiles = "".join(
        f'<div class="tile"><b>{figure.value:.3f}</b><span>{OVERALL[name]}</span>'
        f"<small>{_ends(figure)}</small></div>"
        for name, figure in report.figures.items()
        if name in ("accuracy", "macro_f1", "roc_auc", "calibration_error")
        and figure.value == figure.value
    )
    return (
        f"<p>{len(report.labels):,} images, {len(report.class_names)} "
        f"{'labels' if report.many else 'classes'}. Below each figure stands its 95 % interval: of "
        "100 test sets of this size and kind, the interval holds the true value in 95.</p>"
        f'{_minded(report.cautions())}<div class="tiles">{tiles}</div>'
    )


def _ends(figure: Figure) -> str:
    if figure.low != figure.low:
        return "no interval"
    return f"{figure.low:.3f} to {figure.high:.3f}"


def _overall(report: Any) -> str:
    rows = [[escape(label), figure_cell(report.figures[name])] for name, label in OVERALL.items()]
    by_method: dict[str, list[str]] = {}
    for name, label in OVERALL.items():
        by_method.setdefault(report.figures[name].method, []).append(label)
    most = max(by_method, key=lambda method: len(by_method[method]))
    others = (f"{', '.join(labels)}: {m}" for m, labels in by_method.items() if m != most)
    found = "; ".join([*others, f"the others: {most}"])
    return table(["", "value"], rows, "All images") + f"<p><small>{escape(found)}.</small></p>"


def _classes(report: Any) -> str:
    rows = [
        [
            escape(name),
            *(figure_cell(report.class_figures[name][column]) for column in PER_CLASS),
            f"{report.support[name]:,}",
        ]
        for name in report.class_names
    ]
    kind = "label" if report.many else "class"
    return table(["", *PER_CLASS.values(), "images"], rows, f"By {kind}")


def _matrix(report: Any) -> str:
    corner, columns, rows = report.counts()
    shown: dict[tuple[int, int], list[Any]] = {}
    for example in report.examples:
        shown.setdefault(example.cell, []).append(example)
    cells, boxes = [], []
    for i, (name, counts) in enumerate(rows):
        row = [escape(name)]
        for j, count in enumerate(counts):
            share = count / max(1, sum(counts))
            mark = f'style="--share:{share:.3f}"'
            text = f"{count:,}<br><small>{share:.0%}</small>"
            what = f"{name}, {columns[j]}: {count}"
            if (i, j) in shown:
                boxes.append(_box(report, f"c{i}-{j}", what, count, shown[i, j]))
                text = (
                    f'<button popovertarget="c{i}-{j}" aria-label="{escape(what)}, show images">'
                    f"{text}</button>"
                )
            row.append(f'<div class="cell" {mark}>{text}</div>')
        cells.append(row)
    hint = " Press a number to see the images behind it." if boxes else ""
    head = [escape(corner), *map(escape, columns)]
    counted = table(head, cells, name="Confusion matrix")
    return f"<p>Counts and shares of the row.{hint}</p>{counted}{''.join(boxes)}"


def _box(report: Any, name: str, what: str, count: int, examples: Sequence[Any]) -> str:
    rest = f", the {len(examples)} most confident" if len(examples) < count else ""
    return (
        f'<div popover id="{name}" role="dialog" aria-label="{escape(what)}">'
        f'<button class="close" popovertarget="{name}" popovertargetaction="hide">Close</button>'
        f"<h3>{escape(what)}{rest}</h3>{_pictures_of(report, examples)}</div>"
    )


def _gallery(report: Any, examples: Sequence[Any], text: str) -> str:
    if not examples:
        return ""
    shown = sorted(examples, key=lambda example: -example.probability)[:24]
    maps = (
        " The warmer the colour, the more it spoke for what was told."
        if any(example.heat_map for example in shown)
        else ""
    )
    return f"<p>{text}{maps}</p>{_pictures_of(report, shown)}"


def _pictures_of(report: Any, examples: Sequence[Any]) -> str:
    def images(example: Any, what: str) -> str:
        looked = example.heat_map and _image(example.heat_map, f"where the model looked: {what}")
        return _image(example.picture, what) + (looked or "")

    figures = "".join(
        f"<figure>{images(example, report.caption(example))}"
        f"<figcaption>{escape(report.caption(example))}<br><small>{escape(example.name)}</small>"
        "</figcaption></figure>"
        for example in examples
    )
    return f'<div class="gallery">{figures}</div>'


def _image(jpeg: bytes, alt: str) -> str:
    data = base64.b64encode(jpeg).decode()
    return f'<img loading="lazy" alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'


def _drawing(name: str, picture: Any) -> str:
    title, says = _LABELS[name]
    return drawing(name, picture, title, says)


def drawing(name: str, picture: Any, title: str, says: str) -> str:
    """A picture of matplotlib's with its caption."""
    return (
        f'<figure class="drawing" role="img" aria-label="{escape(title)}: {escape(says)}">'
        f"{_pictures.svg(picture, name)}<figcaption><b>{escape(title)}</b>: {escape(says)}"
        "</figcaption></figure>"
    )


def _about(about: Mapping[str, Any]) -> str:
    return "".join(
        f"<h3>{escape(name)}</h3>{_values(values)}"
        for name, values in about.items()
        if isinstance(values, Mapping)
    )


def _values(values: Mapping[str, Any]) -> str:
    """Names and what they stand for, what is None left out."""

    def told(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(
                f"{escape(str(k))} {told(v)}" for k, v in value.items() if v is not None
            )
        if isinstance(value, (list, tuple)):
            return "<br>".join(map(told, value))
        form = {int: ",", float: ".6g"}.get(type(value), "")
        return escape(format(value, form))

    pairs = (
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{told(value)}</dd></div>"
        for name, value in values.items()
        if value is not None
    )
    return f"<dl>{''.join(pairs)}</dl>"


_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#f3f5f7;--line:#c9d1d9;
--accent:0,114,178;--link:#0a5ea8}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--paper:#14171a;--soft:#20252a;
--line:#454d55;--accent:86,180,233;--link:#7cc4f5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:0 1rem 3rem;font:1rem/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
a{color:var(--link)}h1{margin:1.2rem 0 .4rem;overflow-wrap:anywhere}
h2{margin:2.2rem 0 .6rem;padding-top:.4rem;border-top:1px solid var(--line)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:0;padding:0}
small{font-size:.82em;opacity:.85}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.2rem 0;font-weight:600}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
tbody th,thead th:first-child{text-align:left;overflow-wrap:break-word;max-width:16rem}
td small{white-space:nowrap}
dl{margin:.4rem 0}dl div{display:flex;flex-wrap:wrap;gap:0 .8rem;padding:.15rem 0;
border-bottom:1px solid var(--line)}
dt{min-width:11rem;font-weight:600}dd{margin:0;flex:1 1 14rem;overflow-wrap:anywhere}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem}
.tile{background:var(--soft);border:1px solid var(--line);border-radius:.5rem;padding:.7rem 1rem;
display:flex;flex-direction:column;min-width:9rem}.tile b{font-size:1.7rem;line-height:1.2}
.warning{border-left:.3rem solid #d55e00;background:var(--soft);padding:.5rem .8rem}
.cell{background:rgba(var(--accent),calc(var(--share)*.55));border-radius:.3rem;min-width:4.5rem}
.cell,.cell button{text-align:center}
.cell button{all:unset;cursor:pointer;display:block;width:100%;padding:.1rem .4rem;
text-decoration:underline dotted;text-align:center;box-sizing:border-box}
.cell button:focus-visible,.close:focus-visible,.wide:focus-visible,a:focus-visible{
outline:3px solid var(--link);outline-offset:2px}
[popover]{max-width:min(60rem,94vw);max-height:88vh;overflow:auto;border:1px solid var(--line);
border-radius:.6rem;padding:1rem;color:var(--ink);background:var(--paper)}
[popover]::backdrop{background:rgba(0,0,0,.5)}
.close{position:sticky;top:0;float:right;font:inherit;padding:.3rem .8rem}
.gallery{display:flex;flex-wrap:wrap;gap:.8rem}
.gallery figure{margin:0;max-width:20rem;break-inside:avoid}
.gallery img{width:9.5rem;max-width:44vw;height:auto;margin-right:.25rem;border-radius:.3rem}
figcaption{font-size:.9rem;overflow-wrap:anywhere}
.drawing{margin:1rem 0;break-inside:avoid}.drawing svg{max-width:100%;height:auto}
.drawing text{fill:currentColor}
.freeze-plan{overflow-x:auto}
@media print{:root{color-scheme:light;--ink:#000;--paper:#fff;--soft:#fff;--line:#999;
--accent:0,114,178;--link:#000}nav,[popover]{display:none}body{max-width:none}
body{font-size:10pt}.wide,.freeze-plan{overflow:visible}.freeze-plan{font-size:8pt}
tr{break-inside:avoid}h2,h3,h2+p{break-after:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
