"""Loaders for training and evaluation, whose batches do not depend on workers or interruptions.

Training reads an endless stream: position p is sample ``order[p % n]`` of epoch ``p // n``. The
order depends only on (seed, epoch) and augmentation only on (seed, epoch, sample), so a run that
resumes at any step sees the same batches as an uninterrupted one. (A random order of elements
within each sample, where a spec asks for it, depends on the position.)

With k copies of every sample (``augment.copies``), position p is copy ``p % k`` of the sample at
position ``p // k`` without copies, and its augmentation depends on (seed, epoch, sample, copy).
An epoch then has k times as many positions, and so k times as many steps of the same batch size.
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
from perceivers.data.fitting import SampleReader
from perceivers.data.modality import scale_values
from perceivers.data.sources import Source
from perceivers.errors import ConfigError, DataError
from perceivers.settings import Count, Natural, Seed, checked
from perceivers.types import ModalitySpec

# -- Batches: samples stacked into tensors, and the names of unreadable samples ------------------


@dataclass
class Batch:
    """Batch of samples.

    Args:
        inputs: Raw tensors ``[B, ...]`` by modality; ``[B * V, ...]`` for V views per sample, with
            the views of a sample one after the other. Missing modalities are zero.
        labels: Class indices ``[B]``, or ``[B, T]`` for several label columns, -1 where unknown,
            int64; None when unlabelled.
        index: Index of each sample in its source ``[B]``, int64; documents are counted in windows
            of the spec's length.
        bad: ``path: reason`` of each sample that could not be read.
        targets: Numbers to predict ``[B, T]``, NaN where unknown, float32; None without targets.
        present: Which samples have a modality, bool ``[B]`` (``[B * V]``), for every modality of
            data whose samples may lack some. Empty when nothing can be missing, or when only
            reading reveals it and nothing is.
        position: Position of each sample in the endless training stream, or ``index`` in
            evaluation ``[B]``, int64: the key for per-sample randomness.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    index: Tensor
    bad: list[str]
    targets: Tensor | None = None
    present: dict[str, Tensor] = field(default_factory=dict)
    position: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "Batch":
        """Move the batch to a device; ``index`` and ``position`` stay on the CPU."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory, so that transfers to a GPU can be asynchronous."""
        return self._map(torch.Tensor.pin_memory)

    def split(self, parts: int) -> list["Batch"]:
        """Split a batch with one view per sample into parts; the last one may be smaller.

        Args:
            parts: Number of parts, at least 1; a small batch may yield fewer.
        """
        if parts == 1:
            return [self]
        size = -(-len(self) // parts)
        cut = [self.take(slice(i, i + size)) for i in range(0, len(self), size)]
        cut[0].bad = self.bad
        return cut

    def take(self, rows: slice | Tensor) -> "Batch":
        """Select samples of a batch with one view per sample; ``bad`` becomes empty.

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
        """Apply a function to every tensor except ``index`` and ``position``."""
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
    """Stack samples into a batch; ``inputs`` is empty if there are no samples.

    Args:
        reader: Reader of the samples.
        samples: All views of all samples.
        indices: Index of each sample in its source.
        bad: ``path: reason`` of each sample that could not be read.
        positions: Position of each sample in the stream; defaults to ``indices``.
    """
    index = np.array(indices, np.int64)
    partial = bool(reader.source.present)
    if not reader.source.is_sure:
        # Only reading tells what is missing; a complete batch looks like one of complete data.
        partial = any(len(sample) < len(reader.specs) for sample in samples)
    inputs, present = {}, {}
    for name in (reader.specs if partial else samples[0]) if samples else ():
        inputs[name] = torch.from_numpy(_stack(name, samples, reader.specs))
        if partial:
            present[name] = torch.tensor([name in sample for sample in samples])
    labels = reader.source.labels
    targets = reader.source.targets
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
    held = [sample[name] for sample in samples if name in sample]
    if len({values.dtype for values in held}) > 1:
        # Images of 8 and 16 bits in one batch: scale both to floats, as models read them.
        samples = [{name: scale_values(s[name])} if name in s else {} for s in samples]
        held = [sample[name] for sample in samples if name in sample]
    if len(held) == len(samples):
        return np.stack(held)
    spec = specs[name]
    like = held[0] if held else np.zeros(spec.raw_shape, spec.raw_dtype)
    blank = np.zeros_like(like)
    return np.stack([sample.get(name, blank) for sample in samples])


def read_readable(
    reader: SampleReader, indices: Iterable[int], places: Sequence[Place] = (MIDDLE,)
) -> Batch:
    """Read samples without augmentation, leaving out those that cannot be read.

    Args:
        reader: Reader of the samples.
        indices: Indices of the samples in the source.
        places: Views of each sample, one per place.
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
    """Drop empty batches and add their ``bad`` names to the previous batch, or else to the next.

    Raises:
        DataError: All batches are empty, because no sample could be read.
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
    """Return a loader of the training batches of steps ``start_step .. num_steps - 1``.

    A sample that cannot be read is replaced by the next readable one and named in ``Batch.bad``.

    Args:
        source: The training split; it may have fewer samples than a batch. Documents are cut into
            stretches of the spec's length, and each epoch reads one window from each stretch.
        specs: Specs by modality.
        batch_size: Samples per batch and rank, including copies.
        seed: Seed of sample order and augmentation, at least 0.
        augment: Augmentation of images and clips, and the number of copies of each sample, which
            follow one another in a batch.
        start_step: First step to yield; 0 for a new run.
        num_steps: Steps of the whole run.
        workers: Worker processes that read data; 0 reads in the main process.
        rank: Rank of this process in distributed training.
        world_size: Number of processes in distributed training.

    Raises:
        DataError: The specs do not fit the source; while reading: no sample can be read.
        ConfigError: A number is out of range, the batch size is not a multiple of the copies, or
            an augmentation does not apply to any modality.
    """
    _check_rank(rank, world_size)
    if start_step > num_steps:
        raise ConfigError(
            f"start_step is {start_step} of num_steps {num_steps}; it must not be larger"
        )
    if batch_size % augment.copies:
        raise ConfigError(
            f"batch_size is {batch_size} and augment.copies {augment.copies}; a batch contains all "
            f"copies of a sample, so batch_size must be a multiple of augment.copies"
        )
    steps = _Steps(start_step, num_steps, batch_size, rank, world_size)
    stream = _TrainStream(SampleReader(source, specs, augment), seed)
    return _TrainLoader(
        stream,
        batch_sampler=steps,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Without its own generator, the loader would advance torch's global one.
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

    A sample that cannot be read is left out and named in ``Batch.bad``; an empty batch is dropped
    and its names move to a neighbouring batch. Batch s of rank r has the samples of batch
    ``s * world_size + r`` of a single process, so ranks may yield different numbers of batches.

    Documents are read in non-overlapping windows of the spec's length, which cover them completely.

    Args:
        source: The split.
        specs: Specs by modality.
        batch_size: Samples per batch and rank; with several views it counts views, but every batch
            has at least one sample.
        workers: Worker processes that read data; 0 reads in the main process.
        rank: Rank of this process in distributed evaluation.
        world_size: Number of processes in distributed evaluation.
        views: Views of each sample; defaults to one. With several, ``Batch.inputs`` has all views
            of a sample one after the other.
        strict: Treat a text that is longer than its spec as unreadable instead of cutting it.
        order_seed: Seed of a random sample order; defaults to the order of the source.

    Raises:
        DataError: The specs do not fit the source; while reading: no sample can be read.
        ConfigError: A number is out of range, or several views do not apply to any modality.
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
    """Batch sampler: yields the stream positions of each step."""

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
    """Dataset that maps stream positions to whole batches."""

    def __init__(self, reader: SampleReader, seed: int) -> None:
        self.reader = reader
        self.seed = seed

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    # DataLoader calls this, where it exists, instead of __getitem__ for each sample.
    def __getitems__(self, positions: list[int]) -> Batch:
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
        """Append the sample or the first readable one after it; return its index, or None."""
        num_samples = len(self.reader.source)
        for offset in range(num_samples):
            candidate = (index + offset) % num_samples
            # The first copy has the same key, and so the same augmentation, as without copies.
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
    """Dataset that maps sample indices to batches of the readable samples."""

    def __init__(self, reader: SampleReader, places: tuple[Place, ...]) -> None:
        self.reader = reader
        self.places = places

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        return read_readable(self.reader, indices, self.places)


class _TrainLoader(torch_data.DataLoader[Batch]):
    """Loader that raises an error if no sample can be read.

    It is raised here, in the main process, because torch would bury an error from a worker in that
    worker's traceback.
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
    """Loader that merges empty batches; only the main process sees batches of all workers."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return merge_empty(super().__iter__())


# A batch may span two epochs, and more for data sets smaller than a batch.
@lru_cache(maxsize=4)
def _draw_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


def _as_is(batch: Any) -> Any:
    """Collate function: the dataset already returns whole batches."""
    return batch


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank} of world_size {world_size}; it must be 0..world_size-1")
