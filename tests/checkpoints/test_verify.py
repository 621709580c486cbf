"""Comparisons with other code: what is not compared never counts as agreement."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from perceivers.checkpoints.parity import (
    Archive,
    Difference,
    check_comparable,
    compare_live,
    compare_output,
    largest_output,
)
from perceivers.errors import CheckpointError
from perceivers.exporting.files import compare
from perceivers.models.graphs import Graph
from perceivers.workflows.conversion import Conversion

ONES = np.ones((2, 3), np.float32)


def test_equal_outputs_agree_and_others_do_not() -> None:
    assert compare_output("a", torch.ones(2, 3), ONES, 1e-6).is_within
    far = compare_output("a", torch.ones(2, 3) + 0.25, ONES, 1e-6)
    assert (far.largest, far.is_within) == (0.25, False)


def test_an_empty_output_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"output a is empty \(shape \(2, 0\)\)"):
        compare_output("a", torch.ones(2, 0), np.ones((2, 0), np.float32), 1.0)
    with pytest.raises(CheckpointError, match="output a is empty"):
        compare_live({"a": torch.ones(0)}, {"a": torch.ones(0)}, "float32")
    with pytest.raises(CheckpointError, match="has no outputs"):
        compare_live({}, {}, "float32")
    assert not Conversion(Path("x"), 1, []).is_verified


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_never_agree(bad: float) -> None:
    broken = torch.ones(2, 3).index_fill(1, torch.tensor([1]), bad)
    for ours, theirs in ((broken, torch.ones(2, 3)), (torch.ones(2, 3), broken), (broken, broken)):
        for dtype in ("float32", "float64"):
            (found,) = compare_live({"a": ours}, {"a": theirs}, dtype)
            assert not found.is_within
    assert not Difference("a", 0.0, float("inf")).is_within
    assert Difference("a", 0.0, 0.0).is_within


def bundle(absmax: Any, outputs: Any = None) -> Archive:
    config = {"is_training": False, "output_absmax": absmax}
    return Archive(config, {}, {}, {}, {"a": 4 * ONES} if outputs is None else outputs)


def test_a_bundle_cannot_widen_its_own_tolerance() -> None:
    assert largest_output(bundle(4.0), "x.npz") == 4.0
    assert largest_output(bundle(3.9999), "x.npz") == 3.9999
    for absmax in (1e30, float("inf"), float("nan"), -1.0):
        with pytest.raises(CheckpointError, match="but its largest output is 4; write"):
            largest_output(bundle(absmax), "x.npz")
    with pytest.raises(CheckpointError, match="output_absmax is 'many', not a number"):
        largest_output(bundle("many"), "x.npz")
    with pytest.raises(CheckpointError, match="holds no output"):
        check_comparable(bundle(4.0, {}), "x.npz")


class Constant(nn.Module):
    """Answers the same whatever it is given."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what it was built with."""
        return (self.values,)


def graph(values: torch.Tensor, outputs: tuple[str, ...] = ("y",)) -> Graph:
    return Graph(
        module=Constant(values),
        inputs=("x",),
        outputs=outputs,
        raw={},
        sample=lambda batch, generator: (torch.ones(batch),),
        free=({},),
    )


@pytest.mark.parametrize(
    ("values", "outputs", "message"),
    [
        (torch.ones(2, 0), ("y",), r"output y \(2, 0\) has no finite value"),
        (torch.full((2, 3), torch.nan), ("y",), "has no finite value"),
        (torch.ones(2), (), "has no outputs"),
    ],
)
def test_an_exported_file_that_answers_nothing_is_refused(
    values: torch.Tensor,
    outputs: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("perceivers.exporting.files.run_exported", lambda *_: [values])
    with pytest.raises(CheckpointError, match=message):
        compare(graph(values, outputs), tmp_path / "x.pt2", "torch-export")


def test_an_exported_file_that_agrees_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [torch.full((2,), 3.0)]
    monkeypatch.setattr("perceivers.exporting.files.run_exported", lambda *_: found)
    whole = graph(torch.full((2,), 3.0))
    assert compare(whole, tmp_path / "x.pt2", "torch-export") == (0.0, 3.0)
    found[0] = torch.tensor([3.0, torch.nan])
    assert compare(whole, tmp_path / "x.pt2", "torch-export")[0] == float("inf")
