"""Another project: it installs the built wheel, checks its types, and trains in a dozen lines."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import finetune_kit as ftk

ROOT = Path(__file__).parents[1]
USER = """\
import keras
import numpy as np
import finetune_kit as ftk

def train(pixels: np.ndarray, names: list[str]) -> ftk.FineTuned:
    images = ftk.ImageSet.from_arrays(pixels, names)
    split = ftk.stratified_split(images.labels, sizes=(0.5, 0.25, 0.25), seed=0)
    backbone = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(32, 32, 3))
    head = ftk.classification_head(len(images.class_names), dropout=0.2)
    spec = ftk.FineTuneSpec(trainable_blocks=1, epochs=1)
    tuned = ftk.fine_tune(backbone, head, spec, images, split, batch_size=8, verbose=0)
    report: ftk.Report = ftk.evaluate(tuned.model, images, split.test)
    accuracy: float = report.accuracy
    assert 0 <= accuracy <= 1
    return tuned

if __name__ == "__main__":
    train(np.zeros((24, 32, 32, 3), np.uint8), ["a", "b"] * 12).model.save("model.keras")
    print(ftk.__file__, ftk.__version__)
"""
# What a program that never asks for them should not wait for, or need.
OPTIONAL = [
    "matplotlib", "pydicom", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "tf2onnx",
    "pytest", "hypothesis",
]  # fmt: skip


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, as `python -m build` makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def project(wheel, tmp_path_factory):
    """An environment of its own with the wheel in it; backend and numpy are lent to it."""
    folder = tmp_path_factory.mktemp("project")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # pip of the running environment installs into the new one, as a user's own would.
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    lent = folder / "lent"
    lent.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "finetune_kit" not in entry.name and entry.suffix != ".pth":  # not the editable install
            (lent / entry.name).symlink_to(entry)
    (site / "lent.pth").write_text(str(lent))
    (folder / "user.py").write_text(USER)
    return folder, python


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        told = Parser().parsestr(archive.read(next(n for n in names if "METADATA" in n)).decode())
    source = ROOT / "src"
    rooms = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert {n for n in names if not n.split("/")[0].endswith(".dist-info")} == {
        *rooms,
        "finetune_kit/py.typed",
    }
    assert told["Version"] == ftk.__version__
    assert told["License-Expression"] == "Apache-2.0"
    assert told.get_payload().startswith("# finetune-kit")


@pytest.mark.slow
def test_another_project_fine_tunes_with_the_wheel(project):
    folder, python = project
    printed = run(python, "user.py", cwd=folder, env={**os.environ, "PYTHONPATH": ""})
    file, version = printed.split()[-2:]
    assert Path(file).is_relative_to(folder / "venv")
    assert version == ftk.__version__
    assert (folder / "model.keras").is_file()


@pytest.mark.slow
def test_the_users_code_passes_mypy_strict(project):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy (the extra lint)")
    folder, python = project
    (folder / "mypy.ini").write_text("[mypy-keras.*]\nignore_missing_imports=True\n")
    arguments = ["--strict", "--config-file", "mypy.ini", "--python-executable", python, "user.py"]
    run(sys.executable, "-m", "mypy", *arguments, cwd=folder)
    wrong = USER.replace("accuracy: float", "accuracy: str")
    (folder / "wrong.py").write_text(wrong)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, arguments[:-1]), "wrong.py"],
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    assert 'expression has type "float", variable has type "str"' in done.stdout


def test_no_optional_package_is_imported_before_it_is_needed():
    code = (
        "import sys, keras\nkeras_alone = set(sys.modules)\nimport finetune_kit\n"
        f"print([n for n in {OPTIONAL} if n in set(sys.modules) - keras_alone])"
    )
    assert run(sys.executable, "-c", code).strip().splitlines()[-1] == "[]"


def test_the_citation_has_the_version():
    assert f"\nversion: {ftk.__version__}\n" in (ROOT / "CITATION.cff").read_text()
