"""Time `conv_blocks` and `plan` over all 40 keras.applications, apart from building the models.

    python benchmarks/blocks.py [NAME ...]

Prints milliseconds (the least of five runs), the number of operations, and microseconds an
operation: where that stays level from small models to large ones, the time is linear.
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
    """The least of five runs."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main(names: list[str]) -> None:
    """One line a model, the slowest last."""
    print("application          operations  conv_blocks     plan  us/operation")
    slowest = 0.0
    for name in names:
        backbone = build(name)
        blocks = milliseconds(lambda model=backbone: ftk.conv_blocks(model))
        plan = milliseconds(lambda model=backbone: ftk.FineTuneSpec(1).plan(model))
        count = len(backbone.operations)
        slowest = max(slowest, blocks, plan)
        print(
            f"{name:20} {count:10,} {blocks:9.1f} ms {plan:5.1f} ms {1000 * blocks / count:13.1f}"
        )
        keras.backend.clear_session()
    print(f"slowest: {slowest:.1f} ms")


if __name__ == "__main__":
    skipped = {"NASNetMobile"} if keras.backend.backend() == "torch" else set()  # not built there
    main(sys.argv[1:] or [name for name in NAMES if name not in skipped])
