"""Audio: fitting, and facts about samples.

Legend: C channels, S samples.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from perceivers.data.audio_clips import common_audio, fit_audio, native_audio, read_sound_info
from perceivers.data.augment import PLAIN, Look, Place
from perceivers.data.augment_signals import change_sound
from perceivers.data.containers import AUDIO_EXTENSIONS
from perceivers.data.modality import Cut, Modality, RawFacts, read_values
from perceivers.data.sources import Encoded
from perceivers.types import Audio

# Audio of more samples is slow to decode.
LONG_SOUND = 2**16
# Audio longer than this, in s, is described by its start, middle and end, this long each.
WHOLE_SOUND = 90
PART_OF_SOUND = 30
PLACES = (0.0, 0.5, 1.0)
# Bands of the spectrum that is a feature, and samples of its windows and between them.
BANDS, FRAME, HOP = 64, 512, 256


def fit_sound(raw: Any, path: str, spec: Audio, look: Look = PLAIN) -> NDArray:
    """Fit a clip, or samples ``[C, S]``: a random or a fixed part, padded with silence at the end.

    Raises:
        DataError: The clip cannot be decoded.
    """
    if isinstance(raw, Encoded):
        return fit_audio(raw, spec, look)
    spare = raw.shape[1] - spec.samples
    if spare <= 0:
        return np.pad(raw, ((0, 0), (0, -spare)))
    rng = look.rng
    first = look.start(spare + 1) if rng is None else int(rng.integers(spare + 1))
    return raw[:, first : first + spec.samples]


def native_sound(raw: NDArray | Encoded, ragged: bool) -> Audio:
    """Return the spec of a file, or of samples ``[C, S]``."""
    if isinstance(raw, Encoded):
        return native_audio(raw)
    channels, samples = raw.shape
    return Audio(samples, channels)


def is_sound(raw: NDArray, name: str, spec: Audio) -> bool:
    """Tell whether an array is audio with the channels of a spec."""
    return raw.ndim == 2 and raw.shape[0] == spec.channels


def inspect(raw: NDArray | Encoded, path: str, cut: Cut) -> RawFacts:
    """Describe a recording."""
    return _measure_sound(raw) if isinstance(raw, Encoded) else _measure_wave(raw)


def _measure_sound(clip: Encoded) -> RawFacts:
    info = read_sound_info(clip)
    whole = info.samples <= WHOLE_SOUND * info.sample_rate
    count = info.samples if whole else PART_OF_SOUND * info.sample_rate
    spec = Audio(count, info.channels)
    peak = max(
        float(np.abs(fit_audio(clip, spec, Look(place=Place(time)))).max())
        for time in (PLACES[:1] if whole else PLACES)
    )
    return RawFacts(
        {"seconds": info.samples / info.sample_rate},
        {"sample rate in Hz": str(info.sample_rate), "channels": str(info.channels)},
        ("silent",) if peak == 0.0 else (),
    )


def _measure_wave(raw: NDArray) -> RawFacts:
    """Describe a waveform ``[C, S]``."""
    flags = () if np.any(raw) else ("silent",)
    return RawFacts({"samples": raw.shape[1]}, {"channels": str(raw.shape[0])}, flags)


def _spectrum(waves: Float[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    """Return log magnitudes of overlapping windows, in bands that widen with frequency."""
    size = min(FRAME, waves.shape[1])
    windows = waves.unfold(1, size, min(HOP, size)) * torch.hann_window(size, periodic=False)
    magnitude = torch.fft.rfft(windows).abs()  # [B, T, size // 2 + 1]
    bins = magnitude.shape[-1]
    edges = torch.logspace(0, torch.log10(torch.tensor(float(bins))).item(), BANDS + 1)
    edges = (edges - 1).round().long().clamp(max=bins - 1)
    bands = torch.stack(
        [magnitude[..., a : max(int(b), int(a) + 1)].mean(-1) for a, b in edges.unfold(0, 2, 1)], -1
    )
    level = (bands + 1e-4).log()
    spread = level.std(1) if level.shape[1] > 1 else torch.zeros_like(level[:, 0])
    return torch.cat([level.mean(1), spread], 1)


def summarise(raw: Shaped[Tensor, "B C S"]) -> Float[Tensor, "B D"]:
    """Return mean and deviation over time of the log spectrum."""
    return _spectrum(read_values(raw).mean(1))


ROW = Modality(
    spec=Audio,
    fit=fit_sound,
    native=native_sound,
    merge=common_audio,
    is_slow=lambda spec: spec.samples > LONG_SOUND,
    is_valid=is_sound,
    augment=lambda values, spec, look: change_sound(values, look),
    inspect=inspect,
    summarise=summarise,
    noun="audio file",
    endings=AUDIO_EXTENSIONS,
    decode=lambda path, data: Encoded(path, data, "audio"),
    streamed=True,
    words=("audio", "sound", "speech", "input"),
)
