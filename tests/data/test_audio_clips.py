"""Sound files and sound tracks as waveforms: parts, channels, rates, damage."""

import contextlib
import io
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from perceivers.data.audio_clips import fit_audio, fit_audio_from, native_audio, read_sound_info
from perceivers.data.sources import EncodedClip
from perceivers.data.views import Look
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


def clip(data: bytes, name: str = "a.flac") -> EncodedClip:
    return EncodedClip(name, data, "audio")


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


def test_another_sample_rate_is_refused_with_the_remedy(encode_sound: EncodeSound) -> None:
    encoded = clip(encode_sound(ramp(60), 8000))
    message = (
        r"a\.flac: the sample rate is 8000 Hz, but the spec declares 16000 Hz; resample the "
        r"files, or declare sample_rate=8000"
    )
    with pytest.raises(DataError, match=message):
        fit_audio(encoded, Audio(60, 1, 16000))
    assert np.array_equal(fit_audio(encoded, Audio(60, 1, 0)), ramp(60))
    assert native_audio(encoded) == Audio(60, 1, 8000)


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
    with pytest.raises(DataError, match=r"silent\.mp4: holds no audio .*; streams found: video"):
        fit_audio(silent, Audio(10))
