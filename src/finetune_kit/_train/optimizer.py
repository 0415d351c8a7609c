"""What a user wants for an optimizer comes in, the optimizer of each phase goes out.

Each phase has a new optimizer (one that has seen other variables cannot be used again), into which
the state of what was training already is carried. Variables that began to train in different
phases, or train at different rates, have optimizers of their own inside a `MultiOptimizer`, so
that the step count of each is its own. This room knows neither images nor blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import keras


class Optimizers:
    """The optimizers of a run, phase by phase."""

    def __init__(self, wanted: Any) -> None:
        if isinstance(wanted, keras.optimizers.MultiOptimizer):
            raise ValueError(
                "`optimizer` must be a single Keras optimizer; for rates that fall toward the "
                "input give the spec a layer_decay. Received: a MultiOptimizer"
            )
        if wanted is not None and not isinstance(wanted, (str, Mapping, keras.Optimizer)):
            raise ValueError(
                "`optimizer` must be the name, the config or an instance of a Keras optimizer, or "
                f"None. Received: {wanted!r}"
            )
        if isinstance(wanted, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "`optimizer` must be the one inside: Keras scales the loss by itself where the "
                "policy is 'mixed_float16'. Received: a LossScaleOptimizer"
            )
        given = keras.optimizers.get(wanted or "adam")
        self._kind, self._config = type(given), given.get_config()
        self._keeps_rate = wanted is not None and not isinstance(wanted, str)
        self._last: dict[str, keras.Optimizer] = {}  # by path: who moved it in the last phase
        self._groups: dict[tuple[int, float], keras.Optimizer] = {}
        self.began: dict[str, int] = {}  # by path: in which phase it began to train

    @property
    def config(self) -> dict[str, Any]:
        """What the optimizers are made of, as plain values, without what the spec says."""
        made: dict[str, Any] = keras.optimizers.serialize(self._kind.from_config(self._config))
        left_out = {"name"} if self._keeps_rate else {"name", "learning_rate"}
        values = {name: value for name, value in made["config"].items() if name not in left_out}
        return {"class_name": made["class_name"], **values}

    def check(self, phases: Sequence[Mapping[str, float]]) -> None:
        """Refuse phases that the optimizer cannot go through, before the first one begins.

        A phase is what trains in it besides the head: by path, the part of the learning rate.
        """
        rate = self._config["learning_rate"]
        decays = any(factor != 1.0 for phase in phases for factor in phase.values())
        if decays and self._keeps_rate and not isinstance(rate, float):
            raise ValueError(
                "`layer_decay` below 1 needs an optimizer whose learning rate is a number; a "
                f"schedule is the same for all blocks. Received: learning_rate={rate!r}"
            )
        if not decays and not any(then.keys() - now.keys() for now, then in pairwise(phases)):
            return  # one optimizer moves all that moves
        if self._config.get("global_clipnorm") is not None:
            raise ValueError(
                "`optimizer` cannot clip the norm of all gradients together where variables have "
                "optimizers of their own (phases that add blocks, or layer_decay); use clipnorm. "
                f"Received: global_clipnorm={self._config['global_clipnorm']}"
            )
        if keras.config.dtype_policy().compute_dtype == "float16":
            raise ValueError(
                "Phases that add blocks and layer_decay need a loss that is not scaled; use the "
                "policy 'mixed_bfloat16'. Received: 'mixed_float16'"
            )

    def variables(self) -> dict[str, Any]:
        """The state of the phase's optimizers, by place: names of head layers may differ."""
        return {
            f"{began} {factor} {i}": variable
            for (began, factor), single in self._groups.items()
            for i, variable in enumerate(single.variables)
        }

    def next(
        self,
        phase: int,
        variables: Sequence[Any],
        learning_rate: float,
        factors: Mapping[str, float],
    ) -> keras.Optimizer:
        """The optimizer of a phase, built and with the state of the variables that go on.

        `factors` tells by path what part of the learning rate a variable trains with; 1 where
        nothing is said.
        """
        self.began = {v.path: self.began.get(v.path, phase) for v in variables}
        groups: dict[tuple[int, float], list[Any]] = {}
        for variable in variables:
            key = self.began[variable.path], factors.get(variable.path, 1.0)
            groups.setdefault(key, []).append(variable)
        made: dict[str, keras.Optimizer] = {}
        self._groups = {}
        for (began, factor), group in groups.items():
            # Named, for callbacks that log the rate of each, so that a later process says the same.
            name = self._kind.__name__.lower()
            name += f"_phase{began}_x{factor:.3g}" if len(groups) > 1 else ""
            rate = self._rate(learning_rate, factor)
            single = self._kind.from_config({**self._config, "name": name, "learning_rate": rate})
            self._groups[began, factor] = single
            if single.weight_decay:  # biases and norms are left out, as is the custom
                single.exclude_from_weight_decay([v for v in group if len(v.shape) < 2])
            single.build(group)
            self._carry(group, single)
            made |= {variable.path: single for variable in group}
        self._last = made
        if len(groups) == 1:
            return next(iter(made.values()))
        first = next(iter(made.values()))
        several = keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(first, made),
            loss_scale_factor=self._config.get("loss_scale_factor"),
        )
        several.build(list(variables))
        return several

    def _rate(self, learning_rate: float, factor: float) -> Any:
        rate = self._config["learning_rate"] if self._keeps_rate else learning_rate
        return rate if factor == 1.0 else rate * factor

    def _carry(self, group: Sequence[Any], single: keras.Optimizer) -> None:
        """Moments by the name of their variable; counters from who moved the group before."""
        before = [self._last[v.path] for v in group if v.path in self._last]
        if not before:
            return
        known = {slot.name: slot for optimizer in {*before} for slot in optimizer.variables}
        known |= {slot.name: slot for slot in before[0].variables}
        for slot in single.variables:
            old = known.get(slot.name)
            if old is not None and slot.name != "learning_rate" and old.shape == slot.shape:
                # A copy: on JAX an averaged weight and its average end `fit` as one buffer, and
                # the next `fit` refuses to take one twice.
                slot.assign(keras.ops.copy(old))
