"""The table that CI holds: every structure of model by every way to run its graph.

Rows are tiny models of different structure; columns are the features, a classifier, and the masked
autoencoder's loss under a packed and a dense plan. Every cell is compiled without graph breaks
(forward and backward), exported, and run in bf16, and compared with plain float32.

The shape-checking hook breaks full graphs: ``pytest -m unhooked --jaxtyping-packages=``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import CheckpointError
from perceivers.exporting import files as exporting
from perceivers.exporting.files import Exported, export_model
from perceivers.masking import MaskPlan, draw_mask_plan
from perceivers.models import HiP, HiPConfig, HiPHead, HiPLevel, create_model
from perceivers.models.graphs import random_raw
from perceivers.models.hip.variants import hierarchy
from perceivers.tasks import MaskedAutoencodingConfig, mae_losses
from perceivers.types import Array, Audio, Bytes, Image, Labels, ModalitySpec, Points

pytestmark = [pytest.mark.unhooked, pytest.mark.slow]

NUM_CLASSES = 3
PICTURE = Image(8, 8, 1, mean=(0.4,), std=(0.3,))
# 66 elements share three groups, 23 samples own one: both are padded, by different amounts.
PAIR: Mapping[str, ModalitySpec] = {"points": Array((6, 11), 2), "sound": Audio(23)}
TINY = hierarchy(
    groups=(4, 1, 4), depth=(1, 1, 1), latents=(4, 8, 4), dims=(16, 24, 16), heads=(2, 2, 2)
)
FLAT = HiPLevel(num_groups=1, num_latents=6, latent_dim=16, depth=1, num_heads=2, num_cross_heads=2)
WIDTHS: Mapping[str, Any] = {"token_dim": 16, "position_dim": 16}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "image": {"inputs": {"image": PICTURE}},
    "pair": {"inputs": PAIR, "levels": TINY, **WIDTHS},
    "labels": {
        "inputs": {"image": PICTURE, "kind": Labels(5)},
        "labels": ("kind",),
        "levels": TINY,
        **WIDTHS,
    },
    # Texts and clouds that end early: what is hidden differs from sample to sample.
    "ragged": {
        "inputs": {"bytes": Bytes(22), "points": Points(19, 3, ragged=True)},
        "levels": TINY,
        **WIDTHS,
    },
    "flat": {"inputs": PAIR, "levels": (FLAT,), "grouping": "concatenate", **WIDTHS},
    "fourier": {
        "inputs": {"image": PICTURE},
        "levels": TINY,
        "positions": "fourier",
        "num_bands": 4,
        "regroup": "transpose_reshape",
        **WIDTHS,
    },
}
COLUMNS = ("features", "classifier", "packed", "dense")
# Generating code takes minutes for the whole table; the cells that people train run it, the others
# are captured and differentiated as one graph all the same.
GENERATED = {(row, "packed") for row in ROWS} | {("fourier", "classifier")}


def build(row: str, column: str) -> HiP:
    """Build one model of the table, every weight away from its quiet start."""
    settings = dict(ROWS[row])
    if column == "classifier":
        settings |= {"head": HiPHead(kind="query", num_outputs=NUM_CLASSES), "decoder": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        named = row == "image"
        model = create_model("hip_nano", **settings) if named else HiP(HiPConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def draw(specs: Mapping[str, ModalitySpec], generator: torch.Generator) -> dict[str, Tensor]:
    """Draw two samples as loaders make them."""
    return {name: random_raw(spec, 2, generator) for name, spec in specs.items()}


@dataclass
class Cell:
    """A model and what is computed from it: one scalar."""

    model: HiP
    column: str
    inputs: dict[str, Tensor]
    plan: MaskPlan

    def __call__(self) -> Tensor:
        """Return the column's value."""
        if self.column == "features":
            return self.model.forward_features(self.shown()).processor.float().square().mean()
        if self.column == "classifier":
            logits = self.model(self.shown())
            assert isinstance(logits, Tensor)
            return F.cross_entropy(logits.float(), torch.tensor([0, 2]))
        return mae_losses(self.model, self.inputs, self.plan).total

    def shown(self) -> dict[str, Tensor]:
        """What enters through the hierarchy: all but bottleneck labels."""
        return {name: self.inputs[name] for name in self.model.config.grouped_inputs}

    def measure(self, function: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the value and every gradient."""
        self.model.zero_grad()
        value = function()
        value.backward()
        found = self.model.named_parameters()
        return value.detach(), {name: p.grad.clone() for name, p in found if p.grad is not None}


def make_cell(row: str, column: str) -> Cell:
    generator = torch.Generator().manual_seed(2)
    model = build(row, column)
    plan = draw_mask_plan(model.layout(), 2, ratio=0.6, generator=generator)
    if column == "dense":
        plan = plan.to_dense(model.layout())
    return Cell(model, column, draw(model.config.inputs, generator), plan)


@pytest.fixture(params=[(row, column) for row in ROWS for column in COLUMNS], ids="-".join)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Row and column."""
    return request.param


# Loading inductor touches torch's own deprecated parts.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_training_step_compiles_to_one_graph_and_agrees(place: tuple[str, str]) -> None:
    cell = make_cell(*place)
    torch.compiler.reset()
    backend = "inductor" if place in GENERATED else "aot_eager"
    value, gradients = cell.measure(cell)
    compiled = torch.compile(cell.__call__, fullgraph=True, backend=backend)
    found, theirs = cell.measure(compiled)
    torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    assert theirs.keys() == gradients.keys()
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-4 * largest + 1e-7)
    assert any(bool(gradient.any()) for gradient in gradients.values())
    with torch.no_grad():
        for parameter in cell.model.parameters():
            parameter.mul_(1.1)
    assert float(compiled().detach()) != pytest.approx(float(value), rel=1e-4)


def export_cell(place: tuple[str, str], folder: Path, format_: Any) -> tuple[HiP, Exported]:
    """Export what a column is about; the exporter runs the file and compares it."""
    row, column = place
    model = build(row, column)
    part: Any = {"features": "encoder", "classifier": "model"}.get(column, "autoencoder")
    mask = MaskedAutoencodingConfig(ratio=0.6, kind="uniform" if column == "dense" else "groupwise")
    path = folder / f"x{exporting.SUFFIXES[format_]}"
    return model, export_model(model, path, format=format_, part=part, mask=mask)


def test_a_graph_exported_by_torch_agrees(place: tuple[str, str], tmp_path: Path) -> None:
    _, done = export_cell(place, tmp_path, "torch-export")
    assert done.largest <= 1e-5 * done.absmax
    assert done.absmax > 1e-3


@pytest.mark.parametrize("column", ["classifier", "packed"])
@pytest.mark.parametrize("row", ROWS)
def test_a_graph_exported_to_onnx_agrees(row: str, column: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, done = export_cell((row, column), tmp_path, "onnx")
    assert done.largest <= 1e-4 * done.absmax
    assert done.absmax > 1e-3


@pytest.mark.parametrize("column", ["features", "dense"])
def test_the_other_columns_export_to_onnx_too(column: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, done = export_cell(("pair", column), tmp_path, "onnx")
    assert done.largest <= 1e-4 * done.absmax


@pytest.mark.parametrize("format_", ["onnx", "torch-export"])
def test_an_exported_file_that_disagrees_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: Any
) -> None:
    """Control: the comparison notices a single weight that differs from the file's."""
    original = exporting.compare

    def tamper(graph: Any, *others: Any) -> tuple[float, float]:
        with torch.no_grad():
            next(graph.module.model.head.parameters()).view(-1)[0] += 0.5
        return original(graph, *others)

    monkeypatch.setattr(exporting, "compare", tamper)
    with pytest.raises(CheckpointError, match=r"differed from the model by .*was removed"):
        export_cell(("flat", "classifier"), tmp_path, format_)
    assert not list(tmp_path.iterdir())


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


def test_bf16_autocast_stays_close_to_float32(place: tuple[str, str]) -> None:
    cell = make_cell(*place)
    value, gradients = cell.measure(cell)
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = cell.measure(cell)
    assert found.dtype == torch.float32
    # bf16 keeps 8 bits: 0.4 % per rounding, a few of them one after another.
    assert float(found) == pytest.approx(float(value), rel=0.03, abs=0.03)
    assert float(found) != float(value)
    assert theirs.keys() == gradients.keys()
    ours, other = flat(gradients), flat(theirs)
    assert bool(torch.isfinite(other).all())
    assert float(F.cosine_similarity(ours, other, dim=0)) > 0.98


def test_pure_bf16_trains(place: tuple[str, str]) -> None:
    cell = make_cell(*place)
    value, gradients = cell.measure(cell)
    cell.model.to(torch.bfloat16)
    found, theirs = cell.measure(cell)
    assert float(found) == pytest.approx(float(value), rel=0.1)
    assert theirs.keys() == gradients.keys()
    assert all(gradient.dtype == torch.bfloat16 for gradient in theirs.values())
    other = flat(theirs)
    assert bool(torch.isfinite(other).all())
    assert float(F.cosine_similarity(flat(gradients), other, dim=0)) > 0.9
