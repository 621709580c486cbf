"""Augmentation of sounds: known values, and draws that depend on the sample alone."""

from typing import Any

import numpy as np
import pytest
import torch

from perceivers.data.arrays import hold_arrays
from perceivers.data.augment import AugmentConfig, Look
from perceivers.data.augment_signals import change_sound, draw_noise, shift_wave
from perceivers.data.fitting import SampleReader
from perceivers.data.loaders import make_train_loader
from perceivers.errors import ConfigError
from perceivers.types import Audio, Image

WAVE = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)


def look(seed: int = 0, **settings: Any) -> Look:
    return Look(np.random.default_rng(seed), AugmentConfig(**settings))


@pytest.mark.parametrize(
    ("places", "zero", "wrapped"),
    [
        (0, [1, 2, 3, 4], [1, 2, 3, 4]),
        (1, [0, 1, 2, 3], [4, 1, 2, 3]),
        (-1, [2, 3, 4, 0], [2, 3, 4, 1]),
        (4, [0, 0, 0, 0], [1, 2, 3, 4]),
        (-4, [0, 0, 0, 0], [1, 2, 3, 4]),
    ],
)
def test_a_shift_leaves_silence_or_wraps(places: int, zero: list[int], wrapped: list[int]) -> None:
    assert shift_wave(WAVE, places, wrap=False)[0].tolist() == zero
    assert shift_wave(WAVE, places, wrap=True)[0].tolist() == wrapped
    assert WAVE[0].tolist() == [1, 2, 3, 4]


def test_six_decibels_double_and_the_range_is_kept() -> None:
    louder = change_sound(WAVE, look(gain=(20.0, 20.0)))
    assert louder == pytest.approx(WAVE * 10)
    factors = [change_sound(WAVE, look(s, gain=(-6.0, 6.0)))[0, 0] for s in range(200)]
    assert 10 ** (-6 / 20) <= min(factors) < 0.55
    assert 1.9 < max(factors) <= 10 ** (6 / 20) * (1 + 1e-6)
    assert np.median(20 * np.log10(factors)) == pytest.approx(0, abs=1)


def test_noise_has_the_asked_ratio_and_silence_stays_silent() -> None:
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(200_000, dtype=np.float32))[None]
    noise = draw_noise(wave, 20.0, rng)
    ratio = 10 * np.log10(np.square(wave).mean() / np.square(noise).mean())
    assert ratio == pytest.approx(20.0, abs=0.05)
    assert not draw_noise(np.zeros((2, 8), np.float32), 0.0, rng).any()
    noisy = [change_sound(WAVE, look(s, noise=0.25)) for s in range(200)]
    assert 30 < sum(not np.array_equal(found, WAVE) for found in noisy) < 70


def test_half_of_the_sounds_are_inverted() -> None:
    signs = [change_sound(WAVE, look(s, invert=True))[0, 0] for s in range(200)]
    assert set(signs) == {1.0, -1.0}
    assert 70 < sum(sign < 0 for sign in signs) < 130


def test_integers_stay_integers_and_are_cut_off() -> None:
    wave = np.array([[30000, -30000, 100]], np.int16)
    found = change_sound(wave, look(gain=(20.0, 20.0)))
    assert found.dtype == np.int16
    assert found.tolist() == [[32767, -32768, 1000]]


def test_evaluation_and_defaults_change_nothing_and_draw_nothing() -> None:
    assert change_sound(WAVE, Look(None, AugmentConfig(invert=True, gain=(9.0, 9.0)))) is WAVE
    rng = np.random.default_rng(0)
    assert change_sound(WAVE, Look(rng, AugmentConfig(flip=True))) is WAVE
    assert rng.random() == np.random.default_rng(0).random()


def test_batches_do_not_depend_on_workers_and_differ_between_epochs() -> None:
    sounds = np.random.default_rng(0).standard_normal((3, 1, 32)).astype(np.float32)
    source = hold_arrays({"audio": sounds}, list("abc"))
    augment = AugmentConfig(gain=(-6.0, 6.0), time_shift=0.5, noise=0.5, invert=True)

    def read(workers: int, start: int = 0) -> list[torch.Tensor]:
        loader = make_train_loader(
            source,
            {"audio": Audio(32)},
            batch_size=3,
            seed=1,
            augment=augment,
            start_step=start,
            num_steps=3,
            workers=workers,
        )
        return [batch.inputs["audio"][batch.index.argsort()] for batch in loader]

    alone = read(0)
    assert all(torch.equal(a, b) for a, b in zip(alone, read(2), strict=True))
    assert torch.equal(read(0, start=2)[0], alone[2])
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gain": (6.0, -6.0)}, r"augment.gain is \(6.0, -6.0\); .* the lower first"),
        (
            {"noise_ratio": (0.0, float("inf"))},
            r"augment.noise_ratio\[1\] is inf; it must be finite",
        ),
        ({"time_shift": 1.5}, r"augment.time_shift is 1.5; it must be in \[0, 1\]"),
        ({"noise": -0.5}, r"augment.noise is -0.5; it must be in \[0, 1\]"),
    ],
)
def test_a_setting_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**values)


@pytest.mark.unhooked
def test_an_unknown_filling_is_refused() -> None:
    fill: Any = "hold"
    with pytest.raises(
        ConfigError, match=r"augment.time_fill is 'hold'; choose from \['zero', 'wrap'\]"
    ):
        AugmentConfig(time_fill=fill)


def test_sounds_must_be_read_to_be_changed() -> None:
    source = hold_arrays({"image": np.zeros((2, 1, 8, 8), np.uint8)}, ["a", "b"])
    message = r"changes audio, but the modalities are \['image'\], none of that kind"
    settings: tuple[dict[str, Any], ...] = (
        {"gain": (-6.0, 6.0)},
        {"time_shift": 0.1},
        {"noise": 0.1},
        {"invert": True},
    )
    for setting in settings:
        with pytest.raises(ConfigError, match=message):
            SampleReader(source, {"image": Image(8, 8, 1)}, AugmentConfig(**setting))
