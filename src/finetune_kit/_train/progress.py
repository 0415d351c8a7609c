"""How far a run has come, and how that is saved and restored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from numpy.typing import NDArray

from finetune_kit._train.callbacks import callback_states, restore_states
from finetune_kit._train.checkpoints import State
from finetune_kit._train.optimizer import Optimizers

_log = logging.getLogger("finetune_kit")


_PARTS = ("build", "prefix", "prefix_decode", "prefix_compute", "fit")


@dataclass
class Progress:
    """What changes as a run proceeds."""

    optimizers: Optimizers
    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    kept_epoch: int = 0  # the epoch, from 1, whose weights the model has

    def state(
        self,
        phase: int,
        ended: bool,
        whole: keras.Model,
        moving: Mapping[str, Any],
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> State:
        """Return the state to save; `moving`: the variables that may have moved, by their place."""
        states = callback_states(callbacks)
        position = {
            "phase": phase,
            "ended": ended,
            "stopped": whole.stop_training,
            "callbacks": states,
            "epochs": self.epochs,
            "kept_epoch": self.kept_epoch,
            "seconds": dict(self.seconds),
            "began": list(self.optimizers.began.values()),
        }
        variables = {
            **{f"model {name}": v for name, v in moving.items()},
            **{f"optimizer {name}": v for name, v in self.optimizers.variables().items()},
        }
        arrays = {name: keras.ops.convert_to_numpy(v) for name, v in variables.items()}
        for i, values in enumerate(states):
            if values.get("best_weights") is not None:  # those of the whole model
                best, values["best_weights"] = values["best_weights"], True
                arrays |= {f"callback {i} {name}": best[int(name)] for name in moving}
        return State(position, arrays)


def restore_variables(variables: Mapping[str, Any], state: State, kind: str) -> None:
    """Assign the saved values of variables: those of the `"model"` or the `"optimizer"`."""
    for name, variable in variables.items():
        now = keras.ops.convert_to_numpy(variable)
        variable.assign(_typed(state.arrays[f"{kind} {name}"], now))


def restore_callbacks(
    callbacks: Sequence[keras.callbacks.Callback], whole: keras.Model, state: State | None
) -> None:
    """Restore what Keras' own callbacks knew.

    They reset in `on_train_begin`, so this is called before `fit` and again inside.
    """
    if state is None or not callbacks:
        return
    states = [dict(values) for values in state.position["callbacks"]]
    for i, values in enumerate(states):
        if values.get("best_weights"):
            values["best_weights"] = [
                _typed(state.arrays.get(f"callback {i} {j}", now), now)
                for j, now in enumerate(whole.get_weights())
            ]
    if not restore_states(callbacks, states):
        _log.warning(
            "`callbacks` differ from those before the interruption: their state starts anew"
        )


def _typed(value: NDArray[Any], now: NDArray[Any]) -> NDArray[Any]:
    """Return the value with its type: NumPy reads a bfloat16 as two bytes without a meaning."""
    return value.view(now.dtype) if value.dtype.kind == "V" else value
