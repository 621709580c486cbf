"""Sound files and sound tracks as waveforms: parts, channels, rates, damage."""

import contextlib
import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from perceivers.data.audio_clips import (
    common_audio,
    fit_audio,
    fit_audio_from,
    native_audio,
    read_sound_info,
)
from perceivers.data.augment import Look
from perceivers.data.containers import decode_file
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.types import Audio

EncodeSound = Callable[..., bytes]
EncodeVideo = Callable[..., bytes]


def ramp(samples: int, channels: int = 1) -> np.ndarray:
    """Values that name their own place, exact in 16 bits; each channel 0.25 above the other."""
    place = np.arange(samples, dtype=np.float32) / 2**15
    return np.stack([place + 0.25 * channel for channel in range(channels)])


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Low noise that lossy codecs keep, and that differs from itself a few samples later."""
    values = np.random.default_rng(seed).standard_normal(samples + 7)
    return 0.3 * np.convolve(values, np.ones(8) / 8, "valid")[None].astype(np.float32)


def clip(data: bytes, name: str = "a.flac") -> Encoded:
    return Encoded(name, data, "audio")


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_the_centre_is_taken_without_a_generator(encode_sound: EncodeSound, kind: str) -> None:
    wave = ramp(1000)
    found = fit_audio(clip(encode_sound(wave, kind=kind)), Audio(301, 1, 8000))
    assert found.dtype == np.float32
    assert np.array_equal(found, wave[:, 349:650])
    assert not np.array_equal(found, wave[:, 350:651])


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_a_part_equals_the_same_part_of_the_whole(encode_sound: EncodeSound, kind: str) -> None:
    wave = noise(20000)
    encoded = clip(encode_sound(wave, 16000, kind), f"a.{kind}")
    native = native_audio(encoded)
    assert (native.channels, native.sample_rate) == (1, 16000)
    # Old versions of FFmpeg count what fills the last packets of an MP3.
    assert 20000 <= native.samples <= 20000 + 2 * 1152
    whole = fit_audio(encoded, Audio(native.samples))
    part = fit_audio(encoded, Audio(3001))
    assert np.abs(whole[:, :20000] - wave).mean() < 0.03
    first = (native.samples - 3001) // 2
    assert np.abs(part - whole[:, first : first + 3001]).max() < 1e-5
    assert np.abs(part - whole[:, first + 1 : first + 3002]).max() > 1e-3


@pytest.mark.slow
def test_random_parts_follow_the_generator_and_stay_inside(encode_sound: EncodeSound) -> None:
    wave = ramp(120)
    encoded, spec = clip(encode_sound(wave)), Audio(100)
    rng = np.random.default_rng(5)
    starts = [round(float(fit_audio(encoded, spec, Look(rng))[0, 0]) * 2**15) for _ in range(200)]
    assert set(starts) == set(range(21))
    again = np.random.default_rng(5)
    assert [
        round(float(fit_audio(encoded, spec, Look(again))[0, 0]) * 2**15) for _ in range(200)
    ] == starts
    # One draw per clip, whatever its length, so that the next clip's part does not depend on it.
    first, second = np.random.default_rng(1), np.random.default_rng(1)
    fit_audio(encoded, spec, Look(first))
    fit_audio(encoded, Audio(500), Look(second))
    assert first.random() == second.random()


def test_short_sound_is_filled_with_silence_at_the_end(encode_sound: EncodeSound) -> None:
    wave = ramp(50) + 0.5
    for rng in (None, np.random.default_rng(0)):
        found = fit_audio(clip(encode_sound(wave)), Audio(80), Look(rng))
        assert np.array_equal(found[:, :50], wave)
        assert np.array_equal(found[:, 50:], np.zeros((1, 30)))


def test_channels_are_repeated_or_averaged_and_nothing_else(encode_sound: EncodeSound) -> None:
    stereo = ramp(60, 2)
    encoded = clip(encode_sound(stereo))
    assert np.array_equal(fit_audio(encoded, Audio(60, 2)), stereo)
    assert np.allclose(fit_audio(encoded, Audio(60, 1)), stereo.mean(axis=0), atol=1e-7)
    mono = fit_audio(clip(encode_sound(ramp(60))), Audio(60, 2))
    assert np.array_equal(mono, np.repeat(ramp(60), 2, axis=0))
    with pytest.raises(DataError, match=r"a\.flac: 2 channels, but the spec declares 3; only mono"):
        fit_audio(encoded, Audio(60, 3))


def tone(hertz: float, rate: int, seconds: float = 2.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)[None]


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_tone_keeps_its_pitch_and_its_length_at_another_rate(
    encode_sound: EncodeSound, rate: int
) -> None:
    encoded = clip(encode_sound(tone(440, rate), rate))
    found = fit_audio(encoded, Audio(40000, 1, 16000))
    # Away from the ends it is the tone of the wanted rate, sample by sample.
    assert np.abs(found[:, 400:31600] - tone(440, 16000)[:, 400:31600]).max() < 1e-3
    assert np.abs(found[:, 400:31600] - tone(441, 16000)[:, 400:31600]).max() > 0.1
    assert np.abs(found[:, 31900:32000]).max() > 0.1
    assert not found[:, 32000:].any()
    assert np.array_equal(found, fit_audio(encoded, Audio(40000, 1, 16000)))


def test_a_rate_of_zero_reads_samples_as_they_are(encode_sound: EncodeSound) -> None:
    for rate in (8000, 44100):
        encoded = clip(encode_sound(ramp(60), rate))
        assert np.array_equal(fit_audio(encoded, Audio(60, 1, 0)), ramp(60))
        assert native_audio(encoded) == Audio(60, 1, rate)


def test_parts_of_a_resampled_sound_begin_where_the_wanted_rate_counts(
    encode_sound: EncodeSound,
) -> None:
    wave = noise(44100)
    encoded = clip(encode_sound(wave, 44100))
    whole = fit_audio(encoded, Audio(16000, 1, 16000))
    assert np.abs(fit_audio(encoded, Audio(1001, 1, 16000)) - whole[:, 7499:8500]).max() < 1e-5
    info = read_sound_info(encoded)
    found = fit_audio_from(encoded, info, Audio(1600, 1, 16000), 0.25)
    assert np.abs(found - whole[:, 4000:5600]).max() < 1e-5
    before = fit_audio_from(encoded, info, Audio(1600, 1, 16000), -0.05)
    assert not before[:, :800].any()
    assert np.abs(before[:, 800:] - whole[:, :800]).max() < 1e-5
    # One draw, and parts that stay inside.
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        part = fit_audio(encoded, Audio(15990, 1, 16000), Look(rng))
        assert np.abs(part[:, -10:]).max() > 0
        other.random()
    assert rng.random() == other.random()


def test_channels_are_averaged_or_repeated_at_another_rate(encode_sound: EncodeSound) -> None:
    left, right = tone(440, 44100), tone(1000, 44100)
    encoded = clip(encode_sound(np.concatenate([left, right]), 44100))
    stereo = fit_audio(encoded, Audio(32000, 2, 16000))
    mono = fit_audio(encoded, Audio(32000, 1, 16000))
    assert np.abs(stereo[1] - tone(1000, 16000)[0])[400:-400].max() < 1e-3
    assert np.abs(stereo.mean(axis=0) - mono[0]).max() < 1e-5
    repeated = fit_audio(clip(encode_sound(left, 44100)), Audio(320, 2, 16000))
    assert np.array_equal(repeated[0], repeated[1])


def test_the_most_common_rate_and_the_longest_sound_make_the_spec() -> None:
    found = [Audio(8000, 1, 8000), Audio(44100, 1, 44100), Audio(88201, 1, 44100)]
    assert common_audio(found) == Audio(88201, 1, 44100)
    assert common_audio([Audio(80000, 1, 8000), *found]) == Audio(80000, 1, 8000)
    assert common_audio([*found, Audio(80000, 1, 16000)]) == Audio(220500, 1, 44100)
    assert common_audio([Audio(5), Audio(7)]) == Audio(7)


def test_channels_that_cannot_be_read_as_the_first_ones_make_mono() -> None:
    assert common_audio([Audio(5, 2), Audio(5, 1)]).channels == 2
    assert common_audio([Audio(5, 1), Audio(5, 2)]).channels == 1
    # Of a film in 5.1 and one in stereo neither can be read as the other.
    assert common_audio([Audio(5, 6), Audio(5, 2)]).channels == 1
    assert common_audio([Audio(5, 2), Audio(5, 6), Audio(5, 2)]).channels == 1


def test_an_mp3_is_entered_anywhere(encode_sound: EncodeSound) -> None:
    wave = noise(160000)
    encoded = clip(encode_sound(wave, 16000, "MP3"), "a.mp3")
    info = read_sound_info(encoded)
    whole = fit_audio(encoded, Audio(info.samples))
    for seconds in (0.0, 0.11, 3.3, 9.4):
        part = fit_audio_from(encoded, info, Audio(4000), seconds)
        first = round((seconds - info.begin) * 16000)
        begin = max(0, -first)
        expected = whole[:, max(0, first) : first + 4000]
        assert np.abs(part[:, begin:] - expected).max() < 1e-6
        assert np.abs(part[:, begin:-1] - expected[:, 1:]).max() > 1e-2


def test_a_long_file_stays_on_the_disk_but_for_the_part_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(ramp(16000)[0], 300), 16000)  # 9.6 MB
    sample = decode_file("audio", str(path), None)
    assert sample == Encoded(str(path), None, "audio")
    assert isinstance(sample, Encoded)
    tracemalloc.start()
    found = fit_audio(sample, Audio(8000, 1, 8000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.shape == (1, 8000)
    assert peak < 1e6
    # A file that was replaced is no longer what was known of it.
    soundfile.write(path, np.tile(ramp(16000)[0], 310), 16000)
    assert read_sound_info(sample).samples == 310 * 16000


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_a_sound_track_is_cut_where_it_is_asked_for(
    encode_video: EncodeVideo, numbered: Callable[..., np.ndarray], kind: str
) -> None:
    wave = noise(32000)
    data = encode_video(numbered(50), 25, wave, 16000, kind=kind)
    encoded = clip(data, "a.mp4")
    info = read_sound_info(encoded)
    assert (info.channels, info.sample_rate) == (1, 16000)
    assert 32000 <= info.samples <= 32000 + 2048
    for seconds in (0.0, 0.3, 1.51):
        first = round(seconds * 16000)
        found = fit_audio_from(encoded, info, Audio(4000), seconds)
        assert np.abs(found - wave[:, first : first + 4000]).mean() < 0.05
        late = wave[:, first + 16 : first + 4016]
        assert np.abs(found - late).mean() > 0.1


def test_sound_outside_the_file_is_silent(encode_sound: EncodeSound) -> None:
    encoded = clip(encode_sound(ramp(80) + 0.5))
    info = read_sound_info(encoded)
    before = fit_audio_from(encoded, info, Audio(40), -10 / 8000)
    assert not before[:, :10].any()
    assert np.array_equal(before[:, 10:], ramp(80)[:, :30] + 0.5)
    assert not fit_audio_from(encoded, info, Audio(40), 1.0).any()


def test_damaged_sound_is_named_quietly(
    encode_sound: EncodeSound, capfd: pytest.CaptureFixture[str]
) -> None:
    flac, mp3 = encode_sound(noise(20000)), encode_sound(noise(20000), kind="MP3")
    rng = np.random.default_rng(0)
    cut = clip(flac[: len(flac) // 2], "cut.flac")
    with pytest.raises(DataError, match=r"^cut\.flac: cannot be decoded"):
        fit_audio(cut, Audio(20000))
    for data in (b"", b"x" * 200, b"fLaC" + bytes(100), b"RIFF"):
        with pytest.raises(DataError, match=r"^bad\.wav: "):
            fit_audio(clip(data, "bad.wav"), Audio(10))
    noisy = bytearray(mp3)
    for place in rng.integers(len(mp3) // 4, len(mp3), 20):
        noisy[place] = rng.integers(256)
    with contextlib.suppress(DataError):
        fit_audio(clip(bytes(noisy), "noisy.mp3"), Audio(20000))
    assert capfd.readouterr() == ("", "")


def test_a_file_without_samples_or_with_nan_is_refused(encode_sound: EncodeSound) -> None:
    with pytest.raises(DataError, match=r"a\.flac: 0 samples in 1 channels at 8000 Hz"):
        native_audio(clip(encode_sound(np.zeros((1, 0)), kind="WAV")))
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, np.nan], np.float32), 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.flac: holds NaN or infinite samples"):
        fit_audio(clip(file.getvalue()), Audio(2))


def test_a_video_without_sound_has_none_to_give(
    encode_video: EncodeVideo, numbered: Callable[..., np.ndarray]
) -> None:
    silent = clip(encode_video(numbered(3)), "silent.mp4")
    with pytest.raises(DataError, match=r"silent\.mp4: contains no audio .*; streams found: video"):
        fit_audio(silent, Audio(10))
