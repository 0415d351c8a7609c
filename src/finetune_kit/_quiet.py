"""Silence TensorFlow's retracing warnings.

TensorFlow counts how often one line of code is traced. In Keras that line is the same for all
models, so training several of them triggers a warning about user code that creates functions in a
loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep TensorFlow's retracing warnings out of the log. Also a decorator."""

    def keep(record: logging.LogRecord) -> bool:
        return "tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
