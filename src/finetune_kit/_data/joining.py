"""Checks and fields of two image sets that are joined with `+`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from finetune_kit._data.pixels import joined, origins
from finetune_kit._text import plural


def joined_fields(one: Any, other: Any) -> dict[str, Any]:
    """Return the fields of the set that holds the images of two sets."""
    source, more = one.source, other.rows
    if other.source is not source:
        source, more = joined([source, other.source]), more + len(source)
    groups = None
    if one.groups is not None and other.groups is not None:
        groups = np.concatenate([one.groups, other.groups])
    return {
        "source": source,
        "labels": np.concatenate([one.labels, other.labels]),
        "groups": groups,
        "skipped": tuple(dict.fromkeys(one.skipped + other.skipped)),
        "manifest": one.manifest if one.manifest == other.manifest else None,
        "rows": np.concatenate([one.rows, more]),
    }


def warn_of_common_images(one: Any, other: Any) -> None:
    """Warn if two sets share images."""
    both = origins(one.source, one.rows.tolist()) & origins(other.source, other.rows.tolist())
    if both:
        warnings.warn(
            f"The sets to join share {plural(len(both), 'image')}, which the result holds twice; "
            "join sets of different images",
            stacklevel=3,
        )


def check_joinable(one: Any, other: Any) -> None:
    """Check that two sets have the same classes, and that both or none have groups."""
    if (one.class_names, one.multi_label) != (other.class_names, other.multi_label):
        raise ValueError(
            "Sets to join must have the same classes in the same order; pass class_names= when you "
            f"read them. Received: {one} and {other}"
        )
    if (one.groups is None) != (other.groups is None):
        raise ValueError(
            "Sets to join must both have groups, or neither; read both with groups. "
            "Received: one with and one without groups"
        )
