"""A model and images come in, a report of how well it tells them apart goes out.

Here the model runs; what is counted and how it is shown is the report's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from finetune_kit._checks import check_count, check_indices, check_kind, check_outputs, image_size
from finetune_kit._data.batches import Batches
from finetune_kit._data.duplicates import Duplicates
from finetune_kit._data.images import ImageSet
from finetune_kit._data.split import PARTS, Split
from finetune_kit._model.digest import described
from finetune_kit._quiet import quiet
from finetune_kit._report.attribution import grad_cam, overlay
from finetune_kit._report.report import Example, Report, cells
from finetune_kit._train.tuned import FineTuned

_SHOWN = 240  # images in a report at most: about 2 MB of page
_SEEN = (  # parts of the split that the test should share nothing with
    ("train", "trained on", "were trained on: the figures are too good."),
    (
        "validation",
        "validated on",
        "are from the validation part: where it chose the epoch or the settings, the figures are "
        "too good.",
    ),
)
_log = logging.getLogger("finetune_kit")


@quiet()
def evaluate(
    model: keras.Model | FineTuned,
    images: ImageSet,
    indices: ArrayLike | None = None,
    *,
    batch_size: int = 32,
    duplicates: Duplicates | None = None,
    examples: int = 12,
    heat_maps: int = 0,
    draws: int = 1000,
    seed: int = 0,
    verbose: str | int = 0,
) -> Report:
    """Report how well a model tells the classes of images that it was not trained on.

    Args:
        model: what `fine_tune` returned, or its `model`; or any model that takes raw RGB pixels
            from 0 to 255 and gives probabilities. Of a `FineTuned` the report also tells what
            trained and how, and whether any of these images was trained on.
        images: where the images are.
        indices: which of them, such as `split.test`. Defaults to all.
        batch_size: images a step. Defaults to 32.
        duplicates: of `images`, see `find_duplicates`; the report tells how many of these images
            have a near duplicate among those that trained. Defaults to none.
        examples: how many images the report's page shows of each cell of the confusion matrix at
            most, the most confident. Defaults to 12.
        heat_maps: for how many of these (mistakes first) it shows where the model looked, see
            `grad_cam`; needs the extra `plots`. Defaults to 0: none.
        draws: of the bootstrap that makes the intervals. Defaults to 1000.
        seed: of the bootstrap. Defaults to 0.
        verbose: `"auto"`, 0 (default), 1 or 2, as in `predict`.

    Returns:
        A `Report`. If the model was trained in this process, its learning curves are in it.

    Raises:
        ValueError: if the model's outputs do not match the classes, are no probabilities, or there
            is no image.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 6)
        >>> model = keras.Sequential([
        ...     keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(2, activation="softmax")])
        >>> evaluate(model, images, [0, 1, 2]).confusion_matrix.sum()
        np.int64(3)
    """
    tuned = model if isinstance(model, FineTuned) else None
    net: keras.Model = model.model if isinstance(model, FineTuned) else model
    _check_kinds(net, tuned, images, indices)
    chosen = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_indices("indices", chosen, len(images))
    if not len(chosen):
        raise ValueError("`indices` must name at least one image. Received: none")
    twice = len(chosen) - len(np.unique(chosen))
    if twice:
        raise ValueError(
            "`indices` must name no image twice, or intervals come out too narrow. "
            f"Received: {len(chosen)} indices, {twice} of them again"
        )
    check_count("examples", examples, least=0)
    check_count("heat_maps", heat_maps, least=0)
    many = images.labels.ndim == 2
    check_outputs("model", net.output_shape, images.class_names, multi_label=many)
    size = image_size("model", net)
    labels = images.labels[chosen]
    batches = Batches(
        lambda indices, epoch: images.load(indices, size),
        lambda indices: images.labels[indices],
        chosen,
        batch_size,
    )
    with closing(batches):
        scores = np.asarray(net.predict(batches, verbose=verbose), np.float64)
    digests = images.take(chosen).digests()
    history = getattr(getattr(net, "history", None), "history", {})
    report = Report.from_scores(
        labels,
        scores,
        images.class_names,
        samples=digests,
        draws=draws,
        seed=seed,
        history={name: [float(v) for v in values] for name, values in history.items()},
        plans=() if tuned is None else tuned.plans,
        about=_about(net, tuned, images, chosen, digests, duplicates),
        manifest=images.manifest,
    )
    shown = _shown(report, examples)
    return report.showing(_examples(net, images, chosen, size, report, shown, heat_maps))


def _check_kinds(net: Any, tuned: FineTuned | None, images: Any, indices: Any) -> None:
    if not isinstance(net, keras.Model):
        raise ValueError(
            "`model` must be what fine_tune returned, or a keras.Model (keras.saving.load_model "
            f"reads one). Received: a {type(net).__name__}"
        )
    check_kind("images", images, ImageSet, "see read_image_folder or ImageSet.from_arrays")
    if isinstance(indices, Split):
        raise ValueError(
            "`indices` must be a part of a split, such as split.test. Received: a Split"
        )
    if tuned is not None and tuned.images.class_names != images.class_names:
        raise ValueError(
            "`images` must have the classes that the model was trained on, in their order: "
            f"{list(tuned.images.class_names)}. Received: {list(images.class_names)}"
        )


def _shown(report: Report, most: int) -> list[tuple[int, tuple[int, int], float]]:
    """For each cell of the confusion matrix its most confident images: row, cell, confidence."""
    by_cell: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for row, cell, sure in cells(report):
        by_cell.setdefault(cell, []).append((-sure, row))
    most = min(most, _SHOWN // len(by_cell) or 1)
    return [
        (row, cell, -sure) for cell, found in by_cell.items() for sure, row in sorted(found)[:most]
    ]


def _examples(
    model: keras.Model,
    images: ImageSet,
    chosen: NDArray[np.int64],
    size: tuple[int, int],
    report: Report,
    shown: list[tuple[int, tuple[int, int], float]],
    heat_maps: int,
) -> tuple[Example, ...]:
    """The images themselves, and where the model looked: at mistakes, then at hits."""
    if not shown:
        return ()
    rows = [row for row, _, _ in shown]
    pixels = images.load(chosen[rows], size)
    names = _short(images.paths)
    bare = [
        Example(names[chosen[row]], cell, sure, _jpeg(x))
        for (row, cell, sure), x in zip(shown, pixels, strict=True)
    ]
    wrong = [i for i, example in enumerate(bare) if report.is_mistake(example)]
    right = [i for i in range(len(bare)) if i not in set(wrong)]
    wrong.sort(key=lambda i: -bare[i].probability)
    right.sort(key=lambda i: (sum(bare[j].cell == bare[i].cell for j in range(i)), i))
    looked = (wrong[: max(heat_maps * 2 // 3, heat_maps - len(right))] + right)[:heat_maps]
    maps = _maps(model, pixels[looked], [bare[i].cell[0 if report.many else 1] for i in looked])
    warm = dict(zip(looked, maps, strict=False))
    return tuple(
        Example(e.name, e.cell, e.probability, e.picture, warm.get(i)) for i, e in enumerate(bare)
    )


def _short(paths: Sequence[str]) -> list[str]:
    """Names that tell nothing of the machine: without the folder that all of them share."""
    if not any(os.path.isabs(path) for path in paths):
        return list(paths)
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common).replace(os.sep, "/") for path in paths]


def _maps(model: keras.Model, pixels: NDArray[np.uint8], targets: list[int]) -> list[bytes]:
    if not targets:
        return []
    if importlib.util.find_spec("matplotlib") is None:
        _log.warning("no heat maps, because matplotlib is not installed")
        return []
    try:
        maps = grad_cam(model, pixels, targets)
    except ValueError as error:  # a model without a feature map has nothing to show
        _log.warning("no heat maps: %s", error)
        return []
    return [_jpeg(x) for x in overlay(pixels, maps)]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.thumbnail((224, 224))
    picture.save(buffer, "jpeg", quality=80)
    return buffer.getvalue()


def _about(
    model: keras.Model,
    tuned: FineTuned | None,
    images: ImageSet,
    chosen: NDArray[np.int64],
    digests: list[str],
    duplicates: Duplicates | None,
) -> dict[str, Any]:
    """Where the figures come from, as plain values."""
    data: dict[str, Any] = {
        "images of this report": len(chosen),
        "SHA-256 of these images": hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        "manifest": images.manifest or "none",
    }
    about: dict[str, Any] = {
        "model": {
            "name": model.name,
            "parameters": model.count_params(),
            "SHA-256 of graph and weights": described(model),
        },
        "data": data,
        "environment": _environment(),
    }
    cautions = []
    if tuned is not None:
        split = tuned.split
        data["split"] = {part: len(getattr(split, part)) for part in PARTS}
        about["training"] = {
            **tuned.settings,
            "seconds": {name: round(value, 1) for name, value in tuned.timings.items()},
        }
        for part, told, caution in _SEEN:
            known = set(getattr(tuned, part).digests())
            seen = sum(digest in known for digest in digests)
            data[f"of these images {told}"] = seen
            if seen:
                cautions.append(f"{seen} of these images {caution}")
        if duplicates is not None and tuned.images is images:
            cautions += _near(duplicates, split.train, chosen, data)
    if duplicates is not None:
        data["near duplicates"] = f"{len(duplicates.clusters)} clusters among all images"
    return {**about, "cautions": cautions}


def _near(
    duplicates: Duplicates,
    train: NDArray[np.int64],
    chosen: NDArray[np.int64],
    data: dict[str, Any],
) -> list[str]:
    trained = set(duplicates.groups[train].tolist())
    near = sum(group in trained for group in duplicates.groups[chosen].tolist())
    data["of these images near to one trained on"] = near
    if not near:
        return []
    return [f"{near} of these images are in one group with images that were trained on."]


def _environment() -> dict[str, str]:
    backend = keras.backend.backend()
    return {
        "finetune-kit": version("finetune-kit"),
        "keras": keras.__version__,
        backend: getattr(sys.modules.get(backend), "__version__", "?"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
