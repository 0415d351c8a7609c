"""A model or layer comes in, one digest of its graph and weights goes out.

Equal digests mean equal outputs in inference mode: kept features, checkpoints and reports are
recognised by them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


def described(model: keras.Layer, known: Mapping[int, str] | None = None) -> str:
    """Return one digest of the graph and weights of a model or layer.

    The names of its layers do not matter. `known` holds digests of variables by their `id`, so that
    weights that stay the same are hashed once.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
        graph = json.dumps(_canonical(config), sort_keys=True, default=str)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            "Each layer of the frozen part must have a config, because kept features are "
            "recognised by it; give the layer a get_config method, or pass features=False. "
            f"Received: {model.name!r}, which says: {error}"
        ) from error
    digest = hashlib.sha256(graph.encode())
    for weight in model.weights:
        digest.update(((known or {}).get(id(weight)) or variable_digest(weight)).encode())
    return digest.hexdigest()


def variable_digest(variable: Any) -> str:
    """Return the SHA-256 of a variable's shape, type and value."""
    value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    content = f"{value.shape} {value.dtype}".encode() + value.tobytes()
    return hashlib.sha256(content).hexdigest()


def _canonical(config: Any) -> Any:
    """A config without what does not matter: names become places, seeds are left out.

    A name is replaced by the place where it comes up first. Nothing draws random numbers in
    inference mode, and augmentation is given its own states.
    """
    names: dict[str, str] = {}

    def collect(node: Any) -> None:
        if isinstance(node, Mapping):
            if isinstance(node.get("name"), str):
                names.setdefault(node["name"], f"#{len(names)}")
            for value in node.values():
                collect(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                collect(value)

    def replace(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: replace(value) for key, value in node.items() if key != "seed"}
        if isinstance(node, (list, tuple)):
            return [replace(value) for value in node]
        return names.get(node, node) if isinstance(node, str) else node

    collect(config)
    return replace(config)
