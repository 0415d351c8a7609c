"""Callbacks come in, a callback goes out that shows them the whole model while its suffix trains.

`fit` runs on a model that begins behind the frozen part. What a user's callback is given, saves,
stops or turns the learning rate of is the whole model, which shares its layers and optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

_BATCH_HOOKS = ("train_batch_begin", "train_batch_end", "test_batch_begin", "test_batch_end")
_OVERRIDABLE = (*_BATCH_HOOKS, "batch_begin", "batch_end")
_HOOKS = ("train_begin", "train_end", "epoch_begin", "epoch_end", "test_begin", "test_end")


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
