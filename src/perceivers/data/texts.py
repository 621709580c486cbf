"""Columns of texts: cells of tables, and documents read in windows.

A text is read as bytes (uint8); it need not be valid UTF-8.

Legend: n texts or windows, L bytes.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.data.row_source import Column, Part, RowSource
from perceivers.data.sources import Names, pick
from perceivers.data.splits import carve_validation
from perceivers.errors import DataError
from perceivers.reading import check_file, open_file
from perceivers.text_names import show_name
from perceivers.types import Bytes, ModalitySpec

TEXT_EXTENSION = ".txt"
TEXT_LENGTH = 512
TEXT_SPEC = Bytes(TEXT_LENGTH)
EMPTY_TEXT = "the text is empty (0 bytes); remove it, or fill it in"


@dataclass(frozen=True, eq=False)
class TextCells(Column):
    """Cells that are texts, concatenated in memory.

    Args:
        content: All texts.
        spans: ``[n, 2]``: start and end of each text in ``content``.
        names: Name of each text, for the message that it must not be empty; without names, an empty
            text is a missing one.
    """

    content: bytes
    spans: NDArray[np.int64]
    names: Sequence[str] = ()

    @classmethod
    def join(cls, texts: Sequence[bytes], names: Sequence[str] = ()) -> "TextCells":
        """Create cells from a list of texts."""
        ends = list(accumulate(map(len, texts), initial=0))
        return cls(b"".join(texts), np.array([ends[:-1], ends[1:]], np.int64).T, names)

    def find_present(self) -> NDArray[np.bool_]:
        """Return which cells are not missing ``[n]``."""
        return (self.spans[:, 1] > self.spans[:, 0]) | bool(self.names)

    def load(self, row: int) -> NDArray[np.uint8]:
        """Return one text ``[L]``.

        Raises:
            DataError: The text is empty.
        """
        first, end = (int(place) for place in self.spans[row])
        if first == end:
            raise DataError(f"{self.names[row]}: {EMPTY_TEXT}")
        return np.frombuffer(self.content, np.uint8, end - first, first)

    def declare(self, rows: NDArray[np.int64]) -> Mapping[str, ModalitySpec]:
        """Return the default spec."""
        return {"bytes": TEXT_SPEC}


class Piece(NamedTuple):
    """A part of a document: its file, its id, and its byte range ``[first, end)``."""

    path: str
    name: str
    first: int
    end: int


@dataclass(frozen=True, eq=False)
class Documents(Column):
    """Windows of long texts, cut one after the other; loaders set their length to the spec's.

    Cell k of a piece is its window k plus the following ``window - 1`` bytes. Evaluation uses the
    window itself, so that windows cover the text without overlap. Training uses a window that
    starts at a random position of window k, so that windows can start at every byte of a document.

    Args:
        pieces: The documents, or non-empty parts of them.
        window: Bytes per window.
    """

    pieces: Sequence[Piece]
    window: int = TEXT_LENGTH

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Cumulative number of windows up to the end of each piece."""
        return np.cumsum([-(-(piece.end - piece.first) // self.window) for piece in self.pieces])

    def as_source(self) -> RowSource:
        """Return a source with one sample per window."""
        count = int(self.ends[-1])
        return RowSource(
            {"bytes": Part("bytes", self)}, np.arange(count), Names(count, self.name_window)
        )

    def name_window(self, row: int) -> str:
        """Return the id of a window: document and first byte, such as ``alice.txt@512``."""
        piece, first = self._find(row)
        return f"{piece.name}@{first}"

    def find_present(self) -> NDArray[np.bool_]:
        """Return that no window is missing ``[n]``."""
        return np.ones(int(self.ends[-1]), np.bool_)

    def load(self, row: int) -> NDArray[np.uint8]:
        """Return one window and the following bytes, uint8 ``[L]``.

        Raises:
            DataError: The file cannot be read, or has become shorter.
        """
        piece, first = self._find(row)
        end = min(piece.end, first + 2 * self.window - 1)
        return np.frombuffer(_read_range(piece.path, first, end), np.uint8)

    def declare(self, rows: NDArray[np.int64]) -> Mapping[str, ModalitySpec]:
        """Return the default spec."""
        return {"bytes": TEXT_SPEC}

    @property
    def cut_by(self) -> str:
        """The spec of texts."""
        return "bytes"

    @property
    def contents(self) -> Sequence[str]:
        """One id per piece, with its byte range."""
        return [f"{piece.name}@{piece.first}-{piece.end}" for piece in self.pieces]

    def cut(self, length: int) -> RowSource:
        """Return a source of the same documents in windows of ``length`` bytes."""
        return Documents(self.pieces, length).as_source()

    def find_ends(self, row: int) -> tuple[bool, bool]:
        """Return whether the first and the last byte of a window lie inside its document."""
        piece, first = self._find(row)
        end = min(piece.end, first + 2 * self.window - 1)
        return first > 0, end < Path(piece.path).stat().st_size

    def _find(self, row: int) -> tuple[Piece, int]:
        """Return the piece that contains a window, and the window's first byte."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        piece = self.pieces[number]
        before = int(self.ends[number - 1]) if number else 0
        return piece, piece.first + (row - before) * self.window

    def divide(self, share: float, address: str) -> tuple[RowSource, RowSource, str]:
        """Hold out a part for validation: whole documents if there are enough, else their ends.

        Args:
            share: Fraction of the documents, or of the bytes of each document, in 0..1.
            address: Address of the data, for messages.

        Returns:
            Training documents, validation documents, and a note.

        Raises:
            DataError: All documents have a single byte.
        """
        if share * len(self.pieces) >= 1:
            names = [piece.name for piece in self.pieces]
            kept, carved, note = carve_validation(names, None, share, address)
            return (
                Documents(pick(self.pieces, kept), self.window).as_source(),
                Documents(pick(self.pieces, carved), self.window).as_source(),
                note.replace("samples", "documents").replace("sample ", "document "),
            )
        train, val = [], []
        for piece in self.pieces:
            size = piece.end - piece.first
            cut = piece.end - max(1, round(share * size)) if size > 1 else piece.end
            train.append(piece._replace(end=cut))
            val += [piece._replace(first=cut)] if cut < piece.end else []
        if not val:
            raise DataError(
                f"{address}: {len(self.pieces)} documents of 1 byte each, so none can be divided "
                f"for validation; give longer ones"
            )
        note = f"val: the last {share * 100:g} % of each of {len(self.pieces)} documents"
        kept, carved = (Documents(part, self.window).as_source() for part in (train, val))
        return kept, carved, note


def open_documents(paths: Sequence[Path], root: Path) -> RowSource:
    """Open documents; sizes are read now, contents when needed.

    Args:
        paths: The files, at least one.
        root: The folder that the ids are relative to.

    Raises:
        DataError: A file is empty or cannot be read.
    """
    pieces = []
    for path in paths:
        size = check_file(path).st_size
        if not size:
            raise DataError(f"{path}: the file is empty (0 bytes); fill or remove it")
        name = show_name(Path(os.path.relpath(path, root)).as_posix())
        pieces.append(Piece(str(path), name, 0, size))
    return Documents(pieces).as_source()


def _read_range(path: str, first: int, end: int) -> bytes:
    with open_file(path) as file:
        try:
            file.seek(first)
            data = file.read(end - first)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) != end - first:
        raise DataError(
            f"{path}: ends before byte {end}; the file has changed since it was opened; start again"
        )
    return data
