"""How far are the outputs of a channels-first twin from those of the model?

    KERAS_BACKEND=tensorflow python benchmarks/twins.py [NAME ...]

For each of the `keras.applications` with random weights (also those that scale channels), it prints
the largest difference at a boundary between stages or at the output, as a share of the largest
value there, and the layers that run channels-last. With random weights, the values of a very deep
model may grow so large that its own outputs change as much when its input changes by a millionth;
that change is printed too.
"""

from __future__ import annotations

import gc
import inspect
import sys
from typing import Any

import keras
import numpy as np

import finetune_kit as ftk
from finetune_kit._model.graph import layers_within
from finetune_kit._model.twin import channels_first

layers = keras.layers


def difference(name: str) -> tuple[float, float, int, tuple[str, ...]]:
    keras.utils.set_random_seed(0)
    side = 96 if name[0] in "IX" or name.startswith("NASNet") else 64
    build = getattr(keras.applications, name)
    model = build(weights=None, include_top=False, input_shape=(side, side, 3))
    rng = np.random.default_rng(0)
    for layer in layers_within(model):
        if isinstance(layer, (layers.BatchNormalization, layers.LayerNormalization)):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    stages = ftk.conv_blocks(model, level="stage")
    cuts = [ftk.cut(model, stage.name, level="stage")[0] for stage in stages[1:]]
    outputs = [x for prefix in cuts for x in prefix.outputs]
    whole = keras.Model(model.input, [*outputs, model.output])
    twin, kept = channels_first(whole)
    pixels = rng.integers(0, 256, (2, side, side, 3)).astype(np.float32)
    pairs = zip(whole(pixels, training=False), twin(pixels, training=False), strict=True)
    largest = max(float(_share(*pair)) for pair in pairs)
    changed = whole(pixels * np.float32(1 + 1e-6), training=False)
    pairs = zip(whole(pixels, training=False), changed, strict=True)
    own = max(float(_share(*pair)) for pair in pairs)
    return largest, own, len(outputs) + 1, kept


def _share(one: Any, other: Any) -> float:
    one, other = keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
    return np.abs(one - other).max() / np.abs(one).max()


def main() -> None:
    every = vars(keras.applications).items()
    names = sys.argv[1:] or sorted(n for n, f in every if inspect.isfunction(f))
    found = {}
    for name in names:
        found[name], own, count, kept = difference(name)
        last = f", {len(kept)} layers channels-last" if kept else ""
        print(f"{name}: {found[name]:.1e} ({own:.1e}) at {count} tensors{last}", flush=True)
        keras.backend.clear_session()
        gc.collect()
    largest = max(found, key=lambda name: found[name])
    print(f"{len(found)} applications; the largest difference is {found[largest]:.1e} ({largest})")


if __name__ == "__main__":
    main()
