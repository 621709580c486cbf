"""Facts about opened data: known counts, sizes, rates, broken and repeated samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.data import Source
from perceivers.data.address import open_data
from perceivers.data.dataset import Dataset
from perceivers.data.inspecting import DataFacts, inspect_data
from perceivers.data.inspecting_labels import count_labels, find_label_problems, title_modality
from perceivers.data.inspecting_samples import measure_raw
from perceivers.errors import ConfigError

Write = Callable[[dict[str, bytes]], Path]


def look_at(folder: Path | str, **options: Any) -> DataFacts:
    return inspect_data(open_data(str(folder), val_share=0.25), threads=2, **options)


@pytest.fixture
def photographs(write_folder: Write, encode: Callable[..., bytes]) -> Path:
    """Eight pictures of 12 x 10 pixels in two classes, and one of 20 x 30, gray."""
    files = {f"{name}/{k}.png": encode(k + 100 * ord(name)) for name in "ab" for k in range(4)}
    return write_folder(files | {"b/9.png": encode(99, (20, 30), mode="L")})


def test_pictures_are_counted_by_split_and_class_and_measured(photographs: Path) -> None:
    facts = look_at(photographs)
    assert {name: split.samples for name, split in facts.splits.items()} == {"train": 7, "val": 2}
    assert facts.splits["train"].combinations == {"image": 7}
    found = facts.modalities["image"]
    assert (found.kind, found.count) == ("image", 9)
    assert (found.sizes["width"].least, found.sizes["width"].median) == (12.0, 12.0)
    assert (found.sizes["height"].least, found.sizes["height"].most) == (10.0, 30.0)
    assert found.values["colours"] == {"RGB": 8, "gray": 1}
    (labels,) = facts.labels
    assert labels.classes == ("a", "b")
    assert {split: sum(counts) for split, counts in labels.counts.items()} == {"train": 7, "val": 2}
    assert facts.broken == ()
    assert facts.is_usable
    assert facts.examples["train"].startswith(f"{photographs}/")


def test_broken_files_are_named_up_to_a_number_and_counted(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1, 2):
        path = photographs / "a" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:40])
    (photographs / "b" / "0.png").write_bytes(b"")
    monkeypatch.setattr("perceivers.data.inspecting.MAX_BROKEN", 2)
    facts = look_at(photographs)
    assert facts.num_broken == 4
    assert len(facts.broken) == 2
    assert "the content is not an image" in facts.broken[0]
    assert any("4 of 9 samples looked at cannot be read" in text for text in facts.problems)
    assert facts.modalities["image"].count == 5


def test_nothing_readable_is_not_usable(photographs: Path) -> None:
    for path in photographs.rglob("*.png"):
        path.write_bytes(b"no picture")
    facts = look_at(photographs)
    assert facts.num_broken == 9
    assert not facts.is_usable
    assert facts.modalities == {}
    assert facts.splits["train"].combinations == {}


def test_equal_files_are_found_within_and_between_splits(
    write_folder: Write, encode: Callable[..., bytes]
) -> None:
    files = {
        f"train/{name}/{k}.png": encode(k + 100 * ord(name)) for name in "ab" for k in range(3)
    }
    files |= {
        f"test/{name}/{k}.png": encode(50 + k + 100 * ord(name)) for name in "ab" for k in range(2)
    }
    files["train/a/copy.png"] = files["train/a/0.png"]
    files["test/b/leak.png"] = files["train/a/1.png"]
    files["val/a/x.png"], files["val/b/x.png"] = encode(7), encode(8)
    repeats = look_at(write_folder(files)).repeats
    assert repeats.within == {"train": 1}
    assert repeats.between == {"train and test": 1}
    assert repeats.contradictions == 1
    assert repeats.groups[0] == ("train: train/a/1.png", "test: test/b/leak.png")
    assert repeats.groups[1] == ("train: train/a/0.png", "train: train/a/copy.png")


def test_different_files_are_no_repeats(photographs: Path) -> None:
    facts = look_at(photographs)
    assert (facts.repeats.within, facts.repeats.between, facts.repeats.groups) == ({}, {}, ())


def test_equal_members_of_tars_are_found(
    tmp_path: Path, write_tar: Callable[..., Path], encode: Callable[..., bytes]
) -> None:
    pictures = [encode(number) for number in range(4)]
    members: dict[str, bytes] = {}
    for number, picture in enumerate(pictures):
        members |= {f"{number}.png": picture, f"{number}.cls": b"%d" % (number % 2)}
    write_tar(tmp_path / "train.tar", members)
    write_tar(tmp_path / "test.tar", {"9.png": pictures[0], "9.cls": b"0"})
    facts = look_at(tmp_path)
    pairs = facts.repeats.between.items()
    assert sum(count for pair, count in pairs if "test" in pair) == 1
    assert facts.repeats.contradictions == 0
    assert facts.examples["test"] == f"{tmp_path}/test.tar/9.png"


def test_sounds_tell_rates_lengths_channels_and_silence(
    write_folder: Write, encode_sound: Callable[..., bytes], numpy_rng: np.random.Generator
) -> None:
    wave = numpy_rng.uniform(-0.5, 0.5, (1, 4000))
    files = {f"{k}.flac": encode_sound(wave * (k + 1) / 8, 8000) for k in range(5)}
    files["long.flac"] = encode_sound(np.concatenate([wave, wave]), 4000)
    files["quiet.wav"] = encode_sound(0 * wave, 8000, "WAV")
    facts = look_at(write_folder(files))
    found = facts.modalities["audio"]
    assert (found.sizes["seconds"].least, found.sizes["seconds"].most) == (0.5, 1.0)
    assert found.values["sample rate in Hz"] == {"8000": 6, "4000": 1}
    assert found.values["channels"] == {"1": 6, "2": 1}
    assert found.flags == {"silent": 1}
    assert "audio: sample rate differs: 8000 (6), 4000 (1)" in facts.problems
    assert "audio: 1 silent" in facts.problems
    assert facts.labels == ()


def test_films_tell_frames_rates_and_sizes_and_hold_sound(
    write_folder: Write, encode_video: Callable[..., bytes], numbered: Callable[..., np.ndarray]
) -> None:
    wave = np.sin(np.arange(16000) / 20)[None]
    files = {f"{k}.mp4": encode_video(numbered(10 + k), 20, wave[:, :8000]) for k in range(3)}
    cut = encode_video(numbered(25), 20, wave)
    files["cut.mp4"] = cut[: len(cut) // 2]
    facts = look_at(write_folder(files))
    film = facts.modalities["video"]
    assert (film.sizes["frames"].least, film.sizes["frames"].most) == (10.0, 12.0)
    assert film.sizes["seconds"].median == pytest.approx(11 / 20)
    assert (film.sizes["width"].most, film.sizes["height"].most) == (64.0, 32.0)
    assert film.values["frames per second"] == {"20": 3}
    assert facts.modalities["audio"].values["sample rate in Hz"] == {"16000": 3}
    assert facts.num_broken == 1
    assert "cut.mp4" in facts.broken[0]
    assert facts.splits["train"].combinations.keys() == {"audio + video"}


def test_texts_points_and_arrays_are_measured(tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "".join(f"{'ab' * (k + 1)},{k % 2}\n" for k in range(6)))
    texts = look_at(table)
    assert (texts.modalities["bytes"].sizes["bytes"].least) == 2
    assert (texts.modalities["bytes"].sizes["bytes"].most) == 12
    clouds = tmp_path / "clouds.npz"
    xyz = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    np.savez(clouds, offsets=np.array([0, 2, 5, 12]), xyz=xyz)
    points = look_at(clouds).modalities["points"]
    assert (points.sizes["points"].least, points.sizes["points"].most) == (2, 7)
    assert points.values == {"values per point": {"3": 3}}
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, image=np.zeros((4, 1, 5, 6), np.uint8), array=np.zeros((4, 7, 2), np.float32))
    both = look_at(arrays)
    assert both.modalities["image"].flags == {"of one colour only": 4}
    assert both.modalities["array"].values == {"shape": {"7x2": 4}}
    assert both.splits["train"].combinations == {"array + image": 3}
    assert both.repeats.within == {"train": 2}


def test_documents_are_measured_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc " * 300)
    facts = look_at(tmp_path / "a.txt")
    assert facts.modalities["bytes"].sizes["bytes per document"].most == 900
    assert "bytes" not in facts.modalities["bytes"].sizes


FINE = "caf\xe9 \u20ac \U0001f600 "


@pytest.mark.parametrize(
    "row",
    [
        b"caf\xe9",
        b"\xe9t\xe9",
        b"caf\xe9 number 7",
        b"\xe9" + b"a" * 300 + b"\xe9" + b"b" * 300,
        f"{FINE}\xe9".encode()[:-1],
        f"{FINE}\xe9".encode()[-1:],
    ],
)
def test_any_byte_of_a_row_that_is_not_utf8_is_reported(tmp_path: Path, row: bytes) -> None:
    table = tmp_path / "x.csv"
    table.write_bytes(b"text\n" + (row + b"\n") * 8)
    assert "bytes: 8 not in UTF-8" in look_at(table).problems
    table.write_bytes(b"text\n" + (FINE.encode() + b"\n") * 8)
    assert look_at(table).modalities["bytes"].flags == {}


def test_files_that_are_not_utf8_are_reported(write_folder: Write) -> None:
    latin = {f"{name}/{k}.txt": b"caf\xe9 %d" % k for name in "ab" for k in range(4)}
    assert look_at(write_folder(latin)).modalities["bytes"].flags == {"not in UTF-8": 8}


@pytest.mark.parametrize("ahead", range(4))
def test_only_letters_that_a_window_cuts_are_excused(tmp_path: Path, ahead: int) -> None:
    document, other = tmp_path / "a.txt", tmp_path / "b.txt"
    good = b"x" * ahead + "\U0001f600".encode() * 1000
    document.write_bytes(good)
    other.write_bytes(b"abc " * 300)
    for address in (document, f"{document} + {other}"):
        assert look_at(address).modalities["bytes"].flags == {}, address
    # Each window is read with what follows it, so that a byte lies in one sample or in two.
    for bad in (b"\xa9" + good, good + b"\xf0\x9f", good[:2000] + b"\xff" + good[2000:]):
        document.write_bytes(bad)
        for address in (document, f"{document} + {other}"):
            assert look_at(address).modalities["bytes"].flags["not in UTF-8"] in {1, 2}, bad[:4]


def test_scenes_are_measured_whole_and_counted_beside_their_tiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, sizes in (("train", (9000, 200, 300)), ("test", (5000,))):
        offsets = np.cumsum([0, *sizes])
        label = np.arange(offsets[-1]) % 2
        label[offsets[-2] :] = 1
        xyz = rng.normal(size=(offsets[-1], 3)).astype(np.float32)
        np.savez(tmp_path / f"{split}.npz", offsets=offsets, xyz=xyz, label=label)
    facts = look_at(tmp_path)
    assert facts.scenes == 4
    assert sum(split.samples for split in facts.splits.values()) == 7
    assert [facts.splits[split].scenes for split in ("train", "val", "test")] == [2, 1, 1]
    points, classes = facts.modalities["points"], facts.modalities["mask"]
    assert list(points.sizes) == ["points per scene", "points per tile"]
    whole = points.sizes["points per scene"]
    assert (whole.least, whole.most) == (200, 9000)
    assert points.sizes["points per tile"].most == 3000
    assert list(classes.sizes) == ["classes per scene"]
    assert title_modality("mask", classes) == "classes of points"
    assert title_modality("points", points) == "points"
    assert "classes of points: 2 scenes of one class only" in facts.problems


def test_an_only_scene_that_is_divided_counts_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    xyz, label = rng.normal(size=(6000, 3)).astype(np.float32), np.arange(6000) % 2
    np.savez(tmp_path / "x.npz", offsets=np.array([0, 6000]), xyz=xyz, label=label)
    facts = look_at(tmp_path / "x.npz")
    assert facts.scenes == 1
    assert facts.modalities["points"].sizes["points per scene"].least == 6000


def test_only_as_many_samples_are_looked_at_as_asked_for(photographs: Path) -> None:
    facts = look_at(photographs, limit=4)
    assert {name: split.looked_at for name, split in facts.splits.items()} == {"train": 3, "val": 1}
    assert {name: split.samples for name, split in facts.splits.items()} == {"train": 7, "val": 2}
    assert sum(facts.labels[0].counts["train"]) == 7
    with pytest.raises(ConfigError, match="limit is 0; it must be at least 1"):
        look_at(photographs, limit=0)


def test_progress_is_told(photographs: Path) -> None:
    told: list[tuple[int, int]] = []
    look_at(photographs, progress=lambda done, total: told.append((done, total)))
    assert told == [(k, 9) for k in range(1, 10)]


class Labelled(Source):
    """A source of labels alone."""

    def __init__(self, labels: list[Any]) -> None:
        self.labels = np.array(labels, np.int64)
        self.names = [str(k) for k in range(len(labels))]

    def read(self, index: int) -> dict[str, Any]:
        """Return nothing: only labels are looked at."""
        return {}


def problems_of(train: list[Any], test: list[Any], **names: Any) -> str:
    sources = {"train": Labelled(train), "test": Labelled(test)}
    dataset = Dataset("x", sources, names.get("classes", ()), (), names.get("columns", {}))
    return "\n".join(find_label_problems(count_labels(dataset)))


def test_label_problems_are_named() -> None:
    text = problems_of([0] * 20 + [1] * 2, [0, 0, 3], classes=("a", "b", "c", "d"))
    assert "2 classes (c, d) without training samples" in text
    assert "1 class (b (2)) with fewer than 5 training samples" in text
    assert "1 class (b) absent from 'test'" in text
    assert "the largest class has 10.0 times" in text
    assert "the most common class alone is 90.9 %" in text
    assert problems_of([0] * 6 + [1] * 6, [0, 1], classes=("a", "b")) == ""


def test_problems_of_several_columns_name_the_column_and_unknown_labels() -> None:
    train = [[0, 1], [1, -1], [0, 0], [1, 1], [0, 0], [1, 1]] * 3
    text = problems_of(train, [[0, 0]], columns={"up": ("n", "y"), "hot": ("n", "y")})
    assert "column 'up': 1 class (y) absent from 'test'" in text
    assert "column 'hot': 3 samples of 'train' have no label" in text


def test_masks_count_their_classes() -> None:
    ids = np.zeros((4, 6), np.uint8)
    assert measure_raw(ids, "mask", "m.png").flags == ("of one class only",)
    ids[0, 0], ids[1, 1] = 3, 255
    found = measure_raw(ids, "mask", "m.png")
    assert found.numbers == {"width": 6, "height": 4, "classes in it": 3}
    assert found.flags == ()
