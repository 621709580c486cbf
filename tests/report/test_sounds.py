"""Figures of sounds: spectrograms that show the right frequency, close-ups that fit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceivers.errors import InputError
from perceivers.report.figures.reconstruction import SoundRow, close_up, decibels, draw_sounds


@pytest.mark.parametrize(("rate", "pitch"), [(8000, 1000.0), (16000, 3000.0), (44100, 440.0)])
def test_a_tone_is_loudest_at_its_pitch(rate: int, pitch: float) -> None:
    time = np.arange(rate // 2) / rate
    levels = decibels(np.sin(2 * np.pi * pitch * time), rate)
    loudest = levels[:, 5:-5].argmax(0) * rate / 2 / (len(levels) - 1)
    assert np.abs(loudest - pitch).max() < rate / 2 / (len(levels) - 1)
    assert levels.max() - levels[-1, 5:-5].max() > 40


@pytest.mark.parametrize(("length", "peak", "expected"), [
    (4000, 2000, slice(1840, 2160)),
    (4000, 3, slice(0, 320)),
    (4000, 3999, slice(3680, 4000)),
    (100, 50, slice(0, 100)),
])  # fmt: skip
def test_a_close_up_is_around_the_loudest_sample_and_inside(
    length: int, peak: int, expected: slice
) -> None:
    wave = np.zeros(length)
    wave[peak] = -1.0
    assert close_up(wave, 8000) == expected


@pytest.mark.parametrize("length", [1, 40, 4096])
def test_sounds_of_any_length_are_drawn(tmp_path: Path, length: int) -> None:
    wave = np.random.default_rng(0).normal(size=length)
    sizes = []
    for count in (1, 3):
        row = SoundRow("a name", wave, np.zeros(length), np.arange(length) % 3 == 0, 8000.0)
        path = draw_sounds(tmp_path / f"{count}.png", [row] * count, title="t", note="n")
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 1.8 * sizes[0][1]


def test_no_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one row"):
        draw_sounds(tmp_path / "x.png", [], title="t", note="n")
