"""Parts of a sound at another sample rate, as if all of it had been resampled.

soxr filters with zeros around what it is given; so more is decoded on both sides than is asked for,
and cut off afterwards. A part begins where samples of both rates coincide.

Legend: C channels, S samples.
"""

from collections.abc import Callable
from math import gcd

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from perceivers.data.containers import load_library

QUALITY = "HQ"
# Periods of the lower rate on both sides; from 128 on, parts differ from the whole by rounding.
MARGIN = 256


def resampled_length(samples: int, rate: int, wanted: int) -> int:
    """Return how many samples there are at another rate, a started one included.

    Args:
        samples: How many there are.
        rate: Their rate in Hz.
        wanted: The other rate in Hz.
    """
    return -(-samples * wanted // rate)


def read_resampled(
    read: Callable[[int, int], NDArray[np.float32]],
    samples: int,
    rates: tuple[int, int],
    begin: int,
    end: int,
) -> Float32[np.ndarray, "C S"]:
    """Return samples ``[begin, end)``, counted at another rate than that of the file.

    Args:
        read: Returns samples ``[C, S]`` of the file between two places.
        samples: How many the file has.
        rates: Of the file, and the wanted one, in Hz.
        begin: First sample at the wanted rate, at least 0.
        end: After the last one, at most ``resampled_length``.

    Raises:
        DataError: soxr is not installed, or what ``read`` raises.
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
    # The last sample of the sound may have been started but not reached.
    return np.pad(found, ((0, 0), (0, end - begin - found.shape[1])))
