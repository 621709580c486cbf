"""Reading of tables: ``.csv`` with a header, ``.jsonl`` with an object per line, Parquet.

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
    """Locations of rows, such as ``x.csv: line 2``, formatted on demand to save memory.

    Args:
        word: Text before each number.
        numbers: Line or row number of each row ``[n]``.
    """

    word: str
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Places": ...

    def __getitem__(self, index: int | slice) -> "str | Places":
        if isinstance(index, slice):
            return Places(self.word, self.numbers[index])
        return f"{self.word} {self.numbers[index]}"


@dataclass(frozen=True, eq=False)
class Table:
    """All or some rows of a table file.

    Args:
        path: The file.
        columns: Values by column; None or an empty string is a missing value.
        rows: Index of each row in the file, from 0 ``[n]``.
        numbers: Line number (from 1) or row number (from 0) of each row, for messages ``[n]``.
        parts: Columns of embedded files by name, for all rows of the file.
        classes: Class names stated by the file, by column of class indices.
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
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """One stable id per row: file name and row index."""
        return [f"{self.path.name}/{row}" for row in self.rows]

    @property
    def places(self) -> "Places":
        """Location of each row, for messages."""
        return Places(
            f"{self.path}: {'line' if self.path.suffix.lower() in TEXTUAL else 'row'}", self.numbers
        )

    def take(self, indices: NDArray[np.int64]) -> "Table":
        """Select rows by index."""
        return replace(
            self,
            columns={name: pick(values, indices) for name, values in self.columns.items()},
            rows=self.rows[indices],
            numbers=self.numbers[indices],
        )

    def label_table(
        self, names: Sequence[str], without: Sequence[str], integers: IntegerLabels = "values"
    ) -> LabelTable:
        """Return the possible label columns as text: columns of texts, integers and whole floats.

        Args:
            names: One id per row, for messages.
            without: Columns to exclude.
            integers: ``indices`` also excludes columns of floats.
        """
        write = _write_label if integers == "values" else _write_plain_label
        columns: dict[str, list[str]] = {}
        for name, values in self.columns.items():
            written = [write(value) for value in values] if name not in without else []
            # A column with fractions is a regression target, not a label.
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
    """Return a value as text; None if it cannot be a label."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _write_plain_label(value)


def read_table(path: Path) -> Table:
    """Read a table, except for the files embedded in a Parquet file.

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
        strict: Whether a column ``split`` with other values is an error; otherwise it is treated
            like any other column.

    Returns:
        Tables by split, without the column; the whole table as ``train`` if it is not divided.

    Raises:
        DataError: A value is not a split, or no row belongs to ``train``.
    """
    if SPLIT not in table.columns:
        return {"train": table}
    found = [SPLIT_WORDS.get(str(value).strip().lower()) for value in table.columns[SPLIT]]
    if None in found:
        row = found.index(None)
        if not strict:
            return {"train": table}
        raise DataError(
            f"{table.places[row]}: split is {table.columns[SPLIT][row]!r}; it must be train, val "
            f"or test"
        )
    if "train" not in found:
        if not strict:
            return {"train": table}
        raise DataError(
            f"{table.path}: 'split' contains only {sorted(set(map(str, found)))}; some rows must "
            f"be train"
        )
    columns = {name: values for name, values in table.columns.items() if name != SPLIT}
    splits = np.array(found)
    return {
        split: replace(table, columns=columns).take(np.flatnonzero(splits == split))
        for split in SPLITS
        if split in found
    }


def _read_csv(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """Return columns by the names in the header, and the line number where each row ends."""
    data = _read_content(path)
    # A byte-order mark is not part of the first column name. Invalid UTF-8 is allowed in texts;
    # names of columns and classes are checked when they are read.
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
            f"{path}: line {reader.line_num} is not valid CSV ({error}); close every double quote, "
            f"double those inside a field, and give texts of more than {csv.field_size_limit():,} "
            f"characters as .jsonl or .txt"
        ) from error
    if not lines:
        raise DataError(f"{path}: the table has no rows; add at least one below the header")
    return columns, lines


def _check_header(names: list[str], path: Path) -> dict[str, list[str]]:
    """Check the column names, and return an empty list for each."""
    names = [check_writable(name, f"{path}: line 1: the name of a column") for name in names]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: the header is {names}; the first line must name each column once")
    return {name: [] for name in names}


def _read_jsonl(path: Path) -> tuple[dict[str, list[Any]], list[int]]:
    """Return the values by key (None where absent), and the line number of each object."""
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
    # Invalid UTF-8 is allowed in texts; other strings are checked when they are read.
    text = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    row: Any = parse_json(text, where, constants=True, halves=True)
    if not isinstance(row, dict):
        raise DataError(
            f"{where} is of type {type(row).__name__}; every line must be an object with the text "
            f"under 'text', or with files under the names of their kinds"
        )
    return row


def _read_content(path: Path) -> bytes:
    data = read_bytes(str(path))
    if not data.strip():
        raise DataError(f"{path}: the file is empty ({len(data)} bytes); it needs at least one row")
    if b"\0" in data:
        decode_text(data, str(path))
    return data
