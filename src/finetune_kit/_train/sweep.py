"""Train one model for each of several specs: `sweep`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras

from finetune_kit._checks import check_folder, check_kind
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache, as_cache, opened
from finetune_kit._features.frozen import prefix_names
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._train.fine_tune import fine_tune
from finetune_kit._train.start import starting_point
from finetune_kit._train.tuned import FineTuned


def sweep(
    backbone: keras.Model | FineTuned | str | os.PathLike[str],
    head: keras.Layer | None,
    specs: Sequence[FineTuneSpec],
    train: ImageSet,
    validation: ImageSet | None = None,
    **options: Any,
) -> tuple[FineTuned, ...]:
    """Train one model for each spec, all from the same start: a depth study.

    The runs are independent, and each gives what `fine_tune` alone would give: they have the same
    initial weights of backbone and head, and the same shuffles. They share one pass over the
    images: the frozen part of the spec that trains most is computed first, and the others start
    from its features.

    Args:
        backbone: see `fine_tune`.
        head: see `fine_tune`.
        specs: one for each run.
        train: see `fine_tune`.
        validation: see `fine_tune`.
        **options: keyword arguments of `fine_tune`, the same for each run. In `run_dir` each run
            has a folder of its own, named by its number from 1.

    Returns:
        A `FineTuned` for each spec, in their order.

    Raises:
        ValueError: if there is no spec, or an argument does not fit; see `fine_tune`.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 6)
        >>> train, validation, test = images.split((0.5, 0.25, 0.25), seed=0)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> specs = [FineTuneSpec(blocks) for blocks in (0, 1)]
        >>> runs = sweep(backbone, classification_head(2), specs, train, validation, verbose=0)
        >>> [len(run.plan.trainable_variables) for run in runs]
        [0, 1]
    """
    if not isinstance(specs, Sequence) or not specs:
        raise ValueError(f"`specs` must be a list of one or more FineTuneSpec. Received: {specs!r}")
    for i, spec in enumerate(specs):
        check_kind(f"specs[{i}]", spec, FineTuneSpec, "such as FineTuneSpec(trainable_blocks=2)")
    start = starting_point(backbone, head, options.get("preprocessing", "auto"))
    check_kind(
        "backbone", start.backbone, keras.Model, "such as keras.applications.MobileNetV2(...)"
    )
    cache, run_dir = as_cache(options.get("features")), options.get("run_dir")
    if run_dir is not None:
        check_folder("run_dir", run_dir)
    # The spec that trains most comes first: the others start from its features.
    order = sorted(
        range(len(specs)), key=lambda i: len(prefix_names(specs[i].plan(start.backbone)))
    )
    runs: dict[int, FineTuned] = {}
    with opened(cache, run_dir) as folder:
        shared = (
            False if cache is None or folder is None else FeatureCache(folder, dtype=cache.dtype)
        )
        for i in order:
            if options.get("verbose", "auto"):
                blocks = specs[i].trainable_blocks
                print(f"Spec {i + 1} of {len(specs)}: trainable_blocks={blocks!r}", flush=True)
            own: dict[str, Any] = {"features": shared}
            if run_dir is not None:
                own["run_dir"] = os.path.join(run_dir, str(i + 1))
            runs[i] = fine_tune(
                start.trained or backbone, head, specs[i], train, validation, **{**options, **own}
            )
    return tuple(runs[i] for i in range(len(specs)))
