"""Run a frozen model on batches."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def outputs_of(model: keras.Model, batch: Any, batch_size: int) -> Any:
    """Return the outputs for a batch, in inference mode, as NumPy arrays.

    A batch that is too short is padded, so that nothing is compiled twice; the outputs of the
    padding come last.
    """
    missing = batch_size - len(keras.tree.flatten(batch)[0])
    if missing:
        batch = keras.tree.map_structure(
            lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]), batch
        )
    if keras.backend.backend() != "torch":
        return model.predict_on_batch(batch)
    # From Keras 3.16 on, `predict_on_batch` wraps the model in DistributedDataParallel where
    # torch.distributed is set up, which rejects a model without trainable weights. PyTorch runs
    # eagerly, so a plain call does the same without the trainer.
    outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, batch), training=False)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)
