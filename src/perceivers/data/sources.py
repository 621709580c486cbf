"""Protocols of data sources: random access to the raw samples of one split.

Legend: n samples, T label or target columns.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.errors import DataError
from perceivers.reading import read_file
from perceivers.types import ModalitySpec

# No data set has more classes; a larger label is an id or a damaged value.
MAX_CLASSES = 1_000_000
UNKNOWN = -1
Item = TypeVar("Item")


class Encoded(NamedTuple):
    """An undecoded file.

    Args:
        path: Path of the file, for messages and for reading.
        data: Its bytes; None leaves the file on disk until it is decoded, so that only the needed
            part of a long file is read.
        kind: The kind to decode; a video file with sound appears twice, once as each kind. ``file``
            stands for the kind of the column that it comes from.
    """

    path: str
    data: bytes | None = None
    kind: str = "file"

    def load(self) -> bytes:
        """Return the bytes; a file that was left on disk is read now.

        Raises:
            DataError: The file cannot be read.
        """
        return read_file(self.path) if self.data is None else self.data


RawSample: TypeAlias = "Mapping[str, Picture | NDArray | Encoded]"


@runtime_checkable
class Source(Protocol):
    """Random access to the samples of one split; cheap to pickle, safe in forked workers."""

    @property
    def names(self) -> Sequence[str]:
        """One stable id per sample, such as a relative path."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class indices ``[n]``, or ``[n, T]`` for several columns, -1 where unknown.

        None if the data are unlabelled.
        """
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> RawSample:
        """Return one sample: images, arrays in the raw layout or undecoded clips, by modality.

        Raises:
            DataError: The sample cannot be read; the message is ``path: reason``.
        """
        ...


@runtime_checkable
class PartialSource(Source, Protocol):
    """A source whose samples may lack modalities; ``read`` omits missing ones."""

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples have each modality ``[n]``, known without reading.

        Every sample has at least one; modalities that all samples have are listed too.
        """
        ...


@runtime_checkable
class UnsureSource(PartialSource, Protocol):
    """A partial source where ``present`` may be True for modalities that turn out to be missing."""

    @property
    def is_sure(self) -> bool:
        """Whether ``present`` is exact for every sample."""
        ...


@runtime_checkable
class TargetSource(Source, Protocol):
    """A source whose samples have numbers to predict."""

    @property
    def targets(self) -> NDArray[np.float32] | None:
        """Numbers to predict ``[n, T]``, NaN where unknown; None without targets."""
        ...


@runtime_checkable
class PictureSource(Protocol):
    """A source of image files that gives access to the bytes, for decoding at a reduced size."""

    def encoded(self, index: int) -> Encoded:
        """Return the undecoded image of modality ``image``.

        Raises:
            DataError: The bytes cannot be read.
        """
        ...


@runtime_checkable
class DeclaringSource(Protocol):
    """A source that declares specs, because a single sample would be misleading."""

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return specs by modality, without mean and std; empty to infer them from samples."""
        ...


@runtime_checkable
class KindedSource(Protocol):
    """A source whose modalities can have any name, and whose arrays can differ in length."""

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """Kind of each modality, such as ``image``; several may have the same kind."""
        ...


@runtime_checkable
class WindowedSource(Protocol):
    """A source of texts whose samples are windows of adjustable length."""

    def with_window(self, window: int) -> Source:
        """Return the same texts in windows of ``window`` bytes, at least 1."""
        ...


@runtime_checkable
class ContentSource(Protocol):
    """A source whose samples are cut from larger items, such as documents or scenes."""

    @property
    def contents(self) -> Sequence[str]:
        """Ids of these items with their extents, independent of how samples are cut."""
        ...


@runtime_checkable
class TiledSource(Protocol):
    """A source of point clouds whose samples are tiles with an adjustable number of points."""

    def with_points(self, points: int) -> Source:
        """Return the same clouds in tiles of ``points`` points, at least 1."""
        ...


def pick(values: Sequence[Item], indices: NDArray[np.int64]) -> list[Item]:
    """Select values by indices."""
    return [values[int(index)] for index in indices]


def number_classes(highest: int, where: str) -> tuple[str, ...]:
    """Name classes by their numbers, up to the highest label.

    Raises:
        DataError: The label cannot be the index of a class.
    """
    if highest >= MAX_CLASSES:
        raise DataError(
            f"{where}: the highest label is {highest}, which would make {highest + 1} classes (at "
            f"most {MAX_CLASSES}); labels must be class indices from 0 without gaps"
        )
    return tuple(str(label) for label in range(highest + 1))


@runtime_checkable
class DivisibleSource(Source, Protocol):
    """A source that supports subsets."""

    def subset(self, indices: NDArray[np.int64]) -> "DivisibleSource":
        """Select samples by index."""
        ...


class Found(NamedTuple):
    """The data at an address.

    Args:
        sources: Sources by split.
        classes: Class names, if there is one label column.
        notes: Sentences that report decisions to the user.
        columns: Class names by label column, if there are several.
        targets: Names of the columns of ``TargetSource.targets``.
        mask_classes: Class names of the ids in masks, from 0.
    """

    sources: Mapping[str, Source]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    targets: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
