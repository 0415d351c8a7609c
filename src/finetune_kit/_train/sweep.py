"""Several specs and one data set come in, a trained model for each goes out, for one pass.

It knows the order in which the runs share what was computed; each of them is `fine_tune`'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

import keras

from finetune_kit._checks import check_folder, check_kind
from finetune_kit._data.images import ImageSet
from finetune_kit._data.split import Split
from finetune_kit._features.frozen import prefix_names
from finetune_kit._features.store import CacheDir
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._train.fine_tune import FineTuned, check_cache_dir, features_folder, fine_tune


class Options(TypedDict, total=False):
    """The keyword arguments of `fine_tune`."""

    batch_size: int
    optimizer: str | keras.optimizers.Optimizer | None
    loss: str | keras.losses.Loss | None
    metrics: Sequence[str | keras.metrics.Metric] | None
    label_smoothing: float
    class_weight: str | Mapping[int | str, float] | None
    callbacks: Sequence[keras.callbacks.Callback]
    preprocessing: str | keras.layers.Layer | None
    seed: int
    augmentation: keras.layers.Layer | None
    views: int
    cache_dir: CacheDir
    cache_dtype: str
    run_dir: str | os.PathLike[str] | None
    verbose: str | int


def sweep(
    backbone: keras.Model,
    head: keras.Layer,
    specs: Sequence[FineTuneSpec],
    images: ImageSet,
    split: Split,
    **options: Unpack[Options],
) -> tuple[FineTuned, ...]:
    """Train one model for each spec, all from the same start: a depth study.

    The runs are independent, and each gives what `fine_tune` alone would give: the same weights of
    backbone and head to begin with, the same shuffles. What they share is one pass over the
    images: the frozen part of the spec that trains most is computed first, the others go on from
    its features.

    Args:
        backbone: see `fine_tune`.
        head: see `fine_tune`.
        specs: one for each run.
        images: see `fine_tune`.
        split: see `fine_tune`.
        **options: the keyword arguments of `fine_tune`, the same for each run; in `run_dir` each
            has a folder of its own, by its number from 1.

    Returns:
        A `FineTuned` for each spec, in their order.

    Raises:
        ValueError: if there is no spec, or an argument does not fit; see `fine_tune`.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 6)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> head = keras.Sequential([
        ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, "softmax")])
        >>> split = Split(np.arange(8), np.arange(8, 10), np.arange(10, 12))
        >>> specs = [FineTuneSpec(blocks) for blocks in (0, 1)]
        >>> runs = sweep(backbone, head, specs, images, split, verbose=0)
        >>> [len(run.plan.trainable_variables) for run in runs]
        [0, 1]
    """
    if not isinstance(specs, Sequence) or not specs:
        raise ValueError(f"`specs` must be one or more FineTuneSpec. Received: {specs!r}")
    for i, spec in enumerate(specs):
        check_kind(f"specs[{i}]", spec, FineTuneSpec, "such as FineTuneSpec(trainable_blocks=2)")
    check_kind("backbone", backbone, keras.Model, "such as keras.applications.MobileNetV2(...)")
    check_cache_dir(options.get("cache_dir"))
    # The one that trains most comes first: the others go on from its features.
    order = sorted(range(len(specs)), key=lambda i: len(prefix_names(specs[i].plan(backbone))))
    runs: dict[int, FineTuned] = {}
    run_dir = options.get("run_dir")
    if run_dir is not None:
        check_folder("run_dir", run_dir)
    with features_folder(options.get("cache_dir"), run_dir) as folder:
        options["cache_dir"] = folder or False
        for i in order:
            if run_dir is not None:
                options["run_dir"] = os.path.join(run_dir, str(i + 1))
            if options.get("verbose", "auto"):
                blocks = specs[i].trainable_blocks
                print(f"Spec {i + 1} of {len(specs)}: trainable_blocks={blocks!r}", flush=True)
            runs[i] = fine_tune(backbone, head, specs[i], images, split, **options)
    return tuple(runs[i] for i in range(len(specs)))
