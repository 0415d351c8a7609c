"""The page to try a model: it predicts, keeps nothing, and answers only requests of its own."""

from __future__ import annotations

import http.client
import io
import re
import shutil
import subprocess
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import dicom, png

import finetune_kit as ftk
from finetune_kit._cli.serve import MOST_BYTES, make_server
from finetune_kit._train.classifier import as_classifier

NAMES = ["<b>cat</b>", "dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    features = keras.layers.Conv2D(4, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    vector = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(image, keras.layers.Dense(2, "softmax")(vector), name="pets")


@pytest.fixture(scope="module")
def server(model):
    with make_server(as_classifier(model, NAMES), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method="GET", path="/", body=None, **headers):
    """Return status, headers and page of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def form(content: bytes, name="x.png") -> tuple[bytes, str]:
    edge = "edge-of-the-parts"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{edge}--\r\n".encode(), edge


def upload(server, content: bytes, **headers):
    body, edge = form(content)
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    return ask(server, "POST", "/", body, **kind, **headers)


def text_of(page: str) -> str:
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append
    parser.feed(page)
    return " ".join(" ".join(found).split())


def test_the_page_asks_for_an_image_and_names_the_classes(server):
    status, headers, page = ask(server)
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert "It predicts: <b>cat</b>, dog." in text_of(page)
    assert 'type="file"' in page
    assert "<script" not in page
    assert not re.search(r"https?://", page)


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_the_page_shows_what_predict_gives(server, model, kind, tmp_path):
    content = png(PIXELS)
    if kind == "dicom":
        pytest.importorskip("pydicom")
        content = dicom(tmp_path / "x.dcm", PIXELS[..., 0].astype(np.uint16) * 256).read_bytes()
    [expected] = ftk.predict(model, io.BytesIO(content), class_names=NAMES)
    status, _, page = upload(server, content)
    assert status == 200
    assert f"Predicted: {expected.label}" in text_of(page)
    for name, value in expected.probabilities.items():
        assert f"{name} {value:.3f}" in text_of(page)
    assert page.count("data:image/jpeg;base64,") == 2  # the image, and where the model looks


def test_nothing_is_stored(server, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    upload(server, png(PIXELS))
    upload(server, b"no image")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        (b"", 400, "Choose an image first"),
        (b"text", 422, "The file is not an image"),
        (png(PIXELS)[:200], 422, "The file fails with"),
        (b"x" * (MOST_BYTES + 1), 413, "at most 20 MB"),
    ],
)
def test_a_bad_upload_is_explained(server, content, status, text):
    try:
        found, _, page = upload(server, content)
    except (ConnectionError, BrokenPipeError):  # the server does not read what is too large
        assert status == 413
        return
    assert found == status
    assert text in text_of(page)


@given(st.binary(max_size=200))
@settings(max_examples=30)
def test_no_upload_breaks_the_server(server, content):
    status, _, page = upload(server, content)
    assert status in (400, 422)
    assert "Traceback" not in page
    assert ask(server)[0] == 200


def test_requests_of_other_pages_are_rejected(server):
    own = f"http://127.0.0.1:{server.server_port}"
    assert upload(server, png(PIXELS), Origin=own)[0] == 200
    assert upload(server, png(PIXELS), Origin="http://example.org")[0] == 403
    assert upload(server, png(PIXELS), Origin="null")[0] == 403
    assert ask(server, Host="example.org")[0] == 403
    assert ask(server, Host="127.0.0.1.example.org")[0] == 403


def test_other_requests_are_answered(server):
    assert ask(server, path="/etc/passwd")[0] == 404
    assert ask(server, "POST", "/x", b"x")[0] == 404
    assert ask(server, "POST", "/", b"x")[0] == 400
    assert ask(server, "DELETE")[0] == 501


def test_a_port_in_use_is_named(server, model):
    with pytest.raises(OSError, match=f"another --port.*127.0.0.1:{server.server_port}"):
        make_server(as_classifier(model, NAMES), "127.0.0.1", server.server_port)


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.slow
def test_the_page_is_shown_in_a_real_browser(server, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium on the path")
    # A page that fills in the form as a person does, and shows the answer.
    data = ",".join(map(str, png(PIXELS)))
    sender = (
        f"<form id=f method=post enctype=multipart/form-data action='http://127.0.0.1:"
        f"{server.server_port}/'><input type=file name=image id=i></form><script>"
        f"const d=new DataTransfer();d.items.add(new File([new Uint8Array([{data}])],'x.png'));"
        "i.files=d.files;f.submit()</script>"
    )
    page = Path(tmp_path / "sender.html")
    page.write_text(sender)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}"]
    command = [browser, *options, "--virtual-time-budget=20000", "--dump-dom"]

    def shown(address: str) -> str:
        run = subprocess.run([*command, address], capture_output=True, text=True, timeout=120)
        return text_of(run.stdout)

    assert "Choose an image" in shown(f"http://127.0.0.1:{server.server_port}/")
    assert "comes from another page" in shown(page.as_uri())  # a file is another page
