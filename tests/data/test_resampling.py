"""Parts of a sound at another rate: equal to the whole, and no more decoded than is needed."""

from collections.abc import Callable

import numpy as np
import pytest
import soxr

from perceivers.data.resampling import read_resampled, resampled_length

Read = Callable[[int, int], np.ndarray]


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)


def reader(wave: np.ndarray, asked: list[tuple[int, int]]) -> Read:
    def read(begin: int, end: int) -> np.ndarray:
        assert 0 <= begin < end <= wave.shape[1]
        asked.append((begin, end))
        return wave[:, begin:end]

    return read


def test_a_started_sample_counts() -> None:
    assert resampled_length(44100, 44100, 16000) == 16000
    assert resampled_length(44101, 44100, 16000) == 16001
    assert resampled_length(7, 8000, 48000) == 42
    assert resampled_length(7, 8000, 8000) == 7


def test_at_the_same_rate_nothing_changes() -> None:
    asked: list[tuple[int, int]] = []
    wave = noise(50)
    found = read_resampled(reader(wave, asked), 50, (8000, 8000), 10, 30)
    assert np.array_equal(found, wave[:, 10:30])
    assert asked == [(10, 30)]


@pytest.mark.parametrize(
    "rates", [(44100, 16000), (16000, 44100), (48000, 8000), (8000, 48000), (44056, 16000)]
)
def test_a_part_equals_the_same_part_of_the_whole(rates: tuple[int, int]) -> None:
    samples = 2 * rates[0]
    wave, asked = noise(samples), []
    whole = soxr.resample(wave.T, *rates, quality="HQ").T
    for first in (0, 7, int(0.83 * rates[1])):
        count = rates[1] // 10
        found = read_resampled(reader(wave, asked), samples, rates, first, first + count)
        assert np.abs(found - whole[:, first : first + count]).max() < 1e-5
        assert np.abs(found - whole[:, first + 1 : first + count + 1]).max() > 0.1
    # A tenth of a second, what the filter needs, and up to where both rates coincide.
    assert max(end - begin for begin, end in asked) < 0.35 * rates[0]


def test_the_end_is_filled_where_a_sample_was_only_started() -> None:
    wave: np.ndarray = noise(11)
    length = resampled_length(11, 48000, 8000)
    assert length == 2
    found = read_resampled(reader(wave, []), 11, (48000, 8000), 0, length)
    assert found.shape == (2, 2)
    assert np.isfinite(found).all()
