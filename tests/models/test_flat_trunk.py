"""The latent array: when it reads, what is shared, and that every setting changes something."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.adapters.config import build_nested
from perceivers.errors import ConfigError
from perceivers.models.flat.trunk import Trunk, TrunkConfig
from perceivers.nn.attention import use_attention

Stir = Callable[..., Trunk]
EXACT: dict[str, Any] = dict(rtol=0.0, atol=1e-12)
SMALL: dict[str, Any] = {"num_latents": 5, "latent_dim": 8, "depth": 1, "num_heads": 2}
TOKEN_DIM = 6


def build(stir: Stir, **settings: Any) -> Trunk:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stir(Trunk(TrunkConfig(**{**SMALL, **settings}), TOKEN_DIM))


def draw(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# -- the order of things ---------------------------------------------------------------------

R, B = "read", "block"
SCHEDULES: list[tuple[dict[str, Any], list[tuple[str, int]]]] = [
    ({}, [(R, 0), (B, 0)]),
    ({"num_blocks": 3}, [(R, 0), (B, 0), (B, 0), (B, 0)]),
    ({"num_blocks": 3, "share_blocks": False}, [(R, 0), (B, 0), (B, 1), (B, 2)]),
    ({"num_blocks": 3, "num_reads": 3}, [(R, 0), (B, 0), (R, 1), (B, 0), (R, 1), (B, 0)]),
    (
        {"num_blocks": 2, "num_reads": 2, "share_reads": "all"},
        [(R, 0), (B, 0), (R, 0), (B, 0)],
    ),
    (
        {"num_blocks": 3, "num_reads": 3, "share_reads": "none", "share_blocks": False},
        [(R, 0), (B, 0), (R, 1), (B, 1), (R, 2), (B, 2)],
    ),
    # Fewer reads than blocks are spread evenly.
    (
        {"num_blocks": 4, "num_reads": 2, "share_blocks": False},
        [(R, 0), (B, 0), (B, 1), (R, 1), (B, 2), (B, 3)],
    ),
    (
        {"num_blocks": 2, "num_reads": 3, "reads": "at_start", "share_blocks": False},
        [(R, 0), (R, 1), (R, 1), (B, 0), (B, 1)],
    ),
    ({"num_reads": 2, "reads": "at_start", "share_reads": "none"}, [(R, 0), (R, 1), (B, 0)]),
]


@pytest.mark.parametrize(("settings", "steps"), SCHEDULES)
def test_reads_and_blocks_come_in_the_declared_order(
    stir: Stir, rng: torch.Generator, settings: dict[str, Any], steps: list[tuple[str, int]]
) -> None:
    trunk = build(stir, **settings)
    assert list(trunk.steps) == steps
    assert len(trunk.reads) == 1 + max(i for kind, i in steps if kind == R)
    assert len(trunk.blocks) == 1 + max(i for kind, i in steps if kind == B)
    done: list[tuple[str, int]] = []
    for kind, modules in ((R, trunk.reads), (B, trunk.blocks)):
        for index, module in enumerate(modules):
            step = module if kind == R else module[0]  # pyright: ignore[reportIndexIssue]
            step.register_forward_hook(lambda *_, at=(kind, index): done.append(at))
    trunk(draw(rng, 2, 7, TOKEN_DIM))
    assert done == steps


def test_more_interleaved_reads_than_blocks_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"3 interleaved reads need at least as many blocks, but num_blocks is 2; use",
    ):
        TrunkConfig(**SMALL, num_blocks=2, num_reads=3)
    assert len(TrunkConfig(**SMALL, num_blocks=2, num_reads=3, reads="at_start").steps) == 5


def as_unshared(shared: Trunk, unshared: Trunk) -> None:
    """Copy the weights of every step of a trunk that shares into one that does not."""
    with torch.no_grad():
        unshared.latents.copy_(shared.latents)
    for (kind, ours), (_, theirs) in zip(shared.steps, unshared.steps, strict=True):
        source = (shared.reads if kind == R else shared.blocks)[ours]
        (unshared.reads if kind == R else unshared.blocks)[theirs].load_state_dict(
            source.state_dict()
        )


def grad_of(trunk: Trunk, name: str) -> Tensor:
    grad = trunk.get_parameter(name).grad
    assert grad is not None
    return grad


@pytest.mark.parametrize("share", ["all", "all_but_first"])
def test_a_shared_weight_acts_wherever_it_is_used(
    stir: Stir, rng: torch.Generator, share: str
) -> None:
    """Shared weights equal separate copies, and their gradient is the sum over the copies."""
    shape = {"num_blocks": 3, "num_reads": 3}
    shared = build(stir, **shape, share_reads=share)
    apart = build(stir, **shape, share_reads="none", share_blocks=False)
    as_unshared(shared, apart)
    tokens = draw(rng, 2, 7, TOKEN_DIM)
    out = shared(tokens)
    torch.testing.assert_close(apart(tokens), out, **EXACT)
    for trunk in (shared, apart):
        trunk(tokens).square().sum().backward()
    bias = "reads.{}.attention.out.bias"
    of_reads = [grad_of(apart, bias.format(read)) for read in range(3)]
    wanted = of_reads if share == "all" else of_reads[1:]
    last = grad_of(shared, bias.format(len(shared.reads) - 1))
    torch.testing.assert_close(last, torch.stack(wanted).sum(0), rtol=1e-9, atol=1e-12)
    layer = "blocks.{}.0.mlp.out.bias"
    of_blocks = [grad_of(apart, layer.format(block)) for block in range(3)]
    found = grad_of(shared, layer.format(0))
    torch.testing.assert_close(found, torch.stack(of_blocks).sum(0), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        apart.get_parameter(bias.format(1)).add_(0.1)
    assert not torch.allclose(apart(tokens), out)


# -- settings --------------------------------------------------------------------------------

BASE: dict[str, Any] = {**SMALL, "num_blocks": 2, "num_reads": 2}
CHANGES: dict[str, Any] = {
    "num_latents": 6,
    "latent_dim": 12,
    "depth": 2,
    "num_blocks": 3,
    "share_blocks": False,
    "num_reads": 1,
    "reads": "at_start",
    "share_reads": "all",
    "num_heads": 4,
    "num_cross_heads": 2,
    "qk_dim": 4,
    "v_dim": 4,
    "attention_width": "latents",
    "mlp_ratio": 2,
    "cross_mlp_ratio": 2,
    "residual": False,
    "activation": "gelu",
    "dropout_rate": 0.5,
}


def test_the_table_of_changes_is_complete() -> None:
    assert list(CHANGES) == [f.name for f in fields(TrunkConfig)]


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_weights_or_results(
    stir: Stir, rng: torch.Generator, name: str
) -> None:
    tokens = draw(rng, 2, 7, TOKEN_DIM)
    results = []
    for settings in (BASE, {**BASE, name: CHANGES[name]}):
        trunk = build(stir, **settings).train()
        shapes = {key: tuple(x.shape) for key, x in trunk.state_dict().items()}
        torch.manual_seed(0)
        results.append((shapes, trunk(tokens)))
    (shapes, out), (changed, other) = results
    assert shapes != changed or not torch.allclose(out, other)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_latents": 0}, r"trunk\.num_latents is 0; it must be at least 1"),
    ({"depth": -1}, r"trunk\.depth is -1; it must not be negative"),
    ({"num_cross_heads": 0}, r"trunk\.num_cross_heads is 0; it must be at least 1"),
    ({"qk_dim": 0}, r"trunk\.qk_dim is 0; it must be at least 1"),
    ({"v_dim": -8}, r"trunk\.v_dim is -8; it must be at least 1"),
    ({"dropout_rate": 1.0}, r"trunk\.dropout_rate is 1\.0; it must be in \[0, 1\)"),
    ({"activation": "gelu_tan"}, r"activation 'gelu_tan' is unknown.*did you mean 'gelu_tanh'\?"),
    ({"heads": 3}, r"TrunkConfig has no setting 'heads'; its settings are .*num_heads"),
]


@pytest.mark.parametrize(("settings", "text"), BAD)
def test_contradictory_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_nested(TrunkConfig, {**SMALL, **settings})


def test_heads_must_divide_their_widths(stir: Stir) -> None:
    with pytest.raises(ConfigError, match=r"cross-attention qk_dim=6 is not a multiple of num_h"):
        build(stir, num_cross_heads=4)
    with pytest.raises(ConfigError, match=r"self-attention qk_dim=8 is not a multiple of num_he"):
        build(stir, num_heads=3)


# -- behaviour -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_cross_heads": 2, "qk_dim": 4, "v_dim": 12},
        {"qk_dim": 12, "v_dim": 8},
        {"num_blocks": 2, "num_reads": 2, "attention_width": "latents"},
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_both_attention_paths_agree(
    stir: Stir, rng: torch.Generator, settings: dict[str, Any], masked: bool
) -> None:
    trunk, tokens = build(stir, **settings), draw(rng, 2, 9, TOKEN_DIM)
    valid = torch.rand(2, 9, generator=rng) < 0.5 if masked else None
    fast = trunk(tokens, valid)
    with use_attention(trunk, "reference"):
        torch.testing.assert_close(trunk(tokens, valid), fast, rtol=0.0, atol=1e-11)
    assert not torch.allclose(trunk(draw(rng, 2, 9, TOKEN_DIM), valid), fast)


def test_permuting_tokens_changes_nothing(stir: Stir, rng: torch.Generator) -> None:
    trunk, tokens = build(stir, num_blocks=2, num_reads=2), draw(rng, 2, 9, TOKEN_DIM)
    order = torch.randperm(9, generator=rng)
    out = trunk(tokens)
    torch.testing.assert_close(trunk(tokens[:, order]), out, **EXACT)
    channels = torch.randperm(TOKEN_DIM, generator=rng)
    assert not torch.allclose(trunk(tokens[..., channels]), out)


def test_tokens_that_are_not_valid_change_nothing_and_get_no_gradient(
    stir: Stir, rng: torch.Generator
) -> None:
    trunk = build(stir, num_blocks=2, num_reads=2)
    tokens = draw(rng, 2, 9, TOKEN_DIM).requires_grad_()
    valid = torch.rand(2, 9, generator=rng) < 0.5
    out = trunk(tokens, valid)
    out.square().sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad[~valid].any()
    assert tokens.grad[valid].any(-1).all()
    fresh = torch.where(valid.unsqueeze(-1), tokens, draw(rng, 2, 9, TOKEN_DIM))
    torch.testing.assert_close(trunk(fresh, valid), out, **EXACT)
    assert not torch.allclose(trunk(fresh), out)
    alone = trunk(tokens[:1, valid[0]])
    torch.testing.assert_close(alone, out[:1], **EXACT)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_sample_without_valid_tokens_is_finite_and_the_same_whatever_it_holds(
    stir: Stir, rng: torch.Generator, heads: int
) -> None:
    trunk = build(stir, num_cross_heads=heads)
    valid = torch.tensor([[True] * 9, [False] * 9])
    tokens = draw(rng, 2, 9, TOKEN_DIM).requires_grad_()
    out = trunk(tokens, valid)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk.parameters())
    assert tokens.grad is not None
    assert not tokens.grad[1].any()
    torch.testing.assert_close(trunk(draw(rng, 2, 9, TOKEN_DIM), valid)[1], out[1], **EXACT)


def test_dropout_acts_in_training_only_and_recomputation_repeats_it(
    stir: Stir, rng: torch.Generator
) -> None:
    trunk, tokens = build(stir, depth=2, num_blocks=2, dropout_rate=0.4), draw(rng, 2, 9, TOKEN_DIM)
    assert torch.equal(trunk(tokens), trunk(tokens))
    results = []
    for recompute in (False, True):
        trunk.train().recompute = recompute
        trunk.zero_grad()
        torch.manual_seed(3)
        out = trunk(tokens)
        out.square().sum().backward()
        results.append((out.detach(), [p.grad for p in trunk.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(trunk.eval()(tokens), results[0][0])


def test_recomputation_runs_every_layer_again(stir: Stir, rng: torch.Generator) -> None:
    for recompute, runs in ((False, 2), (True, 4)):
        trunk = build(stir, num_blocks=2)
        trunk.recompute = recompute
        calls: list[int] = []
        trunk.blocks[0][0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))  # pyright: ignore[reportIndexIssue]
        trunk(draw(rng, 2, 9, TOKEN_DIM)).sum().backward()
        assert len(calls) == runs
