"""Sources whose samples are rows of a table: one modality per column, some of which may be empty.

Legend: n samples, T label or target columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.array_files import parse_npy
from perceivers.data.cells import Part, Stored, TrackCells
from perceivers.data.containers import wrap_file
from perceivers.data.sound_tracks import are_known, is_heard
from perceivers.data.sources import Encoded, EncodedClip, RawSample, pick
from perceivers.errors import DataError

AnyRows = TypeVar("AnyRows", bound="RowSource")


@dataclass(frozen=True, eq=False)
class RowSource:
    """A source of samples that hold every modality.

    Args:
        parts: The modalities, with the cells of all rows of the table.
        rows: Row of the table of each sample ``[n]``.
        names: Stable id per sample.
        labels: Class per sample ``[n]``, several columns of them ``[n, T]``, or None.
        targets: Numbers to be predicted ``[n, T]``, NaN where unknown, or None.
    """

    parts: Mapping[str, Part]
    rows: NDArray[np.int64]
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """What each modality is."""
        return {name: part.kind for name, part in self.parts.items()}

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.rows)

    def read(self, index: int) -> RawSample:
        """Return what the cells of one row hold: undecoded clips, decoded pictures, arrays.

        Raises:
            DataError: A file cannot be read, or a picture not be decoded.
        """
        row = int(self.rows[index])
        # A film and its sound are one file, which is read once.
        loaded: dict[int, Stored | NDArray] = {}
        sample: dict[str, Picture | NDArray | EncodedClip] = {}
        for name, (kind, cells) in self.parts.items():
            if not cells.present[row]:
                continue
            tracked = isinstance(cells, TrackCells)
            origin = id(cells.films if tracked else cells)
            raw = loaded.get(origin)
            raw = loaded[origin] = cells.load(row) if raw is None else raw
            if tracked:
                assert isinstance(raw, Stored), name
                has_sound = is_heard(cells.tracks, row)
                held = wrap_file("video", raw.path, raw.data, has_sound=has_sound)
                sample |= {name: held["audio"]} if "audio" in held else {}
            else:
                sample[name] = _unwrap(kind, raw)
        return sample

    def subset(self: AnyRows, indices: NDArray[np.int64]) -> AnyRows:
        """Return a source of some of the samples."""
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
        """Which samples hold each modality ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> Mapping[str, NDArray[np.bool_]]:
        return {name: part.cells.present[self.rows] for name, part in self.parts.items()}

    @cached_property
    def is_sure(self) -> bool:
        """Whether ``present`` is known of every sample."""
        return not _are_unsure(self)


@dataclass(frozen=True, eq=False)
class PictureRows(RowSource):
    """A source of samples that are one picture each, which is decoded no larger than needed."""

    def encoded(self, index: int) -> Encoded:
        """Return the undecoded picture.

        Raises:
            DataError: The bytes cannot be read.
        """
        (part,) = self.parts.values()
        raw = part.cells.load(int(self.rows[index]))
        assert isinstance(raw, Stored)
        assert raw.data is not None
        return Encoded(raw.path, raw.data)


def make_sources(rows: Mapping[str, RowSource]) -> dict[str, RowSource]:
    """Return the splits as sources of the class that suits all of them.

    Args:
        rows: The rows of each split, with the same modalities.

    Raises:
        DataError: A sample that holds no modality.
    """
    held = {
        split: np.array([part.cells.present[source.rows] for part in source.parts.values()])
        for split, source in rows.items()
    }
    for split, values in held.items():
        empty = np.flatnonzero(~values.any(axis=0))
        if len(empty):
            raise DataError(
                f"{rows[split].names[empty[0]]}: holds nothing, nor do {len(empty) - 1} other "
                f"samples of {split!r}; every sample needs at least one of "
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
    """Tell whether there are films that were not looked at for sound."""
    cells = [part.cells for part in source.parts.values()]
    return not are_known(c.tracks[source.rows] for c in cells if isinstance(c, TrackCells))


def _unwrap(kind: str, raw: Stored | NDArray) -> Picture | NDArray | EncodedClip:
    """Return a file as what it is; arrays are ready."""
    if not isinstance(raw, Stored):
        return raw
    if kind == "array":
        return _load_array(raw)
    return wrap_file(kind, raw.path, raw.data, has_sound=False)[kind]


def _load_array(raw: Stored) -> NDArray[np.float32]:
    """Return what an ``.npy`` file holds, ``[*grid, C]``; ``[N]`` gets one channel."""
    values = parse_npy(raw.data or b"", raw.path)
    try:
        array = np.asarray(values, np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{raw.path}: no .npy file of plain numbers ({error})") from error
    if not array.size or not array.ndim or not np.isfinite(array).all():
        raise DataError(
            f"{raw.path}: an array of shape {array.shape}; it must hold finite numbers [*grid, C] "
            f"or [N]"
        )
    return array[:, None] if array.ndim == 1 else array
