"""Time `conv_blocks` and `plan` for all 40 keras.applications, without building the models.

    python benchmarks/blocks.py [NAME ...]

It prints milliseconds (the fastest of five runs), the number of operations, and microseconds per
operation. If these are about the same for small and large models, the time is linear.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras

import finetune_kit as ftk

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from blocks_table import NAMES, build


def milliseconds(call: Callable[[], object]) -> float:
    """Return the time of the fastest of five calls."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main(names: list[str]) -> None:
    """Print a line for each model, and the longest time."""
    print("application          operations  conv_blocks     plan  us per operation")
    slowest = 0.0
    for name in names:
        backbone = build(name)
        blocks = milliseconds(lambda model=backbone: ftk.conv_blocks(model))
        plan = milliseconds(lambda model=backbone: ftk.FineTuneSpec(1).plan(model))
        count = len(backbone.operations)
        slowest = max(slowest, blocks, plan)
        print(
            f"{name:20} {count:10,} {blocks:9.1f} ms {plan:5.1f} ms {1000 * blocks / count:17.1f}"
        )
        keras.backend.clear_session()
    print(f"longest: {slowest:.1f} ms")


if __name__ == "__main__":
    # NASNetMobile cannot be built on PyTorch.
    skipped = {"NASNetMobile"} if keras.backend.backend() == "torch" else set()
    main(sys.argv[1:] or [name for name in NAMES if name not in skipped])
