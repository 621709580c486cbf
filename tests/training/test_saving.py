"""Saving beside the steps: a copy that later steps leave alone, one save at a time, errors told."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import Settings

from perceivers.errors import FolderLostError, RunError
from perceivers.training import checkpoints
from perceivers.training.checkpoints import CheckpointWriter, HostCopies
from perceivers.training.loop import Trainer
from perceivers.training.state import Progress, load_state, save_state
from perceivers.workflows.training import resume, train


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)


def test_a_copy_stays_as_it_was_and_takes_the_room_of_the_one_before() -> None:
    copies = HostCopies()
    live = {"a": torch.ones(3), "b": torch.arange(6.0).view(2, 3).t()}
    first = copies.take(live)
    live["a"].zero_()
    assert torch.equal(first["a"], torch.ones(3))
    assert torch.equal(first["b"], live["b"])
    places = {name: tensor.data_ptr() for name, tensor in first.items()}
    second = copies.take({**live, "c": torch.zeros(2, dtype=torch.int64)})
    assert torch.equal(second["a"], torch.zeros(3))
    assert {name: second[name].data_ptr() for name in places} == places
    assert second["c"].dtype is torch.int64
    grown = copies.take({"a": torch.ones(4)})
    assert {name: tuple(tensor.shape) for name, tensor in grown.items()} == {"a": (4,)}
    copies.wait()


def test_a_writer_waits_for_its_work_and_returns_its_error_once() -> None:
    writer, may_end, done = CheckpointWriter(), threading.Event(), []
    assert writer.finish() is None
    writer.start(lambda: (may_end.wait(10), done.append(1))[1])
    with pytest.raises(AssertionError):
        writer.start(lambda: None)
    assert not done
    may_end.set()
    assert writer.finish() is None
    assert done

    def fail() -> None:
        raise OSError("no room")

    writer.start(fail)
    assert str(writer.finish()) == "no room"
    assert writer.finish() is None


def test_a_full_disk_is_named_although_torch_writes(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("no such device here")
    save_state(tmp_path / "last.pt", Progress(step=1), {"model": {"w": torch.ones(3)}})
    temporary = tmp_path / f".last.pt.{os.getpid()}.tmp"
    temporary.symlink_to(full)
    with pytest.raises(OSError, match=r"No space left on device.*last\.pt"):
        save_state(tmp_path / "last.pt", Progress(step=2), {"model": {"w": torch.ones(100_000)}})
    assert load_state(tmp_path / "last.pt")[0].step == 1


# -- runs ------------------------------------------------------------------------------------------


class Disk:
    """Holds every save but the first up until a step was taken beside it.

    Args:
        monkeypatch: Undoes all this.
        ends: What happens to one of the saves then.
        save: Which one, from 1.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, ends: Any = lambda: None, save: int = 2
    ) -> None:
        self.steps: list[int] = []
        self.saved: list[int] = []
        self.ended = False
        self._stepped = threading.Event()
        original, log = checkpoints.save_state, Trainer._log

        def write(path: Path, progress: Progress, tensors: Any) -> None:
            if self.saved and progress.step < 6 and not self.ended:
                self._stepped.clear()
                assert self._stepped.wait(30), "no step was taken beside the save"
            if len(self.saved) == save - 1 and not self.ended:
                self.ended = True
                ends()
            original(path, progress, tensors)
            self.saved.append(progress.step)

        def spy(trainer: Trainer, *arguments: Any) -> None:
            log(trainer, *arguments)
            self.steps.append(trainer.progress.step)
            self._stepped.set()

        monkeypatch.setattr(checkpoints, "save_state", write)
        monkeypatch.setattr(Trainer, "_log", spy)


def run_settings(settings: Settings, **changes: Any) -> dict[str, Any]:
    return settings(steps=6, checkpoint_every=2, eval_every=6, ema=0.9, quiet=True, **changes)


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_a_save_that_fails_beside_the_steps_stops_the_run_with_one_message(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, fail)
    with pytest.raises(RunError, match=r"No space left .*; the last complete checkpoint is kept"):
        train(**run_settings(settings))
    assert disk.saved == [0]
    assert max(disk.steps) > 2, "the run went on while it was saved"
    run = tmp_path / "run"
    assert load_state(run / "checkpoints" / "last.pt")[0].step == 0
    # The model of a save comes before its state.
    assert json.loads((run / "last" / "config.json").read_text())["provenance"]["step"] == 2


@pytest.mark.slow
def test_steps_beside_a_save_change_nothing_of_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tmp_path / name for name in ("whole", "late", "cut")]
    train(**run_settings(settings, out=str(runs[0])))
    with monkeypatch.context() as patch:
        assert Disk(patch).saved == []
        train(**run_settings(settings, out=str(runs[1])))
    with monkeypatch.context() as patch:
        Disk(patch, fail, save=3)
        with pytest.raises(RunError, match="No space left"):
            train(**run_settings(settings, out=str(runs[2])))
    # What is resumed was copied at step 2, and written while step 3 changed the weights.
    assert load_state(runs[2] / "checkpoints" / "last.pt")[0].step == 2
    resume(runs[2], quiet=True)
    whole, *others = (
        {
            **load_file(run / "model" / "model.safetensors"),
            **flat(load_state(run / "checkpoints" / "last.pt")[1]),
        }
        for run in runs
    )
    for other in others:
        assert whole.keys() == other.keys()
        assert all(torch.equal(whole[key], other[key]) for key in whole)


def flat(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    entries = state.items() if isinstance(state, dict) else []
    return {k: v for key, entry in entries for k, v in flat(entry, f"{name}/{key}").items()}


@pytest.mark.slow
def test_a_folder_that_is_lost_beside_the_steps_is_rescued(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    Disk(monkeypatch, lambda: run.rename(tmp_path / "elsewhere"))
    with pytest.raises(FolderLostError, match=r"was moved to .*elsewhere.*perceivers resume"):
        train(**run_settings(settings, log_every=100))
    (rescued,) = tmp_path.glob("run.rescued-*")
    assert not run.exists()
    assert load_state(rescued / "checkpoints" / "last.pt")[0].step > 2
    assert load_state(tmp_path / "elsewhere" / "checkpoints" / "last.pt")[0].step == 0
