"""Predict missing modalities of files, and measure the error on held-out data.

``tasks.filling`` contains the prediction itself. Paper: HiP (arXiv 2202.10890) Sec. 3.3: the
decoder positions of the pre-training can also decode a modality that is completely hidden.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, Dataset, find_files, make_eval_loader, read_files
from perceivers.errors import CheckpointError, ConfigError, DataError, suggest
from perceivers.files import make_folder, write_atomic, write_json
from perceivers.finite import check_answer
from perceivers.report.by_modality import fits_clip
from perceivers.report.drawings import drawing_of
from perceivers.report.figures.reconstruction import FilledRow, draw_filled
from perceivers.report.figures.samples import SampleBox, draw_parts
from perceivers.tasks import AutoencodingConfig
from perceivers.tasks.base import can_lack, dropout_rates, held_modalities
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
from perceivers.tasks.mae import is_masked_autoencoder
from perceivers.text_names import show_name
from perceivers.training.config import TrainConfig
from perceivers.types import FIRST_BYTE, Audio, ModalitySpec, Video
from perceivers.workflows.numerics import Note
from perceivers.workflows.reconstruction import unique_stem
from perceivers.workflows.task_table import find_masking, find_settings

# Seed of the reading order, which also decides whose input another sample is given.
ORDER_SEED = 20_261_130
PRETRAIN = (
    "pre-train a HiP on data of several modalities: perceivers pretrain --model hip_tiny --data "
    "... --modality_dropout 0.5 --mask.target per-channel --out ..."
)


@dataclass(frozen=True)
class FillFigures:
    """Error of predicting one modality from all others, with two baselines.

    Attributes:
        modality: The predicted modality.
        given: Modalities that it is predicted from, as far as samples have them.
        samples: Number of samples with this modality and at least one of the others.
        error: Mean error.
        mean_error: Error of a constant prediction, the mean of the split ``mean_of``.
        other_error: Error when each prediction uses the input of another sample; None for a single
            sample. It is clearly higher than ``error`` for a model that uses its input.
        unit: ``variances`` (squared errors of values standardised as in training), ``squared``
            (squared errors of modalities that are not standardised), or ``nats``.
        mean_of: Split over which the mean is computed.
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
        """Convert to JSON-compatible types, without the modality, which serves as the key."""
        data = asdict(self)
        del data["modality"]
        return {**data, "given": list(self.given)}


def open_filler(loaded: Loaded, config: TrainConfig | None) -> Filler:
    """Create the filler of a model.

    Args:
        loaded: A HiP with a decoder or a Perceiver IO autoencoder, with several modalities.
        config: Settings of the model's run, or None.

    Raises:
        CheckpointError: The model cannot fill in modalities; the message suggests one that can.
    """
    model, name = loaded.model, loaded.folder
    task = loaded.info.task
    kind = f"{name} ({model.family}, task {task or 'not recorded'})"
    if task not in {"", "pretrain", "autoencode"} or getattr(model, "decoder", None) is None:
        raise CheckpointError(
            f"{kind} fills in no modality: it does not reconstruct its input; give the "
            f"pre-training run, or {PRETRAIN}"
        )
    if not can_lack(model):
        raise CheckpointError(
            f"{kind} reads only {list(model.config.data_inputs)}, so there is no other modality "
            f"to fill it in from; {PRETRAIN}"
        )
    if is_masked_autoencoder(model):
        target = find_masking(loaded, config).target
        if target not in FREE_TARGETS:
            raise CheckpointError(
                f"{name} predicts {target} values, which can be converted to a signal only with "
                f"the content of the modality itself, so a missing one cannot be filled in; "
                f"pre-train with --mask.target {FREE_TARGETS[0]}"
            )
        return ElementFiller(model)
    try:
        filler = OutputFiller(model, find_settings(AutoencodingConfig, loaded, config))
    except ConfigError as error:
        raise CheckpointError(f"{kind} fills in no modality: {error}") from error
    if not filler.names:
        raise CheckpointError(
            f"{kind} fills in no modality: its queries are made from the tokens of the modality "
            f"that they decode; use outputs with queries=positions, or {PRETRAIN}"
        )
    return filler


def describe_dropout(filler: Filler, config: TrainConfig | None, names: Iterable[str]) -> str:
    """Return a warning if training never hid a modality that is to be filled in, else "".

    Args:
        filler: Filler of the model.
        config: Settings of its run, or None.
        names: Modalities to fill in.
    """
    # Labels need no check: training always hides them from some samples.
    asked = [name for name in names if name in filler.model.config.data_inputs]
    if config is None:
        return (
            f"this model folder does not record whether training hid whole modalities; "
            f"if it did not, predictions of {', '.join(asked)} are unreliable"
            if asked
            else ""
        )
    rates = dropout_rates(filler.model, config.modality_dropout)
    never = [name for name in asked if not rates.get(name)]
    if not never:
        return ""
    return (
        f"training never hid {' or '.join(never)} as a whole (modality_dropout is "
        f"{config.modality_dropout}), so the model has not learned to fill it in; expect poor "
        f"results, or train with --modality_dropout 0.5"
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

    The baselines are the mean of the training split (of the split itself without a training split),
    and the prediction for the previous sample in a fixed random order.

    Args:
        filler: Filler of the model.
        dataset: The data.
        specs: Modalities that the loaders must read.
        split: The split.
        batch_size: Samples per batch.
        workers: Number of reading processes.
        limit: At most this many batches of each split; 0 means all.

    Raises:
        UserError: No sample can be read, none has two modalities, or a prediction is not finite.
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
            f"{dataset.address}: no sample of {split!r} holds two modalities, so there is nothing "
            f"to fill in and compare; evaluate data whose samples have several modalities"
        )
    return found


class _Sum:
    """Running mean over elements."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, errors: Tensor, real: Tensor) -> None:
        self.total += float(torch.where(real, errors, 0.0).double().sum())
        self.count += int(real.sum())

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")


class _Tally:
    """Accumulates the errors of one modality over a split."""

    def __init__(self, filler: Filler, name: str, mean: MeanSample) -> None:
        self.filler, self.name, self.mean = filler, name, mean
        self.own, self.constant, self.other = _Sum(), _Sum(), _Sum()
        self.samples = 0
        # The first sample has no predecessor; in `finish` it gets the prediction for the last one.
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
        check_answer(made, f"the prediction of {self.name}")
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


# -- Fill in missing modalities of files: ``reconstruct --fill`` ---------------------------------

RECORD, FIGURE = "filled.json", "filled.png"
# Rows of the figure, and classes listed for a predicted label.
SHOWN, LISTED = 12, 5
BATCH_SIZE = 8


@dataclass(frozen=True)
class Filled:
    """One predicted modality of one sample.

    Attributes:
        file: The (first) file of the sample.
        modality: The predicted modality.
        given: Modalities that it was predicted from.
        written: The files written.
        answer: Predicted text or class; empty for signals.
        error: Mean error if the sample has the modality itself, otherwise None.
        unit: Unit of the error: ``variances``, ``squared`` or ``nats``.
    """

    file: str
    modality: str
    given: tuple[str, ...]
    written: tuple[str, ...]
    answer: str
    error: float | None
    unit: str

    def row(self) -> list[str]:
        """Return the cells for a table: file, modality, from what, error, and result."""
        error = "unknown" if self.error is None else f"{self.error:.4f} {self.unit}"
        result = self.answer or Path(self.written[0]).name
        return [Path(self.file).name, self.modality, " + ".join(self.given), error, result]


def check_fill(filler: Filler, names: Sequence[str], out: Path, *, overwrite: bool) -> None:
    """Check the modalities and the output folder, before anything is written.

    Args:
        filler: Filler of the model.
        names: Modalities to fill in.
        out: Output folder.
        overwrite: Replace files of an earlier call.

    Raises:
        ConfigError: A modality is unknown, named twice or cannot be predicted, or ``out`` holds
            files of an earlier call and ``overwrite`` is off.
    """
    known = list(filler.model.config.inputs)
    for name in names:
        if name not in known:
            file = "; files come before --fill" if "." in name or "/" in name else ""
            raise ConfigError(
                f"--fill names {name!r}, but the modalities of the model are {known}"
                f"{suggest(name, known)}{file}"
            )
        if name not in filler.names:
            raise ConfigError(
                f"the model cannot predict {name!r} from other modalities; it fills in "
                f"{' and '.join(filler.names)}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"--fill names {name!r} twice; name each modality once")
    if (out / RECORD).exists() and not overwrite:
        raise ConfigError(f"{out / RECORD} exists; pass --overwrite or another --out")


def fill_files(
    filler: Filler,
    loaded: Loaded,
    names: Sequence[str],
    paths: Sequence[str | Path],
    out: Path,
    *,
    note: Note | None = None,
) -> tuple[list[Path], list[Filled]]:
    """Fill in modalities of files, each from all other modalities of the sample.

    Files of several modalities are paired by name. If a file of the predicted modality exists, it
    is hidden from the model and compared with the prediction.

    Args:
        filler: Filler of the model.
        loaded: The model.
        names: Modalities to fill in, from ``filler.names``.
        paths: Files, or folders searched for them.
        out: Folder for ``NAME_filled`` of every sample, ``filled.json`` and ``filled.png``.
        note: Called with a message for each skipped sample.

    Returns:
        The files written, the figure last, and a record for each modality of each sample.

    Raises:
        UserError: Nothing can be read, or no sample has another modality to predict from.
    """
    specs = loaded.model.config.data_inputs
    files = find_files([str(path) for path in paths], tuple(specs))
    make_folder(out)
    written: list[Path] = []
    found: list[Filled] = []
    rows: list[FilledRow] = []
    skipped: list[str] = []
    stems: list[str] = []
    for read, batch in read_files(files, specs, BATCH_SIZE, may_lack=True):
        skipped += batch.bad
        for file in read:
            stems.append(unique_stem(file.stem, stems))
        samples = _Samples(filler, loaded, batch, read, stems[len(stems) - len(read) :])
        for name in names:
            for each, row in samples.fill(name, out, skipped):
                written += map(Path, each.written)
                found.append(each)
                rows.append(row)
    if note is not None:
        for text in skipped:
            note(f"skipped: {text}")
    if not found:
        raise DataError(
            f"nothing could be filled in for {len(files)} files: {'; '.join(skipped[:3])}"
        )
    write_json(out / RECORD, {"filled": [asdict(each) for each in found]})
    title = f"{' and '.join(names)}, filled in from the other modalities"
    shown = f" The first {SHOWN} of {len(rows)}." if len(rows) > SHOWN else ""
    about = f"The originals were hidden from the model.{shown}"
    figure = draw_filled(out / FIGURE, rows[:SHOWN], title=title, note=about)
    return [*written, out / RECORD, figure], found


class _Samples:
    """A batch of files with its model inputs."""

    def __init__(
        self,
        filler: Filler,
        loaded: Loaded,
        batch: Batch,
        files: Sequence[Path],
        stems: Sequence[str],
    ) -> None:
        self.filler, self.model, self.classes = filler, loaded.model, loaded.info.classes
        self.batch, self.files, self.stems = batch, files, stems
        self.inputs = collect_inputs(filler, batch)
        everywhere = torch.ones(len(batch), dtype=torch.bool)
        held = held_modalities(self.model, batch)
        self.held = {name: held.get(name, everywhere) for name in self.model.config.data_inputs}

    def fill(self, name: str, out: Path, skipped: list[str]) -> Iterator[tuple[Filled, FilledRow]]:
        """Predict one modality of all samples that have another one to predict from."""
        fillable, there = find_fillable(self.filler, self.batch, self.inputs, name)
        for row in (~fillable).nonzero().flatten().tolist():
            others = [n for n in self.held if n != name]
            skipped.append(
                f"{show_name(str(self.files[row]))}: holds only {name}, so there is nothing to "
                f"fill it in from; give a file of {' or '.join(others)} with the same name"
            )
        rows = fillable.nonzero().flatten()
        if not len(rows):
            return
        given = {n: raw[rows] for n, raw in self.inputs.items()}
        made = self.filler.fill(given, {n: x[rows] for n, x in self.held.items()}, name)
        for place, row in enumerate(rows.tolist()):
            check_answer(made[place], f"{self.files[row]}: the prediction of {name}")
            yield self._write(name, row, made[place : place + 1], bool(there[row]), out)

    def _write(
        self, name: str, row: int, made: Tensor, is_known: bool, out: Path
    ) -> tuple[Filled, FilledRow]:
        """Write the prediction for one sample, and compare it with the original."""
        spec = self.model.config.inputs[name]
        given = tuple(n for n, there in self.held.items() if n != name and bool(there[row]))
        stem, answer = f"{self.stems[row]}_filled", ""
        shown: Sequence[NDArray[Any] | str]
        if spec.kind == "labels":
            lines = self._list_classes(made)
            answer, shown = lines[0], lines
            paths = [write_atomic(out / f"{stem}_{name}.txt", "\n".join(lines) + "\n")]
        else:
            signal = self._restore(name, made)
            sound, drawing = self._find_sound(spec, row, given), drawing_of(spec.kind)
            paths = drawing.write(out, stem, spec, signal, 1, sound)
            answer = drawing.words(signal.numpy())
            shown = self._draw(name, signal)
        filled = Filled(
            file=show_name(str(self.files[row])),
            modality=name,
            given=given,
            written=tuple(map(str, paths)),
            answer=answer,
            error=self._measure(name, row, made) if is_known else None,
            unit=unit_of(spec),
        )
        seen = [part for n in given for part in self._draw(n, self._original(n, row))]
        truth = self._draw(name, self._original(name, row)) if is_known else []
        caption = f"{self.stems[row]}: {name} from {' and '.join(given)}"
        return filled, FilledRow(caption, seen, shown, truth)

    def _measure(self, name: str, row: int, made: Tensor) -> float:
        truth, real = true_elements(self.model, name, self.inputs[name][row : row + 1])
        return float(element_errors(self.model, name, made, truth)[real].mean())

    def _restore(self, name: str, made: Tensor) -> Tensor:
        """Return a predicted signal in its raw layout; for texts, ids of the likeliest bytes."""
        adapter = self.model.adapter(name)
        if adapter.spec.kind == "bytes":
            # Special ids are excluded: padding is not part of the loss, so their logits are noise.
            return made[0, :, FIRST_BYTE:].argmax(-1) + FIRST_BYTE
        return adapter.restore(made)[0]

    def _original(self, name: str, row: int) -> Tensor:
        """Return an input signal as floats in its raw layout; for texts, the ids."""
        return self.model.adapter(name).to_floats(self.inputs[name][row : row + 1])[0]

    def _draw(self, name: str, signal: Tensor) -> list[NDArray[Any] | str]:
        kind, array = self.model.config.inputs[name].kind, signal.numpy()
        return draw_parts(SampleBox({name: array}, {name: kind}, "", ""), 0)

    def _find_sound(
        self, spec: ModalitySpec, row: int, given: Sequence[str]
    ) -> tuple[Audio, Tensor] | None:
        """Return the audio input to mux into a predicted video, if there is one."""
        for name in given if isinstance(spec, Video) else ():
            sound = self.model.config.inputs[name]
            if isinstance(sound, Audio) and fits_clip(sound):
                return sound, self._original(name, row)
        return None

    def _list_classes(self, made: Tensor) -> list[str]:
        """Return the likeliest classes with their probabilities, one per line."""
        shares = made[0].softmax(-1).mean(0)
        best = shares.topk(min(LISTED, len(shares)))
        names = [
            self.classes[i] if i < len(self.classes) else str(i) for i in best.indices.tolist()
        ]
        return [f"{n} {p:.3f}" for n, p in zip(names, best.values.tolist(), strict=True)]
