"""Heat maps of the image regions that matter for a prediction: Grad-CAM and occlusion."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import product
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from finetune_kit._checks import check_count
from finetune_kit._model.blocks import Part, partition
from finetune_kit._model.choosing import chosen_blocks
from finetune_kit._model.flattening import flattened
from finetune_kit._model.graph import made_by
from finetune_kit._model.surgery import cut_after
from finetune_kit._report.gradient import Probe
from finetune_kit._text import listed, plural
from finetune_kit._train.tuned import FineTuned


def grad_cam(
    model: keras.Model | FineTuned,
    pixels: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    at: str | None = None,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Compute Grad-CAM maps: the regions of each image that raised the score of a class.

    Use it to check whether a model relies on the regions that a person would look at. A map is as
    coarse as the feature map that it comes from (7 x 7 cells for most backbones at 224 x 224), and
    it shows where the model looks, not why. The score is taken before the final softmax or sigmoid.
    Method: Selvaraju et al., ICCV 2017.

    Args:
        model: the result of `fine_tune`, or a functional model. It is not changed.
        pixels: images as the model takes them, `(n, height, width, channels)`; for a model that
            `fine_tune` returned, RGB from 0 to 255.
        targets: index of the class to explain, one for all images or one for each image. For a
            model with a single sigmoid: 1, or 0 for the other class; for a multi-label model: the
            index of a label. Defaults to the predicted class.
        at: name of the block whose output is used, see `conv_blocks`. Defaults to the last block
            whose output is a feature map of more than one cell.
        batch_size: images per step. Defaults to 32.

    Returns:
        float32 `(n, height, width)`, each map from 0 to 1. A map is 0 everywhere if no region
        raised the score; a warning says how many are.

    Raises:
        ValueError: if the model has no feature map, or pixels or targets do not fit the model.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3, strides=4),
        ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax")])
        >>> grad_cam(model, np.zeros((5, 32, 32, 3)), targets=1).shape
        (5, 32, 32)
    """
    check_count("batch_size", batch_size)
    graph = _graph_of(model.model if isinstance(model, FineTuned) else model)
    images = _images(pixels, graph)
    wanted = _one_hot(targets, len(images), _classes(graph.output_shape))
    prefix, suffix, place = _cut_after_block(graph, at)
    maps = np.zeros(images.shape[:3], np.float32)
    if not len(images):
        return maps
    batch_size = min(batch_size, len(images))
    probe = Probe(suffix, place, batch_size, predicted=targets is None)
    for rows in _batches(len(images), batch_size):
        batch = images[rows].astype(np.float32)
        features = prefix.predict_on_batch(
            keras.tree.map_structure(lambda _, batch=batch: batch, prefix.input)
        )
        weights = probe.gradient(features, wanted[rows])
        feature_map = np.asarray(keras.tree.flatten(features)[place], np.float32)
        heat = np.maximum(np.einsum("nhwc,nc->nhw", feature_map, weights), 0)
        maps[rows] = [_enlarged(one, images.shape[1:3]) for one in heat]
    reason = "no region raised the score of the class. `occlusion` or another block may show more"
    _warn_of_empty(maps, "Grad-CAM map", reason)
    return scaled(maps)


def occlusion(
    model: Any,
    pixels: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    window: int = 32,
    stride: int = 16,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Compute occlusion maps: how much covering a region lowers the probability of a class.

    Use it to check a `grad_cam` map, or for a model that is not functional: it needs only
    `predict`. It predicts once for each position of the window (169 for 224 x 224 pixels).
    Method: Zeiler and Fergus, ECCV 2014.

    Args:
        model: the result of `fine_tune`, or any object with Keras' `predict` that returns
            probabilities `(n, classes)`.
        pixels: images as the model takes them, `(n, height, width, channels)`.
        targets: see `grad_cam`.
        window: side of the square, in pixels, that is covered with the image's mean color. Defaults
            to 32.
        stride: pixels from one position to the next, at most `window`. Defaults to 16.
        batch_size: images per step. Defaults to 32.

    Returns:
        float32 `(n, height, width)`: for each pixel, the mean decrease of the probability over the
        windows that covered it. It is negative where covering raised the probability.

    Raises:
        ValueError: if the window does not fit the images, or targets do not fit the model.

    Example:
        >>> class Brightness:
        ...     def predict(self, x, **options):
        ...         return x.mean((1, 2, 3))[:, None] / 255
        >>> image = np.zeros((1, 64, 64, 3))
        >>> image[:, :32, :32] = 255
        >>> fall = occlusion(Brightness(), image, targets=1, stride=32)[0]
        >>> float(fall[0, 0].round(4)), float(fall[63, 63].round(4))
        (0.1875, -0.0625)
    """
    for name, value in (("window", window), ("stride", stride), ("batch_size", batch_size)):
        check_count(name, value)
    model = model.model if isinstance(model, FineTuned) else model
    images = _images(pixels, model)
    count, height, width = images.shape[:3]
    if not stride <= window <= min(height, width):
        raise ValueError(
            f"`window` must be between `stride` and the shorter side of the images, "
            f"{min(height, width)}. "
            f"Received: window={window}, stride={stride}"
        )
    corners = list(product(_starts(height, window, stride), _starts(width, window, stride)))
    if not count:
        return np.zeros((0, height, width), np.float32)
    scores = _covered_scores(model, images, corners, window, batch_size)
    wanted = _one_hot(targets, count, scores.shape[2]).argmax(axis=1)
    wanted = scores[:, -1].argmax(axis=1) if targets is None else wanted
    chosen = scores[np.arange(count), :, wanted]
    falls, times = np.zeros((count, height, width)), np.zeros((height, width))
    for i, (y, x) in enumerate(corners):
        falls[:, y : y + window, x : x + window] += (chosen[:, -1] - chosen[:, i])[:, None, None]
        times[y : y + window, x : x + window] += 1
    maps = (falls / times).astype(np.float32)
    reason = "the probability is the same whatever is covered. A larger window may show more"
    _warn_of_empty(maps, "occlusion map", reason)
    return maps


def _covered_scores(
    model: Any, images: NDArray[Any], corners: list[tuple[int, int]], window: int, batch_size: int
) -> NDArray[np.float64]:
    """Return scores `(n, versions, classes)`: one version for each corner, and the image itself."""
    versions = len(corners) + 1
    outputs = []
    for rows in _batches(len(images) * versions, batch_size):
        batch = images[rows // versions].astype(np.float32)
        for image, version in zip(batch, rows % versions, strict=True):
            for y, x in corners[version:][:1]:  # none for the last version, the image itself
                image[y : y + window, x : x + window] = image.mean((0, 1))
        outputs.append(np.asarray(model.predict(batch, batch_size=batch_size, verbose=0)))
    scores = np.concatenate(outputs)[: len(images) * versions].astype(np.float64)
    if _classes(scores.shape) > scores.shape[1]:
        scores = np.concatenate([1 - scores, scores], axis=1)
    return scores.reshape(len(images), versions, -1)


def _graph_of(model: Any) -> keras.Model:
    try:
        graph = flattened(model)
    except ValueError as error:
        raise ValueError(
            "`model` must be a functional Keras model, or a Sequential with a known input shape; "
            "use `occlusion` for other models, as it needs only `predict`. "
            f"Received: {getattr(model, 'name', model)!r} of type {type(model).__name__}"
        ) from error
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            "`model` must have one input, the images, and one output, the scores. Received: "
            f"{graph.name!r} with {len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        )
    return graph


def _cut_after_block(graph: keras.Model, at: str | None) -> tuple[keras.Model, keras.Model, int]:
    """Cut the model after a block; also return which tensor at the cut is the block's map."""
    parts = partition(graph).parts
    if at is None:
        maps = [i for i, part in enumerate(parts) if _is_feature_map(part)]
        if not maps:
            raise ValueError(
                "`model` must have a block whose output is a feature map of more than one cell, "
                f"(n, height, width, channels). Received: {graph.name!r} with block outputs "
                f"{[part.output_shape for part in parts]}"
            )
        last = maps[-1]
    else:
        last = chosen_blocks("at", [str(at)], parts, graph.name, "block").index(True)
    prefix, suffix = cut_after(graph, _names(*parts[: last + 1]))
    maps = [
        i
        for i, tensor in enumerate(prefix.outputs)
        if len(tensor.shape) == 4 and made_by(tensor)[0].name in _names(parts[last])
    ]
    if not maps:
        raise ValueError(
            "`at` must name a block whose output is a feature map, (n, height, width, channels). "
            f"Received: {at!r} with output {parts[last].output_shape}"
        )
    return prefix, suffix, maps[-1]


def _is_feature_map(part: Part) -> bool:
    shape, learned = part.output_shape, any(getattr(op, "weights", ()) for op in part.operations)
    return learned and len(shape) == 4 and shape[1:3] != (1, 1)


def _names(*parts: Part) -> set[str]:
    return {operation.name for part in parts for operation in part.operations}


def _images(pixels: ArrayLike, model: Any) -> NDArray[Any]:
    """Return the pixels as an array; check that the model takes them."""
    images = np.asarray(pixels)
    shape = getattr(model, "input_shape", None)
    shape = shape if isinstance(shape, tuple) and len(shape) == 4 else (None,) * 4
    fits = images.ndim == 4 and all(
        n in (None, given) for n, given in zip(shape[1:], images.shape[1:], strict=True)
    )
    if not fits or images.dtype.kind not in "uif":
        raise ValueError(
            "`pixels` must be numbers of the shape (n, height, width, channels)"
            f"{f', here (n, {str(shape[1:])[1:]}' if None not in shape[1:] else ''}; "
            "ImageSet.load(indices, size) returns them. "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    return images


def _classes(shape: Any) -> int:
    """Return the number of classes: two for a model with a single probability."""
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
        raise ValueError(
            "`model` must return one score for each class, shape (n, classes). "
            f"Received: output shape {shape}"
        )
    return max(2, shape[1])


def _one_hot(targets: ArrayLike | None, count: int, classes: int) -> NDArray[np.float32]:
    """Return the targets one-hot, one row per image; all 0 for the predicted class."""
    if targets is None:
        return np.zeros((count, classes), np.float32)
    given = np.asarray(targets)
    good = np.issubdtype(given.dtype, np.integer) and given.shape in ((), (count,))
    if not good or (given.size and not 0 <= given.min() <= given.max() < classes):
        raise ValueError(
            f"`targets` must be class indices from 0 to {classes - 1}, one for each of the {count} "
            f"images or one for all, or None for the predicted classes. Received: {targets!r}"
        )
    return np.eye(classes, dtype=np.float32)[np.broadcast_to(given, count)]


def _batches(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers in batches of one size, so that nothing is compiled twice.

    The last batch is filled up with the last row.
    """
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


def _starts(length: int, window: int, stride: int) -> list[int]:
    return sorted({*range(0, length - window, stride), length - window})


def _enlarged(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge a map bilinearly; Pillow computes the same on every backend."""
    image = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _warn_of_empty(maps: NDArray[np.float32], kind: str, reason: str) -> None:
    empty = np.flatnonzero(np.abs(maps).max(axis=(1, 2), initial=0) == 0)
    if len(empty):
        warnings.warn(
            f"{len(empty)} of {plural(len(maps), kind)} {'is' if len(empty) == 1 else 'are'} 0 "
            f"everywhere (numbers {listed([*map(str, empty.tolist())], 8)}): {reason}",
            stacklevel=3,  # the line that calls the public function
        )


def scaled(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each map so that its highest value is 1."""
    highest = maps.max(axis=(1, 2), keepdims=True, initial=0)
    return (maps / np.where(highest > 0, highest, 1)).astype(np.float32)
