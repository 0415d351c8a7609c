"""The documentation is correct: all code in it is run, and its links and pictures exist.

On TensorFlow, Sphinx runs the `testcode` blocks, the docstrings and the notebook (`make docs`); on
the other backends these tests do. The `python` blocks read folders of images, so they are run only
here, with synthetic images in place of the user's.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import doctest
import importlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import performance_chart
import pytest
from PIL import Image

import finetune_kit as ftk

ROOT = Path(__file__).parents[1]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if "_build" not in page.parts
}
FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
RUN_BY_SPHINX = ("{testsetup}", "{testcode}", "{testoutput}", "{testcleanup}")
NOTEBOOK = "docs/notebook.md"
CELL = "{code-cell}"
NOT_RUN = ("console", "bash", "yaml", "{include}", "{toctree}", "{eval-rst}", "{figure}")
DEVICES = "docs/howto/devices.md"
# These have tests of their own.
ELSEWHERE = {
    DEVICES,
    *(f"docs/howto/{name}.md" for name in ("hub", "log_your_runs", "buckets", "ray", "scale")),
}
FLAGS = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1  # those of sphinx.ext.doctest
# A number with its interval, in the output of a report.
MEASURED = re.compile(r"(\d[\d.,]*|undefined)( \([^)]*\))?")
CAUTIONS = re.compile(r"^(?:Caution: .*(?:\n  .*)*|\d+ more cautions?: .*)\n", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")

by_make_docs = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="`make docs` runs them on TensorFlow"
)


def blocks(page: str, *kinds: str) -> list[tuple[str, str]]:
    found = [(kind.split(" ")[0], code) for _, kind, code in FENCE.findall(PAGES[page])]
    return [(kind, code) for kind, code in found if not kinds or kind in kinds]


def pages_with(kind: str) -> list[str]:
    return [page for page in PAGES if blocks(page, kind)]


def execute(code: str | ast.Module, names: dict, page: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), names)
    return printed.getvalue()


def check_output(expected: str, printed: str, page: str) -> None:
    same = doctest.OutputChecker().check_output(expected, printed, FLAGS)
    assert same, f"{page} shows:\n{expected}\nThe code prints:\n{printed}"


@pytest.mark.parametrize("page", PAGES)
def test_all_python_code_is_in_blocks_that_are_run(page):
    kinds = {kind for kind, _ in blocks(page)}
    assert kinds <= {"python", "text", CELL, *RUN_BY_SPHINX, *NOT_RUN}
    assert CELL not in kinds or page == NOTEBOOK
    assert PAGES[page].count("```") == 2 * len(blocks(page)), "a fence is not closed"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    folder = (ROOT / page).parent
    for target, _ in LINK.findall(PAGES[page]):
        assert (folder / target).is_file(), target


def test_pictures_are_small_and_shown():
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 300_000, picture.name
        assert any(f"images/{picture.name}" in text for text in PAGES.values()), picture.name


def test_the_chart_shows_the_speedups_of_the_table():
    backends, rows = performance_chart.speedups()
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", performance_chart.CHART.read_text("utf-8"))
    shown = sorted(text for text in texts if text.endswith("x"))
    assert shown == sorted(cell for cells in rows.values() for cell in cells)
    assert set(backends) <= set(texts)


@by_make_docs
@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("{testcode}"))
def test_examples_of_the_pages_print_what_is_shown(page):
    keras.utils.set_random_seed(0)
    names, printed = {"__name__": page}, ""
    parts = blocks(page, *RUN_BY_SPHINX)
    for kind in ("{testsetup}", "{testcleanup}"):
        # In the order of Sphinx: setups first, wherever they are on the page, and cleanups last.
        only = [part for part in parts if part[0] == kind]
        rest = [part for part in parts if part[0] != kind]
        parts = only + rest if kind == "{testsetup}" else rest + only
    for kind, code in parts:
        if kind == "{testoutput}":
            check_output(code, printed, page)
            printed = ""
        else:
            assert not printed, f"{page} does not show:\n{printed}"
            printed = execute(code, names, page)
    assert not printed, f"{page} does not show:\n{printed}"


@by_make_docs
@pytest.mark.slow
def test_examples_of_the_docstrings_print_what_is_shown():
    names = {"np": np, "keras": keras, "ftk": ftk} | {n: getattr(ftk, n) for n in ftk.__all__}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=FLAGS)
    with_examples, run = set(), set()
    for info in pkgutil.walk_packages(ftk.__path__, "finetune_kit."):
        module = importlib.import_module(info.name)
        if ">>> " in Path(module.__file__).read_text(encoding="utf-8"):
            with_examples.add(info.name)
        for test in finder.find(module, extraglobs=names):
            if runner.run(test).attempted:
                run.add(info.name)
    assert run == with_examples
    attempted, failed = runner.tries, runner.failures
    assert attempted > 50
    assert not failed


@by_make_docs
@pytest.mark.slow
def test_each_cell_of_the_notebook_shows_a_view(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict = {"__name__": NOTEBOOK}
    cells = [code for _, code in blocks(NOTEBOOK, CELL)]
    for code in cells:
        *before, last = ast.parse(code).body
        execute(ast.Module(before, []), names, NOTEBOOK)
        shown = eval(compile(ast.Expression(last.value), NOTEBOOK, "eval"), names)
        assert shown._repr_html_()
    assert len(cells) > 5


def draw(folder: Path, classes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Write twelve images of each class, of six patients, and return the rows of a table."""
    rng, rows = np.random.default_rng(0), []
    for shade, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            file = folder / name / f"p{shade}{number // 2}_{number}.png"
            pixels = rng.integers(0, 150, (32, 32, 3)) + 25 * shade
            Image.fromarray(pixels.astype(np.uint8)).save(file)
            rows.append((str(file.relative_to(folder.parent)), name, file.name.split("_")[0]))
    return rows


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Change to a folder with what the pages read, and give MobileNetV2 random weights."""
    draw(tmp_path / "COVID-19_Radiography_Dataset", ("COVID", "Normal", "Viral Pneumonia"))
    draw(tmp_path / "data", ("ill", "well"))
    for folder in ("new_images", "new"):
        draw(tmp_path / folder, ("unknown",))
    draw(tmp_path / "photos", ("ill", "well"))
    with zipfile.ZipFile(tmp_path / "chest_xray.zip", "w") as archive:
        for part in ("train", "val", "test"):
            for path, *_ in draw(tmp_path / "parts" / part, ("ill", "well")):
                archive.write(tmp_path / "parts" / path, f"chest_xray/{path}")
    with (tmp_path / "images.csv").open("w", newline="") as table:
        rows = draw(tmp_path / "xrays", ("ill", "well"))
        csv.writer(table).writerows([("file", "finding", "patient"), *rows])
    build = keras.applications.MobileNetV2
    monkeypatch.setattr(
        keras.applications, "MobileNetV2", lambda **shape: build(weights=None, **shape)
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages_with("python") if page not in ELSEWHERE])
def test_code_of_the_pages_runs(page, offline):
    images = ftk.read_image_folder("data")
    train, validation, test = images.split(seed=0)
    sets = {"images": images, "train": train, "validation": validation, "test": test}
    names, printed, code = {"__name__": page, "ftk": ftk, "keras": keras, **sets}, "", ""
    for kind, text in blocks(page, "python", "text"):
        if kind == "python":
            code = text
            printed = execute(re.sub(r"epochs=\d+", "epochs=1", code), names, page)
        elif "print(report)" in code:  # progress bars, then the metrics of other images
            printed = CAUTIONS.sub("", printed)  # few images make many
            expected, printed = (" ".join(MEASURED.sub("0", s).split()) for s in (text, printed))
            check_output(f"...{expected}\n", f"{printed}\n", page)
        else:
            check_output(text, printed, page)
    if page == "README.md":
        assert (offline / "model.keras").is_file()
        assert (offline / "report" / "report.json").is_file()


TWICE = """
import json, sys, keras
build = keras.applications.MobileNetV2
def random_weights(**shape):
    keras.utils.set_random_seed(0)
    return build(weights=None, **shape)
keras.applications.MobileNetV2 = random_weights
code, losses = sys.stdin.read(), []
for several in (True, False):
    names = {}
    exec(code if several else code.replace("keras.distribution.set_dis", "str or set_dis"), names)
    losses.append(names["tuned"].history["loss"])
    devices = names["devices"]
    keras.distribution.set_distribution(None)
print(json.dumps([devices, *losses]))
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the page is about JAX")
def test_training_on_several_devices_gives_the_losses_of_one(offline):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    code = "".join(code for _, code in blocks(DEVICES, "python"))
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        input=code.replace("print(", "str("),
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    devices, several, one = json.loads(done.stdout.splitlines()[-1])
    assert devices == 2
    assert np.allclose(several, one, rtol=1e-4)
