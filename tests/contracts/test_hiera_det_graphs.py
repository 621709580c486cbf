"""The table that CI holds for HieraDet: every way to run its graph, compared with plain float32.

Rows are the small variant as a classifier and as a trunk, at a size whose windows need filling up
and whose sides become odd; each is compiled without graph breaks (forward and backward), exported
whole and as its pyramid, and run in bf16.

The shape-checking hook breaks full graphs: ``pytest -m unhooked --jaxtyping-packages=``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import CheckpointError
from perceivers.exporting import export_model
from perceivers.exporting import files as exporting
from perceivers.models import HieraDet, create_model
from perceivers.types import Image

pytestmark = [pytest.mark.unhooked, pytest.mark.slow]

ROWS: Mapping[str, Mapping[str, Any]] = {
    "classifier": {"inputs": {"image": Image(37, 52, 3, (0.4,), (0.3,))}, "num_classes": 3},
    "trunk": {"inputs": {"image": Image(32, 32, 1)}},
}


def build(row: str) -> HieraDet:
    """Build one model of the table, every weight away from its quiet start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("hiera_det_nano", **ROWS[row])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def draw(model: HieraDet, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, *model.config.spec.raw_shape)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def value_of(model: HieraDet, raw: Tensor) -> Tensor:
    """One number that depends on the logits, or on every map of a trunk."""
    parts = [model(raw)] if model.config.num_classes else model.forward_features(raw).maps
    return torch.stack([(x.float().square() + 0.3 * x.float()).mean() for x in parts]).sum()


def measure(model: HieraDet, function: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the value and every gradient."""
    model.zero_grad()
    value = function()
    value.backward()
    found = model.named_parameters()
    return value.detach(), {name: p.grad.clone() for name, p in found if p.grad is not None}


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


# Loading inductor touches torch's own deprecated parts.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("row", ROWS)
def test_a_training_step_compiles_to_one_graph_and_agrees(row: str) -> None:
    model = build(row).train()
    raw = draw(model)
    torch.compiler.reset()
    value, gradients = measure(model, lambda: value_of(model, raw))
    backend = "inductor" if row == "classifier" else "aot_eager"
    compiled = torch.compile(lambda: value_of(model, raw), fullgraph=True, backend=backend)
    found, theirs = measure(model, compiled)
    torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)
    assert theirs.keys() == gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-4 * largest + 1e-6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert float(compiled().detach()) != pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize("part", ["model", "encoder"])
@pytest.mark.parametrize("format_", ["torch-export", "onnx"])
@pytest.mark.parametrize("row", ROWS)
def test_models_and_pyramids_are_exported_with_a_free_batch(
    row: str, format_: Any, part: Any, tmp_path: Path
) -> None:
    if format_ == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"x{exporting.SUFFIXES[format_]}"
    done = export_model(build(row), path, format=format_, part=part)
    assert done.largest <= 1e-4 * done.absmax
    assert done.absmax > 1e-3


def test_an_exported_file_that_disagrees_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the comparison notices one map."""
    original = exporting.run_exported

    def run(*arguments: Any) -> list[Tensor]:
        found = original(*arguments)
        found[-1][0, 0, 0, 0] += 1.0
        return found

    monkeypatch.setattr(exporting, "run_exported", run)
    with pytest.raises(CheckpointError, match=r"differed from the model by .*was removed"):
        export_model(build("trunk"), tmp_path / "x.pt2", format="torch-export", part="encoder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", ROWS)
def test_bf16_autocast_stays_close_to_float32(row: str) -> None:
    model = build(row)
    raw = draw(model)
    value, gradients = measure(model, lambda: value_of(model, raw))
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = measure(model, lambda: value_of(model, raw))
    # bf16 keeps 8 bits: 0.4 % per rounding, a few of them one after another.
    assert float(found) == pytest.approx(float(value), rel=0.04, abs=0.03)
    assert float(found) != float(value)
    assert theirs.keys() == gradients.keys()
    assert bool(flat(theirs).isfinite().all())
    assert float(F.cosine_similarity(flat(gradients), flat(theirs), dim=0)) > 0.98


@pytest.mark.parametrize("row", ROWS)
def test_pure_bf16_trains(row: str) -> None:
    model = build(row)
    raw = draw(model)
    value, gradients = measure(model, lambda: value_of(model, raw))
    model.to(torch.bfloat16)
    found, theirs = measure(model, lambda: value_of(model, raw))
    assert float(found) == pytest.approx(float(value), rel=0.1, abs=0.03)
    assert theirs.keys() == gradients.keys()
    assert all(gradient.dtype == torch.bfloat16 for gradient in theirs.values())
    assert bool(flat(theirs).isfinite().all())
    assert float(F.cosine_similarity(flat(gradients), flat(theirs), dim=0)) > 0.9
