"""The callbacks of a run: the user's, which see the whole model, and our own.

`fit` runs on a model that begins behind the frozen part. A user's callback is given the whole
model, which shares its layers and its optimizer: that is what it saves, stops, or changes the
learning rate of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import keras
import numpy as np

from finetune_kit._model.state import random_states


class BestEpoch(keras.callbacks.EarlyStopping):
    """Restores the weights of the epoch with the lowest validation loss at the end of a phase.

    That epoch may be one of an earlier phase, unless a phase in between keeps its last epoch.
    """

    def __init__(self) -> None:
        super().__init__(monitor="val_loss", patience=10**9, restore_best_weights=True)
        self.keeps_best = True  # by this its state differs from that of early stopping

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Remember the best epoch of earlier phases, if this one may return to it."""
        if self.best_weights is None or not self.restore_best_weights:
            super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare the validation loss with the lowest one."""
        if self.restore_best_weights:
            super().on_epoch_end(epoch, logs)


# The state that Keras' own callbacks, and ours, keep from epoch to epoch.
_STATE = {
    BestEpoch: ("keeps_best", "best", "best_epoch", "best_weights"),
    keras.callbacks.EarlyStopping: ("best", "best_epoch", "best_weights", "wait", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
}
_BATCH_HOOKS = ("train_batch_begin", "train_batch_end", "test_batch_begin", "test_batch_end")
_OVERRIDABLE = (*_BATCH_HOOKS, "batch_begin", "batch_end")
_HOOKS = ("train_begin", "train_end", "epoch_begin", "epoch_end", "test_begin", "test_end")


class EpochSeeds(keras.callbacks.Callback):
    """Seeds the random generators at the start of each epoch, from (seed, epoch) alone.

    Dropout is then the same whether features or pixels are trained on, and after an interruption.
    """

    def __init__(self, model: keras.Model, seed: int) -> None:
        super().__init__()
        self._states, self._seed = random_states(model), seed

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Seed the generator of each layer."""
        self._rng = np.random.default_rng((self._seed, epoch, 2))
        for state in self._states:
            state.assign(self._rng.integers(0, 2**31, 2, np.uint32))


class GlobalSeeds(EpochSeeds):
    """The same on PyTorch, where Dropout uses the global generator.

    The DataLoader uses it too when it starts, between the start of the first epoch and its first
    batch. The generator is therefore seeded after that.
    """

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Seed the global generator at the first batch."""
        if batch == 0:
            keras.utils.set_random_seed(int(self._rng.integers(0, 2**31)))


def epoch_seeds(model: keras.Model, seed: int) -> EpochSeeds:
    """Return the callback that seeds a model's random generators on this backend."""
    kind = GlobalSeeds if keras.backend.backend() == "torch" else EpochSeeds
    return kind(model, seed)


class FiniteLoss(keras.callbacks.Callback):
    """Stops a run whose loss is not finite any more."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self._learning_rate = learning_rate

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the training loss."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            rate = getattr(self.model.optimizer, "learning_rate", self._learning_rate)
            raise FloatingPointError(
                f"The loss is {loss} in epoch {epoch + 1}, at the learning rate {float(rate):.3g}. "
                "Try a tenth of that, an optimizer with clipnorm=1.0, or batch_norm='frozen'; and "
                "look at the pixels: the model takes raw RGB from 0 to 255"
            )


class Planned(keras.callbacks.Callback):
    """Stops a run if `trainable` changes within a phase, which Keras ignores in part or whole."""

    def __init__(self, whole: keras.Model) -> None:
        super().__init__()
        self._whole, self._paths = whole, {v.path for v in whole.trainable_variables}

    def _check(self) -> None:
        changed = self._paths ^ {v.path for v in self._whole.trainable_variables}
        if changed:
            raise RuntimeError(
                "What trains must stay the same within a phase. A callback changed `trainable` of "
                f"{len(changed)} variables: {', '.join(sorted(changed)[:5])}. Give `fine_tune` a "
                "list of specs instead"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check before the first step, which would fail on JAX."""
        self._check()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check before the epoch is saved."""
        self._check()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Check before the phase is saved."""
        self._check()


def with_best_epoch(
    callbacks: Sequence[keras.callbacks.Callback], *, validated: bool, averaged: bool
) -> list[keras.callbacks.Callback]:
    """Return callbacks that keep the best epoch, unless the user's choose which weights to keep.

    Args:
        callbacks: those of the user.
        validated: whether there are validation images.
        averaged: whether the optimizer ends with averages of the weights, which no epoch has.
    """
    chosen = any(
        isinstance(callback, keras.callbacks.SwapEMAWeights)
        or getattr(callback, "restore_best_weights", False)
        for callback in callbacks
    )
    return [*callbacks, *([BestEpoch()] if validated and not chosen and not averaged else [])]


def as_callbacks(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Return the callbacks as a list; a single one counts as a list of one."""
    if isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks]
    if not isinstance(callbacks, Sequence) or not all(
        isinstance(callback, keras.callbacks.Callback) for callback in callbacks
    ):
        raise ValueError(
            f"`callbacks` must be a list of Keras callbacks. Received: callbacks={callbacks!r}"
        )
    return list(callbacks)


def check_callbacks(callbacks: Sequence[keras.callbacks.Callback], *, once: bool) -> None:
    """Check that no callback would spoil the run; `once`: a single phase without `run_dir`."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "`callbacks` cannot hold BackupAndRestore, whose backup does not fit the next "
                "phase's optimizer; pass run_dir= instead, which makes the run resumable"
            )
        if isinstance(callback, keras.callbacks.SwapEMAWeights) and not once:
            raise ValueError(
                "`callbacks` can hold SwapEMAWeights only in a run of one phase without run_dir: "
                "it leaves averages where the next phase expects weights. use_ema=True alone "
                "uses the averages at the end of each phase"
            )


def check_monitors(
    callbacks: Sequence[keras.callbacks.Callback], names: Sequence[str], *, validated: bool
) -> None:
    """Check that callbacks monitor something that is measured; Keras only warns, if at all."""
    if not all(type(callback).__module__.startswith("keras.") for callback in callbacks):
        return  # the user's own callbacks may add other values
    known = [*names, *(f"val_{name}" for name in names if validated)]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        always = getattr(callback, "save_best_only", True)  # else ModelCheckpoint ignores it
        if monitor is not None and always and monitor not in known:
            hint = "" if validated else "; without `validation` nothing starts with val_"
            raise ValueError(
                f"`callbacks` must monitor one of {', '.join(known)}{hint}. "
                f"Received: {type(callback).__name__}(monitor={monitor!r})"
            )


def callback_states(callbacks: Sequence[keras.callbacks.Callback]) -> list[dict[str, Any]]:
    """Return the state of Keras' own callbacks, in the order of the callbacks."""
    return [{n: _plain(getattr(c, n, None)) for n in _names(c)} for c in callbacks]


def restore_states(
    callbacks: Sequence[keras.callbacks.Callback], states: Sequence[Mapping[str, Any]]
) -> bool:
    """Restore the state of callbacks; return False if the user's are of other kinds now."""
    own = _STATE[BestEpoch]
    now = [(_names(callback), callback) for callback in callbacks if _names(callback)]
    then = [(tuple(values), values) for values in states if values]
    fits = [kind for kind, _ in now if kind != own] == [kind for kind, _ in then if kind != own]
    for (kind, callback), (_, values) in product(now[-1:], then[-1:]):  # ours is the last
        if kind == own == tuple(values):
            _set(callback, values)
    if fits:
        users = ([each for kind, each in pairs if kind != own] for pairs in (now, then))
        for callback, values in zip(*users, strict=True):
            _set(callback, values)
    return fits


def _set(callback: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(callback, name, value)


def _names(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    return next((names for kind, names in _STATE.items() if isinstance(callback, kind)), ())


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, list)) else float(value)


def on_whole_model(
    callbacks: Sequence[keras.callbacks.Callback], whole: keras.Model, trained: keras.Model
) -> list[keras.callbacks.Callback]:
    """Return callbacks for `trained.fit` that show the whole model to the user's."""
    if not callbacks or trained is whole:
        return list(callbacks)
    return [_WholeModel(callbacks, whole)]


class _WholeModel(keras.callbacks.Callback):
    """Passes each call on to callbacks whose `model` is the whole model."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], whole: keras.Model) -> None:
        super().__init__()
        self._callbacks, self._whole = list(callbacks), whole
        for callback in callbacks:
            callback.set_model(whole)
        self._batches = any(_overrides(c, hook) for c in callbacks for hook in _OVERRIDABLE)

    def set_params(self, params: dict[str, Any]) -> None:
        """Pass on the number of epochs and steps."""
        super().set_params(params)
        for callback in self._callbacks:
            callback.set_params(params)

    def pass_on(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call the hook of each callback."""
        # On JAX the weights live in the training loop; reading `model` brings them back.
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


def kept_epoch(callbacks: Sequence[keras.callbacks.Callback], last: int) -> int:
    """Return the epoch, from 1, whose weights the model has: early stopping may restore one."""
    for callback in reversed(callbacks):  # the last one that restores weights decides
        early = isinstance(callback, keras.callbacks.EarlyStopping)
        if early and callback.restore_best_weights and callback.best_weights is not None:
            return int(callback.best_epoch) + 1
    return last


for _hook in (*_HOOKS, *_BATCH_HOOKS):
    setattr(_WholeModel, f"on_{_hook}", _relay(_hook))
