"""A model and pixels come in, maps of what in each picture spoke for a class go out.

This room knows nothing of files, reports or training, and changes no model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import product
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from finetune_kit._checks import check_count
from finetune_kit._model.blocks import Part, chosen_blocks, partition
from finetune_kit._model.flattening import flattened as functional
from finetune_kit._model.flattening import made_by
from finetune_kit._model.surgery import cut_after
from finetune_kit._report.gradient import Probe


def grad_cam(
    model: keras.Model,
    pixels: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    at: str | None = None,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Show which places of each image raised the score of a class (Grad-CAM).

    Use it to see whether a model looks at what a person would look at. A map says where, not why;
    it is as coarse as the feature map it comes from (7 x 7 cells for most backbones at 224 x 224).
    The score is the one before the softmax or sigmoid, where the last layer has one.
    Method: Selvaraju et al., ICCV 2017.

    Args:
        model: any functional model, such as `FineTuned.model`; it is not changed.
        pixels: images as the model takes them, `(n, height, width, channels)`: for what `fine_tune`
            returns, RGB from 0 to 255.
        targets: the class to explain: its index, one for all images or one each. For a model with
            a single sigmoid: 1, or 0 for the class that it tells from; for several labels: the
            index of a label. Defaults to the class that the model predicts.
        at: the block whose output is looked at, see `conv_blocks`. Defaults to the last one whose
            output is a map of more than one cell.
        batch_size: images a step. Defaults to 32.

    Returns:
        float32 `(n, height, width)`, each map from 0 to 1; 0 everywhere where nothing spoke for
        the class.

    Raises:
        ValueError: if the model has no such map, or pixels or targets do not fit it.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3, strides=4),
        ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax")])
        >>> grad_cam(model, np.zeros((5, 32, 32, 3)), targets=1).shape
        (5, 32, 32)
    """
    check_count("batch_size", batch_size)
    graph = _graph_of(model)
    images = _images(pixels, graph)
    wanted = _one_hot(targets, len(images), _classes(graph.output_shape))
    prefix, suffix, place = _cut_behind(graph, at)
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
        looked_at = np.asarray(keras.tree.flatten(features)[place], np.float32)
        heat = np.maximum(np.einsum("nhwc,nc->nhw", looked_at, weights), 0)
        maps[rows] = [_enlarged(one, images.shape[1:3]) for one in heat]
    return _scaled(maps)


def occlusion(
    model: Any,
    pixels: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    window: int = 32,
    stride: int = 16,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Show how much the probability of a class falls where a part of the image is covered.

    Use it to check a `grad_cam` map, or for a model that has no graph: nothing is asked of it but
    `predict`. It takes a prediction for each position of the window (169 for 224 x 224 pixels).
    Method: Zeiler and Fergus, ECCV 2014.

    Args:
        model: anything with Keras' `predict` that gives probabilities `(n, classes)`.
        pixels: images as the model takes them, `(n, height, width, channels)`.
        targets: see `grad_cam`.
        window: side of the square that is covered with the image's mean colour, in pixels. Defaults
            to 32.
        stride: pixels from one position to the next, up to `window`. Defaults to 16.
        batch_size: images a step. Defaults to 32.

    Returns:
        float32 `(n, height, width)`: for each pixel, the mean fall of the probability over the
        windows that covered it; below 0 where covering raised it.

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
    images = _images(pixels, model)
    count, height, width = images.shape[:3]
    if not stride <= window <= min(height, width):
        raise ValueError(
            f"`window` must be from `stride` up to the images' shorter side, {min(height, width)}. "
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
    return (falls / times).astype(np.float32)


def overlay(
    pixels: ArrayLike, maps: ArrayLike, *, colors: str = "inferno", strength: float = 0.6
) -> NDArray[np.uint8]:
    """Lay maps over their images: gray where the map is 0, coloured the more the higher it is.

    Use it to look at what `grad_cam` or `occlusion` gives. Needs matplotlib (the extra `plots`).

    Args:
        pixels: images from 0 to 255, `(n, height, width, channels)`.
        maps: one map for each, `(n, height, width)`; what is below 0 counts as 0, and each map is
            scaled to its own highest value.
        colors: name of a matplotlib colour map. Defaults to `"inferno"`, which is perceptually
            uniform and readable by colour-blind people.
        strength: how much colour covers the image where the map is highest, from 0 to 1. Defaults
            to 0.6.

    Returns:
        uint8 RGB `(n, height, width, 3)`.

    Raises:
        ValueError: if the maps are not those of the images.
        ImportError: if matplotlib is not installed.

    Example:
        >>> overlay(np.full((1, 2, 2, 3), 100), [[[0, 0], [0, 1]]])[0, 0, 0].tolist()
        [100, 100, 100]
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "`overlay` needs matplotlib for its colours: pip install 'finetune-kit[plots]'"
        )
    from matplotlib import colormaps  # the extra `plots`, loaded when needed

    images, heat = np.asarray(pixels, np.float32), np.asarray(maps, np.float32)
    if images.ndim != 4 or heat.shape != images.shape[:3]:
        raise ValueError(
            "`maps` must hold one map of the same height and width for each of `pixels`, "
            f"(n, height, width, channels). Received: maps of shape {heat.shape}, "
            f"pixels of shape {images.shape}"
        )
    heat = _scaled(np.maximum(heat, 0))
    gray = images @ _LUMA if images.shape[3] == 3 else images.mean(axis=3)
    share = strength * heat[..., None]
    mixed = (1 - share) * gray[..., None] + share * 255 * colormaps[colors](heat)[..., :3]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601: how bright red, green, blue are


def _covered_scores(
    model: Any, images: NDArray[Any], corners: list[tuple[int, int]], window: int, batch_size: int
) -> NDArray[np.float64]:
    """Scores `(n, versions, classes)`: a version for each corner covered, and the image itself."""
    versions = len(corners) + 1

    def version(row: int) -> NDArray[Any]:
        image = images[row // versions].astype(np.float32)
        for y, x in corners[row % versions :][:1]:
            image[y : y + window, x : x + window] = image.mean((0, 1))
        return image

    outputs = []
    for rows in _batches(len(images) * versions, batch_size):
        batch = np.stack([version(row) for row in rows])
        outputs.append(np.asarray(model.predict(batch, batch_size=batch_size, verbose=0)))
    scores = np.concatenate(outputs)[: len(images) * versions].astype(np.float64)
    if _classes(scores.shape) > scores.shape[1]:
        scores = np.concatenate([1 - scores, scores], axis=1)
    return scores.reshape(len(images), versions, -1)


def _graph_of(model: Any) -> keras.Model:
    try:
        graph = functional(model)
    except ValueError as error:
        raise ValueError(
            "`model` must be a functional Keras model, or a Sequential with a known input shape; "
            "for any other there is `occlusion`, which asks for predictions only. "
            f"Received: {getattr(model, 'name', model)!r} of type {type(model).__name__}"
        ) from error
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            "`model` must take one tensor, images, and give one, scores. Received: "
            f"{graph.name!r} with {len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        )
    return graph


def _cut_behind(graph: keras.Model, at: str | None) -> tuple[keras.Model, keras.Model, int]:
    """The model in two behind a block, and which of the tensors between is the block's map."""
    parts = partition(graph).parts
    if at is None:
        maps = [i for i, part in enumerate(parts) if _is_map(part)]
        if not maps:
            raise ValueError(
                "`model` must have a block that puts out a map of more than one cell, (n, height, "
                f"width, channels). Received: {graph.name!r}, whose blocks put out "
                f"{[part.output_shape for part in parts]}"
            )
        last = maps[-1]
    else:
        last = chosen_blocks("at", [str(at)], parts, graph.name, "block").index(True)
    prefix, suffix = cut_after(graph, _names(*parts[: last + 1]))
    made = [
        i
        for i, tensor in enumerate(prefix.outputs)
        if len(tensor.shape) == 4 and made_by(tensor)[0].name in _names(parts[last])
    ]
    if not made:
        raise ValueError(
            "`at` must name a block that puts out a map, (n, height, width, channels). "
            f"Received: {at!r}, which puts out {parts[last].output_shape}"
        )
    return prefix, suffix, made[-1]


def _is_map(part: Part) -> bool:
    shape, learned = part.output_shape, any(getattr(op, "weights", ()) for op in part.operations)
    return learned and len(shape) == 4 and shape[1:3] != (1, 1)


def _names(*parts: Part) -> set[str]:
    return {operation.name for part in parts for operation in part.operations}


def _images(pixels: ArrayLike, model: Any) -> NDArray[Any]:
    """The pixels as an array; refuse those that the model does not take."""
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
            "ImageSet.load(indices, size) gives them. "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    return images


def _classes(shape: Any) -> int:
    """How many classes there are to choose from: two where one probability tells them apart."""
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
        raise ValueError(
            "`model` must give one score for each class, of the shape (n, classes). "
            f"Received: output shape {shape}"
        )
    return max(2, shape[1])


def _one_hot(targets: ArrayLike | None, count: int, classes: int) -> NDArray[np.float32]:
    """A row for each image with a 1 for its class; all 0 where the model is to choose."""
    if targets is None:
        return np.zeros((count, classes), np.float32)
    given = np.asarray(targets)
    good = np.issubdtype(given.dtype, np.integer) and given.shape in ((), (count,))
    if not good or (given.size and not 0 <= given.min() <= given.max() < classes):
        raise ValueError(
            f"`targets` must be indices of classes, from 0 to {classes - 1}: one for each of the "
            f"{count} images or one for all; or None, the predicted ones. Received: {targets!r}"
        )
    return np.eye(classes, dtype=np.float32)[np.broadcast_to(given, count)]


def _batches(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers in batches of one size, so that nothing is compiled twice: the last is filled."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


def _starts(length: int, window: int, stride: int) -> list[int]:
    return sorted({*range(0, length - window, stride), length - window})


def _enlarged(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear; Pillow computes the same on every backend."""
    image = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _scaled(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    highest = maps.max(axis=(1, 2), keepdims=True, initial=0)
    return (maps / np.where(highest > 0, highest, 1)).astype(np.float32)
