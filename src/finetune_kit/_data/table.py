"""Tables that list images: CSV files, and data frames of pandas or polars."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_kit._data.labels import missing
from finetune_kit._data.paths import absence, as_path, exists, is_file, open_text
from finetune_kit._text import listed, plural, shortened


@dataclass(frozen=True)
class Table:
    """Some columns of a table as text.

    Attributes:
        name: the table in messages.
        folder: the folder of the file, or the current one for a data frame.
        cells: the text of each row in each column. A missing value is an empty text.
        places: the number of the line in the file, or of the row in the data frame.
    """

    name: str
    folder: Path
    cells: dict[str, list[str]]
    places: list[str]


def read_table(table: Any, columns: Sequence[str]) -> Table:
    """Read columns of a table, and check that no value is missing."""
    if isinstance(table, (str, os.PathLike)):
        found = _from_csv(as_path("table", table), columns)
    elif hasattr(table, "columns") and hasattr(table, "__getitem__"):
        found = _from_frame(table, columns)
    else:
        raise ValueError(
            "`table` must be the path of a CSV file, or a pandas or polars DataFrame. "
            f"Received: table={shortened(table)} of type {type(table).__name__}"
        )
    rows = zip(found.places, *found.cells.values(), strict=True)
    gaps = [place for place, *cells in rows if not all(cells)]
    if gaps or not found.places:
        reason = f"without a value in {listed(gaps, 10)}" if gaps else "which has no rows"
        raise ValueError(
            f"`table` must have rows with a value in each of the columns {list(columns)}. "
            f"Received: {found.name}, {reason}"
        )
    return found


def _from_csv(source: Path, columns: Sequence[str]) -> Table:
    if not is_file(source):
        reason = "is not a file" if exists(source) else absence(source)
        raise FileNotFoundError(
            "`table` must be the path of a CSV file, or a DataFrame. "
            f"Received: {str(source)!r}, which {reason}"
        )
    name = repr(str(source))
    with open_text(source) as file:
        reader = csv.DictReader(file)
        try:
            _check_columns(name, list(reader.fieldnames or ()), columns)
            rows = [(f"line {reader.line_num}", row) for row in reader]
        except csv.Error as error:
            raise ValueError(
                "`table` must be a CSV file; read other formats with pandas and pass the "
                f"DataFrame. Received: {name}, which fails with {error}"
            ) from error
    cells = {column: [row[column] or "" for _, row in rows] for column in columns}
    return Table(name, source.parent, cells, [place for place, _ in rows])


def _from_frame(frame: Any, columns: Sequence[str]) -> Table:
    name = f"a {type(frame).__name__}"
    _check_columns(name, list(frame.columns), columns)
    cells = {column: _texts(list(frame[column])) for column in columns}
    count = len(next(iter(cells.values())))
    name += f" of {plural(count, 'row')}"
    return Table(name, Path(), cells, [f"row {i}" for i in range(count)])


def _texts(values: list[Any]) -> list[str]:
    gaps = set(missing(np.fromiter(values, object, len(values))))
    return ["" if i in gaps else str(value) for i, value in enumerate(values)]


def _check_columns(name: str, there: Sequence[Any], columns: Sequence[str]) -> None:
    if not set(columns) <= set(there):
        if len(there) == 1 and any(separator in str(there[0]) for separator in ";\t|"):
            raise ValueError(
                "`table` must be a CSV file, and the separator must be a comma; read other files "
                f"with pandas and pass the DataFrame. Received: {name} with the header {there[0]!r}"
            )
        raise ValueError(
            f"`table` must have the columns {list(columns)}; name its columns with `path`, `label` "
            f"and `group`. Received: {name} with the columns {list(there)}"
        )
