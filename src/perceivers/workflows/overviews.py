"""Figures of what a model reconstructed: one per modality, whatever its kind."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.data.byte_codec import decode_ids
from perceivers.report.figures.reconstruction import FilledRow, SoundRow, draw_filled, draw_sounds
from perceivers.report.figures.samples import SampleBox, draw_parts
from perceivers.tasks.masked import Imagined
from perceivers.types import FIRST_BYTE, PAD, Audio, Bytes, ModalitySpec
from perceivers.workflows.signal_files import sound_rate

# Rows of a figure.
SHOWN = 6
COLUMNS = ("what the model saw", "reconstructed", "original")
# What stands where something was hidden.
BLANKS: dict[str, float] = {"audio": 0.0, "bytes": FIRST_BYTE + ord("_"), "points": float("nan")}
GREY = 0.5


def split_parts(imagined: Imagined, spec: ModalitySpec) -> dict[str, Tensor]:
    """Return ``original``, ``masked`` and ``reconstructed`` as they are written and drawn.

    What was hidden is grey, silent, underscores, or no point; padding of texts stays padding.
    """
    parts = {
        "original": imagined.original,
        "masked": torch.where(imagined.visible, imagined.original, BLANKS.get(spec.kind, GREY)),
        "reconstructed": imagined.reconstructed,
    }
    if isinstance(spec, Bytes):
        blank = imagined.original == PAD
        return {name: torch.where(blank, PAD, part) for name, part in parts.items()}
    return {name: part.float() for name, part in parts.items()}


def draw_signals(
    path: Path,
    batches: Sequence[tuple[Imagined, Sequence[str]]],
    spec: ModalitySpec,
    *,
    title: str,
    note: str,
) -> Path:
    """Draw the first samples of a modality that is neither images nor video.

    Args:
        path: Where the PNG goes.
        batches: What was imagined of each batch, and the names of its samples.
        spec: What they are.
        title: Heading of the figure.
        note: How to read it.
    """
    first = "" if sum(len(names) for _, names in batches) <= SHOWN else f" The first {SHOWN}."
    if isinstance(spec, Audio):
        sounds = [row for each, names in batches for row in _sound_rows(each, names, spec)]
        about = f"{note} Left: 40 milliseconds around the loudest sample.{first}"
        return draw_sounds(path, sounds[:SHOWN], title=title, note=about)
    rows = [row for each, names in batches for row in _filled_rows(each, names, spec)]
    return draw_filled(path, rows[:SHOWN], columns=COLUMNS, title=title, note=note + first)


def _sound_rows(imagined: Imagined, names: Sequence[str], spec: Audio) -> list[SoundRow]:
    """Return the first channel of every recording."""
    rows = []
    for row, name in enumerate(names):
        waves = (imagined.original[row, 0], imagined.reconstructed[row, 0])
        original, made = (wave.double().numpy() for wave in waves)
        visible = imagined.visible[row, 0].numpy()
        rows.append(SoundRow(name, original, made, visible, float(sound_rate(spec))))
    return rows


def _filled_rows(imagined: Imagined, names: Sequence[str], spec: ModalitySpec) -> list[FilledRow]:
    """Return texts or clouds: what the model saw, what it made of that, and the original."""
    parts = split_parts(imagined, spec)
    columns = [parts[name] for name in ("masked", "reconstructed", "original")]
    return [
        FilledRow(name, *(_draw(column[row], spec) for column in columns))
        for row, name in enumerate(names)
    ]


def _draw(signal: Tensor, spec: ModalitySpec) -> list[NDArray[np.uint8] | str]:
    """Return a text, or an image of anything else."""
    if isinstance(spec, Bytes):
        return [decode_ids(signal[signal != PAD].numpy())]
    box = SampleBox({"x": signal.numpy()}, {"x": spec.kind}, "", "", {})
    return draw_parts(box, 0)
