"""Pictures of a report and of a comparison, drawn with matplotlib (the extra `plots`).

Series differ in colour (Okabe and Ito's palette for colour-blind readers), dashes and markers.
matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn import metrics

from finetune_kit._report.bootstrap import BINS, one_hot
from finetune_kit._report.estimate import Estimate, proportion
from finetune_kit._report.figures import drawn_by
from finetune_kit._report.metrics import calibration_bins
from finetune_kit._report.results import Example, Results
from finetune_kit._text import plural, printable

OF_REPORT = ("confusion_matrix", "learning_curves", "curves", "calibration", "mistakes")
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_CURVES = 8  # classes that have curves, at most
_SHEET = 12  # images on the sheet of misclassified images, at most
_NUMBERED = 400  # cells of a confusion matrix that shows numbers, at most


def of_report(report: Results) -> dict[str, tuple[bytes, str]]:
    """Return the pictures of a report by name, each as PNG and as SVG for a page.

    Pictures without content are left out.
    """
    functions = (confusion, learning_curves, ranking_curves, reliability, misclassified)
    pairs = zip(OF_REPORT, functions, strict=True)
    drawn = {name: drawn_by(partial(draw, report), name) for name, draw in pairs}
    return {name: pair for name, pair in drawn.items() if pair is not None}


def confusion(report: Results) -> Any:
    """Draw the confusion matrix: counts, and the share of the row as a shade."""
    table = report.confusion_table()
    counts = table.counts
    shares = counts / np.maximum(table.totals[:, None], 1)
    height, width = counts.shape
    numbered = counts.size <= _NUMBERED
    across, down, letters = (1.05, 0.9, 13) if numbered else (0.4, 0.35, 9)
    figure = _figure(3.6 + across * width, 2.4 + down * height)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(shares.shape) if numbered else ():
        share = shares[row, column]
        color = "white" if share > 0.55 else "#111111"
        text = f"{counts[row, column]:,}\n{share:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=13)
    names = [f"{_short(name)} ({report.support[name]:,})" for name in table.rows]
    if table.note:
        axes.set_title(table.note, fontsize=14)
    axes.set_xticks(
        range(width),
        [*map(_short, table.columns)],
        rotation=30,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(height), names)
    axes.tick_params(labelsize=letters)
    if not report.multi_label:
        axes.set_xlabel("predicted class", fontsize=14)
        axes.set_ylabel("true class", fontsize=14)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.set_label("share of the row", fontsize=13)
    return figure


def learning_curves(report: Results) -> Any:
    """Draw loss and metrics per epoch, with lines where a phase starts and at the kept epoch."""
    from matplotlib.ticker import MaxNLocator

    history, kept_epoch = report.history, report.kept_epoch
    if not history:
        return None
    left_out = {"epoch", "phase", "learning_rate"}
    names = [n for n in history if n not in left_out and not n.startswith("val_")][:4]
    figure = _figure(4.8 * len(names), 3.8)
    starts = np.flatnonzero(np.diff(history.get("phase", ()))) + 1.5
    for axes, metric in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        for key, label, style, color in (
            (metric, "training", "-o", _COLORS[0]),
            (f"val_{metric}", "validation", "--s", _COLORS[1]),
        ):
            values = history.get(key, [])
            if len(values):
                epochs = range(1, len(values) + 1)
                axes.plot(epochs, values, style, label=label, markersize=3, color=color)
        for number, place in enumerate(starts, start=2):
            axes.axvline(place, color="gray", linestyle=":")
            axes.text(place, 1.0, f" phase {number}", fontsize="small", va="bottom",
                      transform=axes.get_xaxis_transform())  # fmt: skip
        if kept_epoch:
            axes.axvline(kept_epoch, color=_COLORS[2], linestyle="-.",
                         label=f"epoch {kept_epoch} was kept")  # fmt: skip
        axes.set(xlabel="epoch", ylabel=metric.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def ranking_curves(report: Results) -> Any:
    """Draw the ROC and precision-recall curves of each class against the rest."""
    truth = one_hot(report.labels, len(report.class_names))
    defined = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    if not len(defined):
        return None
    figure = _figure(9.6, 4.6)
    left, right = figure.subplots(1, 2)
    shown = report.most_confused(_CURVES, defined.tolist())
    for i, style in zip(shown, _styles(), strict=False):
        false, true, _ = metrics.roc_curve(truth[:, i], report.scores[:, i])
        precision, recall, _ = metrics.precision_recall_curve(truth[:, i], report.scores[:, i])
        name = report.class_names[i]
        found = report.class_metrics[name]
        area, average = found["roc_auc"].value, found["average_precision"].value
        left.plot(false, true, label=f"{_label(name)} ({area:.3f})", **style)
        right.plot(recall, precision, drawstyle="steps-pre",
                   label=f"{_label(name)} ({average:.3f})", **style)  # fmt: skip
    left.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    some = f", {len(shown)} most confused of {len(defined):,}" if len(shown) < len(defined) else ""
    left.set_title(f"ROC curve (area{some})", fontsize="medium")
    right.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    right.set_title("precision-recall curve (average precision)", fontsize="medium")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    return figure


def reliability(report: Results) -> Any:
    """Draw accuracy against predicted probability in bins, with Wilson intervals and counts."""
    count = report.labels.size  # images, or images times labels
    number = 5 if count < 500 else 10 if count < 5000 else BINS
    bins = calibration_bins(report.labels, report.scores, number)
    filled = np.flatnonzero(bins.counts)
    found = [proportion(int(bins.correct[i]), int(bins.counts[i])) for i in filled]
    values = np.array([estimate.value for estimate in found])
    ends = [values - [e.low for e in found], [e.high for e in found] - values]
    figure = _figure(5.4, 5.4)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="gray", linewidth=0.8, label="perfect calibration")
    top.errorbar(bins.confidence[filled], values, yerr=np.maximum(ends, 0), fmt="o", capsize=3,
                 color=_COLORS[0], label=f"accuracy in {number} bins (95% intervals)")  # fmt: skip
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.03, 1.03))
    error = report.metrics["expected_calibration_error"]
    middles = (np.arange(number) + 0.5) / number
    bars = bottom.bar(middles, bins.counts, 0.9 / number, color=_COLORS[0])
    bottom.bar_label(bars, [f"{n:,}" if n else "" for n in bins.counts], fontsize="small")
    bottom.set(xlabel="predicted probability", ylabel="labels" if report.multi_label else "images")
    bottom.margins(y=0.25)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    other = "" if number == BINS else f"; it uses {BINS} bins, the diagram {number}"
    figure.legend(loc="outside upper center", ncols=2, frameon=False,
                  title=f"ECE {error}{other}")  # fmt: skip
    return figure


def misclassified(report: Results) -> Any:
    """Draw the most confident misclassified images, each beside its heat map."""
    wrong = [example for example in report.examples if report.is_misclassified(example)]
    if not wrong:
        return None
    shown = sorted(wrong, key=lambda example: -example.probability)[:_SHEET]
    maps = sum(bool(example.heat_map) for example in shown)
    columns = min(3 if maps else 4, len(shown))
    rows = -(-len(shown) // columns)
    cell = 4.4 if maps else 2.9
    figure = _figure(max(5.0, cell * columns), 0.6 + 2.75 * rows)
    grid = np.ravel(figure.subplots(rows, columns))
    for axes in grid:
        axes.axis("off")
    for axes, example in zip(grid, shown, strict=False):
        axes.imshow(_beside(example, wide=bool(maps)))
        none = "; no region raised the score" if example.heat_map == b"" else ""
        caption = textwrap.fill(report.caption(example) + none, 34 if maps else 24)
        axes.set_title(caption, fontsize=13, loc="left")
    total = report.misclassified
    noun = "wrong label" if report.multi_label else "misclassified image"
    title = f"The {len(shown)} most confident of {plural(total, noun)}"
    if len(shown) == total:
        title = f"All {plural(total, noun)}, most confident first"
    if total == 1:
        title = f"The {noun}"
    if maps:
        some = f"{maps} with {'a heat map' if maps == 1 else 'heat maps'}"
        title += ", with heat maps" if 1 < maps == len(shown) else f", {some}"
    figure.suptitle(title, fontsize=14)
    return figure


def _beside(example: Example, *, wide: bool) -> NDArray[np.uint8]:
    """Return the pixels of an example; if `wide`, beside its heat map or an empty area."""
    picture = np.asarray(Image.open(io.BytesIO(example.picture)).convert("RGB"))
    height, width = picture.shape[:2]
    if not wide:
        return picture
    if not example.heat_map:
        free = np.full((height, width // 40 + width, 3), 255, np.uint8)
        return np.concatenate([picture, free], axis=1)
    heat = np.asarray(Image.open(io.BytesIO(example.heat_map)).convert("RGB"))
    gap = np.full((height, width // 40, 3), 255, np.uint8)
    return np.concatenate([picture, gap, heat], axis=1)


def compared(models: Mapping[str, Mapping[str, Estimate]], names: Sequence[str], axis: str) -> Any:
    """Draw accuracy and macro F1 of several models with their intervals."""
    wanted = {"accuracy": "accuracy", "macro_f1": "macro F1"}
    figure = _figure(max(5.2, 1.8 + 1.1 * len(models)), 4.0)
    axes = figure.subplots()
    for shift, (key, label), style in zip((-0.1, 0.1), wanted.items(), _styles(), strict=False):
        found = [metrics[key] for metrics in models.values()]
        ends = [[e.value - e.low for e in found], [e.high - e.value for e in found]]
        axes.errorbar(np.arange(len(found)) + shift, [e.value for e in found], yerr=ends,
                      marker=_MARKERS[shift > 0], capsize=3, label=label,
                      **{**style, "linestyle": "none"})  # fmt: skip
    axes.set_xticks(range(len(names)), [textwrap.fill(_short(name), 16) for name in names])
    axes.set(xlabel=axis, ylabel="value on the test images")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _styles() -> Iterator[dict[str, str]]:
    for color, dash in zip(cycle(_COLORS), cycle(_DASHES), strict=False):
        yield {"color": color, "linestyle": dash}


def _short(name: str) -> str:
    """Return a name on one line, of at most 40 letters."""
    line = " ".join(printable(name).split())
    return line if len(line) <= 40 else f"{line[:39]}…"


def _label(name: str) -> str:
    """Return a name for a legend, from which matplotlib leaves out what begins with a line."""
    return f"\u200b{_short(name)}"
