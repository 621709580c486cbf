"""Blocks: stochastic depth, isolation of groups, latent sub-sampling, recomputation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.errors import ConfigError
from perceivers.nn.blocks import (
    ACTIVATIONS,
    DropPath,
    Mlp,
    PerceiverBlock,
    Read,
    SelfAttentionLayer,
    squared_relu,
)


def draw(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def build_block(
    rng: torch.Generator, *, num_latents: int = 6, skip_dim: int = 0, **settings: int | None
) -> PerceiverBlock:
    read = Read(query_dim=8, token_dim=5, skip_dim=skip_dim)
    layers = [SelfAttentionLayer(dim=8, num_heads=2, mlp_ratio=2) for _ in range(2)]
    latents = torch.randn(3, num_latents, 8, generator=rng)
    return PerceiverBlock(read=read, layers=layers, latents=latents, **settings).double().eval()


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    x = torch.ones(4000, 3, 2, 2)
    for rescale, kept in ((True, 1 / 0.75), (False, 1.0)):
        out = DropPath(0.25, rescale=rescale).train()(x)
        per_sample = out.flatten(1)
        assert ((per_sample == 0).all(1) | (per_sample == kept).all(1)).all()
        assert abs(float((per_sample[:, 0] > 0).float().mean()) - 0.75) < 0.03
        expected = 1.0 if rescale else 0.75
        assert abs(float(out.mean()) - expected) < 0.04


def test_drop_path_is_identity_in_evaluation_and_at_rate_zero(rng: torch.Generator) -> None:
    x = draw(rng, 4, 2, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x
    assert not torch.equal(DropPath(0.5).train()(x), x)


def test_dropout_and_drop_path_act_in_training_only(rng: torch.Generator) -> None:
    x = draw(rng, 8, 1, 3, 8)
    settings: tuple[dict[str, Any], ...] = ({"dropout_rate": 0.5}, {"drop_path_rate": 0.5})
    for setting in settings:
        layer = SelfAttentionLayer(dim=8, num_heads=2, **setting).double()
        assert not torch.allclose(layer.train()(x), layer(x))
        assert torch.equal(layer.eval()(x), layer(x))


def test_a_group_ignores_the_other_groups(rng: torch.Generator) -> None:
    block = build_block(rng)
    tokens = draw(rng, 2, 3, 9, 5)
    changed = tokens.clone()
    changed[:, 1] = draw(rng, 2, 9, 5)
    before, after = block(tokens), block(changed)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]], rtol=0.0, atol=1e-12)
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_samples_do_not_see_one_another(rng: torch.Generator) -> None:
    block = build_block(rng)
    tokens = draw(rng, 3, 3, 9, 5)
    torch.testing.assert_close(block(tokens)[1:2], block(tokens[1:2]), rtol=0.0, atol=1e-12)
    assert not torch.allclose(block(tokens)[1:2], block(tokens[:1]))


def test_masked_tokens_do_not_matter_and_get_no_gradient(rng: torch.Generator) -> None:
    block = build_block(rng)
    tokens = draw(rng, 2, 3, 9, 5).requires_grad_()
    mask = torch.rand(2, 3, 1, 9, generator=rng) < 0.5
    mask[..., 0] = True
    hidden = ~mask.squeeze(2)
    out = block(tokens, mask)
    out.square().sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad[hidden].any()
    assert tokens.grad[~hidden].any()
    fresh = torch.where(hidden.unsqueeze(-1), draw(rng, 2, 3, 9, 5), tokens.detach())
    torch.testing.assert_close(block(fresh, mask), out, rtol=0.0, atol=1e-12)
    assert not torch.allclose(block(fresh), block(tokens))


def test_a_group_without_visible_token_keeps_its_latents_unread(rng: torch.Generator) -> None:
    read = Read(query_dim=8, token_dim=5).double()
    mask = torch.ones(1, 2, 1, 9, dtype=torch.bool)
    mask[:, 1] = False
    queries = draw(rng, 1, 2, 6, 8)
    x = queries + read.attention.out.bias  # zero attention, then the output bias and the residual
    expected = x + read.mlp(read.norm_mlp(x))
    out = read(queries, draw(rng, 1, 2, 9, 5), mask)
    torch.testing.assert_close(out[:, 1], expected[:, 1], rtol=0.0, atol=1e-12)
    assert not torch.allclose(out[:, 0], expected[:, 0])


def test_skips_of_both_widths_change_the_latents(rng: torch.Generator) -> None:
    tokens = draw(rng, 2, 3, 9, 5)
    for skip_dim in (8, 7):
        block = build_block(rng, skip_dim=skip_dim)
        assert (block.read.skip is None) == (skip_dim == 8)
        skip = draw(rng, 2, 3, 6, skip_dim)
        assert not torch.allclose(block(tokens, skip=skip), block(tokens))
        zero = torch.zeros_like(skip)
        same = torch.allclose(block(tokens, skip=zero), block(tokens))
        assert same == (skip_dim == 8)  # the Linear's bias remains


def test_training_uses_a_random_subset_of_latents_per_sample_and_group(
    rng: torch.Generator,
) -> None:
    torch.manual_seed(0)
    block = build_block(rng, num_latents=6, train_latents=4).train()
    tokens = draw(rng, 5, 3, 9, 5)
    chosen = block.queries(len(tokens), tokens.device)
    assert chosen.shape == (5, 3, 4, 8)
    matches = (chosen.unsqueeze(3) == block.latents.unsqueeze(1)).all(-1)  # [B, G, 4, 6]
    assert (matches.sum(-1) == 1).all()  # each is one of the group's own latents
    assert (matches.sum(2) <= 1).all()  # and none is drawn twice
    used = matches.any(2)  # [B, G, 6]
    assert len(used[:, 0].unique(dim=0)) > 1  # samples differ in the same group
    assert len(used[0].unique(dim=0)) > 1  # groups differ in the same sample
    assert block(tokens).shape == (5, 3, 4, 8)
    assert not torch.equal(block.queries(len(tokens), tokens.device), chosen)


def test_evaluation_uses_all_latents(rng: torch.Generator) -> None:
    block = build_block(rng, num_latents=6, train_latents=4)
    tokens = draw(rng, 2, 3, 9, 5)
    assert block(tokens).shape == (2, 3, 6, 8)
    assert torch.equal(block(tokens), block(tokens))


def test_recomputing_gives_the_same_values_and_gradients(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = build_block(rng).train()
    for layer in block.layers:
        assert isinstance(layer, SelfAttentionLayer)
        layer.dropout.p = 0.3  # the recomputation must replay the dropped units too
    tokens = draw(rng, 2, 3, 9, 5)
    results = []
    for recompute in (False, True):
        block.recompute = recompute
        block.zero_grad()
        with torch.random.fork_rng(devices=[]):
            out = block(tokens)
            out.square().sum().backward()
        grads = {name: p.grad for name, p in block.named_parameters()}
        assert all(grad is not None for grad in grads.values())
        results.append(
            (out.detach(), {name: g.clone() for name, g in grads.items() if g is not None})
        )
    torch.testing.assert_close(results[0], results[1], rtol=0.0, atol=1e-12)
    calls = []
    monkeypatch.setattr(
        SelfAttentionLayer,
        "forward",
        lambda self, x: calls.append(1) or x + self.mlp(x),
    )
    block(tokens).sum().backward()
    assert len(calls) == 4  # two layers, each run forward and once more for the backward pass


def test_squared_relu_by_hand() -> None:
    assert squared_relu(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]


def test_every_activation_is_another_function(rng: torch.Generator) -> None:
    x = draw(rng, 100)
    values = {name: function(x) for name, function in ACTIVATIONS.items()}
    for first in values:
        for second in values:
            assert torch.equal(values[first], values[second]) == (first == second)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"activation 'gelo' is unknown.*did you mean 'gelu'\?"):
        Mlp(dim=4, ratio=1, activation="gelo")


def test_a_read_drops_queries_but_keeps_its_residual_and_mlp(rng: torch.Generator) -> None:
    tokens, queries = draw(rng, 2, 1, 9, 5), draw(rng, 1, 1, 6, 8)
    keep = torch.rand(2, 1, 6, generator=rng) < 0.5
    for residual in (True, False):
        read = Read(query_dim=8, token_dim=5, residual=residual).double()
        x = read.attention.out.bias + (queries if residual else 0.0)
        nothing = (x + read.mlp(read.norm_mlp(x))).expand(2, 1, 6, 8)
        out, whole = read(queries, tokens, keep=keep), read(queries, tokens)
        torch.testing.assert_close(out[~keep], nothing[~keep], rtol=0.0, atol=1e-12)
        torch.testing.assert_close(out[keep], whole[keep], rtol=0.0, atol=1e-12)
        assert not torch.allclose(whole[~keep], nothing[~keep])


def test_widths_of_a_read_follow_the_tokens_unless_given() -> None:
    def widths(**settings: Any) -> tuple[int, int]:
        read = Read(query_dim=8, token_dim=6, **settings)
        return read.attention.q.out_features, read.attention.v.out_features

    assert widths() == (6, 6)
    assert widths(qk_dim=4) == (4, 4)
    assert widths(v_dim=10) == (6, 10)
    assert widths(qk_dim=4, v_dim=10) == (4, 10)


def test_widths_of_a_layer_are_its_own_unless_given(rng: torch.Generator) -> None:
    layer = SelfAttentionLayer(dim=8, num_heads=2, qk_dim=4, v_dim=6).double()
    assert layer.attention.widths == (4, 4, 6)
    assert layer.attention.out.in_features == 6
    x = draw(rng, 2, 1, 5, 8)
    assert layer(x).shape == x.shape
    assert SelfAttentionLayer(dim=8, num_heads=2).attention.widths == (8, 8, 8)
