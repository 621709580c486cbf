"""Sources of texts: rows of tables, whole files, and documents read in windows.

A text is read as bytes (uint8); it need not be valid UTF-8.

Legend: n texts, T label columns, L bytes.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.data.pictures import read_bytes
from perceivers.data.sources import Source, pick
from perceivers.data.splits import carve_validation
from perceivers.errors import DataError
from perceivers.reading import check_file, open_file
from perceivers.text_names import show_name
from perceivers.types import Bytes, ModalitySpec

TEXT_EXTENSION = ".txt"
TEXT_LENGTH = 512


@dataclass(frozen=True, eq=False)
class Texts(Source):
    """A source of texts concatenated in memory.

    Args:
        content: All texts.
        spans: ``[n, 2]``: start and end of each text in ``content``.
        names: Stable id per text.
        labels: Class per text ``[n]``, or ``[n, T]`` for several columns, or None.
        targets: Numbers to predict ``[n, T]``, NaN where unknown, or None.
    """

    content: bytes
    spans: NDArray[np.int64]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one text as uint8 ``[L]``.

        Raises:
            DataError: The text is empty.
        """
        first, end = (int(place) for place in self.spans[index])
        return {"bytes": _as_array(self.content[first:end], self.names[index])}

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the default spec."""
        return {"bytes": Bytes(TEXT_LENGTH)}

    def subset(self, indices: NDArray[np.int64]) -> "Texts":
        """Select texts by index."""
        labels = None if self.labels is None else self.labels[indices]
        targets = None if self.targets is None else self.targets[indices]
        names = pick(self.names, indices)
        return Texts(self.content, self.spans[indices], names, labels, targets)


@dataclass(frozen=True, eq=False)
class TextFiles(Source):
    """A source of text files, one text per file.

    Args:
        paths: Path of each text.
        names: Stable ids, relative to the data's folder.
        labels: Class per text, or None.
    """

    paths: Sequence[str]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one text as uint8 ``[L]``.

        Raises:
            DataError: The file is empty or cannot be read.
        """
        path = self.paths[index]
        return {"bytes": _as_array(read_bytes(path), path)}

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the default spec."""
        return {"bytes": Bytes(TEXT_LENGTH)}

    def subset(self, indices: NDArray[np.int64]) -> "TextFiles":
        """Select files by index."""
        labels = None if self.labels is None else self.labels[indices]
        return TextFiles(pick(self.paths, indices), pick(self.names, indices), labels)


class Piece(NamedTuple):
    """A part of a document: its file, its id, and its byte range ``[first, end)``."""

    path: str
    name: str
    first: int
    end: int


@dataclass(frozen=True, eq=False)
class Documents(Source):
    """A source of long texts, cut into consecutive windows of the spec's length.

    Sample k of a piece is its window k plus the following ``window - 1`` bytes. Evaluation uses the
    window itself, so that windows cover the text without overlap. Training uses a window that
    starts at a random position of window k, so that windows can start at every byte of a document.

    Args:
        pieces: The documents, or non-empty parts of them.
        window: Bytes per window; loaders set it to the length of the spec.
    """

    pieces: Sequence[Piece]
    window: int = TEXT_LENGTH
    cut_by = "bytes"

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Cumulative number of windows up to the end of each piece."""
        return np.cumsum([-(-(piece.end - piece.first) // self.window) for piece in self.pieces])

    @property
    def names(self) -> Sequence[str]:
        """One id per window: document and first byte, such as ``alice.txt@512``."""
        return self._names

    @cached_property
    def _names(self) -> Sequence[str]:
        return [
            f"{piece.name}@{first}"
            for piece in self.pieces
            for first in range(piece.first, piece.end, self.window)
        ]

    @property
    def contents(self) -> Sequence[str]:
        """One id per piece, with its byte range."""
        return [f"{piece.name}@{piece.first}-{piece.end}" for piece in self.pieces]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one window and the following bytes, uint8 ``[L]``.

        Raises:
            DataError: The file cannot be read, or has become shorter.
        """
        number = int(np.searchsorted(self.ends, index, side="right"))
        piece = self.pieces[number]
        before = int(self.ends[number - 1]) if number else 0
        first = piece.first + (index - before) * self.window
        end = min(piece.end, first + 2 * self.window - 1)
        return {"bytes": np.frombuffer(_read_range(piece.path, first, end), np.uint8)}

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the default spec."""
        return {"bytes": Bytes(TEXT_LENGTH)}

    def cut(self, length: int) -> "Documents":
        """Return the same documents in windows of ``length`` bytes."""
        return replace(self, window=length)

    def divide(self, share: float, address: str) -> tuple["Documents", "Documents", str]:
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
                replace(self, pieces=pick(self.pieces, kept)),
                replace(self, pieces=pick(self.pieces, carved)),
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
        return replace(self, pieces=train), replace(self, pieces=val), note


def open_documents(paths: Sequence[Path], root: Path) -> Documents:
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
    return Documents(pieces)


def _as_array(text: bytes, name: str) -> NDArray[np.uint8]:
    if not text:
        raise DataError(f"{name}: the text is empty (0 bytes); remove it, or fill it in")
    return np.frombuffer(text, np.uint8)


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
