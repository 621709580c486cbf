"""Products by oneDNN equal torch's, gradients too; traced and transformed ones are torch's."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import perceivers as pv
from perceivers.errors import ConfigError
from perceivers.nn import linear as linear_module
from perceivers.nn.linear import Library, Linear, choose_library, linear, onednn_works, use_linear

needs_onednn = pytest.mark.skipif(not onednn_works(), reason="this torch lacks oneDNN's product")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the products that oneDNN is given."""
    counted: list[int] = []
    multiply = linear_module.multiply

    def count(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        counted.append(x.numel())
        return multiply(x, weight, bias)

    monkeypatch.setattr(linear_module, "multiply", count)
    return counted


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1024, 64), (2, 3, 512, 64)])
def test_outputs_and_gradients_are_torch_s(
    rng: torch.Generator, calls: list[int], shape: tuple[int, ...], bias: bool
) -> None:
    layer = Linear(64, 48, bias=bias)
    x = torch.randn(*shape, generator=rng, requires_grad=True)
    grad = torch.randn(*shape[:-1], 48, generator=rng)
    found = {}
    libraries: tuple[Library, ...] = ("torch", "onednn", "onednn")
    for library in libraries:
        with use_linear(library):
            out = layer(x)
            grads = torch.autograd.grad(out, (x, *layer.parameters()), grad)
        if library in found:  # the same bits every time
            assert all(map(torch.equal, found[library], (out, *grads)))
        found[library] = (out, *grads)
    assert calls, "oneDNN was not asked"
    for ours, theirs in zip(found["onednn"], found["torch"], strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < 1e-5


@needs_onednn
def test_whole_models_agree_and_recompute(rng: torch.Generator, calls: list[int]) -> None:
    image = pv.Image(32, 32, 3)
    model = pv.create_model("hip_nano", inputs={"image": image}, num_classes=3)
    x = torch.randn(16, 3, 32, 32, generator=rng)
    found = {}
    cases: tuple[tuple[Library, bool], ...] = (
        ("torch", False),
        ("onednn", False),
        ("onednn", True),
    )
    for library, recompute in cases:
        model.set_recompute(recompute)
        model.zero_grad()
        with use_linear(library):
            loss = model(x).square().mean()
            loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found[library, recompute] = [loss.detach(), *grads]
    assert calls
    for ours, theirs in zip(found["onednn", False], found["torch", False], strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max()) + 1e-9
    assert all(map(torch.equal, found["onednn", True], found["onednn", False]))


@needs_onednn
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own
def test_small_double_half_and_watched_products_are_torch_s(
    rng: torch.Generator, calls: list[int]
) -> None:
    layer, x = Linear(64, 64), torch.randn(1024, 64, generator=rng)
    weight = layer.weight.detach()
    with use_linear("onednn"):
        layer(x[:8])
        linear(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        torch.func.vmap(layer)(x)
        torch.func.grad(lambda w: F.mse_loss(linear(x, w), x))(weight)
        with forward_ad.dual_level():
            linear(forward_ad.make_dual(x, x), weight)
        torch.export.export(layer, (x,))
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 1024 * 64 * 64
        assert not calls
        layer(x)
    assert len(calls) == 1


@needs_onednn
def test_second_derivatives_checkpoints_copies_and_pickles(rng: torch.Generator) -> None:
    layer = Linear(64, 64)
    x = torch.randn(1024, 64, generator=rng, requires_grad=True)
    found = []
    pair: tuple[Library, ...] = ("torch", "onednn")
    for library in pair:
        with use_linear(library):
            for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
                out = checkpoint(twin, x, use_reentrant=False)
                assert isinstance(out, torch.Tensor)
                (grad,) = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
                (second,) = torch.autograd.grad(grad.square().sum(), twin.weight)
                found.append(second)
    assert all(relative(each, found[0]) < 1e-5 for each in found)


def test_the_choice_is_asked_measured_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = iter([3.0, 0.5])
    monkeypatch.setattr(linear_module, "measure_gain", lambda: next(measured))
    monkeypatch.setattr(linear_module, "onednn_works", lambda: True)
    monkeypatch.setenv("PERCEIVERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PERCEIVERS_LINEAR", raising=False)
    assert [choose_library(), choose_library()] == ["onednn"] * 2  # measured once
    (tmp_path / "cache" / "measured.json").write_text("[", encoding="utf-8")
    assert [choose_library(), choose_library()] == ["torch"] * 2
    for asked in ("torch", "onednn"):
        monkeypatch.setenv("PERCEIVERS_LINEAR", asked)
        assert choose_library() == asked
    monkeypatch.setenv("PERCEIVERS_LINEAR", "mkl")
    with pytest.raises(ConfigError, match=r"must be auto \(.*\), torch or onednn"):
        choose_library()


def test_a_torch_without_the_operator_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(linear_module, "multiply", gone)
    monkeypatch.delenv("PERCEIVERS_LINEAR", raising=False)
    assert choose_library() == "torch"
    monkeypatch.setenv("PERCEIVERS_LINEAR", "onednn")
    with pytest.raises(ConfigError, match="does not offer its products"):
        choose_library()


def test_every_linear_of_every_family_is_ours() -> None:
    image = {"image": pv.Image(64, 64, 3)}
    pictures = ("hip_nano", "perceiver_nano", "hiera_nano", "mae_hiera_nano", "hiera_det_nano")
    cases = dict.fromkeys(pictures, image) | {"perceiver_io_language": None}
    for name, inputs in (cases | {"entity_set_nano": {"set": pv.Points(8, 3)}}).items():
        with torch.device("meta"):
            classes = 3 if name.startswith("perceiver_nano") else None
            model = pv.create_model(name, inputs=inputs, num_classes=classes)
        plain = [n for n, m in model.named_modules() if type(m) is nn.Linear]
        assert not plain
