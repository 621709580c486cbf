"""Two processes on gloo: the losses of one, exact resuming, any strategy to any other, death."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from perceivers.errors import CheckpointError
from perceivers.training.run_folder import RunFolder
from perceivers.training.state import load_state
from perceivers.workflows import training
from perceivers.workflows.training import resume, train

DRIVER = Path(__file__).with_name("shared_runs.py")
ALL = {"ema": 0.9, "recompute": True, "accumulate": 2}
TOLERANCE = 1e-5


def settings(out: Path, **changes: Any) -> dict[str, Any]:
    """A classifier of digits on eight samples per step, by two processes or one."""
    devices = changes.pop("devices", 2)
    return {
        "model": "hip_nano",
        "data": "digits",
        "out": str(out),
        "steps": 4,
        "batch_size": 8 // devices,
        "devices": devices,
        "log_every": 1,
        "eval_every": 2,
        "checkpoint_every": 2,
        "device": "cpu",
        **changes,
    }


def start(*arguments: str, launcher: tuple[str, ...] = (), **extra: str) -> subprocess.Popen[str]:
    hidden = {"LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def share(*jobs: dict[str, Any]) -> str:
    """Run jobs in two processes, one after the other; return what the main one printed."""
    process = start(str(DRIVER), json.dumps(jobs))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run)]


def assert_alike(run: Path, other: Path, tolerance: float = TOLERANCE) -> None:
    """Same losses in training and validation, and saved models of the same names and values."""
    assert losses(run) == pytest.approx(losses(other), abs=tolerance, rel=tolerance)
    a, b = (load_file(path / "last" / "model.safetensors") for path in (run, other))
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page of figures."""
    monkeypatch.setattr("perceivers.workflows.run.write_run_report", lambda folder: folder.report)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    train(**settings(tmp_path / "one", devices=1), quiet=True)
    train(**settings(tmp_path / "other", devices=1, seed=1), quiet=True)
    share({"verb": "train", **settings(tmp_path / "two")})
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert losses(tmp_path / "one") != pytest.approx(losses(tmp_path / "other"), abs=1e-2)
    validation = [record for record in records(tmp_path / "two") if record["split"] == "val"]
    assert [record["top1"] for record in validation] == pytest.approx(
        [record["top1"] for record in records(tmp_path / "one") if record["split"] == "val"]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "fsdp"},
        {"strategy": "ddp", **ALL},
        {"strategy": "fsdp", **ALL},
        {"strategy": "fsdp", "optimizer": {"name": "lamb"}},
        {"strategy": "fsdp", "optimizer": {"name": "muon"}},
        {"strategy": "fsdp", "model": "perceiver_nano", "recompute": True},
        {"strategy": "fsdp", "model": "perceiver_io_nano"},
        {"strategy": "fsdp", "model": "hiera_nano", "size": 16, "recompute": True},
        {"verb": "pretrain", "strategy": "fsdp", "model": "hiera_nano", "size": 32, "ema": 0.9},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_any_strategy_computes_what_one_process_computes(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = dict(changes)
    verb = changes.pop("verb", "train")
    share({"verb": verb, **settings(tmp_path / "two", **changes)})
    alone = {name: value for name, value in changes.items() if name != "strategy"}
    getattr(training, verb)(**settings(tmp_path / "one", devices=1, **alone), quiet=True)
    assert_alike(tmp_path / "two", tmp_path / "one", 1e-4 if "optimizer" in changes else TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_of_two_that_was_stopped_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, strategy: str
) -> None:
    changes = {"strategy": strategy, "ema": 0.9, "model_options": {"drop_path_rate": 0.3}}
    out = share(
        {"verb": "train", **settings(tmp_path / "whole", **changes)},
        {"verb": "train", **settings(tmp_path / "cut", **changes), "die": "terminate"},
    )
    assert "stopped at step 3" in out  # process 1 was asked to stop, and both did
    share({"verb": "resume", "run": str(tmp_path / "cut")})
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for which in ("model", "last"):
        a, b = (load_file(tmp_path / run / which / "model.safetensors") for run in ("whole", "cut"))
        assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("first", "then"), [("fsdp", "one"), ("one", "ddp"), ("ddp", "fsdp"), ("one", "fsdp")]
)
def test_a_checkpoint_resumes_under_another_strategy(tmp_path: Path, first: str, then: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(**settings(whole, devices=1, ema=0.9), quiet=True)
    begun = {"limit": 2, "ema": 0.9}
    if first == "one":
        train(**settings(cut, devices=1, **begun), quiet=True)
    else:
        share({"verb": "train", **settings(cut, strategy=first, **begun)})
    text = (cut / "config.yaml").read_text()
    (cut / "config.yaml").write_text(text.replace("limit: 2", "limit: 0"))
    if then == "one":
        resume(cut, devices=1, strategy="auto", batch_size=8, quiet=True)
    else:
        changes = {"devices": 2, "strategy": then, "batch_size": 4}
        share({"verb": "resume", "run": str(cut), **changes})
    assert records(cut)[-1]["step"] == 4
    # The first two steps had the schedule of a shorter run.
    assert losses(cut)[0] == pytest.approx(losses(whole)[0], abs=TOLERANCE)
    folder = RunFolder(cut)
    assert folder.pointer.is_file() is (then == "fsdp")
    assert folder.checkpoint.is_file() is (then != "fsdp")
    assert len(list(folder.pointer.parent.iterdir())) == (2 if then == "fsdp" else 1)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_damaged_parts_are_refused(tmp_path: Path) -> None:
    share({"verb": "train", **settings(tmp_path / "run", strategy="fsdp", steps=2)})
    parts = sorted((tmp_path / "run" / "checkpoints" / "step_2").glob("*.safetensors"))
    assert len(parts) == 2
    content = parts[0].read_bytes()
    parts[0].write_bytes(content[: len(content) // 2])
    alone = {"devices": 1, "strategy": "auto", "batch_size": 8, "quiet": True}
    with pytest.raises(CheckpointError, match="step_2 is not a complete training checkpoint"):
        resume(tmp_path / "run", **alone)
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=r"tensors are missing or too short"):
        resume(tmp_path / "run", **alone)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_whose_folder_is_lost_save_their_state_together(
    tmp_path: Path, strategy: str
) -> None:
    start_job = settings(tmp_path / "run", strategy=strategy, ema=0.9, steps=6)
    process = start(str(DRIVER), json.dumps([{"verb": "train", **start_job, "die": "move"}]))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "was moved to" in out
    assert "after 4 steps" in out
    (rescued,) = tmp_path.glob("run.rescued-*")
    assert not (tmp_path / "run").exists()
    assert RunFolder(rescued).pointer.is_file() is (strategy == "fsdp")
    resume(rescued, devices=1, strategy="auto", batch_size=8, quiet=True)
    assert [record["step"] for record in records(rescued) if record["split"] == "train"] == [
        *range(1, 7)
    ]


def command_line(out: Path, **changes: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in settings(out, **changes).items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("raise", "process 1 of 2 failed: .*KeyError: 'a bug of process 1'"),
        ("refuse", "process 1 of 2 failed: process 1 does not like this"),
        ("kill", "process 1 of 2 failed: it was ended by signal 9"),
        ("nan", "the loss is nan at step 3; the last finite state, after 2 steps, is kept in"),
    ],
)
def test_a_process_that_dies_ends_the_other_with_its_message(
    tmp_path: Path, way: str, message: str
) -> None:
    began = time.monotonic()
    process = start(
        str(DRIVER), "cli", "train", *command_line(tmp_path / "run", steps=1000), DIE=way
    )
    _, err = process.communicate(timeout=240)
    assert time.monotonic() - began < 200  # most of it starting up, on a busy machine
    assert process.returncode == 2, err
    assert err.count("perceivers: ") == 1, err
    assert re.search(message, err, re.DOTALL), err


@pytest.mark.slow
def test_when_the_main_process_is_killed_the_others_end_with_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("-m", "perceivers", "train", "--quiet", *command_line(run, steps=100_000))
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.is_file() and metrics.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    # Ends when the last process that writes to it has ended.
    _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if not line.startswith("digits: ")]
    assert lines == ["perceivers: process 0 of 2 ended without a message; all others end too"]


@pytest.mark.slow
def test_a_mistake_is_said_once_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    process = start(str(DRIVER), "cli", "train", *command_line(tmp_path / "run"))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert out == ""
    assert err.count("already holds a run or other files") == 1
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_same_command_runs_under_torchrun_and_resumes_without_it(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0")
    line = command_line(tmp_path / "run", limit=2)
    line.remove("--devices=2")
    process = start("-m", "perceivers", "train", *line, "--quiet", launcher=launcher[:-1])
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.count("run: ") == 1
    folder = RunFolder(tmp_path / "run")
    assert folder.read_config()[1].devices == 2
    assert load_state(folder.checkpoint)[0].step == 2
    process = start("-m", "perceivers", "resume", str(folder.path), "--quiet")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
