"""Plots of recipes and of learning rates, drawn with matplotlib (the extra `plots`)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from finetune_kit._train.evidence import Evidence

_COLOR, _CHOSEN = "#0072B2", "#D55E00"


def of_evidence(evidence: Sequence[Evidence], against: str) -> Any:
    """Draw the losses of recipes with their standard errors, and beside them the accuracies.

    Args:
        evidence: a row for each recipe, the first at the top.
        against: what the losses are compared with.
    """
    figure = _figure(8.0, 1.6 + 0.4 * len(evidence))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    most = max(each.images for each in evidence)
    for row, each in enumerate(evidence):
        color = _CHOSEN if each.recommended else _COLOR
        style = {"fmt": "o", "color": color, "mfc": color if each.images == most else "none"}
        error = 0.0 if math.isnan(each.error) else each.error
        left.errorbar(each.difference, row, xerr=error, capsize=3, **style)
        right.errorbar(each.accuracy, row, **style)
    names = [f"{each.recipe}{' *' * each.recommended}" for each in evidence]
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.axvline(0, color="gray", linewidth=0.8)
    left.set_xlabel(f"loss {against} ± standard error")
    right.set_xlabel("accuracy")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    notes = ["* recommended"] * any(each.recommended for each in evidence)
    notes += ["open circles: on the first fold only"] * any(e.images < most for e in evidence)
    if notes:
        figure.suptitle("; ".join(notes), fontsize="medium")
    return figure


def of_rates(
    rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], suggestion: float
) -> Any:
    """Draw the loss of each step over its learning rate, and the rate that is suggested."""
    figure = _figure(6.0, 4.0)
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color="gray", alpha=0.6, label="loss of a step")
    axes.plot(rates, smooth, color=_COLOR, label="smoothed")
    axes.axvline(suggestion, color=_CHOSEN, linestyle="--", label=f"suggestion: {suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.set_ylim(0, 1.1 * max(max(smooth[: len(smooth) // 2 + 1]), 1.5 * min(smooth)))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _figure(width: float, height: float) -> Any:
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("`plot` needs matplotlib: pip install 'finetune-kit[plots]'")
    from matplotlib.figure import Figure  # imported when the first plot is drawn

    return Figure(figsize=(width, height), layout="constrained")
