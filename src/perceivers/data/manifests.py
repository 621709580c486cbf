"""Manifests: tables with one column per modality, whose cells are paths, texts or lists of numbers.

An empty cell means that the sample lacks the modality. Other columns are labels, numbers to
predict, and the split of each row.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.http_ranges import is_remote
from perceivers.data.labels import Chosen, LabelTable, check_known, index_labels, read_targets
from perceivers.data.masks import MASK_NAME, name_mask_classes
from perceivers.data.media_kinds import KINDS, LISTED, TEXT, find_kinds, is_empty, name_modalities
from perceivers.data.row_source import (
    ArrayCells,
    Column,
    Found,
    Part,
    PathCells,
    RowSource,
    settle_missing,
)
from perceivers.data.sound_tracks import add_sound
from perceivers.data.tables import SPLIT, Table, divide_table, read_table
from perceivers.data.text_sources import encode_cell, read_text_tables
from perceivers.data.texts import TextCells
from perceivers.errors import DataError

# Number of paths to try before reporting that none of a column's files exists.
MAX_TRIED = 16


def read_tables(files: Mapping[str, Path], chosen: Chosen, where: str) -> Found:
    """Read the tables of all splits, as text tables or as manifests.

    Args:
        files: A ``.csv``, ``.jsonl`` or ``.parquet`` file by split, including ``train``. A single
            file is divided by its column ``split``, if it has one. Files with class names are
            searched in the same folder.
        chosen: Label columns (empty reads ``label`` if it exists) and target columns.
        where: Address of the data, for messages.

    Raises:
        DataError: A file cannot be read as a table, has no column of a modality, points to files
            that do not exist, or contains a label that is not a class.
        ConfigError: A column does not exist.
    """
    whole = {split: read_table(path) for split, path in files.items()}
    kinds, notes = _find_modalities(whole)
    media = bool(kinds) and list(kinds) != [TEXT]
    tables = whole
    if list(whole) == ["train"] and not chosen.bare:
        tables = divide_table(whole["train"], strict=media)
    if not media:
        found = read_text_tables(tables, chosen, where)
        return found._replace(notes=(*found.notes, *notes, *_split_notes(tables, whole)))
    names = name_modalities(kinds)
    notes += [
        f"column {column!r} is read as modality {name!r}"
        for column, name in names.items()
        if column.lower() != name and (column.lower(), name) != (TEXT, "bytes")
    ]
    parts = {split: _make_parts(table, kinds, names) for split, table in whole.items()}
    parts, _ = add_sound(parts, last=True)
    rows = {
        split: RowSource(parts[split if split in parts else "train"], table.rows, table.names)
        for split, table in tables.items()
    }
    sources = settle_missing(rows)
    found = label_rows(sources, tables, list(kinds), chosen, where)
    told = (*notes, *describe_missing(sources), *_split_notes(tables, whole), *found.notes)
    if MASK_NAME in kinds.values():
        folder = next(iter(tables.values())).path.parent
        pixels, noted = name_mask_classes(folder, sources, where)
        return found._replace(notes=(*told, *noted), mask_classes=pixels)
    return found._replace(notes=told)


def names_media(path: Path) -> bool:
    """Return whether the column names or cell types of a table show that it refers to media."""
    try:
        table = read_table(path)
    except DataError:
        return False
    kinds, _ = find_kinds(table.columns)
    named = [kind for name, kind in kinds.items() if KINDS.get(name.lower()) == kind]
    return any(kind != "bytes" for kind in (*named, *(p.kind for p in table.parts.values())))


def _find_modalities(tables: Mapping[str, Table]) -> tuple[dict[str, str], list[str]]:
    """Return the kind of each modality column, from the cells of all splits, and notes."""
    columns: dict[str, list[Any]] = {}
    embedded: dict[str, str] = {}
    notes: list[str] = []
    for table in tables.values():
        for name, values in table.columns.items():
            if name != SPLIT:
                columns.setdefault(name, []).extend(values)
        embedded |= {name: part.kind for name, part in table.parts.items()}
        notes += table.notes
    kinds, noted = find_kinds(columns)
    notes += noted
    named = [name for name, kind in kinds.items() if KINDS.get(name.lower()) == kind]
    for column in [name for name in kinds if named and name not in named]:
        # Next to columns named after a modality, this one may only record each row's origin.
        table = next(table for table in tables.values() if column in table.columns)
        paths = [value or "" for value in table.columns[column]]
        cells = PathCells(str(table.path.parent), paths, table.places, kinds[column])
        if tried := _lead_nowhere(cells):
            del kinds[column]
            notes.append(
                f"column {column!r} is not a modality: there is no file {cells.resolve(tried[0])}, "
                f"nor for any of the first {len(tried)} rows"
            )
    return embedded | kinds, notes


def _make_parts(
    table: Table, kinds: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, Part]:
    """Return the modalities of one table, by name."""
    parts: dict[str, Part] = {}
    for column, kind in kinds.items():
        if column in table.parts:
            parts[names[column]] = table.parts[column]
            continue
        values = table.columns.get(column, [None] * len(table))
        parts[names[column]] = Part(kind, _make_cells(table, column, kind, values))
    return parts


def _make_cells(table: Table, column: str, kind: str, values: Sequence[Any]) -> Column:
    """Return the cells of one column as arrays, texts or paths."""
    held = [value for value in values if not is_empty(value)]
    if kind in LISTED and held and all(isinstance(value, list) for value in held):
        return ArrayCells([as_array(v, kind, p) for v, p in zip(values, table.places, strict=True)])
    for value, place in zip(values, table.places, strict=True):
        if not is_empty(value) and not isinstance(value, str):
            lists = f", or all cells are lists of numbers ({', '.join(LISTED)})"
            raise DataError(
                f"{place}: {column} is {str(value)[:60]}; a cell contains "
                f"{'a text' if column.lower() == TEXT else 'the path of a file'}, or is empty"
                + (lists if kind in LISTED else "")
            )
    texts = [value or "" for value in values]
    if column.lower() == TEXT:
        places = table.places
        return TextCells.join([encode_cell(t, p) for t, p in zip(texts, places, strict=True)])
    paths = [os.fsdecode(encode_cell(text.strip(), str(table.path))) for text in texts]
    cells = PathCells(str(table.path.parent), paths, table.places, kind)
    if tried := _lead_nowhere(cells):
        raise DataError(
            f"{table.places[tried[0]]}: {column} is {cells.paths[tried[0]]!r}, but there is no "
            f"file {cells.resolve(tried[0])}, nor for any of the first {len(tried)} rows; paths "
            f"are relative to the folder of the table"
        )
    return cells


def _lead_nowhere(cells: PathCells) -> list[int]:
    """Return the rows of the first paths if none of these paths exists; otherwise an empty list."""
    tried = [row for row, path in enumerate(cells.paths) if path and not is_remote(path)]
    tried = tried[:MAX_TRIED]
    # A path that exists but is not a file, such as a pipe, is rejected when it is read.
    return [] if any(os.path.lexists(cells.resolve(row)) for row in tried) else tried


def as_array(value: Any, kind: str, place: str) -> NDArray[np.float32] | None:
    """Convert a list of numbers to the raw layout of its kind; None for an empty cell.

    Raises:
        DataError: A value is not a finite number, or the layout is wrong.
    """
    if is_empty(value):
        return None
    try:
        array = np.array(value, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{place}: {kind} must be a list of numbers, or of lists of numbers of equal length "
            f"({error})"
        ) from error
    if kind == "audio" and array.ndim == 1:
        array = array[None]
    if array.ndim == 1 and kind == "array":
        array = array[:, None]
    right = array.ndim >= 2 if kind == "array" else array.ndim == 2
    if not right or not array.size or not np.isfinite(array).all():
        layout = {"audio": "[C, S] or [S]", "points": "[P, C]", "array": "[*grid, C] or [N]"}[kind]
        raise DataError(
            f"{place}: {kind} has shape {array.shape}; it must be finite numbers of shape {layout}"
        )
    return array


def label_rows(
    sources: Mapping[str, RowSource],
    tables: Mapping[str, Table],
    media: Sequence[str],
    chosen: Chosen,
    where: str,
) -> Found:
    """Add labels and targets to sources, from the columns that are not modalities.

    Args:
        sources: Sources by split, including ``train``.
        tables: Tables by split.
        media: Columns that are modalities.
        chosen: Label columns (empty reads ``label`` if it exists) and target columns.
        where: Address of the data, for messages.

    Raises:
        DataError: A label is not a class, or a target is not a number.
        ConfigError: A column does not exist.
    """
    labelled: dict[str, LabelTable] = {}
    targets: dict[str, NDArray[np.float32] | None] = {}
    for split, table in tables.items():
        others = {name: v for name, v in table.columns.items() if name not in media}
        targets[split] = read_targets(others, chosen.targets, table.places, where)
        hidden = others if chosen.bare else chosen.targets
        labelled[split] = table.label_table(table.places, (*media, *hidden), chosen.integers)
    check_known(targets["train"], chosen.targets, where)
    train = tables["train"]
    labelling = index_labels(
        labelled, chosen.labels, train.path.parent, where, train.classes, chosen.integers
    )
    filled = {
        split: replace(source, labels=labelling.labels[split], targets=targets[split])
        for split, source in sources.items()
    }
    return Found(
        filled, labelling.classes, labelling.notes, labelling.columns, tuple(chosen.targets)
    )


def describe_missing(sources: Mapping[str, RowSource]) -> list[str]:
    """Return a note on how many training samples have each modality, if some lack one."""
    train = sources["train"]
    counts = {name: int(part.cells.present[train.rows].sum()) for name, part in train.parts.items()}
    if all(count == len(train) for count in counts.values()):
        return []
    held = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [f"of {len(train)} training rows, samples with: {held}"]


def _split_notes(tables: Mapping[str, Table], whole: Mapping[str, Table]) -> list[str]:
    """Return a note if one table was divided into splits."""
    if tables is whole or list(tables) == list(whole):
        return []
    counts = " / ".join(f"{split} {len(table)}" for split, table in tables.items())
    return [f"splits are taken from the column 'split': {counts}"]
