"""Frames of a clip: one view and one draw of operations for all, ready frames cut and resized."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceivers.data import rand_augment
from perceivers.data.augment import AugmentConfig, Look, Place, random_view
from perceivers.data.drawing import draw_view
from perceivers.data.video_clips import FrameFitter, fit_frames
from perceivers.errors import ConfigError
from perceivers.types import Video


def look(seed: int = 0, **settings: Any) -> Look:
    return Look(np.random.default_rng(seed), AugmentConfig(**settings))


@pytest.fixture
def frames(numpy_rng: np.random.Generator) -> np.ndarray:
    """A clip ``[3, 4, 12, 20]`` of four different frames."""
    return numpy_rng.integers(0, 256, (3, 4, 12, 20), np.uint8)


def test_every_frame_is_drawn_with_the_one_view(frames: np.ndarray) -> None:
    crop = {"crop_scale": (0.2, 0.5), "flip": True, "rotate": 20.0}
    for seed in range(4):
        fit = FrameFitter(Video(4, 8, 8), look(seed, **crop))
        rng = np.random.default_rng(seed)
        view = random_view((20, 12), (8, 8), AugmentConfig(**crop), rng)
        other = FrameFitter(Video(4, 8, 8), look(seed + 9, **crop))
        for frame in frames.transpose(1, 2, 3, 0):
            picture = Image.fromarray(np.ascontiguousarray(frame))
            expected = np.asarray(draw_view(picture, view, (8, 8))).transpose(2, 0, 1)
            assert np.array_equal(fit(picture), expected)
            assert not np.array_equal(other(picture), expected)


def test_operations_are_drawn_once_for_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal frames stay equal, and every frame gets the same operations with the same signs."""
    names: list[list[str]] = []
    real = rand_augment.OPERATIONS

    def spy(name: str) -> Any:
        return lambda *arguments: (names[-1].append(name), real[name](*arguments))[1]

    monkeypatch.setattr(rand_augment, "OPERATIONS", {name: spy(name) for name in real})
    still = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    drawn = set()
    for seed in range(12):
        fit = FrameFitter(Video(3, 12, 12), look(seed, rand_augment=2, magnitude=8))
        fitted = []
        for _ in range(3):
            names.append([])
            fitted.append(fit(Image.fromarray(still)))
        assert np.array_equal(fitted[0], fitted[1])
        assert np.array_equal(fitted[0], fitted[2])
        assert names[-1] == names[-2] == names[-3]
        assert len(names[-1]) == 2
        drawn.add(tuple(names[-1]))
    assert len(drawn) > 6


def test_gray_specs_give_one_channel_after_the_operations(frames: np.ndarray) -> None:
    picture = Image.fromarray(np.ascontiguousarray(frames[:, 0].transpose(1, 2, 0)))
    fitted = FrameFitter(Video(1, 6, 6, 1), look(rand_augment=4, magnitude=9))(picture)
    assert fitted.shape == (1, 6, 6)


def test_frames_that_fit_stay_as_they_are(frames: np.ndarray) -> None:
    spec = Video(4, 12, 20)
    assert np.shares_memory(fit_frames(frames, spec), frames)
    assert np.array_equal(fit_frames(frames, spec), frames)
    rng = np.random.default_rng(0)
    assert np.array_equal(fit_frames(frames, spec, Look(rng)), frames)
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn


def test_longer_clips_are_cut_where_the_look_says(frames: np.ndarray) -> None:
    spec = Video(2, 12, 20)
    for time, first in ((0.0, 0), (0.5, 1), (1.0, 2)):
        found = fit_frames(frames, spec, Look(place=Place(time, 0.5)))
        assert np.array_equal(found, frames[:, first : first + 2])
    starts = {int(fit_frames(frames, spec, look(seed))[0, 0, 0, 0]) for seed in range(30)}
    assert starts == set(frames[0, :3, 0, 0].tolist())
    longer = fit_frames(frames, Video(6, 12, 20))
    assert np.array_equal(longer[:, :4], frames)
    assert np.array_equal(longer[:, 4:], frames[:, [3, 3]])


def test_wide_clips_are_cropped_along_the_longer_side(frames: np.ndarray) -> None:
    spec = Video(4, 12, 12)
    for along, left in ((0.0, 0), (0.5, 4), (1.0, 8)):
        found = fit_frames(frames, spec, Look(place=Place(0.5, along)))
        assert np.array_equal(found, frames[..., left : left + 12])


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_ready_frames_of_every_type_are_resized_and_mirrored(kind: type) -> None:
    ramp = np.linspace(-100 if kind is np.int16 else 0, 200, 16).astype(kind)
    clip = np.broadcast_to(ramp, (2, 3, 16, 16)).copy()
    found = fit_frames(clip, Video(3, 8, 8, 2))
    assert (found.dtype, found.shape) == (kind, (2, 3, 8, 8))
    assert (np.diff(found[0, 0, 0].astype(float)) > 0).all()
    assert np.abs(found[0, 0, 0].astype(float) - ramp.reshape(8, 2).mean(1)).max() < 6
    mirrored = {
        bool(fit_frames(clip, Video(3, 8, 8, 2), look(seed, flip=True))[0, 0, 0, 0] > 100)
        for seed in range(10)
    }
    assert mirrored == {True, False}


def test_operations_change_ready_frames_alike_or_refuse_them(frames: np.ndarray) -> None:
    still = np.repeat(frames[:, :1], 3, axis=1)
    found = fit_frames(still, Video(3, 12, 20), look(2, rand_augment=3, magnitude=9))
    assert not np.array_equal(found, still)
    assert (found == found[:, :1]).all()
    with pytest.raises(ConfigError, match=r"float32 with 3 channels; set augment\.rand"):
        fit_frames(still.astype(np.float32), Video(3, 12, 20), look(rand_augment=1))
