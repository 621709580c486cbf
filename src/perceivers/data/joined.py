"""Combining data: files paired by name, labels aligned to a model's classes, joined data sets.

Legend: n samples, T data sets.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import name_kind
from perceivers.data.dataset import Dataset
from perceivers.data.labels import as_integer
from perceivers.data.modality import PLURALS
from perceivers.data.row_source import Column, Part, Raw, RowSource
from perceivers.data.sources import UNKNOWN, Source
from perceivers.errors import DataError
from perceivers.text_names import compose
from perceivers.types import ModalitySpec, Points

# -- Pairing files of several kinds into samples by their paths without extension ----------------
#
# ``cat/1.png`` and ``cat/1.wav`` form one sample. Some samples may lack a kind; but if no sample
# has two kinds, the names were never meant to pair.

Parts = Mapping[str, str]


def kind_of(path: str) -> str:
    """Return the media kind of a file that is already known to have one."""
    kind = name_kind(path.rpartition(os.sep)[2])
    assert kind is not None, path
    return kind


def pair_paths(paths: Sequence[str]) -> dict[str, dict[str, str]]:
    """Group files into samples: files by kind, keyed by their common path without extension.

    Args:
        paths: Paths of the files, each of a known kind.

    Raises:
        DataError: A sample would have two files of one kind.
    """
    samples: dict[str, dict[str, str]] = {}
    # The same name may occur in two Unicode spellings; the first one names the sample.
    first: dict[str, str] = {}
    for path in paths:
        kind = kind_of(path)
        stem = path.rpartition(".")[0]
        parts = samples.setdefault(first.setdefault(compose(stem), stem), {})
        if kind in parts:
            raise DataError(
                f"{path}: has the same name as {Path(parts[kind]).name!r}; files of several kinds "
                f"are paired by name, so a name may have only one file of each kind"
            )
        parts[kind] = path
    return samples


def check_pairs(samples: Sequence[Parts], kinds: Sequence[str], root: Path) -> str:
    """Return a note on samples that lack a kind, or an empty string if none does.

    Args:
        samples: Files by kind, for every sample of all splits.
        kinds: All kinds that occur, at least two.
        root: Folder of the data, for messages.

    Raises:
        DataError: No sample has two kinds.
    """
    held = Counter(tuple(kind for kind in kinds if kind in parts) for parts in samples)
    if all(len(combination) == 1 for combination in held):
        counts = ", ".join(f"{held[(kind,)]} {PLURALS[kind]}" for kind in kinds)
        raise DataError(
            f"{root}: contains {counts}, and no two of different kinds share a name; files of "
            f"several kinds are paired by their paths without extension, such as a/1.png and "
            f"a/1.wav. Rename them, or put each kind into its own folder and give one of those"
        )
    if list(held) == [tuple(kinds)]:
        return ""
    every = ", ".join(
        f"{count} with {' and '.join(PLURALS[kind] for kind in combination)}"
        for combination, count in sorted(held.items(), key=lambda item: (-len(item[0]), item[0]))
    )
    return f"files are paired by name, but not all samples have every kind: {every}"


# ------------------------------------------------------------------------------------------------
# Reordering the labels of other data to match a model's classes, where class names allow it.

Columns = Mapping[str, Sequence[str]]


def align_classes(dataset: Dataset, classes: Sequence[str], columns: Columns) -> Dataset:
    """Renumber the labels of a data set to match the classes of a model, where possible.

    Data with only some of the ids 1007, 2007 and 3007 have fewer classes than a model that was
    trained on all of them; their labels are mapped to the model's classes. A subset of class names
    that are not integers is left alone, because it may belong to a different set of classes.
    Exactly the model's classes in another order are reordered.

    Data without a training split number their classes from held-out samples alone, so there a
    subset of any names is mapped, and integers that are not class names are read as class indices.

    Args:
        dataset: Opened data.
        classes: Classes of a model with one label column.
        columns: Classes of a model with several label columns, by column.
    """
    held_out = "train" not in dataset.splits
    named = _rename(dataset.classes, classes, held_out)
    if named:
        splits = {s: _place(each, [(named, classes)]) for s, each in dataset.splits.items()}
        return replace(dataset, splits=splits, classes=tuple(classes))
    if list(dataset.columns) != list(columns):
        return dataset
    renamed = {name: _rename(own, columns[name], held_out) for name, own in dataset.columns.items()}
    if not any(renamed.values()):
        return dataset
    pairs = [
        (renamed[name], columns[name]) if renamed[name] else (own, own)
        for name, own in dataset.columns.items()
    ]
    splits = {split: _place(source, pairs) for split, source in dataset.splits.items()}
    known = {name: tuple(theirs) for name, (_, theirs) in zip(columns, pairs, strict=True)}
    return replace(dataset, splits=splits, columns=known)


def _rename(own: Sequence[str], theirs: Sequence[str], held_out: bool) -> tuple[str, ...]:
    """Return the model's name for each class; empty if equal already or if they do not match."""
    if not own or tuple(own) == tuple(theirs):
        return ()
    numbers = [as_integer(name) for name in own]
    places = [number for number in numbers if number is not None and 0 <= number < len(theirs)]
    whole = None not in numbers
    if set(own) <= set(theirs):
        # All classes in another order: composed and decomposed Unicode names sort differently.
        same = len(own) == len(theirs)
        return tuple(own) if whole or held_out or same else ()
    return tuple(theirs[place] for place in places) if held_out and len(places) == len(own) else ()


def _place(source: Source, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Source:
    """Map each label column from its first list of names to its second."""
    labels: Any = source.labels
    if labels is None or not is_dataclass(source) or isinstance(source, type):
        return source
    rows: NDArray[np.int64] = labels.reshape(len(labels), -1)
    # Label -1 (unknown) indexes the last entry, which maps it to -1 again.
    tables = [np.array([*(list(b).index(name) for name in a), -1], np.int64) for a, b in pairs]
    placed = np.stack([table[rows[:, i]] for i, table in enumerate(tables)], axis=1)
    return replace(source, labels=placed.reshape(labels.shape))


# -- Several data sets joined into one, with a label column for each of them ---------------------

SEPARATOR = " + "
# Files and folders with these names identify a split, not a data set.
SPLIT_NAMES = {"train", "val", "test"}
ENDINGS = {".npz", ".npy", ".csv", ".jsonl", ".parquet", ".txt", ".tar"}


@dataclass(frozen=True, eq=False)
class JoinedCells(Column):
    """One modality of several sources, one after the other; a row is a sample.

    Args:
        name: Name of the modality.
        prefixes: One word per source, prepended to the ids of its samples.
        sources: The sources, which have the same modalities.
    """

    name: str
    prefixes: Sequence[str]
    sources: Sequence[RowSource]

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Cumulative number of samples up to the end of each source."""
        return np.cumsum([len(source) for source in self.sources])

    @property
    def columns(self) -> list[Column]:
        """The column of each source."""
        return [source.parts[self.name].cells for source in self.sources]

    def find_present(self) -> NDArray[np.bool_]:
        """Return which samples have the modality ``[n]``."""
        pairs = zip(self.columns, self.sources, strict=True)
        return np.concatenate([cells.present[source.rows] for cells, source in pairs])

    def locate(self, row: int) -> tuple[Column, int]:
        """Return the column and row of a sample in its source."""
        cells, place = self._find(row)
        return cells.locate(place)

    def derive(self, row: int, raw: Raw) -> Raw | None:
        """Return what the sample's own column makes of its content."""
        cells, place = self._find(row)
        return cells.derive(place, raw)

    def are_sure(self, rows: NDArray[np.int64]) -> bool:
        """Return whether ``present`` is exact for all samples of all sources."""
        return all(source.is_sure for source in self.sources)

    def declare(self, rows: NDArray[np.int64]) -> Mapping[str, ModalitySpec]:
        """Return the specs of the first source, with the largest number of points of all."""
        pairs = zip(self.columns, self.sources, strict=True)
        declared = [cells.declare(source.rows) for cells, source in pairs]
        if not all(declared):
            return {}
        return {kind: _widest([specs[kind] for specs in declared]) for kind in declared[0]}

    @property
    def is_files(self) -> bool:
        """Whether all cells are undecoded files."""
        return all(cells.is_files for cells in self.columns)

    @property
    def is_ragged(self) -> bool:
        """Whether point sets of the first source may differ in size."""
        return self.columns[0].is_ragged

    @property
    def cut_by(self) -> str:
        """``bytes`` if there are documents; tiles keep their size."""
        return "bytes" if any(cells.cut_by == "bytes" for cells in self.columns) else ""

    @property
    def contents(self) -> Sequence[str]:
        """One id per sample, or per item that a source's samples are cut from."""
        pairs = zip(self.prefixes, self.sources, strict=True)
        return [f"{prefix}/{name}" for prefix, source in pairs for name in source.contents]

    def cut(self, length: int) -> RowSource:
        """Return the joined source, with documents cut into windows of ``length`` bytes."""
        return join_sources(self.prefixes, [source.cut(length) for source in self.sources])

    def find_ends(self, row: int) -> tuple[bool, bool]:
        """Return whether the first and the last byte of a sample lie inside a larger text."""
        cells, place = self._find(row)
        return cells.find_ends(place)

    def _find(self, row: int) -> tuple[Column, int]:
        """Return the column of a sample's source, and the row there."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        source = self.sources[number]
        place = row - (int(self.ends[number - 1]) if number else 0)
        return source.parts[self.name].cells, int(source.rows[place])


def join_sources(
    prefixes: Sequence[str],
    sources: Sequence[RowSource],
    labels: NDArray[np.int64] | None = None,
    *,
    may_lack: bool = False,
) -> RowSource:
    """Return the samples of several sources of the same modalities, one after the other.

    Args:
        prefixes: One word per source, prepended to the ids of its samples.
        sources: The sources.
        labels: Class per data set ``[n, T]``, -1 in the columns of the other data sets; or None.
        may_lack: Whether samples may lack modalities.
    """
    parts = {
        name: Part(part.kind, JoinedCells(name, prefixes, sources))
        for name, part in sources[0].parts.items()
    }
    pairs = zip(prefixes, sources, strict=True)
    names = [f"{prefix}/{name}" for prefix, source in pairs for name in source.names]
    return RowSource(parts, np.arange(len(names)), names, labels, may_lack=may_lack)


def join_datasets(address: str, addresses: Sequence[str], parts: Sequence[Dataset]) -> Dataset:
    """Join opened data sets of the same modalities.

    Every epoch of training reads every sample of every part once.

    Args:
        address: The joined address, for messages.
        addresses: Address of each part; its last folder names the label column.
        parts: The data sets, all labelled or all unlabelled.

    Raises:
        DataError: Only some are labelled, or their modalities or values per point differ.
    """
    names = _name_columns(addresses)
    labelled = [name for name, part in zip(names, parts, strict=True) if part.classes]
    if labelled and len(labelled) < len(parts):
        raise DataError(
            f"{address}: only {', '.join(labelled)} of {', '.join(names)} have plain labels; join "
            f"labelled data with labelled data, or unlabelled with unlabelled"
        )
    kinds = [_describe_modalities(part.splits["train"]) for part in parts]
    if any(kind != kinds[0] for kind in kinds):
        raise DataError(
            f"{address}: modalities are {dict(zip(names, kinds, strict=True))}; only data with the "
            f"same modalities, stored in the same way, can be joined"
        )
    splits, notes = {}, []
    for split in ("train", "val", "test"):
        members = [number for number, part in enumerate(parts) if split in part.splits]
        if members:
            splits[split] = _join_split(names, parts, members, split)
        if members and len(members) < len(parts):
            without = [name for number, name in enumerate(names) if number not in members]
            notes.append(f"{split}: without {', '.join(without)}, which do not have this split")
    for name, part in zip(names, parts, strict=True):
        notes += [f"{name}: {note}" for note in part.notes]
    columns = {n: part.classes for n, part in zip(names, parts, strict=True) if labelled}
    carved = any(part.carved for part in parts)
    return Dataset(address, splits, (), tuple(notes), columns, carved=carved)


def _join_split(
    names: Sequence[str], parts: Sequence[Dataset], members: Sequence[int], split: str
) -> RowSource:
    sources = [_rows_of(parts[number].splits[split]) for number in members]
    rows = []
    for number, source in zip(members, sources, strict=True):
        if source.labels is not None:
            row = np.full((len(source), len(parts)), UNKNOWN, np.int64)
            row[:, number] = source.labels
            rows.append(row)
    labels = np.concatenate(rows) if rows else None
    # All splits declare what is present, even a split where nothing is missing.
    may_lack = any(_rows_of(part.splits["train"]).may_lack for part in parts)
    return join_sources([names[number] for number in members], sources, labels, may_lack=may_lack)


def _rows_of(source: Source) -> RowSource:
    assert isinstance(source, RowSource)
    return source


def _name_columns(addresses: Sequence[str]) -> list[str]:
    """Name each part after its last folder or file, as a unique identifier."""
    names: list[str] = []
    for address in addresses:
        path = Path(address.strip())
        stem = path.stem if path.suffix in ENDINGS else path.name
        if stem in SPLIT_NAMES or "{" in stem:
            stem = path.parent.name
        name = re.sub(r"\W", "_", stem) or "data"
        name = f"_{name}" if name[0].isdigit() else name
        taken = sum(
            other == name or re.fullmatch(rf"{name}_\d+", other) is not None for other in names
        )
        names.append(f"{name}_{taken + 1}" if name in names else name)
    return names


def _describe_modalities(source: Source) -> list[str]:
    """Return the modalities of a source, with image files distinguished from image arrays."""
    return ["image (files)"] if source.is_pictures else sorted(source.kind_by_modality)


def _widest(specs: Sequence[ModalitySpec]) -> ModalitySpec:
    """Return the first spec, with the largest number of points of all specs."""
    first = specs[0]
    if not isinstance(first, Points):
        return first
    found = [spec for spec in specs if isinstance(spec, Points)]
    settings = {(spec.channels, spec.ragged, spec.scale) for spec in found}
    if len(settings) > 1:
        raise DataError(
            f"point sets with different (values per point, ragged, scale) {sorted(settings)} "
            f"cannot be joined; make them equal"
        )
    return replace(first, points=max(spec.points for spec in found))
