"""The benchmark runs, and its count of kept memory is right where the answer is known."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from perceivers.models.hip import HiP

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Run as scripts, the benchmarks find what they share beside them.
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("bench_memory", monkeypatch)


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


@pytest.mark.slow
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


def test_fused_attention_is_among_the_counted_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("bench_transformers", monkeypatch)
    q, k, v = (torch.ones(2, 3, tokens, 8) for tokens in (5, 7, 7))
    fused = torch.nn.functional.scaled_dot_product_attention
    assert script.count_flops(lambda: [fused(q, k, v)]) == 2 * 2 * 2 * 3 * 5 * 7 * 8
    assert script.count_flops(lambda: [q @ k.mT]) == 2 * 2 * 3 * 5 * 7 * 8
    assert script.count_flops(lambda: [q + 1]) == 0


def test_ratios_are_theirs_over_ours_by_either_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("bench_transformers", monkeypatch)
    figures = script.ratios(
        {
            "theirs": {"wall": [2.0, 6.0, 8.0], "cpu": [1.0, 1.0, 1.0]},
            "ours": {"wall": [1.0, 2.0, 2.0], "cpu": [2.0, 2.0, 2.0]},
        }
    )
    assert figures["wall"] == {"speedup": [3.0, 2.0, 4.0], "seconds": [2.0, 6.0]}
    assert figures["cpu"] == {"speedup": [0.5, 0.5, 0.5], "seconds": [2.0, 1.0]}
    assert script.show_ratios(figures) == "3.00 [2.00-4.00] / 0.50 [0.50-0.50]"


def test_loaders_are_measured_against_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("bench_loaders", monkeypatch)
    pictures = np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", image=pictures, label=np.arange(12) % 3)
    case = script.Case("masked_photographs", "a.npz")
    name, config = script.configure(case, tmp_path)
    small = replace(config, batch_size=2)
    for each in script.CASES:
        assert (
            script.configure(each, tmp_path)[1]
            .data.removeprefix("warps:")
            .startswith(str(tmp_path))
        )
    monkeypatch.setattr(script, "configure", lambda case, root: (name, small))
    row = script.measure(case, tmp_path, batches=1, steps=1, workers=[0])
    assert (row["types"], row["bytes_per_sample"]) == ({"image": "uint8"}, 3 * 64 * 64)
    assert row["ratio"]["0"] == pytest.approx(row["loader"]["0"] / row["demand"], rel=0.05)
