"""One log file of `CSVLogger` for all phases of a run, and for the run after an interruption."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras

from finetune_kit._files import write_whole


@contextmanager
def continued_logs(callbacks: Sequence[keras.callbacks.Callback], first: int) -> Iterator[None]:
    """Let log files go on at an epoch, counted from 0, while this context lasts.

    Keras would begin a new file in each phase. Rows of epochs that are trained again are removed.
    """
    loggers = [each for each in _loggers(callbacks) if not each.append and first]
    for logger in loggers:
        _keep_rows_before(logger, first)
        logger.append = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.append = False
        for logger in _loggers(callbacks):  # an error or an interruption leaves the file open
            if logger.csv_file is not None:
                logger.csv_file.close()


def restore_columns(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Give log files that go on the columns that they have.

    Called once the loggers have opened their files.
    """
    for logger in _loggers(callbacks):
        columns = _columns(logger)
        if columns:
            logger.keys, logger.append_header = columns[1:], False


def _loggers(callbacks: Sequence[keras.callbacks.Callback]) -> list[keras.callbacks.CSVLogger]:
    return [each for each in callbacks if isinstance(each, keras.callbacks.CSVLogger)]


def _rows(logger: keras.callbacks.CSVLogger) -> list[list[str]]:
    file = Path(logger.filename)
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        return list(csv.reader(opened, delimiter=logger.sep))


def _columns(logger: keras.callbacks.CSVLogger) -> list[str]:
    return next(iter(_rows(logger)), [])


def _keep_rows_before(logger: keras.callbacks.CSVLogger, first: int) -> None:
    head, *rows = _rows(logger) or [[]]
    kept = [row for row in rows if row and row[0].isdigit() and int(row[0]) < first]
    if head and len(kept) < len(rows):
        lines = [logger.sep.join(row) for row in (head, *kept)]
        write_whole(Path(logger.filename), "".join(f"{line}\r\n" for line in lines))
