"""Small pieces of text that messages and tables share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> str:
    """Lay out a table as text; the columns in `left` are left-aligned, the others right-aligned."""
    rows = [[" ".join(cell.splitlines()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 image`, `2,000 images`, `3 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def shortened(value: Any, length: int = 60) -> str:
    """Return the repr of a value, cut off after `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def printable(text: str) -> str:
    """Replace bytes of a file name that are no text, and control characters but line breaks."""
    return re.sub(
        r"[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\ufffd", text
    )


def listed(names: Sequence[str], shown: int = 4) -> str:
    """Join names with commas and count the rest; names with line breaks are quoted."""
    first = ", ".join(name if name.isprintable() else repr(name) for name in names[:shown])
    return first + (f" and {len(names) - shown:,} more" if len(names) > shown else "")
