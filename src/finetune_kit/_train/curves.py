"""What a notebook shows for a trained model: its settings and small learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from finetune_kit import _html
from finetune_kit._train.settings import changed_settings

_CHARTS = 4  # of a view at most
_POINTS = 200  # of a curve at most
_ENTRIES = 12  # of a list in the settings at most
_WIDTH, _HEIGHT = 220, 110  # of the area of a chart, in pixels
# Contrast of 3.6 or more on white and on black; the dashes tell the curves apart without colors.
_STYLES = {"": ("#0072b2", ""), "val_": ("#d55e00", ' stroke-dasharray="5 3"')}


def of_tuned(
    title: str,
    history: Mapping[str, Sequence[float]],
    settings: Mapping[str, Any],
    timings: Mapping[str, float],
) -> str:
    """Return the learning curves, and below them the settings and the duration.

    Args:
        title: the title.
        history: a value for each epoch, as in `FineTuned.history`.
        settings: how the model was trained.
        timings: seconds for each part of the run.
    """
    names = [name for name in history if name not in ("epoch", "phase")]
    metrics = [name for name in names if not name.startswith("val_")]
    metrics = sorted(metrics, key=lambda name: name != "loss")[:_CHARTS]
    phases = history.get("phase", ())
    starts = [i for i, (one, other) in enumerate(pairwise(phases), start=1) if one != other]
    kept = settings.get("kept_epoch")
    charts = "".join(_chart(name, history, starts, kept) for name in metrics)
    legend = "Solid: training. "
    if any(name.startswith("val_") for name in names):
        legend += "Dashed: validation. "
    if starts:
        legend += "Thin lines: a phase begins. "
    if kept:
        legend += f"Dotted: epoch {kept}, whose weights were kept."
    shown = _brief(changed_settings(settings))
    seconds = {"seconds": {name: round(value, 1) for name, value in timings.items()}}
    return _html.view(
        _html.title(title),
        f'<div class="beside">{charts}</div>' if charts else "",
        _html.note(legend) if charts else "",
        _html.folded("Settings", _html.definitions({**shown, **seconds})),
    )


def _chart(
    name: str, history: Mapping[str, Sequence[float]], starts: Sequence[int], kept: int | None
) -> str:
    """Draw a metric of the training images and of the validation images."""
    curves = {prefix: history.get(f"{prefix}{name}", ()) for prefix in _STYLES}
    finite = [value for values in curves.values() for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    count = max(map(len, curves.values()))
    last = max(1, count - 1)

    def across(i: float) -> float:
        return round(_WIDTH * i / last, 1)

    def down(value: float) -> float:
        return round(_HEIGHT * (high - value) / (high - low), 1) if high > low else _HEIGHT / 2

    lines = [_vertical(across(i - 0.5), 'stroke-opacity=".35"') for i in starts]
    lines += [_vertical(across(kept - 1), 'stroke-dasharray="1 3"')] if kept else []
    for prefix, values in curves.items():
        color, dash = _STYLES[prefix]
        for run in _runs(values):
            points = [f"{across(i)},{down(value)}" for i, value in run]
            lines.append(
                f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" '
                f'stroke-width="2"{dash}/>'
                if len(points) > 1
                else f'<circle cx="{across(run[0][0])}" cy="{down(run[0][1])}" r="3" '
                f'fill="{color}"/>'
            )
    texts = (
        f'<text x="-6" y="4" text-anchor="end">{high:.3g}</text>'
        f'<text x="-6" y="{_HEIGHT + 4}" text-anchor="end">{low:.3g}</text>'
        f'<text x="0" y="{_HEIGHT + 22}">epoch 1{f" to {count}" if count > 1 else ""}</text>'
    )
    frame = f"M-2 -4V{_HEIGHT + 6}H{_WIDTH + 4}"
    return (
        f'<figure><figcaption>{_html.text(name)}</figcaption><svg role="img" '
        f'aria-label="{_html.text(name)} per epoch" width="{_WIDTH + 70}" '
        f'height="{_HEIGHT + 40}" viewBox="-56 -12 {_WIDTH + 70} {_HEIGHT + 40}" font-size="11" '
        f'fill="currentColor"><path d="{frame}" fill="none" stroke="currentColor" '
        f'stroke-opacity=".5"/>{"".join(lines)}{texts}</svg></figure>'
    )


def _vertical(x: float, style: str) -> str:
    return f'<path d="M{x} -4V{_HEIGHT + 6}" stroke="currentColor" {style}/>'


def _runs(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """Return the epochs with a finite value, in runs without a gap; of long runs some points."""
    chosen = np.unique(np.linspace(0, len(values) - 1, _POINTS).round().astype(int)).tolist()
    runs: list[list[tuple[int, float]]] = [[]]
    for i in chosen if len(values) else ():
        if math.isfinite(values[i]):
            runs[-1].append((i, values[i]))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _brief(value: Any) -> Any:
    """Return a plain value with its long lists and texts cut off."""
    if isinstance(value, Mapping):
        kept = {name: _brief(each) for name, each in list(value.items())[:_ENTRIES]}
        more = len(value) - len(kept)
        return {**kept, "and more": more} if more else kept
    if isinstance(value, (list, tuple)):
        more = len(value) - _ENTRIES
        return [*map(_brief, value[:_ENTRIES]), *([f"and {more:,} more"] if more > 0 else [])]
    return f"{value[:199]}…" if isinstance(value, str) and len(value) > 200 else value
