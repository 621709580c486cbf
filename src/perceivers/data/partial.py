"""Some of the samples of a source: those that hold at least one of the modalities that are read.

Legend: n samples, T label or target columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perceivers.data.sources import (
    DeclaringSource,
    DivisibleSource,
    KindedSource,
    PartialSource,
    RawSample,
    Source,
    TargetSource,
    UnsureSource,
    pick,
)
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.types import ModalitySpec


@dataclass(frozen=True, eq=False)
class SomeSamples:
    """Some samples of a source that cannot be divided by itself.

    Args:
        source: The whole source, whose samples may lack modalities.
        rows: Place in it of each sample ``[n]``.
    """

    source: PartialSource
    rows: NDArray[np.int64]

    @property
    def names(self) -> Sequence[str]:
        """One id per sample, as the whole source has it."""
        return self._names

    @cached_property
    def _names(self) -> Sequence[str]:
        return pick(self.source.names, self.rows)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class per sample ``[n]``, several columns of them ``[n, T]``, or None."""
        labels = self.source.labels
        return None if labels is None else labels[self.rows]

    @property
    def targets(self) -> NDArray[np.float32] | None:
        """Numbers ``[n, T]``, NaN where unknown; None when there are none."""
        targets = self.source.targets if isinstance(self.source, TargetSource) else None
        return None if targets is None else targets[self.rows]

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which samples hold each modality ``[n]``."""
        return self._present

    @cached_property
    def _present(self) -> Mapping[str, NDArray[np.bool_]]:
        return {name: held[self.rows] for name, held in self.source.present.items()}

    @cached_property
    def is_sure(self) -> bool:
        """Whether ``present`` is known of every sample."""
        return self.source.is_sure if isinstance(self.source, UnsureSource) else True

    @property
    def kind_by_modality(self) -> Mapping[str, str]:
        """What each modality is, as far as the whole source says."""
        return self.source.kind_by_modality if isinstance(self.source, KindedSource) else {}

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.rows)

    def read(self, index: int) -> RawSample:
        """Return the modalities that one sample holds.

        Raises:
            DataError: The sample cannot be read.
        """
        return self.source.read(int(self.rows[index]))

    def declare(self) -> Mapping[str, ModalitySpec]:
        """Return the specs that the whole source declares."""
        return self.source.declare() if isinstance(self.source, DeclaringSource) else {}

    def subset(self, indices: NDArray[np.int64]) -> "SomeSamples":
        """Return a source of some of the samples."""
        return replace(self, rows=self.rows[indices])


def keep_holding(source: Source, names: Sequence[str]) -> Source:
    """Return the samples that hold at least one of some modalities.

    Args:
        source: A split; one whose samples hold everything is returned as it is.
        names: The modalities that are read, at least one.

    Raises:
        DataError: No sample holds any of them.
        ConfigError: A modality that the source has not, or none is named.
    """
    if not isinstance(source, PartialSource):
        return source
    present = source.present
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
            f"none of the {len(source)} samples holds any of {', '.join(names)}; read other "
            f"modalities, or add samples that hold these"
        )
    if held.all():
        return source
    rows = np.flatnonzero(held)
    if isinstance(source, DivisibleSource):
        return source.subset(rows)
    return SomeSamples(source, rows)
