"""Samples fitted to their specs: augmentation of clips, and what must not be augmented."""

from typing import Any

import numpy as np
import pytest

from perceivers.data.arrays import hold_arrays
from perceivers.data.augment import AugmentConfig, Views
from perceivers.data.fitting import SampleReader
from perceivers.data.row_source import ArrayCells, Part, RowSource
from perceivers.errors import ConfigError, DataError
from perceivers.types import Array, Audio, ModalitySpec, Video


def test_the_flow_of_frames_cannot_be_augmented(numpy_rng: np.random.Generator) -> None:
    video = numpy_rng.integers(0, 256, (2, 3, 2, 8, 8), np.uint8)
    source = hold_arrays({"video": video, "flow": np.zeros((2, 2, 8, 8), np.float32)}, ["a", "b"])
    specs: dict[str, ModalitySpec] = {"video": Video(2, 8, 8), "flow": Array((2, 8), 8)}
    assert set(SampleReader(source, specs, AugmentConfig())(0)) == {"video", "flow"}
    for augment in (AugmentConfig(flip=True), AugmentConfig(copies=2)):
        with pytest.raises(ConfigError, match=r"\['flow', 'video'\]: the flow would no longer"):
            SampleReader(source, specs, augment)
    with pytest.raises(DataError, match=r"'video' has shape .*frames with flow are not resized"):
        SampleReader(source, specs | {"video": Video(2, 4, 4)}, AugmentConfig())


def test_ready_clips_are_augmented_and_their_sound_is_not(numpy_rng: np.random.Generator) -> None:
    video = numpy_rng.integers(0, 256, (4, 3, 3, 8, 8), np.uint8)
    source = hold_arrays({"video": video, "audio": np.ones((4, 1, 8), np.float32)}, list("abcd"))
    specs: dict[str, ModalitySpec] = {"video": Video(3, 8, 8), "audio": Audio(8)}
    settings: tuple[dict[str, Any], ...] = (
        {"flip": True},
        {"crop_scale": (0.3, 0.6)},
        {"rand_augment": 2, "magnitude": 9},
        {"erase": 1.0},
    )
    for setting in settings:
        reader = SampleReader(source, specs, AugmentConfig(**setting))
        read = [reader(1, np.random.default_rng(seed)) for seed in range(8)]
        changed = sum(not np.array_equal(sample["video"], video[1]) for sample in read)
        assert changed > 1, setting
        assert all((sample["audio"] == 1).all() for sample in read)
        again = reader(1, np.random.default_rng(7))
        assert np.array_equal(again["video"], read[7]["video"])
        assert np.array_equal(reader(1)["video"], video[1])


def test_operations_need_gray_or_colour_clips() -> None:
    source = hold_arrays({"video": np.zeros((2, 2, 3, 8, 8), np.uint8)}, ["a", "b"])
    specs: dict[str, ModalitySpec] = {"video": Video(3, 8, 8, 2)}
    message = r"'video' has 2 channels; use augment\.rand_augment: 0"
    with pytest.raises(ConfigError, match=message):
        SampleReader(source, specs, AugmentConfig(rand_augment=1))
    SampleReader(source, specs, AugmentConfig(flip=True))


class Counting(ArrayCells):
    """Arrays that count how often they are read."""

    reads: int = 0

    def load(self, row: int) -> Any:
        """Count, and read."""
        Counting.reads += 1
        return super().load(row)


def test_all_views_come_from_one_reading() -> None:
    video = np.arange(6, dtype=np.uint8).reshape(1, 1, 6, 1, 1)
    sound = np.arange(12, dtype=np.float32).reshape(1, 1, 12)
    parts = {"video": Part("video", Counting(video)), "audio": Part("audio", ArrayCells(sound))}
    source = RowSource(parts, np.arange(1), ["a"])
    reader = SampleReader(source, {"video": Video(2, 1, 1, 1), "audio": Audio(4)}, AugmentConfig())
    Counting.reads = 0
    seen = reader.read_views(0, Views(temporal=3).places)
    assert Counting.reads == 1
    assert [view["video"].ravel().tolist() for view in seen] == [[0, 1], [2, 3], [4, 5]]
    assert [int(view["audio"][0, 0]) for view in seen] == [0, 4, 8]
    (middle,) = reader.read_views(0, Views().places)
    assert np.array_equal(middle["video"], reader(0)["video"])
