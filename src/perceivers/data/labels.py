"""Label columns of tables: from values as they are written to class indices with names.

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
# How tables and arrays of floats write whole numbers.
WHOLE = re.compile(r"(-?[0-9]+)\.0*")
# What 64 bits hold for certain; longer ones are names.
MAX_DIGITS = 18
# What integers in a label column are: values, of which each is a class unless they run from 0
# without gaps; or always the indices of classes.
IntegerLabels = Literal["values", "indices"]


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


class Integers(NamedTuple):
    """The classes of a column of integers.

    Args:
        places: Class index of every value.
        names: Class names in the order of the indices.
        note: What was decided.
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
    """Return which class each integer of a label column is.

    With names they are places in them, or the names themselves where all of them are among them.
    Without, they are indices if they run from 0 without gaps over all splits. Any others (ids, -1
    and 1, 1 to 3) are classes by their distinct values in training, sorted by size.

    Args:
        values: By split; ``train`` is among them.
        names: Class names that the data state; none where they state none.
        where: The data's address, for messages.
        column: Its name, for messages.
        integers: ``indices`` takes them as indices in any case.
        only: The only label column; beside others -1 is no class where the rest run from 0.

    Raises:
        DataError: More classes than any data set has.
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
        # Below 0 nothing is a class, which is said with the row.
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
    """Turn label values into class indices.

    Integers are settled by ``settle_integers``, with the names of a file beside the data
    (``characters.txt`` for the column ``character``, and ``classes.txt`` for the only column) if
    there is one. Other values are class names: those of the file, or those of the training split in
    alphabetical order.

    Args:
        tables: The values by split; ``train`` is among them.
        chosen: Columns to read; none reads the column ``label`` where there is one.
        folder: Where the files with names lie; None looks for none.
        where: The data's address, for messages.
        stated: Class names that the data themselves state, by column.
        integers: What integers are.

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


def _find_names(folder: Path, column: str, only: bool) -> Path:
    """Return where the names of a column's classes would lie."""
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
    # Two below the first class, and so out of range in any case.
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
    """Return the values of a column, each in one spelling, and text that can be written."""
    known: dict[str, str] = {}
    for value, place in zip(table.columns[column], table.names, strict=True):
        if value not in known:
            known[value] = check_class_name(value, f"{place}: {column}")
    return [known[value] for value in table.columns[column]]


def as_integer(value: str) -> int | None:
    """Return a value as a whole number, such as 7 for ``7`` and ``7.0``; None for any other."""
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
            f"{table.names[row]}: {column} {value[:40]!r} is no class; the {len(names)} classes, "
            f"numbered from 0, are {listed}{remedy}"
        )


# -- Target columns: numbers to be predicted, from tables, JSON entries and arrays ---------------
#
# Legend: n samples, T target columns.


class Chosen(NamedTuple):
    """The columns that are asked for: labels (none reads ``label``), and numbers to be predicted.

    A column is one or the other. ``bare`` asks for the samples alone, in the order they lie in: no
    label is read, and a column ``split`` divides nothing. ``integers`` says what whole numbers in
    label columns are.
    """

    labels: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    bare: bool = False
    integers: IntegerLabels = "values"

    def check(self) -> None:
        """Refuse a column that is named twice.

        Raises:
            ConfigError: With the column.
        """
        both = [column for column in self.targets if column in self.labels]
        if both:
            raise ConfigError(
                f"column {both[0]!r} is asked for as a label and as a target; a column is either "
                f"a class (labels) or a number to be predicted (targets)"
            )
        if len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"targets are {list(self.targets)}; name each column once")

    def refuse(self, where: str) -> None:
        """Refuse any column, of data that have none.

        Raises:
            ConfigError: A column is asked for.
        """
        check_columns(self.labels, (), where)
        check_targets(self.targets, (), where)


NO_COLUMNS = Chosen()
LARGEST = float(np.finfo(np.float32).max)


def check_targets(chosen: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse target columns that there are not.

    Raises:
        ConfigError: With the columns that there are.
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
        chosen: Columns to read; none returns None.
        places: Where each row lies, for messages.
        where: The data's address, for messages.

    Raises:
        DataError: A value that is no finite number.
        ConfigError: A column that there is not.
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
    """Refuse a target of which training knows no value.

    Raises:
        DataError: With the column.
    """
    for number, column in enumerate(chosen):
        if targets is not None and np.isnan(targets[:, number]).all():
            raise DataError(
                f"{where}: target {column!r} is empty in all {len(targets)} training samples; "
                f"choose another column, or fill it in"
            )


def _as_number(value: Any, column: str, place: str) -> float:
    """Return one value; NaN where it is unknown."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return float("nan")
    number = float("inf")
    if isinstance(value, str | int | float | np.number) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not np.isnan(number) and abs(number) > LARGEST:
        raise DataError(
            f"{place}: {column} is {value!r}, no number that can be learned; a target is a finite "
            f"number, and an unknown one is left empty"
        )
    return number


# -- Label columns from the entries of JSON files, one file per sample ---------------------------
#
# Legend: n samples, T label columns.

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
