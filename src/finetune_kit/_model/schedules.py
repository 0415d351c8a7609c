"""Schedules: lists of specs for `fine_tune`, one for each phase of training."""

from __future__ import annotations

from typing import Any

from finetune_kit._checks import check_count
from finetune_kit._model.spec import FineTuneSpec


def linear_probe_then_fine_tune(
    trainable_blocks: int | str | tuple[str, ...],
    *,
    probe_epochs: int,
    epochs: int,
    probe_learning_rate: float = 1e-3,
    learning_rate: float = 1e-4,
    **options: Any,
) -> list[FineTuneSpec]:
    """Train the head alone first, then the head and trailing blocks at a lower rate (LP-FT).

    Use it where features of the backbone should not be distorted: a head with random weights sends
    large gradients into the backbone, a trained one does not. Kumar et al. (ICLR 2022,
    arXiv:2202.10054) report 1 % more accuracy in distribution and 10 % more out of distribution
    than with fine-tuning from the start.

    Args:
        trainable_blocks: the blocks that train in the second phase, see `FineTuneSpec`.
        probe_epochs: epochs of the first phase.
        epochs: epochs of the second phase.
        probe_learning_rate: learning rate of the first phase. Defaults to 1e-3.
        learning_rate: learning rate of the second phase. Defaults to 1e-4.
        **options: `level`, `batch_norm`, `layer_decay`, `schedule`, `warmup` and `keep`, see
            `FineTuneSpec`.

    Returns:
        A list of two specs.

    Example:
        >>> [s.trainable_blocks for s in linear_probe_then_fine_tune(4, probe_epochs=5, epochs=10)]
        [0, 4]
    """
    probe = FineTuneSpec(0, epochs=probe_epochs, learning_rate=probe_learning_rate, **options)
    tune = FineTuneSpec(trainable_blocks, epochs=epochs, learning_rate=learning_rate, **options)
    return [probe, tune]


def gradual_unfreezing(
    trainable_blocks: int,
    *,
    epochs_per_block: int = 1,
    epochs: int,
    learning_rate: float = 1e-3,
    **options: Any,
) -> list[FineTuneSpec]:
    """Train the head first, then one more trailing block in each phase.

    The last blocks are the most specific to the task of the pretraining, so they are unfrozen first
    (Howard and Ruder, ACL 2018, arXiv:1801.06146, section 3.3).

    Args:
        trainable_blocks: number of trailing blocks that train in the last phase.
        epochs_per_block: epochs of each phase but the last. Defaults to 1.
        epochs: epochs of the last phase.
        learning_rate: learning rate of all phases. Defaults to 1e-3.
        **options: `level`, `batch_norm`, `layer_decay`, `schedule`, `warmup` and `keep`, see
            `FineTuneSpec`.

    Returns:
        A list of `trainable_blocks` + 1 specs.

    Example:
        >>> [spec.trainable_blocks for spec in gradual_unfreezing(3, epochs=10)]
        [0, 1, 2, 3]
    """
    check_count("trainable_blocks", trainable_blocks)
    counts = [*[epochs_per_block] * trainable_blocks, epochs]
    return [
        FineTuneSpec(blocks, epochs=count, learning_rate=learning_rate, **options)
        for blocks, count in enumerate(counts)
    ]
