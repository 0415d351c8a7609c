"""Checkpoints from which an interrupted run resumes.

A checkpoint is one `.npz` file, written whole and then renamed, whose name ends in the SHA-256 of
its bytes. A half-written or damaged one is skipped for the one before. `run.json` holds the
settings of the run; a run with other settings cannot use the folder. Nothing in it is executable.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_kit._files import make_folder, write_whole
from finetune_kit._processes import is_first

FORMAT = "finetune-kit run 2"
_KEPT = 2  # the newest, and the one before in case it is damaged


@dataclass(frozen=True, eq=False)
class State:
    """The state of a run: `position` as plain values, and arrays by name."""

    position: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class Checkpoints:
    """The checkpoints of one run in a folder. Of several processes, the first one writes them."""

    def __init__(self, run_dir: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self._folder, self._count = Path(run_dir).expanduser(), 0
        if not is_first():
            return
        make_folder("run_dir", run_dir)
        for draft in self._folder.glob("*.part"):  # of a process that was killed while writing
            draft.unlink(missing_ok=True)
        content = json.loads(json.dumps({"format": FORMAT, **settings}))
        about = self._folder / "run.json"
        if any(self._folder.glob("checkpoint-*.npz")):
            _check_same(self._folder, _read(about), content)
        else:  # a run may have begun here, but left no checkpoint
            write_whole(about, json.dumps(content, indent=2) + "\n")

    def latest(self) -> State | None:
        """Return the newest undamaged state, or None."""
        for path in sorted(self._folder.glob("checkpoint-*.npz"), reverse=True):
            content = path.read_bytes()
            if path.stem.endswith(hashlib.sha256(content).hexdigest()):
                self._count = int(path.stem.split("-")[1])
                with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                    found = {name: arrays[name] for name in arrays.files}
                return State(json.loads(found.pop("position").tobytes()), found)
            path.unlink(missing_ok=True)
        return None

    def write(self, state: State) -> None:
        """Write a state, and delete all but the last two."""
        if not is_first():
            return
        position = np.frombuffer(json.dumps(state.position).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, position=position, **state.arrays)
        content = buffer.getvalue()
        self._count += 1
        digest = hashlib.sha256(content).hexdigest()
        write_whole(self._folder / f"checkpoint-{self._count:06}-{digest}.npz", content)
        for path in sorted(self._folder.glob("checkpoint-*.npz"))[:-_KEPT]:
            path.unlink(missing_ok=True)


def _check_same(folder: Path, there: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    lines = _differences("", there, given)
    if lines:
        raise ValueError(
            "`run_dir` must be empty or hold a run of the same call; use another folder for this "
            "one. "
            f"Received: {str(folder)!r}, whose run differs in:\n" + "\n".join(lines)
        )


def _differences(name: str, there: Any, given: Any) -> list[str]:
    """Return a line for each value that differs, with its place in mappings and lists."""
    if there == given:
        return []
    if isinstance(there, Mapping) and isinstance(given, Mapping):
        dotted = f"{name}." if name else ""
        parts = [(f"{dotted}{k}", there.get(k), given.get(k)) for k in {**there, **given}]
    elif isinstance(there, list) and isinstance(given, list) and len(there) == len(given):
        pairs = zip(there, given, strict=True)
        parts = [(f"{name}[{i}]", *pair) for i, pair in enumerate(pairs)]
    else:
        return [f"  {name}: {_short(there)} there, {_short(given)} now"]
    return [line for part in parts for line in _differences(*part)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} must be a file that a run wrote; delete its folder to start anew. "
            f"Received: {error}"
        ) from error
    return content if isinstance(content, dict) else {"format": content}
