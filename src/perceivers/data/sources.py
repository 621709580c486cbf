"""What every reader of data offers: random access to the raw samples of one split.

Legend: n samples, T label or target columns.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.errors import DataError
from perceivers.types import ModalitySpec

# More classes than any data set has; beyond it a "label" is an id or a damaged value.
MAX_CLASSES = 1_000_000
UNKNOWN = -1
Item = TypeVar("Item")


class EncodedClip(NamedTuple):
    """One undecoded file: where it lies, its bytes, and what is wanted of it.

    A container with picture and sound is given twice, once as each kind. Without bytes the file is
    opened when it is decoded, so that no more of a long one is read than is needed.
    """

    path: str
    data: bytes | None
    kind: Literal["image", "audio", "video", "points"]


RawSample: TypeAlias = "Mapping[str, Picture | NDArray | EncodedClip]"


@runtime_checkable
class Source(Protocol):
    """Random access to the samples of one split; cheap to pickle, safe in forked workers."""

    @property
    def names(self) -> Sequence[str]:
        """One stable id per sample, such as a relative path."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class indices ``[n]``, or ``[n, T]`` with several label columns, -1 where unknown.

        None when the data are unlabelled.
        """
        ...

    def __len__(self) -> int:
        """Count the samples."""
        ...

    def read(self, index: int) -> RawSample:
        """Return a picture, an array in the raw layout, or an undecoded clip, by modality.

        Raises:
            DataError: The sample cannot be read; the message is ``path: reason``.
        """
        ...


@runtime_checkable
class PartialSource(Source, Protocol):
    """A source some of whose samples lack modalities; ``read`` leaves those out."""

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples hold each modality ``[n]``, known without reading; every sample holds one.

        Modalities that all samples hold are listed too.
        """
        ...


@runtime_checkable
class UnsureSource(PartialSource, Protocol):
    """A partial source that may count modalities as present of which only reading can tell."""

    @property
    def is_sure(self) -> bool:
        """Whether ``present`` is known of every sample."""
        ...


@runtime_checkable
class TargetSource(Source, Protocol):
    """A source whose samples carry numbers to be predicted."""

    @property
    def targets(self) -> NDArray[np.float32] | None:
        """Numbers ``[n, T]``, NaN where unknown; None when there are none."""
        ...


class Encoded(NamedTuple):
    """One undecoded picture: where it lies, for messages, and its bytes."""

    path: str
    data: bytes


@runtime_checkable
class PictureSource(Protocol):
    """A source of picture files, whose bytes can be had so that only what is needed is decoded."""

    def encoded(self, index: int) -> Encoded:
        """Return the undecoded picture of modality ``image``.

        Raises:
            DataError: The bytes cannot be read.
        """
        ...


@runtime_checkable
class DeclaringSource(Protocol):
    """A source that knows how its samples are best read, where one sample would mislead."""

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return specs by modality, without mean and deviation; none leaves it to the samples."""
        ...


@runtime_checkable
class KindedSource(Protocol):
    """A source whose modalities may have any name, and whose arrays may differ in length."""

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """Return what each modality is, such as ``image``; several may be of one kind."""
        ...


@runtime_checkable
class WindowedSource(Protocol):
    """A source of texts whose samples are windows, of whatever length the model reads."""

    def with_window(self, window: int) -> Source:
        """Return the same texts in windows of so many bytes, at least 1."""
        ...


@runtime_checkable
class ContentSource(Protocol):
    """A source whose samples are cut from larger things, as its reader asks for them."""

    @property
    def contents(self) -> Sequence[str]:
        """Ids, with their extents, of what samples are cut from, however they are cut."""
        ...


@runtime_checkable
class TiledSource(Protocol):
    """A source of point clouds whose samples are tiles, of as many points as the model reads."""

    def with_points(self, points: int) -> Source:
        """Return the same clouds in tiles of so many points, at least 1."""
        ...


def pick(values: Sequence[Item], indices: NDArray[np.int64]) -> list[Item]:
    """Return the values at some places."""
    return [values[int(index)] for index in indices]


def number_classes(highest: int, where: str) -> tuple[str, ...]:
    """Name classes by their numbers, up to the highest label.

    Raises:
        DataError: The label cannot be the index of a class.
    """
    if highest >= MAX_CLASSES:
        raise DataError(
            f"{where}: the highest label is {highest}, which would make {highest + 1} classes (at "
            f"most {MAX_CLASSES}); labels are class indices from 0 without gaps"
        )
    return tuple(str(label) for label in range(highest + 1))


@runtime_checkable
class DivisibleSource(Source, Protocol):
    """A source of which a part can be set aside."""

    def subset(self, indices: NDArray[np.int64]) -> "DivisibleSource":
        """Return a source of some of the samples."""
        ...


class Found(NamedTuple):
    """What lies at an address.

    Sources by split, class names, notes, class names by label column, the names of the columns of
    ``TargetSource.targets``, and names of the ids in masks, from 0.
    """

    sources: Mapping[str, Source]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    targets: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
