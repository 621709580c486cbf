"""Label and target columns: conversion of written values to class indices or numbers.

Legend: n samples, T label columns.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.data.sources import MAX_CLASSES, UNKNOWN, number_classes
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.foreign import decode_text, parse_json
from perceivers.reading import read_file
from perceivers.text_names import check_class_name, check_class_names

DEFAULT_COLUMN = "label"
INTEGER = re.compile(r"-?[0-9]+")
# Whole numbers as tables and float arrays write them: 7.0, 7.
WHOLE = re.compile(r"(-?[0-9]+)\.0*")
# Integers of up to 18 digits always fit into 64 bits; longer ones are treated as names.
MAX_DIGITS = 18
# How integers in a label column are read: as values, where each distinct value is a class unless
# they run from 0 without gaps; or always as class indices.
IntegerLabels = Literal["values", "indices"]


@dataclass(frozen=True)
class LabelTable:
    """The label values of one split.

    Args:
        names: One id per row, for messages.
        columns: Values as written, by column; an empty value is unknown.
    """

    names: Sequence[str]
    columns: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Labelling:
    """Class indices and class names read from label columns.

    Args:
        labels: By split, ``[n]`` for one column, ``[n, T]`` for several, None without labels.
        classes: Class names, if there is one column.
        columns: Class names by column, if there are several.
        notes: Sentences that report decisions to the user.
    """

    labels: Mapping[str, NDArray[np.int64] | None]
    classes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Integers(NamedTuple):
    """The classes of a column of integers.

    Args:
        places: Class index of each value.
        names: Class names in the order of the indices.
        note: A sentence that reports the decision to the user.
    """

    places: Mapping[int, int]
    names: tuple[str, ...]
    note: str = ""


def settle_integers(
    values: Mapping[str, Iterable[int]],
    names: tuple[str, ...],
    where: str,
    *,
    column: str = DEFAULT_COLUMN,
    integers: IntegerLabels = "values",
    only: bool = True,
) -> Integers:
    """Map the integers of a label column to class indices.

    With class names, integers are indices into them, or the names themselves if some integers are
    out of range as indices and all of them are names. Without class names, they are indices if
    they run from 0 without gaps over all splits. Otherwise (ids, -1 and 1, 1 to 3) each distinct
    training value is a class, in ascending order.

    Args:
        values: Integers by split, including ``train``.
        names: Class names stated by the data; empty if there are none.
        where: Address of the data, for messages.
        column: Name of the column, for messages.
        integers: ``indices`` always reads integers as indices.
        only: Whether this is the only label column. If not, -1 means unknown when the other
            integers run from 0 without gaps.

    Raises:
        DataError: There are more distinct values than the maximum number of classes.
    """
    found = {split: set(numbers) for split, numbers in values.items()}
    known = set().union(*found.values())
    without = {UNKNOWN: UNKNOWN} if not only else {}
    if names:
        own = {int(name): place for place, name in enumerate(names) if _is_integer(name)}
        beyond = known - set(range(len(names))) - without.keys()
        if integers == "values" and beyond and known - without.keys() <= own.keys():
            return Integers(without | own, names)
        return Integers(without | {place: place for place in range(len(names))}, names)
    counted = known - without.keys()
    if integers == "indices" or counted == set(range(len(counted))):
        # Negative values are rejected later, where the message can name the row.
        highest = max(counted, default=0)
        names = number_classes(max(highest, 0), where)
        return Integers(without | {place: place for place in range(len(names))}, names)
    kept = sorted(found["train"])
    if len(kept) > MAX_CLASSES:
        raise DataError(
            f"{where}: {column!r} has {len(kept)} distinct integers (at most {MAX_CLASSES} "
            f"classes); choose a column of classes"
        )
    names = tuple(map(str, kept))
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    note = (
        f"the integers of {column!r} do not run from 0 without gaps, so each distinct value is a "
        f"class ({len(names)}: {listed})"
    )
    return Integers({value: place for place, value in enumerate(kept)}, names, note)


def index_labels(
    tables: Mapping[str, LabelTable],
    chosen: Sequence[str],
    folder: Path | None,
    where: str,
    stated: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    integers: IntegerLabels = "values",
) -> Labelling:
    """Convert label values to class indices.

    Class names may come from a file next to the data (``characters.txt`` for the column
    ``character``, ``classes.txt`` for an only column). Integers are mapped by
    ``settle_integers``. Other values are class names: those in the file, or else those of the
    training split in alphabetical order.

    Args:
        tables: Label values by split, including ``train``.
        chosen: Columns to read; empty reads the column ``label`` if it exists.
        folder: Folder of the class name files; None uses no files.
        where: Address of the data, for messages.
        stated: Class names stated by the data themselves, by column.
        integers: How integers are read, see ``IntegerLabels``.

    Raises:
        DataError: A column is missing in a split, or a value is not a class.
        ConfigError: A column does not exist or is chosen twice.
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
                    f"{column!r} (splits are {states}); label all splits, or none"
                )
    if not asked:
        note = f"unlabelled; label columns to choose from: {', '.join(known)}" if known else ""
        return Labelling(dict.fromkeys(tables), notes=(note,) if note else ())
    indexed: dict[str, dict[str, NDArray[np.int64]]] = {split: {} for split in tables}
    names: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for column in asked:
        only, given = len(asked) == 1, stated.get(column, ())
        given = check_class_names(given, f"{where}: a class")
        file = None if folder is None else _find_names(folder, column, only)
        values, names[column], note = _index_column(
            tables, column, file, where, only, given, integers
        )
        notes += [note] if note else []
        for split, numbers in values.items():
            indexed[split][column] = numbers
    if len(asked) == 1:
        labels = {split: columns[asked[0]] for split, columns in indexed.items()}
        return Labelling(labels, names[asked[0]], notes=tuple(notes))
    labels = {split: np.stack([c[k] for k in asked], axis=1) for split, c in indexed.items()}
    return Labelling(labels, (), names, tuple(notes))


def check_columns(chosen: Sequence[str], known: Sequence[str], where: str) -> None:
    """Check that the chosen label columns exist and are chosen once.

    Raises:
        ConfigError: A column does not exist or is chosen twice.
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
    """Return the class names in a file, one per line in class order; empty if it does not exist.

    Raises:
        DataError: The file is empty, names a class twice, or is not UTF-8 text.
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
    """Return the name of the file with a column's class names: the plural of the column."""
    if column in {DEFAULT_COLUMN, "class"}:
        return "classes.txt"
    if re.search(r"[^aeiou]y$", column):
        return f"{column[:-1]}ies.txt"
    return f"{column}{'es' if re.search(r'(s|x|ch|sh)$', column) else 's'}.txt"


def _find_names(folder: Path, column: str, only: bool) -> Path:
    file = folder / name_file(column)
    return folder / "classes.txt" if only and not file.is_file() else file


def _index_column(
    tables: Mapping[str, LabelTable],
    column: str,
    file: Path | None,
    where: str,
    only: bool,
    stated: tuple[str, ...],
    integers: IntegerLabels,
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...], str]:
    """Return one column's indices by split, its class names, and a note."""
    names, note = stated or (read_names(file) if file is not None else ()), ""
    values = {split: _check_names(table, column) for split, table in tables.items()}
    parse = as_integer if integers == "values" else _as_plain_integer
    numbers = {s: [parse(v) if v else None for v in written] for s, written in values.items()}
    whole = all(
        number is not None or not value
        for split, written in values.items()
        for value, number in zip(written, numbers[split], strict=True)
    )
    # Below UNKNOWN, so that the range check rejects it whether or not -1 is allowed.
    wrong = UNKNOWN - 1
    if whole:
        known = {s: [n for n in found if n is not None] for s, found in numbers.items()}
        settled = settle_integers(known, names, where, column=column, integers=integers, only=only)
        if not names:
            beside = "" if file is None else f"no {file.name}: "
            note = settled.note or (
                f"{beside}{len(settled.names)} classes, named by their numbers" if beside else ""
            )
        names = settled.names
        indexed = {
            split: np.array(
                [UNKNOWN if n is None else settled.places.get(n, wrong) for n in found], np.int64
            )
            for split, found in numbers.items()
        }
    else:
        if not names:
            names = tuple(sorted({value for value in values["train"] if value}))
        place = {name: index for index, name in enumerate(names)} | {"": UNKNOWN}
        indexed = {
            split: np.array([place.get(v, wrong) for v in written], np.int64)
            for split, written in values.items()
        }
    for split, found in indexed.items():
        _check_range(tables[split], column, found, names, only)
    return indexed, names, note


def _check_names(table: LabelTable, column: str) -> Sequence[str]:
    """Return the values of a column as checked class names, in one Unicode spelling."""
    known: dict[str, str] = {}
    for value, place in zip(table.columns[column], table.names, strict=True):
        if value not in known:
            known[value] = check_class_name(value, f"{place}: {column}")
    return [known[value] for value in table.columns[column]]


def as_integer(value: str) -> int | None:
    """Return a whole number such as ``7`` or ``7.0`` as an integer; None for other text."""
    match = WHOLE.fullmatch(value)
    return _as_plain_integer(match[1] if match else value)


def _as_plain_integer(value: str) -> int | None:
    return int(value) if _is_integer(value) else None


def _is_integer(value: str) -> bool:
    return len(value) <= MAX_DIGITS and bool(INTEGER.fullmatch(value))


def _check_range(
    table: LabelTable,
    column: str,
    numbers: NDArray[np.int64],
    names: tuple[str, ...],
    only: bool,
) -> None:
    """Reject values that are not a class, and unknown ones if there is only one label column."""
    lowest = 0 if only else UNKNOWN
    wrong = np.flatnonzero((numbers < lowest) | (numbers >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        value = table.columns[column][row]
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        remedy = "" if only else "; leave an unknown one empty"
        if only and not value:
            remedy = (
                "; put rows without a label into a separate file for pre-training, or remove them"
            )
        raise DataError(
            f"{table.names[row]}: {column} {value[:40]!r} is not a class; the {len(names)} "
            f"classes, numbered from 0, are {listed}{remedy}"
        )


# -- Target columns: numbers to predict, from tables, JSON entries and arrays --------------------
#
# Legend: n samples, T target columns.


class Chosen(NamedTuple):
    """Columns chosen by the user: labels (empty reads ``label``) and targets (numbers to predict).

    A column cannot be both. ``bare`` reads the samples alone, in stored order: labels and the
    column ``split`` are ignored. ``integers`` sets how integers in label columns are read.
    """

    labels: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    bare: bool = False
    integers: IntegerLabels = "values"

    def check(self) -> None:
        """Check that no column is chosen twice.

        Raises:
            ConfigError: A column is chosen twice, or both as a label and as a target.
        """
        both = [column for column in self.targets if column in self.labels]
        if both:
            raise ConfigError(
                f"column {both[0]!r} is asked for as a label and as a target; a column is either "
                f"a class (labels) or a number to predict (targets)"
            )
        if len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"targets are {list(self.targets)}; name each column once")

    def refuse(self, where: str) -> None:
        """Reject every chosen column, for data without columns.

        Raises:
            ConfigError: A column was chosen.
        """
        check_columns(self.labels, (), where)
        check_targets(self.targets, (), where)


NO_COLUMNS = Chosen()
LARGEST = float(np.finfo(np.float32).max)


def check_targets(chosen: Sequence[str], known: Sequence[str], where: str) -> None:
    """Check that the chosen target columns exist.

    Raises:
        ConfigError: A column does not exist.
    """
    for column in chosen:
        if column not in known:
            have = f"its columns are {', '.join(known)}" if known else "it has none to choose"
            raise ConfigError(
                f"target {column!r} is asked for, but {where} has no such column; {have}"
                + suggest(column, known)
            )


def read_targets(
    columns: Mapping[str, Sequence[Any] | NDArray],
    chosen: Sequence[str],
    places: Sequence[str],
    where: str,
) -> NDArray[np.float32] | None:
    """Return chosen columns as numbers ``[n, T]``, NaN where a value is empty or missing.

    Args:
        columns: Values by column: numbers, numbers as text, or None.
        chosen: Columns to read; empty returns None.
        places: Location of each row, for messages.
        where: Address of the data, for messages.

    Raises:
        DataError: A value is not a finite number.
        ConfigError: A column does not exist.
    """
    check_targets(chosen, list(columns), where)
    if not chosen:
        return None
    read = [
        [_as_number(value, column, place) for value, place in zip(values, places, strict=True)]
        for column, values in ((column, columns[column]) for column in chosen)
    ]
    return np.array(read, np.float32).T.copy()


def check_known(targets: NDArray[np.float32] | None, chosen: Sequence[str], where: str) -> None:
    """Check that each target has at least one training value.

    Raises:
        DataError: A target is empty in all training samples.
    """
    for number, column in enumerate(chosen):
        if targets is not None and np.isnan(targets[:, number]).all():
            raise DataError(
                f"{where}: target {column!r} is empty in all {len(targets)} training samples; "
                f"choose another column, or fill it in"
            )


def _as_number(value: Any, column: str, place: str) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return float("nan")
    number = float("inf")
    if isinstance(value, str | int | float | np.number) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not np.isnan(number) and abs(number) > LARGEST:
        raise DataError(
            f"{place}: {column} is {value!r}; a target must be a finite number (float32); leave "
            f"it empty if it is unknown"
        )
    return number


# -- Label columns from the entries of JSON files, one file per sample ---------------------------
#
# Legend: n samples, T label columns.

JsonEntries = Mapping[str, Any]


def parse_entries(data: bytes, where: str) -> JsonEntries:
    """Return the entries of a JSON object; empty if the file holds another JSON value.

    Raises:
        DataError: The file is not valid JSON.
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
    """Convert chosen entries to class indices; class names are the sorted values.

    Args:
        entries: The entries of each sample.
        names: Location of each sample, for messages.
        chosen: Entries to read: strings, integers, whole floats, true or false; a missing entry or
            null is unknown.
        known: Fixed class names by column; other values of these columns are unknown.
        where: Address of the data, for messages.

    Returns:
        Labels ``[n]`` for one column or ``[n, T]``, -1 where unknown; class names by column; notes.

    Raises:
        DataError: A value cannot name a class.
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
                f"missing, or not a training class{listed}"
            )
    return (indexed[0] if len(indexed) == 1 else np.stack(indexed, axis=1)), columns, notes


def number_entries(
    entries: Sequence[JsonEntries], names: Sequence[str], chosen: Sequence[str], where: str
) -> NDArray[np.float32] | None:
    """Return chosen entries as numbers ``[n, T]``, NaN where missing or null; None if none chosen.

    Args:
        entries: The entries of each sample.
        names: Location of each sample, for messages.
        chosen: Entries to read.
        where: Address of the data, for messages.

    Raises:
        DataError: A value is not a finite number.
        ConfigError: No sample has the entry.
    """
    fields = sorted({name for entry in entries for name in entry}) if chosen else []
    columns = {field: [entry.get(field) for entry in entries] for field in fields}
    return read_targets(columns, chosen, names, where)


def _check_value(value: Any, column: str, name: str) -> str | int | None:
    """Check that a value can name a class, and bring it into one Unicode spelling."""
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
    """Return the distinct values as names: sorted integers, then sorted strings."""
    numbers = sorted({value for value in values if isinstance(value, int)})
    words = {value for value in values if isinstance(value, str)} - set(map(str, numbers))
    return (*map(str, numbers), *sorted(words))
