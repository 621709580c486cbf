"""Random changes of a waveform: loudness, place in time, added noise and sign.

Each is a line of numpy, applied on the workers to fitted clips; a library of effects would bring
its own random numbers, and what is random here must follow from (seed, epoch, sample). SpecAugment
is not among them: it masks spectrograms, and models here read waveforms.

Legend: C channels, S samples.
"""

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig
from perceivers.data.views import Look


def change_sound(wave: NDArray, look: Look) -> NDArray:
    """Shift, add noise to, amplify and invert a waveform, in this order; in evaluation never.

    Args:
        wave: Fitted samples ``[C, S]``, float or int16; not changed in place.
        look: Where the draws come from, and what to draw. The draws do not depend on the sound.

    Returns:
        The same shape and type. Floats may leave -1..1; integers are cut off at their range.
    """
    augment, rng = look.augment, look.rng
    if rng is None or not augment.changes_sounds:
        return wave
    values = wave.astype(np.float32)
    if augment.time_shift:
        share = rng.uniform(-augment.time_shift, augment.time_shift)
        values = shift_wave(
            values, round(share * values.shape[1]), wrap=augment.time_fill == "wrap"
        )
    if augment.noise and rng.random() < augment.noise:
        ratio = rng.uniform(*augment.noise_ratio)
        values += draw_noise(values, ratio, rng)
    values *= _draw_factor(augment, rng)
    if np.issubdtype(wave.dtype, np.integer):
        limits = np.iinfo(wave.dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    return values.astype(wave.dtype, copy=False)


def shift_wave(wave: NDArray[np.float32], places: int, *, wrap: bool) -> NDArray[np.float32]:
    """Move samples ``[C, S]`` later.

    Args:
        wave: The samples.
        places: How many samples later, -S..S; earlier below 0.
        wrap: Bring what is pushed out back at the other end, instead of zeros.
    """
    shifted = np.roll(wave, places, axis=1)
    if not wrap and places > 0:
        shifted[:, :places] = 0
    elif not wrap and places < 0:
        shifted[:, places:] = 0
    return shifted


def draw_noise(
    wave: NDArray[np.float32], ratio: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw white noise that is quieter than a sound; none for silence.

    Args:
        wave: The sound ``[C, S]``.
        ratio: Decibels from the noise's mean square to that of the sound, over all channels.
        rng: Where the noise comes from.
    """
    loudness = np.sqrt(np.square(wave, dtype=np.float64).mean())
    noise = rng.standard_normal(wave.shape, np.float32)
    return noise * np.float32(loudness * 10 ** (-ratio / 20))


def _draw_factor(augment: AugmentConfig, rng: np.random.Generator) -> np.float32:
    """Draw what a waveform is multiplied by."""
    factor = 10 ** (rng.uniform(*augment.gain) / 20) if augment.gain != (0.0, 0.0) else 1.0
    return np.float32(-factor if augment.invert and rng.random() < 0.5 else factor)
