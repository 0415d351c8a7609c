"""Choose blocks of a backbone by their number or their names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from finetune_kit._model.blocks import Part
from finetune_kit._text import listed


def chosen_blocks(
    argument: str, chosen: Any, parts: Sequence[Part], model_name: str, level: str
) -> tuple[bool, ...]:
    """Return for each block whether it is chosen.

    Args:
        argument: name of the argument that holds the choice, for the error message.
        chosen: a number of trailing blocks, `"all"`, or the name or names of blocks.
        parts: the blocks of the model.
        model_name: for the error message.
        level: for the error message.
    """
    names = [part.name for part in parts]
    count = len(names)
    if chosen == "all":
        return (True,) * count
    if isinstance(chosen, int):
        if not 0 <= chosen <= count:
            raise ValueError(
                f"`{argument}` must be between 0 and {count}, the number of blocks of "
                f"{model_name!r} at level {level!r}. Received: {argument}={chosen}"
            )
        return tuple(i >= count - chosen for i in range(count))
    chosen = (chosen,) if isinstance(chosen, str) else chosen
    for name in chosen:
        if name not in names:
            raise ValueError(
                f"`{argument}` must name blocks of {model_name!r} at level {level!r}"
                f"{_suggestion(name, parts)}"
            )
    return tuple(name in chosen for name in names)


def _suggestion(name: str, parts: Sequence[Part]) -> str:
    """Return the end of the message about a name that no block has."""
    names = [part.name for part in parts]
    for part in parts:
        if name in (operation.name for operation in part.operations):
            return f". Received: {name!r}, a layer inside {part.name!r}"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[-3:]
    return f", such as {listed(near)}. Received: {name!r}"
