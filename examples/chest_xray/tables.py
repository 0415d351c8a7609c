"""Tables of the chest X-ray example, and the results that the study reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

# The study's test images, and the accuracy, macro F1 and recall of each class on them. Its table of
# Model 2 is lost.
STUDY_IMAGES = {"COVID": 135, "Lung_Opacity": 226, "Normal": 383, "Viral Pneumonia": 50}
STUDY = {
    "Model 1": {
        "accuracy": 0.74,
        "macro_f1": 0.64,
        "COVID": 0.87,
        "Lung_Opacity": 0.67,
        "Normal": 0.80,
        "Viral Pneumonia": 0.20,
    },
    "Model 3": {
        "accuracy": 0.64,
        "macro_f1": 0.50,
        "COVID": 0.99,
        "Lung_Opacity": 0.70,
        "Normal": 0.56,
        "Viral Pneumonia": 0.00,
    },
}

# Columns that the table of means has besides the metrics of the test images.
LEARNING = {
    "train_accuracy": "final training accuracy",
    "lowest_late_val_accuracy": "lowest late validation accuracy",
}


def reported(model: str, class_names: Sequence[str]) -> list[str]:
    """Return the study's accuracy, macro F1 and recall of each class; `-` where it has none."""
    values = STUDY.get(model, {})
    columns = ("accuracy", "macro_f1", *class_names)
    return [f"{values[name]:.2f}" if name in values else "-" for name in columns]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows for the terminal: the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows as a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def experiment_tables(
    summary: dict[str, Any], class_names: Sequence[str], reported: Sequence[list[str]] = ()
) -> str:
    """Return an experiment in Markdown: means over the seeds, each run, and the paired tests.

    Args:
        summary: what `summarize` in `study.py` returned.
        class_names: the classes in the order of their indices.
        reported: rows of the study, to put at the top.
    """
    means = [[name, "", *cells, *("" for _ in LEARNING)] for name, *cells in reported]
    each, tests = [[name, "", *cells] for name, *cells in reported], []
    for name, rows in summary["rows"].items():
        metrics = [[row["accuracy"], row["macro_f1"], *row["recalls"].values()] for row in rows]
        columns = [[cell["value"] for cell in column] for column in zip(*metrics, strict=True)]
        columns += [[row[key] for row in rows] for key in LEARNING]
        means.append([name, f"{rows[0]['parameters'] / 1e6:.1f} M", *map(mean_and_range, columns)])
        for row, cells in zip(rows, metrics, strict=True):
            each.append([name, str(row["seed"]), *map(with_interval, cells)])
    for pair, found in summary["tests"].items():
        cells = [f"{t['only_first']} / {t['only_second']} (p = {t['p']:.2g})" for t in found]
        tests.append([pair, *cells])
    seeds = [f"seed {row['seed']}" for row in rows]
    recalls = [f"recall {name}" for name in class_names]
    return "\n\n".join(
        [
            "Mean over the seeds (lowest-highest). Final training accuracy: accuracy on the "
            "training images in the last epoch. Lowest late validation accuracy: the lowest "
            "accuracy on the validation images in the second half of the epochs.",
            markdown(
                ["", "parameters", "accuracy", "macro F1", *recalls, *LEARNING.values()], means
            ),
            "<details><summary>Each run, with 95% intervals (Wilson score; macro F1: bootstrap)"
            "</summary>",
            markdown(["", "seed", "accuracy", "macro F1", *recalls], each),
            "</details>",
            "Number of test images that only the first / only the second model classified "
            "correctly (exact McNemar test, with Holm's correction for all pairs of rows):",
            markdown(["", *seeds], tests),
        ]
    )


def mean_and_range(values: Sequence[float | None]) -> str:
    """Return the mean of the defined values with the lowest and the highest."""
    defined = [value for value in values if value is not None]
    if len(defined) < 2:
        return f"{defined[0]:.3f}" if defined else "undefined"
    return f"{np.mean(defined):.3f} ({min(defined):.3f}-{max(defined):.3f})"


def with_interval(estimate: dict[str, Any]) -> str:
    """Return a metric with its interval, if it has one."""
    if estimate["value"] is None:
        return "undefined"
    if estimate["low"] is None:  # all resamples of the bootstrap gave the same value
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def study_rows(class_names: Sequence[str]) -> list[list[str]]:
    """Return the study's own results as rows: name, accuracy, macro F1, recall of each class.

    The intervals are Wilson's, as those of our runs. For macro F1 there is none, because the
    predictions of the study are lost.
    """
    images = {"accuracy": sum(STUDY_IMAGES.values()), **STUDY_IMAGES}
    columns = ("accuracy", "macro_f1", *class_names)
    return [
        [f"{model} as reported", *(as_reported(values, images, name) for name in columns)]
        for model, values in STUDY.items()
    ]


def as_reported(values: dict[str, float], images: dict[str, int], name: str) -> str:
    """Return a value of the study, with its interval if it is a share of images."""
    if name not in values:
        return ""
    if name not in images:
        return f"{values[name]:.2f}"
    correct = round(values[name] * images[name])
    low, high = binomtest(correct, images[name]).proportion_ci(method="wilson")
    return f"{values[name]:.2f} [{low:.2f}, {high:.2f}]"
