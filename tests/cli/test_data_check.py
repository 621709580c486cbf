"""data check: what it prints, what it refuses, and its commands run unedited up to a prediction."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.workflows import making

from perceivers.data.writing import write_clip, write_wav

Call = Callable[..., Any]
TRAINING = {"train", "pretrain", "finetune"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, where addresses are relative and runs may be written."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_classes(folder: Path, count: int = 6) -> Path:
    """Photographs in two class folders."""
    for name in ("cat", "my dog"):
        making.write_photographs(folder / name, count, size=(60 + len(name), 50))
    return folder


def write_pairs(folder: Path, count: int = 12) -> Path:
    """A manifest of films and sounds, each of which is missing somewhere."""
    (folder / "files").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["video,audio,label"]
    for number in range(count):
        video, audio = f"files/{number}.mp4", f"files/{number}.wav"
        frames = rng.integers(0, 256, (3, 6, 32, 32), dtype=np.uint8)
        write_clip(folder / video, frames, 25.0)
        times = np.arange(4000) / 8000
        write_wav(folder / audio, 0.5 * np.sin(2 * np.pi * 200 * (1 + number) * times)[None], 8000)
        cells = ("" if number % 3 == 0 else video, "" if number % 3 == 1 else audio)
        lines.append(f"{','.join(cells)},{('high', 'low')[number % 2]}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def write_paired(folder: Path, count: int = 5) -> Path:
    """Photographs and sounds in two class folders, paired by name; one has no sound."""
    making.write_sounds(folder, count)
    for name in ("high", "low"):
        pictures = making.write_photographs(folder.parent / f"{folder.name}_{name}", count)
        for picture in pictures.iterdir():
            picture.rename(folder / name / picture.name)
        pictures.rmdir()
    (folder / "high" / "1.wav").unlink()
    return folder


def commands_of(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("perceivers ")]


def test_a_folder_of_photographs_is_described_and_a_run_proposed(call: Call, here: Path) -> None:
    write_classes(here / "my photos")
    (here / "my photos" / "cat" / "bad.png").write_bytes(b"no picture")
    outcome = call("data", "check", "my photos")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith("my photos: 13 samples")
    assert "width in pixels" in outcome.out
    assert "broken: my photos/cat/bad.png: the content is not an image" in outcome.out
    assert "problem: 1 of 13 samples looked at cannot be read" in outcome.out
    assert "label: 2 classes" in outcome.out
    train, evaluate, predict = commands_of(outcome.out)
    assert train.startswith("perceivers train --model hiera_nano --data 'my photos' ")
    assert "--max_bad_share 0.17" in train
    assert evaluate == "perceivers evaluate runs/my_photos --split val"
    assert Path(shlex.split(predict)[-1]).is_file()


def test_a_folder_of_pairs_is_proposed_to_be_predicted(call: Call, here: Path) -> None:
    write_paired(here / "my pairs")
    *_, predict = commands_of(call("data", "check", "my pairs").out)
    out = "runs/my_pairs/predictions.jsonl"
    assert predict == f"perceivers predict runs/my_pairs 'my pairs' --out {out}"


def test_everything_is_written_as_json(call: Call, here: Path) -> None:
    write_classes(here / "photos")
    assert call("data", "check", "photos", "--json", "x.json").code == 0
    found = json.loads((here / "x.json").read_text())
    assert found["usable"] is True
    assert found["facts"]["splits"]["train"]["samples"] == 10
    assert found["facts"]["modalities"]["image"]["sizes"]["height"]["median"] == 50
    assert found["facts"]["labels"][0]["counts"]["val"] == [1, 1]
    assert found["proposal"]["task"] == "classify"
    assert commands_of(call("data", "check", "photos").out) == found["proposal"]["commands"]
    refused = call("data", "check", "photos", "--json", "x.json")
    assert refused.code == 2
    assert "x.json exists; pass --overwrite" in refused.err
    assert call("data", "check", "photos", "--json", "x.json", "--overwrite").code == 0


def test_data_of_which_nothing_can_be_read_are_not_usable(call: Call, here: Path) -> None:
    for name in ("a", "b"):
        (here / "x" / name).mkdir(parents=True)
        for number in range(2):
            (here / "x" / name / f"{number}.png").write_bytes(b"x")
    outcome = call("data", "check", "x")
    assert outcome.code == 2
    assert "no training sample can be read" in outcome.out
    assert not commands_of(outcome.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere"], "no such file or folder"),
        (
            ["chek", "x"],
            "data: 'chek' is unknown; choose from check and index; did you mean 'check'",
        ),
        (["check"], "arguments are required: address"),
        ([], "arguments are required: address"),
        (["check", "digits", "--limit", "0"], "limit is 0; it must be at least 1"),
        (["check", "digits", "--labels", '["mood"]'], "mood"),
        (["check", "digits", "--jsn", "x"], "did you mean '--json'"),
    ],
)
def test_mistakes_are_named(
    refuse: Callable[..., str], here: Path, arguments: list[str], message: str
) -> None:
    assert message in refuse(["data", *arguments])


@pytest.mark.parametrize("bad", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b'text,label\n"x,1\n'])
def test_bad_tables_are_refused_with_a_sentence(
    refuse: Callable[..., str], here: Path, bad: bytes
) -> None:
    (here / "x.csv").write_bytes(bad)
    assert "x.csv" in refuse(["data", "check", "x.csv"])


def make_photographs(folder: Path) -> str:
    return write_classes(folder / "photos").name


def make_recordings(folder: Path) -> str:
    return making.write_sounds(folder / "recordings", 6).name


def make_clips(folder: Path) -> str:
    return making.write_clips(folder / "clips").name


def make_pairs(folder: Path) -> str:
    return str(write_pairs(folder / "pairs").relative_to(folder))


def make_paired(folder: Path) -> str:
    return write_paired(folder / "paired").name


def make_texts(folder: Path) -> str:
    return making.write_one_label(folder / "texts.csv", ("sky", "wood"), 40).name


def make_unlabelled(folder: Path) -> str:
    return making.write_photographs(folder / "many", 10, size=(64, 64)).name


def make_clouds(folder: Path) -> str:
    return making.write_clouds(folder / "clouds.npz").name


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    ("make", "last"),
    [
        (make_photographs, "predict"),
        (make_recordings, "predict"),
        (make_clips, "predict"),
        (make_pairs, "predict"),
        (make_paired, "predict"),
        (make_texts, "predict"),
        (make_clouds, "predict"),
        (make_unlabelled, "embed"),
    ],
)
def test_the_proposed_commands_run_unedited(
    call: Call, here: Path, make: Callable[[Path], str], last: str
) -> None:
    address = make(here)
    outcome = call("data", "check", address)
    assert outcome.code == 0, outcome
    commands = [shlex.split(line) for line in commands_of(outcome.out)]
    assert commands[-1][1] == last
    done = outcome
    for _, verb, *words in commands:
        done = call(verb, *words, *(["--limit", "2"] if verb in TRAINING else []))
        assert done.code == 0, (verb, words, done.err)
    run = here / commands[0][-1]
    assert run.is_dir()
    if last == "predict":
        written = run / "predictions.jsonl"
        text = written.read_text() if written.is_file() else done.out
        records = [json.loads(line) for line in text.splitlines()]
        assert records
        assert all(
            record["class"] in {item["class"] for item in record["top"]} for record in records
        )
    else:
        assert (run / "features.npz").is_file()
        assert list((run / "reconstructed").iterdir())
    # A second check proposes another folder for its runs.
    assert commands_of(call("data", "check", address).out)[0].endswith("_2")
