"""What the frozen part is computed from: decoded images, or augmented copies of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_kit._data.batches import WORKERS
from finetune_kit._data.images import ImageSet
from finetune_kit._data.pixels import has_files_only
from finetune_kit._features.augmentation import Augmentation, augmented
from finetune_kit._features.rows import Rows
from finetune_kit._model.digest import fingerprint


@dataclass(frozen=True, eq=False)
class Decode:
    """Loads pixels."""

    images: ImageSet
    size: tuple[int, int]
    threads: int = WORKERS

    @property
    def is_portable(self) -> bool:
        """Whether the images are files, not arrays or another data set."""
        return has_files_only(self.images.source)

    def load(self, positions: NDArray[np.int64], epoch: int = 0) -> NDArray[np.uint8]:
        """Decode images, the same in each epoch."""
        return self.images.load(positions, self.size)


@dataclass(frozen=True, eq=False)
class Views:
    """Loads augmented copies: position i * views + v is copy v of image i."""

    decode: Decode
    augmentation: Augmentation
    digests: tuple[str, ...]
    seed: int
    threads: int = 1  # a random generator belongs to its layer, so two threads would mix it up
    is_portable: bool = False  # the layer computes on the backend of the training

    def load(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode images and change them."""
        indices, views = np.divmod(positions, self.augmentation.views)
        keys = [(self.digests[i], v) for i, v in zip(indices.tolist(), views.tolist(), strict=True)]
        return augmented(self.augmentation.layer, self.decode.load(indices), keys, self.seed)

    def rows(self, count: int) -> Rows:
        """Return the row of each copy of the first `count` images."""
        layer, views = fingerprint(self.augmentation.layer), self.augmentation.views
        names = (
            row_name(digest, layer, self.seed, v)
            for digest in self.digests[:count]
            for v in range(views)
        )
        return Rows.named(np.arange(count * views), names)


def row_name(digest: str, augmentation: str, seed: int, view: int) -> str:
    """Return the name of an augmented copy: a digest of all that it depends on."""
    return hashlib.sha256(f"{digest} {augmentation} {seed} {view}".encode()).hexdigest()
