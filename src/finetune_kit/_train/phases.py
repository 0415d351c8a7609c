"""Train the phases of a run, one after another.

Each phase builds the model, computes what is frozen, compiles with a new optimizer and fits. After
each epoch the state of the run can be saved, so that an interrupted run resumes there.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from finetune_kit._data.batches import Batches
from finetune_kit._features.frozen import FeatureSource, Trainee
from finetune_kit._model.digest import variable_digest
from finetune_kit._processes import agree, shared_batches
from finetune_kit._text import listed, plural
from finetune_kit._train.callbacks import (
    BestEpoch,
    FiniteLoss,
    Planned,
    epoch_seeds,
    kept_epoch,
    on_whole_model,
)
from finetune_kit._train.checkpoints import Checkpoints, State
from finetune_kit._train.iterators import released
from finetune_kit._train.logs import continued_logs, restore_columns
from finetune_kit._train.objective import Objective, objective
from finetune_kit._train.progress import Progress, restore_callbacks, restore_variables
from finetune_kit._train.rates import rate_callbacks
from finetune_kit._train.setup import Phase, Setup

_log = logging.getLogger("finetune_kit")


@dataclass(frozen=True, eq=False)
class _Run:
    """One call of `train`."""

    setup: Setup
    source: FeatureSource
    progress: Progress
    checkpoints: Checkpoints | None
    built: dict[frozenset[str], keras.Model] = field(default_factory=dict)  # whole models


def train(
    setup: Setup, source: FeatureSource, progress: Progress, checkpoints: Checkpoints | None
) -> keras.Model:
    """Train all phases, or those that are left, and return the whole model."""
    run = _Run(setup, source, progress, checkpoints)
    state = checkpoints.latest() if checkpoints else None
    agree("see the same `run_dir`", json.dumps(state and state.position["epochs"]))
    current, ended = 1, False
    if state is not None:
        progress.epochs.extend(state.position["epochs"])
        progress.kept_epoch = state.position["kept_epoch"]
        for name, value in state.position.get("seconds", {}).items():
            progress.seconds[name] += value
        current, ended = state.position["phase"], state.position["ended"]
        _announce(setup, ended and current == len(setup.phases), len(progress.epochs))
    if state is not None and ended and current == len(setup.phases):
        whole = _build(run, setup.phases[-1])
        restore_variables(setup.moving(whole, current), state, "model")
        return whole
    if len(setup.phases) > 1:  # first what is frozen in all phases: the others start from there
        first = min(setup.phases, key=lambda phase: phase.plan.prefix_blocks)
        _trainee(run, _build(run, first), first)
    for phase in setup.phases[current - 1 :]:
        _announce_phase(setup, phase)
        whole = _build(run, phase)
        if state is not None:
            restore_variables(setup.moving(whole, phase.number), state, "model")
        trainee = _trainee(run, whole, phase)
        goal = _objective(setup, whole)
        _compile(run, whole, trainee.model, phase, goal, state)
        restore_callbacks(setup.callbacks, whole, state)
        if not ended:
            _fit(run, whole, trainee, phase, goal, state)
            _save(run, whole, phase, ended=True)
        state, ended = None, False
    return whole


def _announce(setup: Setup, finished: bool, epochs: int) -> None:
    """Say that the run resumes, or that it had finished."""
    text = f"Resuming after epoch {epochs}"
    if finished:
        text = f"The run in `run_dir` has finished: {plural(epochs, 'epoch')}"
    _log.info(text)
    if setup.verbose:
        print(text, flush=True)


def _announce_phase(setup: Setup, phase: Phase) -> None:
    """Say what a phase trains, if there are several."""
    if setup.verbose and len(setup.phases) > 1:
        count, spec = sum(phase.plan.trainable), phase.spec
        trained = f"the head and {plural(count, 'block')}" if count else "the head"
        print(
            f"Phase {phase.number} of {len(setup.phases)}: {trained}, "
            f"{plural(spec.epochs, 'epoch')}, learning rate {spec.learning_rate:g}",
            flush=True,
        )


def _build(run: _Run, phase: Phase) -> keras.Model:
    """Return the whole model of a phase; phases that leave out the same layers share it."""
    started = time.perf_counter()
    setup, spec = run.setup, phase.spec
    left_out = setup.left_out(phase)
    if left_out in run.built:
        whole = run.built[left_out]
        spec.apply(setup.backbone)
    else:
        whole = spec.build(setup.backbone, setup.head, preprocessing=setup.preprocessing)
        _check_paths(whole)
        _objective(setup, whole)  # a head that does not fit fails before anything is computed
        run.built[left_out] = whole
    run.progress.seconds["build"] += time.perf_counter() - started
    return whole


def _check_paths(whole: keras.Model) -> None:
    """Check that each weight has a path of its own, by which plans and optimizers name it."""
    counts = Counter(weight.path for weight in whole.weights)
    repeated = [path for path, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(
            "Each weight of a layer must have a name of its own: pass different names to "
            f"`add_weight`. Received: the same name for several weights: {listed(repeated)}"
        )


def _objective(setup: Setup, whole: keras.Model) -> Objective:
    images = setup.images
    return objective(
        whole.output_shape, setup.head, images.labels, images.class_names, setup.choices
    )


def _trainee(run: _Run, whole: keras.Model, phase: Phase) -> Trainee:
    started = time.perf_counter()
    trainee = run.source.trainee(whole, phase.plan)
    seconds = run.progress.seconds
    seconds["prefix"] += time.perf_counter() - started
    seconds["prefix_decode"] += trainee.seconds.loading
    seconds["prefix_compute"] += trainee.seconds.computing
    return trainee


def _compile(
    run: _Run,
    whole: keras.Model,
    trained: keras.Model,
    phase: Phase,
    goal: Objective,
    state: State | None,
) -> None:
    optimizers, plan = run.progress.optimizers, phase.plan
    factors = dict(zip(plan.trainable_variables, plan.rate_factors, strict=True))
    variables = trained.trainable_variables
    if state is not None:
        paths = [variable.path for variable in variables]
        optimizers.began = dict(zip(paths, state.position["began"], strict=True))
    optimizer = optimizers.next(phase.number, variables, phase.spec.learning_rate, factors)
    if state is not None:
        restore_variables(optimizers.variables(), state, "optimizer")
    whole.compile(optimizer=optimizer, **goal.compile_options())
    if trained is not whole:  # one optimizer: callbacks of the whole model change its rate
        trained.compile(optimizer=whole.optimizer, **goal.compile_options())
    # Callbacks look up at `whole` whether a metric should rise or fall. And TensorFlow traces a
    # step twice if its first call creates the variables of the metrics.
    target = goal.targets(np.arange(1))
    for model in dict.fromkeys((whole, trained)):
        model.compute_metrics(None, target, target)
        model.reset_metrics()


def _fit(
    run: _Run,
    whole: keras.Model,
    trainee: Trainee,
    phase: Phase,
    goal: Objective,
    state: State | None,
) -> None:
    setup, progress = run.setup, run.progress
    for callback in setup.callbacks:
        if isinstance(callback, BestEpoch):
            callback.restore_best_weights = phase.spec.keep == "best"
    first, clock = len(progress.epochs), _Clock(progress.seconds)
    last = _epochs_before(run, phase) + phase.spec.epochs
    if state is not None and state.position["stopped"]:
        last = first  # a callback had ended the phase
    training = _batches(setup, trainee.train.load, goal, trainee.threads, setup.seed, first)
    validation = _batches(setup, trainee.validation.load, goal, trainee.threads)
    frozen = setup.frozen_digests(phase)
    with (
        continued_logs(setup.callbacks, first),
        released(trainee.model, training, validation),
        shared_batches(),
    ):
        trainee.model.fit(
            training,
            steps_per_epoch=training.steps,
            validation_data=validation if validation.steps else None,
            initial_epoch=first,
            epochs=last,
            callbacks=[
                epoch_seeds(whole, setup.seed),
                FiniteLoss(phase.spec.learning_rate),
                *on_whole_model(setup.callbacks, whole, trainee.model),
                *_rates(run, phase, training.steps),
                Planned(whole),
                _Save(run, whole, phase, state, clock),  # after the user's callbacks
            ],
            shuffle=False,  # `Batches` shuffles by itself, the same on every backend
            class_weight=setup.class_weight,
            verbose=setup.verbose,
        )
    progress.kept_epoch = kept_epoch(setup.callbacks, len(progress.epochs))
    if setup.verbose and progress.kept_epoch != len(progress.epochs):
        print(f"The weights of epoch {progress.kept_epoch} were restored", flush=True)
    _check_frozen(setup.backbone, frozen)
    clock.count()


def _epochs_before(run: _Run, phase: Phase) -> int:
    return sum(epoch["phase"] < phase.number for epoch in run.progress.epochs)


def _rates(run: _Run, phase: Phase, steps: int) -> list[keras.callbacks.Callback]:
    """Return the callbacks that set the learning rates of a phase."""
    optimizers, before = run.progress.optimizers, _epochs_before(run, phase)
    return rate_callbacks(phase.spec, run.setup.callbacks, optimizers, steps, before)


class _Clock:
    """Counts the seconds of `fit`, such that each checkpoint holds those up to it."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._since = seconds, time.perf_counter()

    def count(self) -> None:
        """Add the seconds since the last call."""
        now = time.perf_counter()
        self._seconds["fit"] += now - self._since
        self._since = now


def _batches(
    setup: Setup,
    load: Callable[..., Any],
    goal: Objective,
    threads: int,
    seed: int | None = None,
    epoch: int = 0,
) -> Batches:
    """Return the training batches if there is a seed, else the validation batches."""
    count = len(setup.train)
    indices = np.arange(count) if seed is not None else np.arange(count, len(setup.images))
    return Batches(load, goal.targets, indices, setup.batch_size, seed, threads, epoch, setup.mixup)


def _save(run: _Run, whole: keras.Model, phase: Phase, *, ended: bool) -> None:
    if run.checkpoints is not None:
        moving = run.setup.moving(whole, phase.number)
        state = run.progress.state(phase.number, ended, whole, moving, run.setup.callbacks)
        run.checkpoints.write(state)


class _Save(keras.callbacks.Callback):
    """Restores callbacks when `fit` starts, and records and saves each epoch."""

    def __init__(
        self, run: _Run, whole: keras.Model, phase: Phase, state: State | None, clock: _Clock
    ) -> None:
        super().__init__()
        self._clock = clock
        self._run, self._whole, self._phase, self._state = run, whole, phase, state

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore callbacks once they have reset themselves."""
        restore_callbacks(self._run.setup.callbacks, self._whole, self._state)
        restore_columns(self._run.setup.callbacks)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the epoch, and save the state."""
        _ = self.model  # on JAX the weights live in the training loop; this brings them back
        values = {name: float(value) for name, value in (logs or {}).items()}
        progress = self._run.progress
        progress.epochs.append({**values, "epoch": epoch + 1, "phase": self._phase.number})
        progress.kept_epoch = epoch + 1
        self._clock.count()
        _save(self._run, self._whole, self._phase, ended=False)


def _check_frozen(backbone: keras.Model, before: Mapping[str, str]) -> None:
    """Check that frozen variables are bit-identical after a phase."""
    weights = [v for v in backbone.weights if v.path in before]
    moved = [v.path for v in weights if variable_digest(v) != before[v.path]]
    if moved:
        raise RuntimeError(
            "After training, each variable that the plan freezes must be bit-identical. "
            f"{len(moved)} are not: {', '.join(moved[:5])}. A callback that sets `trainable` or "
            "assigns weights of frozen blocks does that: give `fine_tune` a list of specs instead. "
            "So does a layer that assigns weights of another layer"
        )
