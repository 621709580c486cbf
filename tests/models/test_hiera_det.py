"""HieraDet: windows on a grid of any size, one block late, and everything a model must offer."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import perceivers as pv
from perceivers.checkpoints.loading import transfer_encoder
from perceivers.errors import CheckpointError, ConfigError, InputError
from perceivers.models import HieraDet, HieraDetConfig, HieraHead, create_model
from perceivers.models.hiera_det.config import as_classifier
from perceivers.models.hiera_det.model import make_window_blocks
from perceivers.nn.attention import use_attention
from perceivers.types import Audio, Image, Labels, Video

INPUT = {"image": Image(32, 32, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))}
# Parameters and tensors of the trunks; also the counts of transformers' Sam2HieraDetModel.
COUNTS = {
    "tiny": (26_849_472, 154),
    "small": (33_947_328, 202),
    "base_plus": (68_675_712, 298),
    "large": (212_149_296, 586),
}


def build(**settings: Any) -> HieraDet:
    """A double-precision nano model in evaluation mode, every weight moved by noise."""
    torch.manual_seed(0)
    model = create_model("hiera_det_nano", **{"inputs": INPUT, **settings}).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise)
    return model


def draw(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


# -- structure -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", COUNTS)
def test_trunks_have_the_released_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        model = create_model(f"hiera_det_{size}")
    found = [p.numel() for p in model.parameters()]
    assert (sum(found), len(found)) == COUNTS[size]
    assert model.config.inputs["image"].grid == (1024, 1024)
    assert model.config.num_classes == 0
    assert model.config.smallest_size == (29, 29)


def test_windows_change_one_block_late_and_few_blocks_see_everything() -> None:
    with torch.device("meta"):
        tiny, large = (
            make_window_blocks(create_model(f"hiera_det_{s}").config) for s in ("tiny", "large")
        )
    windows = [0 if block.layout is None else block.layout.unit[0] for block in tiny]
    assert windows == [8, 8, 4, 4, 14, 0, 14, 0, 14, 0, 14, 7]
    assert [i for i, block in enumerate(tiny) if block.stride == 4] == [1, 3, 10]
    assert [block.attention.num_heads for block in tiny] == [1, 2, 2] + [4] * 7 + [8, 8]
    windows = [0 if block.layout is None else block.layout.unit[0] for block in large]
    assert windows[:10] == [8, 8, 8, 4, 4, 4, 4, 4, 4, 16]
    assert windows[42:] == [16, 0, 16, 8, 8, 8]
    assert [i for i, window in enumerate(windows) if window == 0] == [23, 33, 43]


def test_drop_path_grows_linearly() -> None:
    model = create_model("hiera_det_nano", inputs=INPUT, drop_path_rate=0.4)
    rates = [block.drop_path.rate for block in make_window_blocks(model.config)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    raw = torch.rand(4, 3, 32, 32)
    assert torch.equal(model.eval()(raw), model(raw))
    assert not torch.equal(model.train()(raw), model(raw))


# -- whole passes ----------------------------------------------------------------------------------


def test_both_attention_paths_agree(rng: torch.Generator) -> None:
    model, raw = build(), draw(rng, 2, 3, 32, 40)
    fast = model(raw)
    with use_attention(model, "reference", keep_weights=True) as found:
        torch.testing.assert_close(model(raw), fast, rtol=0.0, atol=1e-12)
        shapes = [
            tuple(module.weights.shape) for module in found.values() if module.weights is not None
        ]
    # Windows of 4 x 4 on 8 x 10 tokens, pooled; then of 2 x 2, pooled; all 2 x 2; one of 4 x 4.
    assert shapes == [
        (2, 6, 1, 16, 16),
        (2, 6, 2, 4, 16),
        (2, 6, 4, 1, 4),
        (2, 1, 4, 4, 4),
        (2, 1, 4, 16, 16),
    ]


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((32, 32), [(8, 8), (4, 4), (2, 2)]),
        ((29, 30), [(8, 8), (4, 4), (2, 2)]),
        ((33, 61), [(9, 16), (4, 8), (2, 4)]),
        ((13, 13), [(4, 4), (2, 2), (1, 1)]),
        ((13, 100), [(4, 25), (2, 12), (1, 6)]),
    ],
)
def test_any_size_gives_a_pyramid(
    size: tuple[int, int], grids: list[tuple[int, int]], rng: torch.Generator
) -> None:
    model, raw = build(), draw(rng, 2, 3, *size)
    pyramid = model.forward_features(raw)
    assert [tuple(x.shape) for x in pyramid.maps] == [
        (2, dim, *grid) for dim, grid in zip((32, 64, 128), grids, strict=True)
    ]
    assert pyramid.strides == ((4, 4), (8, 8), (16, 16))
    assert pyramid.channels == (32, 64, 128)
    alone = model.forward_features({"image": raw[1:]})
    for whole, one in zip(pyramid.maps, alone.maps, strict=True):
        torch.testing.assert_close(one, whole[1:], rtol=0.0, atol=1e-12)
        assert not torch.allclose(one, whole[:1])


@torch.no_grad()
def test_windows_keep_to_themselves_and_the_global_block_joins_them(rng: torch.Generator) -> None:
    model, raw = build(global_blocks=()), draw(rng, 1, 3, 64, 64)
    other = raw.clone()
    other[..., :4, :4] += 1.0
    maps = zip(model.forward_features(raw).maps, model.forward_features(other).maps, strict=True)
    changed = [(a - b).abs().amax((0, 1)) > 1e-9 for a, b in maps]
    # The patch kernels reach into the next token; its window is the first one of 4 x 4 tokens.
    assert bool(changed[0][:4, :4].all())
    assert not bool(changed[0][4:].any() | changed[0][:, 4:].any())
    assert bool(changed[1][:2, :2].all())
    assert not bool(changed[1][2:].any() | changed[1][:, 2:].any())
    joined = build()
    a, b = (joined.forward_features(x).maps[-1] for x in (raw, other))
    assert float((a - b).abs().amax((0, 1)).min()) > 1e-9


def test_a_classifier_reads_the_normalised_mean_of_the_last_map(rng: torch.Generator) -> None:
    model, raw = build(num_classes=5), draw(rng, 2, 3, 33, 48)
    assert model.norm is not None
    assert model.head is not None
    mean = model.forward_features(raw).maps[-1].mean((2, 3))
    torch.testing.assert_close(model(raw), model.head(model.norm(mean)), rtol=0.0, atol=1e-12)
    trunk = HieraDet(replace(model.config, head=HieraHead())).double()
    assert transfer_encoder(model, trunk).dropped == (
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    )
    torch.testing.assert_close(trunk(raw), mean, rtol=0.0, atol=1e-12)
    assert not torch.allclose(model(raw.flip(0)), model(raw))


def test_head_dropout_acts_in_training_only() -> None:
    model = build(head=HieraHead(kind="mean", num_outputs=3), dropout_rate=0.5)
    raw = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(model(raw), model(raw))
    assert not torch.equal(model.train()(raw), model(raw))


def test_bytes_are_pictures_in_0_to_1(rng: torch.Generator) -> None:
    model = build()
    raw = torch.randint(0, 256, (1, 3, 32, 32), generator=rng).to(torch.uint8)
    torch.testing.assert_close(model(raw), model(raw.double() / 255))
    grey = model.input.mean.double()[:, None, None].expand(1, 3, 32, 32)
    blank = build(inputs={"image": Image(32, 32, 3)})
    torch.testing.assert_close(model(grey), blank(torch.zeros_like(grey)), rtol=0.0, atol=1e-6)


def test_sound_has_one_axis(rng: torch.Generator) -> None:
    one: dict[str, Any] = {
        "patch_kernel": (7,),
        "patch_stride": (4,),
        "pool": (2,),
        "position_grid": (5,),
    }
    model = build(inputs={"sound": Audio(100)}, **one)
    maps = model.forward_features(draw(rng, 2, 1, 103)).maps
    assert [tuple(x.shape) for x in maps] == [(2, 32, 26), (2, 64, 13), (2, 128, 6)]


def test_recomputing_changes_no_gradient(rng: torch.Generator) -> None:
    model, raw = build(num_classes=2).train(), draw(rng, 2, 3, 33, 32)
    gradients = []
    for on in (False, True):
        model.zero_grad()
        model.set_recompute(on)
        model(raw).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(bool(g.any()) for g in gradients[0])


# -- around the model ------------------------------------------------------------------------------


def test_depths_start_at_the_stem_and_end_at_the_head() -> None:
    depths = create_model("hiera_det_nano", inputs=INPUT, num_classes=2).layer_depths()
    assert depths["encoder.stem.weight"] == depths["encoder.positions.window"] == 0
    assert depths["encoder.blocks.0.norm_attention.weight"] == 1
    assert depths["encoder.blocks.4.mlp.out.bias"] == 5
    assert depths["norm.bias"] == depths["head.weight"] == 6


def test_a_fresh_model_starts_as_documented() -> None:
    torch.manual_seed(0)
    model = create_model("hiera_det_nano", inputs=INPUT, num_classes=7)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, "weight" in name)), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            deviation = 2e-5 if name.startswith("head.") else 0.02
            assert float(parameter.detach().std()) == pytest.approx(deviation, rel=0.1), name


def test_another_native_size_keeps_every_weight(rng: torch.Generator) -> None:
    model, raw = build(), draw(rng, 1, 3, 48, 40)
    other = model.resized({"image": replace(INPUT["image"], height=48, width=40)})
    assert other.config.spec.grid == (48, 40)
    assert torch.equal(other(raw), model(raw))
    for inputs in ({"image": Image(48, 48, 1)}, {"sound": Audio(99)}, {"image": Video(8, 32, 32)}):
        with pytest.raises(ConfigError, match=r"cannot be resized to"):
            model.resized(inputs)


def test_a_saved_model_comes_back(tmp_path: Path, rng: torch.Generator) -> None:
    model = build(num_classes=3).float()
    raw = draw(rng, 1, 3, 32, 32).float()
    again = pv.load(model.save_pretrained(tmp_path / "model"))
    assert torch.equal(again(raw), model(raw))
    assert again.config == model.config
    assert json.loads((tmp_path / "model" / "config.json").read_text())["family"] == "hiera_det"


def test_a_trunk_becomes_a_classifier(rng: torch.Generator) -> None:
    trunk = build()
    model = HieraDet(as_classifier(trunk.config, 4, "query")).double().eval()
    assert model.config == replace(trunk.config, head=HieraHead(kind="mean", num_outputs=4))
    transfer = transfer_encoder(trunk, model)
    assert transfer.dropped == ()
    assert {name.split(".")[0] for name in transfer.fresh} == {"norm", "head"}
    raw = draw(rng, 1, 3, 32, 32)
    maps = (m.forward_features(raw).maps[-1] for m in (trunk, model))
    torch.testing.assert_close(*maps)
    wider = HieraDet(as_classifier(build(dim=64).config, 4, "query")).double()
    with pytest.raises(CheckpointError, match=r"the encoders differ at encoder"):
        transfer_encoder(trunk, wider)


def test_a_head_is_given_once() -> None:
    head = HieraHead(kind="mean", num_outputs=2)
    assert create_model("hiera_det_nano", inputs=INPUT, head=head).config.head == head
    both = create_model("hiera_det_nano", inputs=INPUT, head=head, num_classes=9).config.head
    assert both == replace(head, num_outputs=9)
    named = create_model("hiera_det_nano", inputs=INPUT, head="mean", num_classes=9)
    assert named.config.num_classes == 9


# -- refusals --------------------------------------------------------------------------------------

SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"windows": (4, 2)}, r"windows=\(4, 2\) for depths=\(1, 1, 3\): give one window per stage"),
    ({"windows": (4, 3, 4)}, r"windows=\(4, 3, 4\): all but the last are pooled by \(2, 2\)"),
    ({"windows": (4, 0, 4)}, r"must be at least 1"),
    ({"depths": ()}, r"at least one stage"),
    ({"global_blocks": (5,)}, r"global_blocks=\(5,\): name each block of 0..4 at most once"),
    ({"global_blocks": (-1,)}, r"global_blocks\[0\] is -1"),
    ({"global_blocks": (3, 3)}, r"at most once"),
    ({"global_blocks": (2,)}, r"none of \[1, 2\], which pool inside windows"),
    ({"patch_kernel": (6, 7)}, r"patch_kernel is \(6, 7\); its sizes must be odd"),
    ({"pool": (2,)}, r"pool=\(2,\), position_grid=\(4, 4\): give one size per axis"),
    ({"dim": 33, "num_heads": 2}, r"dim=33 is not a multiple of num_heads=2"),
    ({"dropout_rate": 0.1}, r"dropout_rate=0.1 acts before logits, and this model has none"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate is 1.0; it must be in \[0, 1\)"),
    ({"inputs": {"a": Audio(99)}}, r"reads one modality on a grid of 2 axes"),
    ({"inputs": {**INPUT, "b": Labels(3)}}, r"reads one modality on a grid of 2 axes"),
    ({"inputs": {"image": Image(12, 40)}}, r"an input of \(12, 40\) is pooled to nothing; the "),
    ({"head": HieraHead(kind="segmentation", num_outputs=2)}, r"no segmentation head; use 'mean'"),
    ({"head": "mean"}, r"head='mean' needs num_classes"),
    ({"num_classes": 2, "head": "men"}, r"head='men'"),
    ({"num_classes": {"a": 2}}, r"a Hiera has one head"),
    ({"inputs": None}, r"this variant has no input size; describe it with inputs="),
    ({"window": 8}, r"no setting 'window'; .*did you mean 'windows'\?"),
]


@pytest.mark.unhooked
@pytest.mark.parametrize(("settings", "text"), SETTINGS)
def test_impossible_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises((ConfigError, InputError), match=text):
        create_model("hiera_det_nano", **{"inputs": INPUT, **settings})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.rand(1, 3, 12, 32), r"an input of \(12, 32\) .*smallest legal .*\(13, 13\)"),
        (lambda: torch.rand(1, 4, 32, 32), r"'image' has 4 channels; this model reads 3"),
        (lambda: torch.rand(3, 32, 32), r"'image' is \(3, 32, 32\); expected a batch of \(3, 32"),
        (lambda: {"picture": torch.rand(1, 3, 32, 32)}, r"reads \['image'\], but was given \['pic"),
    ],
)
def test_misshapen_inputs_are_refused(make: Callable[[], Any], text: str) -> None:
    model = create_model("hiera_det_nano", inputs=INPUT)
    with pytest.raises(InputError, match=text):
        model(make())


def test_there_is_one_adapter() -> None:
    model = create_model("hiera_det_nano", inputs=INPUT)
    assert model.adapter("image") is model.input
    with pytest.raises(InputError, match=r"this model reads 'image', not 'sound'"):
        model.adapter("sound")


def test_a_config_survives_json() -> None:
    config = build(num_classes=3, drop_path_rate=0.1).config
    again = HieraDetConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert isinstance(again.head, HieraHead)
    with pytest.raises(ConfigError, match=r"windws"):
        HieraDetConfig.from_json({**config.to_json(), "windws": 1})
