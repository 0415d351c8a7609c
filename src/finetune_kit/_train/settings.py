"""The settings of a training, as reports and notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from finetune_kit._model.spec import FineTuneSpec


def changed_settings(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training without those that equal Keras' or the spec's defaults."""
    shown = dict(training)
    optimizer = training.get("optimizer")
    if isinstance(optimizer, Mapping) and "class_name" in optimizer:
        kind = str(optimizer["class_name"])
        known = hasattr(keras.optimizers, kind)
        usual = keras.optimizers.get(kind).get_config() if known else {}
        shown["optimizer"] = {
            name: value
            for name, value in optimizer.items()
            if name not in usual or usual[name] != value
        }
        if len(shown["optimizer"]) == 1:  # all other values are Keras' defaults
            shown["optimizer"] = kind
    spec = FineTuneSpec()
    if "specs" in training:
        names = ("level", "layer_decay", "schedule", "warmup", "keep")
        left_out = {name: getattr(spec, name) for name in names}
        shown["specs"] = [
            {name: value for name, value in one.items() if left_out.get(name, ()) != value}
            for one in training["specs"]
        ]
    return shown
