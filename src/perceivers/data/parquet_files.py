"""Parquet files: plain columns are read at once, embedded files a group of rows at a time.

An embedded file is a cell of bytes, or a struct with ``bytes`` and ``path`` as Hugging Face writes
them. A reader keeps a few groups of rows, because rows of one group are decoded together.

Legend: n rows.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.data.media_kinds import KINDS, kind_of_name
from perceivers.data.pictures import read_bytes
from perceivers.data.row_source import Part, Stored
from perceivers.errors import DataError
from perceivers.foreign import parse_json
from perceivers.limits import check_limit
from perceivers.reading import check_file

# Bytes of decoded groups that each process keeps.
KEPT_BYTES = 2**28
# Beyond this, random access to one row wastes more than it reads.
LARGE_GROUP = 2**24
FEATURE_KINDS = {"Image": "image", "Audio": "audio", "Video": "video"}


class ParquetContent(NamedTuple):
    """Plain columns, columns of embedded files, class names by column, rows, and notes."""

    columns: dict[str, list[Any]]
    parts: dict[str, Part]
    classes: dict[str, tuple[str, ...]]
    num_rows: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class EmbeddedCells:
    """Cells of a Parquet file that are files themselves.

    Args:
        path: The Parquet file.
        stamp: When it was changed last, in nanoseconds.
        column: The column.
        starts: First row of each group, and the number of rows ``[groups + 1]``.
        present: Which cells hold a file ``[n]``.
    """

    path: str
    stamp: int
    column: str
    starts: NDArray[np.int64]
    present: NDArray[np.bool_]

    def load(self, row: int) -> Stored:
        """Return the bytes of one cell, or of the file that it names.

        Raises:
            DataError: It cannot be read.
        """
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        values = _KEPT.load(self.path, self.stamp, self.column, group)
        cell = values[row - int(self.starts[group])].as_py()
        data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, "")
        if data is None:
            place = str(Path(self.path).parent / str(name))
            return Stored(place, read_bytes(place))
        where = f"{self.path}/{row}/{self.column}"
        return Stored(f"{where} ({name})" if name else where, data)


def read_parquet(path: Path) -> ParquetContent:
    """Read the plain columns of a Parquet file, and find those whose cells are files.

    Columns of other nested values are left out, unless their name is a kind.

    Raises:
        DataError: The file cannot be read, or holds no rows, or pyarrow is not installed.
    """
    stamp = check_file(path).st_mtime_ns
    try:
        file = _open(str(path), stamp, os.getpid())
        schema, metadata = file.schema_arrow, file.metadata
        check_limit("array", 8 * max(metadata.num_rows, 0), str(path))
        features = _read_features(schema.metadata or {})
        columns: dict[str, list[Any]] = {}
        parts: dict[str, Part] = {}
        notes: list[str] = []
        sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        for field in schema:
            if _is_embedded(field.type):
                present = _find_present(file, field.name, sizes)
                cells = EmbeddedCells(str(path), stamp, field.name, starts, present)
                kind = _find_kind(field.name, features, cells)
                if kind is None:
                    notes.append(f"{path.name}: column {field.name!r} holds bytes of no known kind")
                else:
                    parts[field.name] = Part(kind, cells)
            elif field.name.lower() in KINDS or not _is_nested(field.type):
                read = file.read([field.name], use_threads=False)
                columns[field.name] = read.column(0).to_pylist()
    except _pyarrow().ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet ({_first_line(error)})") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or _first_line(error)})"
        ) from error
    if not starts[-1]:
        raise DataError(f"{path}: the table has no rows; add at least one")
    notes += _describe_groups(path, metadata) if parts else []
    classes = {
        name: tuple(feature["names"])
        for name, feature in features.items()
        if feature.get("_type") == "ClassLabel" and feature.get("names")
    }
    return ParquetContent(columns, parts, classes, int(starts[-1]), tuple(notes))


class _Groups:
    """The groups of rows that this process has read last, up to so many bytes."""

    def __init__(self) -> None:
        self.held: OrderedDict[tuple[str, int, str, int], Any] = OrderedDict()

    def load(self, path: str, stamp: int, column: str, group: int) -> Any:
        """Return one column of one group."""
        key = (path, stamp, column, group)
        if key in self.held:
            self.held.move_to_end(key)
            return self.held[key]
        try:
            file = _open(path, stamp, os.getpid())
            values = file.read_row_group(group, columns=[column], use_threads=False).column(0)
        except (_pyarrow().ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({_first_line(error)})") from error
        self.held[key] = values
        while len(self.held) > 1 and sum(v.nbytes for v in self.held.values()) > KEPT_BYTES:
            self.held.popitem(last=False)
        return values


_KEPT = _Groups()


# By process, because forked workers would share the position in an open file.
@lru_cache(maxsize=64)
def _open(path: str, stamp: int, process: int) -> Any:
    """Open a Parquet file, as it was changed last, for one process."""
    _pyarrow()
    return import_module("pyarrow.parquet").ParquetFile(path)


def _pyarrow() -> Any:
    """Import ``pyarrow``, which is optional.

    Raises:
        DataError: It is not installed.
    """
    try:
        return import_module("pyarrow")
    except ImportError as error:
        raise DataError(
            f"Parquet files need the package 'pyarrow', which cannot be imported ({error}); run "
            f'pip install "perceivers[tables]"'
        ) from error


def _read_features(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face's ``datasets`` notes of each column."""
    try:
        text = metadata.get(b"huggingface", b"{}")
        features = parse_json(text, "the column types")["info"]["features"]
    except (DataError, KeyError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: value for name, value in features.items() if isinstance(value, dict)}


def _is_embedded(kind: Any) -> bool:
    """Tell whether an Arrow type is bytes, or a struct with bytes."""
    types = import_module("pyarrow").types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_nested(kind: Any) -> bool:
    """Tell whether an Arrow type has parts."""
    return import_module("pyarrow").types.is_nested(kind)


def _find_present(file: Any, column: str, sizes: list[int]) -> NDArray[np.bool_]:
    """Tell which cells hold something, from the statistics where they say that all do."""
    nulls = 0
    for group in range(len(sizes)):
        chunks = [
            file.metadata.row_group(group).column(c) for c in range(file.metadata.num_columns)
        ]
        leaves = [c for c in chunks if c.path_in_schema in {column, f"{column}.bytes"}]
        known = all(leaf.statistics is not None for leaf in leaves)
        nulls += sum(leaf.statistics.null_count for leaf in leaves) if known else 1
    if not nulls:
        return np.ones(sum(sizes), np.bool_)
    found: list[bool] = []
    for group in range(len(sizes)):
        for cell in file.read_row_group(group, columns=[column], use_threads=False).column(0):
            value = cell.as_py()
            found.append(any(value.values()) if isinstance(value, dict) else bool(value))
    return np.array(found, np.bool_)


def _find_kind(
    column: str, features: Mapping[str, Mapping[str, Any]], cells: EmbeddedCells
) -> str | None:
    """Return what the files of a column are: by its name, by its feature, or by their names."""
    if column.lower() in KINDS:
        return KINDS[column.lower()]
    feature = str(features.get(column, {}).get("_type", ""))
    held = np.flatnonzero(cells.present)
    if feature in FEATURE_KINDS or not len(held):
        return FEATURE_KINDS.get(feature)
    # The decoded name stands behind the place in the table, in parentheses.
    name = cells.load(int(held[0])).path
    return kind_of_name(name.removesuffix(")"))


def _describe_groups(path: Path, metadata: Any) -> list[str]:
    """Say that groups of rows are too large to be read at random."""
    sizes = [metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups)]
    if sum(sizes) <= KEPT_BYTES or max(sizes) <= LARGE_GROUP:
        return []
    return [
        f"{path.name}: groups of rows of up to {max(sizes) / 1e6:.0f} MB are read to get at one "
        f"sample, which is slow in random order; write the file with row_group_size=100"
    ]


def _first_line(error: Exception) -> str:
    """Return what an error says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]
