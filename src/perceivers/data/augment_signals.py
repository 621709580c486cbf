"""Random augmentation of audio, point clouds and texts."""

from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig, Look
from perceivers.errors import ConfigError
from perceivers.types import Points

# -- Waveforms: gain, time shift, added noise and sign ---------------------------------------------
#
# Plain numpy, applied to fitted clips by the workers: a library of effects would bring its own
# random generator, but augmentation must be reproducible from (seed, epoch, sample). SpecAugment is
# not included: it masks spectrograms, and models here read waveforms.
#
# Legend: C channels, S samples.


def change_sound(wave: NDArray, look: Look) -> NDArray:
    """Shift, add noise to, amplify and invert a waveform, in this order; unchanged in evaluation.

    Args:
        wave: Fitted samples ``[C, S]``, float or int16; not changed in place.
        look: Random generator and settings. The random numbers used do not depend on the audio.

    Returns:
        The same shape and dtype. Floats may leave -1..1; integers are clipped to their range.
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
    """Shift samples ``[C, S]`` in time.

    Args:
        wave: The samples.
        places: Number of samples to shift by, -S..S; positive is later.
        wrap: Whether samples shifted out reappear at the other end, instead of zeros.
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
    """Sample white noise at a given ratio to a waveform; zeros for silence.

    Args:
        wave: The waveform ``[C, S]``.
        ratio: Signal-to-noise ratio of mean squares over all channels, in decibels.
        rng: Random generator.
    """
    loudness = np.sqrt(np.square(wave, dtype=np.float64).mean())
    noise = rng.standard_normal(wave.shape, np.float32)
    return noise * np.float32(loudness * 10 ** (-ratio / 20))


def _draw_factor(augment: AugmentConfig, rng: np.random.Generator) -> np.float32:
    """Sample the factor on a waveform, with its sign."""
    factor = 10 ** (rng.uniform(*augment.gain) / 20) if augment.gain != (0.0, 0.0) else 1.0
    return np.float32(-factor if augment.invert and rng.random() < 0.5 else factor)


# -- Point clouds: rotation about an axis, dropped points, scale and jitter ------------------------
#
# Plain numpy, applied to single clouds by the workers, because clouds differ in size.
#
# Legend: P points, C values per point, of which the first three are x, y, z.

# The coordinates that a rotation about an axis changes, in the order of a positive angle.
PLANES = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}
# Noise is clipped at this many standard deviations, as in PointNet's code (0.05 for 0.01).
JITTER_LIMIT = 5.0


def check_points(augment: AugmentConfig, name: str, spec: Points) -> None:
    """Reject augmentation of coordinates if some channels are not coordinates, or too few are.

    Args:
        augment: Augmentation settings.
        name: Name of the modality, for messages.
        spec: Its spec.

    Raises:
        ConfigError: More than three values per point, a rotation about x or y of points in the
            plane, or any rotation of points on a line.
    """
    if augment.turn and spec.channels <= max(PLANES[augment.turn_axis]):
        raise ConfigError(
            f"augment.turn about {augment.turn_axis!r} needs "
            f"{max(PLANES[augment.turn_axis]) + 1} coordinates, but {name!r} has "
            f"{spec.channels} channels; {'use turn_axis z' if spec.channels == 2 else 'turn: 0'}"
        )
    moved = augment.turn or augment.jitter or augment.point_scale != (1.0, 1.0)
    if moved and spec.channels > 3:
        raise ConfigError(
            f"augment.turn, point_scale and jitter move points of up to 3 coordinates, but "
            f"{name!r} has {spec.channels} channels, and the others (such as normals) would no "
            f"longer match; keep the defaults, or leave those channels out"
        )


def turn_points(cloud: NDArray, augment: AugmentConfig, rng: np.random.Generator) -> NDArray:
    """Rotate points about an axis through their mean.

    Args:
        cloud: Points ``[P, C]``, at least 1, floats; rows of NaN are padding, and stay.
        augment: Largest angle and axis.
        rng: Random generator, not used if the angle is 0.
    """
    if not augment.turn:
        return cloud
    angle = radians(rng.uniform(-augment.turn, augment.turn))
    first, second = PLANES[augment.turn_axis]
    turned = cloud.astype(np.float64)
    plane = turned[:, (first, second)]
    middle = np.nanmean(plane, axis=0)
    matrix = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    turned[:, (first, second)] = (plane - middle) @ matrix.T + middle
    return turned.astype(cloud.dtype)


def drop_points(
    cloud: NDArray, augment: AugmentConfig, rng: np.random.Generator, *, ragged: bool
) -> NDArray:
    """Drop points, each with the same probability, but never all of them.

    Args:
        cloud: Points ``[P, C]``.
        augment: Largest probability.
        rng: Random generator of the probability and the points, not used if the largest probability
            is 0.
        ragged: Return fewer points; otherwise copies of the first remaining point replace the
            dropped ones, as in PointNet++.
    """
    return cloud[keep_rows(cloud, augment, rng, ragged=ragged)]


def keep_rows(
    cloud: NDArray, augment: AugmentConfig, rng: np.random.Generator, *, ragged: bool
) -> NDArray[np.int64]:
    """Return the rows that ``drop_points`` returns, to apply them to other values per point.

    Args:
        cloud: Points ``[P, C]``.
        augment: Largest probability.
        rng: As for ``drop_points``.
        ragged: As for ``drop_points``.
    """
    rows = np.arange(len(cloud))
    if not augment.point_drop:
        return rows
    if ragged:
        rows = rows[~np.isnan(cloud).any(axis=1)]
    kept = rng.random(len(rows)) >= rng.uniform(0, augment.point_drop)
    if len(rows) and not kept.any():
        kept[0] = True
    return rows[kept] if ragged else np.where(kept, rows, kept.argmax() if len(rows) else 0)


def move_points(cloud: NDArray, augment: AugmentConfig, rng: np.random.Generator) -> NDArray:
    """Scale points about the origin and add noise to every coordinate.

    Args:
        cloud: Points ``[P, C]``, floats.
        augment: Range of factors, and standard deviation of the noise.
        rng: Random generator, not used for what is off.
    """
    if augment.point_scale != (1.0, 1.0):
        cloud = cloud * np.asarray(rng.uniform(*augment.point_scale), cloud.dtype)
    if augment.jitter:
        noise = rng.standard_normal(cloud.shape).clip(-JITTER_LIMIT, JITTER_LIMIT)
        cloud = cloud + (augment.jitter * noise).astype(cloud.dtype)
    return cloud


# -- Texts: dropped words, and the position in the window ------------------------------------------
#
# Plain numpy on bytes: libraries of text augmentation change tokens or swap synonyms of one
# language, but models here read the bytes of any signal.
#
# Legend: L bytes.

BLANKS = np.frombuffer(b" \t\n\r\f\v", np.uint8)


def change_text(text: NDArray[np.uint8], room: int, look: Look) -> NDArray[np.uint8]:
    """Drop words and insert blanks before the rest; unchanged in evaluation.

    Args:
        text: Bytes ``[L]``, at least 1; not changed in place.
        room: Number of bytes that the model reads; blanks use only what the text leaves of them.
        look: Random generator and settings.
    """
    augment, rng = look.augment, look.rng
    if rng is None or not augment.changes_texts:
        return text
    if augment.word_drop:
        text = drop_words(text, rng.uniform(0, augment.word_drop), rng)
    if augment.text_shift:
        most = min(augment.text_shift, max(0, room - len(text)))
        text = np.concatenate([np.full(rng.integers(most + 1), BLANKS[0]), text])
    return text


def drop_words(
    text: NDArray[np.uint8], share: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Drop a fraction of the words, each with the blanks after it; one word always stays.

    Args:
        text: Bytes ``[L]``. A word ends after the blanks that follow it.
        share: Fraction of the words, 0..1; their number is rounded down.
        rng: Random generator.
    """
    blank = np.isin(text, BLANKS)
    starts = np.flatnonzero(np.diff(blank.astype(np.int8), prepend=1) == -1)
    dropped = min(int(share * len(starts)), len(starts) - 1)
    if dropped < 1:
        return text
    kept = np.ones(len(starts) + 1, bool)
    kept[1 + rng.choice(len(starts), dropped, replace=False)] = False
    # Blanks before the first word belong to no word, and stay.
    return text[kept[np.searchsorted(starts, np.arange(len(text)), side="right")]]
