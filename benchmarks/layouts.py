"""Processor milliseconds of an image: batches or single images, channels last or first.

    KERAS_BACKEND=openvino python benchmarks/layouts.py MobileNetV2 EfficientNetB0
    KERAS_BACKEND=torch python benchmarks/layouts.py MobileNetV2

On OpenVINO, the channels-first twin in batches of 32 by `predict_on_batch`, and one image at a time
on each core, as a worker computes it. On PyTorch, the model and its twin in batches of 32, and
whether their outputs are equal bit for bit. Random weights, 224 x 224 pixels, best of three; it
starts with the seconds that importing Keras takes, in general and in a worker.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

IMPORTS = {"Keras": "import keras", "Keras in a worker": "w._import_keras()"}
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
CODE = "import resource as r, finetune_kit._features.worker as w; {}; u = r.getrusage(0); \
print(u.ru_utime + u.ru_stime)"


def milliseconds(compute: Callable[[], Any], images: int) -> float:
    best = float("inf")
    for _ in range(3):
        used = resource.getrusage(resource.RUSAGE_SELF)
        compute()
        now = resource.getrusage(resource.RUSAGE_SELF)
        spent = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        best = min(best, spent / images * 1e3)
    return best


def main() -> None:
    for name, statement in IMPORTS.items():
        command = [sys.executable, "-c", CODE.format(statement)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"import of {name}: {float(done.stdout):.1f} processor seconds", flush=True)
    import keras
    import numpy as np

    from finetune_kit._features.computing import _OnOpenVINO
    from finetune_kit._features.engine import outputs_of
    from finetune_kit._model.twin import channels_first

    pixels = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), np.uint8)
    halves = pixels[:32], pixels[32:]
    for name in sys.argv[1:]:
        build = getattr(keras.applications, name)
        options = {"alpha": 0.5} if name == "MobileNetV2" else {}
        model = build(weights=None, include_top=False, pooling="avg", **options,
                      input_shape=(224, 224, 3))  # fmt: skip
        model.trainable = False
        (twin, _), (again, _) = channels_first(model), channels_first(model)
        if keras.backend.backend() == "openvino":
            # OpenVINO's default is bfloat16, where the processor has it.
            openvino: Any = sys.modules["openvino"]
            default = openvino.compile_model
            openvino.compile_model = lambda *graph, default=default: default(*graph, FLOAT32)
            twin.predict_on_batch(halves[0])
            openvino.compile_model = default
            kinds = {"batches": twin.predict_on_batch, "single images": _OnOpenVINO(again)}
        else:
            kinds = {"channels last": lambda x, model=model: outputs_of(model, x, 32),
                     "channels first": lambda x, twin=twin: outputs_of(twin, x, 32)}  # fmt: skip
        outputs = [np.asarray(compute(halves[0])).squeeze() for compute in kinds.values()]
        found = {
            kind: milliseconds(lambda compute=compute: [compute(x) for x in halves], len(pixels))
            for kind, compute in kinds.items()
        }
        costs = ", ".join(f"{kind} {value:.1f} ms" for kind, value in found.items())
        one, other = outputs
        print(f"{name}: {costs}; bit-equal: {np.array_equal(one, other)}", flush=True)


if __name__ == "__main__":
    main()
