"""How long does it take to open an entry of a feature cache, and how much memory?

    KERAS_BACKEND=torch OMP_NUM_THREADS=1 python benchmarks/store.py

Entries of 10^4 to 10^6 synthetic rows of three sizes are opened, each in a new process: the names
of the rows are packed, the indexes are read, and it is decided which rows are missing. Features are
not read, so the bodies of the chunks are holes in sparse files, and a million rows of 31 kB take no
space. Printed are wall seconds, processor seconds, and the peak of the memory that Python and NumPy
allocate (`tracemalloc`, in a second opening), without the list of digests that is passed in.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit._features import store
from finetune_kit._features.entry import Entry
from finetune_kit._features.place import Place
from finetune_kit._features.rows import Rows

# What one image takes of float32: 16 numbers, a pooled output, a map of 7 x 7 x 160.
SIZES = (16, 1280, 7840)


def digests(count: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]


def opened(folder: Path, size: int, names: Sequence[str]) -> Entry:
    about = {"shapes": [(size,)], "dtype": "float32"}
    return Entry(Place(folder), about, Rows.named(np.arange(len(names)), names))


def write(folder: Path, size: int, names: Sequence[str]) -> int:
    """Write chunks as a pass over the images leaves them, and return their number."""
    empty = opened(folder, size, names[:1])
    rows = empty._chunk_rows(len(names), 32)
    packed = np.fromiter(map(bytes.fromhex, names), "S32", len(names))
    for start in range(0, len(names), rows):
        part = packed[start : start + rows]
        path = folder / f"{hashlib.sha256(part.tobytes()).hexdigest()}.npy"
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, empty._record))
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(part),)})
            file.truncate(file.tell() + len(part) * empty._record.itemsize)
        store._write_index(empty.place, path, part)
    return -(-len(names) // rows)


def measure(folder: Path, size: int, count: int, results: Any) -> None:
    names = digests(count)
    opened(folder, size, names[:1])  # code and files have been read once
    began, used = time.perf_counter(), time.process_time()
    entry = opened(folder, size, names)
    missing = len(entry.missing)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    assert not missing
    tracemalloc.start()
    opened(folder, size, names)
    results.put((seconds, processor, tracemalloc.get_traced_memory()[1] / 1e6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    processes = multiprocessing.get_context("spawn")
    print("     rows   bytes a row   chunks   seconds   processor s   peak MB")
    for count in parser.parse_args().rows:
        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                chunks = write(Path(folder), size, digests(count))
                results = processes.Queue()
                process = processes.Process(
                    target=measure, args=(Path(folder), size, count, results)
                )
                process.start()
                seconds, processor, peak = results.get()
                process.join()
            print(f"{count:9,} {4 * size:13,} {chunks:8,} {seconds:9.2f} {processor:13.2f} "
                  f"{peak:9.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
