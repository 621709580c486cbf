"""Sources whose samples are table rows: one modality per column, possibly with empty cells.

Legend: n samples, T label or target columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.data.audio_clips import SILENT, Tracks, are_known, is_heard
from perceivers.data.containers import MAX_READ, wrap_file
from perceivers.data.http_ranges import fetch_remote, is_remote
from perceivers.data.modality import modalities
from perceivers.data.sources import Encoded, RawSample, Source, pick
from perceivers.errors import DataError
from perceivers.reading import check_file, parse_npy, read_file
from perceivers.text_names import find_spelling

# -- Columns of tables whose cells are media: paths to files, texts, and lists of numbers --------
#
# Legend: n rows, L bytes.


@runtime_checkable
class Cells(Protocol):
    """The cells of one column of a table."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which cells are not empty ``[n]``."""
        ...

    def load(self, row: int) -> Encoded | NDArray:
        """Return a file, or an array.

        Raises:
            DataError: The file cannot be read.
        """
        ...


class Part(NamedTuple):
    """One modality of a table: its kind, such as ``image`` or ``bytes``, and its cells."""

    kind: str
    cells: Cells


@dataclass(frozen=True, eq=False)
class PathCells:
    """Cells that are paths of files.

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
    def present(self) -> NDArray[np.bool_]:
        """Which cells name a file ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> NDArray[np.bool_]:
        return np.array([bool(path) for path in self.paths])

    def resolve(self, row: int) -> str:
        """Return the path or URL of the file of one row."""
        path = self.paths[row]
        return path if is_remote(path) else str(find_spelling(Path(self.folder, path)))

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
            streamed = modalities()[self.kind].streamed and check_file(path).st_size > MAX_READ
            return Encoded(path, None if streamed else read_file(path))
        except DataError as error:
            raise DataError(f"{error}; it is named in {self.places[row]}") from error


@dataclass(frozen=True, eq=False)
class TextCells:
    """Cells that are texts, concatenated in memory.

    Args:
        content: All texts.
        spans: ``[n, 2]``: start and end of each text in ``content``; an empty span is missing.
    """

    content: bytes
    spans: NDArray[np.int64]

    @classmethod
    def join(cls, texts: Sequence[bytes]) -> "TextCells":
        """Create cells from a list of texts."""
        ends = list(accumulate(map(len, texts), initial=0))
        return cls(b"".join(texts), np.array([ends[:-1], ends[1:]], np.int64).T)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which cells are not empty ``[n]``."""
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
    """Cells that are arrays in memory.

    Args:
        arrays: One array per row in the raw layout; None if missing.
    """

    arrays: Sequence[NDArray | None]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which cells are not empty ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> NDArray[np.bool_]:
        return np.array([array is not None for array in self.arrays])

    def load(self, row: int) -> NDArray:
        """Return the array of one row."""
        array = self.arrays[row]
        assert array is not None, row
        return array


@dataclass(frozen=True, eq=False)
class TrackCells:
    """The soundtracks of videos.

    Args:
        videos: Cells with the video files.
        tracks: Which of them have a soundtrack ``[n]``.
    """

    videos: Cells
    tracks: Tracks

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which videos have, or may have, a soundtrack ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> NDArray[np.bool_]:
        return self.tracks != SILENT

    def load(self, row: int) -> Encoded | NDArray:
        """Return the video file of one row."""
        return self.videos.load(row)


# -- Sources whose samples are rows of a table ---------------------------------------------------

AnyRows = TypeVar("AnyRows", bound="RowSource")


@dataclass(frozen=True, eq=False)
class RowSource(Source):
    """A source of samples that have every modality.

    Args:
        parts: The modalities, with the cells of all rows of the table.
        rows: Table row of each sample ``[n]``.
        names: Stable id per sample.
        labels: Class per sample ``[n]``, or ``[n, T]`` for several columns, or None.
        targets: Numbers to predict ``[n, T]``, NaN where unknown, or None.
    """

    parts: Mapping[str, Part]
    rows: NDArray[np.int64]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None
    is_alike = False

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """Kind of each modality."""
        return {name: part.kind for name, part in self.parts.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> RawSample:
        """Read one sample: undecoded clips, decoded images, arrays.

        Raises:
            DataError: A file cannot be read, or an image cannot be decoded.
        """
        row = int(self.rows[index])
        # A video and its soundtrack are in the same file, which is read once.
        loaded: dict[int, Encoded | NDArray] = {}
        sample: dict[str, Picture | NDArray | Encoded] = {}
        for name, (kind, cells) in self.parts.items():
            if not cells.present[row]:
                continue
            tracked = isinstance(cells, TrackCells)
            origin = id(cells.videos if tracked else cells)
            raw = loaded.get(origin)
            raw = loaded[origin] = cells.load(row) if raw is None else raw
            if tracked:
                assert isinstance(raw, Encoded), name
                has_sound = is_heard(cells.tracks, row)
                held = wrap_file("video", raw.path, raw.data, has_sound=has_sound)
                sample |= {name: held["audio"]} if "audio" in held else {}
            else:
                sample[name] = _unwrap(kind, raw)
        return sample

    def subset(self: AnyRows, indices: NDArray[np.int64]) -> AnyRows:
        """Select samples by index."""
        return replace(
            self,
            rows=self.rows[indices],
            names=pick(self.names, indices),
            labels=None if self.labels is None else self.labels[indices],
            targets=None if self.targets is None else self.targets[indices],
        )


@dataclass(frozen=True, eq=False)
class PartialRows(RowSource):
    """A source of samples that may lack modalities."""

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples have each modality ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> Mapping[str, NDArray[np.bool_]]:
        return {name: part.cells.present[self.rows] for name, part in self.parts.items()}

    @cached_property
    def is_sure(self) -> bool:
        """Whether ``present`` is known for every sample."""
        return not _are_unsure(self)


@dataclass(frozen=True, eq=False)
class PictureRows(RowSource):
    """A source of single images, which can be decoded at a reduced size."""

    is_pictures = True

    def encoded(self, index: int) -> Encoded:
        """Return the undecoded image.

        Raises:
            DataError: The bytes cannot be read.
        """
        (part,) = self.parts.values()
        raw = part.cells.load(int(self.rows[index]))
        assert isinstance(raw, Encoded)
        return raw._replace(kind="image")


def make_sources(rows: Mapping[str, RowSource]) -> dict[str, RowSource]:
    """Convert all splits to the same source class, chosen by what their samples contain.

    Args:
        rows: The rows of each split, with the same modalities.

    Raises:
        DataError: A sample has no modality.
    """
    held = {
        split: np.array([part.cells.present[source.rows] for part in source.parts.values()])
        for split, source in rows.items()
    }
    for split, values in held.items():
        empty = np.flatnonzero(~values.any(axis=0))
        if len(empty):
            raise DataError(
                f"{rows[split].names[empty[0]]}: the row is empty, as are {len(empty) - 1} others "
                f"of {split!r}; every sample needs at least one of "
                f"{', '.join(rows[split].parts)}, so remove such rows"
            )
    kinds = next(iter(rows.values())).kind_by_modality
    if not all(values.all() for values in held.values()) or any(map(_are_unsure, rows.values())):
        chosen = PartialRows
    elif kinds == {"image": "image"}:
        chosen = PictureRows
    else:
        chosen = RowSource
    return {
        split: chosen(source.parts, source.rows, source.names, source.labels, source.targets)
        for split, source in rows.items()
    }


def _are_unsure(source: RowSource) -> bool:
    """Return whether some videos were not inspected for a soundtrack."""
    cells = [part.cells for part in source.parts.values()]
    return not are_known(c.tracks[source.rows] for c in cells if isinstance(c, TrackCells))


def _unwrap(kind: str, raw: Encoded | NDArray) -> Picture | NDArray | Encoded:
    """Decode a file as far as its kind requires; arrays are returned unchanged."""
    if not isinstance(raw, Encoded):
        return raw
    if kind == "array":
        return _load_array(raw)
    return wrap_file(kind, raw.path, raw.data, has_sound=False)[kind]


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
