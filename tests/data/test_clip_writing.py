"""Clips and waveforms written to files, and read back."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from perceivers.data.audio_clips import fit_audio, native_audio
from perceivers.data.sources import Encoded
from perceivers.data.video_clips import fit_video, native_video
from perceivers.data.writing import write_clip, write_wav
from perceivers.errors import ConfigError, InputError
from perceivers.types import Audio, Video


def read(path: Path) -> Encoded:
    return Encoded(str(path), path.read_bytes(), "video")


@pytest.mark.parametrize("frame_rate", [25.0, 12.5, 30000 / 1001])
def test_a_clip_is_read_back_frame_by_frame_with_its_sound(
    tmp_path: Path,
    numbered: Callable[..., np.ndarray],
    numbers_of: Callable[..., list[int]],
    frame_rate: float,
) -> None:
    video = numbered(30).transpose(3, 0, 1, 2)
    sound = np.zeros((1, 9600), np.float32)
    sound[:, 4000:4016] = 0.9
    path = write_clip(tmp_path / "new" / "a.mp4", video, frame_rate, sound, 8000)
    clip = read(path)
    native = native_video(clip)
    assert native == Video(30, 32, 64, 3, frame_rate=native.frame_rate)
    assert native.frame_rate == pytest.approx(frame_rate, rel=1e-5)
    assert numbers_of(fit_video(clip, Video(30, 32, 64))) == list(range(30))
    assert native_audio(clip) == Audio(9600, 1, 8000)
    loud = np.flatnonzero(fit_audio(clip, Audio(9600))[0] > 0.45)
    assert 3995 <= loud.min() <= loud.max() <= 4020
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_any_player_knows_the_codecs(tmp_path: Path) -> None:
    video = np.zeros((3, 3, 16, 16), np.uint8)
    path = write_clip(tmp_path / "a.mp4", video, 10, np.zeros((2, 4800)), 16000)
    with av.open(str(path)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.pix_fmt) == ("h264", "yuv420p")
        assert (sound.codec_context.name, sound.codec_context.layout.name) == ("aac", "stereo")
    silent = write_clip(tmp_path / "b.mp4", video, 10)
    with av.open(str(silent)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_odd_sizes_are_filled_at_the_edge_and_gray_is_repeated(tmp_path: Path) -> None:
    video = np.full((1, 2, 15, 21), 40, np.uint8)
    video[..., -1, :] = video[..., -1] = 220
    found = fit_video(read(write_clip(tmp_path / "a.mp4", video, 5)), Video(2, 16, 22))
    assert found.shape == (3, 2, 16, 22)
    assert np.abs(found[:, :, 14:].astype(int) - 220).max() < 25
    assert np.abs(found[:, :, :, 20:].astype(int) - 220).max() < 25
    assert np.abs(found[:, :, :13, :19].astype(int) - 40).max() < 25


def test_sound_is_written_with_16_bits_and_cut_to_full_scale(tmp_path: Path) -> None:
    sound = np.stack([np.linspace(-1.5, 1.5, 301), np.linspace(0, 0.5, 301)]).astype(np.float32)
    path = write_wav(tmp_path / "a.wav", sound, 8000)
    found, rate = soundfile.read(path, dtype="float32")
    assert rate == 8000
    assert soundfile.info(path).subtype == "PCM_16"
    assert np.abs(found.T - sound.clip(-1, 1)).max() <= 2**-15
    assert np.abs(found.T - sound).max() > 0.4


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (
            np.zeros((3, 2, 8, 8), np.float32),
            r"shape \(3, 2, 8, 8\) and dtype float32; write uint8",
        ),
        (np.zeros((2, 2, 8, 8), np.uint8), r"shape \(2, 2, 8, 8\) .* with 1 or 3 channels"),
        (np.zeros((3, 0, 8, 8), np.uint8), r"shape \(3, 0, 8, 8\) .* at least one frame"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
    ],
)
def test_what_is_no_clip_is_refused(tmp_path: Path, video: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_clip(tmp_path / "a.mp4", video, 25)
    assert not list(tmp_path.iterdir())


def test_what_is_no_sound_or_no_rate_is_refused(tmp_path: Path) -> None:
    video, sound = np.zeros((3, 2, 8, 8), np.uint8), np.zeros((1, 100), np.float32)
    path = tmp_path / "a.mp4"
    with pytest.raises(ConfigError, match=r"frame_rate is 0; it must lie in 0\.1\.\.1000"):
        write_clip(path, video, 0)
    with pytest.raises(
        ConfigError, match=r"sample_rate is 12345 Hz; mp4 takes one of \[7350, 8000"
    ):
        write_clip(path, video, 25, sound, 12345)
    with pytest.raises(ConfigError, match="sample_rate is 0 Hz; it must be at least 1"):
        write_wav(path, sound, 0)
    for wrong in (np.zeros((3, 100)), np.zeros(100), np.zeros((1, 100), np.int16)):
        with pytest.raises(InputError, match=r"the audio has shape .* write floats \[C, S\]"):
            write_wav(path, wrong, 8000)
    with pytest.raises(InputError, match="contains NaN or infinite samples"):
        write_clip(path, video, 25, np.full((1, 10), np.nan), 8000)
    assert not list(tmp_path.iterdir())


def test_an_old_file_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros((1, 10)), 8000)
    before = path.read_bytes()
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        write_wav(path, np.ones((1, 10)), 8000)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
