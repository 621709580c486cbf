"""Subsets of a source: the samples that have at least one of the modalities to read.

Legend: n samples, T label or target columns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from perceivers.data.sources import RawSample, Source, pick
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.types import ModalitySpec

# -- Many short texts in two buffers, which take little memory and are shared by forked workers --
#
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


# -- Subsets of a source -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SomeSamples(Source):
    """Subset of a source that does not implement ``subset``.

    Args:
        source: The whole source, whose samples may lack modalities.
        rows: Index of each sample in the whole source ``[n]``.
    """

    source: Source
    is_alike = False
    rows: NDArray[np.int64]

    @property
    def names(self) -> Sequence[str]:
        """One id per sample, as in the whole source."""
        return self._names

    @cached_property
    def _names(self) -> Sequence[str]:
        return pick(self.source.names, self.rows)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class per sample ``[n]``, or ``[n, T]`` for several columns, or None."""
        labels = self.source.labels
        return None if labels is None else labels[self.rows]

    @property
    def targets(self) -> NDArray[np.float32] | None:
        """Numbers to predict ``[n, T]``, NaN where unknown; None without targets."""
        targets = self.source.targets
        return None if targets is None else targets[self.rows]

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples have each modality ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> Mapping[str, NDArray[np.bool_]]:
        return {name: held[self.rows] for name, held in self.source.present.items()}

    @cached_property
    def is_sure(self) -> bool:
        """Whether ``present`` is known for every sample."""
        return self.source.is_sure

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """Kind of each modality, as declared by the whole source."""
        return self.source.kind_by_modality

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> RawSample:
        """Return the modalities of one sample.

        Raises:
            DataError: The sample cannot be read.
        """
        return self.source.read(int(self.rows[index]))

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the specs that the whole source declares."""
        return self.source.declare()

    def subset(self, indices: NDArray[np.int64]) -> "SomeSamples":
        """Select samples by index."""
        return replace(self, rows=self.rows[indices])


def keep_holding(source: Source, names: Sequence[str]) -> Source:
    """Select the samples that have at least one of the given modalities.

    Args:
        source: A split; it is returned unchanged if all of its samples qualify.
        names: The modalities to read, at least one.

    Raises:
        DataError: No sample has any of the modalities.
        ConfigError: ``names`` is empty, or the source does not have one of the modalities.
    """
    present = source.present
    if not present:
        return source
    for name in names:
        if name not in present:
            raise ConfigError(
                f"modality {name!r} is asked for, but the data hold {sorted(present)}"
                + suggest(name, present)
            )
    if not names:
        raise ConfigError(f"no modality is asked for; name some of {sorted(present)}")
    held = np.any([present[name] for name in names], axis=0)
    if not held.any():
        raise DataError(
            f"none of the {len(source)} samples has any of {', '.join(names)}; read other "
            f"modalities, or add samples with these"
        )
    if held.all():
        return source
    rows = np.flatnonzero(held)
    try:
        return source.subset(rows)
    except NotImplementedError:
        return SomeSamples(source, rows)
