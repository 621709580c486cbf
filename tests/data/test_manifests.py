"""Manifests: tables whose cells are files, texts or numbers, some of them missing."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image as Picture
from tests.data.test_masks import halves, png

from perceivers.data import (
    AugmentConfig,
    make_eval_loader,
    make_train_loader,
    open_data,
)
from perceivers.data.sources import (
    Encoded,
    Source,
)
from perceivers.errors import ConfigError, DataError
from perceivers.types import Array, Audio, Bytes, Image, Points

WriteFolder = Callable[[Mapping[str, bytes]], Path]
TONE = np.full((1, 20), 0.25)


def write_rows(*rows: str) -> bytes:
    return ("\n".join(rows) + "\n").encode()


def write_lines(*rows: Mapping[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.fixture
def mixed(write_folder: WriteFolder, encode: Any, encode_sound: Any) -> Path:
    """Twelve rows: pictures in all but every third, sounds in every third and every odd one."""
    files, rows = {}, ["image,audio,label,age"]
    for i in range(12):
        files[f"photos/{i}.png"] = encode(i, (8, 8))
        files[f"{i}.wav"] = encode_sound(TONE, kind="WAV")
        image = f"photos/{i}.png" if i % 3 else ""
        audio = f"{i}.wav" if i % 2 or i % 3 == 0 else ""
        rows.append(f"{image},{audio},{'ab'[i % 2]},{'' if i == 3 else i / 2}")
    return write_folder(files | {"x.csv": write_rows(*rows)}) / "x.csv"


def rows_of(source: Source) -> list[int]:
    return [int(name.rpartition("/")[2]) for name in source.names]


def test_rows_may_lack_modalities(mixed: Path) -> None:
    dataset = open_data(str(mixed))
    assert dataset.classes == ("a", "b")
    assert dataset.notes[0] == "of 12 training rows, samples with: image 8, audio 8"
    train = dataset.splits["train"]
    assert train.present
    for place, row in enumerate(rows_of(train)):
        held = {"image"} if row % 3 else set()
        held |= {"audio"} if row % 2 or row % 3 == 0 else set()
        assert set(train.read(place)) == held
        assert {name for name, values in train.present.items() if values[place]} == held
        assert train.labels is not None
        assert train.labels[place] == row % 2
    assert len(pickle.dumps(train)) < 20_000


def test_validation_keeps_the_classes_and_what_is_missing(mixed: Path) -> None:
    dataset = open_data(str(mixed), val_share=0.34)
    val = dataset.splits["val"]
    assert val.present
    assert val.labels is not None
    assert sorted(val.labels) == [0, 0, 1, 1]
    assert val.present["image"].tolist() == [row % 3 > 0 for row in rows_of(val)]
    assert not set(rows_of(val)) & set(rows_of(dataset.splits["train"]))


def check_batch(batch: Any, rows: list[int]) -> None:
    """Compare what a batch holds with what the rows of ``mixed`` hold."""
    images = [row % 3 > 0 for row in rows]
    sounds = [row % 2 == 1 or row % 3 == 0 for row in rows]
    assert batch.present["image"].tolist() == images
    assert batch.present["audio"].tolist() == sounds
    assert batch.inputs["image"].dtype == torch.uint8
    assert batch.inputs["image"].flatten(1).any(1).tolist() == images
    assert batch.inputs["audio"].shape == (len(rows), 1, 20)
    expected = torch.tensor([0.25 if held else 0.0 for held in sounds])
    torch.testing.assert_close(batch.inputs["audio"].mean((1, 2)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (3, 1), (20, 0)])
def test_batches_say_what_is_present_and_are_zero_elsewhere(
    mixed: Path, size: int, workers: int
) -> None:
    dataset = open_data(str(mixed), targets=("age",))
    train = dataset.splits["train"]
    assert train.present
    specs = dataset.specs(size=8)
    seen = []
    for batch in make_eval_loader(train, specs, batch_size=size, workers=workers):
        rows = [rows_of(train)[i] for i in batch.index.tolist()]
        check_batch(batch, rows)
        assert batch.targets is not None
        ages = [float("nan") if row == 3 else row / 2 for row in rows]
        torch.testing.assert_close(batch.targets[:, 0], torch.tensor(ages), equal_nan=True)
        seen += rows
    assert seen == rows_of(train)
    loader = make_train_loader(
        train, specs, batch_size=size, seed=0, augment=AugmentConfig(), start_step=0, num_steps=4
    )
    for batch in loader:
        check_batch(batch, [rows_of(train)[i] for i in batch.index.tolist()])


def test_specs_are_measured_on_the_samples_that_hold_a_modality(
    write_folder: WriteFolder, encode: Any, encode_sound: Any
) -> None:
    # Nothing but the very last training rows has sound.
    files = {f"{i}.png": encode(i, (8, 8), mode="L") for i in range(40)}
    files |= {f"{i}.wav": encode_sound(TONE * (i - 37), kind="WAV") for i in (38, 39)}
    rows = [f"{i}.png,{f'{i}.wav' if i > 37 else ''},train" for i in range(40)]
    path = write_folder(files | {"x.csv": write_rows("image,audio,split", *rows)}) / "x.csv"
    specs = open_data(str(path)).specs(size=8)
    assert list(specs) == ["image", "audio"]
    audio = specs["audio"]
    assert isinstance(audio, Audio)
    assert (audio.samples, audio.sample_rate) == (20, 8000)
    # No zeros of missing samples take part.
    assert audio.mean == pytest.approx((0.375,), abs=1e-4)
    assert audio.std == pytest.approx((0.125,), abs=1e-4)


def test_a_manifest_without_gaps_is_an_ordinary_source(
    write_folder: WriteFolder, encode: Any, encode_sound: Any
) -> None:
    files = {f"{i}.png": encode(i) for i in range(4)}
    files |= {f"{i}.flac": encode_sound(TONE) for i in range(4)}
    both = [f"{i}.png,{i}.flac" for i in range(4)]
    alone = [f"{i}.png" for i in range(4)]
    folder = write_folder(
        files
        | {"both.csv": write_rows("image,audio", *both), "alone.csv": write_rows("photo", *alone)}
    )
    train = open_data(str(folder / "both.csv")).splits["train"]
    assert not train.present
    assert not train.is_pictures
    assert set(train.read(0)) == {"image", "audio"}
    dataset = open_data(str(folder / "alone.csv"))
    train = dataset.splits["train"]
    # Picture files are decoded no larger than needed.
    assert train.is_pictures
    assert not train.present
    assert "column 'photo' is read as modality 'image'" in dataset.notes
    assert dataset.specs()["image"].channels == 3
    picture = train.read(0)["image"]
    assert isinstance(picture, Picture)
    assert picture.size == (12, 10)


def test_a_split_that_lacks_a_modality_makes_all_partial(
    write_folder: WriteFolder, encode: Any, encode_sound: Any
) -> None:
    files = {f"{i}.png": encode(i, (8, 8)) for i in range(6)}
    files |= {f"{i}.wav": encode_sound(TONE, kind="WAV") for i in range(6)}
    split = ["train"] * 3 + ["validation"] * 2 + ["test"]
    rows = [f"{i}.png,{f'{i}.wav' if i < 5 else ''},{split[i]},{i % 2}" for i in range(6)]
    path = write_folder(files | {"x.csv": write_rows("image,audio,split,label", *rows)}) / "x.csv"
    dataset = open_data(str(path))
    assert {name: rows_of(s) for name, s in dataset.splits.items()} == {
        "train": [0, 1, 2],
        "val": [3, 4],
        "test": [5],
    }
    assert "splits are taken from the column 'split': train 3 / val 2 / test 1" in dataset.notes
    assert all(source.present for source in dataset.splits.values())
    # Even where no sample of a batch holds a modality, it has its shape.
    (batch,) = make_eval_loader(dataset.splits["test"], dataset.specs(size=8), batch_size=4)
    assert batch.inputs["audio"].shape == (1, 1, 20)
    assert not batch.inputs["audio"].any()
    assert batch.present["audio"].tolist() == [False]


def test_two_cameras_keep_their_names(write_folder: WriteFolder, encode: Any) -> None:
    files = {f"{side}{i}.png": encode(i, (8, 8)) for side in "lr" for i in range(3)}
    rows = [f"l{i}.png,r{i}.png,x.pngs" for i in range(3)]
    path = write_folder(files | {"x.csv": write_rows("left,right eye,note", *rows)}) / "x.csv"
    assert open_data(str(path), labels=("note",)).classes == ("x.pngs",)
    specs = open_data(str(path)).specs(size=6)
    assert {name: (spec.kind, spec.grid) for name, spec in specs.items()} == {
        "left": ("image", (6, 6)),
        "right_eye": ("image", (6, 6)),
    }
    (batch,) = make_eval_loader(open_data(str(path)).splits["train"], specs, batch_size=9)
    assert batch.inputs["right_eye"].shape == (2, 3, 6, 6)


def test_a_film_gives_its_sound(
    write_folder: WriteFolder, encode_video: Any, numbered: Any
) -> None:
    film = encode_video(numbered(5), wave=np.zeros((1, 3200)))
    files = {"a.mp4": film, "x.csv": write_rows("video,text", "a.mp4,one", "a.mp4,", ",two")}
    train = open_data(str(write_folder(files) / "x.csv"), val_share=0.3).splits["train"]
    held = {frozenset(train.read(i)) for i in range(len(train))}
    assert held <= {
        frozenset(s) for s in ({"video", "bytes", "audio"}, {"video", "audio"}, {"bytes"})
    }
    clips = [train.read(i)["audio"] for i in range(len(train)) if "audio" in train.read(i)]
    assert all(isinstance(clip, Encoded) and clip.kind == "audio" for clip in clips)
    assert clips


def test_json_lines_may_hold_numbers(write_folder: WriteFolder) -> None:
    rows = [
        {"points": [[0, 0, 1], [1, 0, 0], [2.5, 1, 1]], "array": [1, 2], "label": "x"},
        {"points": [[5, 5, 5]], "array": None, "label": "y"},
        {"points": None, "array": [3, 4], "label": "x"},
        {"array": [5, 6], "label": "y"},
    ]
    content = write_lines(*rows)
    dataset = open_data(str(write_folder({"train.jsonl": content, "val.jsonl": content})))
    train = dataset.splits["train"]
    found = [train.read(i) for i in range(4)]
    np.testing.assert_array_equal(found[0]["points"], rows[0]["points"])
    np.testing.assert_array_equal(found[2]["array"], [[3], [4]])
    assert [sorted(found[row]) for row in range(4)] == [
        ["array", "points"],
        ["points"],
        ["array"],
        ["array"],
    ]
    specs = dataset.specs()
    points = specs["points"]
    assert isinstance(points, Points)
    assert (points.points, points.ragged, points.channels) == (8, True, 3)
    assert isinstance(specs["array"], Array)
    assert specs["array"].raw_shape == (2, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0, 1], [2]], r"x\.jsonl: line 2: points must be a list of numbers"),
        ([["a", "b"]], r"line 2: points must be a list of numbers"),
        (
            [1, 2, 3],
            r"line 2: points has shape \(3,\); it must be finite .* \[P, C\]",
        ),
        ([[1, float("nan")]], r"line 2: points has shape \(1, 2\); it must be finite"),
        ("a.xyz", r"line 1: points is \[\[1, 2\]\]; a cell contains the path of a file"),
    ],
)
def test_numbers_that_are_no_points_are_refused(
    write_folder: WriteFolder, value: Any, message: str
) -> None:
    content = write_lines({"points": [[1, 2]]}, {"points": value})
    with pytest.raises(DataError, match=message):
        open_data(str(write_folder({"x.jsonl": content}) / "x.jsonl"))


def test_texts_and_text_files(write_folder: WriteFolder, encode: Any) -> None:
    files = {f"{i}.png": encode(i) for i in range(2)} | {"a.txt": b"from a file"}
    rows = ['0.png,"hello, you",a.txt', "1.png,,a.txt"]
    path = write_folder(files | {"x.csv": write_rows("image,text,story", *rows)}) / "x.csv"
    dataset = open_data(str(path), val_share=0.5)
    found: dict[int, Any] = {}
    for source in dataset.splits.values():
        found |= {row: source.read(i) for i, row in enumerate(rows_of(source))}
    assert bytes(found[0]["bytes"]) == b"hello, you"
    assert bytes(found[1]["story"]) == b"from a file"
    assert "bytes" not in found[1]
    specs = dataset.specs(size=8) if 0 in rows_of(dataset.splits["train"]) else {}
    assert specs.get("story", Bytes(512)) == Bytes(512)


def test_folders_of_manifests_are_read_beside_their_files(
    write_folder: WriteFolder, encode: Any
) -> None:
    files = {f"ant/{i}.png": encode(i) for i in range(4)}
    files |= {
        "train.csv": write_rows("image,label", "ant/0.png,0", "ant/1.png,1", "ant/0.png,1"),
        "test.csv": write_rows("label,image", "1,ant/2.png"),
        "classes.txt": b"no\nyes\n",
    }
    dataset = open_data(str(write_folder(files)))
    assert dataset.classes == ("no", "yes")
    assert list(dataset.splits["test"].names) == ["test.csv/0"]
    assert set(dataset.splits["test"].read(0)) == {"image"}
    assert len(dataset.splits["train"]) + len(dataset.splits["val"]) == 3


def test_a_table_of_texts_is_what_it_was(write_folder: WriteFolder) -> None:
    # Numbers are no paths, and a column "split" that holds no splits is like any other.
    folder = write_folder(
        {
            "x.csv": write_rows("text,points,split", "a,3,left", "b,4,right", "c,3,left"),
            "y.csv": write_rows("text,split", "a,train", "b,test", "c,train"),
        }
    )
    dataset = open_data(str(folder / "x.csv"), labels=("split", "points"), val_share=0.5)
    assert dataset.columns["points"] == ("3", "4")
    assert dataset.columns["split"] == ("left", "right")
    dataset = open_data(str(folder / "y.csv"), val_share=0.5)
    assert list(dataset.splits["test"].names) == ["y.csv/1"]


def test_names_of_files_that_are_elsewhere_are_labels(write_folder: WriteFolder) -> None:
    table = write_rows("text,source", "a,alice.txt", "b,carroll.txt", "c,alice.txt")
    path = str(write_folder({"x.csv": table}) / "x.csv")
    dataset = open_data(path, labels=("source",))
    assert dataset.classes == ("alice.txt", "carroll.txt")
    assert set(dataset.splits["train"].read(0)) == {"bytes"}
    (note,) = [note for note in dataset.notes if "'source'" in note]
    assert "not a modality: there is no file" in note


def test_masks_are_a_column(write_folder: WriteFolder, encode: Any) -> None:
    files = {f"{i}.jpg": encode(i, (8, 8), kind="JPEG") for i in range(3)}
    files |= {f"m{i}.png": png(halves() + i) for i in range(3)}
    rows = [f"{i}.jpg,m{i}.png" for i in range(3)]
    table = write_rows("image,mask", *rows)
    gap = write_rows("image,mask", *rows, "1.jpg,")
    folder = write_folder(files | {"x.csv": table, "gap.csv": gap})
    dataset = open_data(str(folder / "x.csv"))
    assert dataset.mask_classes == ("0", "1", "2", "3")
    assert list(dataset.specs(size=8)) == ["image"]
    source = dataset.splits["train"]
    row = rows_of(source)[1]
    np.testing.assert_array_equal(np.asarray(source.read(1)["mask"]), halves() + row)
    # A row without a mask is legal; segmentation ignores its pixels.
    partial = open_data(str(folder / "gap.csv")).splits["train"]
    assert partial.present
    rows = rows_of(partial)
    assert partial.present["mask"].tolist() == [row != 3 for row in rows]


def test_targets_are_numbers(mixed: Path) -> None:
    dataset = open_data(str(mixed), targets=("age",), labels=("label",))
    assert dataset.targets == ("age",)
    with pytest.raises(ConfigError, match="'age' is asked for as a label and as a target"):
        open_data(str(mixed), targets=("age",), labels=("age",))
    with pytest.raises(ConfigError, match=r"target 'ages' is asked for, .*did you mean 'age'\?"):
        open_data(str(mixed), targets=("ages",))
    with pytest.raises(DataError, match=r"x\.csv: line 2: label is 'a'; a target must be a finite"):
        open_data(str(mixed), targets=("label",))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["image,label", "no.png,1", "nor.png,0"], r"line 2: image is 'no\.png', but there is no"),
        (["image,audio", "a.png,", ","], r"x\.csv/1: the row is empty, as are 0 others"),
        (["image,label", "a.png,1", "a.png,"], r"x\.csv: line 3: label '' is not a class"),
        (["image,split", "a.png,train", "a.png,tset"], r"x\.csv: line 3: split is 'tset'; it must"),
        (["image,split", "a.png,test"], r"contains only \['test'\]; some rows must be train"),
        (["one,two", "1,2"], r"the header is \['one', 'two'\]; the first line"),
    ],
)
def test_manifests_that_break_the_format_are_refused(
    write_folder: WriteFolder, encode: Any, rows: list[str], message: str
) -> None:
    folder = write_folder({"a.png": encode(), "x.csv": write_rows(*rows)})
    with pytest.raises(DataError, match=message):
        open_data(str(folder / "x.csv"))


def test_a_missing_file_is_a_bad_sample_with_its_line(
    write_folder: WriteFolder, encode: Any
) -> None:
    rows = [f"a.png,{i % 2},train" for i in range(4)] + ["gone.png,0,train"]
    folder = write_folder({"a.png": encode(), "x.csv": write_rows("image,label,split", *rows)})
    dataset = open_data(str(folder / "x.csv"), val_share=0.2)
    bad = []
    for source in dataset.splits.values():
        for batch in make_eval_loader(source, {"image": Image(4, 4)}, batch_size=9):
            bad += batch.bad
    (reason,) = bad
    assert reason.startswith(str(folder / "gone.png"))
    assert reason.endswith("named in " + str(folder / "x.csv") + ": line 6")


def test_columns_that_are_almost_files_are_noted(write_folder: WriteFolder, encode: Any) -> None:
    rows = ["a.png,b.png,", "a.png,unknown,"]
    path = write_folder({"a.png": encode(), "x.csv": write_rows("image,other,audio", *rows)})
    notes = open_data(str(path / "x.csv")).notes
    assert notes[0] == (
        "column 'other' is not a modality: its cells look like files (image), but "
        "'unknown' does not"
    )
    assert notes[1] == "column 'audio' is empty in every row, so it is left out"


def test_joined_manifests_keep_what_is_missing(mixed: Path, write_folder: WriteFolder) -> None:
    dataset = open_data(f"{mixed} + {mixed}")
    train = dataset.splits["train"]
    assert train.present
    rows = rows_of(train)
    assert train.present["image"].tolist() == [row % 3 > 0 for row in rows]
    assert len(rows) == 20
    specs = dataset.specs(size=8)
    for batch in make_eval_loader(train, specs, batch_size=6):
        check_batch(batch, [rows[i] for i in batch.index.tolist()])
    with pytest.raises(ConfigError, match="target 'age' is asked for, but the joined data"):
        open_data(f"{mixed} + {mixed}", targets=("age",))
