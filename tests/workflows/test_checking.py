"""Checking data from Python, and what is proposed for data of every kind."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.workflows import making

from perceivers.cli.main import main
from perceivers.data import open_data
from perceivers.data.inspecting import (
    DataFacts,
    Repeats,
    SplitFacts,
    inspect_data,
)
from perceivers.data.inspecting_labels import LabelFacts, ModalityFacts, Spread, TargetFacts
from perceivers.errors import ConfigError, DataError
from perceivers.workflows.checking import check_data
from perceivers.workflows.proposing import choose_data_task, free_run, propose
from perceivers.workflows.proposing_setups import ALONE, choose_setup, size_input

LABELS = (LabelFacts("label", ("a", "b"), {"train": (50, 50)}, {"train": 0}),)


def around(value: float) -> Spread:
    number = float(value)
    return Spread(number, number, number, number)


def modality(kind: str, sizes: Mapping[str, float], **values: Any) -> ModalityFacts:
    return ModalityFacts(kind, 100, {k: around(v) for k, v in sizes.items()}, values, {})


def facts_of(modalities: Mapping[str, ModalityFacts], **others: Any) -> DataFacts:
    values: dict[str, Any] = {
        "splits": {"train": SplitFacts(100, 100, 0, {" + ".join(modalities): 100})},
        "modalities": modalities,
        "labels": LABELS,
        "targets": (),
        "broken": (),
        "repeats": Repeats({}, {}, 0, ()),
        "problems": (),
        "notes": (),
        "examples": {},
    }
    return DataFacts(**{**values, **others})


PICTURES = {"image": modality("image", {"width": 256, "height": 341})}
SOUND = modality(
    "audio",
    {"seconds": 1.0},
    **{"sample rate in Hz": {"44100": 60, "8000": 40}, "channels": {"2": 99, "1": 1}},
)
FILM = modality("video", {"seconds": 3.0, "frames": 75, "width": 144, "height": 100})


# -- the report ------------------------------------------------------------------------------------


def test_a_report_is_plain_data(tmp_path: Path) -> None:
    sounds, file = str(making.write_sounds(tmp_path / "sounds", 5)), tmp_path / "report.json"
    report = check_data(sounds, limit=4, json=file)
    assert json.loads(file.read_text()) == json.loads(json.dumps(report.to_json()))
    with pytest.raises(ConfigError, match=r"report\.json exists; pass --overwrite"):
        check_data(sounds, json=file)
    assert report.is_usable
    assert report.facts.splits["train"].looked_at < report.facts.splits["train"].samples == 8
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["usable"] is True
    assert plain["facts"]["modalities"]["audio"]["values"]["sample rate in Hz"] == {"16000": 4}
    assert plain["proposal"]["commands"][0].startswith("perceivers train --model hiera_nano_audio")


def test_columns_that_were_asked_for_are_read_and_proposed(tmp_path: Path) -> None:
    table = making.write_texts(tmp_path / "texts.csv")
    report = check_data(str(table), labels=["topic", "mood"])
    assert [column.name for column in report.facts.labels] == ["topic", "mood"]
    assert report.proposal is not None
    assert report.proposal.task == "multitask"
    words = shlex.split(report.proposal.commands[0])
    assert words[words.index("--labels") + 1] == '["topic", "mood"]'
    unlabelled = check_data(str(table)).proposal
    assert unlabelled is not None
    assert unlabelled.task == "mlm"
    assert "[MASK]" in shlex.split(unlabelled.commands[2])[-1]
    assert "--labels '[\"topic\"]' (available: topic, mood)" in unlabelled.hints[0]
    with pytest.raises(ConfigError, match="weather"):
        check_data(str(table), labels=["weather"])


def test_columns_of_numbers_are_hinted_at_as_targets(tmp_path: Path) -> None:
    making.write_photographs(tmp_path / "files", 12)
    rows = [
        f"files/{k}.png,{20 + k if k % 5 else ''},{1.5 + k / 50},{k % 3},{'ab'[k % 2]},name {k}"
        for k in range(12)
    ]
    table = tmp_path / "people.csv"
    table.write_text("\n".join(["image,age,height,kind,side,who", *rows]) + "\n")
    proposal = check_data(str(table)).proposal
    assert proposal is not None
    label, number = proposal.hints
    assert "choose its column: --labels '[\"kind\"]' (available: kind, side)" in label
    assert "choose its column: --targets '[\"age\"]' (available: age, height)" in number
    assert len(check_data(str(table), labels=["kind"]).facts.labels[0].classes) == 3
    assert check_data(str(table), targets=["age"]).facts.targets[0].unknown == 3


def test_columns_that_cannot_be_learned_are_not_hinted_at(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    rows = [f"text {k},name {k},{'' if k == 1 else 'ab'[k % 2]},a" for k in range(12)]
    table.write_text("\n".join(["text,name,some,same", *rows]) + "\n")
    proposal = check_data(str(table)).proposal
    assert proposal is not None
    assert proposal.hints == ()
    joined = check_data(f"{making.write_texts(tmp_path / 'a.csv')} + {tmp_path / 'a.csv'}").proposal
    assert joined is not None
    assert joined.hints == ()


def test_scenes_are_printed_as_tiles_with_classes_of_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for split, sizes in (("train", (6000, 300)), ("val", (500,))):
        offsets = np.cumsum([0, *sizes])
        xyz = rng.normal(size=(offsets[-1], 3)).astype(np.float32)
        np.savez(
            tmp_path / f"{split}.npz",
            offsets=offsets,
            xyz=xyz,
            label=rng.integers(2, size=len(xyz)),
        )
    assert main(["data", "check", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"{tmp_path}: 4 tiles of 3 scenes; counts by split and modality:" in printed
    assert "split tiles scenes checked broken points + classes of points" in lines
    assert "train 3 2 3 0 3" in lines
    assert "points points per scene 300 500 6,000" in lines
    assert "classes of points classes per scene 2 2 2" in lines
    assert "mask" not in printed.partition("proposed:")[0]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        check_data(str(tmp_path / "x"))


# -- tasks -----------------------------------------------------------------------------------------


def test_the_task_follows_from_masks_numbers_and_labels() -> None:
    mask = {"mask": modality("mask", {"width": 8, "height": 8})}
    numbers = (TargetFacts("age", 0.0, 1.0, 2.0, 0),)
    yes_no = tuple(LabelFacts(n, ("no", "yes"), {"train": (5, 5)}, {"train": 0}) for n in "ab")
    three = LabelFacts("c", ("x", "y", "z"), {"train": (5, 5, 5)}, {"train": 0})
    lonely = (LabelFacts("label", ("a", "b"), {"train": (9, 0)}, {"train": 0}),)
    assert choose_data_task(facts_of(PICTURES | mask, targets=numbers)) == "segment"
    assert choose_data_task(facts_of(PICTURES, targets=numbers)) == "regress"
    assert choose_data_task(facts_of(PICTURES, labels=yes_no)) == "multilabel"
    assert choose_data_task(facts_of(PICTURES, labels=(*yes_no, three))) == "multitask"
    assert choose_data_task(facts_of(PICTURES)) == "classify"
    assert choose_data_task(facts_of(PICTURES, labels=lonely)) == "pretrain"
    assert choose_data_task(facts_of(PICTURES, labels=())) == "pretrain"


def test_run_folders_are_named_after_the_data_and_never_taken_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_run("a/my photos/") == "runs/my_photos"
    assert free_run("x/pairs.csv") == "runs/pairs"
    assert free_run("hf:someone/things") == "runs/things"
    assert free_run("x-{000..012}.tar") == "runs/x_000_012"
    (tmp_path / "runs" / "pairs").mkdir(parents=True)
    (tmp_path / "runs" / "pairs_2").mkdir()
    assert free_run("x/pairs.csv") == "runs/pairs_3"


# -- sizes -----------------------------------------------------------------------------------------


def test_inputs_are_no_larger_than_the_data_or_the_room() -> None:
    assert size_input(PICTURES["image"], ALONE) == {"height": 64, "width": 64}
    small = modality("image", {"width": 30, "height": 40})
    assert size_input(small, ALONE) == {"height": 32, "width": 32}
    sizes = {"samples": 16384, "sample_rate": 16000, "channels": 1}
    assert size_input(SOUND, ALONE) == sizes
    film = {"frames": 16, "height": 64, "width": 64, "frame_rate": 5.33}
    assert size_input(FILM, ALONE) == film
    short = modality("video", {"seconds": 0.2, "frames": 5, "width": 16, "height": 16})
    assert size_input(short, ALONE) == {"frames": 4, "height": 16, "width": 16, "frame_rate": 20.0}
    assert size_input(modality("bytes", {"bytes": 70}), ALONE) == {"length": 128}
    assert size_input(modality("bytes", {"bytes": 7000}), ALONE) == {"length": 256}
    assert size_input(modality("points", {"points": 137}), ALONE) == {"points": 144}


@pytest.mark.parametrize(
    ("modalities", "model"),
    [
        (PICTURES, "hiera_nano"),
        ({"image": modality("image", {"width": 28, "height": 28})}, "perceiver_io_tiny"),
        ({"audio": SOUND}, "hiera_nano_audio"),
        ({"video": FILM}, "hiera_nano_video"),
        ({"bytes": modality("bytes", {"bytes": 100})}, "hiera_nano_text"),
        ({"points": modality("points", {"points": 100})}, "perceiver_tiny"),
        ({"video": FILM, "audio": SOUND}, "hiera_nano_audio"),
        ({"video": FILM, "bytes": modality("bytes", {"bytes": 9})}, "perceiver_io_tiny"),
        ({"left": PICTURES["image"]}, "perceiver_io_tiny"),
        ({"array": modality("array", {}, shape={"3x2": 9})}, "perceiver_io_tiny"),
    ],
)
def test_the_model_suits_the_modalities(modalities: Any, model: str) -> None:
    setup = choose_setup(facts_of(modalities), "label", cuda=False)
    assert setup.model == model
    assert setup.reason.endswith(".")


@pytest.mark.parametrize(
    ("modalities", "recipe"),
    [
        (PICTURES, ""),
        ({"audio": SOUND}, ""),
        ({"bytes": modality("bytes", {"bytes": 100})}, "text_multitask"),
        ({"video": FILM, "audio": SOUND}, ""),
    ],
)
def test_several_columns_are_answered_by_a_model_that_can(modalities: Any, recipe: str) -> None:
    setup = choose_setup(facts_of(modalities), "columns", cuda=False)
    assert (setup.model, setup.recipe) == ("perceiver_io_tiny", recipe)
    assert set(setup.options["inputs"]) == set(modalities)


def test_films_with_sound_are_heard_unless_silent_or_incomplete() -> None:
    both = {"video": FILM, "audio": SOUND}
    heard = choose_setup(facts_of(both), "label", cuda=False)
    assert heard.options["modalities"] == ["audio"]
    silent = {"video": FILM, "audio": replace(SOUND, flags={"silent": 51})}
    seen = choose_setup(facts_of(silent), "label", cuda=False)
    assert (seen.model, seen.options["modalities"]) == ("hiera_nano_video", ["video"])
    some = {"train": SplitFacts(9, 9, 0, {"video": 4, "audio + video": 5})}
    for setup in (
        choose_setup(facts_of(both, splits=some), "label", cuda=False),
        choose_setup(facts_of(both), "label", cuda=False, together=True),
        choose_setup(facts_of(both), "unlabelled", cuda=False),
    ):
        assert setup.model == "perceiver_io_tiny"
        assert set(setup.options["inputs"]) == {"audio", "video"}
        assert "modalities" not in setup.options


def test_a_gpu_is_given_more_work() -> None:
    for modalities in (
        PICTURES,
        {"audio": SOUND},
        {"video": FILM},
        {"audio": SOUND, "video": FILM},
    ):
        facts = facts_of(modalities)
        for purpose in ("label", "unlabelled"):
            small, large = (choose_setup(facts, purpose, cuda=cuda) for cuda in (False, True))
            assert large.options["steps"] > 3 * small.options["steps"]


def test_batches_are_no_larger_than_the_training_data() -> None:
    few = facts_of(PICTURES, splits={"train": SplitFacts(7, 7, 0, {"image": 7})})
    assert choose_setup(few, "label", cuda=False).options["batch_size"] == 7


# -- proposals -------------------------------------------------------------------------------------


def test_unbalanced_broken_and_mostly_unlabelled_data_change_the_commands(tmp_path: Path) -> None:
    dataset = open_data(str(making.write_sounds(tmp_path / "sounds", 5)))
    facts = inspect_data(dataset)
    plain = propose(facts, dataset).commands
    assert "class_weights" not in plain[0]
    assert "max_bad_share" not in plain[0]
    rare = (LabelFacts("label", ("a", "b"), {"train": (40, 10)}, {"train": 0}),)
    changed = propose(facts_of(facts.modalities, labels=rare), dataset).commands
    assert "--loss.class_weights balanced" in changed[0]
    broken = {"train": SplitFacts(100, 100, 20, {"audio": 100})}
    changed = propose(facts_of(facts.modalities, splits=broken), dataset).commands
    assert "--max_bad_share 0.35" in changed[0]
    for bad, flag in ((2, None), (3, "0.1"), (4, "0.11"), (5, "0.13"), (99, "1.0")):
        splits = {"train": SplitFacts(100, 100, bad, {"audio": 100})}
        words = shlex.split(propose(facts_of(facts.modalities, splits=splits), dataset).commands[0])
        found = words[words.index("--max_bad_share") + 1] if "--max_bad_share" in words else None
        assert found == flag, bad
    columns = tuple(
        LabelFacts(name, ("no", "yes"), {"train": (5, 5)}, {"train": 90}) for name in "ab"
    )
    first, second, *_ = propose(facts_of(facts.modalities, labels=columns), dataset).commands
    assert first.startswith("perceivers pretrain --model hiera_nano_audio ")
    assert first.endswith("_pretrained")
    assert second.startswith(f"perceivers finetune --model {shlex.split(first)[-1]} ")
    assert "--task multilabel" in second


def test_addresses_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    making.write_sounds(tmp_path / "it's mine", 5)
    proposal = check_data("it's mine").proposal
    assert proposal is not None
    words = shlex.split(proposal.commands[0])
    assert words[words.index("--data") + 1] == "it's mine"
    assert Path(shlex.split(proposal.commands[-1])[-1]).is_file()


@pytest.mark.slow
def test_arrays_are_predicted_from_their_own_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    np.savez(path, image=images, label=np.arange(20) % 2)
    proposal = check_data(str(path)).proposal
    assert proposal is not None
    assert shlex.split(proposal.commands[-1])[3] == str(path)
    assert len(check_data("digits").proposal.commands) == 2  # pyright: ignore[reportOptionalMemberAccess]
