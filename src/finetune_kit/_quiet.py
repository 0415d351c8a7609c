"""A call comes in; it is spared advice of TensorFlow's that cannot apply.

TensorFlow counts how often the same line of code is traced. For Keras that is one line for all
models, so after five of them it warns of a loop that makes functions anew, and means the user's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Leave TensorFlow's warnings of retracing out of the log; also a decorator."""

    def keep(record: logging.LogRecord) -> bool:
        return "tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
