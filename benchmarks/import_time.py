"""What `import finetune_kit` costs beyond Keras' own import, and where it goes.

    python benchmarks/import_time.py

Each measurement is a fresh process that imports Keras with its backend first; what Keras needs
anyway (numpy, and scikit-learn where it is installed) is counted as Keras'. Time is the process's
own on the CPU, so that other programs count little.
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
took = time.process_time() - started
new = {name.split('.')[0] for name in set(sys.modules) - before if not name.startswith('_')}
print(1000 * took, *sorted(new & {'scipy', 'sklearn', 'PIL', 'pandas', 'matplotlib', 'pydicom'}))
"""


def main(times: int = 9) -> None:
    took, brought = [], ""
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
        )
        milliseconds, _, brought = done.stdout.strip().partition(" ")
        took.append(float(milliseconds))
    print(f"median {statistics.median(took):.0f} ms, fastest {min(took):.0f} ms of {times}")
    print(f"imported with it: {brought or 'nothing large'}")


if __name__ == "__main__":
    main()
