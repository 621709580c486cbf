"""Sources whose samples are rows: one modality per column of cells, some of which may be empty.

A column knows how its cells are stored: as files, members of tars, cells of tables, arrays, windows
of texts. This file has the columns of files and of arrays in memory; the others are in the files of
their formats.

Legend: n rows or samples, T label or target columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.containers import MAX_READ, decode_file, has_track, open_container
from perceivers.data.http_ranges import fetch_remote, is_remote
from perceivers.data.modality import modalities
from perceivers.data.sources import Encoded, PackedTexts, RawSample, Source, pick
from perceivers.errors import DataError
from perceivers.reading import check_file, parse_npy, read_file
from perceivers.text_names import find_spelling
from perceivers.types import ModalitySpec

# -- Columns -------------------------------------------------------------------------------------

# What a cell gives: a file, an array, or arrays by modality for all columns that share the cell.
Raw: TypeAlias = Encoded | NDArray | Mapping[str, NDArray]


class Column(ABC):
    """The cells of one modality, one for each row; cheap to pickle, safe in forked workers.

    A column implements ``find_present``, and ``load`` unless ``locate`` leads to another column;
    everything else has a default.
    """

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """Which cells are not empty ``[n]``."""
        return self.find_present()

    @abstractmethod
    def find_present(self) -> NDArray[np.bool_]:
        """Return which cells are not empty ``[n]``, without reading them."""

    def load(self, row: int) -> Raw:
        """Return the content of a cell that is not empty.

        Raises:
            DataError: The cell cannot be read.
        """
        raise TypeError(f"{type(self).__name__} loads nothing; see where its cells are with locate")

    def locate(self, row: int) -> tuple["Column", int]:
        """Return the column and row that the content of a cell is loaded from.

        Modalities that share a file or a cell are loaded once for a sample.
        """
        return self, row

    def derive(self, row: int, raw: Raw) -> Raw | None:
        """Return what a cell makes of the content at ``locate``; None if it is missing after all.

        Raises:
            DataError: The content cannot be opened.
        """
        return raw

    def peek(self, row: int) -> Encoded:
        """Return a file, reading as little of it as possible.

        Raises:
            DataError: The file cannot be read.
        """
        raw = self.load(row)
        assert isinstance(raw, Encoded), row
        return raw

    def has_track(self, row: int) -> bool:
        """Return whether a video file has a sound track, reading as little as possible.

        Raises:
            DataError: The video cannot be opened.
        """
        with open_container(self.peek(row)) as container:
            return has_track(container)

    def are_sure(self, rows: NDArray[np.int64]) -> bool:
        """Return whether ``present`` is exact for some rows."""
        return True

    def declare(self, rows: NDArray[np.int64]) -> Mapping[str, ModalitySpec]:
        """Return specs by kind for some rows; empty to infer them from samples."""
        return {}

    @property
    def is_files(self) -> bool:
        """Whether cells are undecoded files."""
        return False

    @property
    def is_local(self) -> bool:
        """Whether ``peek`` leaves files on a local disk, which makes it fast."""
        return False

    @property
    def is_alike(self) -> bool:
        """Whether all cells are arrays of the same shape."""
        return False

    @property
    def is_ragged(self) -> bool:
        """Whether point sets, given as arrays, may differ in size."""
        return not self.is_alike

    @property
    def is_fitted(self) -> bool:
        """Whether cells are fitted to specs; pairs with measured flow keep their size."""
        return True

    # A column whose cells are cut from larger items, such as documents or scenes, also implements:

    @property
    def cut_by(self) -> str:
        """Kind of the spec whose length cells have: ``bytes`` or ``points``; empty if uncut."""
        return ""

    @property
    def contents(self) -> Sequence[str] | None:
        """Ids of the larger items with their extents, however cells are cut; None if uncut."""
        return None

    def cut(self, length: int) -> "RowSource":
        """Return a source of the same items in cells of another length."""
        raise TypeError(f"{type(self).__name__} is not cut from larger items")

    def divide(self, share: float, address: str) -> tuple["RowSource", "RowSource", str]:
        """Set a part of the items aside for validation.

        Args:
            share: Fraction of the items, or of their extent, in 0..1.
            address: Address of the data, for messages.

        Returns:
            Training part, validation part, and a note.

        Raises:
            DataError: The data are too small to be divided.
        """
        raise TypeError(f"{type(self).__name__} is not cut from larger items")

    def find_ends(self, row: int) -> tuple[bool, bool]:
        """Return whether the first and the last byte of a cell lie inside a larger text."""
        return False, False


class Part(NamedTuple):
    """One modality of a source: its kind, such as ``image`` or ``bytes``, and its cells."""

    kind: str
    cells: Column


@dataclass(frozen=True, eq=False)
class FileCells(Column):
    """Cells that are files of a folder.

    Args:
        paths: Path of each file; empty if the modality is missing.
        kind: Kind of the files.
        refusal: Why an empty file cannot be read; without it, decoders decide.
        spec: Spec to declare; None infers one from samples.
    """

    paths: Sequence[str]
    kind: str
    refusal: str = ""
    spec: ModalitySpec | None = None

    @property
    def is_files(self) -> bool:
        """Whether cells are undecoded files."""
        return True

    @property
    def is_local(self) -> bool:
        """Whether ``peek`` leaves files on a local disk."""
        return True

    def find_present(self) -> NDArray[np.bool_]:
        """Return which cells name a file ``[n]``."""
        return np.array([bool(path) for path in self.paths], np.bool_)

    def peek(self, row: int) -> Encoded:
        """Return a file that is not read yet."""
        return Encoded(self.paths[row])

    def load(self, row: int) -> Encoded:
        """Return one file.

        Raises:
            DataError: The file cannot be read, or is empty although it must not be.
        """
        file = fetch_file(self.paths[row], self.kind)
        if self.refusal and file.data == b"":
            raise DataError(f"{file.path}: {self.refusal}")
        return file

    def declare(self, rows: NDArray[np.int64]) -> Mapping[str, ModalitySpec]:
        """Return the spec, if there is one."""
        return {} if self.spec is None else {self.kind: self.spec}


@dataclass(frozen=True, eq=False)
class PathCells(Column):
    """Cells of a table that are paths of files.

    Args:
        folder: Folder that paths are relative to.
        paths: Paths as written in the cells, or URLs; empty if the modality is missing.
        places: Location of each cell, for messages.
        kind: Kind of the files.
    """

    folder: str
    paths: Sequence[str]
    places: Sequence[str]
    kind: str

    @property
    def is_files(self) -> bool:
        """Whether cells are undecoded files."""
        return True

    @property
    def is_local(self) -> bool:
        """Whether no cell is a URL."""
        return not any(map(is_remote, self.paths))

    def find_present(self) -> NDArray[np.bool_]:
        """Return which cells name a file ``[n]``."""
        return np.array([bool(path) for path in self.paths], np.bool_)

    def resolve(self, row: int) -> str:
        """Return the path or URL of the file of one row."""
        path = self.paths[row]
        return path if is_remote(path) else str(find_spelling(Path(self.folder, path)))

    def peek(self, row: int) -> Encoded:
        """Return a local file that is not read yet, or a remote one."""
        return self.load(row) if is_remote(self.paths[row]) else Encoded(self.resolve(row))

    def load(self, row: int) -> Encoded:
        """Return one file.

        Raises:
            DataError: The file cannot be read.
            RemoteError: A server does not respond.
        """
        path = self.resolve(row)
        if is_remote(path):
            data = fetch_remote(path)
            if data is None:
                raise DataError(f"{path}: no such file; it is named in {self.places[row]}")
            return Encoded(path, data)
        try:
            return fetch_file(path, self.kind)
        except DataError as error:
            raise DataError(f"{error}; it is named in {self.places[row]}") from error


@dataclass(frozen=True, eq=False)
class ArrayCells(Column):
    """Cells that are arrays in memory.

    Args:
        arrays: One array per row in the raw layout, None if missing; or one array of all rows.
    """

    arrays: Sequence[NDArray | None] | NDArray

    @property
    def is_alike(self) -> bool:
        """Whether the cells are rows of one array."""
        return isinstance(self.arrays, np.ndarray)

    def find_present(self) -> NDArray[np.bool_]:
        """Return which cells are not empty ``[n]``."""
        return np.array([array is not None for array in self.arrays], np.bool_)

    def load(self, row: int) -> NDArray:
        """Return the array of one row."""
        array = self.arrays[row]
        assert array is not None, row
        return array


def fetch_file(path: str, kind: str) -> Encoded:
    """Return a file; a large one of a kind that is decoded in part stays on disk.

    Raises:
        DataError: The file cannot be read.
    """
    streamed = modalities()[kind].streamed and check_file(path).st_size > MAX_READ
    return Encoded(path, None if streamed else read_file(path))


# -- Sources whose samples are rows --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RowSource(Source):
    """A source of samples that are rows of columns.

    Args:
        parts: The modalities, with the cells of all rows.
        rows: Row of each sample ``[n]``.
        names: Stable id per sample.
        labels: Class per sample ``[n]``, or ``[n, T]`` for several columns, or None.
        targets: Numbers to predict ``[n, T]``, NaN where unknown, or None.
        may_lack: Whether samples of the data, of this split or of another, may lack modalities.
        flaws: Why samples of some rows cannot be used, although their files may be readable.
    """

    parts: Mapping[str, Part]
    rows: NDArray[np.int64]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None
    may_lack: bool = False
    flaws: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> RawSample:
        """Read one sample: undecoded clips, decoded images, arrays.

        Raises:
            DataError: A file cannot be read, or an image cannot be decoded.
        """
        row = int(self.rows[index])
        loaded: dict[tuple[int, int], Raw] = {}
        sample: dict[str, Picture | NDArray | Encoded] = {}
        for name, (kind, cells) in self.parts.items():
            if not cells.present[row]:
                continue
            origin, place = cells.locate(row)
            key = id(origin), place
            if key not in loaded:
                loaded[key] = origin.load(place)
            raw = cells.derive(row, loaded[key])
            raw = raw[name] if isinstance(raw, Mapping) else raw
            if raw is not None:
                sample[name] = _unwrap(kind, raw)
        if row in self.flaws:
            raise DataError(self.flaws[row])
        return sample

    def subset(self, indices: NDArray[np.int64]) -> "RowSource":
        """Select samples by index."""
        held = self.names
        return replace(
            self,
            rows=self.rows[indices],
            names=held.take(indices) if isinstance(held, PackedTexts) else pick(held, indices),
            labels=None if self.labels is None else self.labels[indices],
            targets=None if self.targets is None else self.targets[indices],
        )

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples have each modality ``[n]``; empty if none may lack any."""
        return self._present

    @cached_property
    def _present(self) -> Mapping[str, NDArray[np.bool_]]:
        if not self.may_lack:
            return {}
        return {name: part.cells.present[self.rows] for name, part in self.parts.items()}

    @property
    def is_sure(self) -> bool:
        """Whether ``present`` is exact for every sample."""
        return self._is_sure

    @cached_property
    def _is_sure(self) -> bool:
        return all(part.cells.are_sure(self.rows) for part in self.parts.values())

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """Kind of each modality."""
        return {name: part.kind for name, part in self.parts.items()}

    @property
    def is_alike(self) -> bool:
        """Whether all arrays of a modality have the same shape."""
        return all(part.cells.is_alike for part in self.parts.values())

    def is_ragged(self, name: str) -> bool:
        """Return whether the point sets of a modality, given as arrays, may differ in size."""
        return self.parts[name].cells.is_ragged

    @property
    def is_fitted(self) -> bool:
        """Whether samples are fitted to specs."""
        return all(part.cells.is_fitted for part in self.parts.values())

    @property
    def is_pictures(self) -> bool:
        """Whether every sample is one image file, so that it can be decoded at a reduced size."""
        if self.may_lack or list(self.parts) != ["image"]:
            return False
        kind, cells = self.parts["image"]
        return kind == "image" and cells.is_files

    def encoded(self, index: int) -> Encoded:
        """Return the undecoded image of a source that ``is_pictures``.

        Raises:
            DataError: The bytes cannot be read.
        """
        origin, place = self.parts["image"].cells.locate(int(self.rows[index]))
        raw = origin.load(place)
        assert isinstance(raw, Encoded)
        return raw._replace(kind="image")

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the specs that columns declare, unless one of them infers its own."""
        declared = {name: part.cells.declare(self.rows) for name, part in self.parts.items()}
        if not all(declared.values()):
            return {}
        # Columns that are only targets declare the specs of the inputs beside them.
        return {
            name: specs[self.parts[name].kind]
            for name, specs in declared.items()
            if self.parts[name].kind in specs
        }

    @property
    def items(self) -> Column | None:
        """The column whose cells are cut from larger items, such as documents; or None."""
        return next((part.cells for part in self.parts.values() if part.cells.cut_by), None)

    @property
    def contents(self) -> Sequence[str]:
        """Ids of the samples, or of the larger items that they are cut from, with their extents."""
        stated = (part.cells.contents for part in self.parts.values())
        return next((ids for ids in stated if ids is not None), self.names)

    def find_ends(self, index: int) -> tuple[bool, bool]:
        """Return whether the first and the last byte of a sample lie inside a larger text."""
        row = int(self.rows[index])
        found = (part.cells.find_ends(row) for part in self.parts.values())
        return next((ends for ends in found if any(ends)), (False, False))

    @property
    def cut_by(self) -> str:
        """Kind of the spec whose length samples have: ``bytes`` or ``points``; else empty."""
        return "" if self.items is None else self.items.cut_by

    def cut(self, length: int) -> "RowSource":
        """Return the same data in windows of ``length`` bytes, or tiles of ``length`` points."""
        return self if self.items is None else self.items.cut(length)


class Found(NamedTuple):
    """The data at an address.

    Args:
        sources: Sources by split.
        classes: Class names, if there is one label column.
        notes: Sentences that report decisions to the user.
        columns: Class names by label column, if there are several.
        targets: Names of the columns of ``Source.targets``.
        mask_classes: Class names of the ids in masks, from 0.
    """

    sources: Mapping[str, RowSource]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    targets: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()


def hold_pictures(
    paths: Sequence[str], names: Sequence[str], labels: NDArray[np.int64] | None = None
) -> RowSource:
    """Return a source of image files, from the path, the id and the class of each."""
    parts = {"image": Part("image", FileCells(paths, "image"))}
    return RowSource(parts, np.arange(len(names)), names, labels)


def settle_missing(sources: Mapping[str, RowSource]) -> dict[str, RowSource]:
    """Set ``may_lack`` of all splits, according to what the samples of any of them contain.

    Args:
        sources: Sources by split.

    Raises:
        DataError: A sample has no modality.
    """
    may_lack = False
    for split, source in sources.items():
        held = np.array([part.cells.present[source.rows] for part in source.parts.values()])
        empty = np.flatnonzero(~held.any(axis=0))
        if len(empty):
            raise DataError(
                f"{source.names[empty[0]]}: the row is empty, as are {len(empty) - 1} others "
                f"of {split!r}; every sample needs at least one of "
                f"{', '.join(source.parts)}, so remove such rows"
            )
        may_lack |= not held.all() or not source.is_sure
    return {split: replace(source, may_lack=may_lack) for split, source in sources.items()}


def _unwrap(kind: str, raw: Encoded | NDArray) -> Picture | NDArray | Encoded:
    """Decode a file as far as its kind requires; arrays are returned unchanged."""
    if not isinstance(raw, Encoded):
        return raw
    if kind == "array":
        return _load_array(raw)
    return decode_file(kind, raw.path, raw.data)


def _load_array(raw: Encoded) -> NDArray[np.float32]:
    """Return the array ``[*grid, C]`` in an ``.npy`` file; ``[N]`` becomes ``[N, 1]``."""
    values = parse_npy(raw.data or b"", raw.path)
    try:
        array = np.asarray(values, np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{raw.path}: not an .npy file of plain numbers ({error})") from error
    if not array.size or not array.ndim or not np.isfinite(array).all():
        raise DataError(
            f"{raw.path}: an array of shape {array.shape}; it must be finite numbers of shape "
            f"[*grid, C] or [N]"
        )
    return array[:, None] if array.ndim == 1 else array
