"""How long does it take to open and read a feature cache in a bucket, and how many requests?

    pip install 'finetune-kit[cloud]' 'moto[s3]' flask flask-cors
    KERAS_BACKEND=torch OMP_NUM_THREADS=1 python benchmarks/bucket.py

Synthetic rows are put into a bucket by 64 writers, one after the other. Then a new process opens
the entry without local copies, finds out which of 1% more rows are missing, opens it again with
copies of the indexes, and reads random batches of 32 rows twice. Printed are wall seconds, requests
by kind, and the peak of the memory that Python and NumPy allocate (`tracemalloc`, in an opening of
its own), without the list of digests that is passed in. The bucket is that of moto's S3 server on
this machine, which is written in Python and answers a few hundred requests a second, so the seconds
are an upper bound for a fast network; the requests do not depend on the server.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit._features import store
from finetune_kit._features.cache import FeatureCache, place_of
from finetune_kit._features.entry import Entry
from finetune_kit._features.place import Place
from finetune_kit._features.rows import Rows

ABOUT = {
    "format": store.FORMAT, "model": "synthetic", "layers": [], "shapes": [(16,)],
    "dtype": "float32",
}  # fmt: skip
URL = "s3://benchmark/features"
requests: Counter[str] = Counter()


def digests(count: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]


def place(local: str) -> Place:
    return place_of(FeatureCache(URL, local_folder=local)).at("entry")


def opened(local: str, names: list[str]) -> Entry:
    return Entry(place(local), ABOUT, Rows.named(np.arange(len(names)), names))


def count_requests() -> None:
    import s3fs

    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **options: Any) -> Any:
        requests[method] += 1
        return await call(self, method, *args, **options)

    s3fs.S3FileSystem._call_s3 = counted


@contextmanager
def measured(what: str) -> Iterator[None]:
    requests.clear()
    began, used = time.perf_counter(), time.process_time()
    yield
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    sent = ", ".join(f"{n:,} {method}" for method, n in sorted(requests.items())) or "none"
    print(f"{what:32} {seconds:8.2f} {processor:12.2f}   {sent}", flush=True)


def write(names: list[str], writers: int, local: str) -> None:
    """Put the rows as `writers` shards leave them."""
    count_requests()
    target = place(local)
    with measured(f"put, {writers} writers"):
        entry = opened(local, names[:1])
        for i in range(writers):
            own = names[i::writers]
            size = entry._chunk_rows(len(own), 32)
            store.write_about(target, ABOUT)
            for start in range(0, len(own), size):
                part = own[start : start + size]
                rows = np.zeros(len(part), entry._record)
                rows["image"] = np.array(part, "S64")
                rows["f0"][:, 0] = np.arange(start * writers + i, start * writers + i + len(part))
                store.write_chunk(target, rows)


def read(names: list[str], local: str) -> None:
    count_requests()
    extra = digests(len(names) + len(names) // 100)
    with measured("open, no copies"):
        entry = opened(local, extra)
    with measured("list missing"):
        missing = len(entry.missing)
    assert missing == len(extra) - len(names)
    with measured("open, with copies of indexes"):
        entry = opened(local, names)
    generator = np.random.default_rng(0)
    batches = [generator.integers(0, len(names), 32) for _ in range(100)]
    for what in ("100 random batches, first time", "100 random batches, again"):
        with measured(what):
            for batch in batches:
                assert entry.read(batch) is not None
    with measured(f"open and {len(entry._mapped):,} chunks verified"):
        store._verified.clear()
        again = opened(local, names)
        for batch in batches:
            again.read(batch)
    tracemalloc.start()
    opened(local, names)
    print(f"{'peak of an opening':32} {tracemalloc.get_traced_memory()[1] / 1e6:8.0f} MB")


@contextmanager
def server() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    import s3fs

    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        s3fs.S3FileSystem().mkdir("benchmark")
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--writers", type=int, default=64)
    given = parser.parse_args()
    names = digests(given.rows)
    processes = multiprocessing.get_context("spawn")
    print(f"{'':32} {'seconds':>8} {'processor s':>12}   requests")
    with server(), tempfile.TemporaryDirectory() as folder:
        for target, args in (
            (write, (names, given.writers, str(Path(folder, "writer")))),
            (read, (names, str(Path(folder, "reader")))),
        ):
            process = processes.Process(target=target, args=args)
            process.start()
            process.join()
            assert process.exitcode == 0


if __name__ == "__main__":
    main()
