"""Learning rates that change within a phase.

A schedule of a spec is followed by a callback, not by the optimizer: where a step is in its phase
is known from the number of the epoch, in each of several optimizers and after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._train.optimizer import Optimizers

_RISE, _FIRST = 0.25, 1 / 25  # of a one-cycle schedule: share of the steps, and of the rate
_CHANGING = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


def share_of_rate(spec: FineTuneSpec, step: int, steps: int) -> float:
    """Return the factor on the learning rate in a step, from 0, of so many steps of a phase."""
    cycle = spec.schedule == "one_cycle"
    warmup = (_RISE if cycle else spec.warmup) * steps
    if step < warmup and cycle:
        return _FIRST + (1 - _FIRST) * (0.5 - 0.5 * math.cos(math.pi * step / warmup))
    if step < warmup:
        return (step + 1) / (math.ceil(warmup) + 1)
    if spec.schedule is None:
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))


class Scheduled(keras.callbacks.Callback):
    """Sets the learning rate of each step of a phase."""

    def __init__(self, spec: FineTuneSpec, optimizers: Optimizers, steps: int, before: int) -> None:
        """Take the phase's spec, its optimizers, the steps of an epoch and the epochs before it."""
        super().__init__()
        self._spec, self._optimizers, self._steps, self._before = spec, optimizers, steps, before

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember how many steps of the phase are done."""
        self._done = (epoch - self._before) * self._steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate."""
        _ = self.model  # on JAX the rate lives in the training loop; this brings it back
        total = self._spec.epochs * self._steps
        self._optimizers.set_share(share_of_rate(self._spec, self._done + batch, total))


def rate_callbacks(
    spec: FineTuneSpec,
    callbacks: Sequence[keras.callbacks.Callback],
    optimizers: Optimizers,
    steps: int,
    before: int,
) -> list[keras.callbacks.Callback]:
    """Return what sets the rates of a phase: its schedule, or what follows the user's callbacks.

    Keras' LearningRateScheduler gives the same rate to all optimizers; the ratios of `layer_decay`
    are kept.
    """
    if is_scheduled(spec):
        return [Scheduled(spec, optimizers, steps, before)]
    if not any(isinstance(each, keras.callbacks.LearningRateScheduler) for each in callbacks):
        return []
    keep = optimizers.keep_ratios
    return [keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: keep())]


def is_scheduled(spec: FineTuneSpec) -> bool:
    """Return whether the rate of a phase changes from step to step."""
    return spec.schedule is not None or spec.warmup > 0


def check_rates(
    specs: Sequence[FineTuneSpec], callbacks: Sequence[keras.callbacks.Callback], rate: Any
) -> None:
    """Check that one thing alone changes the learning rate: specs, a callback or the optimizer.

    `rate` is that of the optimizer, or None where it takes those of the specs.
    """
    if not any(map(is_scheduled, specs)):
        return
    for callback in callbacks:
        if isinstance(callback, _CHANGING):
            raise ValueError(
                "`callbacks` must not change the learning rate of specs that have a `schedule` or "
                "`warmup`; leave out one of the two. "
                f"Received: a {type(callback).__name__}"
            )
    if rate is not None and not isinstance(rate, float):
        raise ValueError(
            "`optimizer` must have a number as its learning rate where specs have a `schedule` or "
            "`warmup`; leave out one of the two. "
            f"Received: learning_rate={rate!r}"
        )
