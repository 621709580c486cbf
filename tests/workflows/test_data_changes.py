"""Data that moved or changed under a run, and runs that are used from other folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import perceivers as pv
from perceivers.errors import CheckpointError, DataError, RunError
from perceivers.training.loop import Trainer
from perceivers.workflows.training import MOVABLE

SETTINGS: dict[str, Any] = {
    "model": "hip_nano",
    "data": "photos",
    "size": 8,
    "steps": 4,
    "batch_size": 4,
    "checkpoint_every": 2,
    "eval_every": 4,
    "log_every": 1,
    "device": "cpu",
    "quiet": True,
}


class Cut(Exception):  # noqa: N818 - a power cut
    """Ends a run at once."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: photographs, and a run on them that was killed after its first checkpoint."""
    project = tmp_path_factory.mktemp("made") / "project"
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (project / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = draws.integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(project / "photos" / name / f"{number}.png")
    log = Trainer._log

    def cut(self: Trainer, *args: Any) -> None:
        log(self, *args)
        if self.progress.step == 3:
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(Trainer, "_log", cut)
        with pytest.raises(Cut):
            pv.train(out="run", **SETTINGS)
    return project


@pytest.fixture
def project(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project in a place of its own, as if it had been made there; the folder is another."""
    copied = shutil.copytree(stopped, tmp_path / "project")
    for name in ("config.yaml", "addresses.json"):
        path = copied / "run" / name
        path.write_text(path.read_text().replace(str(stopped), str(copied)))
    monkeypatch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return copied


def steps(run: Path) -> int:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]


# -- addresses -------------------------------------------------------------------------------------


def test_settings_hold_absolute_addresses_and_cards_typed_ones(project: Path) -> None:
    run = project / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(project / "photos")
    typed = json.loads((run / "addresses.json").read_text())["data"]["typed"]
    assert typed == "photos"
    resumed = pv.resume(run, quiet=True)
    assert steps(run) == 4
    assert resumed.config.data == str(project / "photos")
    card = json.loads((run / "model" / "config.json").read_text())
    assert (card["provenance"]["data"], card["provenance"]["model"]) == ("photos", "hip_nano")
    assert str(project) not in (run / "model" / "README.md").read_text()


@pytest.mark.slow
def test_a_run_is_used_from_any_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # with its report
    pv.resume(project / "run", quiet=True)
    assert "Classification: hip_nano on photos" in (project / "run" / "report.html").read_text()
    assert pv.evaluate(project / "run", split="val").figures["samples"] == 2


def test_a_run_is_repeated_from_any_folder(project: Path) -> None:
    settings = yaml.safe_load((project / "run" / "config.yaml").read_text())
    task = settings.pop("task")
    again = pv.train(task=task, quiet=True, **{**settings, "out": "again", "steps": 1})
    assert again.config.data == str(project / "photos")


@pytest.mark.slow
def test_a_model_to_start_from_is_found_from_any_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(project)
        pv.finetune(out="tuned", **{**SETTINGS, "model": "run@last", "steps": 1})
    settings = yaml.safe_load((project / "tuned" / "config.yaml").read_text())
    assert settings["model"] == f"{project}/run@last"
    typed = json.loads((project / "tuned" / "addresses.json").read_text())["model"]["typed"]
    assert typed == "run@last"
    pv.resume(project / "tuned", quiet=True)


def test_a_project_that_moved_is_found_by_what_was_typed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = project.rename(project.with_name("moved"))
    with pytest.raises(
        RunError, match=r"data at .*/project/photos no longer exists; .*--data ADDRESS"
    ):
        pv.resume(moved / "run", quiet=True)
    monkeypatch.chdir(moved)
    assert pv.resume("run", quiet=True).config.data == str(moved / "photos")


def test_moved_data_are_given_and_compared(project: Path) -> None:
    (project / "photos").rename(project / "pictures")
    run = pv.resume(project / "run", quiet=True, data=str(project / "pictures"))
    assert run.config.data == str(project / "pictures")
    assert steps(project / "run") == 4
    pv.resume(project / "run", quiet=True)  # it is kept


def test_other_data_in_their_place_are_refused(project: Path) -> None:
    with pytest.raises(DataError, match=r"train: samples missing: 22 \(cat/0\.png"):
        pv.resume(project / "run", quiet=True, data="digits")
    assert steps(project / "run") == 3


def test_an_older_run_finds_relative_data_from_the_folder_it_was_started_in(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "run" / "addresses.json").unlink()
    path = project / "run" / "config.yaml"
    path.write_text(path.read_text().replace(f"{project}/photos", "photos"))
    with pytest.raises(RunError, match=r"the data at .*/elsewhere/photos no longer exists"):
        pv.resume(project / "run", quiet=True)
    monkeypatch.chdir(project)
    pv.resume("run", quiet=True)
    assert steps(project / "run") == 4


def test_what_may_move_is_what_has_an_address() -> None:
    from perceivers.training.launching import ADDRESSES

    assert set(MOVABLE) == set(ADDRESSES)


# -- contents --------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "removed": (
        lambda photos: (photos / "cat" / "3.png").unlink(),
        r"train: 22 samples before, 21 now; train: samples missing: 1 \(cat/3\.png\)",
    ),
    "added": (
        lambda photos: shutil.copy(photos / "cat" / "3.png", photos / "dog" / "20.png"),
        r"samples new: 1 \(dog/20\.png\)",
    ),
    "moved": (
        lambda photos: (photos / "cat" / "3.png").rename(photos / "dog" / "20.png"),
        r"missing: 1 \(cat/3\.png\); train: samples new: 1 \(dog/20\.png\)",
    ),
    "renamed": (
        lambda photos: (photos / "cat").rename(photos / "chat"),
        r"classes missing: cat; classes new: chat;",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
def test_changed_data_are_refused_unless_accepted(
    project: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, said = CHANGES[kind]
    run = project / "run"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    change(project / "photos")
    with pytest.raises(DataError, match=rf"{said}.*--accept_changed_data"):
        pv.resume(run, quiet=True)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    pv.resume(run, accept_changed_data=True)
    assert "the data changed, which was accepted" in capsys.readouterr().err
    assert steps(run) == 4
    (accepted,) = json.loads((run / "data.json").read_text())["accepted"]
    assert accepted["differences"]
    pv.resume(run, quiet=True)  # those are its data now


def test_data_that_did_not_change_are_not_rewritten(project: Path) -> None:
    record = project / "run" / "data.json"
    before = record.stat().st_mtime_ns
    pv.resume(project / "run", quiet=True, accept_changed_data=True)
    assert record.stat().st_mtime_ns == before


def test_an_older_run_resumes_says_so_and_keeps_a_record(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = project / "run"
    for name in ("data.json", "data_names.json.gz"):
        (run / name).unlink()
    (project / "photos" / "cat" / "3.png").unlink()
    pv.resume(run)
    assert "this run kept no record of its data" in capsys.readouterr().err
    (project / "photos" / "cat" / "4.png").unlink()
    with pytest.raises(DataError, match=r"missing: 1 \(cat/4\.png\)"):
        pv.resume(run, quiet=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 9, "splits": {}}'])
def test_a_damaged_record_is_said(project: Path, content: str) -> None:
    (project / "run" / "data.json").write_text(content)
    with pytest.raises((RunError, CheckpointError), match=r"data\.json"):
        pv.resume(project / "run", quiet=True)


def test_without_the_names_the_counts_are_compared(project: Path) -> None:
    (project / "run" / "data_names.json.gz").write_bytes(b"torn")
    (project / "photos" / "cat" / "3.png").unlink()
    with pytest.raises(DataError, match="22 samples before, 21 now; train: the names of the"):
        pv.resume(project / "run", quiet=True)
