"""Runs that do not fit into memory are refused before anything is written, with what would fit."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import perceivers as pv
from perceivers.errors import ConfigError
from perceivers.nn.chunking import use_chunks
from perceivers.plan.counting import StepRecorder
from perceivers.plan.estimates import Free
from perceivers.training.config import TrainConfig, build_config
from perceivers.training.run_folder import TASKS
from perceivers.workflows import starting
from perceivers.workflows.starting import EstimatedRun, check_memory
from perceivers.workflows.task_table import tasks

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"model": "hip_nano", "data": "digits", "out": "x", "device": "cpu"}


def configure(task: str = "classify", **changes: Any) -> TrainConfig:
    return build_config(TASKS[task], {**SETTINGS, **changes})


def check(config: TrainConfig, task: str = "classify") -> None:
    check_memory(config, tasks()[task].prepare(config), CPU, "float32")


def refusal(config: TrainConfig, task: str = "classify") -> str:
    with pytest.raises(ConfigError) as found:
        check(config, task)
    return str(found.value)


def subject(config: TrainConfig, task: str = "classify") -> EstimatedRun:
    prepared = tasks()[task].prepare(config)
    return EstimatedRun(config, prepared, CPU, "float32", prepared.task, prepared.specs)


@pytest.fixture
def without_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes several counts."""
    monkeypatch.setattr(starting, "_advise", lambda *_: "")


@pytest.fixture
def without_chunks() -> Iterator[None]:
    """Read long inputs as a whole; in chunks they take less memory than some shorter ones."""
    with use_chunks(on=False):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("without_advice")
def test_a_run_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        ConfigError, match=r"batch_size=512 on image 1 x 8 x 8 takes about 0\.\d GB"
    ):
        pv.train(**{**SETTINGS, "out": str(out), "batch_size": 512, "memory_limit": 0.1})
    assert not out.exists()


@pytest.mark.slow
def test_what_is_said_to_fit_fits() -> None:
    """Every remedy of the message, taken alone, passes the same check."""
    said = refusal(configure(batch_size=512, memory_limit=0.15))
    accumulate = re.search(r"--accumulate (\d+)", said)
    batch = re.search(r"--batch_size (\d+)", said)
    assert accumulate, said
    assert batch, said
    for change in ({"accumulate": int(accumulate[1])}, {"batch_size": int(batch[1])}):
        check(configure(**{"batch_size": 512, "memory_limit": 0.15, **change}))
    # Not so small as to be no advice.
    assert int(batch[1]) >= 32
    refusal(configure(batch_size=2 * int(batch[1]), memory_limit=0.15))


@pytest.mark.slow
@pytest.mark.usefixtures("without_chunks")
def test_sizes_that_are_said_to_fit_fit() -> None:
    settings = {"inputs": {"image": {"height": 48, "width": 48}}, "batch_size": 256}
    limit = 0.8 * subject(configure(**settings)).estimate().host / 1e9
    sizes = re.search(r"--inputs '(.*?)'", refusal(configure(**settings, memory_limit=limit)))
    assert sizes
    inputs = json.loads(sizes[1])
    assert inputs == {"image": {"height": 24, "width": 24}}
    check(configure(**{**settings, "inputs": inputs}, memory_limit=limit))


@pytest.mark.slow
def test_recomputing_is_named_where_it_helps() -> None:
    options = {"batch_size": 256, "memory_limit": 1e-3}
    whole, less = (
        subject(configure(**options, recompute=recompute)).estimate().host
        for recompute in (False, True)
    )
    assert less < 0.9 * whole
    limit = (whole + less / 0.9) / 2 / 1e9
    said = refusal(configure(**{**options, "memory_limit": limit}))
    assert "--recompute true" in said
    check(configure(**{**options, "memory_limit": limit, "recompute": True}))


@pytest.mark.slow
def test_a_model_that_cannot_fit_says_so() -> None:
    assert "Use a smaller model" in refusal(configure(memory_limit=1e-4))


@pytest.mark.slow
@pytest.mark.usefixtures("without_advice")
def test_the_check_can_be_switched_off() -> None:
    refusal(configure(batch_size=512, memory_limit=0.1))
    check(configure(batch_size=512, memory_limit=0))
    with pytest.raises(ConfigError, match="memory_limit"):
        configure(memory_limit=-1)


@pytest.mark.slow
@pytest.mark.usefixtures("without_advice")
def test_small_runs_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(*_: Any, **__: Any) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(starting, "free_host_memory", lambda: Free(8e9, "the machine"))
    with monkeypatch.context() as patch:
        patch.setattr(EstimatedRun, "estimate", count)
        check(configure())
        with pytest.raises(AssertionError, match="counted"):
            check(configure(batch_size=1024))
    check(configure(batch_size=1024))
    monkeypatch.setattr(starting, "free_host_memory", lambda: Free(2e8, "the machine"))
    assert "the machine leaves 0.2 GB" in refusal(configure(batch_size=1024))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_the_estimate_is_that_of_a_real_step(task: str) -> None:
    found = subject(configure(task, batch_size=32), task)
    counted = found.estimate()
    model = found.task.model
    batch = found.make_batch(32)
    known = [*found.task.parameters(), *found.task.buffers(), *batch.inputs.values()]
    with StepRecorder(known) as seen:
        found.task.train()(batch, torch.Generator().manual_seed(0)).total.backward()
    weights = sum(4 * p.numel() for p in model.parameters())
    loaders = 2 * 32 * found.sample_bytes
    saved = (3 + 2) * weights  # the whole state, and a file of the weights, beside the step
    assert counted.exact
    assert counted.host == pytest.approx(2 * weights + loaders + seen.peak + saved, rel=0.02)


@pytest.mark.slow
def test_workers_and_processes_add_to_it() -> None:
    alone = subject(configure()).estimate().host
    assert subject(configure(workers=4)).estimate().host > alone
    assert subject(configure(devices=2)).estimate().host == pytest.approx(2 * alone)
    assert subject(configure(ema=0.9)).estimate().host > alone
