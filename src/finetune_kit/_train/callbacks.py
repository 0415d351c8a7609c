"""Callbacks come in, callbacks go out: the user's, shown the whole model, and our own.

`fit` runs on a model that begins behind the frozen part. What a user's callback is given, saves,
stops or turns the learning rate of is the whole model, which shares its layers and optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from finetune_kit._model.graph import random_states

# What Keras' own callbacks learn from epoch to epoch.
_LEARNED = {
    keras.callbacks.EarlyStopping: ("best", "best_epoch", "best_weights", "wait", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
}
_BATCH_HOOKS = ("train_batch_begin", "train_batch_end", "test_batch_begin", "test_batch_end")
_OVERRIDABLE = (*_BATCH_HOOKS, "batch_begin", "batch_end")
_HOOKS = ("train_begin", "train_end", "epoch_begin", "epoch_end", "test_begin", "test_end")


class EpochSeeds(keras.callbacks.Callback):
    """Sets the random generators as each epoch begins, from (seed, epoch) alone.

    Dropout is then the same whether features or pixels are trained on, and after a pause.
    """

    def __init__(self, model: keras.Model, seed: int) -> None:
        super().__init__()
        self._states, self._seed = random_states(model), seed

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the state of each layer's generator."""
        self._drawn = np.random.default_rng((self._seed, epoch, 2))
        for state in self._states:
            state.assign(self._drawn.integers(0, 2**31, 2, np.uint32))


class GlobalSeeds(EpochSeeds):
    """The same on PyTorch, where Dropout draws from the global generator.

    So does its DataLoader as it begins, between the beginning of an epoch and the first batch of
    all, but of no later epoch: the generator is set after that.
    """

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the global generator as the first batch begins."""
        if batch == 0:
            keras.utils.set_random_seed(int(self._drawn.integers(0, 2**31)))


def epoch_seeds(model: keras.Model, seed: int) -> EpochSeeds:
    """What sets the random generators of a model on this backend."""
    kind = GlobalSeeds if keras.backend.backend() == "torch" else EpochSeeds
    return kind(model, seed)


class FiniteLoss(keras.callbacks.Callback):
    """Stops a run whose loss is no number any more, in words."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self._learning_rate = learning_rate

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the training loss."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            rate = getattr(self.model.optimizer, "learning_rate", self._learning_rate)
            raise FloatingPointError(
                f"The loss is {loss} in epoch {epoch + 1}, at the learning rate {float(rate):.3g}. "
                "Try a tenth of that, an optimizer with clipnorm=1.0, or batch_norm='frozen'; and "
                "look at the pixels: the model takes raw RGB from 0 to 255"
            )


class Planned(keras.callbacks.Callback):
    """Refuses a change of `trainable` inside a phase, which Keras ignores or applies by half."""

    def __init__(self, whole: keras.Model) -> None:
        super().__init__()
        self._whole, self._paths = whole, {v.path for v in whole.trainable_variables}

    def _look(self) -> None:
        changed = self._paths ^ {v.path for v in self._whole.trainable_variables}
        if changed:
            raise RuntimeError(
                "What trains must stay the same inside a phase. A callback changed `trainable` of "
                f"{len(changed)} variables: {', '.join(sorted(changed)[:5])}. Give `fine_tune` a "
                "list of specs instead"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look before a step is taken, which JAX would not survive."""
        self._look()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look before the epoch is kept."""
        self._look()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Look before the phase is kept."""
        self._look()


def check_callbacks(callbacks: Any, *, once: bool) -> None:
    """Refuse what is no list of callbacks, or would spoil a run; `once`: one phase, not kept."""
    if not isinstance(callbacks, Sequence) or not all(
        isinstance(callback, keras.callbacks.Callback) for callback in callbacks
    ):
        raise ValueError(
            f"`callbacks` must be a list of Keras callbacks. Received: callbacks={callbacks!r}"
        )
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "`callbacks` cannot hold BackupAndRestore, whose backup does not fit the next "
                "phase's optimizer; pass run_dir= instead, and an interrupted run goes on"
            )
        if isinstance(callback, keras.callbacks.SwapEMAWeights) and not once:
            raise ValueError(
                "`callbacks` can hold SwapEMAWeights in a run of one phase without run_dir: it "
                "leaves averages where the next phase expects weights. use_ema=True alone puts "
                "the averages in place as each phase ends"
            )


def learned(callbacks: Sequence[keras.callbacks.Callback]) -> list[dict[str, Any]]:
    """What Keras' own callbacks know of the epochs so far, by the callback's place."""
    return [{n: _plain(getattr(c, n, None)) for n in _names(c)} for c in callbacks]


def recall(
    callbacks: Sequence[keras.callbacks.Callback], known: Sequence[Mapping[str, Any]]
) -> bool:
    """Tell callbacks what they, or ones like them, had learned; False if they are others."""
    if [*map(_names, callbacks)] != [tuple(values) for values in known]:
        return False
    for callback, values in zip(callbacks, known, strict=True):
        for name, value in values.items():
            setattr(callback, name, value)
    return True


def _names(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    return next((names for kind, names in _LEARNED.items() if isinstance(callback, kind)), ())


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, list)) else float(value)


def on_whole_model(
    callbacks: Sequence[keras.callbacks.Callback], whole: keras.Model, trained: keras.Model
) -> list[keras.callbacks.Callback]:
    """The callbacks to give to `trained.fit`, so that theirs is the whole model."""
    if not callbacks or trained is whole:
        return list(callbacks)
    return [_WholeModel(callbacks, whole)]


class _WholeModel(keras.callbacks.Callback):
    """Passes each call on to callbacks whose `model` is the whole one."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], whole: keras.Model) -> None:
        super().__init__()
        self._callbacks, self._whole = list(callbacks), whole
        for callback in callbacks:
            callback.set_model(whole)
        self._batches = any(_overrides(c, hook) for c in callbacks for hook in _OVERRIDABLE)

    def set_params(self, params: dict[str, Any]) -> None:
        """Number of epochs and steps."""
        super().set_params(params)
        for callback in self._callbacks:
            callback.set_params(params)

    def pass_on(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call the hook of each callback, between two states that both models share."""
        # On JAX the weights live in the training loop; asking for `model` brings them back.
        trained = self.model
        if hook == "train_begin":
            self._whole.stop_training = False
        for callback in self._callbacks:
            getattr(callback, f"on_{hook}")(*args, **kwargs)
        if self._whole.stop_training:
            trained.stop_training = True


def _overrides(callback: keras.callbacks.Callback, hook: str) -> bool:
    given = getattr(callback, f"on_{hook}")
    return getattr(given, "__func__", given) is not getattr(keras.callbacks.Callback, f"on_{hook}")


def _relay(hook: str) -> Callable[..., None]:
    def call(self: _WholeModel, *args: Any, **kwargs: Any) -> None:
        if self._batches or hook not in _BATCH_HOOKS:
            self.pass_on(hook, *args, **kwargs)

    return call


for _hook in (*_HOOKS, *_BATCH_HOOKS):
    setattr(_WholeModel, f"on_{_hook}", _relay(_hook))
