"""Phases: variables that continue to train keep their optimizer's state, new ones start fresh."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest

import finetune_kit as ftk
from finetune_kit._train.optimizer import Optimizers


class Notes(keras.callbacks.Callback):
    """Keeps the optimizers' variables as each phase begins and ends."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended, self.epochs, self.rates = [], [], [], []

    def parts(self):
        optimizer = self.model.optimizer
        return getattr(optimizer, "optimizers", [optimizer])

    def state(self):
        return [{v.name: np.array(keras.ops.convert_to_numpy(v)) for v in part.variables
                 if v.name != "learning_rate"} for part in self.parts()]  # fmt: skip

    def on_train_begin(self, logs=None):
        self.begun.append(self.state())
        self.rates.append([float(part.learning_rate) for part in self.parts()])

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_end(self, logs=None):
        self.ended.append(self.state())


def test_phases_have_one_history(tune):
    notes = Notes()
    specs = [ftk.FineTuneSpec(n, epochs=n + 1) for n in (0, 1, 2)]
    run = tune(specs, callbacks=[notes])
    assert run.history["epoch"] == [1, 2, 3, 4, 5, 6] == [e + 1 for e in notes.epochs]
    assert run.history["phase"] == [1, 2, 2, 3, 3, 3]
    assert all(len(values) == 6 for values in run.history.values())
    assert [sum(plan.trainable) for plan in run.plans] == [0, 1, 2]
    assert run.plan is run.plans[-1]
    assert run.settings["kept_epoch"] == 6


def test_the_state_of_what_continues_is_carried_over_and_the_rest_starts_fresh(tune):
    notes = Notes()
    specs = [ftk.FineTuneSpec(1, epochs=2), ftk.FineTuneSpec(2, epochs=1, learning_rate=1e-2)]
    tune(specs, callbacks=[notes])
    (before,), after = notes.ended[0], notes.begun[1]
    assert len(after) == 2
    fresh, carried = sorted(after, key=lambda part: int(part["iteration"]))
    assert int(before["iteration"]) == 2 * 2
    assert carried.keys() == before.keys()
    for name, value in before.items():
        assert np.array_equal(value, carried[name]), name
    moments = [name for name in before if "momentum" in name]
    assert len(moments) == 6  # kernel and bias of block4 and of two dense layers
    assert sum(bool(np.any(before[name])) for name in moments) >= 5
    assert {re.sub("_(bias|kernel).*", "", name) for name in fresh} == {"iteration", "block3_conv"}
    assert not any(np.any(value) for value in fresh.values())
    assert notes.rates[1] == pytest.approx([1e-2] * 2)


NOT_OPTIMIZERS = {"Optimizer", "OptimizerMap", "MultiOptimizer", "LossScaleOptimizer"}
# Each Keras optimizer, so a new one is tested as soon as Keras has it; and options that add state.
OPTIMIZERS = {
    name: kind(learning_rate=1.0 if name == "Adadelta" else 0.01)
    for name, kind in vars(keras.optimizers).items()
    if isinstance(kind, type) and name not in NOT_OPTIMIZERS
} | {
    "momentum": keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, clipnorm=1.0),
    "centered": keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "amsgrad": keras.optimizers.Adam(0.01, amsgrad=True),
    "average": keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8),
    "accumulation": keras.optimizers.AdamW(0.01, weight_decay=0.1, gradient_accumulation_steps=2),
    "schedule": keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 3, 0.5)),
}
RNG = np.random.default_rng(0)
# A dense kernel, a bias, a convolution.
STARTS = [RNG.normal(size=shape).astype("float32") for shape in [(4, 3), (3,), (2, 2, 3, 4)]]
GRADIENTS = [[RNG.normal(size=x.shape).astype("float32") for x in STARTS] for _ in range(7)]


def variables() -> list[keras.Variable]:
    return [keras.Variable(x, name=f"variable{i}") for i, x in enumerate(STARTS)]


def step(optimizer, variables, gradients) -> None:
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], variables)


def state(optimizer) -> list[list]:
    """Return the values of an optimizer's variables, without its learning rate."""
    return [
        keras.ops.convert_to_numpy(v).tolist()
        for v in optimizer.variables
        if v.name != "learning_rate"
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_state_of_each_optimizer_is_carried_over(optimizer):
    """As if there were one phase: variables 0 and 1 train in it, then 0 to 2, then 1 and 2."""
    phases, trained = Optimizers(optimizer), variables()
    first = phases.next(1, trained[:2], 0.01, {})
    for gradients in GRADIENTS[:3]:
        step(first, trained[:2], gradients[:2])
    before = state(first)
    assert len(before) > 1 or isinstance(optimizer, keras.optimizers.SGD)
    second = phases.next(2, trained, 0.01, {})
    carried, fresh = sorted(second.optimizers, key=lambda part: -len(part.variables))
    assert state(carried) == before
    reference = type(optimizer).from_config(optimizer.get_config())
    reference.build(variables()[2:])
    assert state(fresh) == state(reference)
    for gradients in GRADIENTS[3:5]:
        step(second, trained, gradients)
    third = phases.next(3, trained[1:], 0.01, {})
    for gradients in GRADIENTS[5:]:
        step(third, trained[1:], gradients[1:])
    # The same without phases: each variable has an optimizer of its own.
    for i, (begin, end) in enumerate([(0, 5), (0, 7), (3, 7)]):
        alone = variables()[i]
        single = Optimizers(optimizer).next(1, [alone], 0.01, {})
        for gradients in GRADIENTS[begin:end]:
            step(single, [alone], [gradients[i]])
        np.testing.assert_allclose(trained[i], alone, rtol=1e-6, atol=1e-7)
        assert np.abs(keras.ops.convert_to_numpy(alone) - STARTS[i]).max() > 1e-4


def test_state_is_carried_over_to_other_learning_rates():
    """Each variable then has an optimizer of its own."""
    phases, trained = Optimizers(OPTIMIZERS["momentum"]), variables()
    first = phases.next(1, trained, 0.01, {})
    for gradients in GRADIENTS:
        step(first, trained, gradients)
    several = phases.next(2, trained, 0.01, {v.path: 0.5**i for i, v in enumerate(trained)})
    iterations, *moments = state(first)
    assert iterations == len(GRADIENTS)
    parts = sorted(several.optimizers, key=lambda part: -float(part.learning_rate))
    assert [float(part.learning_rate) for part in parts] == pytest.approx([0.01, 0.005, 0.0025])
    for i, part in enumerate(parts):
        assert state(part) == [iterations, moments[i]]


@pytest.mark.parametrize("optimizer", [None, "rmsprop", {"class_name": "nadam", "config": {}}],
                         ids=["adam", "name", "config"])  # fmt: skip
def test_two_phases_of_one_spec_are_one_phase(tune, optimizer):
    """All state is carried over: moments, step count, order of the batches, dropout."""
    split = tune([ftk.FineTuneSpec(0, epochs=2)] * 2, optimizer=optimizer)
    whole = tune(ftk.FineTuneSpec(0, epochs=4), optimizer=optimizer)
    for name in ("loss", "val_loss"):
        assert split.history[name] == pytest.approx(whole.history[name], rel=1e-5)


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_cached_phases_are_uncached_phases(tune, small_backbone, dropout):
    """Without dropout the phases share one model; the last cut is the first one, behind weights
    that have changed."""

    def copied(layer):
        rate = {"rate": dropout} if isinstance(layer, keras.layers.Dropout) else {}
        return type(layer).from_config({**layer.get_config(), **rate})

    backbone = keras.models.clone_model(small_backbone, clone_function=copied)
    specs = [ftk.FineTuneSpec(n, learning_rate=0.01) for n in (1, 2, 1)]
    runs = [tune(specs, backbone=backbone, features=features) for features in (None, False)]
    for name, values in runs[0].history.items():
        assert values == pytest.approx(runs[1].history[name], rel=1e-4), name


def test_the_rate_falls_from_block_to_block_and_callbacks_change_all_rates(tune, small_backbone):
    spec = ftk.FineTuneSpec(2, layer_decay=0.5, learning_rate=0.1, batch_norm="train", epochs=2)
    plan = spec.plan(small_backbone)
    factors = dict(zip(plan.trainable_variables, plan.rate_factors, strict=True))
    assert factors["block4_conv/kernel"] == factors["block4_conv_bn/gamma"] == 0.5
    assert factors["block3_conv/kernel"] == 0.25
    assert "Learning rate: x0.5 in the last trainable block, x0.25 in the first." in str(plan)
    notes, ended = Notes(), []
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    look = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: ended.extend(float(p.learning_rate) for p in notes.parts())
    )
    run = tune(spec, callbacks=[notes, halve, look], optimizer="sgd")
    assert sorted(notes.rates[0]) == pytest.approx([0.025, 0.05, 0.1])
    assert sorted(ended) == pytest.approx([0.025 / 4, 0.05 / 4, 0.1 / 4])
    assert len(run.history["loss"]) == 2


def test_weight_decay_leaves_out_biases_and_norms(tune, small_backbone):
    """With hardly any gradient, decay alone moves the kernels, and nothing else moves."""
    optimizer = keras.optimizers.SGD(1e-9, weight_decay=1e6)
    run = tune(ftk.FineTuneSpec(1, batch_norm="train"), optimizer=optimizer)
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


CLIPPED = keras.optimizers.SGD(0.1, global_clipnorm=1.0)
SCHEDULE = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5))
SCALED = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
SEVERAL = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD()))
DECAY = ftk.FineTuneSpec(1, layer_decay=0.5)
TWO = [ftk.FineTuneSpec(0), ftk.FineTuneSpec(1)]


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ([], {}, "`spec` must be of type FineTuneSpec"),
        ([1, 2], {}, "`spec` must be of type FineTuneSpec"),
        (DECAY, {"optimizer": CLIPPED}, "global_clipnorm"),
        (TWO, {"optimizer": CLIPPED}, "global_clipnorm"),
        (TWO, {"optimizer": SCALED}, "`optimizer` must be the inner one"),
        (TWO, {"optimizer": SEVERAL}, "`optimizer` must be a single Keras optimizer"),
        (DECAY, {"optimizer": SCHEDULE}, "`layer_decay` below 1 needs an optimizer whose"),
        (TWO, {"callbacks": [keras.callbacks.BackupAndRestore("x")]}, "pass run_dir= instead"),
        (TWO, {"callbacks": [keras.callbacks.SwapEMAWeights()]}, "use_ema=True alone"),
    ],
)
def test_what_does_not_fit_is_rejected(tune, rejected, spec, options, says):
    with rejected(says):
        tune(spec, **options)


@pytest.mark.parametrize("decay", [0, 1.5, "x", True])
def test_layer_decay_is_checked(decay):
    with pytest.raises(ValueError, match="`layer_decay`"):
        ftk.FineTuneSpec(1, layer_decay=decay)


def test_a_loss_that_is_not_finite_stops_the_run(tune):
    class Poison(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            kernel = self.model.get_layer("head").layers[-1].kernel
            kernel.assign(np.full(kernel.shape, np.nan, "float32"))

    with pytest.raises(FloatingPointError, match=r"nan in epoch 1, at the learning rate 0\.001"):
        tune(ftk.FineTuneSpec(0), callbacks=[Poison()])


@pytest.mark.parametrize("features", [None, False])
def test_a_callback_that_moves_what_is_frozen_is_an_error(tune, features):
    class Meddler(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.get_layer("block1_conv").kernel
            kernel.assign(kernel + 1)

    with pytest.raises(RuntimeError, match=r"block1_conv/kernel.*list of specs"):
        tune(ftk.FineTuneSpec(1), callbacks=[Meddler()], features=features)


class Moved(keras.callbacks.Callback):
    """Notes whether the last block's kernel moved in each phase."""

    def __init__(self):
        super().__init__()
        self.phases = []

    def kernel(self):
        return np.array(keras.ops.convert_to_numpy(self.model.get_layer("block4_conv").kernel))

    def on_train_begin(self, logs=None):
        self.begun = self.kernel()

    def on_train_end(self, logs=None):
        self.phases.append(bool(np.any(self.kernel() != self.begun)))


def test_blocks_are_frozen_and_unfrozen_between_phases_with_one_optimizer(tune):
    """In plain Keras 3.15 that is ignored, an error, or done in part, depending on the backend."""
    mine = keras.optimizers.Adam(1e-2)
    for blocks in [(1, 0), (0, 1, 0, 1)]:
        moved = Moved()
        tune([ftk.FineTuneSpec(n) for n in blocks], optimizer=mine, callbacks=[moved])
        assert moved.phases == [n > 0 for n in blocks]
    assert not mine.built


@pytest.mark.parametrize(
    ("blocks", "value", "hook"),
    [(1, False, "on_epoch_begin"), (0, True, "on_epoch_end"), (1, False, "on_train_end")],
)
def test_a_change_that_keras_would_ignore_is_an_error(tune, blocks, value, hook):
    """`trainable` set within a phase has no effect, half of one, or stops JAX; no warning."""

    def change(*_, **__):
        callback.model.get_layer("block4_conv").trainable = value

    callback = keras.callbacks.LambdaCallback(**{hook: change})
    with pytest.raises(RuntimeError, match=r"changed `trainable` of 2.*block4_conv/kernel"):
        tune(ftk.FineTuneSpec(blocks), callbacks=[callback])


class Steps(keras.callbacks.Callback):
    """Keeps the values of variables after each step."""

    def __init__(self, *paths):
        super().__init__()
        self.steps = {path: [] for path in paths}

    def on_train_batch_end(self, batch, logs=None):
        for variable in self.model.weights:
            if variable.path in self.steps:
                value = np.array(keras.ops.convert_to_numpy(variable))
                self.steps[variable.path].append(value)


def test_early_stopping_ends_a_phase_and_restores_its_best_weights(tune):
    """Also for a metric that should rise: Keras finds its direction in the model it is shown."""
    path = "block4_conv/kernel"
    rising = keras.callbacks.EarlyStopping("val_accuracy", patience=9)
    best = keras.callbacks.EarlyStopping(patience=2, min_delta=10, restore_best_weights=True)
    steps = Steps(path)
    specs = [ftk.FineTuneSpec(1, epochs=4), ftk.FineTuneSpec(0, epochs=4)]
    run = tune(specs, callbacks=[rising, best, steps])
    assert run.history["phase"] == [1, 1, 1, 2, 2, 2]
    kernel = next(v for v in run.model.weights if v.path == path)
    after_first_epoch = steps.steps[path][1]  # two steps in an epoch
    assert np.array_equal(keras.ops.convert_to_numpy(kernel), after_first_epoch)
    assert run.settings["kept_epoch"] == 4  # the best one of the last phase


SPEC = ftk.FineTuneSpec(0, epochs=4, learning_rate=0.05)


@pytest.fixture(scope="module")
def misled(tune, sets):
    """Validate on the training images with wrong labels, so that the validation loss rises."""
    images = sets.train
    wrong = ftk.ImageSet.from_arrays(images.load(size=(32, 32)), (images.labels + 1) % 3,
                                     images.class_names)  # fmt: skip
    return partial(tune, validation=wrong, optimizer="sgd")


def kept_kernel(tune, path, specs, **options):
    """Train; return the run, a kernel at the end, and the kernel after each epoch."""
    steps = Steps(path)
    run = tune(specs, callbacks=[steps], **options)
    kernel = next(v for v in run.model.weights if v.path == path)
    return run, keras.ops.convert_to_numpy(kernel), steps.steps[path][1::2]  # two steps an epoch


@pytest.mark.parametrize("blocks", [0, 1])
def test_the_weights_of_the_epoch_with_the_lowest_validation_loss_are_kept(misled, blocks):
    path = "head/predictions/kernel"
    spec = replace(SPEC, trainable_blocks=blocks)
    run, kernel, after = kept_kernel(misled, path, spec)
    best = int(np.argmin(run.history["val_loss"]))
    assert best < 3, "the loss must rise, or the test shows nothing"
    assert run.settings["kept_epoch"] == best + 1
    assert np.array_equal(kernel, after[best])
    last, kernel, after = kept_kernel(misled, path, replace(spec, keep="last"))
    assert last.history == run.history
    assert last.settings["kept_epoch"] == 4
    assert np.array_equal(kernel, after[3])


def test_each_phase_keeps_the_epoch_that_its_spec_asks_for(misled):
    path = "head/predictions/kernel"
    specs = [SPEC, ftk.FineTuneSpec(1, epochs=2, keep="last")]
    run, kernel, after = kept_kernel(misled, path, specs)
    assert run.settings["kept_epoch"] == 6
    assert np.array_equal(kernel, after[5])
    alone = misled(SPEC).model
    begun = misled([SPEC, ftk.FineTuneSpec(1, learning_rate=1e-12, keep="last")]).model
    same_weights(alone, begun, atol=1e-6)


@pytest.mark.parametrize("keeps", ["best", "last"])
def test_a_phase_that_makes_the_model_worse_is_undone(tune, tmp_path, keeps):
    """But only by phases that keep the best epoch, and not what a phase before them kept."""
    worse = ftk.FineTuneSpec(1, epochs=2, learning_rate=2.0)
    more = ftk.FineTuneSpec("block3", epochs=1, learning_rate=2.0)  # what moved may be frozen now
    specs = [SPEC, replace(worse, keep=keeps), more]
    run = tune(specs, optimizer="sgd")
    losses = run.history["val_loss"]
    best = int(np.argmin(losses[:4])) + 1
    if keeps == "best":
        assert min(losses) == losses[best - 1], "the loss must rise, or the test shows nothing"
        assert run.settings["kept_epoch"] == best
        same_weights(run.model, tune(SPEC, optimizer="sgd").model)
    else:
        assert run.settings["kept_epoch"] == 7
    folder = tmp_path / "run"
    resumed = tune(specs, optimizer="sgd", run_dir=folder)
    assert resumed.settings["kept_epoch"] == run.settings["kept_epoch"]
    same_weights(resumed.model, run.model)
    finished = tune(specs, optimizer="sgd", run_dir=folder)  # from the last checkpoint
    same_weights(finished.model, run.model)


def same_weights(one: keras.Model, other: keras.Model, atol: float = 0.0) -> None:
    for pair in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, pair), rtol=0, atol=atol)


@pytest.mark.parametrize(
    "options",
    [
        {"validation": None},
        {"optimizer": keras.optimizers.SGD(0.05, use_ema=True)},
        {"callbacks": keras.callbacks.EarlyStopping(
            "val_loss", mode="max", patience=9, restore_best_weights=True)},
    ],
    ids=["no validation", "averages", "another choice"],
)  # fmt: skip
def test_the_last_epoch_is_kept_where_none_is_best(misled, options):
    run = misled(SPEC, **options)
    losses = run.history.get("val_loss", [0])
    expected = int(np.argmax(losses)) + 1 if "callbacks" in options else 4
    assert run.settings["kept_epoch"] == expected


@pytest.mark.parametrize(
    ("stops", "kept"),
    [
        ([{"patience": 2, "min_delta": 10, "restore_best_weights": True}], 1),
        ([{"patience": 2, "min_delta": 10}], 3),
        ([{"patience": 9, "min_delta": 10, "restore_best_weights": True}], 1),
        ([{"patience": 9, "start_from_epoch": 9, "restore_best_weights": True}], 4),
        (
            [
                {"patience": 9, "min_delta": 10, "restore_best_weights": True},
                {"patience": 9, "min_delta": 10, "restore_best_weights": True,
                 "start_from_epoch": 1},
            ],
            2,
        ),
    ],
    ids=["stopped", "not restored", "not stopped", "never begun", "the last of two"],
)  # fmt: skip
def test_the_kept_epoch_is_the_one_whose_weights_the_model_has(tune, stops, kept):
    path = "head/predictions/kernel"
    steps = Steps(path)
    callbacks = [*(keras.callbacks.EarlyStopping(**stop) for stop in stops), steps]
    spec = ftk.FineTuneSpec(0, epochs=4, keep="last")
    run = tune(spec, callbacks=callbacks, optimizer="sgd")
    assert run.settings["kept_epoch"] == kept
    kernel = keras.ops.convert_to_numpy(next(v for v in run.model.weights if v.path == path))
    after = steps.steps[path][1::2]  # two steps in an epoch
    assert [np.array_equal(kernel, value) for value in after].index(True) == kept - 1
    assert f"epoch {kept} of {len(after)} kept: val_loss {run.history['val_loss'][kept - 1]:.3f}" \
        in repr(run)  # fmt: skip


def test_rates_are_logged_by_the_same_names_in_each_process(tune):
    """Keras numbers optimizers by how many there were before; a history must not."""
    turn = keras.callbacks.ReduceLROnPlateau(patience=1)
    specs = [ftk.FineTuneSpec(0), ftk.FineTuneSpec(1, layer_decay=0.5)]
    history = tune(specs, callbacks=[turn]).history
    rates = {name for name in history if name.startswith("learning_rate")}
    assert rates == {"learning_rate", "learning_rate_adam_phase1_x1",
                     "learning_rate_adam_phase2_x0.5"}  # fmt: skip


def test_averaged_weights_go_through_phases(tune):
    """EMA as in Keras: kept for each variable from its first step, and used in the end."""
    old, new = "block4_conv/kernel", "block3_conv/kernel"
    steps = Steps(old, new)
    optimizer = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.8)
    specs = [ftk.FineTuneSpec(1, epochs=2), ftk.FineTuneSpec(2, epochs=2)]
    run = tune(specs, optimizer=optimizer, callbacks=[steps])
    made = {v.path: keras.ops.convert_to_numpy(v) for v in run.model.weights}
    for path, begun in ((old, 0), (new, 4)):  # two steps in an epoch; the second phase adds block3
        first, *others = steps.steps[path][begun:]
        average = first
        for value in others:
            average = 0.8 * average + 0.2 * value
        np.testing.assert_allclose(made[path], average, rtol=1e-4, atol=1e-6)
        assert np.abs(made[path] - steps.steps[path][-1]).max() > 1e-5


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def policy(request):
    """A mixed-precision policy, while the test runs."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def test_mixed_precision_trains_as_float32_does(tune, build_small, sets, policy):
    """Half precision inside, float32 variables and probabilities, and nearly the same losses."""
    backbone = build_small()
    head = ftk.classification_head(3, units=(8,), pooling="flatten")
    scaled = []
    look = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: scaled.append(type(look.model.optimizer).__name__)
    )
    spec = ftk.FineTuneSpec(1, epochs=15, learning_rate=0.02)
    run, uncached = (
        tune(spec, backbone=backbone, head=head, features=features, callbacks=[look])
        for features in (None, False)
    )
    half = policy.removeprefix("mixed_")
    for name in ("block1_conv", "block4_conv", "head"):
        layer = run.model.get_layer(name)
        layer = layer.layers[1] if name == "head" else layer
        assert (layer.compute_dtype, layer.output.dtype) == (half, half), name
        assert {v.dtype for v in layer.weights} == {"float32"}
    assert run.model.output.dtype == "float32"
    kind = "LossScaleOptimizer" if half == "float16" else "Adam"
    assert scaled == [kind] * 2
    assert run.history["loss"] == pytest.approx(uncached.history["loss"], rel=0.05)
    keras.config.set_dtype_policy("float32")
    plain = tune(spec, head=ftk.classification_head(3, units=(8,), pooling="flatten"))
    assert run.history["loss"][:5] == pytest.approx(plain.history["loss"][:5], rel=0.1)
    assert run.history["loss"][-1] < 0.5 * run.history["loss"][0]
    assert ftk.evaluate(run.model, sets.train).accuracy > 0.9


def test_float16_does_not_go_through_phases_that_add_blocks(tune, build_small, policy, rejected):
    specs = ftk.linear_probe_then_fine_tune(1, probe_epochs=1, epochs=1)
    backbone = build_small()
    if policy == "mixed_bfloat16":
        run = tune(specs, backbone=backbone)
        assert run.history["phase"] == [1, 2]
        assert {v.dtype for v in run.model.trainable_weights} == {"float32"}
    else:
        with rejected("use the policy 'mixed_bfloat16'"):
            tune(specs, backbone=backbone)
        with rejected("`run_dir` does not save the scale of the loss"):
            tune(backbone=backbone, run_dir="never-made")
