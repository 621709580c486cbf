"""Attention: the fast path, the reference path and the absorbed projections are one function."""

from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.nn import attention
from perceivers.nn.attention import (
    CrossAttention,
    SelfAttention,
    attend,
    attend_reference,
    use_attention,
)

EXACT: dict[str, Any] = dict(rtol=0.0, atol=1e-12)
MASKS = {
    "none": None,
    "per sample": (2, 1, 5, 7),
    "shared by samples": (1, 1, 5, 7),
    "shared by queries": (2, 1, 1, 7),
}


def draw(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def draw_mask(rng: torch.Generator, shape: tuple[int, ...] | None) -> Tensor | None:
    if shape is None:
        return None
    mask = torch.rand(shape, generator=rng) < 0.5
    mask[..., 0, :] = False  # a query that sees nothing
    return mask


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS.keys())
def test_both_paths_agree(rng: torch.Generator, shape: tuple[int, ...] | None) -> None:
    q, k, v = draw(rng, 2, 3, 5, 4), draw(rng, 2, 3, 7, 4), draw(rng, 2, 3, 7, 6)
    mask = draw_mask(rng, shape)
    expected, _ = attend_reference(q, k, v, mask)
    torch.testing.assert_close(attend(q, k, v, mask), expected, **EXACT)
    other, _ = attend_reference(q, draw(rng, 2, 3, 7, 4), v, None)
    assert not torch.allclose(other, expected)


def test_a_mask_changes_the_result(rng: torch.Generator) -> None:
    q, k, v = (draw(rng, 2, 3, 5, 4) for _ in range(3))
    mask = torch.rand(2, 1, 5, 5, generator=rng) < 0.5
    assert not torch.allclose(attend(q, k, v, mask), attend(q, k, v))


def test_reference_weights_are_a_distribution_over_admissible_keys(rng: torch.Generator) -> None:
    mask = torch.rand(2, 1, 5, 7, generator=rng) < 0.5
    mask[:, :, :, 0] = True
    q, k, v = draw(rng, 2, 3, 5, 4), draw(rng, 2, 3, 7, 4), draw(rng, 2, 3, 7, 6)
    _, weights = attend_reference(q, k, v, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64), **EXACT)
    assert not weights[(~mask).expand_as(weights)].any()
    assert weights[mask.expand_as(weights)].all()


@pytest.mark.parametrize("v_dim", [4, 6], ids=["fused", "multiplied"])
@pytest.mark.parametrize("reference", [False, True])
def test_a_query_without_admissible_key_gets_zeros_and_no_gradient(
    rng: torch.Generator, reference: bool, v_dim: int
) -> None:
    q = draw(rng, 1, 2, 3, 4).requires_grad_()
    k, v = draw(rng, 1, 2, 5, 4).requires_grad_(), draw(rng, 1, 2, 5, v_dim).requires_grad_()
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    mask[:, :, 1] = False
    out = attend_reference(q, k, v, mask)[0] if reference else attend(q, k, v, mask)
    out.square().sum().backward()
    assert not out[:, :, 1].any()
    assert out[:, :, 0].all()
    assert q.grad is not None
    assert not q.grad[:, :, 1].any()
    assert q.grad[:, :, 0].any()
    for x in (q, k, v):
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("v_dim", [4, 6], ids=["fused", "multiplied"])
def test_a_wholly_masked_key_gets_no_gradient(rng: torch.Generator, v_dim: int) -> None:
    q, k = draw(rng, 1, 1, 3, 4), draw(rng, 1, 1, 5, 4).requires_grad_()
    v = draw(rng, 1, 1, 5, v_dim).requires_grad_()
    mask = torch.ones(1, 1, 1, 5, dtype=torch.bool)
    mask[..., 2] = False
    attend(q, k, v, mask).square().sum().backward()
    for x in (k, v):
        assert x.grad is not None
        assert not x.grad[:, :, 2].any()
        assert x.grad[:, :, 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_multiplied_scores_bar_masked_keys_in_every_dtype(
    rng: torch.Generator, dtype: torch.dtype
) -> None:
    """Large scores beside the least number of a dtype neither overflow nor let keys through."""
    q, k = (30 * draw(rng, 2, 3, n, 4).to(dtype) for n in (5, 7))
    v = draw(rng, 2, 3, 7, 6).to(dtype)
    mask = torch.rand(2, 1, 5, 7, generator=rng) < 0.5
    mask[:, :, 0, 0], mask[:, :, 0, 1], mask[:, :, 1] = True, False, False
    out = attend(q, k, v, mask)
    shut = torch.where(mask[0, 0, 0, :, None], v[0], 1000.0)
    assert out.isfinite().all()
    assert not out[:, :, 1].any()
    torch.testing.assert_close(
        attend(q[:1, :, :1], k[:1], shut[None], mask[:1, :, :1]), out[:1, :, :1]
    )
    assert not torch.equal(attend(q, k, v), out)


def build_cross(heads: int = 1) -> CrossAttention:
    made = CrossAttention(query_dim=6, kv_dim=8, qk_dim=4, v_dim=10, out_dim=5, num_heads=heads)
    return made.double()


def grads_of(module: torch.nn.Module, out: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    weights = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).reshape(out.shape)
    (out * weights).sum().backward()
    grads = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        grads[name] = parameter.grad.clone()
    return grads


def assert_paths_agree(
    rng: torch.Generator, cross: CrossAttention, queries: Tensor, kv: Tensor, mask: Tensor | None
) -> None:
    """Compare outputs and gradients with the reference path, which never moves a projection."""
    if mask is not None:
        mask[0, 0, 0] = False
    fast = cross(queries, kv, mask)
    fast_grads = grads_of(cross, fast)
    with use_attention(cross, "reference"):
        plain = cross(queries, kv, mask)
        plain_grads = grads_of(cross, plain)
    torch.testing.assert_close(fast, plain, **EXACT)
    torch.testing.assert_close(fast_grads, plain_grads, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(fast, cross(draw(rng, *queries.shape), kv, mask))


def maybe_mask(rng: torch.Generator, shape: tuple[int, ...] | None) -> Tensor | None:
    return None if shape is None else torch.rand(shape, generator=rng) < 0.4


@pytest.mark.parametrize("query_batch", [1, 2])
@pytest.mark.parametrize("mask_shape", [None, (2, 3, 1, 9), (1, 3, 5, 9), (2, 3, 5, 9)])
def test_absorbed_projections_equal_plain_ones(
    rng: torch.Generator, mask_shape: tuple[int, ...] | None, query_batch: int
) -> None:
    """More keys than queries make the fast path absorb the keys' projections."""
    queries, kv = draw(rng, query_batch, 3, 5, 6), draw(rng, 2, 3, 9, 8)
    assert_paths_agree(rng, build_cross(), queries, kv, maybe_mask(rng, mask_shape))


@pytest.mark.parametrize("query_batch", [1, 2])
@pytest.mark.parametrize("mask_shape", [None, (2, 3, 1, 5), (1, 3, 9, 5), (2, 3, 9, 5)])
def test_narrow_queries_equal_projected_ones(
    rng: torch.Generator, mask_shape: tuple[int, ...] | None, query_batch: int
) -> None:
    """Fewer keys than queries and wide projections: the projections move to the key side."""
    cross = CrossAttention(query_dim=6, kv_dim=7, qk_dim=24, v_dim=20, out_dim=5, num_heads=1)
    queries, kv = draw(rng, query_batch, 3, 9, 6), draw(rng, 2, 3, 5, 7)
    assert_paths_agree(rng, cross.double(), queries, kv, maybe_mask(rng, mask_shape))


def test_absorption_makes_no_per_key_projection(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        attention, "attend", lambda q, k, v, mask=None: seen.append(k.shape) or attend(q, k, v)
    )
    cross = build_cross()
    cross(draw(rng, 2, 3, 5, 6), draw(rng, 2, 3, 9, 8))  # absorbed: keys are kv, 8 wide
    cross(draw(rng, 2, 3, 5, 6), draw(rng, 2, 3, 4, 8))  # fewer keys than queries: projected to 4
    assert [tuple(shape) for shape in seen] == [(6, 1, 9, 8), (6, 1, 4, 4)]


def test_the_key_bias_has_a_gradient_and_it_is_zero(rng: torch.Generator) -> None:
    cross = build_cross()
    grads = grads_of(cross, cross(draw(rng, 2, 3, 5, 6), draw(rng, 2, 3, 9, 8)))
    assert not grads["k.bias"].any()
    assert grads["q.bias"].any()
    with use_attention(cross, "reference"):
        plain = grads_of(cross, cross(draw(rng, 2, 3, 5, 6), draw(rng, 2, 3, 9, 8)))
    assert plain["k.bias"].abs().max() < 1e-12


def test_several_heads_are_the_same_on_both_paths(rng: torch.Generator) -> None:
    cross = build_cross(heads=2)
    queries, kv = draw(rng, 1, 3, 5, 6), draw(rng, 2, 3, 9, 8)
    fast = cross(queries, kv)
    with use_attention(cross, "reference"):
        torch.testing.assert_close(cross(queries, kv), fast, **EXACT)
    one_head = build_cross()
    one_head.load_state_dict(cross.state_dict())
    assert not torch.allclose(one_head(queries, kv), fast)


def test_self_attention_is_the_same_on_both_paths(rng: torch.Generator) -> None:
    module = SelfAttention(dim=8, num_heads=2).double()
    x = draw(rng, 2, 3, 5, 8)
    mask = torch.rand(2, 3, 1, 5, generator=rng) < 0.5
    fast = module(x, mask)
    with use_attention(module, "reference"):
        torch.testing.assert_close(module(x, mask), fast, **EXACT)
    assert not torch.allclose(module(x), fast)


def test_permuting_keys_leaves_cross_attention_unchanged(rng: torch.Generator) -> None:
    cross = build_cross()
    queries, kv = draw(rng, 2, 1, 5, 6), draw(rng, 2, 1, 9, 8)
    order = torch.randperm(9, generator=rng)
    expected = cross(queries, kv)
    torch.testing.assert_close(cross(queries, kv[:, :, order]), expected, **EXACT)
    assert not torch.allclose(cross(queries[:, :, order[order < 5]], kv), expected)


def test_use_attention_hands_out_weights_and_restores(rng: torch.Generator) -> None:
    module = SelfAttention(dim=8, num_heads=2).double()
    with use_attention(module, "reference", keep_weights=True) as found:
        module(draw(rng, 2, 3, 5, 8))
        weights = found[""].weights
        assert weights is not None
        assert weights.shape == (2, 3, 2, 5, 5)
    assert (module.path, module.keep_weights, module.weights) == ("sdpa", False, None)
    with pytest.raises(RuntimeError, match="inside"), use_attention(module, "reference"):
        raise RuntimeError("inside")
    assert module.path == "sdpa"


@pytest.mark.parametrize(("qk_dim", "v_dim", "wrong"), [(7, 8, "qk_dim=7"), (8, 9, "v_dim=9")])
def test_indivisible_widths_are_refused(qk_dim: int, v_dim: int, wrong: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"cross-attention {wrong} is not a multiple of num_heads=2"
    ):
        CrossAttention(query_dim=6, kv_dim=8, qk_dim=qk_dim, v_dim=v_dim, out_dim=5, num_heads=2)


def test_indivisible_self_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"self-attention qk_dim=9 is not a multiple of num_h"):
        SelfAttention(dim=9, num_heads=2)


# -- unequal widths, dropped queries ---------------------------------------------------------


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(("qk", "v"), [(4, 7), (9, 3), (8, 16), (5, 5)])
def test_padding_heads_to_one_width_changes_nothing(
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...] | None,
    qk: int,
    v: int,
) -> None:
    q, k, values = draw(rng, 2, 3, 5, qk), draw(rng, 2, 3, 7, qk), draw(rng, 2, 3, 7, v)
    mask = maybe_mask(rng, shape)
    if mask is not None:
        mask[0, :, 0] = False  # a query, or a whole sample, that sees nothing
    expected, _ = attend_reference(q, k, values, mask)
    plain = attend(q, k, values, mask)
    monkeypatch.setattr(attention, "PLAIN_SCORES", 0)
    seen: list[tuple[int, ...]] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def watch(*args: Any, **settings: Any) -> Tensor:
        seen.extend(tuple(x.shape)[-1:] for x in args[:3])
        return fused(*args, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    padded = attend(q, k, values, mask)
    torch.testing.assert_close(plain, expected, **EXACT)
    torch.testing.assert_close(padded, expected, **EXACT)
    width = qk if qk == v else -(-max(qk, v) // 8) * 8
    assert seen == [(width,)] * 3
    assert not torch.allclose(attend(q, k, draw(rng, 2, 3, 7, v), mask), expected)


@pytest.mark.parametrize(
    ("queries", "keys", "heads"), [(5, 9, 1), (9, 5, 1), (5, 9, 2)], ids=["absorbed", "narrow", "2"]
)
def test_a_dropped_query_gives_the_output_bias_on_every_path(
    rng: torch.Generator, queries: int, keys: int, heads: int
) -> None:
    cross = CrossAttention(
        query_dim=6, kv_dim=7, qk_dim=24, v_dim=20, out_dim=5, num_heads=heads
    ).double()
    q, kv = draw(rng, 2, 3, queries, 6), draw(rng, 2, 3, keys, 7)
    keep = torch.rand(2, 3, queries, generator=rng) < 0.5
    mask = torch.rand(2, 3, 1, keys, generator=rng) < 0.5
    whole, out = cross(q, kv, mask), cross(q, kv, mask, keep)
    torch.testing.assert_close(out[keep], whole[keep], **EXACT)
    torch.testing.assert_close(out[~keep], cross.out.bias.expand_as(out[~keep]), **EXACT)
    with use_attention(cross, "reference"):
        torch.testing.assert_close(cross(q, kv, mask, keep), out, **EXACT)
    assert not torch.allclose(whole[~keep], cross.out.bias)


@pytest.mark.parametrize(("qk_dim", "v_dim"), [(4, 8), (12, 6), (None, 4), (4, None)])
def test_self_attention_of_unequal_widths_is_the_same_on_both_paths(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, qk_dim: int | None, v_dim: int | None
) -> None:
    module = SelfAttention(dim=8, num_heads=2, qk_dim=qk_dim, v_dim=v_dim).double()
    assert module.qkv.out_features == 2 * (qk_dim or 8) + (v_dim or 8)
    x = draw(rng, 2, 3, 5, 8)
    mask = torch.rand(2, 3, 1, 5, generator=rng) < 0.5
    with use_attention(module, "reference"):
        expected = module(x, mask)
    torch.testing.assert_close(module(x, mask), expected, **EXACT)
    monkeypatch.setattr(attention, "PLAIN_SCORES", 0)
    torch.testing.assert_close(module(x, mask), expected, **EXACT)
    assert not torch.allclose(module(x), expected)


@pytest.mark.parametrize(("qk_dim", "v_dim", "wrong"), [(7, 8, "qk_dim=7"), (8, 9, "v_dim=9")])
def test_self_attention_s_widths_must_be_divisible(qk_dim: int, v_dim: int, wrong: str) -> None:
    with pytest.raises(ConfigError, match=rf"self-attention {wrong} is not a multiple of num_h"):
        SelfAttention(dim=8, num_heads=2, qk_dim=qk_dim, v_dim=v_dim)


@pytest.mark.parametrize("width", [4, 6], ids=["equal widths", "padded or plain"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [1, 3, 15, 16, 40])
def test_nan_in_queries_keys_or_values_is_never_lost(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, keys: int, masked: bool, width: int
) -> None:
    mask = torch.ones(1, 1, 1, keys, dtype=torch.bool) if masked else None
    monkeypatch.setattr(attention, "PLAIN_SCORES", 0 if keys % 2 else 2**25)
    for which in range(3):
        arrays = [draw(rng, 1, 2, n, c) for n, c in ((5, 4), (keys, 4), (keys, width))]
        sound = attend(arrays[0], arrays[1], arrays[2], mask)
        assert bool(sound.isfinite().all())
        arrays[which][0, 0, 0] = torch.nan
        spoiled = attend(arrays[0].float(), arrays[1].float(), arrays[2].float(), mask)
        # A query spoils its own row, a key or a value those of all queries; the other head none.
        rows = spoiled.isnan().any(-1)
        assert rows[0, 0, 0]
        assert bool(rows[0, 0].all()) is (which > 0)
        assert not bool(rows[0, 1].any())
