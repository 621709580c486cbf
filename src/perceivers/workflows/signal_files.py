"""One signal of a model to a file that can be looked at, played or read.

Images are written as ``.png``, clips as ``.mp4``, sound as ``.wav``, points as ``.npy`` and, with
three coordinates, ``.ply``, texts as ``.txt`` and other arrays as ``.npy``.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from perceivers.data.byte_codec import decode_ids
from perceivers.data.clip_writing import list_sound_rates, write_clip, write_wav
from perceivers.data.point_writing import AXES, write_ply
from perceivers.files import write_atomic
from perceivers.types import Audio, Bytes, Image, ModalitySpec, Points, Video

# Rates that every player takes, where the data do not say.
DEFAULT_FRAME_RATE, DEFAULT_SAMPLE_RATE = 25.0, 16_000


def write_signal(
    folder: Path,
    stem: str,
    spec: ModalitySpec,
    signal: Tensor,
    *,
    frame_step: int = 1,
    sound: tuple[Audio, Tensor] | None = None,
) -> list[Path]:
    """Write one signal; what lies outside its range is clipped.

    Args:
        folder: Where to; it exists.
        stem: Name of the file without ending.
        spec: What the signal is.
        signal: Floats in the raw layout without a batch axis; of texts ids ``[L]``. A row of NaN is
            no point.
        frame_step: Frames of the spec per frame of a clip.
        sound: Sound that a clip is written with, and what it is.

    Raises:
        UserError: The signal or its rate cannot be written, or a library is missing.
    """
    if isinstance(spec, Video):
        pixels = (signal.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        wave, rate = None, 0
        if sound is not None:
            rate, wave = sound_rate(sound[0]), sound[1].clamp(-1, 1).numpy()
        frame_rate = (spec.frame_rate or DEFAULT_FRAME_RATE) / frame_step
        return [write_clip(folder / f"{stem}.mp4", pixels, frame_rate, wave, rate)]
    if isinstance(spec, Audio):
        wave = signal.clamp(-1, 1).numpy()
        return [write_wav(folder / f"{stem}.wav", wave, sound_rate(spec))]
    if isinstance(spec, Image):
        return [save_picture(folder / f"{stem}.png", signal.numpy())]
    if isinstance(spec, Bytes):
        return [write_atomic(folder / f"{stem}.txt", decode_ids(signal.numpy()) + "\n")]
    array = signal.numpy()
    if isinstance(spec, Points):
        array = array[np.isfinite(array).all(-1)]
    path = folder / f"{stem}.npy"
    np.save(path, array)
    if not isinstance(spec, Points) or spec.channels < len(AXES):
        return [path]
    return [path, write_ply(folder / f"{stem}.ply", array)]


def sound_rate(spec: Audio) -> int:
    """Return the rate that sound is written at, in Hz."""
    return spec.sample_rate or DEFAULT_SAMPLE_RATE


def fits_clip(spec: Audio) -> bool:
    """Tell whether a clip can be written with such sound."""
    return spec.channels <= 2 and sound_rate(spec) in list_sound_rates()


def save_picture(path: Path, array: NDArray[np.float32]) -> Path:
    """Write one ``[C, H, W]`` array in 0..1 as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.round(array.clip(0, 1) * 255).astype(np.uint8)
    if pixels.shape[0] not in {1, 3, 4}:
        pixels = pixels[:1]
    picture = pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)
    Pillow.fromarray(picture).save(path)
    return path
