"""Columns of tables whose cells are media: paths to files, texts, and lists of numbers.

Legend: n rows, L bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from perceivers.data.containers import MAX_READ
from perceivers.data.http_ranges import fetch_remote, is_remote
from perceivers.data.sound_tracks import SILENT, Tracks
from perceivers.errors import DataError
from perceivers.reading import check_file, read_file
from perceivers.text_names import find_spelling

# Kinds of files of which a part may be decoded, so that long ones stay on the disk until then.
STREAMED = ("audio", "video", "points")


class Stored(NamedTuple):
    """One undecoded file: where it lies, and its bytes; None leaves a long one on the disk."""

    path: str
    data: bytes | None


@runtime_checkable
class Cells(Protocol):
    """The cells of one column, of all rows of a table."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which cells hold something ``[n]``."""
        ...

    def load(self, row: int) -> Stored | NDArray:
        """Return a file's bytes, or a ready array.

        Raises:
            DataError: The file cannot be read.
        """
        ...


class Part(NamedTuple):
    """One modality of a table: what it is, such as ``image`` or ``bytes``, and its cells."""

    kind: str
    cells: Cells


@dataclass(frozen=True, eq=False)
class PathCells:
    """Cells that say where files lie.

    Args:
        folder: What paths are relative to.
        paths: The cells as they are written, or addresses ``http://``; an empty one holds nothing.
        places: Where each cell is written, for messages.
        kind: What the files are.
    """

    folder: str
    paths: Sequence[str]
    places: Sequence[str]
    kind: str

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which cells name a file ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> NDArray[np.bool_]:
        return np.array([bool(path) for path in self.paths])

    def resolve(self, row: int) -> str:
        """Return where the file of one row lies."""
        path = self.paths[row]
        return path if is_remote(path) else str(find_spelling(Path(self.folder, path)))

    def load(self, row: int) -> Stored:
        """Return the bytes of one file.

        Raises:
            DataError: It cannot be read; the message says where the table names it.
            RemoteError: A server does not answer.
        """
        path = self.resolve(row)
        if is_remote(path):
            data = fetch_remote(path)
            if data is None:
                raise DataError(f"{path}: no such file; it is named in {self.places[row]}")
            return Stored(path, data)
        try:
            streamed = self.kind in STREAMED and check_file(path).st_size > MAX_READ
            return Stored(path, None if streamed else read_file(path))
        except DataError as error:
            raise DataError(f"{error}; it is named in {self.places[row]}") from error


@dataclass(frozen=True, eq=False)
class TextCells:
    """Cells that are texts, one after the other in memory.

    Args:
        content: All texts.
        spans: ``[n, 2]``: where each begins and ends in ``content``; an empty one is no text.
    """

    content: bytes
    spans: NDArray[np.int64]

    @classmethod
    def join(cls, texts: Sequence[bytes]) -> "TextCells":
        """Return the cells of some texts."""
        ends = list(accumulate(map(len, texts), initial=0))
        return cls(b"".join(texts), np.array([ends[:-1], ends[1:]], np.int64).T)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which cells hold a text ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> NDArray[np.bool_]:
        return self.spans[:, 1] > self.spans[:, 0]

    def load(self, row: int) -> NDArray[np.uint8]:
        """Return one text ``[L]``."""
        first, end = (int(place) for place in self.spans[row])
        return np.frombuffer(self.content, np.uint8, end - first, first)


@dataclass(frozen=True, eq=False)
class ArrayCells:
    """Cells that are ready arrays.

    Args:
        arrays: One per row in the raw layout; None holds nothing.
    """

    arrays: Sequence[NDArray | None]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which cells hold an array ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> NDArray[np.bool_]:
        return np.array([array is not None for array in self.arrays])

    def load(self, row: int) -> NDArray:
        """Return one array."""
        array = self.arrays[row]
        assert array is not None, row
        return array


@dataclass(frozen=True, eq=False)
class TrackCells:
    """The sound tracks of films, which lie in the same files.

    Args:
        films: The cells that hold the films.
        tracks: Which of them have sound ``[n]``.
    """

    films: Cells
    tracks: Tracks

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which films have, or may have, sound ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> NDArray[np.bool_]:
        return self.tracks != SILENT

    def load(self, row: int) -> Stored | NDArray:
        """Return the bytes of one film."""
        return self.films.load(row)
