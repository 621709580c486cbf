"""Sources of texts: rows of tables, whole files, and documents read in windows.

A text is read as its bytes, uint8; any bytes are legal, so files need not be UTF-8.

Legend: n texts, T label columns, L bytes.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.data.pictures import read_bytes
from perceivers.data.sources import pick
from perceivers.data.splits import carve_validation
from perceivers.errors import DataError
from perceivers.reading import check_file, open_file
from perceivers.text_names import show_name
from perceivers.types import Bytes, ModalitySpec

TEXT_EXTENSION = ".txt"
TEXT_LENGTH = 512


@dataclass(frozen=True, eq=False)
class Texts:
    """A source of texts that lie one after the other in memory.

    Args:
        content: All texts.
        spans: ``[n, 2]``: where each text begins and ends in ``content``.
        names: Stable id per text.
        labels: Class per text ``[n]``, several columns of them ``[n, T]``, or None.
        targets: Numbers to be predicted ``[n, T]``, NaN where unknown, or None.
    """

    content: bytes
    spans: NDArray[np.int64]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.names)

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one text, uint8 ``[L]``.

        Raises:
            DataError: The text is empty.
        """
        first, end = (int(place) for place in self.spans[index])
        return {"bytes": _as_array(self.content[first:end], self.names[index])}

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the default spec."""
        return {"bytes": Bytes(TEXT_LENGTH)}

    def subset(self, indices: NDArray[np.int64]) -> "Texts":
        """Return a source of some of the texts."""
        labels = None if self.labels is None else self.labels[indices]
        targets = None if self.targets is None else self.targets[indices]
        names = pick(self.names, indices)
        return Texts(self.content, self.spans[indices], names, labels, targets)


@dataclass(frozen=True, eq=False)
class TextFiles:
    """A source of files, each of which is one text.

    Args:
        paths: Where each text lies.
        names: Stable ids, relative to the data's folder.
        labels: Class per text, or None.
    """

    paths: Sequence[str]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Count the files."""
        return len(self.paths)

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one text, uint8 ``[L]``.

        Raises:
            DataError: The file is empty, or cannot be read.
        """
        path = self.paths[index]
        return {"bytes": _as_array(read_bytes(path), path)}

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the default spec."""
        return {"bytes": Bytes(TEXT_LENGTH)}

    def subset(self, indices: NDArray[np.int64]) -> "TextFiles":
        """Return a source of some of the files."""
        labels = None if self.labels is None else self.labels[indices]
        return TextFiles(pick(self.paths, indices), pick(self.names, indices), labels)


class Piece(NamedTuple):
    """A part of a document: its file, its id, and the bytes ``[first, end)``."""

    path: str
    name: str
    first: int
    end: int


@dataclass(frozen=True, eq=False)
class Documents:
    """A source of long texts, cut into consecutive windows; loaders cut them as long as the spec.

    Sample k of a piece is its window k and what follows, up to the start of window k + 1's last
    byte: evaluation reads the window itself, so that nothing is read twice and nothing is lost, and
    training a window that begins anywhere in the stretch, so that every place of a document is a
    beginning.

    Args:
        pieces: The documents, or parts of them; none is empty.
        window: Bytes per window.
    """

    pieces: Sequence[Piece]
    window: int = TEXT_LENGTH
    labels: None = field(default=None, init=False)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """How many windows there are up to the end of each piece."""
        return np.cumsum([-(-(piece.end - piece.first) // self.window) for piece in self.pieces])

    @property
    def names(self) -> Sequence[str]:
        """One id per window: the document's and the first byte, ``alice.txt@512``."""
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
        """One id per piece, with the bytes that it holds."""
        return [f"{piece.name}@{piece.first}-{piece.end}" for piece in self.pieces]

    def __len__(self) -> int:
        """Count the windows."""
        return int(self.ends[-1])

    def read(self, index: int) -> dict[str, NDArray]:
        """Return one window and what follows it, uint8 ``[L]``.

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

    def with_window(self, window: int) -> "Documents":
        """Return the same documents in windows of so many bytes."""
        return replace(self, window=window)

    def divide(self, share: float, address: str) -> tuple["Documents", "Documents", str]:
        """Set a part aside for validation: whole documents if there are enough, else their ends.

        Args:
            share: Share of the documents, or of the bytes of each one, in 0..1.
            address: The data's address, for messages.

        Returns:
            What stays in training, what is set aside, and a note.

        Raises:
            DataError: One document of one byte.
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
                f"{address}: {len(self.pieces)} documents of 1 byte each, so none can be set aside "
                f"for validation; give longer ones"
            )
        note = f"val: the last {share * 100:g} % of each of {len(self.pieces)} documents"
        return replace(self, pieces=train), replace(self, pieces=val), note


def open_documents(paths: Sequence[Path], root: Path) -> Documents:
    """Return documents, whose sizes are read now and whose bytes are read when needed.

    Args:
        paths: The files, at least one.
        root: The folder that their ids are relative to.

    Raises:
        DataError: A file is empty, or cannot be read.
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
    """Return a text that must not be empty."""
    if not text:
        raise DataError(f"{name}: the text is empty (0 bytes); remove it, or fill it in")
    return np.frombuffer(text, np.uint8)


def _read_range(path: str, first: int, end: int) -> bytes:
    """Return some bytes of a file."""
    with open_file(path) as file:
        try:
            file.seek(first)
            data = file.read(end - first)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) != end - first:
        raise DataError(
            f"{path}: ends before byte {end}; the file has changed since it was opened, so start "
            f"again"
        )
    return data
