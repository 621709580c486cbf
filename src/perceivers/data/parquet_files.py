"""Parquet files: plain columns are read at once, embedded files one row group at a time.

An embedded file is a cell of bytes, or a struct with ``bytes`` and ``path`` as Hugging Face writes
them. The most recent row groups are cached, because all rows of a group are decoded together.

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
from perceivers.data.row_source import Column, Part
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.foreign import parse_json
from perceivers.reading import check_file, check_limit

# Size in bytes of each process's cache of decoded row groups.
KEPT_BYTES = 2**28
# Size in bytes above which a note warns that random access to row groups is slow.
LARGE_GROUP = 2**24
FEATURE_KINDS = {"Image": "image", "Audio": "audio", "Video": "video"}


class ParquetContent(NamedTuple):
    """Content of a Parquet file: plain columns, embedded files, class names by column, notes."""

    columns: dict[str, list[Any]]
    parts: dict[str, Part]
    classes: dict[str, tuple[str, ...]]
    num_rows: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class EmbeddedCells(Column):
    """Cells of a Parquet column that contain embedded files.

    Args:
        path: The Parquet file.
        stamp: Modification time of the file in nanoseconds; invalidates cached groups.
        column: Name of the column.
        starts: First row of each row group, and the number of rows ``[groups + 1]``.
        held: Which cells contain a file ``[n]``.
    """

    path: str
    stamp: int
    column: str
    starts: NDArray[np.int64]
    held: NDArray[np.bool_]

    @property
    def is_files(self) -> bool:
        """Whether cells are undecoded files."""
        return True

    def find_present(self) -> NDArray[np.bool_]:
        """Return which cells contain a file ``[n]``."""
        return self.held

    def load(self, row: int) -> Encoded:
        """Return the bytes in one cell, or of the file that it names.

        Raises:
            DataError: The cell or the file cannot be read.
        """
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        values = _KEPT.load(self.path, self.stamp, self.column, group)
        cell = values[row - int(self.starts[group])].as_py()
        data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, "")
        if data is None:
            place = str(Path(self.path).parent / str(name))
            return Encoded(place, read_bytes(place))
        where = f"{self.path}/{row}/{self.column}"
        return Encoded(f"{where} ({name})" if name else where, data)


def read_parquet(path: Path) -> ParquetContent:
    """Read the plain columns of a Parquet file, and find the columns of embedded files.

    Other nested columns are ignored, unless they are named after a media kind.

    Raises:
        DataError: The file cannot be read or has no rows, or pyarrow is not installed.
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
                    notes.append(
                        f"{path.name}: column {field.name!r} contains bytes of an unknown kind"
                    )
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
    """Cache of this process's most recently read row groups, up to ``KEPT_BYTES``."""

    def __init__(self) -> None:
        self.held: OrderedDict[tuple[str, int, str, int], Any] = OrderedDict()

    def load(self, path: str, stamp: int, column: str, group: int) -> Any:
        """Return one column of one row group."""
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


# Cached by process id, because forked workers would share the position in an open file.
@lru_cache(maxsize=64)
def _open(path: str, stamp: int, process: int) -> Any:
    _pyarrow()
    return import_module("pyarrow.parquet").ParquetFile(path)


def _pyarrow() -> Any:
    try:
        return import_module("pyarrow")
    except ImportError as error:
        raise DataError(
            f"Parquet files need the package 'pyarrow', which cannot be imported ({error}); run "
            f'pip install "perceivers[tables]"'
        ) from error


def _read_features(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Return the column features that Hugging Face's ``datasets`` stores in the metadata."""
    try:
        text = metadata.get(b"huggingface", b"{}")
        features = parse_json(text, "the column types")["info"]["features"]
    except (DataError, KeyError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: value for name, value in features.items() if isinstance(value, dict)}


def _is_embedded(kind: Any) -> bool:
    """Return whether an Arrow type is bytes, or a struct with a field ``bytes``."""
    types = import_module("pyarrow").types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_nested(kind: Any) -> bool:
    return import_module("pyarrow").types.is_nested(kind)


def _find_present(file: Any, column: str, sizes: list[int]) -> NDArray[np.bool_]:
    """Return which cells are not empty, without reading them if statistics report no nulls."""
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
    """Return the media kind of a column: by its name, its feature, or the first file's name."""
    if column.lower() in KINDS:
        return KINDS[column.lower()]
    feature = str(features.get(column, {}).get("_type", ""))
    held = np.flatnonzero(cells.present)
    if feature in FEATURE_KINDS or not len(held):
        return FEATURE_KINDS.get(feature)
    # EmbeddedCells.load puts the file name in parentheses at the end of the path.
    name = cells.load(int(held[0])).path
    return kind_of_name(name.removesuffix(")"))


def _describe_groups(path: Path, metadata: Any) -> list[str]:
    """Return a note if row groups are too large for random access."""
    sizes = [metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups)]
    if sum(sizes) <= KEPT_BYTES or max(sizes) <= LARGE_GROUP:
        return []
    return [
        f"{path.name}: row groups of up to {max(sizes) / 1e6:.0f} MB are decoded to read one "
        f"sample, which is slow in random order; write the file with row_group_size=100"
    ]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
