"""Grouping: split and merge, validity, isolation of modalities, error text."""

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perceivers.errors import ConfigError
from perceivers.nn.grouping import concatenate, deal_groups, morton_order


@st.composite
def deals(draw: st.DrawFn) -> tuple[dict[str, int], int]:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    groups = draw(st.integers(len(lengths), 12))
    return {f"m{i}": length for i, length in enumerate(lengths)}, groups


@given(deal=deals())
def test_merge_undoes_split(deal: tuple[dict[str, int], int]) -> None:
    layout = deal_groups(*deal)
    for share in layout.shares:
        x = torch.arange(1.0, 2 * share.length + 1).reshape(1, share.length, 2)
        split = share.split(x)
        assert split.shape == (1, share.num_groups, share.slots, 2)
        assert torch.equal(share.merge(split), x)
        assert torch.equal(split.any(-1)[0], share.valid())  # padding, and only it, is zero


@given(deal=deals())
def test_valid_slots_are_as_many_as_elements(deal: tuple[dict[str, int], int]) -> None:
    layout = deal_groups(*deal)
    for share in layout.shares:
        assert int(share.valid().sum()) == share.length
        assert share.is_padded == (share.num_groups * share.slots > share.length)
    assert layout.is_padded == any(not share.valid().all() for share in layout.shares)


@given(deal=deals())
def test_no_group_mixes_modalities_and_none_is_left_over(deal: tuple[dict[str, int], int]) -> None:
    layout = deal_groups(*deal)
    marked = layout.join(
        [
            share.split(torch.full((1, share.length, 1), float(place)))
            for place, share in enumerate(layout.shares, start=1)
        ]
    )[0, ..., 0]
    assert len(marked) == layout.num_groups
    owners = [set(group[group > 0].tolist()) for group in marked]
    assert all(len(owner) <= 1 for owner in owners)
    for place, share in enumerate(layout.shares, start=1):
        assert sum({float(place)} == owner for owner in owners) <= share.num_groups
        part = layout.part(marked[None, ..., None], share.name)
        assert part.shape[1] == share.num_groups


@given(deal=deals())
def test_the_longest_share_is_the_shortest_possible(deal: tuple[dict[str, int], int]) -> None:
    """Dealing greedily is optimal: no other deal has fewer slots per group."""
    layout = deal_groups(*deal)
    longest = max(share.length / share.num_groups for share in layout.shares)
    for share in layout.shares:
        if share.num_groups > 1:
            assert share.length / (share.num_groups - 1) >= longest


def test_order_decides_ties_and_places() -> None:
    first = deal_groups({"a": 10, "b": 10}, 3)
    assert [(s.name, s.num_groups) for s in first.shares] == [("a", 2), ("b", 1)]
    second = deal_groups({"b": 10, "a": 10}, 3)
    assert [(s.name, s.num_groups) for s in second.shares] == [("b", 2), ("a", 1)]


def test_concatenating_makes_one_group_without_padding() -> None:
    layout = concatenate({"a": 3, "b": 5})
    assert (layout.num_groups, layout.is_padded, layout.axis) == (1, False, "slots")
    a, b = torch.rand(1, 1, 3, 2), torch.rand(1, 1, 5, 2)
    joined = layout.join([a, b])
    assert joined.shape == (1, 1, 8, 2)
    assert torch.equal(layout.part(joined, "a"), a)
    assert torch.equal(layout.part(joined, "b"), b)


def test_more_modalities_than_groups_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"3 modalities \['a', 'b', 'c'\] cannot share 2 groups.*at least 3 groups",
    ):
        deal_groups({"a": 4, "b": 4, "c": 4}, 2)
    with pytest.raises(ConfigError, match=r"0 modalities \[\] cannot share 2 groups"):
        deal_groups({}, 2)


@given(
    grid=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), groups=st.integers(1, 5)
)
def test_merge_undoes_split_along_the_curve(grid: tuple[int, ...], groups: int) -> None:
    count = prod(grid)
    (share,) = deal_groups({"m": count}, groups, {"m": grid}).shares
    x = torch.arange(1.0, 2 * count + 1).reshape(1, count, 2)
    assert torch.equal(share.merge(share.split(x)), x)
    assert sorted(morton_order(grid).tolist()) == list(range(count))


def test_groups_along_the_curve_are_blocks() -> None:
    (share,) = deal_groups({"m": 64}, 4, {"m": (8, 8)}).shares
    cells = share.split(torch.arange(64).reshape(1, 64, 1))[0, ..., 0]
    grid = torch.arange(64).reshape(8, 8)
    corners = [grid[y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
    assert [sorted(c.tolist()) for c in cells] == [sorted(c.flatten().tolist()) for c in corners]
    assert morton_order((2, 4)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]  # the long axis last
