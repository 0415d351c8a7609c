"""Random changes of training images, of which several versions are kept, and of their features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import check_count, is_number
from finetune_kit._model.state import random_states

_VIEWS = 8


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What changes training images at random: the pixels of copies that are kept, or features.

    The frozen part is computed once for each augmented copy, and each epoch uses one copy of each
    image. Validation images are not augmented.

    Args:
        layer: a plain Keras layer that changes pixels at random, such as
            `keras.layers.RandomFlip("horizontal")`, or a Sequential of several. It must keep the
            shape of the images and their range of 0-255. Defaults to none.
        views: augmented copies for each image, at least 1; with `layer` only. Defaults to 8.
        mixup: mixes the features of each image, where the first block that trains begins, with
            those of another image of its batch, and their labels in the same way, by a share that
            each step draws from Beta(`mixup`, `mixup`) (manifold mixup: Verma et al., ICML 2019).
            0.1 to 0.4 are usual. The loss and accuracy in training are then those of mixed images.
            Defaults to 0: nothing is mixed.

    Raises:
        ValueError: if `layer` is not a Keras layer, or mixes pixels of several images (MixUp,
            CutMix), or neither `layer` nor `mixup` is given, or `views` is without `layer`.

    Example:
        >>> Augmentation(keras.layers.RandomFlip("horizontal"), views=4).views
        4
    """

    layer: keras.Layer | None = None
    views: int = _VIEWS
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if not is_number(self.mixup) or not 0 <= self.mixup < math.inf:
            raise ValueError(
                f"`mixup` must be a number of at least 0. Received: mixup={self.mixup!r}"
            )
        check_count("views", self.views)
        if self.layer is None and self.mixup:
            if self.views != _VIEWS:
                raise ValueError(
                    "`views` must be left out where no `layer` changes the images, because mixup "
                    f"mixes anew in each step. Received: views={self.views} without a layer"
                )
            return
        if not isinstance(self.layer, keras.Layer):
            raise ValueError(
                "`augmentation` must be a Keras layer, such as "
                "keras.layers.RandomFlip('horizontal'), a Sequential of several, or an "
                f"Augmentation, or `mixup` above 0 without one. Received: {self.layer!r}"
            )
        mixing = (keras.layers.MixUp, keras.layers.CutMix)
        layers = [self.layer, *getattr(self.layer, "layers", ())]
        if any(isinstance(layer, mixing) for layer in layers):
            raise ValueError(
                "`augmentation` must change each image by itself, because copies of single images "
                "are kept; MixUp and CutMix mix several. Pass mixup= instead. "
                f"Received: {self.layer.name!r}"
            )


def checked_augmentation(augmentation: Any, *, weighted: bool, cached: bool) -> Augmentation | None:
    """Return the augmentation; a bare layer gets the default views.

    Args:
        augmentation: as it was passed to `fine_tune`.
        weighted: whether classes have weights.
        cached: whether features are kept.
    """
    if augmentation is None:
        return None
    given = isinstance(augmentation, Augmentation)
    checked: Augmentation = augmentation if given else Augmentation(augmentation)
    if not cached and checked.layer is None:
        raise ValueError(
            "`augmentation` mixes kept features, which features=False switches off; leave out one "
            f"of the two. Received: mixup={checked.mixup} with features=False"
        )
    if not cached and checked.layer is not None:
        raise ValueError(
            "`augmentation` makes copies of the images and keeps their features, which "
            "features=False switches off; put its layers into `preprocessing`, where each epoch "
            f"changes the images anew. Received: augmentation={checked.layer.name!r} with "
            "features=False"
        )
    if checked.mixup and weighted:
        raise ValueError(
            "`class_weight` must be left out where images are mixed, because Keras weights each by "
            "the class with the largest share; pass a `loss` that balances, such as "
            "keras.losses.CategoricalFocalCrossentropy(alpha=...). "
            f"Received: class_weight with mixup={checked.mixup}"
        )
    return checked


def augmented(
    layer: keras.Layer, pixels: NDArray[np.uint8], keys: list[tuple[str, int]], seed: int
) -> NDArray[np.uint8]:
    """Change each image on its own.

    The random numbers depend on the seed and the key (digest of the image, number of the copy)
    alone, so a copy is the same whenever it is made.
    """
    states = random_states(layer)
    changed: list[NDArray[Any]] = []
    weights: list[NDArray[Any]] = []
    for image, (digest, view) in zip(pixels, keys, strict=True):
        rng = np.random.default_rng((seed, view, int(digest[:16], 16)))
        for state in states:
            state.assign(rng.integers(0, 2**31, 2, np.uint32))
        result = layer(keras.ops.cast(image[None], "float32"), training=True)
        changed.append(keras.ops.convert_to_numpy(result)[0])
        weights = weights or layer.get_weights()
    if not all(map(np.array_equal, weights, layer.get_weights())):
        raise ValueError(
            "`augmentation` must not change its own variables, because a copy would depend on the "
            f"images before it. Received: {layer.name!r}, which does"
        )
    copies = np.stack(changed)
    _check_copies(layer.name, pixels, copies)
    return np.clip(np.rint(copies), 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def views_of_epoch(seed: int, epoch: int, count: int, views: int) -> NDArray[np.int64]:
    """Return the augmented copy that an epoch uses of each image, int array `(count,)`."""
    return np.random.default_rng((seed, epoch, 1)).integers(views, size=count)


def _check_copies(name: str, pixels: NDArray[np.uint8], copies: NDArray[Any]) -> None:
    if copies.shape != pixels.shape:
        raise ValueError(
            f"`augmentation` must keep the shape of the images, {pixels.shape[1:]}. "
            f"Received: {name!r}, which returns {copies.shape[1:]}"
        )
    if pixels.max() > 1 and 0 < np.abs(copies).max() <= 1:
        raise ValueError(
            "`augmentation` must keep pixels in their range of 0-255; rescaling is part of "
            f"`preprocessing`. Received: {name!r}, which returns values from "
            f"{copies.min():.3g} to {copies.max():.3g}"
        )
