"""Small pictures, folders and tars that the tests of ``data`` are made of."""

import io
import tarfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image


@pytest.fixture
def numpy_rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Encode a random picture."""

    def encode(
        seed: int = 0, size: tuple[int, int] = (12, 10), kind: str = "PNG", mode: str = "RGB"
    ) -> bytes:
        values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(values).convert(mode).save(file, kind)
        return file.getvalue()

    return encode


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[Mapping[str, bytes]], Path]:
    """Write files by relative path below a new folder."""

    def write_folder(files: Mapping[str, bytes]) -> Path:
        for name, data in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / "data"

    return write_folder


@pytest.fixture
def write_tar() -> Callable[[Path, Mapping[str, bytes]], Path]:
    """Write members by name into an uncompressed tar."""

    def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write_tar


@pytest.fixture
def encode_sound() -> Callable[..., bytes]:
    """Encode a waveform ``[C, S]``."""

    def encode_sound(wave: np.ndarray, rate: int = 8000, kind: str = "FLAC") -> bytes:
        file = io.BytesIO()
        soundfile.write(file, wave.T, rate, format=kind)
        return file.getvalue()

    return encode_sound


@pytest.fixture
def encode_video() -> Callable[..., bytes]:
    """Encode frames ``[T, H, W, 3]`` and a mono waveform ``[1, S]``."""

    def encode_video(
        frames: np.ndarray,
        rate: int = 25,
        wave: np.ndarray | None = None,
        wave_rate: int = 16000,
        *,
        kind: str = "mp4",
        codec: str = "libx264",
        pixel_ratio: Fraction | None = None,
        **options: str,
    ) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format=kind) as container:
            pictures: Any = container.add_stream(codec, rate=rate, options=options)
            pictures.height, pictures.width = frames.shape[1:3]
            pictures.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if pixel_ratio is not None:
                pictures.codec_context.sample_aspect_ratio = pixel_ratio
            sounds: Any = None
            if wave is not None:
                sounds = container.add_stream("libmp3lame" if kind == "avi" else "aac", wave_rate)
                sounds.layout = "mono"
            for number, values in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(values, format="rgb24")
                frame.pts = number
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode(None))
            if wave is not None:
                samples = np.ascontiguousarray(wave, np.float32)
                sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                sound.sample_rate, sound.pts = wave_rate, 0
                container.mux(sounds.encode(sound))
                container.mux(sounds.encode(None))
        return file.getvalue()

    return encode_video


@pytest.fixture
def numbered() -> Callable[..., np.ndarray]:
    """Draw frames whose number stands in them: bit by bit, as 8 white or black bars."""

    def numbered(count: int, height: int = 32, width: int = 64) -> np.ndarray:
        bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
        bars = np.repeat(bits * 255, width // 8, axis=1).astype(np.uint8)
        return np.broadcast_to(bars[:, None, :, None], (count, height, width, 3)).copy()

    return numbered


@pytest.fixture
def numbers_of() -> Callable[[np.ndarray], list[int]]:
    """Read the numbers drawn into the frames of a clip ``[C, T, H, W]``."""

    def numbers_of(clip: np.ndarray) -> list[int]:
        bars = clip[0].astype(float).mean(axis=1)  # [T, W]
        bits = bars.reshape(len(bars), 8, -1).mean(axis=2) > 128
        return (bits << np.arange(8)).sum(axis=1).tolist()

    return numbers_of
