"""Values come in; those that an argument cannot be leave as a ValueError in words.

Below all other rooms: it knows nothing of what the arguments mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any


def is_count(value: Any, least: int = 1) -> bool:
    """Is it a whole number (no bool) of at least `least`?"""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number from 1 up."""
    if not is_count(value):
        raise ValueError(f"`{name}` must be a whole number from 1 up. Received: {name}={value!r}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse what is not among the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {tuple(choices)}. Received: {name}={value!r}")
