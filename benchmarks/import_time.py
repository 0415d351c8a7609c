"""Measure the time of importing all public names beyond that of Keras, and list what it imports.

    python benchmarks/import_time.py

Each measurement is a new process that imports Keras and its backend first. What these import
themselves (NumPy, and scikit-learn where it is installed) is not counted. The time is the CPU time
of the process, so other programs have little influence.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import time, keras, sys
keras.ops.zeros(1)
before, started = set(sys.modules), time.process_time()
import finetune_kit
first = time.process_time() - started  # the names are imported when they are used
for name in finetune_kit.__all__:
    getattr(finetune_kit, name)
seconds = time.process_time() - started
new = {name.split('.')[0] for name in set(sys.modules) - before if not name.startswith('_')}
large = {'scipy', 'sklearn', 'PIL', 'pandas', 'matplotlib', 'pydicom'}
print(1000 * first, 1000 * seconds, *sorted(new & large))
"""


def main(times: int = 9) -> None:
    milliseconds: list[tuple[float, float]] = []
    imported = ""
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
        )
        first, whole, *names = done.stdout.split()
        milliseconds.append((float(first), float(whole)))
        imported = " ".join(names)
    kinds = ("import finetune_kit", "with all public names")
    for kind, values in zip(kinds, zip(*milliseconds, strict=True), strict=True):
        print(f"{kind}: median {statistics.median(values):.0f} ms, fastest {min(values):.0f} ms")
    print(f"large packages imported with it: {imported or 'none'}")


if __name__ == "__main__":
    main()
