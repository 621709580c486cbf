"""Tables as they are written: ``.csv`` with a header, ``.jsonl`` with an object per line, Parquet.

Legend: n rows.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from perceivers.data.labels import IntegerLabels, LabelTable
from perceivers.data.parquet_files import read_parquet
from perceivers.data.pictures import read_bytes
from perceivers.data.row_source import Part
from perceivers.data.sources import pick
from perceivers.errors import DataError
from perceivers.foreign import decode_text, parse_json
from perceivers.text_names import check_writable

TABLE_EXTENSIONS = (".csv", ".jsonl", ".parquet")
TEXTUAL = (".csv", ".jsonl")
SPLIT = "split"
SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    **dict(zip(SPLITS, SPLITS, strict=True)),
    "valid": "val",
    "validation": "val",
    "dev": "val",
}


@dataclass(frozen=True, eq=False)
class Places(Sequence[str]):
    """Where rows lie, such as ``x.csv: line 2``, in the memory of numbers.

    Args:
        word: What comes before each number.
        numbers: One per row ``[n]``.
    """

    word: str
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Places": ...

    def __getitem__(self, index: int | slice) -> "str | Places":
        """Say where one row lies."""
        if isinstance(index, slice):
            return Places(self.word, self.numbers[index])
        return f"{self.word} {self.numbers[index]}"


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one file, or some of them.

    Args:
        path: The file.
        columns: Values by column; None or an empty string is no value.
        rows: Number of each row in the file, from 0 ``[n]``.
        numbers: Line of each row in the file, from 1, or row, from 0, for messages ``[n]``.
        parts: Columns whose cells hold files themselves, of all rows of the file, by name.
        classes: Class names that the file states, by column of class numbers.
        notes: Sentences on what was left out.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]
    parts: Mapping[str, Part] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """One stable id per row: the file's name and the number of the row."""
        return [f"{self.path.name}/{row}" for row in self.rows]

    @property
    def places(self) -> "Places":
        """Where each row lies, for messages."""
        return Places(
            f"{self.path}: {'line' if self.path.suffix.lower() in TEXTUAL else 'row'}", self.numbers
        )

    def take(self, indices: NDArray[np.int64]) -> "Table":
        """Return some of the rows."""
        return replace(
            self,
            columns={name: pick(values, indices) for name, values in self.columns.items()},
            rows=self.rows[indices],
            numbers=self.numbers[indices],
        )

    def label_table(
        self, names: Sequence[str], without: Sequence[str], integers: IntegerLabels = "values"
    ) -> LabelTable:
        """Return the columns that may hold labels, as text: texts, integers and whole floats.

        Args:
            names: One id per row, for messages.
            without: Columns that hold something else.
            integers: ``indices`` leaves columns of floats out.
        """
        write = _write_label if integers == "values" else _write_plain_label
        columns: dict[str, list[str]] = {}
        for name, values in self.columns.items():
            written = [write(value) for value in values] if name not in without else []
            # A fraction is a number to be predicted, and lists are neither.
            fractions = any(
                isinstance(value, float) and text is None and not isnan(value)
                for value, text in zip(values, written, strict=False)
            )
            if any(text is not None for text in written) and not fractions:
                columns[name] = [text or "" for text in written]
        return LabelTable(names, columns)


def _write_plain_label(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) else None


def _write_label(value: Any) -> str | None:
    """Return a value as text; None where it can be no label."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _write_plain_label(value)


def read_table(path: Path) -> Table:
    """Read a table, all but the files that a Parquet file may hold.

    Raises:
        DataError: The file cannot be read as a table, or has no rows.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        found = read_parquet(path)
        rows = np.arange(found.num_rows)
        return Table(path, found.columns, rows, rows, found.parts, found.classes, found.notes)
    columns, lines = _read_csv(path) if suffix == ".csv" else _read_jsonl(path)
    return Table(path, columns, np.arange(len(lines)), np.array(lines, np.int64))


def divide_table(table: Table, *, strict: bool) -> dict[str, Table]:
    """Divide the rows of a table by its column ``split``, if it has one.

    Args:
        table: The whole table.
        strict: Refuse a column ``split`` that holds anything but splits; otherwise such a column is
            like any other.

    Returns:
        Tables by split, without that column; the table as ``train`` where rows are not divided.

    Raises:
        DataError: A value that is no split, or no row for training.
    """
    if SPLIT not in table.columns:
        return {"train": table}
    found = [SPLIT_WORDS.get(str(value).strip().lower()) for value in table.columns[SPLIT]]
    if None in found:
        row = found.index(None)
        if not strict:
            return {"train": table}
        raise DataError(
            f"{table.places[row]}: split is {table.columns[SPLIT][row]!r}; every row belongs to "
            f"train, val or test"
        )
    if "train" not in found:
        if not strict:
            return {"train": table}
        raise DataError(
            f"{table.path}: 'split' holds only {sorted(set(map(str, found)))}; some rows must be "
            f"train"
        )
    columns = {name: values for name, values in table.columns.items() if name != SPLIT}
    splits = np.array(found)
    return {
        split: replace(table, columns=columns).take(np.flatnonzero(splits == split))
        for split in SPLITS
        if split in found
    }


def _read_csv(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """Return a table's columns by the names in its header, and the line where each row ends."""
    data = _read_content(path)
    # A mark at the start is no part of the first column's name. Any bytes are legal in a text;
    # names of columns and classes are refused where they are read.
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: dict[str, list[str]] = {}
    lines: list[int] = []
    try:
        for row in reader:
            if not columns:
                columns = _check_header([name.strip() for name in row], path)
            elif row:
                if len(row) != len(columns):
                    raise DataError(
                        f"{path}: line {reader.line_num} has {len(row)} fields and the header has "
                        f"{len(columns)}; put fields with commas or line breaks in double quotes"
                    )
                for values, value in zip(columns.values(), row, strict=True):
                    values.append(value)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} is no CSV ({error}); close every double quote, write "
            f"one inside a field twice, and give texts of more than {csv.field_size_limit():,} "
            f"characters as .jsonl or .txt"
        ) from error
    if not lines:
        raise DataError(f"{path}: the table has no rows; add at least one below the header")
    return columns, lines


def _check_header(names: list[str], path: Path) -> dict[str, list[str]]:
    """Return empty columns."""
    names = [check_writable(name, f"{path}: line 1: the name of a column") for name in names]
    if len(set(names)) != len(names):
        raise DataError(
            f"{path}: the header is {names}; the first line names the columns, each once"
        )
    return {name: [] for name in names}


def _read_jsonl(path: Path) -> tuple[dict[str, list[Any]], list[int]]:
    """Return the values of every object by key (None where it is absent), and their lines."""
    numbered = [
        (_parse_line(line, f"{path}: line {number}"), number)
        for number, line in enumerate(_read_content(path).split(b"\n"), 1)
        if line.strip()
    ]
    keys = dict.fromkeys(key for row, _ in numbered for key in row)
    columns = {
        check_writable(key, f"{path}: a key"): [row.get(key) for row, _ in numbered] for key in keys
    }
    return columns, [number for _, number in numbered]


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    """Return the object of one line."""
    # Any bytes are legal in a text; other strings are refused where they are read.
    text = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    row: Any = parse_json(text, where, constants=True, halves=True)
    if not isinstance(row, dict):
        raise DataError(
            f"{where} holds {type(row).__name__}; every line is an object with the text under "
            f"'text', or with files under the names of their kinds"
        )
    return row


def _read_content(path: Path) -> bytes:
    """Return the bytes of a table."""
    data = read_bytes(str(path))
    if not data.strip():
        raise DataError(f"{path}: the file is empty ({len(data)} bytes); it needs at least one row")
    if b"\0" in data:
        decode_text(data, str(path))
    return data
