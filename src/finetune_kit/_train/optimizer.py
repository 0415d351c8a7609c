"""The optimizer of each phase.

Each phase has a new optimizer (one that has seen other variables cannot be used again), and the
state of the variables that continue to train is copied into it. Variables that began to train in
different phases, or train at different rates, have optimizers of their own inside a
`MultiOptimizer`, so that each counts its own steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import keras


class Optimizers:
    """The optimizers of a run, one phase after another."""

    def __init__(self, optimizer: Any) -> None:
        _check_optimizer(optimizer)
        given = _get(optimizer or "adam")
        self._kind, self._config = type(given), given.get_config()
        self._keeps_rate = optimizer is not None and not isinstance(optimizer, str)
        self._last: dict[str, dict[tuple[str, str], Any]] = {}  # by path: state in the last phase
        self._groups: dict[tuple[int, float], keras.Optimizer] = {}
        self._rate: Any = None  # of the phase: a number, or a schedule of Keras
        self.began: dict[str, int] = {}  # by path: the phase in which it began to train

    @property
    def config(self) -> dict[str, Any]:
        """The optimizer as plain values, without what the spec sets."""
        made: dict[str, Any] = keras.optimizers.serialize(self._kind.from_config(self._config))
        left_out = {"name"} if self._keeps_rate else {"name", "learning_rate"}
        values = {name: value for name, value in made["config"].items() if name not in left_out}
        return {"class_name": made["class_name"], **values}

    def check(self, phases: Sequence[Mapping[str, float]]) -> None:
        """Check that the optimizer can go through these phases, before the first one begins.

        A phase is given as the variables of the backbone that train in it: by path, their factor
        of the learning rate.
        """
        rate = self._config["learning_rate"]
        decays = any(factor != 1.0 for phase in phases for factor in phase.values())
        if decays and self._keeps_rate and not isinstance(rate, float):
            raise ValueError(
                "`layer_decay` below 1 needs an optimizer whose learning rate is a number; a "
                f"schedule is the same for all blocks. Received: learning_rate={rate!r}"
            )
        if not decays and not any(then.keys() - now.keys() for now, then in pairwise(phases)):
            return  # a single optimizer moves everything
        if self._keeps_rate and not isinstance(rate, float):
            raise ValueError(
                "Phases that add blocks need an optimizer whose learning rate is a number; a "
                "schedule would start anew for the blocks that are added. Give each spec its "
                f"learning_rate. Received: learning_rate={rate!r}"
            )
        if self._config.get("global_clipnorm") is not None:
            raise ValueError(
                "`optimizer` cannot clip the norm of all gradients together where variables have "
                "optimizers of their own (phases that add blocks, or layer_decay); use clipnorm. "
                f"Received: global_clipnorm={self._config['global_clipnorm']}"
            )
        if keras.config.dtype_policy().compute_dtype == "float16":
            raise ValueError(
                "Phases that add blocks, and layer_decay, need a loss that is not scaled; use the "
                "policy 'mixed_bfloat16'. Received: 'mixed_float16'"
            )

    def variables(self) -> dict[str, Any]:
        """Return the state of the phase's optimizers, by place: names of head layers may differ."""
        return {
            f"{began} {factor} {i}": variable
            for (began, factor), single in self._groups.items()
            for i, variable in enumerate(single.variables)
        }

    def set_share(self, share: float) -> None:
        """Give each optimizer a share of its full rate."""
        self.set_rate(self._rate * share)

    def set_rate(self, rate: float) -> None:
        """Give each optimizer its factor of a rate."""
        for (_, factor), single in self._groups.items():
            single.learning_rate = rate * factor

    def keep_ratios(self) -> None:
        """Give each optimizer its factor of the full rate, which a callback has set for all."""
        full = [single for (_, factor), single in self._groups.items() if factor == 1.0]
        for (_, factor), single in self._groups.items():
            if full and factor != 1.0:
                single.learning_rate = factor * float(full[0].learning_rate)

    def next(
        self,
        phase: int,
        variables: Sequence[Any],
        learning_rate: float,
        factors: Mapping[str, float],
    ) -> keras.Optimizer:
        """Return the built optimizer of a phase, with the state of variables that continue.

        `factors` gives the factor of the learning rate by path; variables that are not in it have
        the full rate.
        """
        self._rate = self._config["learning_rate"] if self._keeps_rate else learning_rate
        self.began = {v.path: self.began.get(v.path, phase) for v in variables}
        groups: dict[tuple[int, float], list[Any]] = {}
        for variable in variables:
            key = self.began[variable.path], factors.get(variable.path, 1.0)
            groups.setdefault(key, []).append(variable)
        self._groups = {
            key: self._single(key, group, named=len(groups) > 1) for key, group in groups.items()
        }
        by_path = {v.path: self._groups[key] for key, group in groups.items() for v in group}
        states = {key: _state(self._groups[key], group) for key, group in groups.items()}
        self._last = {v.path: states[key] for key, group in groups.items() for v in group}
        first = next(iter(by_path.values()))
        if len(groups) == 1:
            return first
        several = keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(first, by_path),
            loss_scale_factor=self._config.get("loss_scale_factor"),
        )
        several.build(list(variables))
        return several

    def _single(
        self, key: tuple[int, float], group: Sequence[Any], *, named: bool
    ) -> keras.Optimizer:
        """Build the optimizer of variables that began in the same phase and have the same rate."""
        began, factor = key
        # Callbacks log the rate of each by name; a resumed process must use the same names.
        name = self._kind.__name__.lower()
        name += f"_phase{began}_x{factor:.3g}" if named else ""
        rate = self._rate if factor == 1.0 else self._rate * factor
        single = self._kind.from_config({**self._config, "name": name, "learning_rate": rate})
        if single.weight_decay:  # biases and norms do not decay, as is usual
            flat = [v for v in group if len(v.shape) < 2]
            single.exclude_from_weight_decay(flat)
            if len(flat) == len(group):  # on PyTorch, Keras cannot decay an empty list
                single.weight_decay = None
        single.build(group)
        self._carry(group, single)
        return single

    def _carry(self, group: Sequence[Any], single: keras.Optimizer) -> None:
        """Copy the state of variables that continue, and the counters, from the last optimizers."""
        before = [self._last[v.path] for v in group if v.path in self._last]
        if not before:
            return
        known = {key: slot for state in _unique(before) for key, slot in state.items()}
        known |= before[0]  # counters
        for key, slot in _state(single, group).items():
            old = known.get(key)
            if old is not None and slot.name != "learning_rate" and old.shape == slot.shape:
                # A copy: on JAX an averaged weight and its average share one buffer after `fit`,
                # and the next `fit` rejects a buffer that it gets twice.
                slot.assign(keras.ops.copy(old))


def _state(optimizer: keras.Optimizer, group: Sequence[Any]) -> dict[tuple[str, str], Any]:
    """Return the state of an optimizer by attribute, and by path of the variable it is kept for.

    Not by name: Adafactor gives several slots the same name, and Nadam a counter a new one each
    time. An attribute is a variable of its own, or a list with a slot for each variable.
    """
    own = [*map(id, optimizer.variables)]
    found: dict[tuple[str, str], Any] = {}
    for attribute, value in vars(optimizer).items():
        pairs: list[tuple[str, Any]] = [("", value)]
        if isinstance(value, list):
            if len(value) != len(group) or [*map(id, value)] == own:
                continue
            pairs = [(v.path, slot) for v, slot in zip(group, value, strict=True)]
        found |= {(attribute, path): slot for path, slot in pairs if id(slot) in own}
    return found


def _unique(values: Sequence[Any]) -> list[Any]:
    return list({id(value): value for value in values}.values())


def _get(optimizer: Any) -> keras.Optimizer:
    try:
        return keras.optimizers.get(optimizer)
    except ValueError as error:
        raise ValueError(
            "`optimizer` must be the name of a Keras optimizer, such as 'adam' or 'sgd', or an "
            f"instance or config of one. Received: optimizer={optimizer!r}"
        ) from error


def _check_optimizer(optimizer: Any) -> None:
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise ValueError(
            "`optimizer` must be a single Keras optimizer; for rates that decrease toward the "
            "input give the spec a layer_decay. Received: a MultiOptimizer"
        )
    if optimizer is not None and not isinstance(optimizer, (str, Mapping, keras.Optimizer)):
        raise ValueError(
            "`optimizer` must be the name, the config or an instance of a Keras optimizer, or "
            "None; the learning rate belongs into FineTuneSpec(learning_rate=...). "
            f"Received: {optimizer!r}"
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`optimizer` must be the inner one: Keras scales the loss by itself where the policy "
            "is 'mixed_float16'. Received: a LossScaleOptimizer"
        )
