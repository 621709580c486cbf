"""Tiny data of every kind, written to files, and short runs on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import perceivers as pv
from perceivers.data.writing import write_clip, write_wav
from perceivers.workflows import run as run_module

WORDS = ("cat", "dog", "sun", "rain", "tree", "green", "blue", "stone")
RATE, SAMPLES = 16_000, 3200
NANO, BATCH = "perceiver_io_nano", 4


def quietly(verb: Callable[..., pv.Run], **settings: Any) -> pv.Run:
    """Run a training verb for two steps on the CPU, without a report, which takes a second."""
    short = {"steps": 2, "batch_size": BATCH, "device": "cpu", "quiet": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_run_report", lambda folder: folder.report)
        return verb(**{**short, **{n: str(v) if n in PATHS else v for n, v in settings.items()}})


PATHS = {"model", "data", "out"}


def write_texts(path: Path, count: int = 40, *, seed: int = 0) -> Path:
    """A table of texts with the label columns topic (3 classes) and mood (2)."""
    rng = np.random.default_rng(seed)
    lines = ["text,topic,mood"]
    for row in range(count):
        words = " ".join(rng.choice(WORDS, 4))
        lines.append(f"{words},{('sky', 'wood', 'home')[row % 3]},{('sad', 'glad')[row % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_one_label(path: Path, classes: tuple[str, ...], count: int = 24) -> Path:
    """A table of texts with one label."""
    rng = np.random.default_rng(len(classes))
    lines = [f"{' '.join(rng.choice(WORDS, 3))},{classes[i % len(classes)]}" for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def write_clouds(path: Path, count: int = 24) -> Path:
    """Point sets of 5 to 12 points in two classes."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 13, count)
    points = rng.standard_normal((sizes.sum(), 3)).astype(np.float32)
    offsets = np.concatenate([[0], sizes.cumsum()])
    np.savez(path, xyz=points, offsets=offsets, label=np.arange(count) % 2)
    return path


def write_clips(folder: Path, count: int = 5, *, rate: int = RATE) -> Path:
    """Films of two classes with sound: 5 frames of 16 x 16 at 25 per second, 0.2 s."""
    rng = np.random.default_rng(0)
    for name in ("high", "low"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            frames = rng.integers(0, 256, (3, 5, 16, 16), dtype=np.uint8)
            times = np.arange(SAMPLES) / rate
            wave = np.sin(2 * np.pi * (300 if name == "low" else 900) * times)[None]
            write_clip(folder / name / f"{number}.mp4", frames, 25.0, 0.5 * wave, rate)
    return folder


def write_sounds(folder: Path, count: int = 4, *, rate: int = RATE) -> Path:
    """Sounds of two classes."""
    for name in ("high", "low"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            times = np.arange(SAMPLES) / rate
            pitch = (300 if name == "low" else 900) + 10 * number
            wave = 0.5 * np.sin(2 * np.pi * pitch * times)[None]
            write_wav(folder / name / f"{number}.wav", wave, rate)
    return folder


def write_photographs(folder: Path, count: int = 8, *, size: tuple[int, int] = (40, 40)) -> Path:
    """Smooth coloured pictures."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
    return folder
