"""Which models fill in a modality that is not given, and how well they do on held-out data.

Paper: HiP (arXiv 2202.10890) Sec. 3.3: the same decoder positions that pre-train a model answer
for a modality of which nothing is visible.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, Dataset, make_eval_loader
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.tasks import AutoencodingConfig
from perceivers.tasks.base import check_answer
from perceivers.tasks.filling import (
    FREE_TARGETS,
    ElementFiller,
    Filler,
    MeanSample,
    OutputFiller,
    collect_inputs,
    element_errors,
    find_fillable,
    true_elements,
    unit_of,
)
from perceivers.tasks.presence import can_lack, dropout_rates, held_modalities
from perceivers.training.config import TrainConfig
from perceivers.types import ModalitySpec
from perceivers.workflows.objectives import find_masking, find_settings

# Order in which samples are read, and so whose input another one is given.
ORDER_SEED = 20_261_130
PRETRAIN = (
    "pre-train a HiP on data of several modalities: perceivers pretrain --model hip_tiny --data "
    "... --modality_dropout 0.5 --mask.target per-channel --out ..."
)


@dataclass(frozen=True)
class FillFigures:
    """How well one modality is filled in from all others.

    Attributes:
        modality: What is filled in.
        given: What it is filled in from, where samples hold it.
        samples: Samples that hold the modality and at least one of the others.
        error: Mean error.
        mean_error: Error of the mean of all samples of ``mean_of``, whatever the input.
        other_error: Error where each sample is given the input of another one; None of a single
            sample. A model that uses its input does clearly worse so.
        unit: ``variances`` (squared, of the training standardisation), ``squared`` (of modalities
            that are not standardised), or ``nats``.
        mean_of: The split whose mean it is.
    """

    modality: str
    given: tuple[str, ...]
    samples: int
    error: float
    mean_error: float
    other_error: float | None
    unit: str
    mean_of: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data without the modality, under whose name it is recorded."""
        data = asdict(self)
        del data["modality"]
        return {**data, "given": list(self.given)}


def open_filler(loaded: Loaded, config: TrainConfig | None) -> Filler:
    """Return what fills in for a model.

    Args:
        loaded: A HiP with a decoder, or a Perceiver IO autoencoder, of several modalities.
        config: Its run's settings, if there are any.

    Raises:
        CheckpointError: The model cannot fill in; says why, and which model can.
    """
    model, name = loaded.model, loaded.folder
    task = loaded.info.task
    kind = f"{name} ({model.family}, task {task or 'not recorded'})"
    if model.family not in {"hip", "perceiver_io"}:
        raise CheckpointError(
            f"{kind} fills in no modality: that takes a decoder that answers for several, which a "
            f"HiP and a Perceiver IO autoencoder have; {PRETRAIN}"
        )
    if task not in {"", "pretrain", "autoencode"} or getattr(model, "decoder", None) is None:
        raise CheckpointError(
            f"{kind} fills in no modality: it does not reconstruct its input; give the "
            f"pre-training run, or {PRETRAIN}"
        )
    if not can_lack(model):
        raise CheckpointError(
            f"{kind} reads {list(model.config.data_inputs)} alone, so there is no other modality "
            f"to fill it in from; {PRETRAIN}"
        )
    if model.family == "hip":
        target = find_masking(loaded, config).target
        if target not in FREE_TARGETS:
            raise CheckpointError(
                f"{name} predicts {target} values, which only the modality's own content turns "
                f"back into a signal, so one that is not given cannot be filled in; pre-train with "
                f"--mask.target {FREE_TARGETS[0]}"
            )
        return ElementFiller(model)
    try:
        filler = OutputFiller(model, find_settings(AutoencodingConfig, loaded, config))
    except ConfigError as error:
        raise CheckpointError(f"{kind} fills in no modality: {error}") from error
    if not filler.names:
        raise CheckpointError(
            f"{kind} fills in no modality: its queries are made of the tokens of what they ask "
            f"for; use outputs with queries=positions, or {PRETRAIN}"
        )
    return filler


def describe_dropout(filler: Filler, config: TrainConfig | None, names: Iterable[str]) -> str:
    """Return a warning where training never hid a modality that is to be filled in, or "".

    Args:
        filler: Of the model.
        config: Settings of its run, if there are any.
        names: The modalities.
    """
    # Labels are always hidden somewhere in training.
    asked = [name for name in names if name in filler.model.config.data_inputs]
    if config is None:
        return (
            f"this model folder does not record whether training hid whole modalities; "
            f"what it fills in of {', '.join(asked)} is a guess if it did not"
            if asked
            else ""
        )
    rates = dropout_rates(filler.model, config.modality_dropout)
    never = [name for name in asked if not rates.get(name)]
    if not never:
        return ""
    return (
        f"training never hid {' or '.join(never)} as a whole (modality_dropout is "
        f"{config.modality_dropout}), so the model has not learned to fill it in; expect little, "
        f"or train with --modality_dropout 0.5"
    )


def measure_fill(
    filler: Filler,
    dataset: Dataset,
    specs: Mapping[str, ModalitySpec],
    split: str,
    *,
    batch_size: int,
    workers: int = 0,
    limit: int = 0,
) -> list[FillFigures]:
    """Fill in each modality of a split from all others, and compare with two baselines.

    The samples are read in one random order, the same every time, and each is also given the input
    of the one before it. The mean is that of the training split; of the split itself where the
    data have no training split.

    Args:
        filler: Of the model.
        dataset: The data.
        specs: What the loaders must bring.
        split: The split.
        batch_size: Samples at once.
        workers: Processes that read.
        limit: At most this many batches of both splits; 0 means all.

    Raises:
        UserError: Samples cannot be read or hold one modality each, or what the model predicts is
            not finite.
    """

    def read(which: str) -> Iterable[Batch]:
        loader = make_eval_loader(
            dataset.splits[which],
            specs,
            batch_size=batch_size,
            workers=workers,
            order_seed=ORDER_SEED,
        )
        return islice(loader, limit or None)

    mean_of = "train" if "train" in dataset.splits else split
    means = {name: MeanSample(filler.model, name) for name in filler.names}
    for batch in read(mean_of):
        inputs = collect_inputs(filler, batch)
        for name, mean in means.items():
            _, there = find_fillable(filler, batch, inputs, name)
            if there.any():
                mean.add(inputs[name][there])
    tallies = {name: _Tally(filler, name, mean) for name, mean in means.items()}
    for batch in read(split):
        inputs = collect_inputs(filler, batch)
        for tally in tallies.values():
            tally.add(batch, inputs)
    found = [tally.finish(mean_of) for tally in tallies.values() if tally.samples]
    if not found:
        raise DataError(
            f"{dataset.address}: no sample of {split!r} holds two modalities, so none can be "
            f"filled in from another and compared; evaluate data whose samples do"
        )
    return found


class _Sum:
    """A mean over elements, summed up batch by batch."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, errors: Tensor, real: Tensor) -> None:
        self.total += float(torch.where(real, errors, 0.0).double().sum())
        self.count += int(real.sum())

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")


class _Tally:
    """Errors of one modality over a split."""

    def __init__(self, filler: Filler, name: str, mean: MeanSample) -> None:
        self.filler, self.name, self.mean = filler, name, mean
        self.own, self.constant, self.other = _Sum(), _Sum(), _Sum()
        self.samples = 0
        # The first sample waits for the last one's input: no sample is given its own.
        self.first: Tensor | None = None
        self.last: Tensor | None = None

    def add(self, batch: Batch, inputs: Mapping[str, Tensor]) -> None:
        fillable, there = find_fillable(self.filler, batch, inputs, self.name)
        rows = (fillable & there).nonzero().flatten()
        if not len(rows):
            return
        part = batch.take(rows)
        given = {name: raw[rows] for name, raw in inputs.items()}
        made = self.filler.fill(given, held_modalities(self.filler.model, part), self.name)
        check_answer(made, f"{self.name} as it is filled in")
        raw = given[self.name]
        self._count(self.own, made, raw)
        self._count(self.constant, self.mean.predict(), raw)
        if self.last is None:
            self.first = raw[:1]
            self._count(self.other, made[:-1], raw[1:])
        else:
            self._count(self.other, torch.cat([self.last, made[:-1]]), raw)
        self.last = made[-1:]
        self.samples += len(rows)

    def _count(self, into: _Sum, made: Tensor, raw: Tensor) -> None:
        if not len(raw):
            return
        truth, real = true_elements(self.filler.model, self.name, raw)
        into.add(element_errors(self.filler.model, self.name, made, truth), real)

    def finish(self, mean_of: str) -> FillFigures:
        if self.samples > 1 and self.first is not None and self.last is not None:
            self._count(self.other, self.last, self.first)
        others = tuple(n for n in self.filler.model.config.data_inputs if n != self.name)
        return FillFigures(
            modality=self.name,
            given=others,
            samples=self.samples,
            error=self.own.mean,
            mean_error=self.constant.mean,
            other_error=self.other.mean if self.samples > 1 else None,
            unit=unit_of(self.filler.model.config.inputs[self.name]),
            mean_of=mean_of,
        )
