"""The table that CI holds for the flat systems: every structure by every way to run its graph.

Rows are tiny models of different structure; each is compiled without graph breaks (forward and
backward), exported as a whole, as its encoder and as its decoder, run in bf16, at another input
size and with recomputed activations, and compared with plain float32.

The shape-checking hook breaks full graphs: ``pytest -m unhooked --jaxtyping-packages=``.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.errors import CheckpointError, ConfigError
from perceivers.exporting import export_model
from perceivers.exporting import files as exporting
from perceivers.exporting.graphs import make_graph
from perceivers.models import Output, create_model
from perceivers.models.graphs import random_raw
from perceivers.types import PAD, Audio, Bytes, Image, Labels, ModalitySpec, Points, Video

pytestmark = [pytest.mark.unhooked, pytest.mark.slow]

WAVES = PositionConfig(kind="fourier", num_bands=3)
ROWS_OF_PIXELS = PositionConfig(kind="learned", dim=6, project=6)
PICTURE = Image(8, 8, 1, mean=(0.4,), std=(0.3,))
SMALL = {"num_latents": 6, "latent_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1}
CLOUD: Mapping[str, ModalitySpec] = {"points": Points(12, 3, ragged=True)}
# What text models of the paper have: several heads, and values wider than keys.
UNEQUAL = {**SMALL, "num_cross_heads": 2, "qk_dim": 8, "v_dim": 16}


def picture(tokens: TokenConfig) -> dict[str, Any]:
    """Settings of a classifier of pictures."""
    return {"inputs": {"image": PICTURE}, "tokens": {"image": tokens}, "num_classes": 3}


def upsampled(modality: str, *patch: int) -> Output:
    """A signal decoded by transposed convolutions."""
    return Output(
        queries="positions",
        modality=modality,
        positions=WAVES,
        patch=patch,
        channels=1,
        head="conv",
    )


MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "perceiver": (
        "perceiver_nano",
        {"inputs": CLOUD, "num_classes": 3, "trunk": {**SMALL, "num_blocks": 8, "num_reads": 8}},
    ),
    "fourier": ("perceiver_io_nano", picture(TokenConfig(positions=WAVES))),
    "learned": ("perceiver_io_nano", picture(TokenConfig(dim=5, positions=ROWS_OF_PIXELS))),
    "conv": ("perceiver_io_nano", picture(TokenConfig(content="conv", dim=5, positions=WAVES))),
    "language": (
        "perceiver_io_nano",
        {
            "inputs": {"bytes": Bytes(20)},
            "trunk": UNEQUAL,
            "decoder": {"num_heads": 2, "qk_dim": 8, "v_dim": 16},
        },
    ),
    "flow": (
        "perceiver_io_flow",
        {
            "inputs": {"video": Video(2, 6, 8)},
            "tokens": {"video": TokenConfig(content="frame_patches", dim=5, positions=WAVES)},
            "trunk": SMALL,
        },
    ),
    "flow_conv": ("perceiver_io_flow_tiny", {"inputs": {"video": Video(2, 8, 12)}}),
    "multimodal": (
        "perceiver_io_nano",
        {
            "inputs": {"audio": Audio(32), "video": Video(2, 4, 4), "label": Labels(5)},
            "tokens": {"label": TokenConfig(mask_rate=1.0)},
            "mask_tokens": True,
            "decoder": {"project": 12},
        },
    ),
    "upsampled": (
        "perceiver_io_nano",
        {
            "inputs": {"image": PICTURE, "video": Video(2, 8, 8, 1)},
            "outputs": {"image": upsampled("image", 4, 4), "video": upsampled("video", 2, 4, 4)},
        },
    ),
    "multitask": (
        "perceiver_io_nano",
        {"inputs": {"bytes": Bytes(20)}, "num_classes": {"mood": 2, "topic": 3}},
    ),
    "entities": ("entity_set_nano", {"inputs": {"points": Points(9, 5, ragged=True)}}),
}
# Another size of the inputs of each.
SIZES: Mapping[str, Mapping[str, ModalitySpec]] = {
    "perceiver": {"points": Points(7, 3, ragged=True)},
    **{row: {"image": Image(12, 8, 1, (0.4,), (0.3,))} for row in ("fourier", "learned", "conv")},
    **{row: {"bytes": Bytes(14)} for row in ("language", "multitask")},
    "flow": {"video": Video(2, 8, 6)},
    "flow_conv": {"video": Video(2, 12, 8)},
    "multimodal": {"audio": Audio(48), "video": Video(2, 8, 4), "label": Labels(5)},
    "upsampled": {"image": Image(12, 8, 1, (0.4,), (0.3,)), "video": Video(4, 4, 8, 1)},
    "entities": {"points": Points(11, 5, ragged=True)},
}
QUERIED = [row for row, (name, _) in MODELS.items() if name.startswith("perceiver_io")]
# Generating code takes long; the others are captured and differentiated as one graph all the same.
GENERATED = {"perceiver", "language", "entities"}


def build(row: str) -> Any:
    """Build one model of the table, every weight away from its quiet start."""
    name, settings = MODELS[row]
    settings = {"trunk": SMALL, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def draw(inputs: Mapping[str, ModalitySpec], seed: int = 2, batch: int = 2) -> dict[str, Tensor]:
    """Draw samples as loaders make them: padded texts, ragged clouds, bytes of pictures."""
    generator = torch.Generator().manual_seed(seed)
    return {name: random_raw(spec, batch, generator) for name, spec in inputs.items()}


def value_of(model: Any, raw: Mapping[str, Tensor]) -> Tensor:
    """One number that depends on every output."""
    result = model(raw)
    parts = result.values() if isinstance(result, dict) else [result]
    finite = [torch.where(x.isfinite(), x, 0.0).float() for x in parts]
    return torch.stack([(x.square() + 0.3 * x).mean() for x in finite]).sum()


def measure(model: Any, function: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
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
@pytest.mark.parametrize("row", MODELS)
def test_a_training_step_compiles_to_one_graph_and_agrees(row: str) -> None:
    model = build(row).train()
    raw = draw(model.config.inputs)
    torch.compiler.reset()
    value, gradients = measure(model, lambda: value_of(model, raw))
    backend = "inductor" if row in GENERATED else "aot_eager"
    compiled = torch.compile(lambda: value_of(model, raw), fullgraph=True, backend=backend)
    found, theirs = measure(model, compiled)
    torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)
    assert theirs.keys() == gradients.keys()
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-4 * largest + 1e-6)
    assert any(bool(gradient.any()) for gradient in gradients.values())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert float(compiled().detach()) != pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize("format_", ["torch-export", "onnx"])
@pytest.mark.parametrize("row", MODELS)
def test_a_whole_model_is_exported_with_a_free_batch(
    row: str, format_: Any, tmp_path: Path
) -> None:
    if format_ == "onnx":
        pytest.importorskip("onnxruntime")
    done = export_model(build(row), tmp_path / f"x{exporting.SUFFIXES[format_]}", format=format_)
    assert done.largest <= 1e-4 * done.absmax
    assert done.absmax > 1e-3


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("row", MODELS)
def test_encoder_and_decoder_are_graphs_of_their_own(row: str, part: Any, tmp_path: Path) -> None:
    model = build(row)
    if part == "decoder" and row not in QUERIED:
        with pytest.raises(ConfigError, match=r"part 'decoder' belongs to the family perceiver_io"):
            make_graph(model, part)
        return
    output = list(model.config.outputs)[-1] if part == "decoder" else None
    done = export_model(model, tmp_path / "x.pt2", format="torch-export", part=part, output=output)
    assert done.largest <= 1e-4 * done.absmax
    assert done.absmax > 1e-3


@pytest.mark.parametrize("row", ["language", "flow", "multimodal", "upsampled"])
def test_two_exported_graphs_do_what_the_model_does(row: str, tmp_path: Path) -> None:
    """Encode once with one file; ask the other, twice, for different numbers of queries."""
    pytest.importorskip("onnxruntime")
    model = build(row)
    name = next(iter(model.config.outputs))
    for part in ("encoder", "decoder"):
        output = name if part == "decoder" else None
        export_model(model, tmp_path / f"{part}.onnx", part=part, output=output)
    raw = draw(model.config.inputs, seed=7, batch=3)
    names = tuple(model.config.inputs)
    (latents,) = exporting.run_onnx(tmp_path / "encoder.onnx", names, [raw[n] for n in names])
    encoded = model.encode(raw)
    torch.testing.assert_close(latents, encoded.latents, rtol=1e-4, atol=1e-4)
    graph = make_graph(model, "decoder", output=name)
    for count in (1, 5):
        ids = torch.arange(count) * 2 % model.num_queries(name)
        feeds = {"latents": latents, "ids": ids, **{n: raw[n] for n in graph.raw}}
        if "keep" in graph.inputs:
            feeds["keep"] = raw["bytes"][:, ids] != PAD
        found = exporting.run_onnx(
            tmp_path / "decoder.onnx", graph.inputs, [feeds[n] for n in graph.inputs]
        )
        with torch.no_grad():
            expected = model.decode(encoded, name, ids=ids)
        torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-4)


def test_a_description_says_what_the_graph_takes(tmp_path: Path) -> None:
    done = export_model(build("language"), tmp_path / "x.pt2", format="torch-export")
    stated = json.loads(done.description.read_text())
    assert stated["preprocessing"]["bytes"]["dtype"] == "int64"
    assert stated["inputs"] == ["bytes"]
    decoder = export_model(
        build("language"), tmp_path / "y.pt2", format="torch-export", part="decoder"
    )
    stated = json.loads(decoder.description.read_text())
    assert stated["inputs"] == ["latents", "ids", "keep"]
    assert stated["largest"] == {"queries": 16384}
    names = make_graph(build("multimodal"), "model").outputs
    assert names == ("audio_output", "video_output", "label_output")


def test_a_part_or_output_that_is_not_there_is_refused() -> None:
    model = build("multimodal")
    with pytest.raises(ConfigError, match=r"output None is unknown; choose one of \['audio', 'vi"):
        make_graph(model, "decoder")
    with pytest.raises(ConfigError, match=r"output 'vidio' is unknown.*did you mean 'video'\?"):
        make_graph(model, "decoder", output="vidio")
    with pytest.raises(ConfigError, match=r"output='video' is for part 'decoder', not for part"):
        make_graph(model, "encoder", output="video")
    with pytest.raises(ConfigError, match=r"part 'autoencoder' belongs to the families hip and hi"):
        make_graph(model, "autoencoder")
    wrong: Any = "decodr"
    with pytest.raises(ConfigError, match=r"part 'decodr' is unknown.*did you mean 'decoder'\?"):
        make_graph(model, wrong)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), 1.0])
def test_an_exported_file_that_disagrees_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: float
) -> None:
    """Control: neither NaN nor an infinite score beside a finite one passes for agreement."""
    original = exporting.run_exported

    def run(*arguments: Any) -> list[Tensor]:
        found = original(*arguments)
        found[0][0, 0] += spoil
        return found

    monkeypatch.setattr(exporting, "run_exported", run)
    with pytest.raises(CheckpointError, match=r"differed from the model by .*was removed"):
        export_model(build("entities"), tmp_path / "x.pt2", format="torch-export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", MODELS)
def test_bf16_autocast_stays_close_to_float32(row: str) -> None:
    model = build(row)
    raw = draw(model.config.inputs)
    value, gradients = measure(model, lambda: value_of(model, raw))
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = measure(model, lambda: value_of(model, raw))
    # bf16 keeps 8 bits: 0.4 % per rounding, a few of them one after another.
    assert float(found) == pytest.approx(float(value), rel=0.04, abs=0.03)
    assert float(found) != float(value)
    assert theirs.keys() == gradients.keys()
    assert bool(flat(theirs).isfinite().all())
    assert float(F.cosine_similarity(flat(gradients), flat(theirs), dim=0)) > 0.98


@pytest.mark.parametrize("row", MODELS)
def test_pure_bf16_trains(row: str) -> None:
    model = build(row)
    raw = draw(model.config.inputs)
    value, gradients = measure(model, lambda: value_of(model, raw))
    model.to(torch.bfloat16)
    found, theirs = measure(model, lambda: value_of(model, raw))
    assert float(found) == pytest.approx(float(value), rel=0.1, abs=0.03)
    assert theirs.keys() == gradients.keys()
    assert all(gradient.dtype == torch.bfloat16 for gradient in theirs.values())
    assert bool(flat(theirs).isfinite().all())
    assert float(F.cosine_similarity(flat(gradients), flat(theirs), dim=0)) > 0.9


@pytest.mark.parametrize("row", MODELS)
def test_another_input_size_runs_with_the_same_weights(row: str) -> None:
    model = build(row)
    other = model.resized(SIZES[row])
    fresh = draw(SIZES[row])
    assert bool(value_of(other, fresh).isfinite())
    same = model.resized(model.config.inputs)
    raw = draw(model.config.inputs)
    torch.testing.assert_close(value_of(same, raw), value_of(model, raw))
    with torch.no_grad():
        ours, theirs = model.state_dict(), other.state_dict()
    tables = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert all("table" in name for name in tables)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours.keys() - tables)


@pytest.mark.parametrize("row", MODELS)
def test_recomputed_activations_change_nothing(row: str) -> None:
    model = build(row).train()
    raw = draw(model.config.inputs)
    plain = measure(model, lambda: value_of(model, raw))
    model.set_recompute()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    again = measure(model, lambda: value_of(model, raw))
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-7)
    assert bool(norms) == (row in {"conv", "flow_conv"})
