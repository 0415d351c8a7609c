"""Figures and examples come in, pictures go out; all of them look alike.

Made with matplotlib (the extra `plots`), which is loaded when the first is drawn. Series are told
apart by colour (Okabe and Ito's, made for colour-blind readers), by dashes and by markers. It knows
no model and writes no file.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn import metrics

from finetune_kit._report.metrics import Figure, calibration

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_CURVES = 8  # so many classes have curves of their own
OF_REPORT = ("confusion_matrix", "learning_curves", "curves", "calibration", "mistakes")
_log = logging.getLogger("finetune_kit")


def available(what: Any) -> bool:
    """Is matplotlib there? If not, it is said once for each report."""
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        _log.warning(
            "%s: no pictures, because matplotlib is not installed "
            "(pip install 'finetune-kit[plots]')",
            what,
        )
    return found


def of_report(report: Any) -> dict[str, Any]:
    """The pictures of a `Report` by name, those that have something to show."""
    corner, columns, rows = report.counts()
    drawn = {"confusion_matrix": confusion(corner, columns, rows, report.support)}
    if report.history:
        drawn["learning_curves"] = learning_curves(report.history)
    truth = report.labels if report.many else np.eye(report.scores.shape[1])[report.labels]
    if any(0 < column.sum() < len(column) for column in truth.T):
        drawn["curves"] = rank_curves(truth, report.scores, report.class_figures)
    drawn["calibration"] = reliability(report.labels, report.scores, report.figures)
    wrong = [example for example in report.examples if report.is_mistake(example)]
    if wrong:
        drawn["mistakes"] = mistakes(wrong, report.caption)
    return drawn


def confusion(
    corner: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, list[int]]],
    support: Mapping[str, int],
) -> Any:
    """Counts and shares of each row, the darker the more."""
    counts = np.array([row for _, row in rows])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    height, width = counts.shape
    figure = _figure(3.0 + 0.95 * width, 2.2 + 0.8 * height)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(shares.shape) if counts.size <= 400 else ():
        share = shares[row, column]
        ink = "white" if share > 0.55 else "#111111"  # on the cell, whatever the page's ink
        text = f"{counts[row, column]:,}\n{share:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=ink)
    axes.set_xticks(range(width), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(height), [f"{name} ({support[name]:,})" for name, _ in rows])
    if corner != "label":
        axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the row")
    return figure


def learning_curves(history: Mapping[str, Sequence[float]]) -> Any:
    """Loss and metrics, of training and validation; a line where a phase begins."""
    from matplotlib.ticker import MaxNLocator

    own = {"epoch", "phase", "learning_rate"}
    names = [n for n in history if n not in own and not n.startswith("val_")][:4]
    figure = _figure(4.5 * len(names), 3.6)
    begins = np.flatnonzero(np.diff(history.get("phase", ()))) + 1.5
    for axes, metric in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        for key, label, style in (
            (metric, "training", "-o"),
            (f"val_{metric}", "validation", "--s"),
        ):
            values = history.get(key, [])
            if len(values):
                colour = _COLOURS[label == "validation"]
                epochs = range(1, len(values) + 1)
                axes.plot(epochs, values, style, label=label, markersize=3, color=colour)
        for number, place in enumerate(begins, start=2):
            axes.axvline(place, color="gray", linestyle=":")
            axes.text(place, 1.0, f" phase {number}", fontsize="small", va="bottom",
                      transform=axes.get_xaxis_transform())  # fmt: skip
        axes.set(xlabel="epoch", ylabel=metric.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def rank_curves(
    truth: NDArray[Any], scores: NDArray[np.float64], figures: Mapping[str, Mapping[str, Figure]]
) -> Any:
    """ROC and precision-recall curves of each class against the rest."""
    figure = _figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    told = [i for i in range(truth.shape[1]) if 0 < truth[:, i].sum() < len(truth)]
    names = list(figures)
    for i, style in zip(told[:_CURVES], _styles(), strict=False):
        false, true, _ = metrics.roc_curve(truth[:, i], scores[:, i])
        precision, recall, _ = metrics.precision_recall_curve(truth[:, i], scores[:, i])
        area, average = (figures[names[i]][x].value for x in ("roc_auc", "average_precision"))
        left.plot(false, true, label=f"{_escaped(names[i])} ({area:.3f})", **style)
        right.plot(recall, precision, drawstyle="steps-pre",
                   label=f"{_escaped(names[i])} ({average:.3f})", **style)  # fmt: skip
    left.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    left.set_title("ROC (area)", fontsize="medium")
    right.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    right.set_title("precision-recall (average precision)", fontsize="medium")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    return figure


def reliability(
    labels: NDArray[np.int64], scores: NDArray[np.float64], figures: Mapping[str, Figure]
) -> Any:
    """How often the model was right, where it was how sure; and how many images were there."""
    sure, right, weights, _ = calibration(labels, scores)
    figure = _figure(4.8, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    some = weights > 0
    top.plot([0, 1], [0, 1], color="gray", linewidth=0.8, label="as sure as right")
    top.plot(sure[some], right[some], "-o", color=_COLOURS[0], label="the model")
    top.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.03))
    top.set_title(f"calibration error {figures['calibration_error']}", fontsize="medium")
    bottom.bar((np.arange(len(weights)) + 0.5) / len(weights), weights, 0.9 / len(weights),
               color=_COLOURS[0])  # fmt: skip
    bottom.set(xlabel="probability that the model told", ylabel="share of all")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    top.legend(fontsize="small", frameon=False)
    return figure


def mistakes(examples: Sequence[Any], caption: Any) -> Any:
    """A sheet of the most confident mistakes, with where the model looked."""
    shown = sorted(examples, key=lambda example: -example.probability)[:12]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = _figure(2.3 * columns, 2.9 * rows)
    grid = np.ravel(figure.subplots(rows, columns))
    for axes in grid:
        axes.axis("off")
    for axes, example in zip(grid, shown, strict=False):
        axes.imshow(np.asarray(Image.open(io.BytesIO(example.heat_map or example.picture))))
        axes.set_title(_escaped(textwrap.fill(caption(example), 26)), fontsize="small")
    return figure


def compared(figures: Mapping[str, Mapping[str, Figure]], names: Sequence[str], axis: str) -> Any:
    """Figures of several models with their intervals, side by side."""
    wanted = {"accuracy": "accuracy", "macro_f1": "macro F1"}
    figure = _figure(max(4.8, 1.6 + 0.9 * len(figures)), 3.8)
    axes = figure.subplots()
    for shift, (key, label), style in zip((-0.1, 0.1), wanted.items(), _styles(), strict=False):
        values = [figures[name][key] for name in figures]
        ends = [[f.value - f.low for f in values], [f.high - f.value for f in values]]
        axes.errorbar(np.arange(len(values)) + shift, [f.value for f in values], yerr=ends,
                      marker=_MARKERS[shift > 0], capsize=3, label=label,
                      **{**style, "linestyle": "none"})  # fmt: skip
    axes.set_xticks(range(len(names)), map(_escaped, names))
    axes.set(xlabel=axis, ylabel="on the same test images")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def png(figure: Any) -> bytes:
    """The picture as PNG, for print and for reading."""
    buffer = io.BytesIO()
    _save(figure, buffer, format="png", dpi=150)
    return buffer.getvalue()


def svg(figure: Any, name: str) -> str:
    """The picture as SVG to stand in a page: its ink is the page's, light or dark."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        _save(figure, buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace("#000000", "currentColor")


def _save(figure: Any, buffer: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        # One for each letter that matplotlib's font lacks; in the page the browser's font has it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, **options)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(width, height), layout="constrained")


def _styles() -> Any:
    return (
        {"color": colour, "linestyle": dash}
        for colour, dash in zip(cycle(_COLOURS), cycle(_DASHES), strict=False)
    )


def _escaped(text: str) -> str:
    """Matplotlib takes dollars for formulas."""
    return str(text).replace("$", r"\$")
