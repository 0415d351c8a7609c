"""The options of `train` and `sweep`, and the `config.json` that holds them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import finetune_kit as ftk
from finetune_kit._urls import is_url

CONFIG, MANIFEST, CHECKPOINTS = "config.json", "manifest.csv", "checkpoints"
RECOMMENDATION = "recommendation.txt"
FEATURES = "features"  # in the folder of the checkpoints, until the models are evaluated
_OF_A_RUN = {CONFIG, MANIFEST, CHECKPOINTS, RECOMMENDATION}  # there before a model is
_FORMAT = "finetune-kit config 1"
_PATHS = ("data", "out", "test", "validation", "root", "features")


@dataclass(frozen=True)
class Job:
    """The options of `train` or `sweep`, which `config.json` holds.

    Attributes:
        verb: `"train"` or `"sweep"`.
        data: the images, see `Data`.
        out: the folder for all results.
        test: images to test on, or None for a share of `data`.
        validation: images to validate on, or None for a share of `data`.
        groups_from, root, path_column, label_column, group_column, on_error: see `Data`.
        sizes: shares of the sets for training, validation and test, or None for the usual ones.
        duplicates: whether to search for copies before the split.
        backbone: see `backbone_of`.
        image_size: height and width in pixels.
        blocks: what trains of the backbone; for `sweep` several, separated by commas.
        recipe: see `specs_of`.
        epochs: of all phases together, or None for the usual number.
        learning_rate: of the last phase, or None for the usual one.
        batch_size: images per step.
        units: widths of the hidden layers of the head.
        dropout: rate of the dropout in the head.
        new_head: whether a trained model gets a new head.
        class_weight: `"balanced"` or None.
        patience: epochs without a lower validation loss after which a phase ends.
        features: folder that keeps the features, or None.
        features_backend: Keras backend that computes them; None: that of the training.
        heat_maps: how many images of the report have one.
        seed: of split, head and shuffling.
    """

    verb: str
    data: str
    out: str
    test: str | None = None
    validation: str | None = None
    groups_from: str | None = None
    root: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    group_column: str | None = None
    on_error: str = "raise"
    sizes: tuple[float, ...] | None = None
    duplicates: bool = True
    backbone: str = "MobileNetV2"
    image_size: int = 224
    blocks: str | None = None
    recipe: str | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int = 32
    units: tuple[int, ...] = ()
    dropout: float = 0.0
    new_head: bool = False
    class_weight: str | None = None
    patience: int = 5
    features: str | None = None
    features_backend: str | None = None
    heat_maps: int = 24
    seed: int = 0

    @property
    def of_a_recipe(self) -> dict[str, Any]:
        """The options that are given and that `recommend` chooses or does not have."""
        names = ("blocks", "epochs", "learning_rate", "units", "dropout", "class_weight")
        usual = {field.name: field.default for field in fields(self)}
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value != usual[name]}


def read_config(file: Path) -> dict[str, Any]:
    """Return the options in a `config.json`.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not one that `train` or `sweep` wrote.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"--config must be a file that exists. Received: {str(file)!r}, which does not"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"--config must be a JSON file. Received: {str(file)!r}: {error}"
        ) from None
    known = {field.name for field in fields(Job)}
    written = content.pop("format", None) if isinstance(content, dict) else None
    if written != _FORMAT or not {*content} <= {*known, "finetune-kit"}:
        raise ValueError(
            f"--config must be a {CONFIG} that finetune-kit wrote, of the format {_FORMAT!r}. "
            f"Received: {str(file)!r}"
        )
    return {name: value for name, value in content.items() if name in known}


def config_of(out: Path, job: Job) -> dict[str, Any]:
    """Return the content of `config.json`, after a check that the folder holds no other job."""
    content: dict[str, Any] = {
        "format": _FORMAT,
        "finetune-kit": ftk.__version__,
        **asdict(job),
    }
    for name in _PATHS:  # valid from any folder
        if content[name] and not is_url(content[name]):
            content[name] = str(Path(content[name]).expanduser().absolute())
    plain = json.loads(json.dumps(content))
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(
            f"--out must be a folder. Received: {str(out)!r}, and {str(there)!r} is a file"
        )
    file = out / CONFIG
    if any((out / CHECKPOINTS).rglob("checkpoint-*")) and file.is_file():
        there = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in {**there, **plain} if there.get(name) != plain.get(name)]
        changed = [name for name in changed if name not in ("out", "finetune-kit")]
        if changed:
            lines = [
                f"  {name}: {there.get(name)!r} there, {plain.get(name)!r} now" for name in changed
            ]
            raise ValueError(
                f"--out must be a new folder, or hold a run with the same options. Received: "
                f"{str(out)!r}, whose run differs in:\n" + "\n".join(lines)
            )
    elif out.is_dir() and {p.name for p in out.iterdir()} - _OF_A_RUN:
        raise ValueError(
            f"--out must be a new or empty folder, or hold a run. Received: {str(out)!r}, which "
            "holds other files"
        )
    return plain
