"""Tables of texts: ``.csv`` with a header, and ``.jsonl`` with one JSON object per line.

The column ``text`` holds the text; other columns may hold labels. Any bytes are legal in a text.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from perceivers.data.labels import LabelTable, index_labels
from perceivers.data.pictures import read_bytes
from perceivers.data.sources import Found
from perceivers.data.texts import Texts
from perceivers.errors import DataError, suggest

TEXT = "text"
TABLE_EXTENSIONS = (".csv", ".jsonl")


def read_text_tables(files: Mapping[str, Path], chosen: Sequence[str], where: str) -> Found:
    """Read the tables of some splits.

    Args:
        files: A ``.csv`` or ``.jsonl`` file by split; ``train`` is among them. The names of classes
            are looked for beside it.
        chosen: Label columns; none reads ``label`` where there is one.
        where: The data's address, for messages.

    Raises:
        DataError: A file that cannot be read as a table, lacks the column ``text``, or holds a
            label that is no class.
        ConfigError: A label column that there is not.
    """
    tables, texts = {}, {}
    for split, path in files.items():
        columns = _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path)
        encoded = [_encode_row(text, path, row) for row, text in enumerate(columns.pop(TEXT))]
        names = [f"{path.name}/{row}" for row in range(len(encoded))]
        tables[split] = LabelTable(names, columns)
        ends = list(accumulate((len(text) for text in encoded), initial=0))
        spans = np.array([ends[:-1], ends[1:]], np.int64).T
        texts[split] = Texts(b"".join(encoded), spans, names)
    labelling = index_labels(tables, chosen, files["train"].parent, where)
    sources = {
        split: replace(source, labels=labelling.labels[split]) for split, source in texts.items()
    }
    return Found(sources, labelling.classes, labelling.notes, labelling.columns)


def _read_csv(path: Path) -> dict[str, list[str]]:
    """Return a table's columns by the names in its header."""
    data = _read_table(path)
    if b"\0" in data:
        raise DataError(
            f"{path}: holds a zero byte at {data.index(0)}, as files in UTF-16 do; save it as "
            f"UTF-8, or give texts that need zero bytes as .jsonl or .txt"
        )
    # A mark at the start is no part of the first column's name.
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: dict[str, list[str]] = {}
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
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} is no CSV ({error}); close every double quote, write "
            f"one inside a field twice, and give texts of more than {csv.field_size_limit():,} "
            f"characters as .jsonl or .txt"
        ) from error
    if not columns or not columns[TEXT]:
        raise DataError(f"{path}: the table has no rows; add at least one text below the header")
    return columns


def _check_header(names: list[str], path: Path) -> dict[str, list[str]]:
    """Return empty columns."""
    if len(set(names)) != len(names) or TEXT not in names:
        raise DataError(
            f"{path}: the header is {names}; the first line names the columns, each once, and one "
            f"is {TEXT!r}" + suggest(TEXT, names)
        )
    return {name: [] for name in names}


def _read_jsonl(path: Path) -> dict[str, list[str]]:
    """Return the values of every object by key; a key that some objects lack is empty there."""
    rows = [
        _parse_line(line, f"{path}: line {number}")
        for number, line in enumerate(_read_table(path).split(b"\n"), 1)
        if line.strip()
    ]
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key, "") for row in rows] for key in keys}


def _parse_line(line: bytes, where: str) -> dict[str, str]:
    """Return the text and the possible labels of one line, as strings."""
    try:
        row: Any = json.loads(line.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
    # Deeply nested lines exhaust the parser's stack.
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON ({error}); write one object per line") from error
    text = row.get(TEXT) if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(
            f"{where} holds {found}; every line is an object with the text under {TEXT!r}"
        )
    values = {key: value for key, value in row.items() if isinstance(value, str | int)}
    return {key: str(value) for key, value in values.items()}


def _read_table(path: Path) -> bytes:
    """Return the bytes of a table."""
    data = read_bytes(str(path))
    if not data.strip():
        raise DataError(
            f"{path}: the file is empty ({len(data)} bytes); it needs at least one text"
        )
    return data


def _encode_row(text: str, path: Path, row: int) -> bytes:
    """Return the bytes that a text was read from."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}: text {row} holds {text[error.start]!a} at character {error.start}, half of a "
            f"surrogate pair, which UTF-8 cannot write; remove it"
        ) from error
