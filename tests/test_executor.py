"""A sweep on an executor gives what it gives without one."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._train import workers


class Now(Executor):
    """Runs each task at once, in this process."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def cases(tiny_images):
    return tiny_images.split((18, 6, 0))[:2]


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.history == b.history
        assert a.plan.trainable_variables == b.plan.trainable_variables
        for x, y in zip(a.model.get_weights(), b.model.get_weights(), strict=True):
            np.testing.assert_array_equal(x, y)


SPECS = [ftk.FineTuneSpec(0, epochs=2), ftk.FineTuneSpec(2), ftk.FineTuneSpec(1)]


@pytest.mark.parametrize("features", [None, False])
def test_an_executor_does_not_change_the_results(build_small, cases, features, capfd):
    backbone, head = build_small(), ftk.classification_head(3)
    alone = ftk.sweep(backbone, head, SPECS, *cases, features=features, verbose=0)
    assert not capfd.readouterr().out
    runs = ftk.sweep(backbone, head, SPECS, *cases, features=features, executor=Now())
    same(runs, alone)
    shown = capfd.readouterr().out
    for number, spec in enumerate(SPECS, 1):
        name = f"Spec {number} of 3: trainable_blocks={spec.trainable_blocks}"
        assert shown.count(f"{name}, epoch") == spec.epochs


def test_each_epoch_is_printed_while_the_runs_train(build_small, cases, monkeypatch):
    shown = []
    monkeypatch.setattr(workers, "print", lambda text, **_: shown.append(text), raising=False)

    class Behind(Executor):
        """Runs the tasks in a thread, as another process would."""

        pool = ThreadPoolExecutor(1)

        def submit(self, *call):
            return self.pool.submit(*call)

    class Wait(keras.callbacks.Callback):
        """Wait in the second epoch until the first one is shown."""

        def on_epoch_begin(self, epoch, logs=None):
            deadline = time.monotonic() + 120
            while epoch and not any("epoch 1: " in text for text in shown):
                assert time.monotonic() < deadline, "the first epoch is not shown"
                time.sleep(0.05)

    ftk.sweep(
        build_small(), ftk.classification_head(3), SPECS[:1], *cases,
        executor=Behind(), callbacks=[Wait()],
    )  # fmt: skip
    assert "".join(shown).count("\n") == 2


def test_a_trained_model_and_its_run_folders(build_small, cases, tmp_path):
    head = ftk.classification_head(3)
    tuned = ftk.fine_tune(build_small(), head, SPECS[0], *cases, verbose=0)
    alone = ftk.sweep(tuned, None, SPECS, *cases, verbose=0)
    options = {"executor": Now(), "run_dir": tmp_path, "verbose": 0}
    same(ftk.sweep(tuned, None, SPECS, *cases, **options), alone)
    assert all((tmp_path / str(n) / "run.json").is_file() for n in (1, 2, 3))
    same(ftk.sweep(tuned, None, SPECS, *cases, **options), alone)


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same_weights_bit_for_bit(cases):
    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    head, specs = ftk.classification_head(3, units=(4,)), SPECS[:2]
    alone = ftk.sweep(backbone, head, specs, *cases, verbose=0)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        runs = ftk.sweep(backbone, head, specs, *cases, executor=executor, verbose=0)
    same(runs, alone)


def test_an_error_in_one_run_is_the_error_of_the_sweep(build_small, cases):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        ftk.sweep(
            build_small(), ftk.classification_head(3), SPECS, *cases,
            executor=Now(), callbacks=[Stop()], verbose=0,
        )  # fmt: skip


def test_executors_that_would_disturb_the_runs_are_rejected(build_small, cases, rejected):
    backbone, head = build_small(), ftk.classification_head(3)
    fork = [m for m in multiprocessing.get_all_start_methods() if m == "fork"]
    pools = [
        (ThreadPoolExecutor(1), "one random seed"),
        (4, "the method `submit`"),
        *((ProcessPoolExecutor(1, multiprocessing.get_context(m)), "forked") for m in fork),
    ]
    for executor, text in pools:
        with rejected(text):
            ftk.sweep(backbone, head, SPECS, *cases, executor=executor)
