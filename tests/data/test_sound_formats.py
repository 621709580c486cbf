"""Every container and encoding that soundfile writes, read as soundfile reads it."""

import io
from itertools import product
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from perceivers.data.audio_clips import fit_audio, fit_audio_from, read_sound_info
from perceivers.data.sources import Encoded
from perceivers.types import Audio

RATE = 8000
# Sine waves of amplitude 0.5.
RMS = 0.5 / np.sqrt(2)
# What libsndfile says of its own files of these: "Internal psf_fseek() failed".
UNREADABLE = {("AIFF", "DWVW_16"), ("AIFF", "DWVW_24")}
# Of these a header is lacking, or lies in another file.
BARE = {"RAW", "SD2"}


def tone(samples: int, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 400 * np.arange(samples) / rate)


def encode(kind: str, subtype: str, endian: str, wave: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, subtype, endian, kind)
    return file.getvalue()


def list_formats() -> list[tuple[str, str, str]]:
    """Return what soundfile can write one channel of, by trying."""
    found = []
    for kind in sorted(set(soundfile.available_formats()) - BARE):
        for subtype, endian in product(
            soundfile.available_subtypes(kind), ("FILE", "LITTLE", "BIG")
        ):
            if not soundfile.check_format(kind, subtype, endian):
                continue
            try:
                encode(kind, subtype, endian, np.zeros(16))
            except soundfile.SoundFileError:
                continue
            found.append((kind, subtype, endian))
    return [case for case in found if case[:2] not in UNREADABLE]


@pytest.mark.parametrize(("kind", "subtype", "endian"), list_formats())
def test_samples_are_those_that_soundfile_gives(kind: str, subtype: str, endian: str) -> None:
    data = encode(kind, subtype, endian, tone(RATE))
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        expected = file.read(file.frames, dtype="float32", always_2d=True).T
    clip = Encoded("x", data, "audio")
    info = read_sound_info(clip)
    found = fit_audio(clip, Audio(info.samples, info.channels, 0))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5
    assert np.sqrt(np.mean(found**2)) == pytest.approx(RMS, rel=0.06)
    for first in (1, 3001, info.samples - 400):
        part = fit_audio_from(clip, info, Audio(400, 1, 0), info.begin + first / info.sample_rate)
        assert np.abs(part - found[:, first : first + 400]).max() < 1e-5
        # 400 Hz repeat every 20 samples.
        assert np.abs(part - np.roll(found, 7, axis=1)[:, first : first + 400]).max() > 0.1


def test_formats_of_every_kind_are_tried() -> None:
    found = set(list_formats())
    assert {("WAV", "FLOAT", "BIG"), ("AIFF", "PCM_16", "FILE"), ("CAF", "ALAC_20", "FILE")} < found
    assert {("OGG", "OPUS", "FILE"), ("MP3", "MPEG_LAYER_III", "FILE")} < found
    assert len(found) > 150


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("kind", ["MP3", "OGG"])
def test_lossy_sounds_begin_at_once_and_are_cut_to_the_sample(kind: str, rate: int) -> None:
    rng = np.random.default_rng(rate)
    # The tone makes long last pages, in which libsndfile does not find its place.
    wave = np.concatenate([0.2 * rng.standard_normal(rate), tone(3 * rate, rate)])
    data = encode(kind, "VORBIS" if kind == "OGG" else "MPEG_LAYER_III", "FILE", wave, rate)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    clip = Encoded("x", data, "audio")
    info = read_sound_info(clip)
    whole = fit_audio(clip, Audio(info.samples, 1, 0))[0]
    assert len(whole) == len(expected) == 4 * rate
    assert np.abs(whole - expected).max() < 1e-5
    assert np.sqrt(np.mean(whole[:300] ** 2)) > 0.05
    for first in rng.integers(0, len(whole) - 500, 20):
        found = fit_audio_from(clip, info, Audio(500, 1, 0), info.begin + first / rate)[0]
        assert np.abs(found - whole[first : first + 500]).max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "codec", "rate"),
    [
        ("ipod", "aac", 44100),
        ("ipod", "alac", 44100),
        ("matroska", "aac", 44100),
        ("matroska", "flac", 44100),
        ("matroska", "libmp3lame", 22050),
        ("webm", "libopus", 48000),
        ("avi", "libmp3lame", 44100),
        ("mpegts", "mp2", 44100),
        ("wav", "libmp3lame", 16000),
    ],
)
def test_tracks_are_cut_to_the_sample_also_where_times_are_rounded(
    kind: str, codec: str, rate: int
) -> None:
    samples = 4 * rate
    # A tone that rises, so that no two parts are alike.
    wave = 0.3 * np.sin(0.02 * np.arange(samples) * (1 + np.arange(samples) / samples))
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(stream.format.name, "mono", rate)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    clip = Encoded("x", file.getvalue(), "audio")
    info = read_sound_info(clip)
    whole = fit_audio(clip, Audio(info.samples, 1, 0))
    assert np.abs(whole).max() > 0.2
    for seconds in (0.0, 0.17, 1.0, 2.00013, 3.4):
        found = fit_audio_from(clip, info, Audio(4000, 1, 0), info.begin + seconds)
        first = round(seconds * rate)
        assert np.abs(found - whole[:, first : first + 4000]).max() < 5e-3
        assert np.abs(found - whole[:, first + 3 : first + 4003]).max() > 1e-2
