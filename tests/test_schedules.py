"""Phases: what goes on training keeps its optimizer's state, what begins starts fresh."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import finetune_kit as ftk

SPLIT = ftk.Split(np.arange(12), np.arange(12, 18), np.arange(18, 24))


def tune(backbone, images, spec, **options):
    head = ftk.classification_head(3, units=(4,))
    options = {"verbose": 0, "batch_size": 4, "preprocessing": None, **options}
    return ftk.fine_tune(backbone, head, spec, images, SPLIT, **options)


class Never(keras.callbacks.Callback):
    """What is refused is refused before anything trains."""

    def on_train_begin(self, logs=None):
        raise AssertionError


NEVER = Never()


class Notes(keras.callbacks.Callback):
    """Notes the optimizer's variables as each phase begins and ends."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended, self.epochs, self.rates = [], [], [], []

    def parts(self):
        optimizer = self.model.optimizer
        return getattr(optimizer, "optimizers", [optimizer])

    def state(self):
        return [
            {v.name: np.array(keras.ops.convert_to_numpy(v)) for v in part.variables}
            for part in self.parts()
        ]

    def on_train_begin(self, logs=None):
        self.begun.append(self.state())
        self.rates.append([float(part.learning_rate) for part in self.parts()])

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_end(self, logs=None):
        self.ended.append(self.state())


def test_phases_have_one_history(small_backbone, tiny_images):
    notes = Notes()
    specs = [ftk.FineTuneSpec(n, epochs=n + 1) for n in (0, 1, 2)]
    run = tune(small_backbone, tiny_images, specs, callbacks=[notes])
    assert run.history["epoch"] == [1, 2, 3, 4, 5, 6] == [e + 1 for e in notes.epochs]
    assert run.history["phase"] == [1, 2, 2, 3, 3, 3]
    assert all(len(values) == 6 for values in run.history.values())
    assert [sum(plan.trainable) for plan in run.plans] == [0, 1, 2]
    assert run.plan is run.plans[-1]
    report = ftk.evaluate(run.model, tiny_images, SPLIT.test)
    assert report.history["loss"] == run.history["loss"]


def test_the_state_of_what_goes_on_is_carried_and_the_rest_starts_fresh(
    small_backbone, tiny_images
):
    notes = Notes()
    specs = [ftk.FineTuneSpec(1, epochs=2), ftk.FineTuneSpec(2, epochs=1, learning_rate=1e-2)]
    tune(small_backbone, tiny_images, specs, callbacks=[notes])
    (before,), after = notes.ended[0], notes.begun[1]
    assert len(after) == 2
    fresh, carried = sorted(after, key=lambda part: int(part["iteration"]))
    assert int(carried["iteration"]) == int(before["iteration"]) == 2 * 3
    assert int(fresh["iteration"]) == 0
    moments = [name for name in before if name not in ("iteration", "learning_rate")]
    assert moments
    assert {*moments} == {*carried} - {"iteration", "learning_rate"}
    for name in moments:
        assert np.array_equal(before[name], carried[name])
    assert any(np.any(before[name]) for name in moments)
    new = {name: value for name, value in fresh.items() if name.startswith("block3")}
    assert new
    assert not any(np.any(value) for value in new.values())
    assert notes.rates[1] == pytest.approx([1e-2] * 2)


def test_two_phases_of_one_spec_are_one_phase(small_backbone, tiny_images):
    """Carried as a whole, nothing is lost: Adam's moments, its step count, the order of batches."""
    halves = [ftk.FineTuneSpec(1, epochs=2)] * 2
    split = tune(small_backbone, tiny_images, halves)
    whole = tune(small_backbone, tiny_images, ftk.FineTuneSpec(1, epochs=4))
    assert split.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-5)
    assert split.history["val_loss"] == pytest.approx(whole.history["val_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "nadam", "lion", keras.optimizers.SGD(0.01, momentum=0.9, clipnorm=1.0),
     keras.optimizers.AdamW(1e-3, weight_decay=0.1, gradient_accumulation_steps=2),
     {"class_name": "RMSprop", "config": {"learning_rate": 0.01}},
     keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.5))],
    ids=["sgd", "nadam", "lion", "momentum", "accumulation", "config", "schedule"])  # fmt: skip
def test_any_optimizer_goes_through_phases(small_backbone, tiny_images, optimizer):
    specs = [ftk.FineTuneSpec(n, epochs=1) for n in (0, 1)]
    run = tune(small_backbone, tiny_images, specs, optimizer=optimizer)
    assert np.all(np.isfinite(run.history["loss"]))


def test_cached_phases_are_uncached_phases(small_backbone, tiny_images):
    specs = [ftk.FineTuneSpec(n, epochs=1) for n in (0, 2, 1, "all")]
    runs = [tune(small_backbone, tiny_images, specs, cache_dir=kept) for kept in (None, False)]
    for name, values in runs[0].history.items():
        assert values == pytest.approx(runs[1].history[name], rel=1e-4), name


def test_the_rate_falls_from_block_to_block(small_backbone, tiny_images):
    spec = ftk.FineTuneSpec(2, layer_decay=0.5, learning_rate=0.1, batch_norm="train")
    plan = spec.plan(small_backbone)
    factors = dict(zip(plan.trainable_variables, plan.rate_factors, strict=True))
    assert factors["block4_conv/kernel"] == factors["block4_conv_bn/gamma"] == 0.5
    assert factors["block3_conv/kernel"] == 0.25
    assert "x0.5 in the last block that trains, x0.25 in the first" in str(plan)
    notes = Notes()
    tune(small_backbone, tiny_images, spec, callbacks=[notes], optimizer="sgd")
    assert sorted(notes.rates[0]) == pytest.approx([0.025, 0.05, 0.1])


def test_a_schedule_of_rates_turns_all_of_them(small_backbone, tiny_images):
    notes = Notes()
    turn = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    spec = ftk.FineTuneSpec(1, layer_decay=0.5, learning_rate=0.1, epochs=2)
    run = tune(small_backbone, tiny_images, spec, callbacks=[turn, notes], optimizer="sgd")
    ended = sorted(float(part["learning_rate"]) for part in notes.ended[0])
    assert ended == pytest.approx([0.1 * 0.5 / 4, 0.1 / 4])
    assert len(run.history["loss"]) == 2


def test_weight_decay_leaves_out_biases_and_norms(small_backbone, tiny_images):
    """With no gradient to speak of, decay alone moves the kernels, and nothing else moves."""
    optimizer = keras.optimizers.SGD(1e-9, weight_decay=1e6)
    run = tune(small_backbone, tiny_images, ftk.FineTuneSpec(1, batch_norm="train"),
               optimizer=optimizer)  # fmt: skip
    before = {v.path: keras.ops.convert_to_numpy(v) for v in small_backbone.weights}
    after = {v.path: keras.ops.convert_to_numpy(v) for v in run.model.weights}
    moved = {
        path
        for path in run.plan.trainable_variables
        if not np.allclose(before[path], after[path], atol=1e-6)
    }
    assert moved == {"block4_conv/kernel"}


def test_schedules_are_lists_of_specs():
    probe, tuned = ftk.linear_probe_then_fine_tune(4, probe_epochs=2, epochs=3, layer_decay=0.9)
    assert (probe.trainable_blocks, probe.epochs, probe.learning_rate) == (0, 2, 1e-3)
    assert (tuned.trainable_blocks, tuned.epochs, tuned.learning_rate) == (4, 3, 1e-4)
    assert tuned.layer_decay == 0.9
    steps = ftk.gradual_unfreezing(2, epochs_per_block=3, epochs=5, level="stage")
    assert [(s.trainable_blocks, s.epochs, s.level) for s in steps] == [
        (0, 3, "stage"), (1, 3, "stage"), (2, 5, "stage")]  # fmt: skip
    with pytest.raises(ValueError, match="`trainable_blocks`"):
        ftk.gradual_unfreezing("all", epochs=3)


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ([], {}, "`spec` must be of type FineTuneSpec"),
        ([1, 2], {}, "`spec` must be of type FineTuneSpec"),
        (
            ftk.FineTuneSpec(1, layer_decay=0.5),
            {"optimizer": keras.optimizers.SGD(0.1, global_clipnorm=1.0)},
            "global_clipnorm",
        ),
        (
            [ftk.FineTuneSpec(0), ftk.FineTuneSpec(1)],
            {"optimizer": keras.optimizers.SGD(0.1, global_clipnorm=1.0), "callbacks": [NEVER]},
            "global_clipnorm",
        ),
        (
            ftk.FineTuneSpec(1),
            {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())},
            "must be the one inside",
        ),
        (ftk.FineTuneSpec(1), {"callbacks": keras.callbacks.EarlyStopping()}, "must be a list"),
        (
            ftk.FineTuneSpec(1),
            {"callbacks": [keras.callbacks.BackupAndRestore("unused")]},
            "pass run_dir= instead",
        ),
        (
            [ftk.FineTuneSpec(0), ftk.FineTuneSpec(1)],
            {"callbacks": [keras.callbacks.SwapEMAWeights()]},
            "use_ema=True alone",
        ),
        (
            ftk.FineTuneSpec(1, layer_decay=0.5),
            {"optimizer": keras.optimizers.SGD(
                keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5))},
            "`layer_decay` below 1 needs",
        ),
        (
            ftk.FineTuneSpec(1),
            {"optimizer": keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(keras.optimizers.SGD()))},
            "single Keras optimizer",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(small_backbone, tiny_images, spec, options, says):
    with pytest.raises(ValueError, match=says):
        tune(small_backbone, tiny_images, spec, **options)


def test_layer_decay_is_checked():
    for bad in (0, 1.5, "x", True):
        with pytest.raises(ValueError, match="`layer_decay`"):
            ftk.FineTuneSpec(1, layer_decay=bad)


def test_a_loss_that_is_no_number_stops_the_run(small_backbone, tiny_images):
    class Poison(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            kernel = self.model.get_layer("head").layers[-1].kernel
            kernel.assign(np.full(kernel.shape, np.nan, "float32"))

    with pytest.raises(FloatingPointError, match=r"nan in epoch 1, at the learning rate 0\.001"):
        tune(small_backbone, tiny_images, ftk.FineTuneSpec(0), callbacks=[Poison()])


@pytest.mark.parametrize("kept", [None, False])
def test_a_callback_that_moves_what_is_frozen_is_an_error(small_backbone, tiny_images, kept):
    class Meddler(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.get_layer("block1_conv").kernel
            kernel.assign(kernel + 1)

    with pytest.raises(RuntimeError, match=r"block1_conv/kernel.*list of specs"):
        tune(small_backbone, tiny_images, ftk.FineTuneSpec(1), callbacks=[Meddler()],
             cache_dir=kept)  # fmt: skip


class Steps(keras.callbacks.Callback):
    """How far the last block's kernel moved in each phase."""

    def __init__(self):
        super().__init__()
        self.moved = []

    def kernel(self):
        return np.array(keras.ops.convert_to_numpy(self.model.get_layer("block4_conv").kernel))

    def on_train_begin(self, logs=None):
        self.begun = self.kernel()

    def on_train_end(self, logs=None):
        self.moved.append(bool(np.any(self.kernel() != self.begun)))


@pytest.mark.parametrize(
    "blocks",
    [(0,), (1, 0), (0, 1), (1, 0, 1)],
    ids=["R1 frozen from the start", "R2 trained then frozen", "R3 frozen then trained", "all"],
)
def test_freezing_and_unfreezing_between_fits(small_backbone, tiny_images, blocks):
    """PEERS' R1 to R3: in Keras 3.15 silently ignored, an error or half done, by backend."""
    steps = Steps()
    tune(small_backbone, tiny_images, [ftk.FineTuneSpec(n) for n in blocks], callbacks=[steps])
    assert steps.moved == [n > 0 for n in blocks]


def test_one_optimizer_serves_phases_and_runs(small_backbone, tiny_images):
    """R4: in Keras the same instance cannot be compiled with once more variables train."""
    mine, steps = keras.optimizers.Adam(1e-2), Steps()
    for _ in range(2):
        tune(small_backbone, tiny_images, [ftk.FineTuneSpec(n) for n in (0, 1)], optimizer=mine,
             callbacks=[steps])  # fmt: skip
    assert steps.moved == [False, True] * 2
    assert not mine.built


@pytest.mark.parametrize(
    ("blocks", "value", "hook"),
    [(1, False, "on_epoch_begin"), (0, True, "on_epoch_end"), (1, False, "on_train_end")],
)
def test_a_change_that_keras_would_pass_over_is_told(
    small_backbone, tiny_images, blocks, value, hook
):
    """R5: `trainable` set inside a phase has no effect, half of one or stops JAX; no warning."""

    def change(*_, **__):
        quiet.model.get_layer("block4_conv").trainable = value

    quiet = keras.callbacks.LambdaCallback(**{hook: change})
    with pytest.raises(RuntimeError, match=r"changed `trainable` of 2.*block4_conv/kernel"):
        tune(small_backbone, tiny_images, ftk.FineTuneSpec(blocks), callbacks=[quiet])


def test_early_stopping_ends_a_phase_and_restores_its_best(small_backbone, tiny_images):
    """Of a metric that rises, too: Keras finds its direction in the model it is shown."""
    rising = keras.callbacks.EarlyStopping("val_accuracy", patience=9)
    best = keras.callbacks.EarlyStopping(patience=2, min_delta=10, restore_best_weights=True)
    steps = Weights("block4_conv/kernel")
    specs = [ftk.FineTuneSpec(1, epochs=4), ftk.FineTuneSpec(0, epochs=4)]
    run = tune(small_backbone, tiny_images, specs, callbacks=[rising, best, steps])
    assert run.history["phase"] == [1, 1, 1, 2, 2, 2]
    kernel = next(v for v in run.model.weights if v.path == "block4_conv/kernel")
    after_first_epoch = steps.steps["block4_conv/kernel"][2]  # three steps an epoch
    assert np.array_equal(keras.ops.convert_to_numpy(kernel), after_first_epoch)


def test_rates_are_logged_by_the_same_names_in_each_process(small_backbone, tiny_images):
    """Keras numbers optimizers by how many there were before; a history must not."""
    turn = keras.callbacks.ReduceLROnPlateau(patience=1)
    specs = [ftk.FineTuneSpec(0), ftk.FineTuneSpec(1, layer_decay=0.5)]
    history = tune(small_backbone, tiny_images, specs, callbacks=[turn]).history
    rates = {name for name in history if name.startswith("learning_rate")}
    assert rates == {"learning_rate", *(f"learning_rate_adam_{x}" for x in
                                        ("phase1_x1", "phase2_x0.5"))}  # fmt: skip


class Weights(keras.callbacks.Callback):
    """Notes variables after each step."""

    def __init__(self, *paths):
        super().__init__()
        self.paths, self.steps = paths, {path: [] for path in paths}

    def on_train_batch_end(self, batch, logs=None):
        for variable in self.model.weights:
            if variable.path in self.paths:
                value = keras.ops.convert_to_numpy(variable)
                self.steps[variable.path].append(np.array(value))


def test_averaged_weights_go_through_phases(small_backbone, tiny_images):
    """EMA as in Keras: kept for each variable from its first step, put in its place at the end."""
    old, new = "block4_conv/kernel", "block3_conv/kernel"
    notes = Weights(old, new)
    optimizer = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.8)
    specs = [ftk.FineTuneSpec(1), ftk.FineTuneSpec(2, epochs=2)]
    run = tune(small_backbone, tiny_images, specs, optimizer=optimizer, callbacks=[notes])
    made = {v.path: keras.ops.convert_to_numpy(v) for v in run.model.weights}
    for path, begun in ((old, 0), (new, 3)):  # three steps an epoch; the second phase adds block3
        first, *others = notes.steps[path][begun:]
        average = first
        for value in others:
            average = 0.8 * average + 0.2 * value
        np.testing.assert_allclose(made[path], average, rtol=1e-4, atol=1e-6)
        assert np.abs(made[path] - notes.steps[path][-1]).max() > 1e-5


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_or_says_why_not(tiny_images, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        backbone = keras.applications.MobileNetV2(
            alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3)
        )
        options = {"preprocessing": "auto"}
        run = tune(backbone, tiny_images, ftk.FineTuneSpec(1, epochs=2), **options)
        assert np.all(np.isfinite(run.history["loss"]))
        assert {v.dtype for v in run.model.trainable_weights} == {"float32"}
        specs = ftk.linear_probe_then_fine_tune(1, probe_epochs=1, epochs=1)
        if policy == "mixed_bfloat16":
            assert len(tune(backbone, tiny_images, specs, **options).history["loss"]) == 2
        else:
            with pytest.raises(ValueError, match="mixed_bfloat16"):
                tune(backbone, tiny_images, specs, **options)
    finally:
        keras.config.set_dtype_policy(before)
