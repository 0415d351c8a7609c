"""Training in several processes, each with its share of every batch.

`keras.distribution` sets the processes up; each of them makes the same calls. Variables are the
same in all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np

from finetune_kit._text import plural


def share() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many train together."""
    distribution = keras.distribution.distribution()
    count = getattr(distribution, "num_processes", 1)
    return (distribution.data_shard_id, count) if count > 1 else (0, 1)


def is_first() -> bool:
    """Return whether this process is the one that prints, and writes what is written once."""
    return share()[0] == 0


@contextmanager
def shared_batches() -> Iterator[None]:
    """Let each process pass its share of a batch to `fit`."""
    distribution = keras.distribution.distribution()
    if share()[1] == 1:
        yield
        return
    before = distribution.auto_shard_dataset
    distribution.auto_shard_dataset = False
    try:
        yield
    finally:
        distribution.auto_shard_dataset = before


@contextmanager
def alone() -> Iterator[None]:
    """Compute in this process alone, with models that are made or copied inside."""
    distribution = keras.distribution.distribution()
    if share()[1] == 1:
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def agree(expected: str, value: str) -> None:
    """Wait until all processes call this, and check that they pass the same value.

    Args:
        expected: what must be the same, for the message.
        value: in this process.

    Raises:
        ValueError: if the values differ.
    """
    if share()[1] == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.int32)
    try:
        # JAX compares the initial values of a variable that several processes hold.
        keras.Variable(digest, trainable=False, dtype="int32")
    except AssertionError as error:
        raise ValueError(
            f"All processes must {expected}. Received: something else in one of them"
        ) from error


def check_distribution(batch_size: int, train: int, validation: int, *, mixup: bool) -> None:
    """Check that `keras.distribution` can divide each batch.

    Raises:
        ValueError: if a batch cannot be divided by the number of devices, images of different
            processes would be mixed, or the backend does not divide batches.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    backend, version = keras.backend.backend(), tuple(map(int, keras.__version__.split(".")[:2]))
    if backend == "tensorflow" or (backend == "torch" and version < (3, 16)):
        raise ValueError(
            "`keras.distribution` must be used with KERAS_BACKEND=jax: with PyTorch it needs Keras "
            "3.16, with TensorFlow it divides nothing. Train on one device after "
            "keras.distribution.set_distribution(None); compute_features works on several "
            f"machines. Received: {type(distribution).__name__} on {backend!r}, Keras "
            f"{keras.__version__}"
        )
    if share()[1] > 1 and not isinstance(distribution, keras.distribution.DataParallel):
        raise ValueError(
            "Several processes must train with keras.distribution.DataParallel(), because each "
            f"holds the whole model. Received: {type(distribution).__name__}"
        )
    if share()[1] > 1 and mixup:
        raise ValueError(
            "`mixup` must be 0 where several processes train, because each has a part of the batch "
            "only. Received: an Augmentation with mixup above 0"
        )
    replicas = distribution.num_model_replicas
    counts = {"batch_size": batch_size, "len(train)": train, "len(validation)": validation}
    hint = "; images.take(range(n)) leaves out the last images"
    for name, count in counts.items():
        if count % replicas:
            raise ValueError(
                f"`{name}` must be divisible by the {plural(replicas, 'device')} of "
                f"keras.distribution, because each computes an equal part of a batch"
                f"{hint if name != 'batch_size' else ''}. Received: {name}={count}"
            )
