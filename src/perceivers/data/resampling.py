"""Resampling of a part of an audio file, equal to the same part of the resampled whole.

soxr pads its input with zeros; so a margin is decoded on both sides and cut off afterwards. The
decoded part begins where samples of both rates coincide.

Legend: C channels, S samples.
"""

from collections.abc import Callable
from math import gcd

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from perceivers.data.containers import load_library

QUALITY = "HQ"
# Margin on both sides, in periods of the lower rate; from 128 on, only rounding errors remain.
MARGIN = 256


def resampled_length(samples: int, rate: int, wanted: int) -> int:
    """Return the number of samples after resampling, rounded up.

    Args:
        samples: Number of original samples.
        rate: Original rate in Hz.
        wanted: New rate in Hz.
    """
    return -(-samples * wanted // rate)


def read_resampled(
    read: Callable[[int, int], NDArray[np.float32]],
    samples: int,
    rates: tuple[int, int],
    begin: int,
    end: int,
) -> Float32[np.ndarray, "C S"]:
    """Return samples ``[begin, end)`` of a resampled file.

    Args:
        read: Returns samples ``[C, S]`` of the file in a given range ``[first, last)``.
        samples: Number of samples in the file.
        rates: Rate of the file and the wanted rate, in Hz.
        begin: First sample at the wanted rate, at least 0.
        end: One past the last sample, at most ``resampled_length``.

    Raises:
        DataError: soxr is not installed, or ``read`` fails.
    """
    rate, wanted = rates
    if rate == wanted:
        return read(begin, end)
    period = rate // gcd(rate, wanted)
    margin = MARGIN * rate // min(rates) + 1
    first = max(0, begin * rate // wanted - margin) // period * period
    last = min(samples, end * rate // wanted + margin + 1)
    near = read(first, last)
    found = load_library("soxr").resample(near.T, rate, wanted, quality=QUALITY).T
    skipped = begin - first * wanted // rate
    found = found[:, skipped : skipped + end - begin]
    # resampled_length rounds up, but soxr may omit the last, partial sample.
    return np.pad(found, ((0, 0), (0, end - begin - found.shape[1])))
