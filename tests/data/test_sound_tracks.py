"""Videos with and without sound beside each other, in folders, tars and manifests."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import sound_tracks
from perceivers.data.address import open_data
from perceivers.data.audio_clips import (
    HEARD,
    MAX_OPENED,
    SILENT,
    UNSEEN,
    describe_tracks,
    find_tracks,
)
from perceivers.data.augment import AugmentConfig
from perceivers.data.dataset import Dataset
from perceivers.data.fitting import SampleReader
from perceivers.data.inspecting import inspect_data
from perceivers.data.loaders import read_readable
from perceivers.errors import DataError
from perceivers.types import Audio, Video

Encode = Callable[..., bytes]
WriteTar = Callable[..., Path]
SPECS = {"video": Video(2, 16, 16), "audio": Audio(400, 1, 16000)}


@pytest.fixture
def films(encode_video: Encode) -> dict[bool, bytes]:
    """A video with sound, and one without."""
    frames = np.full((3, 16, 16, 3), 90, np.uint8)
    wave = 0.5 * np.sin(np.arange(2000) / 3)[None]
    return {True: encode_video(frames, 25, wave), False: encode_video(frames)}


@pytest.fixture
def write(
    tmp_path: Path, films: dict[bool, bytes], write_tar: WriteTar
) -> Callable[[str, str], str]:
    """Write films of three splits, with sound where a letter is s, as data of some kind."""

    def write(kind: str, sounds: str) -> str:
        root = tmp_path / kind
        every = {split: [films[letter == "s"] for letter in sounds] for split in ("train", "val")}
        for split, held in every.items():
            if kind == "tars":
                write_tar(root / f"{split}.tar", {f"{i}.mp4": d for i, d in enumerate(held)})
                continue
            for number, data in enumerate(held):
                path = root / split / f"{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        if kind != "tables":
            return str(root)
        lines = [f"{split}/{n}.mp4,{split}" for split in every for n in range(len(sounds))]
        (root / "all.csv").write_text("video,split\n" + "\n".join(lines) + "\n")
        return str(root / "all.csv")

    return write


def present_in_batch(dataset: Dataset, split: str = "train") -> dict[str, list[bool]]:
    source = dataset.splits[split]
    reader = SampleReader(source, SPECS, AugmentConfig())
    batch = read_readable(reader, range(len(source)))
    assert batch.bad == []
    for row in range(len(batch)):
        held = "audio" not in batch.present or bool(batch.present["audio"][row])
        assert bool(batch.inputs["audio"][row].any()) == held
    return {name: held.tolist() for name, held in batch.present.items()}


@pytest.mark.parametrize("kind", ["folders", "tars", "tables"])
@pytest.mark.parametrize("sounds", ["s.ss", ".sss", "...s"])
def test_every_sample_says_whether_it_has_sound(
    write: Callable[[str, str], str], kind: str, sounds: str
) -> None:
    dataset = open_data(write(kind, sounds))
    expected = [letter == "s" for letter in sounds]
    for split in ("train", "val"):
        source = pickle.loads(pickle.dumps(dataset.splits[split]))
        assert source.present
        assert source.present["audio"].tolist() == expected
        assert source.present["video"].all()
        assert [("audio" in source.read(i)) for i in range(4)] == expected
        assert present_in_batch(dataset, split) == {"video": [True] * 4, "audio": expected}
    silent = sounds.count(".")
    counts = {"audio + video": 4 - silent, "video": silent}
    assert inspect_data(dataset).splits["train"].combinations == counts
    told = f"{2 * silent} of 8 videos have no sound track: samples without audio"
    rows = f"of 4 training rows, samples with: video 4, audio {4 - silent}"
    assert (rows if kind == "tables" else told) in dataset.notes
    alone = dataset.holding(["audio"])
    assert len(alone.splits["train"]) == 4 - silent


@pytest.mark.parametrize("kind", ["folders", "tars", "tables"])
@pytest.mark.parametrize("sounds", ["ssss", "...."])
def test_videos_that_are_alike_lack_nothing(
    write: Callable[[str, str], str], kind: str, sounds: str
) -> None:
    dataset = open_data(write(kind, sounds))
    source = dataset.splits["train"]
    assert not source.present
    assert set(source.read(0)) == ({"video", "audio"} if "s" in sounds else {"video"})
    assert not any("sound" in note for note in dataset.notes)


@pytest.mark.parametrize("kind", ["folders", "tars", "tables"])
def test_what_was_not_looked_at_is_looked_at_when_it_is_read(
    write: Callable[[str, str], str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_tracks, "MAX_OPENED", 2)
    dataset = open_data(write(kind, "s.ss"))
    source = dataset.splits["train"]
    assert source.present
    assert source.present["audio"].all()
    expected = [True, False, True, True]
    assert [("audio" in source.read(i)) for i in range(4)] == expected
    assert present_in_batch(dataset) == {"video": [True] * 4, "audio": expected}
    assert inspect_data(dataset).splits["train"].combinations == {"audio + video": 3, "video": 1}
    # A batch that lacks nothing is as one of data that never do.
    assert present_in_batch(open_data(write(kind, "ssss"))) == {}


def test_videos_that_cannot_be_opened_count_as_heard_unless_all_cannot() -> None:
    films = {"train": np.array([True, True, False, True]), "val": np.array([True])}

    def look(split: str, row: int) -> bool:
        if row == 1:
            raise DataError("1.mp4: damaged")
        return split == "train" and row == 3

    found = find_tracks(films, look, 9)
    assert found is not None
    assert found["train"].tolist() == [SILENT, HEARD, SILENT, HEARD]
    assert found["val"].tolist() == [SILENT]
    assert describe_tracks(films, found) == [
        "2 of 4 videos have no sound track: samples without audio"
    ]
    few = find_tracks(films, look, 3)
    assert few is not None
    assert few["train"].tolist() == [SILENT, UNSEEN, SILENT, HEARD]
    assert describe_tracks(films, few)[0].endswith("; 1 more are checked when they are read")
    # Sound that no training video has is not learned from.
    assert find_tracks({**films, "train": films["val"], "val": films["train"]}, look, 9) is None
    assert find_tracks({"train": np.zeros(3, bool)}, look, 9) is None
    with pytest.raises(DataError, match=r"none of the 1 videos checked .*; the first: 1\.mp4"):
        find_tracks({"train": np.array([False, True])}, look, 9)


def test_ten_thousand_videos_are_not_all_looked_at() -> None:
    looked: list[int] = []

    def look(split: str, row: int) -> bool:
        looked.append(row)
        return True

    find_tracks({"train": np.ones(10_000, bool)}, look, MAX_OPENED)
    assert len(looked) == 1024
    assert looked[:3] == [0, 10, 20]
    assert looked[-1] == 9999
