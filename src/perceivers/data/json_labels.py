"""Label columns from the entries of JSON files, one file per sample.

Legend: n samples, T label columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.labels import check_columns
from perceivers.data.sources import UNKNOWN
from perceivers.data.targets import read_targets
from perceivers.errors import DataError
from perceivers.foreign import parse_json
from perceivers.text_names import check_class_name

JsonEntries = Mapping[str, Any]


def parse_entries(data: bytes, where: str) -> JsonEntries:
    """Return the entries of a JSON file; none where it holds no object.

    Raises:
        DataError: It is no JSON text.
    """
    value = parse_json(data, where)
    return value if isinstance(value, dict) else {}


def index_entries(
    entries: Sequence[JsonEntries],
    names: Sequence[str],
    chosen: Sequence[str],
    known: Mapping[str, tuple[str, ...]],
    where: str,
) -> tuple[NDArray[np.int64], dict[str, tuple[str, ...]], list[str]]:
    """Turn chosen entries into class indices; class names are the sorted values.

    Args:
        entries: The entries of each sample.
        names: Where each sample lies, for messages.
        chosen: Entries to read: strings, integers, whole floats, or true and false; a missing one,
            or null, is unknown.
        known: Class names that are settled already, by column; other values are unknown then.
        where: The data's address, for messages.

    Returns:
        Labels ``[n]`` for one column or ``[n, T]``, -1 where unknown; class names by column; notes.

    Raises:
        DataError: A value that cannot name a class.
        ConfigError: No sample has the entry, or it is chosen twice.
    """
    fields = sorted({name for entry in entries for name in entry})
    check_columns(chosen, fields, where)
    columns: dict[str, tuple[str, ...]] = {}
    indexed: list[NDArray[np.int64]] = []
    notes: list[str] = []
    for column in chosen:
        values = [
            _check_value(e.get(column), column, n) for e, n in zip(entries, names, strict=True)
        ]
        columns[column] = known.get(column) or _sort_values(values)
        place = {name: index for index, name in enumerate(columns[column])}
        found = [UNKNOWN if v is None else place.get(str(v), UNKNOWN) for v in values]
        indexed.append(np.array(found, np.int64))
        if num_unknown := found.count(UNKNOWN):
            new = sorted({str(v) for v in values if v is not None and str(v) not in place})
            listed = f" ({', '.join(new[:8])})" if new else ""
            notes.append(
                f"{where}: {column} is unknown (-1) in {num_unknown} of {len(found)} samples: "
                f"missing, or no training class{listed}"
            )
    return (indexed[0] if len(indexed) == 1 else np.stack(indexed, axis=1)), columns, notes


def number_entries(
    entries: Sequence[JsonEntries], names: Sequence[str], chosen: Sequence[str], where: str
) -> NDArray[np.float32] | None:
    """Return chosen entries as numbers ``[n, T]``, NaN where missing or null; None for none.

    Args:
        entries: The entries of each sample.
        names: Where each sample lies, for messages.
        chosen: Entries to read.
        where: The data's address, for messages.

    Raises:
        DataError: A value that is no finite number.
        ConfigError: No sample has the entry.
    """
    fields = sorted({name for entry in entries for name in entry}) if chosen else []
    columns = {field: [entry.get(field) for entry in entries] for field in fields}
    return read_targets(columns, chosen, names, where)


def _check_value(value: Any, column: str, name: str) -> str | int | None:
    """Return a value that can name a class, in one spelling."""
    if isinstance(value, str):
        return check_class_name(value, f"{name}: {column!r}")
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, int):
        return value
    raise DataError(
        f"{name}: {column!r} is {value!r}; a label is a string or an integer, so choose another "
        f"entry"
    )


def _sort_values(values: Sequence[str | int | None]) -> tuple[str, ...]:
    """Return the distinct values as names: integers by size, before strings by alphabet."""
    numbers = sorted({value for value in values if isinstance(value, int)})
    words = {value for value in values if isinstance(value, str)} - set(map(str, numbers))
    return (*map(str, numbers), *sorted(words))
