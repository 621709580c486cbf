"""The Perceiver as a whole: sets, masks, the mean as the answer, sizes, its configuration."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.checkpoints.loading import load
from perceivers.errors import CheckpointError, ConfigError, InputError
from perceivers.models import Perceiver, PerceiverConfig, create_model
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.nn import attention
from perceivers.nn.attention import use_attention
from perceivers.types import Array, Bytes, Image, Labels, ModalitySpec, Points

Stir = Callable[..., Perceiver]
Draw = Callable[..., dict[str, Tensor]]
EXACT: dict[str, Any] = dict(rtol=0.0, atol=1e-11)
NAN = float("nan")
TRUNK = TrunkConfig(num_latents=5, latent_dim=8, depth=1, num_blocks=2, num_reads=2, num_heads=2)
CLOUD = TokenConfig(
    content="coordinates",
    positions=PositionConfig(kind="fourier", num_bands=3, max_resolution=(8, 8, 8)),
)
POINTS: Mapping[str, ModalitySpec] = {"points": Points(9, 4, ragged=True)}
PAIR: Mapping[str, ModalitySpec] = {"image": Image(4, 4, 1), "table": Array((6,), 2)}


def build(stir: Stir, inputs: Mapping[str, ModalitySpec] = POINTS, **settings: Any) -> Perceiver:
    tokens = {"points": CLOUD} if inputs is POINTS else {}
    config = {"inputs": inputs, "tokens": tokens, "trunk": TRUNK, "num_outputs": 3, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stir(Perceiver(PerceiverConfig(**config)))


def test_the_answer_is_the_mean_of_the_latents_then_a_linear(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw(POINTS)
    latents = model.forward_features(raw).latents
    assert tuple(latents.shape) == (2, 5, 8)
    assert model.head is not None
    torch.testing.assert_close(model(raw), model.head(latents.mean(1)), **EXACT)
    bare = build(stir, num_outputs=0)
    torch.testing.assert_close(bare(raw), bare.forward_features(raw).latents.mean(1), **EXACT)
    assert not torch.allclose(model(draw(POINTS)), model(raw))


def test_a_bare_tensor_is_the_only_modality(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw(POINTS)
    assert torch.equal(model(raw["points"]), model(raw))
    with pytest.raises(InputError, match=r"ambiguous for a model of \['image', 'table'\]"):
        build(stir, PAIR)(draw(PAIR)["image"])


@pytest.mark.parametrize(
    "trunk",
    [
        TRUNK,
        replace(TRUNK, num_cross_heads=2, qk_dim=4, v_dim=12),
        replace(TRUNK, v_dim=8, attention_width="latents"),
    ],
)
@pytest.mark.parametrize("kernel", ["plain", "padded"])
def test_both_attention_paths_agree(
    stir: Stir, draw: Draw, monkeypatch: pytest.MonkeyPatch, trunk: TrunkConfig, kernel: str
) -> None:
    model, raw = build(stir, trunk=trunk), draw(POINTS)
    raw["points"][0, 4:] = NAN
    with use_attention(model, "reference"):
        expected = model(raw)
    if kernel == "padded":
        monkeypatch.setattr(attention, "PLAIN_SCORES", 0)
    torch.testing.assert_close(model(raw), expected, **EXACT)
    assert not torch.allclose(model(draw(POINTS)), expected)


def test_points_are_a_set(stir: Stir, draw: Draw, rng: torch.Generator) -> None:
    model, raw = build(stir), draw(POINTS)
    raw["points"][0, 4:] = NAN
    order = torch.randperm(9, generator=rng)
    torch.testing.assert_close(model(raw["points"][:, order]), model(raw), **EXACT)
    moved = raw["points"].clone()
    moved[..., :3] = moved[:, order, :3]  # places alone: another cloud
    assert not torch.allclose(model(moved), model(raw))


def test_permuted_pixels_with_permuted_positions_are_the_same(
    stir: Stir, draw: Draw, rng: torch.Generator
) -> None:
    image: Mapping[str, ModalitySpec] = {"image": Image(4, 4, 1)}
    learned = TokenConfig(positions=PositionConfig(kind="learned", dim=6))
    model, raw = build(stir, image, tokens={"image": learned}), draw(image)
    order = torch.randperm(16, generator=rng)
    shuffled = {"image": raw["image"].flatten(2)[..., order].unflatten(2, (4, 4))}
    expected = model(raw)
    assert not torch.allclose(model(shuffled), expected)
    table = model.get_parameter("inputs.readers.image.positions.source.table")
    with torch.no_grad():
        table.copy_(table[order].clone())
    torch.testing.assert_close(model(shuffled), expected, **EXACT)


def test_absent_points_change_nothing(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw(POINTS)["points"]
    raw[0, 5:, 0] = NAN
    expected = model(raw)
    other = raw.clone()
    other[0, 5:, 1:] = draw(POINTS)["points"][0, 5:, 1:]
    torch.testing.assert_close(model(other), expected, **EXACT)
    smaller = model.resized({"points": Points(5, 4, ragged=True)})
    torch.testing.assert_close(smaller(raw[:1, :5]), expected[:1], **EXACT)
    other[0, 4] = draw(POINTS)["points"][0, 4]
    assert not torch.allclose(model(other), expected)


def test_tokens_that_are_not_valid_change_nothing(
    stir: Stir, draw: Draw, rng: torch.Generator
) -> None:
    model, raw, fresh = build(stir, PAIR), draw(PAIR), draw(PAIR)
    valid = torch.rand(2, 6, generator=rng) < 0.5
    expected = model(raw, valid={"table": valid})
    mixed = torch.where(valid.unsqueeze(-1), raw["table"], fresh["table"])
    torch.testing.assert_close(
        model({**raw, "table": mixed}, valid={"table": valid}), expected, **EXACT
    )
    assert not torch.allclose(model({**raw, "table": mixed}), model(raw))
    assert not torch.allclose(model(raw), expected)


def test_a_sample_without_any_point_is_finite(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir), draw(POINTS)["points"]
    raw[1] = NAN
    out = model(raw)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(model(raw[:1]), out[:1], **EXACT)
    assert not torch.allclose(out[0], out[1])


def test_samples_do_not_see_one_another(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir, PAIR), draw(PAIR, batch=3)
    whole = model(raw)
    torch.testing.assert_close(model({n: x[1:2] for n, x in raw.items()}), whole[1:2], **EXACT)
    assert not torch.allclose(whole[1], whole[0])


def test_a_missing_modality_equals_one_without_valid_tokens(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir, PAIR), draw(PAIR)
    alone = model({"image": raw["image"]})
    hidden = {"table": torch.zeros(2, 6, dtype=torch.bool)}
    torch.testing.assert_close(model(raw, valid=hidden), alone, **EXACT)
    assert not torch.allclose(model(raw), alone)


def test_every_parameter_gets_a_gradient(stir: Stir, draw: Draw) -> None:
    """Data-parallel training needs one for each, even where it is zero."""
    tokens = {"table": TokenConfig(mask_rate=1.0)}
    model = build(stir, PAIR, tokens=tokens, mask_tokens=True).train()
    model(draw(PAIR)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["inputs.mask.image"]  # nothing masks the image


def test_recomputation_changes_neither_values_nor_gradients(stir: Stir, draw: Draw) -> None:
    model, raw = build(stir, trunk=replace(TRUNK, dropout_rate=0.3)).train(), draw(POINTS)
    results = []
    for on in (False, True):
        model.set_recompute(on)
        assert model.trunk.recompute == on
        model.zero_grad()
        torch.manual_seed(1)
        out = model(raw)
        out.square().sum().backward()
        results.append((out.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_bfloat16_weights_run(rng: torch.Generator) -> None:
    model = create_model("perceiver_nano", inputs=POINTS, num_classes=3).bfloat16()
    logits = model(torch.randn(2, 9, 4, generator=rng))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


# -- configuration ---------------------------------------------------------------------------

BASE: dict[str, Any] = {
    "inputs": PAIR,
    "trunk": TRUNK,
    "num_outputs": 3,
    "mask_tokens": True,
    "tokens": {"table": TokenConfig(dim=3)},
}
CHANGES: dict[str, Any] = {
    "inputs": {"image": Image(6, 4, 1), "table": Array((6,), 2)},
    "trunk": replace(TRUNK, depth=2),
    "num_outputs": 4,
    "tokens": {"table": TokenConfig(dim=3, positions=PositionConfig(kind="learned", dim=2))},
    "min_padding": 5,
    "mask_tokens": False,
    "init": "paper",
}


def test_the_table_of_changes_is_complete() -> None:
    assert list(CHANGES) == [f.name for f in fields(PerceiverConfig)]


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_model(name: str) -> None:
    states = []
    for settings in (BASE, {**BASE, name: CHANGES[name]}):
        torch.manual_seed(0)
        model = Perceiver(PerceiverConfig(**settings))
        states.append(
            {n: x.tolist() for n, x in model.state_dict().items()} | {"": model.inputs.num_tokens}
        )
    assert states[0] != states[1]


def test_mask_rates_change_the_answer(stir: Stir, draw: Draw) -> None:
    raw, results = draw(PAIR), []
    for rate in (0.0, 1.0):
        tokens = {"table": TokenConfig(mask_rate=rate)}
        results.append(build(stir, PAIR, tokens=tokens, mask_tokens=True)(raw))
    assert not torch.allclose(*results)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"inputs": {}, "mask_tokens": False}, r"a model needs at least one input modality"),
    (
        {"inputs": {"a.b": Image(4, 4)}, "mask_tokens": False},
        r"modality names \['a\.b'\] must be .* without dots",
    ),
    (
        {"tokens": {"imagge": TokenConfig()}},
        r"tokens are described for \['imagge'\], but the inputs are .*did you mean 'image'\?",
    ),
    ({"num_outputs": -1}, r"num_outputs is -1; it must not be negative"),
    ({"min_padding": -2}, r"min_padding is -2; it must not be negative"),
]


@pytest.mark.parametrize(("settings", "text"), BAD)
def test_contradictory_configurations_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PerceiverConfig(**{**BASE, **settings})


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("trunck",), {}, r"PerceiverConfig has no setting 'trunck'.*did you mean 'trunk'\?"),
        (("trunk", "dept"), 3, r"TrunkConfig has no setting 'dept'.*did you mean 'depth'\?"),
        (("tokens", "image", "bands"), 3, r"TokenConfig has no setting 'bands'"),
        (("inputs", "image", "type"), "imag", r"modality type 'imag' is unknown.*'image'\?"),
        (("inputs",), ["image"], r"PerceiverConfig is malformed"),
    ],
)
def test_a_wrong_file_is_refused_and_the_wrong_entry_named(
    path: tuple[str, ...], value: Any, text: str
) -> None:
    data = PerceiverConfig(**BASE).to_json()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=text):
        PerceiverConfig.from_json(data)
    lacking = PerceiverConfig(**BASE).to_json()
    del lacking["num_outputs"]
    with pytest.raises(ConfigError, match=r"missing .*'num_outputs'"):
        PerceiverConfig.from_json(lacking)


def test_json_restores_a_configuration() -> None:
    config = PerceiverConfig(**BASE)
    data = json.loads(json.dumps(config.to_json()))
    assert PerceiverConfig.from_json(data) == config
    data["trunk"]["depth"] = 3
    assert PerceiverConfig.from_json(data) != config


# -- sizes and files -------------------------------------------------------------------------


def test_learned_positions_are_interpolated_for_another_size(
    stir: Stir, rng: torch.Generator
) -> None:
    inputs: dict[str, ModalitySpec] = {"image": Image(4, 6, 1), "text": Bytes(8), "kind": Labels(3)}
    learned = {"image": TokenConfig(positions=PositionConfig(kind="learned", dim=3))}
    model = build(stir, inputs, tokens=learned)
    other: dict[str, ModalitySpec] = {"image": Image(8, 6, 1), "text": Bytes(5), "kind": Labels(3)}
    resized = model.resized(other)
    ours, theirs = model.state_dict(), resized.state_dict()
    table = "inputs.readers.image.positions.source.table"
    assert tuple(theirs[table].shape) == (48, 3)
    assert theirs[table].dtype == torch.float64
    text = "inputs.readers.text.positions.source.table"
    assert torch.equal(theirs[text], ours[text][:5])
    same = {n for n in ours if n in theirs and torch.equal(ours[n], theirs[n])}
    assert set(ours) - same == {table, text}
    back = resized.resized({**inputs, "text": Bytes(5)})
    assert tuple(back.state_dict()[table].shape) == (24, 3)
    assert not resized.training
    raw = {
        "image": torch.rand(2, 1, 8, 6, generator=rng, dtype=torch.float64),
        "text": torch.randint(6, 262, (2, 5), generator=rng),
        "kind": torch.tensor([[0], [2]]),
    }
    assert resized(raw).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"texts of 8 bytes has no position embeddings for 9"):
        model.resized({**inputs, "text": Bytes(9)})


def test_a_folder_restores_the_model(stir: Stir, draw: Draw, tmp_path: Path) -> None:
    model, raw = build(stir, PAIR).float(), {n: x.float() for n, x in draw(PAIR).items()}
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is Perceiver
    assert loaded.config == model.config
    assert torch.equal(loaded(raw), model(raw))
    wider = load(tmp_path, inputs={**PAIR, "image": Image(6, 6, 1)})
    assert wider(dict(raw, image=torch.rand(2, 1, 6, 6))).shape == (2, 3)
    stated = json.loads((tmp_path / "config.json").read_text())
    stated["config"]["trunk"]["dept"] = 2
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=r"TrunkConfig has no setting 'dept'"):
        load(tmp_path)
