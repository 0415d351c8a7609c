"""Features of a backbone: as arrays for other tools, or kept ahead of a training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from finetune_kit._checks import check_choice, check_count, check_kind, is_count
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache, kept_cache, opened
from finetune_kit._features.frozen import source_of
from finetune_kit._model.blocks import partition
from finetune_kit._model.choosing import chosen_blocks
from finetune_kit._model.copying import copy
from finetune_kit._model.head import POOLING
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._model.surgery import features_model
from finetune_kit._quiet import quiet
from finetune_kit._train.arguments import checked_backbone
from finetune_kit._train.filling import Filling, filling_setup
from finetune_kit._train.tuned import FineTuned


@quiet()
def extract_features(
    backbone: keras.Model | FineTuned | str | os.PathLike[str],
    images: ImageSet,
    *,
    at: str | Sequence[str] | None = None,
    pooling: str | None = "avg",
    features: FeatureCache | str | os.PathLike[str] | None = None,
    preprocessing: str | keras.layers.Layer | None = "auto",
    batch_size: int = 32,
    verbose: str | int = "auto",
) -> NDArray[np.float32] | dict[str, NDArray[np.float32]]:
    """Return what a backbone puts out for images, as arrays.

    Use it to train a model of scikit-learn on the features, to search for similar images, or to
    plot them. The backbone runs in inference mode, once for each image, also for several blocks.

    Args:
        backbone: see `fine_tune`; of a trained model, the part in front of its head.
        images: the images.
        at: the block whose output is returned, see `conv_blocks`; a list of blocks; or `"all"`.
            Defaults to None: the output of the backbone.
        pooling: how a feature map becomes a vector: `"avg"` (default), `"max"`, `"avgmax"` (both)
            or `"flatten"`, see `classification_head`; None returns the map as it is.
        features: a `FeatureCache`, or a folder, that keeps the features for later calls. Defaults
            to none.
        preprocessing: see `fine_tune`.
        batch_size: images in each step. Defaults to 32.
        verbose: `"auto"` (default), 0, 1 or 2, as in `fit`.

    Returns:
        An array `(n, channels)` in the order of the images; with a list of blocks or `"all"`, such
        an array for each block, by its name.

    Raises:
        ValueError: if an argument does not fit the others, or the backbone has no such block.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 4)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> extract_features(backbone, images, verbose=0).shape
        (8, 1280)
        >>> found = extract_features(backbone, images, at=["block_3", "block_15"], verbose=0)
        >>> {name: values.shape for name, values in found.items()}
        {'block_3': (8, 16), 'block_15': (8, 56)}
    """
    check_kind("images", images, ImageSet, "see read_image_folder")
    check_choice("pooling", pooling, POOLING)
    check_count("batch_size", batch_size)
    if at is not None and not at:
        raise ValueError(f"`at` must name at least one block. Received: at={at!r}")
    cache = kept_cache(features)
    size, plain, layer = checked_backbone(backbone, preprocessing)
    parts = partition(plain).parts  # a block that is not there is an error before the copy
    chosen_blocks("at", 1 if at is None else at, parts, plain.name, "block")
    frozen = copy(plain)
    frozen.trainable = False  # so that PyTorch records nothing for gradients
    names, model = features_model(frozen, layer, at, pooling)
    with opened(cache, None) as kept:
        source = source_of(images, kept or cache, size, batch_size, verbose)
        found = source.outputs(model).load(np.arange(len(images)))
    arrays = found if isinstance(found, tuple) else (found,)
    by_name = {n: a.astype(np.float32, copy=False) for n, a in zip(names, arrays, strict=True)}
    return by_name[names[0]] if at is None or at in names else by_name


@quiet()
def compute_features(
    backbone: keras.Model | FineTuned | str | os.PathLike[str],
    specs: FineTuneSpec | Sequence[FineTuneSpec],
    images: ImageSet,
    features: FeatureCache | str | os.PathLike[str],
    *,
    shard: tuple[int, int] = (0, 1),
    head: keras.Layer | None = None,
    preprocessing: str | keras.layers.Layer | None = "auto",
    batch_size: int = 32,
    verbose: str | int = "auto",
) -> dict[str, int]:
    """Compute what the frozen part of a backbone puts out for images, and keep it.

    A later `fine_tune` or `sweep` with the same folder, images and backbone starts to train at
    once. Several processes or machines may fill one folder at the same time, each with its part of
    the images (`shard`). A part that was interrupted is computed again from the last whole chunk.

    Args:
        backbone: see `fine_tune`.
        specs: what will be trained: one spec or several.
        images: the images, such as the training and validation sets joined with `+`.
        features: the folder, or a `FeatureCache` with one.
        shard: `(i, n)` computes part i, from 0, of n parts. An image belongs to a part by its
            content, so the parts do not depend on names or order. Defaults to all images.
        head: the head that will be trained, see `fine_tune`. Its layers before the first weights,
            such as a pooling, are computed too where no block trains. Defaults to average pooling.
        preprocessing: see `fine_tune`.
        batch_size: images in each step; the same as in `fine_tune` gives the same features bit for
            bit. Defaults to 32.
        verbose: `"auto"` (default), 0, 1 or 2, as in `fit`.

    Returns:
        `{"images": ..., "computed": ...}`: the images of the part, and how many rows of features
        this call computed, over all specs.

    Raises:
        ValueError: if an argument does not fit the others.
        OSError: if the features need more space than is free, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> x = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        >>> images = ImageSet.from_arrays(x, ["cat", "dog"] * 4)
        >>> backbone = keras.applications.MobileNetV2(
        ...     alpha=0.35, include_top=False, weights=None, input_shape=(32, 32, 3))
        >>> folder = tempfile.mkdtemp()
        >>> compute_features(backbone, FineTuneSpec(1), images, folder, verbose=0)
        {'images': 8, 'computed': 8}
    """
    _check_shard(shard)
    setup = filling_setup(
        backbone, specs, images, features, head, preprocessing, batch_size, verbose
    )
    return Filling(setup).fill(_in_shard(images, *shard))


def _check_shard(shard: Any) -> None:
    fits = isinstance(shard, (tuple, list)) and len(shard) == 2 and is_count(shard[1])
    if not fits or not is_count(shard[0], least=0) or shard[0] >= shard[1]:
        raise ValueError(
            "`shard` must be (i, n), part i of n parts, with i from 0 to n - 1. "
            f"Received: shard={shard!r}"
        )


def _in_shard(images: ImageSet, part: int, parts: int) -> list[int]:
    """Return the indices of the images that belong to a part by their content."""
    digests = enumerate(images.digests())
    return [i for i, digest in digests if int(digest[:16], 16) % parts == part]
