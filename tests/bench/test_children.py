"""A measurement has a process of its own; however that ends, the parent says what happened."""

import json
import sys
from typing import Any

import pytest
import torch

from perceivers.bench import child, children
from perceivers.bench.child import Request, peak_memory
from perceivers.bench.children import run_child
from perceivers.models.hip import encoder


def request(**changes: Any) -> Request:
    given: dict[str, Any] = {
        "model": "hip_nano",
        "size": 16,
        "batch_size": 2,
        "passes": ("forward", "step"),
        "device": "cpu",
        "precision": "float32",
        "threads": 1,
        "limit": 8e9,
    }
    return Request(**{**given, **changes})


def answers(*found: dict[str, Any]) -> str:
    """Return a program that answers so."""
    return "; ".join(f"print({json.dumps(each)!r})" for each in found) or "pass"


FORWARD = {
    "status": "measured",
    "pass": "forward",
    "seconds": 0.5,
    "repeats": 2,
    "peak": 10,
    "parameters": 3,
    "linear": None,
}
KEPT = {"status": "kept", "kept": 7}


@pytest.mark.parametrize(
    ("program", "statuses", "message"),
    [
        (answers(FORWARD, {**FORWARD, "pass": "step"}, KEPT), ("measured", "measured"), ""),
        (
            answers(FORWARD, {"status": "out of memory", "peak": 11, "message": "too much"}),
            ("measured", "out of memory"),
            "too much",
        ),
        (
            answers({"status": "failed", "message": "ValueError: no"}) + "; raise SystemExit(1)",
            ("failed", "failed"),
            "ValueError: no",
        ),
        ("import sys; sys.exit('it broke')", ("failed", "failed"), "it broke"),
        ("raise SystemExit(3)", ("failed", "failed"), "the process ended with status 3"),
        ("import os; os.abort()", ("failed", "failed"), "the process ended with signal 6"),
        (
            "import os; os.kill(os.getpid(), 9)",
            ("out of memory", "out of memory"),
            "the system killed the process, as it does when memory runs out",
        ),
        (
            answers(FORWARD) + "; import sys, time; sys.stdout.flush(); time.sleep(60)",
            ("measured", "too slow"),
            "it took more than 0.3 s (--timeout)",
        ),
    ],
)
def test_every_end_of_a_process_has_a_status_and_a_message(
    program: str,
    statuses: tuple[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "PROGRAM", program.replace("{", "{{").replace("}", "}}"))
    timeout = 0.3 if "sleep" in program else 30
    found = run_child(request(), timeout=timeout, turn=2)
    assert [each.name for each in found] == ["forward", "step"]
    assert tuple(each.status for each in found) == statuses
    assert found[1].message == message
    assert {(each.model, each.size, each.round) for each in found} == {("hip_nano", 16, 2)}
    if statuses[0] == "measured":
        assert (found[0].seconds, found[0].peak_bytes, found[0].repeats) == (0.5, 10, 2)
        assert found[0].parameters == 3
    assert [each.kept_bytes for each in found] == [None, 7 if "kept" in program else None]


@pytest.mark.slow
def test_a_real_process_measures_and_its_imports_are_ours(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    forward, step = run_child(request(precision="bf16"), timeout=120)
    assert forward.status == step.status == "measured", step.message
    assert forward.seconds is not None
    assert forward.kept_bytes is None
    assert step.kept_bytes is not None
    assert step.kept_bytes > 10_000
    assert step.linear in {"torch", "onednn"}
    assert step.peak_bytes is not None
    assert forward.peak_bytes is not None
    assert step.peak_bytes >= forward.peak_bytes > 50e6


@pytest.mark.slow
def test_a_process_that_exceeds_its_limit_is_ended() -> None:
    enough = run_child(request(size=512, passes=("step",)), timeout=300)[0]
    assert enough.status == "measured"
    assert enough.peak_bytes is not None
    limit = 0.85 * enough.peak_bytes
    for each in run_child(request(size=512, passes=("step",), limit=limit), timeout=300):
        assert (each.status, each.message) == ("out of memory", f"more than {limit / 1e9:.3g} GB")
        assert each.peak_bytes is not None
        assert limit < each.peak_bytes < 1.2 * enough.peak_bytes


class NoWatch:
    """Stands in for the thread that would end the process of the tests."""

    def __init__(self, *given: Any) -> None:
        pass

    def start(self) -> None:
        """Do nothing."""


def test_an_answer_of_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "PeakWatch", NoWatch)
    found: list[dict[str, Any]] = []
    given = request(threads=None, timed=False, passes=("step",))
    child.measure(given, lambda answer: found.append(dict(answer)))
    assert found[0]["status"] == "measured"
    assert (found[0]["seconds"], found[0]["repeats"]) == (None, 0)
    child.measure(request(threads=None, limit=1e6), lambda answer: found.append(dict(answer)))
    assert found[1]["status"] == "out of memory"
    assert len(found) == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_an_allocation_that_fails_is_out_of_memory(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(child, "PeakWatch", NoWatch)
    monkeypatch.setattr(child, "build_subject", build)
    found: list[Any] = []
    child.measure(request(threads=None), found.append)
    assert found[0]["status"] == "out of memory"
    monkeypatch.setattr(child, "build_subject", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        child.measure(request(threads=None), found.append)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_what_the_system_counts() -> None:
    before = peak_memory()
    block = torch.ones(50_000_000)
    assert peak_memory() >= before
    assert peak_memory() > block.nbytes
    del block
    # It stays where it was.
    assert peak_memory() >= before


def test_a_step_whose_first_read_is_computed_in_chunks_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its backward pass asks for the saved tensors themselves."""
    monkeypatch.setattr(child, "PeakWatch", NoWatch)
    monkeypatch.setattr(encoder, "CHUNKED_FROM", 1)
    found: list[Any] = []
    child.measure(request(threads=None, timed=False, passes=("step",)), found.append)
    assert found[0]["status"] == "measured"
