"""A model goes to the Hugging Face Hub in one commit, and comes back as it was.

The Hub is a stand-in on this machine (`hub_server.py`), which huggingface_hub itself talks to.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import hub_server
import keras
import numpy as np
import pytest
from PIL import Image

import finetune_kit as ftk

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
constants = pytest.importorskip("huggingface_hub.constants")

# huggingface_hub uploads to Git LFS in a way that its HTTP library deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="uses no backend, so once is enough"
    ),
]

TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyz0123456789"[:34]
REPO = "ada/brightness"


@pytest.fixture(scope="module")
def tuned(tune):
    return tune(ftk.FineTuneSpec(1, epochs=2, learning_rate=0.01))


@pytest.fixture(scope="module")
def report(tuned, sets):
    return ftk.evaluate(tuned, sets.test)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files, which must be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not [*folder.iterdir()]


def point_to(url, monkeypatch):
    """Set what huggingface_hub reads from HF_ENDPOINT when it is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def pictures():
    """Reports have pictures, which take most of the time of a push."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def hub(request, tmp_path, temporary, monkeypatch):
    """The Hub that huggingface_hub finds, with the login of a user `ada`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # needs its own store
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
    with hub_server.running() as running:
        point_to(running.url, monkeypatch)
        running.tokens[TOKEN] = "ada"
        running.home = home
        yield running


def images(sets):
    return sets.test.load(size=(32, 32))


def test_what_is_pushed_predicts_the_same(tuned, report, sets, hub):
    url = ftk.push_to_hub(tuned, report, REPO)
    assert url.startswith(f"{hub.url}/{REPO}/commit/")
    wanted = ftk.predict(tuned, images(sets))
    commit = url.rsplit("/", 1)[1]
    for address in (f"hf://{REPO}", f"hf://{REPO}@main", f"hf://{REPO}@{commit}"):
        found = ftk.predict(address, images(sets))
        assert found.class_names == tuned.class_names
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-6)


def test_all_files_are_in_one_commit(tuned, report, pictures, hub):
    ftk.push_to_hub(tuned, report, REPO, commit_message="First model")
    assert hub.commits[REPO] == ["initial commit", "First model"]
    files = set(hub.files(REPO))
    assert files >= {"model.keras", "README.md", "labels.txt", "report/report.html",
                     "report/report.json", "report/report.txt",
                     "report/confusion_matrix.png"}  # fmt: skip
    assert b"](report/confusion_matrix.png)" in hub.files(REPO)["README.md"]
    assert hub.files(REPO)["labels.txt"].decode().split() == list(tuned.class_names)
    values = json.loads(hub.files(REPO)["report/report.json"])
    assert values["metrics"] == report.to_dict()["metrics"]


def test_the_hub_reads_the_metrics_from_the_card(tuned, report, hub, tmp_path):
    ftk.push_to_hub(tuned, report, REPO)
    (tmp_path / "README.md").write_bytes(hub.files(REPO)["README.md"])
    data = huggingface_hub.ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("keras", "image-classification")
    assert data.model_name == "brightness"
    found = {result.metric_name: result for result in data.eval_results}
    assert found["accuracy"].metric_value == pytest.approx(report.accuracy, abs=1e-6)
    assert found["macro F1"].metric_value == pytest.approx(report.macro_f1, abs=1e-6)
    assert (found["macro F1"].metric_type, found["accuracy"].metric_type) == ("f1", "accuracy")
    defined = [estimate for estimate in report.metrics.values() if estimate.is_defined]
    assert len(found) == len(defined)


def test_a_card_without_the_undefined_metrics(tuned, sets, hub):
    one = sets.test.take(np.flatnonzero(sets.test.labels == 0))
    report = ftk.evaluate(tuned, one)
    assert not report.metrics["roc_auc"].is_defined
    ftk.push_to_hub(tuned, report, REPO)
    assert b"nan" not in hub.files(REPO)["README.md"].split(b"---")[1]


def test_no_test_image_is_uploaded(tuned, report, pictures, hub):
    assert report.examples
    ftk.push_to_hub(tuned, report, REPO)
    page = hub.files(REPO)["report/report.html"]
    assert b"data:image/jpeg" not in page
    assert "report/mistakes.png" not in hub.files(REPO)


def test_another_push_replaces_the_files_of_the_first(tuned, report, hub):
    ftk.push_to_hub(tuned, report, REPO)
    hub.files(REPO).update({"report/old.png": b"old", "notes.md": b"mine"})
    ftk.push_to_hub(tuned, report, REPO)
    assert "report/old.png" not in hub.files(REPO)
    assert hub.files(REPO)["notes.md"] == b"mine"
    assert len(hub.commits[REPO]) == 3


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_as_private_as_wanted(tuned, report, hub, private):
    ftk.push_to_hub(tuned, report, REPO, private=private, token=TOKEN)
    assert hub.private[REPO] is private
    ftk.push_to_hub(tuned, report, REPO, private=private)
    with pytest.raises(ValueError, match=f"which is {'private' if private else 'public'}"):
        ftk.push_to_hub(tuned, report, REPO, private=not private)
    assert len(hub.commits[REPO]) == 3


def test_a_downloaded_model_is_kept(tuned, report, sets, hub, monkeypatch):
    ftk.push_to_hub(tuned, report, REPO)
    ftk.predict(f"hf://{REPO}", images(sets))
    gets = [path for method, path in hub.requests if method == "GET" and "resolve" in path]
    ftk.predict(f"hf://{REPO}", images(sets))
    assert gets == [p for method, p in hub.requests if method == "GET" and "resolve" in p]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(ftk.predict(f"hf://{REPO}", images(sets))) == 6


def failing(error, match, call):
    """Check an error: its type and message, and that no text of it has the token."""
    with pytest.raises(error, match=match) as caught:
        call()
    assert type(caught.value) is error
    assert TOKEN not in str(caught.getrepr(style="long", chain=True))
    return str(caught.value)


@pytest.mark.parametrize(
    ("failure", "error", "match"),
    [
        ({"create": 401}, PermissionError, "run `hf auth login`, or pass token="),
        ({"create": 403}, PermissionError, "your login can write to"),
        ({"commit": 403}, PermissionError, "your login can write to"),
        ({"create": "drop"}, ConnectionError, "check the network"),
        ({"commit": "drop"}, ConnectionError, "check the network"),
        ({"large": 400}, OSError, "must accept the request"),
        ({"commit": 500}, OSError, "500"),
    ],
)
def test_a_failed_upload_leaves_nothing(tuned, report, hub, failure, error, match):
    hub.failures = failure
    failing(error, match, lambda: ftk.push_to_hub(tuned, report, REPO))
    assert hub.commits.get(REPO, []) in ([], ["initial commit"])
    hub.failures = {}
    ftk.push_to_hub(tuned, report, REPO)
    assert len(hub.commits[REPO]) == 2


def test_uploads_need_a_login_with_the_right_to_write(tuned, report, hub):
    failing(PermissionError, "'bob/model'", lambda: ftk.push_to_hub(tuned, report, "bob/model"))
    (hub.home / "token").unlink()
    failing(PermissionError, "hf auth login", lambda: ftk.push_to_hub(tuned, report, REPO))
    wrong = f"{TOKEN}x"
    call = lambda: ftk.push_to_hub(tuned, report, REPO, token=wrong)  # noqa: E731
    assert wrong not in failing(PermissionError, "your login can write to", call)


def test_a_hub_that_is_not_there(tuned, report, sets, hub, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    point_to(url, monkeypatch)
    message = failing(ConnectionError, "refused", lambda: ftk.push_to_hub(tuned, report, REPO))
    assert "Hub must be reachable" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    push = lambda: ftk.push_to_hub(tuned, report, REPO)  # noqa: E731
    failing(ConnectionError, "HF_HUB_OFFLINE", push)
    failing(ConnectionError, "HF_HUB_OFFLINE", lambda: ftk.predict(f"hf://{REPO}", images(sets)))


def test_models_that_cannot_be_downloaded(tuned, report, sets, hub):
    ftk.push_to_hub(tuned, report, REPO, private=True)
    ftk.push_to_hub(tuned, report, "ada/empty")
    del hub.files("ada/empty")["model.keras"]
    for address, match in [
        ("hf://ada/absent", "does not exist or is private"),
        ("hf://ada/empty", "has no file model.keras"),
        (f"hf://{REPO}@v9", "no such revision"),
    ]:
        failing(FileNotFoundError, match, lambda a=address: ftk.predict(a, images(sets)))
    hub.failures = {"resolve": (403, "GatedRepo")}
    failing(PermissionError, "ask for access", lambda: ftk.predict(f"hf://{REPO}", images(sets)))
    hub.failures = {}
    (hub.home / "token").unlink()
    call = lambda: ftk.predict(f"hf://{REPO}", images(sets))  # noqa: E731
    failing(FileNotFoundError, "does not exist or is private", call)
    assert not [*(hub.home / "hub").rglob("*.keras")]


def test_a_download_that_breaks_off_leaves_no_model(tuned, report, sets, hub, monkeypatch):
    ftk.push_to_hub(tuned, report, REPO)
    reply = hub_server.Handler.reply

    def half(self, status, content=None, **headers):
        if self.command == "GET" and "resolve" in self.path:
            self.close_connection = True
            headers["Content-Length"] = str(len(content))
            content = content[: len(content) // 2]
        reply(self, status, content, **headers)

    monkeypatch.setattr(hub_server.Handler, "reply", half)
    call = lambda: ftk.predict(f"hf://{REPO}", images(sets))  # noqa: E731
    with pytest.raises(OSError, match=REPO):
        call()
    assert not [*(hub.home / "hub").rglob("*.keras")]


@pytest.mark.parametrize(
    ("repo_id", "match"),
    [
        ("ada", "user or organization is missing"),
        ("a/b/c", "'user/name'"),
        ("ada/../b", "'user/name'"),
        ("ada/a b", "alphanumeric"),
        ("", "'user/name'"),
        (None, "must be a string"),
        (Path("ada/b"), "must be a string"),
    ],
)
def test_malformed_names_of_repositories(tuned, report, sets, repo_id, match, rejected):
    with rejected(match):
        ftk.push_to_hub(tuned, report, repo_id)
    if isinstance(repo_id, str):
        with rejected("'hf://user/name@revision'"):
            ftk.predict(f"hf://{repo_id}", images(sets))


def test_bad_arguments(tuned, report, sets, rejected):
    others = replace(report, class_names=("a", "b", "c"))
    another = replace(report, about={"model": {"sha256_of_graph_and_weights": "0"}})
    for arguments, match in [
        ((tuned.model, report), "`tuned` must be of type FineTuned"),
        ((tuned, report.to_dict()), "`report` must be of type Report"),
        ((report, tuned), "`tuned` must be of type FineTuned"),
        ((tuned, others), "must be about the classes of `tuned`"),
        ((tuned, another), "must be about the weights of `tuned`"),
    ]:
        with rejected(match):
            ftk.push_to_hub(*arguments, REPO)
    for option, match in [
        ({"private": "yes"}, "`private`"),
        ({"commit_message": None}, "`commit_message`"),
        ({"token": True}, "`token`"),
    ]:
        with rejected(match):
            ftk.push_to_hub(tuned, report, REPO, **option)
    for token in (f"{TOKEN}\n", f" {TOKEN}", ""):
        push = lambda t=token: ftk.push_to_hub(tuned, report, REPO, token=t)  # noqa: E731
        assert "text without spaces" in failing(ValueError, "`token`", push)


def test_without_huggingface_hub_the_error_names_the_extra(tuned, report, sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'finetune-kit\[hub\]'"):
        ftk.push_to_hub(tuned, report, REPO)
    with pytest.raises(ImportError, match=r"pip install 'finetune-kit\[hub\]'"):
        ftk.predict(f"hf://{REPO}", images(sets))


def test_the_code_of_the_page_runs(tune, sets, small_backbone, hub, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "howto" / "hub.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    hub.tokens[TOKEN] = "user"
    (tmp_path / "new_images").mkdir()
    Image.fromarray(images(sets)[0]).save(tmp_path / "new_images" / "0.png")
    monkeypatch.chdir(tmp_path)
    names = {"ftk": ftk, "backbone": small_backbone, "head": ftk.classification_head(3),
             **sets._asdict()}  # fmt: skip
    for one in code:
        exec(one, names)
    assert "user/colours" in hub.revisions
    assert "new_images/0.png" in capsys.readouterr().out


@pytest.mark.slow
def test_another_process_predicts_with_the_settings_of_the_environment(
    tuned, report, sets, hub, tmp_path
):
    ftk.push_to_hub(tuned, report, REPO, private=True)
    np.save(tmp_path / "x.npy", images(sets))
    code = (
        "import sys, numpy as np, finetune_kit as ftk;"
        "y = ftk.predict(sys.argv[1], np.load(sys.argv[2])).probabilities; np.save(sys.argv[3], y)"
    )
    files = [str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other"), "HF_TOKEN": TOKEN}
    subprocess.run(
        [sys.executable, "-c", code, f"hf://{REPO}", *files],
        env={**os.environ, **settings},
        check=True,
    )
    wanted = ftk.predict(tuned, images(sets)).probabilities
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, atol=1e-5)
