"""Data sources: random access to the raw samples of one split.

Legend: n samples, T label or target columns.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, TypeVar

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


class Source:
    """Random access to the samples of one split; cheap to pickle, safe in forked workers.

    A source has ``names`` and implements ``read``; everything else has a default.

    Attributes:
        names: One stable id per sample, such as a relative path.
        labels: Class indices ``[n]``, or ``[n, T]`` for several columns, -1 where unknown; None if
            the data are unlabelled.
        targets: Numbers to predict ``[n, T]``, NaN where unknown; None without targets.
        is_sure: Whether ``present`` is exact for every sample. Otherwise, modalities that it lists
            may turn out to be missing when a sample is read.
        is_pictures: Whether every sample is one undecoded image, which ``encoded`` returns, so that
            it can be decoded at a reduced size.
        is_alike: Whether all arrays of a modality have the same shape.
        is_fitted: Whether samples are fitted to specs; pairs with measured flow keep their size.
        cut_by: Kind of the spec that determines the length of samples, if they are windows of texts
            (``bytes``) or tiles of clouds (``points``); otherwise empty.
    """

    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None
    is_sure: bool = True
    is_pictures: bool = False
    is_alike: bool = True
    is_fitted: bool = True
    cut_by: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> RawSample:
        """Return one sample: images, arrays in the raw layout or undecoded clips, by modality.

        Raises:
            DataError: The sample cannot be read; the message is ``path: reason``.
        """
        raise NotImplementedError

    def encoded(self, index: int) -> Encoded:
        """Return the undecoded image of a source that ``is_pictures``.

        Raises:
            DataError: The bytes cannot be read.
        """
        raise NotImplementedError

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples have each modality ``[n]``, known without reading; empty if all have all.

        Every sample has at least one; modalities that all samples have are listed too.
        """
        return {}

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """Kind of each modality, such as ``image``, where modalities can have any name."""
        return {}

    @property
    def contents(self) -> Sequence[str]:
        """Ids of the samples, or of the larger items that they are cut from, with their extents."""
        return self.names

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return specs by modality, without mean and std; empty to infer them from samples."""
        return {}

    def cut(self, length: int) -> "Source":
        """Return the same data in windows of ``length`` bytes, or tiles of ``length`` points."""
        raise NotImplementedError

    def subset(self, indices: NDArray[np.int64]) -> "Source":
        """Select samples by index."""
        raise NotImplementedError


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

    sources: Mapping[str, Source]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    targets: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
