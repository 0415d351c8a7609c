"""The settings that `study.py` compares, by experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

import finetune_kit as ftk


@dataclass(frozen=True)
class Setting:
    """One way to train. The defaults are those of the study.

    Attributes:
        blocks: number of trailing blocks of the backbone that train.
        pooling: pooling of the head.
        batch_norm: `"train"` or `"frozen"`, for BatchNorm in the blocks that train.
        pixels: the recipe whose preprocessing is used, `"study"` or `"recommended"`.
        learning_rate: learning rate of the blocks and the head.
        epoch: `"last"` or `"best"`, the epoch whose weights are evaluated. A run keeps the scores
            of both.
        probe_epochs: how many of the epochs train the head alone, before the blocks.
        plain: whether `keras.Model.fit` trains the whole network, in place of `fine_tune`.
    """

    blocks: int
    pooling: str = "flatten"
    batch_norm: str = "train"
    pixels: str = "study"
    learning_rate: float = 1e-3
    epoch: str = "last"
    probe_epochs: int = 0
    plain: bool = False

    def run_name(self) -> str:
        """Return the name of the run. Settings that differ in the epoch alone share a run."""
        return (
            f"{self.blocks}-blocks_{self.pooling}_batch-norm-{self.batch_norm}"
            f"_{self.pixels}-pixels_{self.learning_rate:g}"
            f"{f'_probe-{self.probe_epochs}' if self.probe_epochs else ''}"
            f"{'_plain' if self.plain else ''}"
        )

    def head(self, class_names: Sequence[str]) -> keras.Model:
        """Return the untrained head."""
        return ftk.classification_head(class_names, units=(1024, 512), pooling=self.pooling)

    def specs(self, epochs: int) -> list[ftk.FineTuneSpec]:
        """Return the phases of a training of `epochs` epochs in total."""
        trained = ftk.FineTuneSpec(
            self.blocks,
            batch_norm=self.batch_norm,
            epochs=epochs - self.probe_epochs,
            learning_rate=self.learning_rate,
            keep="last",  # the best epoch is recorded too
        )
        if not self.probe_epochs:
            return [trained]
        return [ftk.FineTuneSpec(0, epochs=self.probe_epochs, keep="last"), trained]


def recommended(blocks: int) -> Setting:
    """Return the setting that finetune-kit recommends."""
    return Setting(blocks, "avg", "frozen", "recommended", epoch="best")


def depths(first: int, **changes: Any) -> dict[str, Setting]:
    """Return the recommended setting with each number of blocks from `first` to 8."""
    settings = {n: replace(recommended(n), **changes) for n in range(first, 9)}
    return {"1 block" if n == 1 else f"{n} blocks": setting for n, setting in settings.items()}


def changed(name: str, setting: Setting, changes: dict[str, dict[str, Any]]) -> dict[str, Setting]:
    """Return a setting, and the same setting with each of the changes."""
    return {name: setting} | {change: replace(setting, **new) for change, new in changes.items()}


# Each experiment becomes a table, with these rows in this order.
EXPERIMENTS: dict[str, dict[str, Setting]] = {
    "models": {
        **{f"Model {n + 1}, study's recipe": Setting(n) for n in range(3)},
        **{f"Model {n + 1}, recommended": recommended(n) for n in range(3)},
    },
    "depth": depths(0),
    "probe": {"0 blocks": recommended(0), **depths(1, probe_epochs=2)},
    "schedules": changed(
        "the head alone",
        recommended(0),
        {
            "4 blocks at 1e-3": {"blocks": 4},
            "4 blocks at 3e-4": {"blocks": 4, "learning_rate": 3e-4},
            "2 epochs of the head, then 4 blocks at 1e-3": {"blocks": 4, "probe_epochs": 2},
        },
    ),
    "collapse": changed(
        "5 blocks",
        recommended(5),
        {
            "learning rate 1e-4": {"learning_rate": 1e-4},
            "2 epochs of the head first": {"probe_epochs": 2},
            "BatchNorm training": {"batch_norm": "train"},
        },
    ),
    "plain": changed("fine_tune", recommended(5), {"keras.Model.fit": {"plain": True}}),
    "suspects": changed(
        "study's recipe",
        Setting(2),
        {
            "BatchNorm in inference mode": {"batch_norm": "frozen"},
            "pooled head": {"pooling": "avg"},
            "RGB from -1 to 1": {"pixels": "recommended"},
            "learning rate 1e-4": {"learning_rate": 1e-4},
            "best epoch instead of last": {"epoch": "best"},
        },
    ),
    "reverse": changed(
        "recommended recipe",
        recommended(2),
        {
            "BatchNorm training": {"batch_norm": "train"},
            "BGR from 0 to 1": {"pixels": "study"},
            "last epoch instead of best": {"epoch": "last"},
        },
    ),
}
