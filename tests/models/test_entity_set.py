"""Entity sets: equivariance, what absent entities may influence, the pointer, sizes, settings."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.checkpoints.loading import load
from perceivers.errors import ConfigError
from perceivers.models import DecoderConfig, EntitySet, EntitySetConfig, create_model
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.nn.attention import use_attention
from perceivers.types import Image, ModalitySpec, Points

Stir = Callable[..., EntitySet]
Draw = Callable[..., dict[str, Tensor]]
EXACT: dict[str, Any] = dict(rtol=0.0, atol=1e-11)
NAN, INF = float("nan"), float("inf")
INPUTS: Mapping[str, ModalitySpec] = {"units": Points(6, 5, ragged=True)}
TRUNK = TrunkConfig(num_latents=4, latent_dim=8, depth=1, num_heads=2, num_cross_heads=2)
BASE: dict[str, Any] = {"inputs": INPUTS, "trunk": TRUNK, "token_dim": 8, "embed_dim": 6}


def build(stir: Stir, **settings: Any) -> EntitySet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stir(EntitySet(EntitySetConfig(**{**BASE, **settings})))


def draw_units(draw: Draw) -> Tensor:
    """Two sets: one with an empty slot in the middle, one full."""
    units = draw(INPUTS)["units"]
    units[0, 2] = NAN
    return units


def test_scores_point_at_entities_and_never_at_empty_slots(stir: Stir, draw: Draw) -> None:
    model, units = build(stir), draw_units(draw)
    scores = model(units)
    assert tuple(scores.shape) == (2, 6)
    assert (scores == -INF).nonzero().tolist() == [[0, 2]]
    entities = model.entities(units)
    assert tuple(entities.each.shape) == (2, 6, 6)
    assert model.pointer_query is not None
    assert model.pointer_key is not None
    by_hand = model.pointer_key(entities.each[1]) @ model.pointer_query(entities.pooled[1]) / 6**0.5
    torch.testing.assert_close(scores[1], by_hand, **EXACT)
    assert torch.equal(entities.valid, ~units.isnan().any(-1))
    assert torch.equal(model({"units": units}), scores)


def test_embeddings_are_made_as_the_paper_says(stir: Stir, draw: Draw) -> None:
    """Of an entity ReLU then Linear; of the set the mean over entities, Linear, ReLU."""
    model, units = build(stir), draw_units(draw)
    answers = model.body.decode(model.body.encode({"units": units}))
    entities = model.entities(units)
    torch.testing.assert_close(entities.each, model.embed(F.relu(answers)), **EXACT)
    real = answers[0, [0, 1, 3, 4, 5]].mean(0)
    torch.testing.assert_close(entities.pooled[0], F.relu(model.pool(real)), **EXACT)
    assert (entities.pooled >= 0).all()


def test_permuting_entities_permutes_scores(stir: Stir, draw: Draw, rng: torch.Generator) -> None:
    model, units = build(stir), draw_units(draw)
    order = torch.randperm(6, generator=rng)
    scores = model(units)
    torch.testing.assert_close(model(units[:, order]), scores[:, order], **EXACT)
    assert not torch.allclose(scores[:, order], scores)
    torch.testing.assert_close(
        model.entities(units[:, order]).pooled, model.entities(units).pooled, **EXACT
    )


def test_empty_slots_change_nothing(stir: Stir, draw: Draw) -> None:
    model, units = build(stir), draw_units(draw)
    scores = model(units)
    spoiled = units.clone()
    spoiled[0, 2, 1:] = 5.0
    torch.testing.assert_close(model(spoiled), scores, **EXACT)
    fewer = model.resized({"units": Points(5, 5, ragged=True)})
    rest = [0, 1, 3, 4, 5]
    torch.testing.assert_close(fewer(units[:1, rest]), scores[:1, rest], **EXACT)


def test_an_empty_set_is_finite_apart_from_its_scores(stir: Stir, draw: Draw) -> None:
    model, units = build(stir), draw_units(draw)
    units[1] = NAN
    entities = model.entities(units)
    assert (model(units)[1] == -INF).all()
    assert entities.pooled.isfinite().all()
    (entities.pooled.square().sum() + entities.each.square().sum()).backward()
    grads = [p.grad for n, p in model.named_parameters() if not n.startswith("pointer")]
    assert all(g is not None and g.isfinite().all() for g in grads)


def test_a_step_towards_the_right_entity_helps(stir: Stir, draw: Draw) -> None:
    model, units = build(stir).train(), draw_units(draw)
    loss = F.cross_entropy(model(units), torch.tensor([1, 4]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(1e-3 * parameter.grad)
    assert F.cross_entropy(model(units), torch.tensor([1, 4])) < loss


def test_both_attention_paths_agree(stir: Stir, draw: Draw) -> None:
    model, units = (
        build(stir, decoder=DecoderConfig(num_heads=2, qk_dim=4, v_dim=6)),
        draw_units(draw),
    )
    fast = model(units)
    with use_attention(model, "reference"):
        torch.testing.assert_close(model(units), fast, **EXACT)
    assert not torch.allclose(model(draw_units(draw)), fast)


def test_without_a_pointer_the_set_s_embedding_is_the_answer(stir: Stir, draw: Draw) -> None:
    model, units = build(stir, pointer=False), draw_units(draw)
    assert torch.equal(model(units), model.entities(units).pooled)
    assert model.config.num_classes == 0
    assert build(stir).config.num_classes == 6
    assert not [name for name, _ in model.named_parameters() if "pointer" in name]


def test_recomputation_changes_no_gradient(stir: Stir, draw: Draw) -> None:
    units, results = draw_units(draw), []
    for on in (False, True):
        model = build(stir).train()
        model.set_recompute(on)
        assert model.body.trunk.recompute == on
        F.cross_entropy(model(units), torch.tensor([1, 4])).backward()
        results.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_depths_end_with_the_pointer(stir: Stir) -> None:
    depths = build(stir).layer_depths()
    assert depths["body.inputs.readers.units.linear.weight"] == 0
    assert depths["body.trunk.blocks.0.0.mlp.out.bias"] == 2
    assert depths["body.decoder.read.attention.q.weight"] == 3
    assert depths["embed.weight"] == depths["pointer_key.bias"] == 4


# -- configuration ---------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "inputs": {"units": Points(6, 4, ragged=True)},
    "trunk": replace(TRUNK, depth=2),
    "token_dim": 10,
    "embed_dim": 7,
    "decoder": DecoderConfig(num_heads=1, residual=True),
    "pointer": False,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_model(stir: Stir, draw: Draw, name: str) -> None:
    assert list(CHANGES) == [f.name for f in fields(EntitySetConfig)]
    model, other = build(stir), build(stir, **{name: CHANGES[name]})
    shapes = [{n: x.shape for n, x in m.state_dict().items()} for m in (model, other)]
    units = draw_units(draw)
    assert shapes[0] != shapes[1] or not torch.allclose(model(units), other(units))


def test_json_restores_a_configuration() -> None:
    config = EntitySetConfig(**BASE)
    data = json.loads(json.dumps(config.to_json()))
    assert EntitySetConfig.from_json(data) == config
    data["embed_dims"] = 3
    with pytest.raises(ConfigError, match=r"no setting 'embed_dims'.*did you mean 'embed_dim'\?"):
        EntitySetConfig.from_json(data)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"inputs": {"image": Image(4, 4)}}, r"exactly one modality of points, not \['image'\]"),
        (
            {"inputs": {"a": Points(4), "b": Points(4)}},
            r"exactly one modality of points, not \['points', 'points'\]",
        ),
        ({"token_dim": 0}, r"token_dim is 0; it must be at least 1"),
        ({"embed_dim": -1}, r"embed_dim is -1; it must be at least 1"),
    ],
)
def test_contradictory_configurations_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        EntitySetConfig(**{**BASE, **settings})


def test_other_features_are_no_other_size(stir: Stir) -> None:
    with pytest.raises(ConfigError, match=r"names, kinds and channels must stay"):
        build(stir).resized({"units": Points(6, 4, ragged=True)})


def test_a_folder_restores_the_model(stir: Stir, draw: Draw, tmp_path: Path) -> None:
    model, units = build(stir).float(), draw_units(draw).float()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is EntitySet
    assert loaded.config == model.config
    assert torch.equal(loaded(units), model(units))


def test_the_small_variant_runs_in_bfloat16(draw: Draw) -> None:
    model = create_model("entity_set_nano", inputs=INPUTS).bfloat16()
    scores = model(draw_units(draw).float())
    assert scores.dtype == torch.bfloat16
    assert (scores == -INF).sum() == 1
