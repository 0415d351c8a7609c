"""A thread pool for work that releases Python's lock, such as decoding and hashing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from finetune_kit._buckets import THREADS

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = min(8, os.cpu_count() or 1)


def in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    at_once: int = 1,
    remote: bool = False,
) -> list[Result]:
    """Call a function with each item, in threads, and return the results in order.

    A thread takes `at_once` items at a time. Use more than one where a call may be as short as the
    20 microseconds that handing it over takes. With `remote`, calls wait for the network, so that
    there are more threads than processors.
    """
    at_once = 1 if remote else at_once
    parts = [items[start : start + at_once] for start in range(0, len(items), at_once)]
    with ThreadPoolExecutor(THREADS if remote else WORKERS) as pool:
        return [result for part in pool.map(partial(_each, function), parts) for result in part]


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
