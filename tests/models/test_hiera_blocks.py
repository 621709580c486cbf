"""Hiera's blocks and encoder: what attends to what, how tokens pool, and what hiding hides."""

from typing import Any

import pytest
import torch
from tests.models.hiera_making import (
    EXACT,
    KINDS,
    build_hiera,
    draw_one,
    draw_plan,
    hidden_pixels,
    stirred,
)
from torch import Tensor

from perceivers.models import create_model
from perceivers.models.hiera.encoder import HieraBlock, UnitAttention
from perceivers.nn.mask_units import gather_units, pool_tokens

TINY_STRIDES = [1, 4, 1, 4, 1, 1, 1, 1, 1, 1, 4, 1]
TINY_DIMS = [96, 192, 192, *[384] * 7, 768, 768]


def block(**settings: Any) -> HieraBlock:
    """Build a block in double precision, every weight moved."""
    return stirred(HieraBlock(**{"dim": 6, "dim_out": 12, "num_heads": 2, "stride": 4, **settings}))


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def no_branches(made: HieraBlock) -> HieraBlock:
    """Silence attention and MLP, so that only the residual is left."""
    with torch.no_grad():
        for linear in (made.attention.out, made.mlp.out):
            for parameter in linear.parameters():
                parameter.zero_()
    return made


# -- one block -------------------------------------------------------------------------------


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("stride", [1, 4])
def test_attention_is_the_plain_formula_with_pooled_queries(
    rng: torch.Generator, local: bool, stride: int
) -> None:
    made = stirred(UnitAttention(dim=6, dim_out=8, num_heads=2, stride=stride, local=local))
    x = draw(rng, 2, 3, 8, 6)
    q, k, v = made.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)  # [B, U, T, H, D] each
    pooled = q.reshape(2, 3, stride, -1, 2, 4).max(2).values
    wanted = torch.zeros(2, 3, 8 // stride, 2, 4, dtype=torch.float64)
    for sample in range(2):
        for unit in range(3):
            for head in range(2):
                seen = (sample, unit) if local else (sample,)
                keys = k[seen].flatten(0, -3)[:, head]
                values = v[seen].flatten(0, -3)[:, head]
                scores = pooled[sample, unit, :, head] @ keys.T / 2.0
                wanted[sample, unit, :, head] = scores.softmax(-1) @ values
    torch.testing.assert_close(made(x), made.out(wanted.flatten(-2)), **EXACT)


def test_the_projected_residual_is_made_from_normalised_tokens(rng: torch.Generator) -> None:
    made, x = no_branches(block()), draw(rng, 2, 3, 8, 6)
    assert made.shortcut is not None
    wanted = made.shortcut(made.norm_attention(x)).reshape(2, 3, 4, 2, 12).max(2).values
    torch.testing.assert_close(made(x), wanted, **EXACT)
    assert not torch.allclose(made(x), pool_tokens(made.shortcut(x), 4))


def test_the_pooled_residual_is_maximum_beside_mean(rng: torch.Generator) -> None:
    made, x = no_branches(block(shortcut="pool")), draw(rng, 2, 3, 8, 6)
    assert made.shortcut is None
    groups = x.reshape(2, 3, 4, 2, 6)
    torch.testing.assert_close(made(x)[..., :6], groups.max(2).values, **EXACT)
    torch.testing.assert_close(made(x)[..., 6:], groups.mean(2), **EXACT)


def test_a_block_that_changes_nothing_keeps_its_tokens(rng: torch.Generator) -> None:
    made, x = block(dim_out=6, stride=1), draw(rng, 2, 3, 8, 6)
    assert made.shortcut is None
    assert not torch.allclose(made(x), x)
    torch.testing.assert_close(no_branches(made)(x), x, **EXACT)


def test_layer_scale_multiplies_both_branches(rng: torch.Generator) -> None:
    made, x = block(dim_out=6, stride=1, layer_scale=0.25), draw(rng, 2, 3, 8, 6)
    scales: list[Any] = [made.scale_attention, made.scale_mlp]
    for scale in scales:
        assert scale.scale.shape == (6,)
        scale.scale.data.fill_(0.0)
    torch.testing.assert_close(made(x), x, **EXACT)
    for scale in scales:
        scale.scale.data.fill_(0.5)
    middle = x + 0.5 * made.attention(made.norm_attention(x))
    wanted = middle + 0.5 * made.mlp(made.norm_mlp(middle))
    torch.testing.assert_close(made(x), wanted, **EXACT)


def test_drop_path_drops_branches_of_whole_samples_in_training(rng: torch.Generator) -> None:
    made, x = block(dim_out=6, stride=1, drop_path_rate=0.5).train(), draw(rng, 64, 2, 4, 6)
    torch.manual_seed(0)
    moved = (made(x) != x).flatten(1)
    assert torch.equal(moved.any(1), moved.all(1))
    assert 0.6 < float(moved.any(1).double().mean()) < 0.9  # 3 in 4 keep one branch or both
    assert bool((made.eval()(x) != x).flatten(1).any(1).all())


def test_stochastic_depth_grows_from_block_to_block() -> None:
    model = build_hiera(drop_path_rate=0.4)
    rates: list[Any] = [each.drop_path.rate for each in model.encoder.blocks]  # pyright: ignore
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


# -- reach -----------------------------------------------------------------------------------


def test_the_blocks_of_tiny_are_those_of_the_released_table() -> None:
    """Widths, heads, strides, and the lag: the first block of stage 3 is still local."""
    with torch.device("meta"):
        blocks: Any = create_model("hiera_tiny_224").encoder.blocks
        released: Any = create_model("mae_hiera_tiny_224").encoder.blocks
    assert [b.stride for b in blocks] == TINY_STRIDES
    assert [b.attention.local for b in blocks] == [True] * 4 + [False] * 8
    assert [b.attention.out.out_features for b in blocks] == TINY_DIMS
    assert [b.attention.qkv.in_features for b in blocks] == [96, *TINY_DIMS[:-1]]
    assert [b.attention.num_heads for b in blocks] == [dim // 96 for dim in TINY_DIMS]
    # The autoencoder's last stage widens without pooling.
    assert [b.stride for b in released] == [*TINY_STRIDES[:10], 1, 1]
    assert [b.widens for b in blocks] == [b.widens for b in released]


@pytest.mark.parametrize(
    ("local_stages", "first_global"), [(0, 0), (1, 2), (2, 4), (3, 11), (4, 12)]
)
def test_units_stay_apart_until_the_second_block_of_the_first_global_stage(
    rng: torch.Generator, local_stages: int, first_global: int
) -> None:
    """One-block lag: attention reaches as far as in the stage before where stages change."""
    model = build_hiera(depths=(1, 2, 7, 2), mask_unit=(8, 8), pad=True, local_stages=local_stages)
    x = draw(rng, 1, 3, 64, 8)
    other = x.clone()
    other[:, 1] = draw(rng, 64, 8)
    mixed = []
    for each in model.encoder.blocks:
        x, other = each(x), each(other)
        mixed.append(not torch.equal(x[:, [0, 2]], other[:, [0, 2]]))
        assert not torch.allclose(x[:, 1], other[:, 1])
    assert mixed == [index >= first_global for index in range(12)]


@pytest.mark.parametrize("kind", KINDS)
def test_local_stages_do_not_see_whether_other_units_are_there(
    rng: torch.Generator, kind: str
) -> None:
    """Where the rest is zero after normalisation, dense encoding of kept units is sparse."""
    model = build_hiera(kind)
    plan, raw = draw_plan(model, rng), draw_one(model, rng)
    blank = model.input.mean.reshape(1, -1, *[1] * (raw.ndim - 2))
    raw = torch.where(hidden_pixels(model, plan), blank, raw)
    name = model.config.name
    sparse, dense = model.encode({name: raw}, plan), model.encode({name: raw})
    assert sparse.units == dense.units
    for stage in range(2):
        shown = gather_units(dense.stages[stage], plan.kept[name])
        assert sparse.stages[stage].shape == shown.shape
        torch.testing.assert_close(sparse.stages[stage], shown, rtol=0.0, atol=1e-9)
    mixed = gather_units(dense.stages[2], plan.kept[name])
    assert not torch.allclose(sparse.stages[2], mixed)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hidden_changes_nothing(rng: torch.Generator, kind: str) -> None:
    model = build_hiera(kind)
    plan, raw = draw_plan(model, rng), draw_one(model, rng)
    name, hidden = model.config.name, hidden_pixels(model, plan)
    before = model.encode({name: raw}, plan).stages
    for content in (draw_one(model, rng), torch.full_like(raw, float("nan"))):
        after = model.encode({name: torch.where(hidden, content, raw)}, plan).stages
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    after = model.encode({name: torch.where(hidden, raw, draw_one(model, rng))}, plan).stages
    assert all(not torch.allclose(a, b) for a, b in zip(before, after, strict=True))


def test_what_is_hidden_gets_no_gradient(rng: torch.Generator) -> None:
    model = build_hiera()
    plan, raw = draw_plan(model, rng), draw_one(model, rng).requires_grad_()
    stages = model.encode({"image": raw}, plan).stages
    torch.stack([x.square().sum() for x in stages]).sum().backward()
    hidden = hidden_pixels(model, plan).expand_as(raw)
    assert raw.grad is not None
    assert not raw.grad[hidden].any()
    assert raw.grad[~hidden].all()


def test_keeping_all_units_is_no_mask(rng: torch.Generator) -> None:
    model, ids = build_hiera(), torch.arange(6).expand(2, -1)
    x = draw_one(model, rng)
    everything, none = model.encoder(x, ids), model.encoder(x)
    for ours, theirs in zip(everything.stages, none.stages, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    swapped = model.encoder(x, ids.flip(1))
    torch.testing.assert_close(swapped.stages[2].flip(1), none.stages[2], **EXACT)


def test_samples_do_not_meet(rng: torch.Generator) -> None:
    model = build_hiera()
    x, plan = draw_one(model, rng, batch=3), draw_plan(model, rng, batch=3)
    together = model.encoder(x, plan.kept["image"]).stages[-1]
    alone = model.encoder(x[1:2], plan.kept["image"][1:2]).stages[-1]
    torch.testing.assert_close(together[1:2], alone, **EXACT)
    assert not torch.allclose(together[:1], alone)


def test_recomputed_blocks_give_the_same_gradients_and_run_twice(rng: torch.Generator) -> None:
    model = build_hiera().train()
    x, calls = draw_one(model, rng), []
    hooked: Any = model.encoder.blocks[2]
    hooked.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    assert len(calls) == 1
    model.set_recompute()
    again = gradients()
    assert len(calls) == 3
    for ours, theirs in zip(plain, again, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    with torch.no_grad():
        model(x)
    assert len(calls) == 4
    model.set_recompute(False)
    gradients()
    assert len(calls) == 5
