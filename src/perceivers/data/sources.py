"""What every reader of data offers: random access to the raw samples of one split.

Legend: C channels, H W rows and columns.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from perceivers.errors import DataError

# More classes than any data set has; beyond it a "label" is an id or a damaged value.
MAX_CLASSES = 1_000_000
Item = TypeVar("Item")
RawSample: TypeAlias = "Mapping[str, Picture | NDArray]"


@runtime_checkable
class Source(Protocol):
    """Random access to the samples of one split; cheap to pickle, safe in forked workers."""

    @property
    def names(self) -> Sequence[str]:
        """One stable id per sample, such as a relative path."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """One class index per sample; None when the data are unlabelled."""
        ...

    def __len__(self) -> int:
        """Count the samples."""
        ...

    def read(self, index: int) -> RawSample:
        """Return a decoded picture, or an array in the raw layout, by modality.

        Raises:
            DataError: The sample cannot be read; the message is ``path: reason``.
        """
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
