"""Bake-offs: who competes, who goes on, what a stop leaves, what is reported."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import perceivers as pv
from perceivers.errors import ConfigError, RunError
from perceivers.report import style
from perceivers.training.loop import Interrupted, Trainer
from perceivers.workflows import arms, bakeoff, candidates
from perceivers.workflows.arms import Arm, Outcome
from perceivers.workflows.bakeoff_state import BakeoffSettings, read_outcomes
from perceivers.workflows.candidates import (
    Entrant,
    Study,
    list_candidates,
    small_models,
    study_data,
)

MODELS = ["hip_nano", "hip_tiny", "perceiver_io_nano", "perceiver_io_tiny", "perceiver_nano"]
# Validation top-1 of each in a rung: later rungs change who is ahead.
VALUES = {
    "hip_nano": (0.6, 0.9),
    "hip_tiny": (0.6, 0.6),
    "perceiver_io_nano": (0.3, 0.0),
    "perceiver_io_tiny": (0.8, 0.7),
    "perceiver_nano": (0.2, 0.0),
}
SIZES = dict(zip(MODELS, (10, 20, 30, 40, 50), strict=True))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace training by a table of results; return the list of what was trained."""
    done: list[str] = []

    def examine(candidate: Any, task: str, address: str, *, timed: bool) -> Entrant:
        size = SIZES[candidate.model]
        entry = Entrant(candidate.name, candidate.slug, candidate.settings, parameters=size)
        return replace(entry, step_seconds=0.01 * size / 10, eval_seconds=0.01) if timed else entry

    def describe(arm: Arm, metrics: Mapping[str, Any], wall: float) -> Outcome:
        model, rung = arm.settings["model"], int(arm.name[4]) - 1
        value, steps = VALUES[model][rung], arm.settings["steps"]
        return Outcome(
            arm.name,
            value=value,
            steps=steps,
            best_step=steps,
            parameters=SIZES[model],
            seconds=steps * 0.02 * SIZES[model] / 10,
            metrics={"val": {"top1": value}},
            curve=[(steps // 2, 1.0, value / 2), (steps, 2.0, value)],
        )

    monkeypatch.setattr(bakeoff, "examine", examine)
    monkeypatch.setattr(arms, "_train", lambda arm: done.append(arm.name))
    monkeypatch.setattr(arms, "_describe", describe)
    # There are no weights to be tested.
    monkeypatch.setattr(bakeoff, "study_data", lambda *a, **k: replace(digits(), splits=("val",)))
    monkeypatch.setattr(style, "DPI", 30)
    return done


@cache
def digits() -> Study:
    return study_data("digits")


def compete(folder: Path, **options: Any) -> bakeoff.BakeoffResult:
    length = {} if "minutes" in options else {"steps": 10}
    options = {"models": MODELS, "rates": [1e-3], **length, **options}
    return pv.bakeoff("digits", out=folder, **options)


def test_the_best_on_validation_go_on_and_the_last_rung_decides(
    trained: list[str], tmp_path: Path
) -> None:
    lines: list[str] = []
    done = compete(tmp_path / "a", report=lines.append)
    first, second = done.state.rungs
    slugs = {entry.name.partition(",")[0]: entry.slug for entry in done.state.entries}
    assert list(first.steps.values()) == [10] * 5
    # 0.6 twice: the smaller model goes on.
    assert first.kept == [slugs["perceiver_io_tiny"], slugs["hip_nano"]]
    assert second.steps == dict.fromkeys(first.kept, 30)
    assert done.winner.slug == slugs["hip_nano"]
    assert "--steps 120" in done.state.command
    assert "--model hip_nano --data digits" in done.state.command
    assert len(trained) == 7 == sum("rung" in line for line in lines)
    table = (tmp_path / "a" / "table.md").read_text()
    ranked = [line.split(" | ")[0] for line in table.splitlines() if "lr 0.001" in line]
    assert ranked[:2] == ["| **hip_nano, lr 0.001**", "| perceiver_io_tiny, lr 0.001"]
    assert "| constant: most common class |" in table
    assert table == done.table
    with Image.open(tmp_path / "a" / "bakeoff.png") as image:
        assert image.width > 200


def test_a_model_is_looked_at_once_whatever_its_learning_rates(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = bakeoff.examine, []

    def examine(candidate: Any, *args: Any, **options: Any) -> Entrant:
        seen.append(candidate.name)
        entry = plain(candidate, *args, **options)
        # Every measurement is another one.
        return replace(entry, step_seconds=entry.step_seconds / len(seen))

    monkeypatch.setattr(bakeoff, "examine", examine)
    done = compete(tmp_path / "a", minutes=0.5, models=MODELS[:2], rates=[1e-3, 3e-3])
    assert seen == ["hip_nano, lr 0.001", "hip_tiny, lr 0.001"]
    steps = list(done.state.rungs[0].steps.values())
    assert steps[0] == steps[1]
    assert steps[2] == steps[3]


@pytest.mark.slow
def test_time_is_shared_equally_and_steps_follow_from_it(
    trained: list[str], tmp_path: Path
) -> None:
    done = compete(tmp_path / "a", minutes=0.5)
    first, second = done.state.rungs
    assert (first.seconds, second.seconds) == (3.0, 7.5)
    # Steps of 0.01 to 0.05 s; then twice as long, as the first rung has shown.
    assert [round(count / 10) for count in first.steps.values()] == [30, 15, 10, 7, 6]
    for slug, count in second.steps.items():
        step = 0.02 * done.state.entry(slug).parameters / 10
        assert count * step == pytest.approx(7.5 - 5 * 0.01, abs=step)


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 5])
def test_the_same_call_continues_where_it_was_stopped(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = compete(tmp_path / "whole")
    order = list(trained)
    trained.clear()

    def stop(arm: Arm) -> None:
        if len(trained) == at:
            raise Interrupted("stopped")
        trained.append(arm.name)

    with monkeypatch.context() as patch:
        patch.setattr(arms, "_train", stop)
        with pytest.raises(Interrupted):
            compete(tmp_path / "cut")
    done = compete(tmp_path / "cut")
    assert trained == order  # nobody twice
    assert done.state == whole.state
    compete(tmp_path / "cut")
    assert trained == order


@pytest.mark.slow
def test_who_diverges_or_does_not_fit_loses_and_says_why(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bakeoff.examine

    def examine(candidate: Any, *args: Any, **options: Any) -> Entrant:
        entry = plain(candidate, *args, **options)
        return replace(entry, reason="takes 9 GB") if candidate.model == "hip_tiny" else entry

    def diverge(arm: Arm) -> None:
        trained.append(arm.name)
        if arm.settings["model"] == "perceiver_io_tiny":
            raise RunError("the loss is nan at step 3")
        if arm.settings["model"] == "perceiver_nano":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(bakeoff, "examine", examine)
    monkeypatch.setattr(arms, "_train", diverge)
    done = compete(tmp_path / "a")
    assert done.winner.name.startswith("hip_nano")
    for words in ("takes 9 GB", "the loss is nan at step 3", "out of memory"):
        assert words in done.table
    trained.clear()
    compete(tmp_path / "a")
    assert trained == []  # what failed is not tried again
    with pytest.raises(RunError, match=r"every candidate failed in rung 1.*nan at step 3"):
        compete(tmp_path / "b", models=["perceiver_io_tiny"])
    with pytest.raises(ConfigError, match=r"none of 1 candidates fits digits.*takes 9 GB"):
        compete(tmp_path / "c", models=["hip_tiny"])


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), RunError("the disk"), KeyError("x")], ids=str
)
def test_what_says_nothing_of_a_candidate_stops_everything(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    if isinstance(error, RunError):
        error.__cause__ = OSError(28, "No space left on device")

    def fail(arm: Arm) -> None:
        raise error

    monkeypatch.setattr(arms, "_train", fail)
    with pytest.raises(type(error)):
        compete(tmp_path / "a")
    assert not (tmp_path / "a" / "results").exists()


@pytest.mark.slow
def test_other_settings_do_not_continue_and_other_files_are_kept(
    trained: list[str], tmp_path: Path
) -> None:
    compete(tmp_path / "a")
    with pytest.raises(RunError, match=r"begun with steps=10, but this call has 20"):
        compete(tmp_path / "a", steps=20)
    assert compete(tmp_path / "a", steps=20, overwrite=True).state.rungs[0].seconds == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="already holds other files"):
        compete(tmp_path / "b", overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 1.0, "steps": 5}, "give one of them"),
        ({}, "give one of them"),
        ({"steps": 5, "rates": []}, "at least one learning rate"),
        ({"steps": 5, "settings": {"devices": 2}}, "settings hold 'devices'"),
        ({"steps": 5, "reduce": 1}, "reduce is 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BakeoffSettings(data="digits", **options)


def test_candidates_hold_the_proposal_and_every_small_family(made: Path) -> None:
    models = small_models(["bytes"])
    assert {"hip_nano", "hip_tiny", "hiera_nano_text", "perceiver_io_tiny"} <= {*models}
    assert not any(word in name for name in models for word in ("flow", "mae", "224", "audio"))
    assert "hiera_nano_text" not in small_models(["image"])
    assert "entity_set_nano" in small_models(["points"])
    study = study_data(str(made / "topics.csv"))
    listed = list_candidates(study, rates=[1e-3, 3e-3], settings={"ema": 0.5})
    assert listed[0].name.startswith("proposed: ")
    assert len(listed) == 1 + 2 * (len(models) + 1)  # perceiver_io_tiny also with a short trunk
    assert len({candidate.slug for candidate in listed}) == len(listed)
    for candidate in listed:
        # All read the data as the proposal does.
        assert candidate.settings["inputs"] == listed[0].settings["inputs"]
        assert candidate.settings["ema"] == 0.5
    with pytest.raises(ConfigError, match="did you mean 'hip_nano'"):
        list_candidates(study, models=["hip_nono"])


@pytest.mark.slow
def test_whether_a_candidate_fits_is_found_by_building_it() -> None:
    study = digits()
    nano, other = list_candidates(study, models=["hip_nano", "hiera_nano_text"], rates=[1e-3])
    found = candidates.examine(nano, study.task, "digits", timed=True)
    assert not found.reason
    assert found.parameters > 100_000
    assert found.step_seconds > 0
    assert found.eval_seconds > 0
    assert candidates.examine(other, study.task, "digits", timed=False).reason
    large = list_candidates(study, models=["hip_nano"], settings={"memory_limit": 1e-4})[0]
    assert "GB" in candidates.examine(large, study.task, "digits", timed=False).reason


@pytest.mark.slow
def test_losses_of_other_masks_do_not_compete() -> None:
    study = study_data("digits", task="pretrain")
    listed = list_candidates(
        study, models=["hiera_nano", "hip_nano"], rates=[1e-3], settings={"size": 32}
    )
    found = [candidates.examine(each, study.task, "digits", timed=False) for each in listed]
    assert [entry.reason for entry in found] == ["", ""]
    hiera, hip = candidates.comparable(found)
    assert "units masks" in hiera.reason
    assert not hip.reason
    assert candidates.comparable([found[0]]) == [found[0]]


@pytest.mark.slow
def test_a_bake_off_on_digits_repeats_itself_and_survives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "models": ["hip_nano", "perceiver_io_nano"],
        "steps": 10,
        "reduce": 2,
        "settings": {"batch_size": 16},
    }
    whole = pv.bakeoff("digits", out=tmp_path / "whole", **options)
    log = Trainer._log

    def spy(self: Trainer, *args: Any) -> None:
        log(self, *args)
        if self.progress.step == 5 and "rung2" in str(self.folder.path):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", spy)
        with pytest.raises(Interrupted):
            pv.bakeoff("digits", out=tmp_path / "cut", **options)
    done = pv.bakeoff("digits", out=tmp_path / "cut", **options)

    def results(found: bakeoff.BakeoffResult) -> list[Any]:
        read = read_outcomes(found.state, found.folder)
        return [
            {
                slug: (o.metrics, o.steps, [(s, v) for s, _, v in o.curve])
                for slug, o in rung.items()
            }
            for rung in read
        ]

    assert results(done) == results(whole)
    assert done.state.test == whole.state.test
    assert len(results(whole)) == 2
    # Metrics of the winner are those of its run, which is kept.
    again = pv.evaluate(done.run, split="test").figures
    assert {k: v for k, v in again.items() if k in done.state.test} == done.state.test
    record = json.loads((tmp_path / "cut" / "bakeoff.json").read_text())
    assert record["winner"] == done.winner.slug
    assert record["constant"]["test"] < 0.2
