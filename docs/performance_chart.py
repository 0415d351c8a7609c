"""Draw `docs/images/performance.svg` from the first table of `docs/performance.md`.

    python docs/performance_chart.py

Run it whenever the table changes. `tests/test_docs.py` checks that the chart shows its values.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent
CHART = DOCS / "images" / "performance.svg"
COLORS = ("#e69f00", "#d55e00", "#0072b2")  # Okabe and Ito: distinguishable by color-blind readers


def speedups() -> tuple[list[str], dict[str, list[str]]]:
    """Return the backends, and for each model that was trained its speedups as text."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    table = re.search(r"^(\|.*\n)+", page, re.MULTILINE).group().splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return header[1:], {row[0].replace("`", ""): row[1:] for row in rows}


def draw() -> None:
    """Write the chart, with its text as text."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    backends, rows = speedups()
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 11})
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.27
    for i, (backend, color) in enumerate(zip(backends, COLORS, strict=True)):
        cells = [cells[i] for cells in rows.values()]
        heights = [float(re.sub("x$", "", cell)) for cell in cells]
        places = [place + (i - 1) * width for place in range(len(rows))]
        bars = axes.bar(places, heights, width * 0.94, label=backend, color=color)
        axes.bar_label(bars, cells, padding=2)
    axes.axhline(1, color="#555555", linewidth=1, linestyle="--", zorder=0)
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_ylabel("speedup (Keras fit: 1)")
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(CHART, metadata={"Date": None})


if __name__ == "__main__":
    draw()
