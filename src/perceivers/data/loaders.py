"""Loaders for training and evaluation, whose batches do not depend on workers or interruptions.

Training reads an endless stream: position p is sample ``order[p % n]`` of epoch ``p // n``, where
the order is drawn from (seed, epoch), and what is random about a sample from (seed, epoch, sample).
Nothing else enters, so a run that resumes at any step sees the batches it would have seen. (Where a
spec asks for another order of elements in every sample, that one is drawn from the position.)

With k copies of every sample (``augment.copies``), position p is copy ``p % k`` of what stands at
position ``p // k`` without copies, and what is random about it comes from (seed, epoch, sample,
copy). An epoch then is k times as many positions, and so as many more steps of the same size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as torch_data

from perceivers.data.augment import MIDDLE, AugmentConfig, Place, Views
from perceivers.data.fits import scale_values
from perceivers.data.fitting import SampleReader
from perceivers.data.sources import PartialSource, Source, TargetSource, UnsureSource
from perceivers.errors import ConfigError, DataError
from perceivers.settings import Count, Natural, Seed, checked
from perceivers.types import ModalitySpec

# -- Batches: samples stacked to tensors, and the names of those that could not be read ----------

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


# -- Loaders for training and evaluation ---------------------------------------------------------


@checked
def make_train_loader(
    source: Source,
    specs: Mapping[str, ModalitySpec],
    *,
    batch_size: Count,
    seed: Seed,
    augment: AugmentConfig,
    start_step: Natural,
    num_steps: Natural,
    workers: Natural = 0,
    rank: int = 0,
    world_size: int = 1,
) -> torch_data.DataLoader[Batch]:
    """Return a loader of the batches of steps ``start_step .. num_steps - 1``.

    A sample that cannot be read is replaced by the next readable one and named in ``Batch.bad``.

    Args:
        source: The training split; it may hold fewer samples than a batch. Documents are cut to
            windows of the spec's length, of which each epoch reads one from each stretch.
        specs: What each modality must look like.
        batch_size: Samples per batch and rank, all copies counted.
        seed: Of order and augmentation, at least 0.
        augment: How pictures and clips are changed, and how many copies a batch holds of each
            sample, one after the other.
        start_step: First step to yield; 0 for a new run.
        num_steps: Steps of the whole run.
        workers: Processes that read; 0 reads in this one.
        rank: Which of the processes that train together this is.
        world_size: How many processes train together.

    Raises:
        DataError: The specs do not fit the source; while reading: no sample can be read.
        ConfigError: A number out of range, a batch size that is no multiple of the copies, or an
            augmentation without a picture or clip to apply it to.
    """
    _check_rank(rank, world_size)
    if start_step > num_steps:
        raise ConfigError(
            f"start_step is {start_step} of num_steps {num_steps}; it must not be larger"
        )
    if batch_size % augment.copies:
        raise ConfigError(
            f"batch_size is {batch_size} and augment.copies {augment.copies}; a batch holds all "
            f"copies of a sample, so its size must be a multiple of their number"
        )
    steps = _Steps(start_step, num_steps, batch_size, rank, world_size)
    stream = _TrainStream(SampleReader(source, specs, augment), seed)
    return _TrainLoader(
        stream,
        batch_sampler=steps,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own the loader would draw from, and so change, the global generator.
        generator=torch.Generator().manual_seed(seed),
    )


@checked
def make_eval_loader(
    source: Source,
    specs: Mapping[str, ModalitySpec],
    *,
    batch_size: Count,
    workers: Natural = 0,
    rank: int = 0,
    world_size: int = 1,
    views: Views | None = None,
    strict: bool = False,
    order_seed: Natural | None = None,
) -> torch_data.DataLoader[Batch]:
    """Return a loader of every readable sample once, in order; the last batch may be smaller.

    A sample that cannot be read is left out and named in ``Batch.bad``; a batch that would be empty
    is dropped and its names move to a neighbour. Batch s of rank r holds the samples of batch
    ``s * world_size + r`` of a single process, so ranks may yield different numbers of batches.

    Documents are read in windows of the spec's length that do not overlap, so nothing is lost.

    Args:
        source: The split.
        specs: What each modality must look like.
        batch_size: Samples per batch and rank.
        workers: Processes that read; 0 reads in this one.
        rank: Which of the processes that evaluate together this is.
        world_size: How many processes evaluate together.
        views: What is seen of each sample, one view when not given. Where there are several,
            ``Batch.inputs`` holds all views of a sample one after the other, and the batch size
            counts views, but every batch holds at least one sample.
        strict: A text that is longer than its spec cannot be read, instead of being cut.
        order_seed: Read in a random order, which this seed alone decides; that of the source when
            not given.

    Raises:
        DataError: The specs do not fit the source; while reading: no sample can be read.
        ConfigError: A number out of range, or nothing to spread views over.
    """
    _check_rank(rank, world_size)
    views = views or Views()
    views.check(specs)
    batch_size = max(1, batch_size // views.count)
    reader = SampleReader(source, specs, AugmentConfig(), strict)
    num_samples = len(reader.source)
    num_batches = -(-num_samples // batch_size)
    order = np.arange(num_samples)
    if order_seed is not None:
        order = np.random.default_rng(order_seed).permutation(num_samples)
    ranges = [
        order[first * batch_size : (first + 1) * batch_size].tolist()
        for first in range(rank, num_batches, world_size)
    ]
    return _EvalLoader(
        _EvalSamples(reader, views.places),
        batch_sampler=ranges,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


@dataclass(frozen=True)
class _Steps:
    """The stream positions that each step reads."""

    start_step: int
    num_steps: int
    batch_size: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.num_steps):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.num_steps - self.start_step


class _TrainStream(torch_data.Dataset[Batch]):
    """Stream positions to whole batches."""

    def __init__(self, reader: SampleReader, seed: int) -> None:
        self.reader = reader
        self.seed = seed

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, positions: list[int]) -> Batch:
        """Read a batch at once; the loader prefers this to single samples."""
        num_samples = len(self.reader.source)
        samples, indices, bad = [], [], []
        for position in positions:
            drawn, copy = divmod(position, self.reader.augment.copies)
            epoch, place = divmod(drawn, num_samples)
            wanted = int(_draw_order(self.seed, epoch, num_samples)[place])
            index = self._read_next_readable(epoch, wanted, copy, position, samples, bad)
            if index is None:
                return stack_batch(self.reader, [], [], bad)
            indices.append(index)
        return stack_batch(self.reader, samples, indices, bad, positions)

    def _read_next_readable(
        self,
        epoch: int,
        index: int,
        copy: int,
        position: int,
        samples: list[dict[str, NDArray]],
        bad: list[str],
    ) -> int | None:
        """Append a sample, or the first readable one after it; return which, None if none is."""
        num_samples = len(self.reader.source)
        for offset in range(num_samples):
            candidate = (index + offset) % num_samples
            # The first copy is what there is without copies.
            key = (self.seed, epoch, candidate, *([copy] if copy else []))
            rng = np.random.default_rng(key)
            try:
                samples.append(self.reader(candidate, rng, position))
            except DataError as error:
                bad.append(str(error))
            else:
                return candidate
        return None


class _EvalSamples(torch_data.Dataset[Batch]):
    """Sample indices to batches of those that can be read."""

    def __init__(self, reader: SampleReader, places: tuple[Place, ...]) -> None:
        self.reader = reader
        self.places = places

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """Read a batch at once; the loader prefers this to single samples."""
        return read_readable(self.reader, indices, self.places)


class _TrainLoader(torch_data.DataLoader[Batch]):
    """A loader that stops when nothing can be read.

    The error is raised here and not where it is found, as torch would wrap one from a worker into
    that worker's traceback.
    """

    # The base class declares its private iterator type; consumers only iterate.
    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for batch in super().__iter__():
            if len(batch) == 0:
                raise DataError(
                    f"none of {len(batch.bad)} training samples could be read; the first: "
                    f"{batch.bad[0]}"
                )
            yield batch


class _EvalLoader(torch_data.DataLoader[Batch]):
    """A loader without empty batches, which only the consuming side can see."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return merge_empty(super().__iter__())


# Two epochs suffice, as a batch may straddle a border; small data sets straddle several.
@lru_cache(maxsize=4)
def _draw_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """Return the order of the samples in one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


def _as_is(batch: Any) -> Any:
    """Keep a batch that the dataset has already put together."""
    return batch


def _check_rank(rank: int, world_size: int) -> None:
    """Reject a process that there is not."""
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank} of world_size {world_size}; it must be 0..world_size-1")
