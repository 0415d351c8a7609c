"""A fine-tuning phase: which trailing blocks of a backbone train, for how long and how fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from typing import Any

import keras

from finetune_kit._checks import (
    check_choice,
    check_count,
    check_kind,
    is_count,
    is_number,
    positive,
)
from finetune_kit._hints import hints
from finetune_kit._model.blocks import LEVELS, Partition, as_block, partition
from finetune_kit._model.choosing import chosen_blocks
from finetune_kit._model.flattening import flattened
from finetune_kit._model.graph import (
    distinct_paths,
    functional,
    give_distinct_names,
    is_layer,
    layers_within,
    rewire,
)
from finetune_kit._model.head import check_not_swapped, misfit
from finetune_kit._model.plan import FreezePlan, check_no_classifier
from finetune_kit._model.state import check_frozen, is_stochastic, set_trainable, updated_variables
from finetune_kit._model.surgery import rgb_inputs
from finetune_kit._text import plural

BATCH_NORM = ("frozen", "train")
KEEP = ("best", "last")
SCHEDULES = (None, "cosine", "one_cycle")


@hints(
    lr="FineTuneSpec(learning_rate=...)",
    **{
        name: f"fine_tune({name}=...)"
        for name in (
            "augmentation",
            "batch_size",
            "callbacks",
            "loss",
            "metrics",
            "optimizer",
            "seed",
        )
    },
)
@dataclass(frozen=True)
class FineTuneSpec:
    """Which trailing blocks of a backbone train, for how long and how fast.

    A spec is a frozen value. It compares by content, survives `to_dict` and JSON, and means the
    same for any backbone. Use `plan` to see what it means for one backbone before training.

    Args:
        trainable_blocks: number of trailing blocks that train (default: 0, the head alone),
            `"all"`, or the name or names of the blocks that train. Named blocks need not be
            contiguous ("surgical" fine-tuning: Lee et al., ICLR 2023).
        level: granularity of the blocks, see `conv_blocks`: `"stage"`, `"block"` (default) or
            `"layer"`.
        batch_norm: `"frozen"` (default) keeps the BatchNormalization layers of trainable blocks in
            inference mode, with fixed scale and offset: within few steps the moving statistics
            cannot follow the weights (the momentum in Keras' MobileNetV2 is 0.999), which can ruin
            the model. `"train"` trains these layers and updates their statistics.
        epochs: passes over the training images, at least 1. Defaults to 1.
        learning_rate: learning rate of the optimizer, above 0. Defaults to 1e-3.
        layer_decay: factor on the learning rate from each block to the one before it, above 0 and
            up to 1 (default: 1, the same rate everywhere). The head has the full rate, the last
            block `layer_decay` times that rate, the block before it `layer_decay ** 2` times (as in
            BEiT: Bao et al., ICLR 2022).
        schedule: how the learning rate changes from step to step: None (default) keeps it constant,
            `"cosine"` lowers it to 0 along half a cosine (Loshchilov and Hutter, ICLR 2017), over
            the steps of the phase that follow the warm-up. `"one_cycle"` raises it along a cosine
            from a 25th in the first quarter of the steps, and then does the same (Smith and Topin,
            arXiv:1708.07120, in the form of fastai; the momentum stays the same).
        warmup: share of the steps of the phase, from 0 (default) to below 1, in which the learning
            rate rises linearly to its full value (Goyal et al., arXiv:1706.02677). It must be 0
            with `"one_cycle"`, which has a warm-up of its own.
        keep: `"best"` (default) ends the phase with the weights of the epoch with the lowest
            validation loss, where there are validation images. That may be an epoch of the phases
            before it, back to the last one with `"last"`, which ends with those of its last epoch.

    Raises:
        ValueError: if a value is outside its range. Whether `trainable_blocks` fits a backbone is
            checked by `plan`.
        TypeError: if there is no such argument.

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
    schedule: str | None = None
    warmup: float = 0.0
    keep: str = "best"

    def __post_init__(self) -> None:
        check_choice("level", self.level, LEVELS)
        check_choice("batch_norm", self.batch_norm, BATCH_NORM)
        check_choice("keep", self.keep, KEEP)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_count("epochs", self.epochs)
        if not is_number(self.warmup) or not 0 <= self.warmup < 1:
            raise ValueError(
                "`warmup` must be a share of the steps, from 0 to below 1. "
                f"Received: warmup={self.warmup!r}"
            )
        if self.warmup and self.schedule == "one_cycle":
            raise ValueError(
                "`warmup` must be 0 with schedule='one_cycle', which has a warm-up of its own. "
                f"Received: warmup={self.warmup!r}"
            )
        values = {
            "trainable_blocks": _blocks(self.trainable_blocks),
            "epochs": int(self.epochs),
            "learning_rate": positive("learning_rate", self.learning_rate, math.inf),
            "layer_decay": positive("layer_decay", self.layer_decay, 1.0),
            "warmup": float(self.warmup),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values, for JSON or YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> FineTuneSpec:
        """Return the spec of which `config` holds the arguments, as returned by `to_dict`."""
        return cls(**config)

    def plan(self, backbone: keras.Model) -> FreezePlan:
        """Return what this spec means for a backbone, without changing it.

        Args:
            backbone: any functional model, see `conv_blocks`.

        Returns:
            A `FreezePlan`. Print it to see all blocks, their parameters and which of them train.

        Raises:
            ValueError: if the backbone has fewer blocks than `trainable_blocks`, has no block of a
                given name.
        """
        return self._plan(backbone, partition(backbone, self.level))

    def apply(self, backbone: keras.Model) -> FreezePlan:
        """Set the `trainable` flags of a backbone in place and return the plan.

        All flags that were set before are overwritten: applying a spec twice equals applying it
        once, and the last spec wins. The layers of a classifier on top (`include_top=True`) train.
        Compile the model after this call, with a new optimizer, even if it was compiled before:
        Keras reads the flags when training begins and does not notice later changes. `fine_tune`
        does all this.

        Args:
            backbone: any functional model, see `conv_blocks`.

        Returns:
            The `FreezePlan`.
        """
        parts = partition(backbone, self.level)
        plan = self._plan(backbone, parts)
        for layer in layers_within(backbone):
            layer.trainable = True
        for part, trains in zip(parts.parts, plan.trainable, strict=True):
            for layer in filter(is_layer, part.operations):
                set_trainable(layer, trains, self.batch_norm)
        for layer in filter(is_layer, parts.top):
            set_trainable(layer, True, "train")
        return plan

    def build(
        self, backbone: keras.Model, head: keras.Layer, *, preprocessing: keras.Layer | None = None
    ) -> keras.Model:
        """Apply the spec and build one model: preprocessing, backbone, head.

        The model shares its layers with `backbone` and `head`. Its frozen part runs in inference
        mode. Frozen layers that only add randomness (Dropout, stochastic depth) are left out,
        because Keras would activate them in `fit` even when they are called with `training=False`.
        Where the backbone takes images with one channel, the model makes them from RGB.

        Args:
            backbone: a functional model without classifier (`include_top=False`).
            head: a layer or model that turns the features into predictions, see
                `classification_head`.
            preprocessing: a layer for the raw pixels, see `preprocessing`, or for gray ones
                if the backbone takes those. Defaults to none.

        Returns:
            A plain, uncompiled `keras.Model`.

        Raises:
            ValueError: if the backbone has a classifier, or the head does not fit the backbone.
        """
        if preprocessing is not None and not isinstance(preprocessing, keras.Layer):
            raise ValueError(
                "`preprocessing` must be a Keras layer, such as preprocessing(backbone), or None. "
                f"Received: {preprocessing!r}"
            )
        check_kind("head", head, keras.Layer, "see classification_head")
        check_not_swapped(backbone, head)
        graph, parts = flattened(backbone), partition(backbone, self.level)
        check_no_classifier(self._plan(backbone, parts))
        plan = self.apply(backbone)
        frozen = frozenset(
            id(operation)
            for part, trains in zip(parts.parts, plan.trainable, strict=True)
            for operation in part.operations
            if not trains
        )
        inputs, pixels = rgb_inputs(graph.input)
        pixels = preprocessing(pixels) if preprocessing else pixels
        call = partial(_call_without_randomness, frozen)
        features = rewire(graph.input, pixels, graph.output, call)
        outputs = _predictions(head, features, graph)
        name = f"{backbone.name}_with_{head.name}"
        give_distinct_names([*graph.operations, *filter(None, [preprocessing]), head])
        return functional(inputs, outputs, name)

    def _plan(self, backbone: keras.Model, parts: Partition) -> FreezePlan:
        paths = distinct_paths(backbone.weights)
        trainable = chosen_blocks(
            "trainable_blocks", self.trainable_blocks, parts.parts, backbone.name, self.level
        )
        updated = [
            updated_variables(part.operations, self.batch_norm) if trains else ([], [])
            for part, trains in zip(parts.parts, trainable, strict=True)
        ]
        top = updated_variables(parts.top, "train")
        moving = frozenset(id(v) for pair in [*updated, top] for vs in pair for v in vs)
        for i, part in enumerate(parts.parts):
            if not trainable[i]:
                remedy = "Train its block too" if any(trainable[:i]) else None
                check_frozen(part.operations, moving, remedy)
        count = len(updated)
        factors = [self.layer_decay ** (count - i) for i, (ws, _) in enumerate(updated) for _ in ws]
        return FreezePlan(
            backbone=backbone.name,
            level=self.level,
            batch_norm=self.batch_norm,
            blocks=tuple(map(as_block, parts.parts)),
            trainable=trainable,
            block_trainable_params=tuple(_count_values(weights) for weights, _ in updated),
            top_params=sum(op.count_params() for op in parts.top if is_layer(op)),
            trainable_variables=tuple(
                paths[id(v)] for weights, _ in [*updated, top] for v in weights
            ),
            rate_factors=(*factors, *(1.0 for _ in top[0])),
            moving_statistics=tuple(paths[id(v)] for _, stats in [*updated, top] for v in stats),
        )


def check_prefix_in_fit(backbone: keras.Model, plan: FreezePlan) -> None:
    """Check that the frozen prefix may run in `fit`, where no features of it are kept."""
    prefix = {name for block in plan.blocks[: plan.prefix_blocks] for name in block.layers}
    operations = [op for op in flattened(backbone).operations if op.name in prefix]
    check_frozen(operations, frozenset(), "Keep features: pass no features=False")


def _blocks(trainable_blocks: Any) -> int | str | tuple[str, ...]:
    """Return a number, `"all"` or a tuple of names."""
    blocks = trainable_blocks
    if is_count(blocks, least=0):
        return int(blocks)
    if isinstance(blocks, str):
        return blocks if blocks == "all" else (blocks,)
    if isinstance(blocks, (list, tuple)) and all(isinstance(name, str) for name in blocks):
        return tuple(blocks)
    raise ValueError(
        "`trainable_blocks` must be a whole number from 0 up, 'all', or block names. "
        f"Received: trainable_blocks={blocks!r}"
    )


def _count_values(weights: list[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _call_without_randomness(
    frozen: frozenset[int], operation: Any, *args: Any, **kwargs: Any
) -> Any:
    """Call an operation, or return its input if it is frozen and only adds randomness."""
    if id(operation) not in frozen or not is_stochastic(operation):
        return operation(*args, **kwargs)
    x, *others = args
    if operation.weights or others or operation.compute_output_shape(x.shape) != x.shape:
        raise ValueError(
            f"The backbone must be built with a dropout rate of 0: its layer {operation.name!r} is "
            "frozen but uses random numbers in training, and Keras cannot keep it in inference "
            f"mode in `fit`. Received: a {type(operation).__name__} with "
            f"{plural(len(operation.weights), 'weight')}"
        )
    return x


def _predictions(head: keras.Layer, features: Any, backbone: keras.Model) -> Any:
    try:
        return head(features)
    except ValueError as error:
        raise misfit(head, backbone, error) from error
