"""Features and sweeps on real Ray clusters, of which workers and nodes are killed, and on Dask."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from image_files import write

import finetune_kit as ftk
import finetune_kit.ray

pytestmark = [pytest.mark.slow, pytest.mark.once]

SPECS = [ftk.FineTuneSpec(0, epochs=2), ftk.FineTuneSpec(2)]


def table(folder: Path) -> dict[tuple[str, bytes], bytes]:
    """Return the rows of a cache by entry and image."""
    return {
        (entry.key, row["image"]): row.tobytes()
        for entry in ftk.FeatureCache(folder).entries()
        for path in Path(entry.folder).glob("*.npy")
        for row in np.load(path)
    }


class Slow:
    """A source whose images take a while, so that a kill comes in the middle; and a broken one."""

    def __init__(self, source, seconds, broken=None):
        self.source, self.seconds, self.broken = source, seconds, broken

    def __len__(self):
        return len(self.source)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def load(self, i, size):
        if i == self.broken:
            raise ValueError(f"image {i} is broken")
        time.sleep(self.seconds)
        return self.source.load(i, size)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(96):
        noise = rng.integers(0, 256, (32, 32, 3), np.uint8)
        write(folder / "abc"[i % 3] / f"{i}.png", noise)
    return ftk.read_image_folder(folder)


@pytest.fixture(scope="module")
def reference(images, small_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    ftk.compute_features(small_backbone, SPECS, images, folder, **OPTIONS)
    return table(folder)


OPTIONS = {"preprocessing": None, "batch_size": 4, "verbose": 0}


def slowed(images, seconds, broken=None):
    source = Slow(images.source, seconds, broken)
    return ftk.ImageSet(source, images.labels, images.class_names)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of three nodes on this machine, that notices the loss of a node quickly."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'finetune-kit[ray]'")
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have it

    quickly = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    one = Cluster(True, head_node_args={"num_cpus": 0, "_system_config": quickly})
    nodes = [one.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=one.address, log_to_driver=False)
    yield ray, one, nodes
    ray.shutdown()
    one.shutdown()


def test_several_nodes_hold_the_rows_of_one_process(
    cluster, images, small_backbone, reference, tmp_path, capsys
):
    compute = finetune_kit.ray.compute_features
    counts = compute(
        small_backbone, SPECS, images, tmp_path, workers=2, **{**OPTIONS, "verbose": 1}
    )
    assert counts == {"images": 96, "computed": 2 * 96}
    assert table(tmp_path) == reference
    shown = capsys.readouterr().out
    assert "missing, of 96 images, by 2 workers:" in shown
    assert "96/96" in shown


def worker_pids() -> list[int]:
    """Return the processes of the workers on the nodes that this process has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            named = (process / "cmdline").read_text().startswith("ray::Worker")
            if named and parent(parent(int(process.name))) == os.getpid():
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def in_the_middle(folder: Path, then) -> threading.Thread:
    """Call `then` once a chunk of features was written."""

    def wait():
        deadline = time.monotonic() + 120
        while not list(folder.rglob("*.npy")) and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_killed_worker_and_then_a_killed_node_lose_nothing(
    cluster, images, small_backbone, reference, tmp_path
):
    _, one, nodes = cluster
    slow, killed = slowed(images, 0.05), []

    def kill_worker():
        pids = worker_pids()
        os.kill(pids[0], signal.SIGKILL)
        killed.append("worker")

    def kill_node():
        one.remove_node(nodes.pop(), allow_graceful=False)
        killed.append("node")

    for kill in (kill_worker, kill_node):
        folder = tmp_path / kill.__name__
        thread = in_the_middle(folder, kill)
        counts = finetune_kit.ray.compute_features(
            small_backbone, SPECS, slow, folder, workers=2, **OPTIONS
        )
        thread.join()
        assert counts["images"] == 96
        assert table(folder) == reference
    assert killed == ["worker", "node"]


def test_a_worker_fills_a_bucket_with_the_backend_of_the_cache(
    cluster, images, small_backbone, tmp_path
):
    pytest.importorskip("openvino")
    pytest.importorskip("fsspec")
    few, options = images.take(range(16)), {**OPTIONS, "specs": SPECS[1]}
    cache = ftk.FeatureCache(
        f"file://{tmp_path}/bucket", backend="openvino", local_folder=tmp_path / "copies"
    )
    compute = finetune_kit.ray.compute_features
    counts = compute(small_backbone, images=few, features=cache, workers=1, **options)
    assert counts == {"images": 16, "computed": 16}
    here = ftk.compute_features(small_backbone, images=few, features=cache, **options)
    assert here == {"images": 16, "computed": 0}


def test_workers_that_share_a_gpu_leave_memory_to_each_other(
    cluster, images, small_backbone, tmp_path
):
    _, one, _ = cluster
    node = one.add_node(num_cpus=2, num_gpus=1)  # Ray counts it; nothing computes on it
    counts = finetune_kit.ray.compute_features(
        small_backbone, SPECS[1], images.take(range(16)), tmp_path, gpus_per_worker=0.5, **OPTIONS
    )
    assert counts == {"images": 16, "computed": 16}
    with finetune_kit.ray.Executor(gpus=0.5) as executor:
        found = executor.submit(os.getenv, "TF_FORCE_GPU_ALLOW_GROWTH").result(60)
    assert found == "true"
    one.remove_node(node)


def test_an_error_in_a_worker_is_the_error_of_the_call(cluster, images, small_backbone, tmp_path):
    broken = slowed(images, 0, broken=50)
    with pytest.raises(ValueError, match="image 50 is broken"):
        finetune_kit.ray.compute_features(
            small_backbone, SPECS, broken, tmp_path, workers=1, **OPTIONS
        )
    deadline = time.monotonic() + 30
    while worker_pids() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker_pids()


def test_a_part_that_ends_each_worker_is_an_error(
    cluster, images, small_backbone, tmp_path, monkeypatch
):
    class Fatal(Slow):
        def load(self, i, size):
            if i == 50:
                os.kill(os.getpid(), signal.SIGKILL)
            return self.source.load(i, size)

    monkeypatch.setattr(finetune_kit._train.on_ray, "_MOST_LOSSES", 0)
    fatal = ftk.ImageSet(Fatal(images.source, 0), images.labels, images.class_names)
    with pytest.raises(RuntimeError, match=r"1 worker lost with the images \d+ to \d+"):
        finetune_kit.ray.compute_features(
            small_backbone, SPECS, fatal, tmp_path, workers=1, **OPTIONS
        )


def test_a_sweep_gives_the_same_weights_bit_for_bit(cluster, tiny_images, small_backbone, capsys):
    train, validation, _ = tiny_images.split((18, 6, 0))
    arguments = (small_backbone, ftk.classification_head(3), SPECS, train, validation)
    alone = ftk.sweep(*arguments, preprocessing=None, verbose=0)
    capsys.readouterr()
    with finetune_kit.ray.Executor() as executor:
        runs = ftk.sweep(*arguments, preprocessing=None, executor=executor)
        failed = executor.submit(int, "x")
        assert "invalid literal" in str(failed.exception(60))
        waiting = executor.submit(time.sleep, 600)
        assert waiting.cancel()
    with pytest.raises(RuntimeError, match="before `shutdown`"):
        executor.submit(int)
    shown = capsys.readouterr().out
    assert shown.count("trainable_blocks=0, epoch") == 2
    for one, other in zip(runs, alone, strict=True):
        assert one.history == other.history
        for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


class KillOnce(keras.callbacks.Callback):
    """Kills its process in the second epoch, but only once."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_training_whose_worker_is_killed_resumes(cluster, tiny_images, small_backbone, tmp_path):
    train, validation, _ = tiny_images.split((18, 6, 0))
    arguments = (small_backbone, ftk.classification_head(3), SPECS[:1], train, validation)
    options = {"preprocessing": None, "verbose": 0}
    [alone] = ftk.sweep(*arguments, **options)
    mark = tmp_path / "killed"
    with finetune_kit.ray.Executor() as executor:
        [run] = ftk.sweep(
            *arguments, executor=executor, run_dir=tmp_path / "run", callbacks=[KillOnce(mark)],
            **options,
        )  # fmt: skip
    assert mark.exists()
    assert run.history == alone.history
    for one, other in zip(run.model.get_weights(), alone.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_cluster_without_room_or_packages(cluster, images, small_backbone, tmp_path, monkeypatch):
    ray, one, _ = cluster
    compute = finetune_kit.ray.compute_features
    with pytest.warns(UserWarning, match="No node of the cluster has room .* 1 CPU, 1 GPU"):
        finetune_kit._train.on_ray.room_for(ray, {"CPU": 1, "GPU": 1})
    with pytest.raises(ValueError, match=r"must fit on this machine.*need 1 CPU, 1 GPU"):
        finetune_kit._train.on_ray.room_for(ray, {"CPU": 1, "GPU": 1}, grows=False)
    with monkeypatch.context() as patch:
        patch.setattr(ftk, "__version__", "0.0")  # here, and not in the workers
        with pytest.raises(ValueError, match=r"must have the versions of this process.*'0\.0'"):
            compute(small_backbone, SPECS, images, tmp_path / "features", **OPTIONS)
    assert not table(tmp_path / "features")
    ray.shutdown()
    block = "import sys\nsys.modules['finetune_kit'] = None\n"
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(block)
    environment = {"env_vars": {"PYTHONPATH": str(tmp_path / "blocked")}}
    ray.init(address=one.address, log_to_driver=False, runtime_env=environment)
    with pytest.raises(ImportError, match="a worker without 'finetune_kit'"):
        compute(small_backbone, SPECS, images, tmp_path / "features", **OPTIONS)


def test_it_starts_and_ends_ray_where_there_is_no_cluster(images, small_backbone, tmp_path):
    ray = pytest.importorskip("ray")
    ray.shutdown()
    few = images.take(range(0, 96, 6))

    class Own(keras.layers.Layer):  # a class that no module holds is sent as code
        def call(self, x):
            return x + 1.0

    backbone = keras.Model(small_backbone.input, Own()(small_backbone.output))
    counts = [
        finetune_kit.ray.compute_features(
            backbone, SPECS[0], few, tmp_path, workers=1, address="local", **OPTIONS
        ),
        ftk.compute_features(backbone, SPECS[0], few, tmp_path, **OPTIONS),
    ]
    assert [count["computed"] for count in counts] == [16, 0]
    assert not ray.is_initialized()


def test_without_ray_the_error_says_how_to_install_it(
    images, small_backbone, tmp_path, monkeypatch, rejected
):
    monkeypatch.setitem(sys.modules, "ray", None)
    calls = [
        finetune_kit.ray.Executor,
        lambda: finetune_kit.ray.compute_features(small_backbone, SPECS, images, tmp_path),
    ]
    for call in calls:
        with rejected(r"pip install 'finetune-kit\[ray\]'", ImportError):
            call()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"workers": 0}, "`workers` must be"),
        ({"cpus_per_worker": 0.5}, "`cpus_per_worker` must be"),
        ({"gpus_per_worker": -1}, "`gpus_per_worker` must be"),
        ({"features": None}, "`features` must be a folder"),
    ],
)
def test_bad_arguments_are_rejected(images, small_backbone, tmp_path, options, match, rejected):
    pytest.importorskip("ray")
    given = {"features": tmp_path, **OPTIONS, **options}
    with rejected(match):
        finetune_kit.ray.compute_features(small_backbone, SPECS, images, **given)


def test_a_sweep_on_dask_gives_the_same_weights(tiny_images, small_backbone):
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install distributed")
    train, validation, _ = tiny_images.split((18, 6, 0))
    arguments = (small_backbone, ftk.classification_head(3), SPECS, train, validation)
    options = {"preprocessing": None, "verbose": 0}
    alone = ftk.sweep(*arguments, **options)
    with (
        distributed.LocalCluster(1, threads_per_worker=2, dashboard_address=None) as local,
        distributed.Client(local) as client,
    ):
        runs = ftk.sweep(*arguments, executor=client.get_executor(), **options)
    for one, other in zip(runs, alone, strict=True):
        for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
