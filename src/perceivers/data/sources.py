"""Data sources: random access to the raw samples of one split.

Legend: n samples, T label or target columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar, overload

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


class Source(ABC):
    """Random access to the samples of one split; cheap to pickle, safe in forked workers.

    ``RowSource`` is the source that all readers of data make. Another one has ``names`` and
    implements ``read``; everything else has a default.

    Attributes:
        names: One stable id per sample, such as a relative path.
        labels: Class indices ``[n]``, or ``[n, T]`` for several columns, -1 where unknown; None if
            the data are unlabelled.
        targets: Numbers to predict ``[n, T]``, NaN where unknown; None without targets.
    """

    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> RawSample:
        """Return one sample: images, arrays in the raw layout or undecoded clips, by modality.

        Raises:
            DataError: The sample cannot be read; the message is ``path: reason``.
        """

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples have each modality ``[n]``, known without reading; empty if all have all.

        Every sample has at least one; modalities that all samples have are listed too.
        """
        return {}

    @property
    def is_sure(self) -> bool:
        """Whether no modality in ``present`` can turn out to be missing when a sample is read."""
        return True

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """Kind of each modality, such as ``image``; modalities that are not listed are the kind."""
        return {}

    @property
    def is_alike(self) -> bool:
        """Whether all arrays of a modality have the same shape."""
        return True

    def is_ragged(self, name: str) -> bool:
        """Return whether the point sets of a modality, given as arrays, may differ in size."""
        return False

    @property
    def is_fitted(self) -> bool:
        """Whether samples are fitted to specs; pairs with measured flow keep their size."""
        return True

    @property
    def is_pictures(self) -> bool:
        """Whether every sample is one image file, so that it can be decoded at a reduced size."""
        return False

    def encoded(self, index: int) -> Encoded:
        """Return the undecoded image of a source that ``is_pictures``.

        Raises:
            DataError: The bytes cannot be read.
        """
        raise TypeError(f"{type(self).__name__} is not a source of image files")

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return specs by modality, without mean and std; empty to infer them from samples."""
        return {}

    @property
    def items(self) -> object | None:
        """The documents or scenes that samples are cut from; None if they are not cut."""
        return None

    def find_ends(self, index: int) -> tuple[bool, bool]:
        """Return whether the first and the last byte of a sample lie inside a larger text."""
        return False, False

    @property
    def contents(self) -> Sequence[str]:
        """Ids of the samples, or of the larger items that they are cut from, with their extents."""
        return self.names

    @property
    def cut_by(self) -> str:
        """Kind of the spec whose length samples have: ``bytes`` or ``points``; else empty."""
        return ""

    def cut(self, length: int) -> "Source":
        """Return the same data in windows of ``length`` bytes, or tiles of ``length`` points."""
        raise TypeError(f"{type(self).__name__} is not cut from larger items")

    def subset(self, indices: NDArray[np.int64]) -> "Source":
        """Select samples by index."""
        raise TypeError(f"{type(self).__name__} cannot be divided")


# -- Sequences of names that take little memory --------------------------------------------------


class Names(Sequence[str]):
    """Names that are formatted on demand.

    Args:
        count: Number of names.
        name: Returns a name by index; it can be pickled.
    """

    def __init__(self, count: int, name: Callable[[int], str]) -> None:
        self._count, self._name = count, name

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(self._count)[index]
        return self._name(places) if isinstance(places, int) else [*map(self._name, places)]


# In a list, each string is a Python object. A forked worker that only reads one still changes its
# reference count, so that the operating system copies the memory page by page.


class PackedTexts(Sequence[str]):
    """Immutable sequence of strings, stored in one buffer.

    Args:
        texts: The strings.
    """

    __slots__ = ("_data", "_ends")
    __hash__ = None  # pyright: ignore[reportAssignmentType] - unhashable, like a list

    def __init__(self, texts: Iterable[str] = ()) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._data = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedTexts": ...
    def __getitem__(self, index: int | slice) -> "str | PackedTexts":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        first, end = self._ends[place], self._ends[place + 1]
        return self._data[first:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of strings."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self[:3])
        return f"PackedTexts([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"

    def take(self, indices: NDArray[np.int64]) -> "PackedTexts":
        """Select texts by indices ``[n]``."""
        return PackedTexts(self[int(index)] for index in indices)


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
