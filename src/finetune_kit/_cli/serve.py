"""A page to try a model: choose an image, and see what the model predicts for it.

The page has no script and loads nothing from elsewhere. Images stay in memory. The server answers
only requests that name it, so that other pages in the same browser cannot use it.
"""

from __future__ import annotations

import io
import threading
import warnings
from email.parser import BytesParser
from functools import partial
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

import finetune_kit as ftk
from finetune_kit._checks import image_size
from finetune_kit._data.decoding import decode, reason
from finetune_kit._html import image
from finetune_kit._report.markup import document, table
from finetune_kit._train.classifier import Classifier

MOST_BYTES = 20 << 20  # of an uploaded image
_ABSENT = "There is one page, /"
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_FORM = (
    '<form method="post" enctype="multipart/form-data"><p><label>Choose an image, or drop it here: '
    '<input type="file" name="image" accept="image/*,.dcm" required></label> '
    "<button>Predict</button></p></form>"
)


def make_server(classifier: Classifier, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server of the page, which waits for `serve_forever`.

    Args:
        classifier: the model, with class names.
        host: the address to listen on.
        port: the port; 0 for any that is free.

    Raises:
        OSError: if the address is in use.
    """
    local = host in ("127.0.0.1", "localhost", "::1")
    names = None if host in ("0.0.0.0", "::") else _LOCAL if local else (*_LOCAL, host)
    try:
        return ThreadingHTTPServer((host, port), partial(_Handler, _Page(classifier), names))
    except OSError as error:
        raise OSError(
            error.errno,
            "The address must be free and belong to this machine; pass another --port or --host. "
            f"Received: {host}:{port}, which fails with {error.strerror}",
        ) from error


class _Handler(BaseHTTPRequestHandler):
    """Answers a request with a page; `names`: the hosts it may be sent to, None for any."""

    def __init__(self, page: _Page, names: tuple[str, ...] | None, *args: Any) -> None:
        self._page, self._names = page, names
        super().__init__(*args)  # answers the request

    def do_GET(self) -> None:
        self._answer(*(self._page.empty() if self.path == "/" else self._page.failed(404, _ABSENT)))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/":
            self._answer(*self._page.failed(404, _ABSENT))
        elif not length.isdecimal():
            self._answer(*self._page.failed(411, "The request must say its length"))
        elif int(length) > MOST_BYTES:
            text = f"The image must have at most {MOST_BYTES >> 20} MB"
            self._answer(*self._page.failed(413, f"{text}. Received: {int(length) >> 20} MB"))
        else:
            self._answer(*self._page.predicted(self._uploaded(int(length))))

    def parse_request(self) -> bool:
        """Reject requests that other pages in the browser send."""
        if not super().parse_request():
            return False
        given = self.headers.get("Host", "")
        own = self._names is None or given.rsplit(":", 1)[0] in self._names
        origin = self.headers.get("Origin", f"http://{given}")
        if own and origin == f"http://{given}":
            return True
        self._answer(*self._page.failed(403, "The request comes from another page"))
        return False

    def _uploaded(self, length: int) -> bytes:
        """Return the content of the file in a form."""
        kind = self.headers.get("Content-Type", "").encode("latin-1", "replace")
        body = b"Content-Type: " + kind + b"\r\n\r\n" + self.rfile.read(length)
        form = BytesParser().parsebytes(body)
        parts: Any = form.get_payload() if form.is_multipart() else []
        return next((part.get_payload(decode=True) or b"" for part in parts), b"")

    def _answer(self, code: int, html: str) -> None:
        content = html.encode()
        self.send_response(HTTPStatus(code))
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")  # the rest of a large upload is not read
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: names of images may tell of patients."""


class _Page:
    """Makes the page of a model, one prediction at a time."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier, self._lock = classifier, threading.Lock()
        self._title = f"Try {classifier.network.name}"
        names = ", ".join(classifier.class_names)
        self._about = f"<p>It predicts: {escape(names)}. Images are not stored.</p>"

    def empty(self) -> tuple[int, str]:
        return 200, document(self._title, self._about + _FORM, [])

    def failed(self, code: int, text: str) -> tuple[int, str]:
        shown = f'<p class="caution" role="alert"><b>Error:</b> {escape(text)}.</p>'
        return code, document(self._title, self._about + _FORM + shown, [])

    def predicted(self, content: bytes) -> tuple[int, str]:
        """Return the page with the prediction for an image, or with what is wrong with it."""
        if not content:
            return self.failed(400, "Choose an image first")
        size = image_size("model", self._classifier.network)
        try:
            pixels = decode(content, size)
        except ValueError as error:
            return self.failed(422, f"The file {reason(error.__cause__ or error)}")
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of heat maps that are 0 everywhere
            [found] = ftk.predict(self._classifier, io.BytesIO(content))
            drawn = _heat_map(self._classifier, pixels, next(iter(found.probabilities)))
        rows = [
            [escape(name), f"{value:.3f}", f'<meter value="{value:.4f}">{value:.0%}</meter>']
            for name, value in found.probabilities.items()
        ]
        top = f"<p>Predicted: <b>{escape(found.label or 'no label')}</b></p>"
        pictures = image(_jpeg(pixels), "The image as the model sees it")
        if drawn is not None:
            pictures += " " + image(_jpeg(drawn), f"Where the model sees {found.label}")
        shown = table(["class", "probability", ""], rows, "Probabilities")
        return 200, document(self._title, self._about + _FORM, [("Result", top + pictures + shown)])


def _heat_map(classifier: Classifier, pixels: Any, name: str) -> Any:
    """Return the image with a Grad-CAM map over it, or None if there can be none."""
    target = classifier.class_names.index(name)
    try:
        network = classifier.network
        single = network.output_shape[1] == 1
        maps = ftk.grad_cam(network, pixels[None], None if single else np.array([target]))
        return ftk.overlay(pixels[None], maps)[0]
    except (ImportError, ValueError):  # without the extra `plots`; a model without feature maps
        return None


def _jpeg(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=90)
    return file.getvalue()
