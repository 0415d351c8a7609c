"""Silence notes of TensorFlow that say nothing about what a user does."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Written to the terminal when TensorFlow is imported, whatever its log level.
_NOTES = (b"log messages before absl::InitializeLog()", b"oneDNN custom operations are on")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep TensorFlow's retracing warnings out of the log. Also a decorator.

    TensorFlow counts how often one line of code is traced. In Keras that line is the same for all
    models, so training several of them triggers a warning about user code that creates functions
    in a loop.
    """

    def keep(record: logging.LogRecord) -> bool:
        return "tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Leave out what TensorFlow notes while it is imported; all else is written at the end.

    Its libraries write to the file descriptor, so Python's `sys.stderr` cannot hold it back.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            rest = [line for line in file if not any(note in line for note in _NOTES)]
            os.write(2, b"".join(rest))
