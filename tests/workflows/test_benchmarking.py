"""A bench: what is measured in which order, and what is written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from perceivers.bench.child import Request
from perceivers.bench.children import Measurement, Status
from perceivers.bench.settings import BenchSettings
from perceivers.errors import ConfigError, RunError
from perceivers.plan.estimates import Free
from perceivers.workflows import benchmarking
from perceivers.workflows.benchmarking import run_bench

MODELS = ("hip_nano", "perceiver_io_nano")


class Machine:
    """Stands in for processes: time and memory follow from the number of inputs."""

    def __init__(self, ends: dict[tuple[str, int, str], Status] | None = None) -> None:
        self.ends = ends or {}
        self.requests: list[Request] = []

    def __call__(self, request: Request, *, timeout: float, turn: int = 1) -> list[Measurement]:
        """Answer a request."""
        self.requests.append(request)
        slow = 4.0 if request.model == "perceiver_io_nano" else 1.0
        found = []
        for name in request.passes:
            peak = int(1e9 + slow * 1000 * request.size**2)
            status = self.ends.get((request.model, request.size, name), "measured")
            if peak > request.limit:
                status = "out of memory"
            fine = status == "measured"
            found.append(
                Measurement(
                    model=request.model,
                    size=request.size,
                    round=turn,
                    name=name,
                    status=status,
                    seconds=slow * turn if fine and request.timed else None,
                    repeats=1 if fine else 0,
                    peak_bytes=peak,
                    kept_bytes=request.size**2 * 8 if fine and name == "step" else None,
                    message="" if fine else f"it is {status}",
                )
            )
        return found


def bench(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: dict[tuple[str, int, str], Status] | None = None,
    **settings: Any,
) -> tuple[benchmarking.Bench, Machine, Sequence[str]]:
    machine = Machine(ends)
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.1, 0.1))
    monkeypatch.setattr(benchmarking, "run_child", machine)
    monkeypatch.setattr(benchmarking, "free_host_memory", lambda: Free(20e9, "the machine"))
    lines: list[str] = []
    given: dict[str, Any] = {"models": MODELS, "sizes": (64, 32), "peers": False}
    done = run_bench(BenchSettings(**{**given, **settings}), folder, report=lines.append)
    return done, machine, lines


def test_rounds_are_interleaved_and_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCEIVERS_LINEAR", "torch")
    done, machine, lines = bench(tmp_path / "made", monkeypatch, threads=2)
    order = [(request.size, request.model) for request in machine.requests]
    assert order == 2 * [(size, model) for size in (32, 64) for model in MODELS]
    assert machine.requests[0].limit == pytest.approx(0.95 * 20e9)
    assert lines[0] == ("round 1 of 2, 32 px, hip_nano: forward 1 s, 1 GB, step 1 s, 1 GB")
    record = json.loads((done.folder / "bench.json").read_text())
    assert record["settings"]["threads"] == 2
    assert record["settings"]["sizes"] == [64, 32]
    assert record["environment"]["PERCEIVERS_LINEAR"] == "torch"
    assert (record["reference"], record["precision"], record["device"]) == (
        "hip_nano",
        "float32",
        "cpu",
    )
    assert {"cpu", "torch", "threads", "cores"} <= record["machine"].keys()
    assert [model["name"] for model in record["models"]] == list(MODELS)
    assert len(record["measurements"]) == 16
    row = next(row for row in record["rows"] if row["model"] == MODELS[1] and row["size"] == 64)
    assert row["seconds"] == {"median": 6.0, "least": 4.0, "most": 8.0}
    assert row["speed"] == {"median": 0.25, "least": 0.25, "most": 0.25}
    assert (done.folder / "table.md").read_text() == done.table
    assert (done.folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert done.failures == []


def test_what_ran_out_of_memory_is_not_tried_again_or_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarking, "draw_throughput", lambda *given, **more: None)
    ends: dict[tuple[str, int, str], Status] = {
        ("hip_nano", 32, "step"): "out of memory",
        ("perceiver_io_nano", 32, "step"): "failed",
    }
    done, machine, _ = bench(tmp_path, monkeypatch, ends)
    tried = [(r.model, r.size, r.passes) for r in machine.requests]
    both = ("forward", "step")
    assert tried == [
        ("hip_nano", 32, both),
        ("perceiver_io_nano", 32, both),
        ("hip_nano", 64, ("forward",)),
        ("perceiver_io_nano", 64, both),
        ("hip_nano", 32, ("forward",)),
        ("perceiver_io_nano", 32, ("forward",)),
        ("hip_nano", 64, ("forward",)),
        ("perceiver_io_nano", 64, both),
    ]
    record = json.loads((tmp_path / "bench.json").read_text())
    guessed = [m for m in record["measurements"] if m["inferred"]]
    assert {(m["model"], m["size"], m["status"]) for m in guessed} == {
        ("hip_nano", 32, "out of memory"),
        ("hip_nano", 64, "out of memory"),
        ("perceiver_io_nano", 32, "failed"),
    }
    assert [(row.model, row.size) for row in done.failures] == [("perceiver_io_nano", 32)]
    assert "it is failed" in done.table


def test_a_memory_limit_shows_who_runs_out_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarking, "draw_throughput", lambda *given, **more: None)
    done, machine, _ = bench(tmp_path, monkeypatch, rounds=1, memory_limit=(4.0, 2.0))
    assert [(each.model, each.limit) for each in done.largest] == [
        ("hip_nano", 2e9),
        ("hip_nano", 4e9),
        ("perceiver_io_nano", 2e9),
        ("perceiver_io_nano", 4e9),
    ]
    sizes = [each.size for each in done.largest]
    assert sizes[0] > sizes[2]
    assert sizes[1] > sizes[3]
    assert machine.requests[0].limit == 4e9
    assert not machine.requests[-1].timed
    assert "The largest image that trains" in (tmp_path / "table.md").read_text()
    assert len(json.loads((tmp_path / "bench.json").read_text())["largest"]) == 4


def test_a_busy_machine_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, "BUSY", 0.0)
    monkeypatch.setattr(benchmarking, "draw_throughput", lambda *given, **more: None)
    _, _, lines = bench(tmp_path, monkeypatch, rounds=1)
    assert lines[0].startswith("note: other programs are running (load average 0.1 on ")


def test_what_cannot_be_measured_is_refused_before_anything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"memory_limit=32 GB, but the machine leaves 20.0 GB"):
        bench(tmp_path, monkeypatch, memory_limit=(32.0,))
    with pytest.raises(ConfigError, match="reference 'hip_16' is not measured; choose from"):
        bench(tmp_path, monkeypatch, reference="hip_16")
    with pytest.raises(ConfigError, match="model 'hip_nan' is unknown"):
        bench(tmp_path, monkeypatch, models=("hip_nan",))
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(RunError, match="holds an earlier bench"):
        bench(tmp_path, monkeypatch)
