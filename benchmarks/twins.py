"""How far are the outputs of a channels-first twin from those of the model?

    KERAS_BACKEND=torch python benchmarks/twins.py [NAME ...]

For each of the `keras.applications` with random weights (also those that scale channels), it prints
the largest difference at a boundary between stages or at the output, as a share of the largest
value there, in float64 and in float32; the layers that run channels-last; and how much larger a
relative change of the pixels becomes on its way to the outputs. With random weights, very deep
models enlarge a change a million times, and so the rounding of float32. In float64 a twin that
computes the same shows as one. On a CPU, PyTorch alone convolves float64 with the channels first;
NASNetMobile, which Keras cannot build there, needs TensorFlow.
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
FLOATS = ("float64", "float32") if keras.backend.backend() == "torch" else ("float32",)


def difference(name: str, floatx: str) -> tuple[float, float, int, tuple[str, ...]]:
    """Return the largest difference, the growth of a change, and the tensors and layers."""
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
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
    assert whole.outputs[-1].dtype == floatx
    whole.trainable = False
    twin, kept = channels_first(whole)
    pixels = rng.integers(0, 256, (2, side, side, 3)).astype(floatx)
    change = 1e-6 if floatx == "float32" else 1e-10
    changed = (pixels * (1 + change)).astype(floatx)
    own, other, moved = (model(x, training=False) for model, x in
                         ((whole, pixels), (twin, pixels), (whole, changed)))  # fmt: skip
    largest = max(map(_share, own, other))
    growth = max(map(_share, own, moved)) / change
    return largest, growth, len(outputs) + 1, kept


def _share(one: Any, other: Any) -> float:
    one, other = keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
    return float(np.abs(one - other).max() / np.abs(one).max())


def main() -> None:
    every = vars(keras.applications).items()
    names = sys.argv[1:] or sorted(n for n, f in every if inspect.isfunction(f))
    if keras.backend.backend() == "torch":
        names = [name for name in names if name != "NASNetMobile"]
    found = {}
    for name in names:
        shares = {}
        for floatx in reversed(FLOATS):  # the growth is that of the last one, the most exact
            shares[floatx], growth, count, kept = difference(name, floatx)
        found[name] = shares[FLOATS[0]]
        last = f", {len(kept)} layers channels-last" if kept else ""
        print(
            f"{name}: {', '.join(f'{share:.1e} in {floatx}' for floatx, share in shares.items())}, "
            f"at {count} tensors; changes grow {growth:.2g} times{last}",
            flush=True,
        )
        keras.backend.clear_session()
        gc.collect()
    largest = max(found, key=lambda name: found[name])
    print(f"{len(found)} applications; the largest difference is {found[largest]:.1e} ({largest})")


if __name__ == "__main__":
    main()
