"""Another project installs the built wheel, checks its types, and trains in a dozen lines."""

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
    train, validation, test = images.split((0.5, 0.25, 0.25), seed=0)
    backbone = keras.applications.MobileNet(
        alpha=0.25, weights=None, include_top=False, input_shape=(32, 32, 3))
    head = ftk.classification_head(images.class_names, dropout=0.2)
    spec = ftk.FineTuneSpec(trainable_blocks=1, epochs=2)
    tuned = ftk.fine_tune(backbone, head, spec, train, validation, batch_size=6, verbose=0)
    report: ftk.Report = ftk.evaluate(tuned, test)
    accuracy: float = report.accuracy
    assert accuracy == np.mean(report.scores.argmax(axis=1) == test.labels)
    return tuned

if __name__ == "__main__":
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    train(pixels, ["a", "b"] * 12).model.save("model.keras")
    print(ftk.__file__, ftk.__version__)
"""
# Packages that a program which does not use them should neither need nor wait for.
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
    """The wheel, as `python -m build` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def project(wheel, tmp_path_factory):
    """An environment of its own with the wheel in it, which borrows Keras, backend and NumPy."""
    folder = tmp_path_factory.mktemp("project")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # The pip of this environment installs into the new one.
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "finetune_kit" not in entry.name and entry.suffix != ".pth":  # not the editable install
            (borrowed / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(str(borrowed))
    (folder / "user.py").write_text(USER)
    return folder, python


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = archive.read(next(n for n in names if "METADATA" in n)).decode()
    source = ROOT / "src"
    modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert {n for n in names if not n.split("/")[0].endswith(".dist-info")} == {
        *modules,
        "finetune_kit/py.typed",
    }
    metadata = Parser().parsestr(text)
    assert metadata["Version"] == ftk.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload().startswith("# finetune-kit")


@pytest.mark.slow
def test_another_project_fine_tunes_with_the_wheel(project):
    folder, python = project
    # With -O, which drops `assert`: nothing in the package may rely on one.
    printed = run(python, "-O", "user.py", cwd=folder, env={**os.environ, "PYTHONPATH": ""})
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
    (folder / "wrong.py").write_text(USER.replace("accuracy: float", "accuracy: str"))
    arguments = ["--strict", "--config-file", "mypy.ini", "--python-executable", str(python)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, "user.py", "wrong.py"],
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    assert 'expression has type "float", variable has type "str"' in done.stdout, done.stdout
    assert "Found 1 error in 1 file (checked 2 source files)" in done.stdout


def test_no_optional_package_is_imported_before_it_is_needed():
    code = (
        "import sys, keras\nkeras_alone = set(sys.modules)\nimport finetune_kit\n"
        f"print([n for n in {OPTIONAL} if n in set(sys.modules) - keras_alone])"
    )
    assert run(sys.executable, "-c", code).strip().splitlines()[-1] == "[]"


def test_the_citation_has_the_version():
    assert f"\nversion: {ftk.__version__}\n" in (ROOT / "CITATION.cff").read_text()
