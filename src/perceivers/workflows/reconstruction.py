"""What a masked auto-encoder imagines of signals: original, masked, reconstructed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, find_files, read_files
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.report.figures import draw_reconstructions
from perceivers.tasks.base import check_answer
from perceivers.tasks.mae import objective_of
from perceivers.tasks.masked import Imagined, MaskSettings
from perceivers.tasks.presence import can_lack, held_modalities
from perceivers.types import Bytes, Image, ModalitySpec, Video
from perceivers.workflows.overviews import GREY, draw_signals, split_parts
from perceivers.workflows.signal_files import write_signal

TARGET_NOTES: dict[str, str] = {
    "raw": "Trained on raw values; shown as predicted.",
    "per-channel": "Trained on channel-standardised values; shown with that undone.",
    "group-normalised": (
        "Trained on group-standardised values; mean and deviation of every group were borrowed "
        "from the original picture."
    ),
    "patch-normalised": (
        "Trained on patch-standardised values of hidden patches; mean and deviation of every patch "
        "were borrowed from the original."
    ),
}
TEXT_NOTE = "The likeliest byte at every place; hidden bytes are underscores."
SHOWN = 12


@dataclass(frozen=True)
class Pictures:
    """Arrays ``[n, C, H, W]`` in 0..1; ``visible`` is ``[n, 1, H, W]``."""

    original: NDArray[np.float32]
    visible: NDArray[np.bool_]
    reconstructed: NDArray[np.float32]

    @property
    def pasted(self) -> NDArray[np.float32]:
        """The reconstruction with the visible elements put back."""
        return np.where(self.visible, self.original, self.reconstructed)

    @property
    def is_pasted(self) -> bool:
        """Whether the reconstruction holds the visible elements as they are."""
        return bool(np.allclose(self.pasted, self.reconstructed, rtol=0.0, atol=1e-4))

    @property
    def masked(self) -> NDArray[np.float32]:
        """What the model saw, the rest grey."""
        return np.where(self.visible, self.original, np.float32(GREY))


def picture_modality(model: Any) -> str:
    """Return the name of the model's picture or clip input.

    Raises:
        DataError: It has none.
    """
    for kind in (Image, Video):
        for name, spec in model.config.data_inputs.items():
            if isinstance(spec, kind):
                return name
    raise DataError(
        f"pictures can be drawn of image and video inputs; this model reads "
        f"{list(model.config.inputs)}"
    )


def imagine(model: Any, batch: Batch, settings: MaskSettings, seed: int) -> dict[str, Imagined]:
    """Mask a batch and reconstruct it; of each modality only the samples that hold it."""
    objective = objective_of(model.eval())
    plan = objective.draw(batch.inputs, settings, torch.Generator().manual_seed(seed))
    held = held_modalities(model, batch)
    made = objective.imagine(batch.inputs, plan, settings.target, shown=held)
    return {name: each.take(held[name]) if name in held else each for name, each in made.items()}


def as_pictures(imagined: Imagined) -> Pictures:
    """Return pictures for a figure; of clips, their middle frame."""
    parts = (imagined.original, imagined.visible, imagined.reconstructed)
    original, visible, made = (x[:, :, x.shape[2] // 2] if x.ndim == 5 else x for x in parts)
    return Pictures(original.numpy(), visible.numpy(), made.float().clamp(0, 1).numpy())


def reconstruct_masked(
    loaded: Loaded,
    settings: MaskSettings,
    paths: Sequence[str | Path],
    out: Path,
    *,
    seed: int,
    overwrite: bool,
) -> list[Path]:
    """Write ``NAME_original``, ``_masked`` and ``_reconstructed`` per file.

    Pictures become png, clips mp4, sounds wav, texts txt (a hidden byte is an underscore) and point
    clouds npy and ply.
    Files of several modalities are paired by name; a sample may lack some of them.

    Args:
        loaded: A masked auto-encoder.
        settings: What is hidden, and the target space.
        paths: Files of the model's kind, or folders searched for them.
        out: Folder for the files, ``overview.png``, which names the target space, and, with several
            modalities, ``overview_NAME.png`` for each further one.
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call in ``out``.

    Returns:
        The files written; the overview is the last.

    Raises:
        UserError: The model cannot reconstruct, a path does not exist, nothing is readable, or
            ``out`` holds an earlier overview and ``overwrite`` is off.
    """
    if loaded.model.decoder is None:
        raise CheckpointError(
            f"{loaded.folder} has no decoder, so it cannot reconstruct; give the pre-training run"
        )
    overview = out / "overview.png"
    if overview.exists() and not overwrite:
        raise ConfigError(f"{overview} exists; pass --overwrite or another --out")
    specs = loaded.model.config.data_inputs
    files = find_files([str(path) for path in paths], tuple(specs))
    written: list[Path] = []
    shown: dict[str, list[tuple[Imagined, list[str]]]] = {}
    bad: list[str] = []
    names: list[str] = []
    for found, batch in read_files(files, specs, 16, may_lack=can_lack(loaded.model)):
        bad += batch.bad
        if not found:
            continue
        for file in found:
            names.append(unique_stem(file.stem, names))
        for name, each in imagine(loaded.model, batch, settings, seed).items():
            stems = _stems_holding(batch, name, names[-len(found) :])
            written += save_imagined(out, stems, each, specs[name])
            kept = shown.setdefault(name, [])
            if stems and sum(len(drawn) for _, drawn in kept) < SHOWN:
                kept.append((each, stems))
    if not written:
        raise DataError(f"no readable file among {len(files)}: {'; '.join(bad[:3])}")
    title = f"Reconstruction from {100 * (1 - settings.ratio):.0f} % of the input"
    return [*written, *_draw_overviews(out, shown, specs, title, TARGET_NOTES[settings.target])]


def _draw_overviews(
    out: Path,
    shown: Mapping[str, Sequence[tuple[Imagined, Sequence[str]]]],
    specs: Mapping[str, ModalitySpec],
    title: str,
    note: str,
) -> list[Path]:
    """Draw a figure per modality; that of images or video, else of the first, is the overview."""
    drawn = [name for name in specs if shown.get(name)]
    main = next((n for n in drawn if isinstance(specs[n], Image | Video)), drawn[0])
    written = []
    for name in sorted(drawn, key=lambda name: name == main):
        path = out / ("overview.png" if name == main else f"overview_{name}.png")
        if isinstance(specs[name], Image | Video):
            pictures = [as_pictures(each) for each, _ in shown[name]]
            stems = [stem for _, stems in shown[name] for stem in stems]
            written.append(draw_overview(path, pictures, stems, title, note))
        else:
            spec = specs[name]
            about = TEXT_NOTE if isinstance(spec, Bytes) else note
            written.append(draw_signals(path, shown[name], spec, title=title, note=about))
    return written


def _stems_holding(batch: Batch, name: str, stems: Sequence[str]) -> list[str]:
    """Return the names of the samples that hold a modality."""
    there = batch.present.get(name)
    return [s for row, s in enumerate(stems) if there is None or bool(there[row])]


def save_imagined(
    folder: Path, stems: Sequence[str], imagined: Imagined, spec: ModalitySpec
) -> list[Path]:
    """Write three files per sample; what was hidden is grey, silent, underscores, or left out."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row, stem in enumerate(stems):
        # What is no point is NaN before and after.
        real = imagined.original[row].isfinite()
        for kind, signals in split_parts(imagined, spec).items():
            signal = signals[row]
            if kind != "masked":
                check_answer(signal[real], f"{stem}_{kind}")
            step = imagined.frame_step
            written += write_signal(folder, f"{stem}_{kind}", spec, signal, frame_step=step)
    return written


def draw_overview(
    path: Path, batches: Sequence[Pictures], names: Sequence[str], title: str, note: str
) -> Path:
    """Draw the first pictures of all batches in one figure."""

    def join(part: str) -> NDArray[Any]:
        return np.concatenate([getattr(pictures, part) for pictures in batches])[:SHOWN]

    shown = Pictures(join("original"), join("visible"), join("reconstructed"))
    return draw_imagined(path, shown, names=names[:SHOWN], title=title, note=note)


def draw_imagined(
    path: Path, pictures: Pictures, *, names: Sequence[str] | None = None, title: str, note: str
) -> Path:
    """Draw pictures, what was seen of them, and what was made of that."""
    pasted = pictures.is_pasted
    return draw_reconstructions(
        path,
        original=pictures.original,
        visible=pictures.visible,
        reconstructed=pictures.reconstructed,
        masked_only=None if pasted else pictures.pasted,
        names=names,
        title=title,
        note=f"{note} What the model saw is pasted in." if pasted else note,
    )


def unique_stem(stem: str, taken: Sequence[str]) -> str:
    """Number a stem that another file has used already."""
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}-{count}", count + 1
    return name
