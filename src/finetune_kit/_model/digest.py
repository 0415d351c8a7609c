"""Fingerprints of models.

Feature caches, checkpoints and reports recognize a model by its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


def fingerprint(model: keras.Layer, known: Mapping[int, str] | None = None) -> str:
    """Return a SHA-256 digest of the graph and the weights of a model or layer.

    Models with equal fingerprints have equal outputs in inference mode. The names of layers do not
    count, because Keras numbers them anew in each process. `known` holds digests of variables by
    their `id`, so that weights that stay the same are hashed once.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
        graph = json.dumps(_canonical(config), sort_keys=True, default=str)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            "Each layer of the model must have a config, because cached features are recognized by "
            "it. Give the layer a `get_config` method, or pass features=False to `fine_tune`. "
            f"Received: {model.name!r}, for which Keras reports: {error}"
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
    """Return a config with names replaced by their order of appearance, and without seeds.

    Seeds do not matter in inference mode. Those of augmentation are part of another key.
    """
    order: dict[str, str] = {}
    _number_names(config, order)
    return _replaced(config, order)


def _number_names(node: Any, order: dict[str, str]) -> None:
    if isinstance(node, Mapping):
        if isinstance(node.get("name"), str):
            order.setdefault(node["name"], f"#{len(order)}")
        for value in node.values():
            _number_names(value, order)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _number_names(value, order)


def _replaced(node: Any, order: Mapping[str, str]) -> Any:
    if isinstance(node, Mapping):
        return {key: _replaced(value, order) for key, value in node.items() if key != "seed"}
    if isinstance(node, (list, tuple)):
        return [_replaced(value, order) for value in node]
    return order.get(node, node) if isinstance(node, str) else node
