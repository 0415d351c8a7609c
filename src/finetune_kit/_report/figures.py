"""Draw matplotlib figures safely, as PNG and as SVG for a page."""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

from finetune_kit._text import printable

_log = logging.getLogger("finetune_kit")


def available(what: Any) -> bool:
    """Return whether matplotlib is installed; log a warning about `what` if it is not."""
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        _log.warning(
            "%s: no pictures, because matplotlib is not installed "
            "(pip install 'finetune-kit[plots]')",
            what,
        )
    return found


def drawn_by(draw: Callable[[], Any], name: str) -> tuple[bytes, str] | None:
    """Return a picture as PNG and as SVG, or None if it has no content.

    What is wrong with one picture must not cost the rest of a report: of a picture that cannot be
    drawn, the PNG is empty, and a note takes the place of the SVG.
    """
    try:
        figure = draw()
        return None if figure is None else (png(figure), svg(figure, name))
    except Exception as error:
        note = f"{name}.png: not drawn ({type(error).__name__}: {error})"
        _log.warning("%s", note)
        return b"", f"<p>{escape(printable(note))}</p>"


def png(figure: Any) -> bytes:
    """Return the picture as PNG."""
    buffer = io.BytesIO()
    _save(figure, buffer, format="png", dpi=150)
    return buffer.getvalue()


def svg(figure: Any, name: str) -> str:
    """Return the picture as SVG for a page, in the text colour of the page."""
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
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign is no formula
        text.set_text(printable(text.get_text()))
    with warnings.catch_warnings():
        # One for each letter that matplotlib's font lacks; in a page the browser has a font for it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, **options)
