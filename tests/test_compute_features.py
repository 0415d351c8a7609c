"""Law 11: a cache filled in parts, by several processes, holds the rows of one filled at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import write

import finetune_kit as ftk


@pytest.fixture(scope="module")
def cases(tiny_images):
    return tiny_images.split((18, 6, 0))[:2]


def rows(folder: Path) -> dict[str, int]:
    """Return how many images each entry holds."""
    return {entry.key: entry.images for entry in ftk.FeatureCache(folder).entries()}


def table(folder: Path) -> dict[tuple[str, bytes], bytes]:
    """Return the rows of a cache by entry and image."""
    return {
        (path.parent.name, row["image"]): row.tobytes()
        for path in folder.glob("*/*.npy")
        for row in np.load(path)
    }


@given(st.integers(1, 4), st.randoms())
@settings(max_examples=4)
def test_parts_in_any_order_hold_the_rows_of_one_run(
    build_small, tiny_images, tmp_path_factory, parts, random
):
    folder, whole = tmp_path_factory.mktemp("parts"), tmp_path_factory.mktemp("whole")
    specs = [ftk.FineTuneSpec(0), ftk.FineTuneSpec(2)]
    keras.utils.set_random_seed(0)
    backbone = build_small()
    order = random.sample(range(parts), parts)
    counts = [
        ftk.compute_features(backbone, specs, tiny_images, folder, shard=(i, parts), verbose=0)
        for i in order
    ]
    assert sum(count["images"] for count in counts) == len(tiny_images)
    assert sum(count["computed"] for count in counts) == 2 * len(tiny_images)
    ftk.compute_features(backbone, specs, tiny_images, whole, verbose=0)
    assert rows(folder) == rows(whole)
    again = ftk.compute_features(backbone, specs, tiny_images, folder, verbose=0)
    assert again == {"images": len(tiny_images), "computed": 0}


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_training_finds_the_features(build_small, cases, tmp_path, blocks):
    train, validation = cases
    backbone, head = build_small(), ftk.classification_head(3, units=(4,))
    spec = ftk.FineTuneSpec(blocks)
    ftk.compute_features(backbone, spec, train + validation, tmp_path, head=head, verbose=0)
    before = rows(tmp_path)
    kept = ftk.fine_tune(backbone, head, spec, *cases, features=tmp_path, verbose=0)
    assert rows(tmp_path) == before
    alone = ftk.fine_tune(backbone, head, spec, *cases, verbose=0)
    assert kept.history == alone.history


def test_a_trained_model_is_a_backbone(build_small, cases, tmp_path):
    spec = ftk.FineTuneSpec(1)
    tuned = ftk.fine_tune(build_small(), ftk.classification_head(3), spec, *cases, verbose=0)
    ftk.compute_features(tuned, spec, cases[0] + cases[1], tmp_path, verbose=0)
    before = rows(tmp_path)
    ftk.fine_tune(tuned, None, spec, *cases, features=tmp_path, verbose=0)
    assert rows(tmp_path) == before


def test_a_part_depends_on_content_alone(build_small, tiny_images, tmp_path):
    backbone, spec = build_small(), ftk.FineTuneSpec(1)
    shuffled = tiny_images.take(np.random.default_rng(1).permutation(len(tiny_images)))
    ftk.compute_features(backbone, spec, tiny_images, tmp_path, shard=(0, 2), verbose=0)
    again = ftk.compute_features(backbone, spec, shuffled, tmp_path, shard=(0, 2), verbose=0)
    assert again["computed"] == 0
    assert again["images"] > 0


def test_images_of_one_class_alone_are_computed(build_small, tiny_images, tmp_path):
    backbone, spec = build_small(), ftk.FineTuneSpec(1)
    dark = tiny_images.take(np.flatnonzero(tiny_images.labels == 0))
    alone = ftk.ImageSet.from_arrays(dark.load(size=(32, 32)), ["dark"] * 8)
    first = ftk.compute_features(backbone, spec, dark, tmp_path, verbose=0)
    again = ftk.compute_features(backbone, spec, alone, tmp_path, verbose=0)
    assert (first["computed"], again["computed"]) == (8, 0)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0,), "0/2", (0.0, 1)])
def test_bad_shards_are_rejected(build_small, tiny_images, tmp_path, shard, rejected):
    backbone = build_small()
    with rejected("`shard` must be"):
        ftk.compute_features(backbone, ftk.FineTuneSpec(), tiny_images, tmp_path, shard=shard)


def test_there_must_be_images(build_small, tiny_images, tmp_path, rejected):
    backbone = build_small()
    for images in (tiny_images.take(range(0)), ["a.png"]):
        with rejected("`images` must"):
            ftk.compute_features(backbone, ftk.FineTuneSpec(), images, tmp_path)


@pytest.mark.parametrize("features", [None, False, ftk.FeatureCache()])
def test_features_must_be_kept_in_a_folder(build_small, tiny_images, features, rejected):
    backbone = build_small()
    with rejected("`features` must be a folder"):
        ftk.compute_features(backbone, ftk.FineTuneSpec(), tiny_images, features)


@pytest.mark.once
@pytest.mark.slow
def test_processes_of_which_some_are_killed_hold_the_rows_of_one(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(120):
        noise = rng.integers(0, 256, (32, 32, 3), np.uint8)
        write(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", noise)
    base = [sys.executable, "-m", "finetune_kit", "features", str(tmp_path / "photos"), "--quiet",
            "--backbone", "MobileNetV2:alpha=0.35,weights=none", "--image-size", "32",
            "--batch-size", "4"]  # fmt: skip
    shared, whole = tmp_path / "shared", tmp_path / "whole"

    def start(part: int) -> subprocess.Popen[bytes]:
        command = [*base, "--to", str(shared), "--shard", f"{part}/3"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    processes = [start(part) for part in range(2)]
    deadline = time.monotonic() + 120
    while not list(shared.rglob("*.npy")) and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[0].send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    for process in (*processes, start(2), start(0)):  # the killed one is run again
        process.communicate(timeout=300)
    assert processes[1].returncode == 0
    subprocess.run([*base, "--to", str(whole)], check=True, env=os.environ)
    assert rows(shared) == rows(whole)
    assert {*rows(shared).values()} == {120}


# Starts a process for each of several parts, all at once. A process can be killed just before one
# of its operations on files. They are forked, which is safe as long as only the forks compute.
WRITERS = """
import json, os, signal, sys, traceback
from finetune_kit._features import worker
worker.UNUSED.difference_update(("sklearn", "pandas"))
worker._import_keras()  # hides the packages that it does not need, such as TensorFlow
import keras
import numpy as np
import finetune_kit as ftk
from finetune_kit._features import entry

entry._CHUNK_ROWS = 4
ftk.compute_features, ftk.FineTuneSpec, ftk.ImageSet  # imported once, not in each fork

def compute(folder, part, parts, moment):
    operations = 0

    def watch(event, args):
        nonlocal operations
        if event in ("open", "os.rename", "os.remove", "os.mkdir"):
            if str(args[0]).startswith(folder):
                if operations == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                operations += 1

    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    images = ftk.ImageSet.from_arrays(pixels, list("ab" * 12))
    inputs = x = keras.Input((8, 8, 3))
    for name in ("block1_conv", "block2_conv"):
        x = keras.layers.Conv2D(4, 3, kernel_initializer="ones", name=name)(x)
    backbone, spec = keras.Model(inputs, x), ftk.FineTuneSpec(1)
    sys.addaudithook(watch)
    ftk.compute_features(backbone, spec, images, folder, shard=(part, parts), preprocessing=None,
                         batch_size=4, verbose=0)

for line in sys.stdin:
    folder, tasks = json.loads(line)
    processes = []
    for task in tasks:
        process = os.fork()
        if not process:
            try:
                compute(folder, *task)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        processes.append(process)
    ends = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    print(json.dumps(ends), flush=True)
"""


@st.composite
def killed_and_run_again(draw) -> tuple[list, list]:
    """Draw parts that are computed at the same time, some of which are killed, and then all."""
    parts = draw(st.integers(1, 3))
    moment = st.none() | st.integers(0, 24)  # the number of an operation on a file
    task = st.tuples(st.integers(0, parts - 1), st.just(parts), moment)
    order = draw(st.permutations(range(parts)))
    return draw(st.lists(task, min_size=1, max_size=3)), [(i, parts, None) for i in order]


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_processes_killed_at_any_operation_lose_nothing(tmp_path_factory):
    pytest.importorskip("openvino", reason="needs OpenVINO, which forked processes can use")
    whole = tmp_path_factory.mktemp("whole")
    killed = 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "KERAS_BACKEND": "openvino"},
    ) as writers:  # fmt: skip

        def run(folder, tasks):
            writers.stdin.write(json.dumps([str(folder), tasks]) + "\n")
            writers.stdin.flush()
            return json.loads(writers.stdout.readline())

        assert run(whole, [(0, 1, None)]) == [0]
        expected = table(whole)
        assert len(expected) == 24

        @given(killed_and_run_again())
        @settings(max_examples=8)
        def law(tasks):
            nonlocal killed
            folder = tmp_path_factory.mktemp("parts")
            first, again = tasks
            ends = run(folder, first)
            assert all(
                end == 0 or (end == -signal.SIGKILL and task[2] is not None)
                for end, task in zip(ends, first, strict=True)
            )
            killed += sum(map(bool, ends))
            assert run(folder, again) == [0] * len(again)
            assert table(folder) == expected
            assert rows(folder) == rows(whole)

        law()
        writers.stdin.close()
    assert killed > 5
