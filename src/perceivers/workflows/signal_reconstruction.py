"""Give back files through the latents: pictures as PNG, clips as playable mp4 with sound, wav.

Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.3: video, sound and label auto-encoded at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, find_files, read_files
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.report.figures import draw_reconstructions
from perceivers.tasks.autoencoding import (
    Autoencoding,
    AutoencodingConfig,
    as_floats,
    decode_raw,
)
from perceivers.tasks.base import check_answer
from perceivers.tasks.presence import can_lack, held_modalities
from perceivers.types import Audio, Image, ModalitySpec, Video
from perceivers.workflows.reconstruction import SHOWN, unique_stem
from perceivers.workflows.signal_files import write_signal

NOTE = "All that is shown passed the latent array; clipped to the signal's range."


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
    """Write the original and the reconstruction of every file, and an overview of what is seen.

    Args:
        loaded: An auto-encoder.
        config: What was hidden in training; a mask ratio hides tokens here too.
        paths: Files of the model's kinds, or folders searched for them.
        out: Folder for the files and ``overview.png`` (pictures, middle frames of clips).
        seed: Seed of the masks.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: The model gives nothing back, nothing is readable, or ``out`` holds files.
    """
    task = Autoencoding(loaded.model, config).eval()
    if not task.signals:
        raise CheckpointError("this model answers no signal; it cannot reconstruct")
    _make_folder(out, overwrite)
    specs = loaded.model.config.data_inputs
    files = find_files([str(path) for path in paths], tuple(specs))
    written: list[Path] = []
    names: list[str] = []
    drawn: list[str] = []
    bad: list[str] = []
    shown: list[tuple[np.ndarray, ...]] = []
    frames = next((n for n in task.signals if isinstance(specs[n], Image | Video)), None)
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
        out: The folder.
        stem: Name of the files without ending.
        signals: Floats in the raw layout, by modality.
        specs: What they are.
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
            written += write_signal(out, stem, specs[name], signal, sound=sound)
    return written


def _make_folder(out: Path, overwrite: bool) -> None:
    """Make the folder, or require leave to write into one that holds files."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{out} holds files; pass --overwrite or another --out")
    out.mkdir(parents=True, exist_ok=True)


def _give_back(
    task: Autoencoding, batch: Batch, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the signals of a batch, what comes back of them, and which elements were read."""
    if task.labels:
        batch.labels = torch.full((len(batch),), -1)
    encoded, visible = task.encode_for_display(batch, torch.Generator().manual_seed(seed))
    original = {n: as_floats(task.model, n, batch.inputs[n]) for n in task.signals}
    made = {n: decode_raw(task.model, encoded, n) for n in task.signals}
    # What is absent, a row of NaN among points, has nothing to be given back.
    for name, signal in made.items():
        check_answer(signal[original[name].isfinite()], f"reconstruction of {name}")
    made = {n: x.where(original[n].isfinite(), torch.nan) for n, x in made.items()}
    return original, made, visible


def _middle(x: Tensor) -> Tensor:
    """The middle frame of clips; pictures as they are."""
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
