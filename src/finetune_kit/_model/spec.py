"""A spec and a backbone come in, the plan of what trains goes out; applying it sets the flags.

This is the only room that touches `trainable`. It knows blocks and graphs, nothing of images or
optimizers beyond carrying their numbers in the spec.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields
from numbers import Real
from typing import Any

import keras

from finetune_kit._checks import check_choice, check_count, check_kind, is_count
from finetune_kit._model.blocks import LEVELS, Partition, as_block, chosen_blocks, partition
from finetune_kit._model.graph import fresh_inputs, functional, is_layer, is_stochastic, rewire
from finetune_kit._model.plan import FreezePlan

BATCH_NORM = ("frozen", "train")


@dataclass(frozen=True)
class FineTuneSpec:
    """Which trailing blocks of a backbone train, for how long and how fast.

    A frozen value: it compares by content, survives `to_dict` and JSON, and means the same for
    any backbone. `plan` shows what it means for one before anything trains.

    Args:
        trainable_blocks: how many trailing blocks train (0, the default: none of the backbone),
            `"all"`, or the name or names of the blocks that train, contiguous or not ("surgical"
            fine-tuning: Lee et al., ICLR 2023).
        level: what a block is, see `conv_blocks`: `"stage"`, `"block"` (default) or `"layer"`.
        batch_norm: `"frozen"` (default) keeps the BatchNormalization layers of trainable blocks in
            inference mode, their scale and offset included: with few steps the moving statistics
            lag behind the weights (Keras' MobileNetV2 has momentum 0.999), which can wreck the
            model. `"train"` trains them and updates their statistics.
        epochs: passes over the training images, at least 1. Defaults to 1.
        learning_rate: of the optimizer, greater than 0. Defaults to 1e-3.
        layer_decay: what the learning rate is multiplied by from block to block toward the input,
            above 0 and up to 1 (default: the same rate everywhere). The head has the full rate, the
            last block `layer_decay` times that, the one before it `layer_decay ** 2` times
            (as in Bao et al., BEiT, ICLR 2022).

    Raises:
        ValueError: for a value outside what is said above. Whether `trainable_blocks` fits a
            backbone is known, and said, by `plan`.

    Example:
        >>> spec = FineTuneSpec(trainable_blocks=2, epochs=20)
        >>> spec == FineTuneSpec.from_dict(spec.to_dict())
        True
    """

    trainable_blocks: int | str | tuple[str, ...] = 0
    _: KW_ONLY
    level: str = "block"
    batch_norm: str = "frozen"
    epochs: int = 1
    learning_rate: float = 1e-3
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        blocks: Any = self.trainable_blocks
        if is_count(blocks, least=0):
            blocks = int(blocks)
        elif isinstance(blocks, str) and blocks != "all":
            blocks = (blocks,)
        elif isinstance(blocks, (list, tuple)):
            blocks = tuple(blocks)
        good_names = isinstance(blocks, tuple) and all(isinstance(b, str) for b in blocks)
        if not (blocks == "all" or good_names or is_count(blocks, least=0)):
            raise ValueError(
                "`trainable_blocks` must be a whole number from 0 up, 'all', or block names. "
                f"Received: trainable_blocks={self.trainable_blocks!r}"
            )
        check_choice("level", self.level, LEVELS)
        check_choice("batch_norm", self.batch_norm, BATCH_NORM)
        check_count("epochs", self.epochs)
        rate = self.learning_rate
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < math.inf:
            raise ValueError(f"`learning_rate` must be a number above 0. Received: {rate!r}")
        decay = self.layer_decay
        if isinstance(decay, bool) or not isinstance(decay, Real) or not 0 < decay <= 1:
            raise ValueError(f"`layer_decay` must be above 0 and up to 1. Received: {decay!r}")
        object.__setattr__(self, "layer_decay", float(decay))
        object.__setattr__(self, "trainable_blocks", blocks)
        object.__setattr__(self, "epochs", int(self.epochs))
        object.__setattr__(self, "learning_rate", float(rate))

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> FineTuneSpec:
        """The spec that `to_dict` wrote; a ValueError names unknown keys."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ValueError(f"A FineTuneSpec has the keys {sorted(known)}. Received: {unknown}")
        return cls(**config)

    def plan(self, backbone: keras.Model) -> FreezePlan:
        """Tell what this spec means for a backbone; changes nothing.

        Args:
            backbone: any functional model, see `conv_blocks`.

        Returns:
            A `FreezePlan`; print it to see each block, its parameters and whether it trains.

        Raises:
            ValueError: if the backbone has fewer blocks than `trainable_blocks`, or none of a
                given name.
        """
        return self._plan(backbone, partition(backbone, self.level))

    def apply(self, backbone: keras.Model) -> FreezePlan:
        """Set the `trainable` flags of a backbone, in place, and return the plan.

        Whatever was set before is overwritten: applying twice equals once, the last spec wins.
        The layers of a classifier on top (`include_top=True`) train. A model that was already
        compiled must be compiled again, with a new optimizer: Keras reads the flags when it first
        fits and does not notice a change. `fine_tune` sees to that.

        Args:
            backbone: any functional model, see `conv_blocks`.

        Returns:
            The `FreezePlan`.
        """
        parts = partition(backbone, self.level)
        plan = self._plan(backbone, parts)
        backbone.trainable = True
        for part, trains in zip(parts.parts, plan.trainable, strict=True):
            for layer in filter(is_layer, part.operations):
                layer.trainable = trains
                for inner in layer._flatten_layers() if trains else ():
                    if _is_held(inner, self.batch_norm):
                        inner.trainable = False
        return plan

    def build(
        self, backbone: keras.Model, head: keras.Layer, *, preprocessing: keras.Layer | None = None
    ) -> keras.Model:
        """Apply the spec and put a head on the backbone, the frozen part in inference mode.

        The model shares its layers with `backbone` and `head`. Keras switches Dropout and
        stochastic depth on in `fit` even in frozen layers that were called with `training=False`;
        here such layers are left out of the frozen part.

        Args:
            backbone: a functional model without classifier (`include_top=False`).
            head: what turns the backbone's output into predictions, see `classification_head`.
            preprocessing: what raw pixels pass through first, see `preprocessing`; None: nothing.

        Returns:
            A plain, uncompiled `keras.Model`: input, preprocessing, the backbone's layers, head.

        Raises:
            ValueError: if the backbone has a classifier, or its output does not fit the head.
        """
        check_kind("head", head, keras.Layer, "see classification_head")
        graph, parts = functional(backbone), partition(backbone, self.level)
        if parts.top:
            names = ", ".join(op.name for op in parts.top)
            raise ValueError(
                f"`backbone` must have no classifier, because `head` takes its place; build "
                f"{backbone.name!r} with include_top=False. Received a model that ends in: {names}"
            )
        plan = self.apply(backbone)
        frozen = {
            id(operation)
            for part, trains in zip(parts.parts, plan.trainable, strict=True)
            for operation in part.operations
            if not trains
        }

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            if id(operation) in frozen and is_stochastic(operation):
                return _skip(operation, *args)
            return operation(*args, **kwargs)

        inputs = fresh_inputs(graph.input)
        pixels = preprocessing(inputs) if preprocessing else inputs
        features = rewire(graph.input, pixels, graph.output, call)
        try:
            outputs = head(features)
        except ValueError as error:
            raise ValueError(
                f"`head` must take the output of `backbone` ({backbone.name!r}), of shape "
                f"{backbone.output_shape}; for one that is pooled already, classification_head("
                f"..., pooling=None). Received: head={head.name!r}, which says: {error}"
            ) from error
        return keras.Model(inputs, outputs, name=f"{backbone.name}_with_{head.name}")

    def _plan(self, backbone: keras.Model, parts: Partition) -> FreezePlan:
        trainable = chosen_blocks(
            "trainable_blocks", self.trainable_blocks, parts.parts, backbone.name, self.level
        )
        moving = [
            _moving(part.operations, self.batch_norm) if trains else ([], [])
            for part, trains in zip(parts.parts, trainable, strict=True)
        ]
        top = _moving(parts.top, "train")
        count = len(moving)
        factors = [self.layer_decay ** (count - i) for i, (ws, _) in enumerate(moving) for _ in ws]
        return FreezePlan(
            backbone=backbone.name,
            level=self.level,
            batch_norm=self.batch_norm,
            blocks=tuple(map(as_block, parts.parts)),
            trainable=trainable,
            block_trainable_params=tuple(_scalars(weights) for weights, _ in moving),
            top_params=sum(op.count_params() for op in parts.top if is_layer(op)),
            trainable_variables=tuple(v.path for weights, _ in [*moving, top] for v in weights),
            rate_factors=(*factors, *(1.0 for _ in top[0])),
            moving_statistics=tuple(v.path for _, stats in [*moving, top] for v in stats),
        )


def _is_held(layer: keras.Layer, batch_norm: str) -> bool:
    return batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)


def _moving(operations: tuple[Any, ...], batch_norm: str) -> tuple[list[Any], list[Any]]:
    """The weights and the moving statistics that change when these operations train."""
    weights: list[Any] = []
    statistics: list[Any] = []
    for layer in filter(is_layer, operations):
        for inner in layer._flatten_layers():
            if not _is_held(inner, batch_norm):
                # What could train, whatever the flags say at the moment: Keras has no public word.
                weights += inner._trainable_variables
                if isinstance(inner, keras.layers.BatchNormalization):
                    statistics += inner._non_trainable_variables
    return weights, statistics


def _scalars(weights: list[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _skip(layer: keras.Layer, x: Any, *args: Any) -> Any:
    """Leave out a layer that only draws random numbers in training, such as Dropout."""
    if layer.weights or args or layer.compute_output_shape(x.shape) != x.shape:
        raise ValueError(
            f"Layer {layer.name!r} is frozen but draws random numbers in training, and Keras "
            "cannot hold it in inference mode inside `fit`. Build the backbone with its dropout "
            f"set to 0. Received: a {type(layer).__name__} with {len(layer.weights)} weights"
        )
    return x
