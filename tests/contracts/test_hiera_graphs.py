"""The table that CI holds for Hiera: every use of it by every way to run its graph.

Rows are tiny models: a classifier, one that drops units while it trains, a pyramid, segmentation, a
clip, a sound, positions of two tables, and the whole masked autoencoder, whose plan is an input.
Every cell is compiled without graph breaks (forward and backward), exported with a free batch, also
at another size, and run in bf16, and compared with plain float32.

The shape-checking hook breaks full graphs: ``pytest -m unhooked --jaxtyping-packages=``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import CheckpointError, ConfigError
from perceivers.exporting import export_model
from perceivers.exporting import files as exporting
from perceivers.exporting.graphs import Part, make_graph
from perceivers.masking import MaskPlan, draw_unit_plan
from perceivers.models import Hiera, create_model
from perceivers.models.graphs import draw_raw, random_raw
from perceivers.models.saving import ModelInfo
from perceivers.tasks import MaskedAutoencodingConfig, mae_losses
from perceivers.types import Audio, Bytes, Image, ModalitySpec, Video
from perceivers.workflows.exporting import export

pytestmark = [pytest.mark.unhooked, pytest.mark.slow]

PICTURE = {"image": Image(32, 48, 1, mean=(0.4,), std=(0.3,))}
CLIP = {"video": Video(4, 16, 32, 1, mean=(0.4,), std=(0.3,))}
SOUND = {"sound": Audio(768)}
# Three classes, of one label per sample or one per element.
CLASSES: Mapping[str, Any] = {"num_classes": 3}
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "classifier": ("hiera_nano", {"inputs": PICTURE, **CLASSES}),
    "dropping": (
        "hiera_nano",
        {"inputs": PICTURE, **CLASSES, "unit_drop_rate": 0.5, "drop_path_rate": 0.2},
    ),
    "window": (
        "hiera_nano",
        {"inputs": PICTURE, **CLASSES, "positions": "window", "position_grid": (3, 5)},
    ),
    "pooled": (
        "hiera_nano",
        {"inputs": PICTURE, **CLASSES, "shortcut": "pool", "layer_scale": 0.5, "pad": True},
    ),
    "pyramid": ("hiera_nano", {"inputs": PICTURE, "feature_norms": (0, 2)}),
    "segmentation": ("hiera_nano", {"inputs": PICTURE, **CLASSES, "head": "segmentation"}),
    "video": ("hiera_nano_video", {"inputs": CLIP, **CLASSES}),
    "audio": ("hiera_nano_audio", {"inputs": SOUND, **CLASSES}),
    "mae": ("mae_hiera_nano", {"inputs": PICTURE}),
    "mae_text": ("mae_hiera_nano_text", {"inputs": {"bytes": Bytes(192)}}),
    "mae_video": ("mae_hiera_nano_video", {"inputs": CLIP, "decoder": {"all_frames": False}}),
}
PARTS: Mapping[str, Part] = {
    "pyramid": "encoder",
    "mae": "autoencoder",
    "mae_video": "autoencoder",
}
OTHER: Mapping[str, ModalitySpec] = {
    "image": Image(48, 16, 1, mean=(0.4,), std=(0.3,)),
    "video": Video(6, 32, 16, 1, mean=(0.4,), std=(0.3,)),
    "sound": Audio(512),
}
# Generating code takes long; the others are captured and differentiated as one graph all the same.
GENERATED = {"window", "mae"}


@dataclass
class Cell:
    """A model and what is computed from it: one scalar."""

    model: Hiera
    raw: dict[str, Tensor]
    plan: MaskPlan

    def __call__(self) -> Tensor:
        """Return what a training step minimises, or the size of the features."""
        if self.model.decoder is not None:
            return mae_losses(self.model, self.raw, self.plan).total
        if self.model.head is None:
            maps = self.model.forward_features(self.raw).maps
            return torch.stack([(x.float().square() + 0.3 * x).mean() for x in maps]).sum()
        logits = self.model(self.raw)
        assert isinstance(logits, Tensor)
        places = logits[0, 0].numel() * len(logits)
        labels = (torch.arange(places) % 3).reshape(-1, *logits.shape[2:])
        return F.cross_entropy(logits.float(), labels)

    def measure(self, function: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the value and every gradient, under the same random numbers."""
        self.model.zero_grad()
        torch.manual_seed(5)
        value = function()
        value.backward()
        found = self.model.named_parameters()
        return value.detach(), {name: p.grad.clone() for name, p in found if p.grad is not None}


def build(row: str) -> Hiera:
    """Build one model of the table, every weight away from its quiet start."""
    name, settings = ROWS[row]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_cell(row: str) -> Cell:
    """Draw two samples as loaders make them, and a plan for them."""
    model, generator = build(row), torch.Generator().manual_seed(2)
    name, spec = model.config.name, model.config.spec
    plan = draw_unit_plan(name, model.num_units(), 2, ratio=0.6, generator=generator)
    return Cell(model, {name: random_raw(spec, 2, generator)}, plan)


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


# -- compiled --------------------------------------------------------------------------------


# Loading inductor touches torch's own deprecated parts.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("row", ROWS)
def test_a_training_step_compiles_to_one_graph_and_agrees(row: str) -> None:
    cell = make_cell(row)
    cell.model.train()
    torch.compiler.reset()
    value, gradients = cell.measure(cell)
    backend = "inductor" if row in GENERATED else "aot_eager"
    compiled = torch.compile(cell.__call__, fullgraph=True, backend=backend)
    found, theirs = cell.measure(compiled)
    torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    assert theirs.keys() == gradients.keys()
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-4 * largest + 1e-7)
    assert all(bool(gradient.any()) for gradient in gradients.values())
    with torch.no_grad():
        for parameter in cell.model.parameters():
            parameter.mul_(1.1)
    torch.manual_seed(5)
    assert float(compiled().detach()) != pytest.approx(float(value), rel=1e-4)


def test_recomputed_blocks_compile_to_one_graph_too() -> None:
    cell = make_cell("mae")
    torch.compiler.reset()
    plain = cell.measure(cell)
    cell.model.set_recompute()
    compiled = torch.compile(cell.__call__, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(cell.measure(compiled), plain, rtol=1e-4, atol=1e-6)


# -- exported --------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["torch-export", "onnx"])
@pytest.mark.parametrize("row", ROWS)
def test_every_use_is_exported_with_a_free_batch(row: str, format_: Any, tmp_path: Path) -> None:
    if format_ == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"x{exporting.SUFFIXES[format_]}"
    done = export_model(build(row), path, format=format_, part=PARTS.get(row, "model"))
    assert done.largest <= 1e-5 * done.absmax
    assert done.absmax > 1e-3


@pytest.mark.parametrize("row", ["classifier", "window", "pyramid", "segmentation", "video", "mae"])
def test_another_size_is_exported_with_the_same_weights(row: str) -> None:
    """As it is, positions interpolated in the graph, and as a copy made for that size."""
    model = build(row)
    spec = {model.config.name: OTHER[model.config.name]}
    part = PARTS.get(row, "model")
    copy = make_graph(model.resized(spec), part)
    graph = replace(make_graph(model, part), sample=copy.sample)
    program = exporting.trace(graph).module()
    example = copy.example(3, seed=4)
    with torch.no_grad():
        found, wanted, other = program(*example), graph.module(*example), copy.module(*example)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other, wanted, rtol=1e-4, atol=1e-5)
    fresh = copy.example(3, seed=5)
    with torch.no_grad():
        assert not torch.allclose(program(*fresh)[0], wanted[0], atol=1e-4)


def test_an_autoencoder_answers_plans_that_were_not_traced(tmp_path: Path) -> None:
    """The file computes the model's own predictions, of the units that the plan hides."""
    pytest.importorskip("onnxruntime")
    model, path = build("mae"), tmp_path / "x.onnx"
    mask = MaskedAutoencodingConfig(ratio=0.5)
    done = export_model(model, path, part="autoencoder", mask=mask)
    assert json.loads(done.description.read_text())["outputs"] == ["image_prediction"]
    generator = torch.Generator().manual_seed(9)
    (raw,) = draw_raw(model.config.inputs, 4, generator)
    plan = draw_unit_plan("image", 6, 4, ratio=0.5, generator=generator)
    names = ("image", "image_kept", "image_masked")
    tensors = (raw, plan.kept["image"], plan.masked["image"])
    (found,) = exporting.run_onnx(path, names, tensors)
    with torch.no_grad():
        wanted = model.reconstruct(model.encode({"image": raw}, plan), plan)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.shape == (4, 3, 4, 64)


def test_graphs_are_named_after_what_they_hold() -> None:
    pyramid = make_graph(build("pyramid"), "encoder")
    assert pyramid.outputs == ("stage_0", "stage_1", "stage_2")
    assert make_graph(build("classifier"), "model").outputs == ("output",)
    assert make_graph(build("mae"), "model").outputs == ("image_reconstruction",)
    graph = make_graph(build("mae_video"), "autoencoder")
    assert graph.inputs == ("video", "video_kept", "video_masked")
    assert graph.outputs == ("video_prediction",)
    kept, masked = graph.example(2, seed=0)[1:]
    assert (kept.shape, masked.shape) == ((2, 1), (2, 3))  # clips hide nine in ten


@pytest.mark.parametrize("part", ["encoder", "model"])
def test_the_detection_variant_is_exported_too(part: Part, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = create_model("hiera_det_nano", inputs={"image": Image(64, 48, 1)}).eval()
    done = export_model(model, tmp_path / "x.onnx", part=part)
    assert done.largest <= 1e-5 * done.absmax
    stages = [f"stage_{stage}" for stage in range(len(model.config.depths))]
    names = stages if part == "encoder" else ["output"]
    assert json.loads(done.description.read_text())["outputs"] == names


def test_parts_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"this model has no decoder; export part 'model' or 'en"):
        make_graph(build("classifier"), "autoencoder")
    groups = MaskedAutoencodingConfig(kind="groupwise")
    with pytest.raises(ConfigError, match=r"mask kind 'groupwise' is not for this hiera model"):
        make_graph(build("mae"), "autoencoder", mask=groups)
    with pytest.raises(ConfigError, match=r"part 'decoder' belongs to the family perceiver_io"):
        make_graph(build("mae"), "decoder")


def test_a_pretrained_folder_exports_its_autoencoder_and_others_their_model(tmp_path: Path) -> None:
    info = ModelInfo(task="pretrain")
    build("mae").save_pretrained(tmp_path / "mae", info=info)
    done = export(tmp_path / "mae", format="torch-export")
    assert done.path == tmp_path / "mae" / "exported" / "autoencoder.pt2"
    stated = json.loads(done.description.read_text())
    assert stated["inputs"] == ["image", "image_kept", "image_masked"]
    assert stated["preprocessing"]["image"]["dtype"] == "uint8"
    info = ModelInfo(task="classify", classes=("a", "b", "c"))
    build("classifier").save_pretrained(tmp_path / "c", info=info)
    done = export(tmp_path / "c", format="torch-export")
    assert done.path.name == "model.pt2"
    assert json.loads(done.description.read_text())["classes"] == ["a", "b", "c"]


def test_an_exported_pyramid_that_disagrees_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the comparison looks at every map."""
    original = exporting.run_exported

    def run(*arguments: Any) -> list[Tensor]:
        found = original(*arguments)
        found[2][0, 0] += 1.0
        return found

    monkeypatch.setattr(exporting, "run_exported", run)
    with pytest.raises(CheckpointError, match=r"differed from the model by .*was removed"):
        export_model(build("pyramid"), tmp_path / "x.pt2", format="torch-export", part="encoder")
    assert not list(tmp_path.iterdir())


# -- half precision --------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_bf16_autocast_stays_close_to_float32(row: str) -> None:
    cell = make_cell(row)
    value, gradients = cell.measure(cell)
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = cell.measure(cell)
    assert found.dtype == torch.float32
    # bf16 keeps 8 bits: 0.4 % per rounding, a few of them one after another.
    assert float(found) == pytest.approx(float(value), rel=0.03, abs=0.03)
    assert float(found) != float(value)
    assert theirs.keys() == gradients.keys()
    assert bool(flat(theirs).isfinite().all())
    assert float(F.cosine_similarity(flat(gradients), flat(theirs), dim=0)) > 0.98


@pytest.mark.parametrize("row", ROWS)
def test_pure_bf16_trains(row: str) -> None:
    cell = make_cell(row)
    value, gradients = cell.measure(cell)
    cell.model.to(torch.bfloat16)
    found, theirs = cell.measure(cell)
    assert float(found) == pytest.approx(float(value), rel=0.1)
    assert theirs.keys() == gradients.keys()
    assert all(gradient.dtype == torch.bfloat16 for gradient in theirs.values())
    assert bool(flat(theirs).isfinite().all())
    assert float(F.cosine_similarity(flat(gradients), flat(theirs), dim=0)) > 0.9
