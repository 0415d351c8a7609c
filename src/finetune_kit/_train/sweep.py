"""Train one model for each of several specs: `sweep`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from finetune_kit._checks import check_folder, check_kind
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache, as_cache, opened
from finetune_kit._features.frozen import prefix_names
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._train.features import compute_features
from finetune_kit._train.fine_tune import fine_tune
from finetune_kit._train.setup import joined_sets
from finetune_kit._train.start import starting_point
from finetune_kit._train.tuned import FineTuned
from finetune_kit._train.workers import check_executor, run_all


def sweep(
    backbone: keras.Model | FineTuned | str | os.PathLike[str],
    head: keras.Layer | None,
    specs: Sequence[FineTuneSpec],
    train: ImageSet,
    validation: ImageSet | None = None,
    *,
    executor: Any = None,
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
        executor: runs the trainings, several at a time: a
            `ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))`, Dask's
            `client.get_executor()`, a `finetune_kit.ray.Executor()`, or another
            `concurrent.futures.Executor` whose processes have the same packages and files. The
            frozen part is computed here first; on other machines, pass a folder as `features` that
            all of them reach. The results are those without an executor, bit for bit on equal
            processors. Defaults to None: one training after another.
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
    if executor is not None:
        check_executor(executor)
    # The spec that trains most comes first: the others start from its features.
    order = sorted(
        range(len(specs)), key=lambda i: len(prefix_names(specs[i].plan(start.backbone)))
    )
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    with opened(cache, run_dir) as kept:
        shared = False if kept is None else kept
        for i in order:
            own: dict[str, Any] = {"features": shared}
            if run_dir is not None:
                own["run_dir"] = os.path.join(run_dir, str(i + 1))
            name = f"Spec {i + 1} of {len(specs)}: trainable_blocks={specs[i].trainable_blocks!r}"
            model = backbone if executor else start.trained or backbone
            args = (model, head, specs[i], train, validation)
            calls.append((name, args, {**options, **own}))
        if executor is None:
            runs = [_run(*call) for call in calls]
        else:
            if isinstance(shared, FeatureCache) and options.get("augmentation") is None:
                _compute_features(backbone, head, specs, train, validation, shared, options)
            runs = run_all(executor, calls, run_dir)
    return tuple(run for _, run in sorted(zip(order, runs, strict=True), key=lambda pair: pair[0]))


def _run(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> FineTuned:
    if options.get("verbose", "auto"):
        print(name, flush=True)
    return fine_tune(*args, **options)


def _compute_features(
    backbone: Any,
    head: Any,
    specs: Sequence[FineTuneSpec],
    train: ImageSet,
    validation: ImageSet | None,
    features: FeatureCache,
    options: Mapping[str, Any],
) -> None:
    """Compute the frozen parts once, before several processes need them."""
    names = ("preprocessing", "batch_size", "verbose")
    given = {name: options[name] for name in names if name in options}
    images = joined_sets(train, validation)
    compute_features(backbone, specs, images, features, head=head, **given)
