"""Reconstruct files with masked autoencoders and Perceiver IO, and draw overview figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, find_files, read_files
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.finite import check_answer
from perceivers.models.masked import Imagined, MaskSettings
from perceivers.report.by_modality import SHOWN, TARGET_NOTES
from perceivers.report.drawings import drawing_of
from perceivers.report.figures import draw_reconstructions
from perceivers.tasks.autoencoding import (
    Autoencoding,
    AutoencodingConfig,
    as_floats,
    decode_raw,
)
from perceivers.tasks.base import can_lack, held_modalities
from perceivers.tasks.mae import objective_of
from perceivers.types import Audio, ModalitySpec, Video

# -- Reconstruct files with a masked autoencoder -------------------------------------------------


def imagine(model: Any, batch: Batch, settings: MaskSettings, seed: int) -> dict[str, Imagined]:
    """Mask and reconstruct a batch; each modality contains only the samples that have it."""
    objective = objective_of(model.eval())
    plan = objective.draw(batch.inputs, settings, torch.Generator().manual_seed(seed))
    held = held_modalities(model, batch)
    made = objective.imagine(batch.inputs, plan, settings.target, shown=held)
    return {name: each.take(held[name]) if name in held else each for name, each in made.items()}


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

    Images are written as png, clips as mp4, audio as wav, texts as txt (hidden bytes are
    underscores) and point clouds as npy and ply. Files of several modalities are paired by name; a
    sample may lack some of them.

    Args:
        loaded: A masked autoencoder.
        settings: Masking and target space.
        paths: Files of the kinds that the model reads, or folders searched for them.
        out: Folder for the files, ``overview.png``, which names the target space, and, with several
            modalities, ``overview_NAME.png`` for each further one.
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call in ``out``.

    Returns:
        The written files; the overview is the last.

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
    """Draw one figure per modality; ``overview.png`` is that of an image or video if possible."""
    drawn = [name for name in specs if shown.get(name)]
    main = next((n for n in drawn if specs[n].has_pixels), drawn[0])
    written = []
    # The overview comes last, as callers expect.
    for name in sorted(drawn, key=lambda name: name == main):
        path = out / ("overview.png" if name == main else f"overview_{name}.png")
        spec = specs[name]
        written.append(drawing_of(spec.kind).overview(path, shown[name], spec, title, note))
    return written


def _stems_holding(batch: Batch, name: str, stems: Sequence[str]) -> list[str]:
    """Return the names of the samples that have a modality."""
    there = batch.present.get(name)
    return [s for row, s in enumerate(stems) if there is None or bool(there[row])]


def save_imagined(
    folder: Path, stems: Sequence[str], imagined: Imagined, spec: ModalitySpec
) -> list[Path]:
    """Write original, masked and reconstructed files of every sample; see ``Drawing.split``."""
    folder.mkdir(parents=True, exist_ok=True)
    written, drawing = [], drawing_of(spec.kind)
    for row, stem in enumerate(stems):
        # Missing points are NaN in the original and in the reconstruction.
        real = imagined.original[row].isfinite()
        for kind, signals in drawing.split(imagined).items():
            signal = signals[row]
            if kind != "masked":
                check_answer(signal[real], f"{stem}_{kind}")
            step = imagined.frame_step
            written += drawing.write(folder, f"{stem}_{kind}", spec, signal, step, None)
    return written


def unique_stem(stem: str, taken: Sequence[str]) -> str:
    """Add a number to a stem that is already taken."""
    name, count = stem, 2
    while name in taken:
        name, count = f"{stem}-{count}", count + 1
    return name


# ------------------------------------------------------------------------------------------------
# Reconstruct files with a Perceiver IO autoencoder: images as png, clips as mp4 with sound, wav.
#
# Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.3: joint autoencoding of video, audio and label.

NOTE = "Reconstructed from the latent array alone; clipped to the signal's range."


@torch.no_grad()
def reconstruct_signals(
    loaded: Loaded,
    config: AutoencodingConfig,
    paths: Sequence[str | Path],
    out: Path,
    *,
    seed: int,
    overwrite: bool,
) -> list[Path]:
    """Write the original and the reconstruction of every file, and an overview figure.

    Args:
        loaded: A Perceiver IO autoencoder.
        config: Settings of training; its mask ratio hides tokens here too.
        paths: Files of the kinds that the model reads, or folders searched for them.
        out: Folder for the files and ``overview.png`` (images, middle frames of clips).
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: The model outputs no signal, no file is readable, or ``out`` holds files.
    """
    task = Autoencoding(loaded.model, config).eval()
    if not task.signals:
        raise CheckpointError("this model outputs no signal, so it cannot reconstruct")
    _make_folder(out, overwrite)
    specs = loaded.model.config.data_inputs
    files = find_files([str(path) for path in paths], tuple(specs))
    written: list[Path] = []
    names: list[str] = []
    drawn: list[str] = []
    bad: list[str] = []
    shown: list[tuple[np.ndarray, ...]] = []
    frames = next((n for n in task.signals if specs[n].has_pixels), None)
    for found, batch in read_files(files, specs, 8, may_lack=can_lack(loaded.model)):
        bad += batch.bad
        if not found:
            continue
        held = held_modalities(loaded.model, batch)
        original, made, visible = _give_back(task, batch, seed)
        for row, file in enumerate(found):
            stem = unique_stem(file.stem, names)
            names.append(stem)
            there = [n for n in task.signals if n not in held or bool(held[n][row])]
            for kind, signals in (("original", original), ("reconstructed", made)):
                parts = {name: signals[name][row] for name in there}
                written += write_signals(out, f"{stem}_{kind}", parts, specs)
            if frames in there:
                drawn.append(stem)
        if frames is not None:
            seen = visible[frames].expand(-1, 1, *original[frames].shape[2:])
            rows = held.get(frames, torch.ones(len(batch), dtype=torch.bool))
            arrays = (original[frames][rows], seen[rows], made[frames][rows])
            shown += zip(*(_middle(array).numpy() for array in arrays), strict=True)
    if not written:
        raise DataError(f"no readable file among {len(files)}: {'; '.join(bad[:3])}")
    if shown:
        written.append(_overview(out / "overview.png", shown[:SHOWN], drawn[:SHOWN], config))
    return written


def write_signals(
    out: Path, stem: str, signals: Mapping[str, Tensor], specs: Mapping[str, ModalitySpec]
) -> list[Path]:
    """Write one sample: a clip with its sound, or a file per modality.

    Args:
        out: Output folder.
        stem: Name of the files without extension.
        signals: Floats in the raw layout, by modality.
        specs: Specs of the modalities.
    """
    sound = None
    has_film = any(isinstance(specs[name], Video) for name in signals)
    for name, signal in signals.items():
        spec = specs[name]
        if isinstance(spec, Audio) and has_film:
            sound = (spec, signal)
    written = []
    for name, signal in signals.items():
        if sound is None or not isinstance(specs[name], Audio):
            written += drawing_of(specs[name].kind).write(out, stem, specs[name], signal, 1, sound)
    return written


def _make_folder(out: Path, overwrite: bool) -> None:
    """Create the output folder; if it holds files, ``overwrite`` is required."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out} holds files; pass --overwrite or another --out")
    out.mkdir(parents=True, exist_ok=True)


def _give_back(
    task: Autoencoding, batch: Batch, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return originals and reconstructions of a batch, and which elements were visible."""
    if task.labels:
        # Files have no labels; -1 marks unknown ones.
        batch.labels = torch.full((len(batch),), -1)
    encoded, visible = task.encode_for_display(batch, torch.Generator().manual_seed(seed))
    original = {n: as_floats(task.model, n, batch.inputs[n]) for n in task.signals}
    made = {n: decode_raw(task.model, encoded, n) for n in task.signals}
    # Missing points, which are rows of NaN, have no reconstruction.
    for name, signal in made.items():
        check_answer(signal[original[name].isfinite()], f"reconstruction of {name}")
    made = {n: x.where(original[n].isfinite(), torch.nan) for n, x in made.items()}
    return original, made, visible


def _middle(x: Tensor) -> Tensor:
    """Return the middle frame of clips, and images unchanged."""
    return x[:, :, x.shape[2] // 2] if x.ndim == 5 else x


def _overview(
    path: Path,
    shown: Sequence[tuple[np.ndarray, ...]],
    names: Sequence[str],
    config: AutoencodingConfig,
) -> Path:
    original, visible, made = (np.stack(part) for part in zip(*shown, strict=True))
    share = f"{100 * (1 - config.mask_ratio):.0f} %"
    return draw_reconstructions(
        path,
        original=original.clip(0, 1),
        visible=visible,
        reconstructed=made.clip(0, 1),
        names=names,
        title=f"Reconstructed from {share} of the tokens",
        note=NOTE,
    )
