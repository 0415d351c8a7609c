"""The architecture: which package may import which, and what nothing may import."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import finetune_kit as ftk

PACKAGE = Path(ftk.__file__).parent
MODULES = {
    info.name.removeprefix("finetune_kit."): Path(importlib.util.find_spec(info.name).origin)
    for info in pkgutil.walk_packages(ftk.__path__, "finetune_kit.")
}
GROUND = {
    "_buckets",
    "_checks",
    "_files",
    "_hints",
    "_html",
    "_processes",
    "_quiet",
    "_text",
    "_urls",
}
# Each package may import the ground floor, itself, and the packages named here.
BELOW = {
    "_data": set(),
    "_model": set(),
    "_features": {"_data", "_model"},
    "_train": {"_data", "_model", "_features"},
    "_report": {"_data", "_model", "_features", "_train"},
    "_cli": {
        "_data",
        "_model",
        "_train",
        "_report",
    },  # the public names, and what reads their input
    "ray": {"_data", "_model", "_features", "_train"},
    "__main__": {"_cli"},
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_every_file_is_a_module_of_a_package():
    files = {path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}
    assert set(MODULES.values()) == files
    assert {name for name in MODULES if "." not in name} == {*GROUND, *BELOW}


def test_imports_point_down():
    for module, file in MODULES.items():
        package = module.split(".")[0]
        allowed = GROUND | BELOW.get(package, set()) | {package}
        inside = {n.split(".")[1] for n in imports(file) if n.startswith("finetune_kit.")}
        assert inside <= allowed, module


def code_lines(function: ast.FunctionDef, lines: list[str]) -> int:
    """Count lines without docstring, comments and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) and function.body[1:] else function.body
    code = [line.strip() for line in lines[body[0].lineno - 1 : function.end_lineno]]
    return sum(bool(line) and not line.startswith("#") for line in code)


def test_files_and_functions_are_short():
    for module, file in MODULES.items():
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        assert len(lines) <= 320, module
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert code_lines(node, lines) <= 40, f"{module}.{node.name}"


def test_the_public_interface_is_small():
    assert len(ftk.__all__) == len(set(ftk.__all__)) <= 42
    assert len(inspect.signature(ftk.fine_tune).parameters) <= 18


def test_imports_have_no_circles():
    needs = {
        module: {
            name.removeprefix("finetune_kit.")
            for name in imports(file)
            if name.startswith("finetune_kit.")  # `import ray` is not our module of that name
        }
        for module, file in MODULES.items()
    }
    modules = {
        module: {other for other in MODULES for name in names
                 if name == other or name.startswith(f"{other}.")} - {module}
        for module, names in needs.items()
    }  # fmt: skip
    graphlib.TopologicalSorter(modules).prepare()  # raises a CycleError


def test_no_module_imports_a_backend():
    for module, file in MODULES.items():
        tops = {name.split(".")[0] for name in imports(file)}
        assert not tops & {"tensorflow", "jax", "torch"}, module


def test_every_public_name_is_exported_and_documented():
    api = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    for name in ftk.__all__:
        assert getattr(ftk, name).__doc__, name
        assert re.search(rf"auto(class|function):: {name}\b", api), name


def test_matplotlib_is_not_imported_before_a_picture_is_drawn():
    code = (
        "import sys, keras; before = set(sys.modules); import finetune_kit;"
        "sys.exit('matplotlib' in set(sys.modules) - before)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
