"""How fast do several processes fill a feature cache, and is anything lost if they are killed?

    KERAS_BACKEND=tensorflow python benchmarks/workers.py speed FOLDER --images 512
    KERAS_BACKEND=openvino python benchmarks/workers.py linear --workers 1 64
    KERAS_BACKEND=openvino python benchmarks/workers.py kills --kills 30

- speed: 1, 2 and 4 workers compute the frozen part of MobileNetV2 x0.5 (whole, pooled) for images
  of FOLDER (class folders), as bare processes with a shard each and on Ray, with one thread each.
- linear: how the driver shares out images, with stand-ins for workers that sleep 0.2 s an image.
- kills: at random moments, in turn, a bare process (its shard is run again), a worker of Ray and a
  node of a Ray cluster are killed. All rows must then be those of one undisturbed process.

A rate is that of the time in which all workers have started, from the first image of the last one
to the last image of all. Starting takes some processor seconds of imports, on Ray as without it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import ray
from ray.cluster_utils import Cluster

import finetune_kit as ftk
import finetune_kit.ray
from finetune_kit._train.features import _in_shard
from finetune_kit._train.filling import Filling, filling_setup
from finetune_kit._train.on_ray import Team, environment, parts_of

OPTIONS: dict[str, Any] = {"batch_size": 16, "verbose": 0}


class Made:
    """Images that are made when they are loaded, after a while."""

    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds = count, seconds

    def __len__(self) -> int:
        return self.count

    def load(self, i: int, size: tuple[int, int]) -> Any:
        time.sleep(self.seconds)
        return np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)

    def digest(self, i: int) -> str:
        return hashlib.sha256(str(i).encode()).hexdigest()

    def file(self, i: int) -> None:
        return None

    def place(self, i: int) -> int:
        return i


class Timed:
    """Writes down, in a file for each process, when each image of another source was loaded."""

    def __init__(self, source: Any, folder: str) -> None:
        self.source, self.folder = source, folder

    def __len__(self) -> int:
        return len(self.source)

    def load(self, i: int, size: tuple[int, int]) -> Any:
        found = self.source.load(i, size)
        with open(f"{self.folder}/{os.getpid()}", "a") as file:
            file.write(f"{time.time()}\n")
        return found

    def digest(self, i: int) -> str:
        return self.source.digest(i)

    def file(self, i: int) -> str | None:
        return self.source.file(i)

    def place(self, i: int) -> Any:
        return self.source.place(i)


def made(count: int, seconds: float) -> ftk.ImageSet:
    source: Any = Made(count, seconds)  # it has what is used here
    return ftk.ImageSet(source, np.arange(count) % 2, ("a", "b"))


def timed(images: ftk.ImageSet, folder: str) -> ftk.ImageSet:
    source: Any = Timed(images.source, folder)
    return ftk.ImageSet(source, images.labels, images.class_names, rows=images.rows)


def rate(folder: str) -> float:
    """Return images per second while all processes were at work, and until the last image."""
    times = [[float(x) for x in path.read_text().split()] for path in Path(folder).iterdir()]
    begin, end = max(min(each) for each in times), max(max(each) for each in times)
    return sum(x > begin for each in times for x in each) / (end - begin)


def small() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 8, 3))
    for i in range(1, 4):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name=f"block{i}_conv")(x)
    return keras.Model(inputs, x, name="small")


def mobilenet() -> keras.Model:
    return keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, input_shape=(224, 224, 3), weights="imagenet"
    )


def chosen(folder: str, count: int) -> ftk.ImageSet:
    images = ftk.read_image_folder(folder)
    return images.take(np.random.default_rng(0).permutation(len(images))[:count])


def shard(args: argparse.Namespace) -> None:
    """Fill one part of a cache, as a process without Ray."""
    if args.folder:
        images, backbone, more = chosen(args.folder, args.images), mobilenet(), {}
    else:
        images, backbone, more = made(args.images, args.seconds), small(), {"preprocessing": None}
    setup = filling_setup(
        backbone, ftk.FineTuneSpec(0), timed(images, args.log), args.to, None,
        more.get("preprocessing", "auto"), OPTIONS["batch_size"], 0,
    )  # fmt: skip
    Filling(setup, threads=1).fill(_in_shard(images, args.part, args.parts))


def started(to: str, log: str, part: int, parts: int, **given: Any) -> subprocess.Popen[bytes]:
    """Start a process for one part, with one thread, as Ray does."""
    options = {"to": to, "log": log, "part": part, "parts": parts, **given}
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    given_to = {**os.environ, **environment(1)}
    return subprocess.Popen([sys.executable, __file__, "shard", *words], env=given_to)


def speed(args: argparse.Namespace) -> None:
    images, backbone = chosen(args.folder, args.images), mobilenet()
    print("workers   kind   seconds   images/s   ratio to one")
    first: dict[str, float] = {}
    for count in args.workers:
        for kind in ("bare", "ray"):
            with tempfile.TemporaryDirectory() as to, tempfile.TemporaryDirectory() as log:
                if kind == "ray":
                    ray.init("local", num_cpus=count, log_to_driver=False, logging_level="WARNING")
                begun = time.perf_counter()
                if kind == "ray":
                    finetune_kit.ray.compute_features(
                        backbone, ftk.FineTuneSpec(0), timed(images, log), to, workers=count,
                        **OPTIONS,
                    )  # fmt: skip
                else:
                    given = {"folder": args.folder, "images": args.images}
                    processes = [started(to, log, i, count, **given) for i in range(count)]
                    for process in processes:
                        assert process.wait() == 0
                seconds = time.perf_counter() - begun
                ray.shutdown()
                (entry,) = ftk.FeatureCache(to).entries()
                assert entry.images == len(set(images.digests()))
                found = rate(log)
            ratio = found / first.setdefault(kind, found)
            print(
                f"{count:7}   {kind:4}   {seconds:7.1f}   {found:8.1f}   {ratio:6.2f}", flush=True
            )


class Sleeper:
    """A stand-in for the worker, in whose place images take a while and nothing else is done."""

    def start(self, expected: Any, packed: Any, threads: int) -> Any:
        self.seconds, self.log = packed
        return expected

    def fill(self, part: range) -> dict[str, int]:
        with open(f"{self.log}/{os.getpid()}", "a") as file:
            for _ in part:
                time.sleep(self.seconds)
                file.write(f"{time.time()}\n")
        return {"images": len(part), "computed": 0}


def linear(args: argparse.Namespace) -> None:
    print("workers   images/s   share of linear")
    for count in args.workers:
        ray.init("local", num_cpus=count, log_to_driver=False, logging_level="WARNING")
        with tempfile.TemporaryDirectory() as log:
            actor = ray.remote(Sleeper).options(num_cpus=1)
            team = Team(ray, {"CPU": 1, "GPU": 0}, actor, ({}, (args.seconds, log), 1), {})
            for _ in team.run(parts_of(args.images * count, count, 4), count):
                pass
            found = rate(log)
        ray.shutdown()
        share = found * args.seconds / count
        print(f"{count:7}   {found:8.1f}   {share:8.3f}", flush=True)


def table(folder: Path) -> dict[tuple[str, bytes], bytes]:
    """Return the rows of a cache by entry and image."""
    return {
        (entry.key, row["image"]): row.tobytes()
        for entry in ftk.FeatureCache(folder).entries()
        for path in Path(entry.folder).glob("*.npy")
        for row in np.load(path)
    }


def workers_of_ray() -> list[int]:
    """Return the processes of the workers that the nodes started by this process have started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            named = (process / "cmdline").read_text().startswith("ray::Worker")
            if named and parent(parent(int(process.name))) == os.getpid():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


class Killer:
    """Fills a cache three ways, and kills a process at a moment from the start of the filling."""

    def __init__(self, images: int, seconds: float) -> None:
        self.count, self.seconds, self.images = images, seconds, made(images, seconds)
        checks = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
        self.cluster = Cluster(True, head_node_args={"num_cpus": 0, "_system_config": checks})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="WARNING")

    def on_ray(self, folder: Path, kill: Any) -> bool:
        """Fill on Ray, and kill; return whether something was killed before the end."""
        state = {"ended": False, "killed": False}

        def later() -> None:
            kill[1]()
            state["killed"] = not state["ended"] and bool(kill[0]())

        thread = threading.Thread(target=later)
        thread.start()
        finetune_kit.ray.compute_features(
            small(), ftk.FineTuneSpec(0), self.images, folder, workers=2, preprocessing=None,
            **OPTIONS,
        )  # fmt: skip
        state["ended"] = True
        thread.join()
        if len(self.nodes) < 2:
            self.nodes.append(self.cluster.add_node(num_cpus=1))
        return state["killed"]

    def worker(self) -> bool:
        pids = workers_of_ray()
        for pid in pids[:1]:
            os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def node(self) -> bool:
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
        return True

    def process(self, folder: Path, wait: Any) -> bool:
        given = {"images": self.count, "seconds": self.seconds}
        with tempfile.TemporaryDirectory() as log:
            processes = [started(str(folder), log, i, 2, **given) for i in range(2)]
            wait()
            processes[0].kill()
            killed = processes[0].wait() == -signal.SIGKILL
            assert started(str(folder), log, 0, 2, **given).wait() == 0
            assert processes[1].wait() == 0
        return killed


def kills(args: argparse.Namespace) -> None:
    killer, moments = Killer(args.images, args.seconds), random.Random(args.seed)
    same, done = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as base:
        whole = Path(base) / "whole"
        ftk.compute_features(
            small(), ftk.FineTuneSpec(0), made(args.images, 0), whole, preprocessing=None, **OPTIONS
        )
        expected, durations = table(whole), {}
        while done.total() < args.kills:
            kind = ("process", "worker", "node")[done.total() % 3]
            folder, share = Path(base) / f"killed-{time.time()}", moments.random()
            begun = time.monotonic()
            wait = lambda kind=kind, share=share: time.sleep(share * durations.get(kind, 20))  # noqa: E731
            if kind == "process":
                killed = killer.process(folder, wait)
            else:
                killed = killer.on_ray(folder, (getattr(killer, kind), wait))
            seconds = time.monotonic() - begun
            identical = table(folder) == expected
            durations[kind] = min(seconds, durations.get(kind, seconds))
            if killed or not identical:
                done[kind] += 1
                same += identical
            state = "identical" if identical else "DIFFERENT"
            shown = state if killed else "not killed, it had ended"
            print(f"{done.total()}: {kind} at {share:.2f}: {shown}, {seconds:.1f} s", flush=True)
    print(f"{same} of {done.total()} identical ({json.dumps(done)})")
    ray.shutdown()
    killer.cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, count, images, seconds in (
        ("speed", [1, 2, 4], 512, 0.0), ("linear", [1, 64], 150, 0.2),
        ("kills", [], 96, 0.05), ("shard", [], 0, 0.0),
    ):  # fmt: skip
        each = verbs.add_parser(verb)
        each.add_argument("--images", type=int, default=images, help=f"default: {images}")
        each.add_argument("--seconds", type=float, default=seconds, help="that loading one takes")
        if verb == "speed":
            each.add_argument("folder")
        if verb in ("speed", "linear"):
            each.add_argument("--workers", type=int, nargs="+", default=count)
        if verb == "kills":
            each.add_argument("--kills", type=int, default=30)
            each.add_argument("--seed", type=int, default=0, help="of the moments")
        if verb == "shard":  # what this program starts itself
            for name, kind in (("to", str), ("log", str), ("part", int), ("parts", int),
                               ("folder", str)):  # fmt: skip
                each.add_argument(f"--{name}", type=kind)
    args = parser.parse_args()
    globals()[args.verb](args)


if __name__ == "__main__":
    main()
