"""Attention maps: sums, what is left out, which latents are singled out, recording, limits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from perceivers.errors import ConfigError, InputError
from perceivers.models import attention_maps
from perceivers.models.attention_maps import (
    Field,
    check_head,
    check_scores,
    choose_heads,
    record,
    rollout_heads,
    single_out,
)
from perceivers.nn.attention import CrossAttention


def field(real: list[list[bool]]) -> Field:
    """All slots are one modality ``x``, in the order of the groups."""
    return Field(torch.tensor(real), lambda values: {"x": values.flatten()})


def attention(**changes: int) -> CrossAttention:
    sizes = {"query_dim": 4, "kv_dim": 6, "qk_dim": 4, "v_dim": 4, "out_dim": 4, "num_heads": 2}
    return CrossAttention(**{**sizes, **changes})


def test_a_map_sums_to_one_and_counts_readable_tokens() -> None:
    found = field([[True, True, False]]).map("all", torch.tensor([[1.0, 3.0, 0.0]]))
    assert found.shares["x"].tolist() == [0.25, 0.75, 0.0]
    assert found.tokens == 2
    assert found.note == ""


def test_attention_on_empty_slots_is_left_out_and_said() -> None:
    found = field([[True, True, False]]).map("all", torch.tensor([[0.2, 0.3, 0.5]]), "so")
    np.testing.assert_allclose(found.shares["x"], [0.4, 0.6, 0.0], atol=1e-7)
    assert found.note == "so 50.0 % on empty slots left out"


def test_a_sample_that_holds_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"all: no attention fell on the input \(0 readable"):
        field([[False, False]]).map("all", torch.tensor([[0.5, 0.5]]))


def test_the_mean_comes_first_and_then_the_latents_that_differ_most() -> None:
    weights = torch.tensor([[[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.0, 0.1, 0.9]]])
    mean, first, second = single_out(weights, field([[True] * 3]), 2)
    np.testing.assert_allclose(mean.shares["x"], [0.3, 0.4, 0.3], atol=1e-6)
    assert mean.label == "mean of 3 latents"
    assert first.label == "latent 2"
    np.testing.assert_allclose(first.shares["x"], [0.0, 0.1, 0.9], atol=1e-6)
    # Half of |0 - 0.3| + |0.1 - 0.4| + |0.9 - 0.3|.
    assert first.note == "60 % elsewhere than the mean"
    assert second.label == "latent 0"


def test_groups_weigh_alike_and_latents_stay_in_theirs() -> None:
    weights = torch.zeros(2, 2, 2)
    weights[0] = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    weights[1] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mean, first = single_out(weights, field([[True, True], [True, True]]), 1)
    assert mean.shares["x"].tolist() == [0.5, 0.0, 0.25, 0.25]
    assert mean.label == "mean of 4 latents"
    assert first.label.startswith("group 1, latent ")
    assert first.note == "50 % elsewhere than its group's mean"
    assert first.shares["x"][:2].tolist() == [0.0, 0.0]
    assert first.tokens == 2


def test_a_group_without_anything_readable_counts_for_nothing() -> None:
    weights = torch.full((2, 2, 2), 0.5)
    maps = single_out(weights, field([[True, True], [False, False]]), 9)
    assert maps[0].shares["x"].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert maps[0].label == "mean of 2 latents"
    assert [each.label for each in maps[1:]] == ["group 0, latent 0", "group 0, latent 1"]


def test_heads_are_averaged_or_chosen() -> None:
    weights = torch.arange(2.0).reshape(1, 2, 1, 1).expand(1, 2, 3, 4)
    assert [(words, float(w.mean())) for words, w in choose_heads(weights, "all")] == [
        ("head 0 of 0 to 1", 0.0),
        ("head 1 of 0 to 1", 1.0),
    ]
    ((words, mean),) = choose_heads(weights, "mean")
    assert (words, float(mean.mean())) == ("mean of 2 heads", 0.5)
    assert float(rollout_heads(weights, "1").mean()) == 1.0
    assert float(rollout_heads(weights, "all").mean()) == 0.5
    assert choose_heads(weights[:, :1], "mean")[0][0] == ""


@pytest.mark.parametrize("head", ["2", "-1", 2, "most", "1.0", ""])
def test_a_head_that_there_is_not_is_refused(head: str | int) -> None:
    with pytest.raises(ConfigError, match=r"use 'all', 'mean' or a number from 0 to 1.* 2 heads"):
        check_head(head, 2)


def test_too_many_scores_are_refused_with_their_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_maps, "MAX_SCORES", 1000)
    check_scores({"latents": 10, "tokens": 100})
    with pytest.raises(InputError, match=r"1,010 scores \(10 latents x 101 tokens\).*1,000.*resiz"):
        check_scores({"latents": 10, "tokens": 101})


def test_every_call_of_a_module_is_recorded_and_nothing_else(rng: torch.Generator) -> None:
    ours, other = attention(), attention()
    both = torch.nn.ModuleList([ours, other])
    queries, kv = torch.randn(1, 1, 3, 4, generator=rng), torch.randn(2, 1, 5, 6, generator=rng)
    with torch.no_grad():
        plain = ours(queries, kv)
        with record(both, [ours]) as recorded:
            results: list[Tensor] = [ours(queries, kv), other(queries, kv), ours(queries, 2 * kv)]
    first, second = recorded.of([ours])
    assert first.shape == (1, 2, 3, 5)
    torch.testing.assert_close(first.sum(-1), torch.ones(1, 2, 3))
    assert not torch.allclose(first, second)
    assert recorded.of([other]) == []
    torch.testing.assert_close(results[0], plain)


def test_recording_leaves_no_trace() -> None:
    module = attention()
    both = torch.nn.ModuleList([module, attention()])
    with pytest.raises(RuntimeError, match="stop"), record(both, [module]):
        raise RuntimeError("stop")
    assert module.path == "sdpa"
    assert not module.keep_weights
    with record(both, [module]) as recorded:
        pass
    module(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 5, 6))
    assert recorded.calls == []
