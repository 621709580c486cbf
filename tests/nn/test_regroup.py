"""Regrouping: round trips, which latents meet, error text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perceivers.errors import ConfigError
from perceivers.nn.grouping import regroup


def numbered(batch: int, groups: int, num: int) -> torch.Tensor:
    """An array ``[B, G, N, 2]`` that holds its own group and latent numbers."""
    group, latent = torch.meshgrid(torch.arange(groups), torch.arange(num), indexing="ij")
    return torch.stack([group, latent], -1).float().expand(batch, -1, -1, -1)


@given(
    batch=st.integers(1, 2), before=st.integers(1, 4), after=st.integers(1, 4), k=st.integers(1, 3)
)
def test_reshaping_there_and_back_is_identity(batch: int, before: int, after: int, k: int) -> None:
    x = numbered(batch, before, after * k)
    there = regroup(x, after)
    assert there.shape == (batch, after, before * k, 2)
    assert torch.equal(regroup(there, before), x)


@given(before=st.integers(1, 4), after=st.integers(1, 4), k=st.integers(1, 3))
def test_no_latent_is_lost_or_doubled(before: int, after: int, k: int) -> None:
    x = numbered(1, before, after * k)
    expected = sorted(map(tuple, x.reshape(-1, 2).tolist()))
    for how in ("reshape", "transpose_reshape"):
        found = regroup(x, after, how).reshape(-1, 2).tolist()
        assert sorted(map(tuple, found)) == expected


def test_reshape_merges_neighbours_and_transpose_mixes_all() -> None:
    x = numbered(1, 4, 6)
    assert regroup(x, 2)[0, 0, :, 0].unique().tolist() == [0, 1]
    assert regroup(x, 2)[0, 1, :, 0].unique().tolist() == [2, 3]
    mixed = regroup(x, 2, "transpose_reshape")
    assert mixed[0, 0, :, 0].unique().tolist() == [0, 1, 2, 3]
    assert mixed[0, 0, :, 1].unique().tolist() == [0, 1, 2]


def test_an_uneven_deal_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 groups of 5 latents cannot be dealt into 4 equal"):
        regroup(torch.zeros(1, 3, 5, 2), 4)
