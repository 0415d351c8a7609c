"""Specs, copies of backbone and head, and a source of images come in; they are trained in place.

One phase after another: build, compute what is frozen, compile with a new optimizer, fit. After
each epoch the state of the run can be kept, so that it goes on where it was cut off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from numpy.typing import NDArray

from finetune_kit._data.batches import Batches, Load, Targets, let_go
from finetune_kit._features.frozen import Source, Trained, check_frozen, frozen_values
from finetune_kit._model.plan import FreezePlan
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._train.callbacks import (
    FiniteLoss,
    Planned,
    epoch_seeds,
    learned,
    on_whole_model,
    recall,
)
from finetune_kit._train.checkpoints import Checkpoints, State
from finetune_kit._train.objective import Objective, Wanted, objective
from finetune_kit._train.optimizer import Optimizers

_log = logging.getLogger("finetune_kit")


@dataclass(frozen=True, eq=False)
class Run:
    """What the phases of a run share, and what they leave."""

    backbone: keras.Model
    head: keras.Layer
    pixels: keras.Layer | None
    source: Source
    optimizers: Optimizers
    wanted: Wanted
    fit_options: Mapping[str, Any]
    callbacks: Sequence[keras.callbacks.Callback]
    seed: int
    specs: Sequence[FineTuneSpec]
    plans: Sequence[FreezePlan]
    checkpoints: Checkpoints | None = None
    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("build", "prefix", "fit"), 0.0)
    )

    def train(self) -> keras.Model:
        """Train all phases, or those that are left; the whole model as the last one built it."""
        specs, plans = self.specs, self.plans
        state = self.checkpoints.latest() if self.checkpoints else None
        begun, ended = 1, False
        if state is not None:
            self.epochs.extend(state.position["epochs"])
            begun, ended = state.position["phase"], state.position["ended"]
            _log.info("going on after epoch %d, in phase %d", len(self.epochs), begun)
        if ended and begun == len(specs):
            whole = self._build(specs[-1])
            self._restore(whole, begun, state)
            return whole
        if len(specs) > 1:  # what is frozen in all phases comes first: the others go on from there
            deepest = min(range(len(specs)), key=lambda i: plans[i].prefix_blocks)
            self._trained(self._build(specs[deepest]), plans[deepest])
        for number in range(begun, len(specs) + 1):
            spec, plan = specs[number - 1], plans[number - 1]
            whole = self._build(spec)
            self._restore(whole, number, state)
            trained = self._trained(whole, plan)
            self._compile(whole, trained.model, number, spec, plan, state)
            self._recall(whole, state)
            if not ended:
                self._fit(whole, trained, number, spec, plan, state)
                self._keep(whole, number, ended=True)
            state, ended = None, False
        return whole

    def _fit(
        self,
        whole: keras.Model,
        trained: Trained,
        number: int,
        spec: FineTuneSpec,
        plan: FreezePlan,
        state: State | None,
    ) -> None:
        started, first = time.perf_counter(), len(self.epochs)
        last = sum(epoch["phase"] < number for epoch in self.epochs) + spec.epochs
        if state is not None and state.position["stopped"]:
            last = first  # a callback had ended the phase
        targets, threads = self._objective(whole).targets, trained.threads
        train = self._batches(trained.train, targets, "train", threads, self.seed, first)
        validation = self._batches(trained.validation, targets, "validation", threads)
        frozen = frozen_values(self.backbone, plan)

        def note(epoch: int, logs: Mapping[str, Any]) -> None:
            values = {name: float(value) for name, value in logs.items()}
            self.epochs.append({**values, "epoch": epoch + 1, "phase": number})
            self._keep(whole, number, ended=False)

        with let_go(trained.model, train, validation):
            trained.model.fit(
                train,
                steps_per_epoch=train.steps,
                validation_data=validation if validation.steps else None,
                initial_epoch=first,
                epochs=last,
                callbacks=[
                    epoch_seeds(whole, self.seed),
                    FiniteLoss(spec.learning_rate),
                    *on_whole_model(self.callbacks, whole, trained.model),
                    Planned(whole),
                    _Note(lambda: self._recall(whole, state), note),  # after the user's callbacks
                ],
                shuffle=False,  # `Batches` draws its own order, the same on every backend
                **self.fit_options,
            )
        check_frozen(self.backbone, frozen)
        self.seconds["fit"] += time.perf_counter() - started

    def _build(self, spec: FineTuneSpec) -> keras.Model:
        started = time.perf_counter()
        whole = spec.build(self.backbone, self.head, preprocessing=self.pixels)
        self._objective(whole)  # a head that does not fit is refused before anything is computed
        self.seconds["build"] += time.perf_counter() - started
        return whole

    def _trained(self, whole: keras.Model, plan: FreezePlan) -> Trained:
        started = time.perf_counter()
        trained = self.source.trained(whole, plan)
        self.seconds["prefix"] += time.perf_counter() - started
        return trained

    def _compile(
        self,
        whole: keras.Model,
        trained: keras.Model,
        number: int,
        spec: FineTuneSpec,
        plan: FreezePlan,
        state: State | None,
    ) -> None:
        toward = self._objective(whole)
        factors = dict(zip(plan.trainable_variables, plan.rate_factors, strict=True))
        variables = trained.trainable_variables
        if state is not None:
            paths = [variable.path for variable in variables]
            self.optimizers.began = dict(zip(paths, state.position["began"], strict=True))
        optimizer = self.optimizers.next(number, variables, spec.learning_rate, factors)
        if state is not None:
            _assign(self.optimizers.variables(), state, "optimizer")
        whole.compile(optimizer=optimizer, **toward.compiled())
        if trained is not whole:  # one optimizer: callbacks of the whole model turn its rate
            trained.compile(optimizer=whole.optimizer, **toward.compiled())
            # A callback that is to tell whether a metric should rise looks for it there.
            one = toward.targets(self.source.split.train[:1])
            whole.compute_metrics(None, one, one)
            whole.reset_metrics()

    def _objective(self, whole: keras.Model) -> Objective:
        images = self.source.images
        return objective(whole, self.head, images.labels, images.class_names, self.wanted)

    def _batches(
        self,
        load: Load,
        targets: Targets,
        part: str,
        threads: int,
        seed: int | None = None,
        epoch: int = 0,
    ) -> Batches:
        indices = getattr(self.source.split, part)
        return Batches(load, targets, indices, self.source.batch_size, seed, threads, epoch)

    def _keep(self, whole: keras.Model, number: int, *, ended: bool) -> None:
        if self.checkpoints is None:
            return
        known = learned(self.callbacks)
        position = {
            "phase": number,
            "ended": ended,
            "stopped": whole.stop_training,
            "callbacks": known,
            "epochs": self.epochs,
            "began": list(self.optimizers.began.values()),
        }
        moving = self._moving(whole, number)
        variables = {
            **{f"model {name}": v for name, v in moving.items()},
            **{f"optimizer {name}": v for name, v in self.optimizers.variables().items()},
        }
        arrays = {name: keras.ops.convert_to_numpy(v) for name, v in variables.items()}
        for i, values in enumerate(known):
            if values.get("best_weights") is not None:  # those of the whole model
                best, values["best_weights"] = values["best_weights"], True
                arrays |= {f"callback {i} {name}": best[int(name)] for name in moving}
        self.checkpoints.write(State(position, arrays))

    def _restore(self, whole: keras.Model, number: int, state: State | None) -> None:
        if state is not None:
            _assign(self._moving(whole, number), state, "model")

    def _recall(self, whole: keras.Model, state: State | None) -> None:
        """Callbacks forget as `fit` begins, so they are told before it and in it."""
        if state is None or not self.callbacks:
            return
        known = [dict(values) for values in state.position["callbacks"]]
        for i, values in enumerate(known):
            if values.get("best_weights"):
                values["best_weights"] = [
                    _typed(state.arrays.get(f"callback {i} {j}", now), now)
                    for j, now in enumerate(whole.get_weights())
                ]
        if not recall(self.callbacks, known):
            _log.warning("`callbacks` are others than before the interruption: they start anew")

    def _moving(self, whole: keras.Model, number: int) -> dict[str, Any]:
        """What may have moved up to a phase, by its place: the names of a head may differ."""
        moving = {
            path
            for plan in self.plans[:number]
            for path in (*plan.trainable_variables, *plan.moving_statistics)
        }
        held = {id(v) for v in self.backbone.weights if v.path not in moving}
        return {str(i): v for i, v in enumerate(whole.weights) if id(v) not in held}


class _Note(keras.callbacks.Callback):
    """Calls functions at the beginning, and as an epoch ends and the model has its weights."""

    def __init__(
        self, begin: Callable[[], None], note: Callable[[int, Mapping[str, Any]], None]
    ) -> None:
        super().__init__()
        self._begin, self._note = begin, note

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """The user's callbacks have begun."""
        self._begin()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """On JAX the weights live in the training loop; asking for `model` brings them back."""
        assert self.model is not None
        self._note(epoch, logs or {})


def _assign(variables: Mapping[str, Any], state: State, kind: str) -> None:
    for name, variable in variables.items():
        now = keras.ops.convert_to_numpy(variable)
        variable.assign(_typed(state.arrays[f"{kind} {name}"], now))


def _typed(value: NDArray[Any], now: NDArray[Any]) -> NDArray[Any]:
    """NumPy reads a bfloat16 as two bytes without a meaning."""
    return value.view(now.dtype) if value.dtype.kind == "V" else value
