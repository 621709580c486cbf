"""Batches: samples stacked to tensors, and the names of those that could not be read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.data.fits import scale_values
from perceivers.data.fitting import SampleReader
from perceivers.data.sources import PartialSource, TargetSource, UnsureSource
from perceivers.data.views import MIDDLE, Place
from perceivers.errors import DataError
from perceivers.types import ModalitySpec

# What a modality is made of when no sample of a batch holds it; float32 where not listed.
BLANK_DTYPES = {"image": np.uint8, "video": np.uint8, "bytes": np.int64}


@dataclass
class Batch:
    """Some samples.

    Args:
        inputs: Raw tensors ``[B, ...]`` by modality; ``[B * V, ...]`` where each sample is seen in
            V views, those of a sample one after the other. What a sample lacks is zero.
        labels: Class indices ``[B]``, or ``[B, T]`` in several label columns, -1 where unknown,
            int64; None when unlabelled.
        index: Place of each sample in its source ``[B]``, int64; documents are counted in windows
            of the spec's length.
        bad: ``path: reason`` of each sample that could not be read.
        targets: Numbers to be predicted ``[B, T]``, NaN where unknown, float32; None without any.
        present: Which samples hold a modality, bool ``[B]`` (``[B * V]``), for every modality of
            data whose samples may lack some; empty when nothing can be missing, or when only
            reading tells and nothing is.
        position: Place of each sample in the endless stream of training, or ``index`` in
            evaluation ``[B]``, int64: what is random about a sample is keyed on it.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    index: Tensor
    bad: list[str]
    targets: Tensor | None = None
    present: dict[str, Tensor] = field(default_factory=dict)
    position: Tensor | None = None

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.index)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "Batch":
        """Return the batch on a device; ``index`` and ``position`` stay where they are."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, from which copies to a GPU overlap with work."""
        return self._map(torch.Tensor.pin_memory)

    def split(self, parts: int) -> list["Batch"]:
        """Cut a batch of one view per sample into parts of equal size, but for the last.

        Args:
            parts: How many, at least 1; fewer where there are not as many samples.
        """
        if parts == 1:
            return [self]
        size = -(-len(self) // parts)
        cut = [self.take(slice(i, i + size)) for i in range(0, len(self), size)]
        cut[0].bad = self.bad
        return cut

    def take(self, rows: slice | Tensor) -> "Batch":
        """Return some samples of one view each, without the names of bad ones.

        Args:
            rows: A slice, or indices ``[b]``.
        """
        return replace(
            self._map(lambda tensor: tensor[rows]),
            index=self.index[rows],
            position=None if self.position is None else self.position[rows],
            bad=[],
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with what a model or a task reads of it changed."""
        return replace(
            self,
            inputs={name: change(tensor) for name, tensor in self.inputs.items()},
            labels=None if self.labels is None else change(self.labels),
            targets=None if self.targets is None else change(self.targets),
            present={name: change(tensor) for name, tensor in self.present.items()},
        )


def stack_batch(
    reader: SampleReader,
    samples: Sequence[dict[str, NDArray]],
    indices: Sequence[int],
    bad: list[str],
    positions: Sequence[int] | None = None,
) -> Batch:
    """Stack samples, of which there may be none; then there are no inputs either.

    Args:
        reader: Where they come from.
        samples: Every view of every sample.
        indices: Place of each sample in its source.
        bad: ``path: reason`` of those that could not be read.
        positions: Place of each sample in the stream; ``indices`` when not given.
    """
    index = np.array(indices, np.int64)
    partial = isinstance(reader.source, PartialSource)
    if isinstance(reader.source, UnsureSource) and not reader.source.is_sure:
        # Nothing need be missing; a batch that lacks nothing is then one of a source that cannot.
        partial = any(len(sample) < len(reader.specs) for sample in samples)
    inputs, present = {}, {}
    for name in (reader.specs if partial else samples[0]) if samples else ():
        inputs[name] = torch.from_numpy(_stack(name, samples, reader.specs))
        if partial:
            present[name] = torch.tensor([name in sample for sample in samples])
    labels = reader.source.labels
    targets = reader.source.targets if isinstance(reader.source, TargetSource) else None
    return Batch(
        inputs,
        None if labels is None else torch.from_numpy(labels[index]),
        torch.from_numpy(index),
        bad,
        targets=None if targets is None else torch.from_numpy(targets[index]),
        present=present,
        position=torch.tensor(indices if positions is None else positions, dtype=torch.int64),
    )


def _stack(
    name: str, samples: Sequence[dict[str, NDArray]], specs: Mapping[str, ModalitySpec]
) -> NDArray:
    """Stack one modality, with zeros where a sample lacks it."""
    held = [sample[name] for sample in samples if name in sample]
    if len({values.dtype for values in held}) > 1:
        # Pictures of 8 and of 16 bits beside each other: both as models see them.
        samples = [{name: scale_values(s[name])} if name in s else {} for s in samples]
        held = [sample[name] for sample in samples if name in sample]
    if len(held) == len(samples):
        return np.stack(held)
    spec = specs[name]
    like = held[0] if held else np.zeros(spec.raw_shape, BLANK_DTYPES.get(spec.kind, np.float32))
    blank = np.zeros_like(like)
    return np.stack([sample.get(name, blank) for sample in samples])


def read_readable(
    reader: SampleReader, indices: Iterable[int], places: Sequence[Place] = (MIDDLE,)
) -> Batch:
    """Read samples without augmentation, leaving out those that cannot be read.

    Args:
        reader: Where they come from.
        indices: Which ones.
        places: What is seen of each: one view per place.
    """
    samples, kept, bad = [], [], []
    for index in indices:
        try:
            samples += reader.read_views(index, places)
            kept.append(index)
        except DataError as error:
            bad.append(str(error))
    return stack_batch(reader, samples, kept, bad)


def merge_empty(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Drop batches without samples and hand their bad names to the batch before, or else after.

    Raises:
        DataError: There are names, but no batch to carry them: nothing could be read.
    """
    held: Batch | None = None
    orphans: list[str] = []
    for batch in batches:
        if len(batch) == 0:
            (orphans if held is None else held.bad).extend(batch.bad)
            continue
        if held is None:
            batch.bad[:0] = orphans
        else:
            yield held
        held = batch
    if held is not None:
        yield held
    elif orphans:
        raise DataError(f"none of {len(orphans)} samples could be read; the first: {orphans[0]}")
