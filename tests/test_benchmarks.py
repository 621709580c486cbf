"""The benchmark runs, and its count of kept memory is right where the answer is known."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from perceivers.models.hip import HiP

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_memory.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_memory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Run as scripts, the benchmarks find what they share beside them.
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


class Toy(nn.Module):
    """A pass whose kept tensors can be counted by hand."""

    decoder = None

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 32)
        self.out = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many values as were given."""
        return self.out(self.hidden(x).relu())


@pytest.mark.parametrize(("recompute", "floats"), [(False, 8 + 32 + 8), (True, 8 + 8)])
def test_kept_bytes_are_those_counted_by_hand(
    bench: ModuleType, recompute: bool, floats: int
) -> None:
    """Kept: tanh's result, relu's unless recomputed, and what is squared."""
    toy, x = Toy(), torch.ones(100, 8, requires_grad=True)

    def loss() -> torch.Tensor:
        h = x.tanh()
        y = checkpoint(toy, h, use_reentrant=False) if recompute else toy(h)
        assert isinstance(y, torch.Tensor)
        return y.square().sum()

    workload = bench.Workload("toy", toy, loss, (x,))
    assert bench.kept_bytes(workload, bench.Way()) == 100 * floats * 4


def test_the_ways_are_the_same_function(bench: ModuleType) -> None:
    workloads = bench.make_workloads("hip_nano", 8, 2, ["encoder", "mae"])
    assert [workload.name for workload in workloads] == ["encoder", "mae"]
    ways = [
        bench.Way(path="reference"),
        bench.Way(),
        bench.Way(chunk=3),
        bench.Way(moved=False),
    ]
    for workload in workloads:
        if workload.model.decoder is not None:
            nn.init.ones_(workload.model.decoder.readout.unembed["image"].weight)
        losses = []
        for way in ways:
            with workload.running(way):
                losses.append(bench.first(workload.loss()).detach())
        assert losses[0] != 0
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=1e-4)
    assert isinstance(workloads[0].model, HiP)


def test_the_benchmark_writes_what_it_measured(
    bench: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "CHUNKS", (16,))
    out = tmp_path / "made" / "numbers.json"
    bench.main(["--variant", "hip_nano", "--size", "16", "--rounds", "1", "--out", str(out)])
    numbers = json.loads(out.read_text(encoding="utf-8"))
    assert numbers["machine"]["threads"] == 1
    memory = numbers["memory_bytes"]
    assert list(memory) == ["encoder", "classifier", "reconstruction", "mae"]
    for ways in memory.values():
        assert ways["sdpa"]["kept"] < ways["einsum"]["kept"]
        for figures in ways.values():
            assert figures["kept"] <= figures["live"] <= figures["peak"]
    assert "| encoder" in capsys.readouterr().out
