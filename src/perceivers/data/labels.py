"""Label columns of tables: from values as they are written to class indices with names.

Legend: n samples, T label columns.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from perceivers.data.sources import UNKNOWN, number_classes
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.foreign import decode_text, read_int
from perceivers.reading import read_file
from perceivers.text_names import check_class_name

DEFAULT_COLUMN = "label"
INTEGER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class LabelTable:
    """The label values of one split.

    Args:
        names: One id per row, for messages.
        columns: Values as they are written, by column; an empty one is unknown.
    """

    names: Sequence[str]
    columns: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Labelling:
    """What the label columns come to.

    Args:
        labels: By split ``[n]`` for one column, ``[n, T]`` for several, None for none.
        classes: Class names of the only column.
        columns: Class names by column, when there are several.
        notes: Sentences on what was decided.
    """

    labels: Mapping[str, NDArray[np.int64] | None]
    classes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def index_labels(
    tables: Mapping[str, LabelTable],
    chosen: Sequence[str],
    folder: Path,
    where: str,
    stated: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Labelling:
    """Turn label values into class indices.

    Integers are indices, named by a file beside the data (``characters.txt`` for the column
    ``character``, and ``classes.txt`` for the only column) or else by themselves. Other values are
    class names: those of the file, or those of the training split in alphabetical order.

    Args:
        tables: The values by split; ``train`` is among them.
        chosen: Columns to read; none reads the column ``label`` where there is one.
        folder: Where the files with names lie.
        where: The data's address, for messages.
        stated: Class names that the data themselves state, by column.

    Raises:
        DataError: A column that is missing in a split, or a value that is no class.
        ConfigError: A column that no split has, or that is chosen twice.
    """
    known = list(tables["train"].columns)
    check_columns(chosen, known, where)
    asked = tuple(chosen) or ((DEFAULT_COLUMN,) if DEFAULT_COLUMN in known else ())
    for split, table in tables.items():
        for column in asked or (DEFAULT_COLUMN,):
            if (column in table.columns) != bool(asked):
                states = {
                    s: "labelled" if column in t.columns else "unlabelled"
                    for s, t in tables.items()
                }
                raise DataError(
                    f"{where}: {split!r} does not agree with 'train' on the label column "
                    f"{column!r} (splits are {states}); label all of them, or none"
                )
    if not asked:
        note = f"unlabelled; label columns to choose from: {', '.join(known)}" if known else ""
        return Labelling(dict.fromkeys(tables), notes=(note,) if note else ())
    indexed: dict[str, dict[str, NDArray[np.int64]]] = {split: {} for split in tables}
    names: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for column in asked:
        only, given = len(asked) == 1, stated.get(column, ())
        given = tuple(check_class_name(name, f"{where}: the class") for name in given)
        values, names[column], note = _index_column(tables, column, folder, where, only, given)
        notes += [note] if note else []
        for split, numbers in values.items():
            indexed[split][column] = numbers
    if len(asked) == 1:
        labels = {split: columns[asked[0]] for split, columns in indexed.items()}
        return Labelling(labels, names[asked[0]], notes=tuple(notes))
    labels = {split: np.stack([c[k] for k in asked], axis=1) for split, c in indexed.items()}
    return Labelling(labels, (), names, tuple(notes))


def check_columns(chosen: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse label columns that cannot be chosen.

    Raises:
        ConfigError: A column that is not known, or is named twice.
    """
    for column in chosen:
        if column not in known:
            have = f"its label columns are {', '.join(known)}" if known else "it has none to choose"
            raise ConfigError(
                f"label column {column!r} is asked for, but {where} has no such column; {have}"
                + suggest(column, known)
            )
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"labels are {list(chosen)}; name each column once")


def read_names(path: Path) -> tuple[str, ...]:
    """Return the lines of a file of class names (line number from 0 = class); none without it.

    Raises:
        DataError: The file is empty, names a class twice, or is no UTF-8 text.
    """
    if not path.is_file():
        return ()
    lines = decode_text(read_file(path), str(path)).splitlines()
    names = tuple(
        check_class_name(line.strip(), f"{path}: line {number}: the class")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    if not names or len(set(names)) != len(names):
        double = sorted({name for name in names if names.count(name) > 1})
        raise DataError(
            f"{path}: {len(names)} class names, repeated: {double}; give one name per line, each "
            f"once"
        )
    return names


def name_file(column: str) -> str:
    """Return the name of the file that names a column's classes: its plural."""
    if column in {DEFAULT_COLUMN, "class"}:
        return "classes.txt"
    if re.search(r"[^aeiou]y$", column):
        return f"{column[:-1]}ies.txt"
    return f"{column}{'es' if re.search(r'(s|x|ch|sh)$', column) else 's'}.txt"


def _index_column(
    tables: Mapping[str, LabelTable],
    column: str,
    folder: Path,
    where: str,
    only: bool,
    stated: tuple[str, ...],
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...], str]:
    """Return one column's indices by split, its class names, and a note."""
    file = folder / name_file(column)
    if only and not file.is_file():
        file = folder / "classes.txt"
    names, note = stated or read_names(file), ""
    values = {split: _check_names(table, column) for split, table in tables.items()}
    if all(
        not v or INTEGER.fullmatch(v) for column_values in values.values() for v in column_values
    ):
        indexed = {
            split: np.array(
                [
                    read_int(v, f"{place}: {column}") if v else UNKNOWN
                    for v, place in zip(written, tables[split].names, strict=True)
                ],
                np.int64,
            )
            for split, written in values.items()
        }
        if not names:
            names = number_classes(max(int(v.max(initial=0)) for v in indexed.values()), where)
            note = f"no {file.name}: {len(names)} classes, named by their numbers"
    else:
        if not names:
            names = tuple(sorted({value for value in values["train"] if value}))
        place = {name: index for index, name in enumerate(names)} | {"": UNKNOWN}
        # Two below the first class, and so out of range in any case.
        indexed = {
            split: np.array([place.get(v, UNKNOWN - 1) for v in written], np.int64)
            for split, written in values.items()
        }
    for split, numbers in indexed.items():
        _check_range(tables[split], column, numbers, names, only)
    return indexed, names, note


def _check_names(table: LabelTable, column: str) -> Sequence[str]:
    """Return the values of a column, each in one spelling, and text that can be written."""
    known: dict[str, str] = {}
    for value, place in zip(table.columns[column], table.names, strict=True):
        if value not in known:
            known[value] = check_class_name(value, f"{place}: {column}")
    return [known[value] for value in table.columns[column]]


def _check_range(
    table: LabelTable,
    column: str,
    numbers: NDArray[np.int64],
    names: tuple[str, ...],
    only: bool,
) -> None:
    """Refuse values that are no class; unknown ones too, where nothing else is known of a row."""
    lowest = 0 if only else UNKNOWN
    wrong = np.flatnonzero((numbers < lowest) | (numbers >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        value = table.columns[column][row]
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        remedy = "" if only else ", and an unknown one is left empty"
        if only and not value:
            remedy = (
                "; put rows without one into a file of their own, to pre-train on, or drop them"
            )
        raise DataError(
            f"{table.names[row]}: {column} {value!r} is no class; the {len(names)} classes, "
            f"numbered from 0, are {listed}{remedy}"
        )
