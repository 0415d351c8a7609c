"""Facts about a model, such as its class names, inside the file that Keras saves."""

from __future__ import annotations

import json
import os
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from finetune_kit._files import make_folder

FORMAT = "finetune-kit model 1"
MEMBER = "finetune_kit.json"
_MOST_BYTES = 64 << 20  # a file from elsewhere may expand to anything


def save_with_facts(
    model: keras.Model, path: str | os.PathLike[str], facts: Mapping[str, Any]
) -> Path:
    """Save a model as a `.keras` file, completely or not at all, with facts as one more member.

    A `.keras` file is a zip archive, and Keras reads only the members that it knows.

    Raises:
        ValueError: if the path does not end in `.keras`.
        OSError: if it cannot be written.
    """
    named = isinstance(path, (str, os.PathLike))
    target = Path(path).expanduser() if named else Path()
    if target.suffix != ".keras" or target.is_dir():
        raise ValueError(
            "`path` must be a file that ends in .keras, such as 'model.keras' (tuned.model.export "
            f"writes other formats). Received: path={str(path)!r}"
        )
    folder = make_folder("path", target.parent)
    draft = folder / f"{uuid.uuid4().hex}.part.keras"
    try:
        model.save(draft)
        with zipfile.ZipFile(draft, "a") as archive:
            archive.writestr(MEMBER, json.dumps({"format": FORMAT, **facts}, indent=2))
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts in a `.keras` file, or None if there are none.

    Raises:
        ValueError: if the file is not a `.keras` file, or its facts cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if MEMBER not in archive.namelist():
                return None
            if archive.getinfo(MEMBER).file_size > _MOST_BYTES:
                raise ValueError(f"{MEMBER} is too large")
            facts = json.loads(archive.read(MEMBER))
    except zipfile.BadZipFile as error:
        raise ValueError(
            "`model` must be a .keras file, which is a zip archive. "
            f"Received: {str(path)!r}, which is not one"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"`model` must hold a readable {MEMBER}; save it again with FineTuned.save. "
            f"Received: {str(path)!r}, which fails with {error}"
        ) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        written = facts.get("format") if isinstance(facts, dict) else None
        raise ValueError(
            f"`model` must be saved in the format {FORMAT!r}; a newer version of finetune-kit may "
            f"read it. Received: {str(path)!r} with the format {written!r}"
        )
    return facts
