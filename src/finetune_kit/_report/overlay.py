"""Images with heat maps over them."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_kit._report.attribution import scaled

_COLORS = "inferno"  # perceptually uniform, and readable for colour-blind people
_STRENGTH = 0.6  # share of the colour where the map is highest
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # brightness of red, green, blue (ITU-R BT.601)


def overlay(pixels: ArrayLike, maps: ArrayLike) -> NDArray[np.uint8]:
    """Draw heat maps over their images: gray where the map is 0, warmer where it is higher.

    Use it to view the maps of `grad_cam` or `occlusion`. It needs the extra `plots`.

    Args:
        pixels: images from 0 to 255, `(n, height, width, channels)`.
        maps: one map for each image, `(n, height, width)`. Negative values count as 0, and each map
            is scaled to its own highest value.

    Returns:
        uint8 RGB `(n, height, width, 3)`.

    Raises:
        ValueError: if the shapes of maps and images differ.
        ImportError: if matplotlib is not installed.

    Example:
        >>> overlay(np.full((1, 2, 2, 3), 100), [[[0, 0], [0, 1]]])[0, 0, 0].tolist()
        [100, 100, 100]
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("`overlay` needs matplotlib: pip install 'finetune-kit[plots]'")
    from matplotlib import colormaps  # of the extra `plots`, imported when it is needed

    images, heat = np.asarray(pixels, np.float32), np.asarray(maps, np.float32)
    if images.ndim != 4 or heat.shape != images.shape[:3]:
        raise ValueError(
            "`maps` must have one map of the same height and width for each of `pixels`, "
            f"(n, height, width, channels). Received: maps of shape {heat.shape}, "
            f"pixels of shape {images.shape}"
        )
    heat = scaled(np.maximum(heat, 0))
    gray = images @ _LUMA if images.shape[3] == 3 else images.mean(axis=3)
    share = _STRENGTH * heat[..., None]
    mixed = (1 - share) * gray[..., None] + share * 255 * colormaps[_COLORS](heat)[..., :3]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
