"""The learning-rate range test: train while the learning rate rises, and watch the loss."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from scipy.ndimage import gaussian_filter1d

from finetune_kit._checks import check_count, check_kind, is_number
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache, opened
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._processes import check_distribution
from finetune_kit._quiet import quiet
from finetune_kit._train import phases, plots
from finetune_kit._train.arguments import make_setup, unused_options
from finetune_kit._train.optimizer import Optimizers
from finetune_kit._train.progress import Progress
from finetune_kit._train.tuned import FineTuned

_FEWEST = 10  # steps
_DIVERGED, _MEAN = 4.0, 5  # times the lowest loss so far, as in fastai; steps of a mean
_WIDTH = 0.03  # of the smoothing: a share of the steps


@dataclass(frozen=True)
class LearningRateRange:
    """How the loss changes while the learning rate rises. Made by `learning_rate_range`.

    Attributes:
        rates: the learning rate of each step, from low to high.
        losses: the mean loss of each step's images, before the step.
        suggestion: the rate at which the smoothed loss is lowest.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float

    def plot(self) -> Any:
        """Return a `matplotlib.figure.Figure` of the losses. It needs the extra `plots`."""
        return plots.of_rates(self.rates, self.losses, _smooth(self.losses), self.suggestion)

    def __str__(self) -> str:
        return (
            f"{len(self.rates)} learning rates from {self.rates[0]:.2g} to {self.rates[-1]:.2g}, "
            f"the loss from {self.losses[0]:.4f} to {self.losses[-1]:.4f}. Suggested: "
            f"{self.suggestion:.2g}, the rate with the lowest loss."
        )


@quiet()
def learning_rate_range(
    backbone: keras.Model | FineTuned | str | os.PathLike[str],
    head: keras.Layer | None,
    spec: FineTuneSpec,
    train: ImageSet,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    batch_size: int = 32,
    optimizer: str | Mapping[str, Any] | keras.optimizers.Optimizer | None = None,
    loss: str | Callable[..., Any] | keras.losses.Loss | None = None,
    preprocessing: str | keras.layers.Layer | None = "auto",
    features: FeatureCache | str | os.PathLike[str] | bool | None = None,
    seed: int = 0,
    verbose: str | int = "auto",
) -> LearningRateRange:
    """Train for some steps while the learning rate rises, and return the loss of each step.

    This is the range test of Smith ("Cyclical Learning Rates for Training Neural Networks", WACV
    2017, arXiv:1506.01186). The rate rises by the same factor from step to step. The test ends
    early where the mean loss of five steps is above four times its lowest value. It suggests the
    rate with the lowest loss, for a schedule that falls from there. (`minimum` of fastai's
    `lr_find` is a tenth of it.)

    The steps train on the features of the frozen part. `backbone` and `head` are not changed. The
    test shows at which rates the training fails, not how well the model does on other images:
    `recommend` compares rates by those.

    Args:
        backbone: see `fine_tune`.
        head: see `fine_tune`.
        spec: which blocks train. `layer_decay` and `batch_norm` are those of the training; its
            epochs, learning rate and schedule are not used.
        train: the images to train on.
        low: learning rate of the first step. Defaults to 1e-6.
        high: learning rate of the last step. Defaults to 1.0.
        steps: number of steps, at least 10. Defaults to 100.
        batch_size: images in each step. Defaults to 32.
        optimizer: see `fine_tune`; its own learning rate is not used.
        loss: see `fine_tune`.
        preprocessing: see `fine_tune`.
        features: see `fine_tune`. With a folder, the training that follows starts at once.
        seed: of the head's initial weights, dropout and shuffling. Defaults to 0.
        verbose: `"auto"` (default), 0, 1 or 2, as in `fit`.

    Returns:
        A `LearningRateRange`.

    Raises:
        ValueError: if an argument does not fit the others.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 6)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> head = classification_head(2)
        >>> found = learning_rate_range(
        ...     backbone, head, FineTuneSpec(1), images, steps=20, verbose=0)
        >>> found.rates[0], 1e-6 <= found.suggestion < 1.0
        (1e-06, True)
    """
    check_kind("spec", spec, FineTuneSpec, "such as FineTuneSpec(trainable_blocks=2)")
    check_kind("train", train, ImageSet, "see read_image_folder")
    check_count("steps", steps, least=_FEWEST)
    check_count("batch_size", batch_size)
    _check_range(low, high)
    progress = Progress(Optimizers(optimizer))
    _check_rate(progress.optimizers.config.get("learning_rate"))
    rising = _Rising(progress.optimizers, np.geomspace(low, high, steps), len(train), batch_size)
    epochs = math.ceil(steps * batch_size / max(1, len(train)))
    once = replace(spec, epochs=epochs, schedule=None, warmup=0.0, keep="last")
    options = {
        **unused_options(),
        "batch_size": batch_size,
        "optimizer": optimizer,
        "loss": loss,
        "callbacks": [rising],
        "preprocessing": preprocessing,
        "features": features,
        "seed": seed,
        "verbose": verbose,
    }
    setup = make_setup(backbone, head, once, train, None, options)
    check_distribution(batch_size, len(train), 0, mixup=False)
    with opened(setup.cache, None) as kept:
        keras.utils.set_random_seed(seed)
        setup = setup.copied()
        # At a rate that is far too high the loss is not finite; the steps before it count.
        with contextlib.suppress(FloatingPointError):
            phases.train(setup, setup.source(kept), progress, None)
    return _found(rising.rates[: len(rising.losses)].tolist(), rising.losses)


def _found(rates: Sequence[float], losses: Sequence[float]) -> LearningRateRange:
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if not finite:
        raise ValueError(
            "The loss must be finite before the first step; look at the pixels: the model takes "
            f"raw RGB from 0 to 255. Received: a loss of {losses[0]}"
        )
    rates, losses = rates[:finite], losses[:finite]
    lowest = rates[int(np.argmin(_smooth(losses)))]
    return LearningRateRange(tuple(rates), tuple(losses), lowest)


def _smooth(losses: Sequence[float]) -> list[float]:
    """Return the losses without the differences between batches, and without a shift."""
    width = max(1.0, _WIDTH * len(losses))
    smooth: list[float] = gaussian_filter1d(np.array(losses), width, mode="nearest").tolist()
    return smooth


class _Rising(keras.callbacks.Callback):
    """Sets the rate of each step, and notes its loss."""

    def __init__(self, optimizers: Optimizers, rates: Any, images: int, batch_size: int) -> None:
        super().__init__()
        self.rates, self.losses = rates, list[float]()
        self._optimizers, self._images, self._batch_size = optimizers, images, batch_size

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start a new mean."""
        self._total = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate."""
        _ = self.model  # on JAX the rate lives in the training loop; this brings it back
        self._optimizers.set_rate(float(self.rates[len(self.losses)]))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the loss of the step, and stop after the last one or where it diverges."""
        before = batch * self._batch_size
        after = min(before + self._batch_size, self._images)
        total = float((logs or {})["loss"]) * after  # Keras logs the mean over the epoch so far
        self.losses.append((total - self._total) / (after - before))
        self._total = total
        if self._diverged() or len(self.losses) == len(self.rates):
            self.model.stop_training = True

    def _diverged(self) -> bool:
        if not math.isfinite(self.losses[-1]):
            return True
        means = np.convolve(self.losses, np.full(_MEAN, 1 / _MEAN), "valid")
        limit = means.min() + (_DIVERGED - 1) * abs(means.min())
        return len(self.losses) > _MEAN and bool(means[-1] > limit)


def _check_range(low: Any, high: Any) -> None:
    fits = is_number(low) and is_number(high) and 0 < low < high < math.inf
    if not fits:
        raise ValueError(
            "`low` must be above 0 and below `high`, the learning rates of the first and the last "
            f"step. Received: low={low!r}, high={high!r}"
        )


def _check_rate(rate: Any) -> None:
    if rate is not None and not isinstance(rate, float):
        raise ValueError(
            "`optimizer` must have a number as its learning rate, not a schedule, because the "
            f"test sets the rate of each step. Received: learning_rate={rate!r}"
        )
