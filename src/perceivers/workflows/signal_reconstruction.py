"""Give back files through the latents: pictures as PNG, clips as playable mp4 with sound, wav.

Paper: Perceiver IO (arXiv 2107.14795) Sec. 4.3: video, sound and label auto-encoded at once.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, find_files, read_files
from perceivers.data.clip_writing import write_clip, write_wav
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.report.figures import draw_reconstructions
from perceivers.tasks.answers import check_answer
from perceivers.tasks.autoencoding import (
    Autoencoding,
    AutoencodingConfig,
    as_floats,
    decode_raw,
)
from perceivers.types import Audio, Image, Points, Video
from perceivers.workflows.reconstruction import (
    DEFAULT_FRAME_RATE,
    DEFAULT_SAMPLE_RATE,
    SHOWN,
    save_picture,
    unique_stem,
)

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
    bad: list[str] = []
    shown: list[tuple[np.ndarray, ...]] = []
    for found, batch in read_files(files, specs, 8):
        bad += batch.bad
        if not found:
            continue
        original, made, visible = _give_back(task, batch, seed)
        for row, file in enumerate(found):
            stem = unique_stem(file.stem, names)
            names.append(stem)
            for kind, signals in (("original", original), ("reconstructed", made)):
                parts = {name: signal[row] for name, signal in signals.items()}
                written += write_signals(out, f"{stem}_{kind}", parts, loaded)
        frames = next((n for n in task.signals if isinstance(specs[n], Image | Video)), None)
        if frames is not None:
            seen = visible[frames].expand(-1, 1, *original[frames].shape[2:])
            arrays = (original[frames], seen, made[frames])
            shown += zip(*(_middle(array).numpy() for array in arrays), strict=True)
    if not written:
        raise DataError(f"no readable file among {len(files)}: {'; '.join(bad[:3])}")
    if shown:
        written.append(_overview(out / "overview.png", shown[:SHOWN], names[:SHOWN], config))
    return written


def write_signals(out: Path, stem: str, signals: dict[str, Tensor], loaded: Loaded) -> list[Path]:
    """Write one sample: a clip with its sound, or a file per modality (points as ``.npy``)."""
    specs = loaded.model.config.inputs
    sound = next((n for n in signals if isinstance(specs[n], Audio)), None)
    rate = specs[sound].sample_rate or DEFAULT_SAMPLE_RATE if sound is not None else 0
    wave = None if sound is None else signals[sound].clamp(-1, 1).numpy()
    has_film = any(isinstance(specs[n], Video) for n in signals)
    written = []
    for name, signal in signals.items():
        spec = specs[name]
        if isinstance(spec, Video):
            pixels = (signal.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            frame_rate = spec.frame_rate or DEFAULT_FRAME_RATE
            written.append(write_clip(out / f"{stem}.mp4", pixels, frame_rate, wave, rate))
        elif isinstance(spec, Image):
            written.append(save_picture(out / f"{stem}.png", signal.numpy()))
        elif name == sound and wave is not None and not has_film:
            written.append(write_wav(out / f"{stem}.wav", wave, rate))
        elif isinstance(spec, Points):
            written.append(out / f"{stem}.npy")
            np.save(written[-1], signal[torch.isfinite(signal).all(-1)].numpy())
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
