"""The house: which room may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import finetune_kit as ftk

HOUSE = Path(ftk.__file__).parent

# room: the rooms it may import. Imports point down only.
FLOORS = {
    "_checks": set(),
    "_quiet": set(),
    "_decoding": set(),
    "_images": {"_checks", "_decoding"},
    "_reading": {"_checks", "_decoding", "_images"},
    "_assignment": set(),
    "_split": {"_assignment", "_checks"},
    "_manifest": {"_checks", "_files", "_images", "_split"},
    "_leakage": {"_checks", "_decoding", "_images", "_split"},
    "_graph": set(),
    "_naming": {"_graph"},
    "_blocks": {"_checks", "_graph", "_naming"},
    "_head": {"_checks"},
    "_preprocessing": set(),
    "_surgery": {"_blocks", "_graph"},
    "_gradient": {"_graph"},
    "_attribution": {"_blocks", "_checks", "_gradient", "_graph", "_surgery"},
    "_files": set(),
    "_bootstrap": set(),
    "_metrics": {"_bootstrap"},
    "_pictures": {"_metrics"},
    "_page": {"_metrics", "_pictures"},
    "_card": {"_metrics"},
    "_plan": {"_blocks"},
    "_spec": {"_blocks", "_checks", "_graph", "_plan"},
    "_report": {"_card", "_checks", "_files", "_metrics", "_page", "_pictures", "_plan"},
    "_batches": set(),
    "_digest": set(),
    "_features": {"_batches", "_digest", "_files"},
    "_cached": {"_checks", "_features"},
    "_frozen": {
        "_batches",
        "_decoding",
        "_digest",
        "_features",
        "_graph",
        "_images",
        "_plan",
        "_split",
        "_surgery",
    },
    "_callbacks": {"_graph"},
    "_objective": {"_checks"},
    "_optimizer": set(),
    "_schedules": {"_checks", "_spec"},
    "_sweep": {"_checks", "_features", "_frozen", "_images", "_spec", "_split", "_train"},
    "_compare": {"_bootstrap", "_checks", "_files", "_metrics", "_page", "_pictures", "_report"},
    "_evaluate": {
        "_attribution",
        "_batches",
        "_checks",
        "_digest",
        "_images",
        "_leakage",
        "_quiet",
        "_report",
        "_split",
        "_train",
    },
    "_checkpoints": {"_files"},
    "_phases": {
        "_batches",
        "_callbacks",
        "_checkpoints",
        "_frozen",
        "_objective",
        "_optimizer",
        "_plan",
        "_spec",
    },
    "_train": {
        "_callbacks",
        "_checkpoints",
        "_checks",
        "_digest",
        "_features",
        "_frozen",
        "_graph",
        "_images",
        "_objective",
        "_optimizer",
        "_phases",
        "_plan",
        "_preprocessing",
        "_quiet",
        "_spec",
        "_split",
    },
}


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_each_room_imports_only_the_rooms_below_it():
    rooms = {file.stem: file for file in HOUSE.glob("*.py") if file.stem != "__init__"}
    assert set(rooms) == set(FLOORS)
    for room, file in rooms.items():
        inside = {name.split(".")[1] for name in _imports(file) if name.startswith("finetune_kit.")}
        assert inside <= FLOORS[room], room


def test_no_room_imports_a_backend():
    for file in HOUSE.glob("*.py"):
        tops = {name.split(".")[0] for name in _imports(file)}
        assert not tops & {"tensorflow", "jax", "torch"}, file.name


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
