"""Batches: samples stacked to tensors, and the names of those that could not be read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.data.fitting import SampleReader
from perceivers.data.views import MIDDLE, Place
from perceivers.errors import DataError


@dataclass
class Batch:
    """Some samples.

    Args:
        inputs: Raw tensors ``[B, ...]`` by modality; ``[B * V, ...]`` where each sample is seen in
            V views, those of a sample one after the other.
        labels: Class indices ``[B]``, or ``[B, T]`` in several label columns, -1 where unknown,
            int64; None when unlabelled.
        index: Place of each sample in its source ``[B]``, int64; documents are counted in windows
            of the spec's length.
        bad: ``path: reason`` of each sample that could not be read.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    index: Tensor
    bad: list[str]

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.index)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "Batch":
        """Return the batch with inputs and labels on a device; ``index`` stays where it is."""
        labels = self.labels
        return Batch(
            {name: t.to(device, non_blocking=non_blocking) for name, t in self.inputs.items()},
            None if labels is None else labels.to(device, non_blocking=non_blocking),
            self.index,
            self.bad,
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, from which copies to a GPU overlap with work."""
        return Batch(
            {name: tensor.pin_memory() for name, tensor in self.inputs.items()},
            None if self.labels is None else self.labels.pin_memory(),
            self.index,
            self.bad,
        )


def stack_batch(
    reader: SampleReader,
    samples: Sequence[dict[str, NDArray]],
    indices: Sequence[int],
    bad: list[str],
) -> Batch:
    """Stack samples, of which there may be none; then there are no inputs either.

    Args:
        reader: Where they come from.
        samples: Every view of every sample.
        indices: Place of each sample in its source.
        bad: ``path: reason`` of those that could not be read.
    """
    index = np.array(indices, np.int64)
    inputs = {
        name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in (samples[0] if samples else ())
    }
    labels = reader.source.labels
    return Batch(
        inputs,
        None if labels is None else torch.from_numpy(labels[index]),
        torch.from_numpy(index),
        bad,
    )


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
