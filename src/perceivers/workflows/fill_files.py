"""Files of some modalities, and what a model fills in of others: ``reconstruct --fill``."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, find_files, read_files
from perceivers.data.byte_codec import decode_ids
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.files import make_folder, write_atomic, write_json
from perceivers.report.figures.reconstruction import FilledRow, draw_filled
from perceivers.report.figures.samples import SampleBox, draw_parts
from perceivers.tasks.base import check_answer
from perceivers.tasks.filling import (
    Filler,
    collect_inputs,
    element_errors,
    find_fillable,
    true_elements,
    unit_of,
)
from perceivers.tasks.presence import held_modalities
from perceivers.text_names import show_name
from perceivers.types import FIRST_BYTE, Audio, ModalitySpec, Video
from perceivers.workflows.compiling import Note
from perceivers.workflows.reconstruction import unique_stem
from perceivers.workflows.signal_files import fits_clip, write_signal

RECORD, FIGURE = "filled.json", "filled.png"
# Rows of the figure, and classes that a filled-in label lists.
SHOWN, LISTED = 12, 5
BATCH_SIZE = 8


@dataclass(frozen=True)
class Filled:
    """One modality of one file, filled in.

    Attributes:
        file: The (first) file of the sample.
        modality: What was filled in.
        given: What it was filled in from.
        written: The files written.
        answer: Text or class; empty for signals.
        error: Mean error, where the sample holds the modality itself; None elsewhere.
        unit: Of the error: ``variances``, ``squared`` or ``nats``.
    """

    file: str
    modality: str
    given: tuple[str, ...]
    written: tuple[str, ...]
    answer: str
    error: float | None
    unit: str


def check_fill(filler: Filler, names: Sequence[str], out: Path, *, overwrite: bool) -> None:
    """Refuse what cannot be filled in, before anything is written.

    Args:
        filler: Of the model.
        names: What is to be filled in.
        out: Folder for the files.
        overwrite: Replace files of an earlier call.

    Raises:
        ConfigError: An unknown modality, one the model does not answer, or one named twice; or
            ``out`` holds filled-in files and ``overwrite`` is off.
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
                f"the model has no output for {name!r} that works without it; it fills in "
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
    """Fill in modalities of files, each from all others that the sample holds.

    Files of several modalities are paired by name. A modality that is given as well is not shown
    to the model, but compared with what it fills in.

    Args:
        filler: Of the model.
        loaded: The model.
        names: What to fill in, from ``filler.names``.
        paths: Files, or folders searched for them.
        out: Folder for ``NAME_filled`` of every sample, ``filled.json`` and ``filled.png``.
        note: Told which samples were left out.

    Returns:
        The files written, the figure last, and a record for each modality of each sample.

    Raises:
        UserError: Nothing can be read, or no sample holds anything to fill in from.
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
        raise DataError(f"nothing was filled in of {len(files)} files: {'; '.join(skipped[:3])}")
    write_json(out / RECORD, {"filled": [asdict(each) for each in found]})
    title = f"{' and '.join(names)}, filled in from the other modalities"
    shown = f" The first {SHOWN} of {len(rows)}." if len(rows) > SHOWN else ""
    about = f"The model saw nothing of the original.{shown}"
    figure = draw_filled(out / FIGURE, rows[:SHOWN], title=title, note=about)
    return [*written, out / RECORD, figure], found


class _Samples:
    """A batch of files, and what can be filled in of it."""

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
        """Fill in one modality wherever there is something to fill it in from."""
        fillable, there = find_fillable(self.filler, self.batch, self.inputs, name)
        for row in (~fillable).nonzero().flatten().tolist():
            others = [n for n in self.held if n != name]
            skipped.append(
                f"{show_name(str(self.files[row]))}: holds {name} alone, so there is nothing to "
                f"fill it in from; give a file of {' or '.join(others)} with the same name"
            )
        rows = fillable.nonzero().flatten()
        if not len(rows):
            return
        given = {n: raw[rows] for n, raw in self.inputs.items()}
        made = self.filler.fill(given, {n: x[rows] for n, x in self.held.items()}, name)
        for place, row in enumerate(rows.tolist()):
            check_answer(made[place], f"{self.files[row]}: {name} as it is filled in")
            yield self._write(name, row, made[place : place + 1], bool(there[row]), out)

    def _write(
        self, name: str, row: int, made: Tensor, is_known: bool, out: Path
    ) -> tuple[Filled, FilledRow]:
        """Write what was made of one sample, and compare it with the original."""
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
            paths = write_signal(out, stem, spec, signal, sound=self._find_sound(spec, row, given))
            answer = decode_ids(signal.numpy()) if spec.kind == "bytes" else ""
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
        """Return the mean error of one sample."""
        truth, real = true_elements(self.model, name, self.inputs[name][row : row + 1])
        return float(element_errors(self.model, name, made, truth)[real].mean())

    def _restore(self, name: str, made: Tensor) -> Tensor:
        """Return a predicted signal in its raw layout; of texts the likeliest bytes."""
        adapter = self.model.adapter(name)
        if adapter.spec.kind == "bytes":
            # Special ids are never the answer: training does not score padding.
            return made[0, :, FIRST_BYTE:].argmax(-1) + FIRST_BYTE
        return adapter.restore(made)[0]

    def _original(self, name: str, row: int) -> Tensor:
        """Return a given signal as floats in its raw layout; of texts their ids."""
        adapter, raw = self.model.adapter(name), self.inputs[name][row : row + 1]
        if adapter.spec.kind == "bytes":
            return raw[0]
        return adapter.restore(adapter.normalise(adapter.flatten(raw), torch.float32))[0]

    def _draw(self, name: str, signal: Tensor) -> list[NDArray[Any] | str]:
        """Return what is drawn of a signal."""
        kind = self.model.config.inputs[name].kind
        texts = {name: decode_ids(signal.numpy())} if kind == "bytes" else {}
        return draw_parts(SampleBox({name: signal.numpy()}, {name: kind}, "", "", texts), 0)

    def _find_sound(
        self, spec: ModalitySpec, row: int, given: Sequence[str]
    ) -> tuple[Audio, Tensor] | None:
        """Return the given sound that a filled-in clip can be played with, if there is one."""
        for name in given if isinstance(spec, Video) else ():
            sound = self.model.config.inputs[name]
            if isinstance(sound, Audio) and fits_clip(sound):
                return sound, self._original(name, row)
        return None

    def _list_classes(self, made: Tensor) -> list[str]:
        """Return the likeliest classes with their probabilities, a line each."""
        shares = made[0].softmax(-1).mean(0)
        best = shares.topk(min(LISTED, len(shares)))
        names = [
            self.classes[i] if i < len(self.classes) else str(i) for i in best.indices.tolist()
        ]
        return [f"{n} {p:.3f}" for n, p in zip(names, best.values.tolist(), strict=True)]
