"""The order of tokens in mask units: the released permutation, its inverse, pooling, errors."""

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError
from perceivers.nn.mask_units import UnitLayout, gather_units, pool_tokens

LINE = UnitLayout(unit=(32,), pool=(4,), levels=2)
PLANE = UnitLayout(unit=(8, 8), pool=(2, 2), levels=3)
CLIP = UnitLayout(unit=(1, 8, 8), pool=(1, 2, 2), levels=3)
UNEVEN = UnitLayout(unit=(6, 4), pool=(3, 2), levels=1)
# A layout and the tokens of a grid that it cuts; all units and grids are of unequal sides.
GRIDS = [(LINE, (96,)), (PLANE, (16, 24)), (CLIP, (3, 8, 16)), (UNEVEN, (12, 12))]
MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
WAYS = [(layout, grid, n) for layout, grid in GRIDS for n in range(layout.levels + 1)]


def count(*sizes: int) -> Tensor:
    """Every element another number."""
    return torch.arange(prod(sizes)).reshape(sizes)


# -- the order -------------------------------------------------------------------------------


def test_on_a_line_the_digit_pooled_first_is_the_slowest() -> None:
    """From b (u r s1 s0) c to b u (s0 s1 r) c, with two tokens left after both poolings."""
    x = count(2, 96, 3)
    wanted = x.reshape(2, 3, 2, 4, 4, 3).permute(0, 1, 4, 3, 2, 5).reshape(2, 3, 32, 3)
    assert torch.equal(LINE.split(x), wanted)
    assert LINE.split(x)[0, 0, :4, 0].tolist() == [0, 48, 12, 60]


def test_on_a_plane_it_is_the_released_order_with_units_first() -> None:
    """Released: b (h y2 y1 y0) (w x2 x1 x0) c -> b (y0 x0 y1 x1 y2 x2 h w) c; units are fastest."""
    x = count(2, 16, 24, 3)
    digits = x.reshape(2, 2, 2, 2, 2, 3, 2, 2, 2, 3)  # b h y2 y1 y0 w x2 x1 x0 c
    released = digits.permute(0, 4, 8, 3, 7, 2, 6, 1, 5, 9).reshape(2, 64, 6, 3)
    assert torch.equal(PLANE.split(x), released.transpose(1, 2))
    assert not torch.equal(PLANE.split(x), released.reshape(2, 6, 64, 3))


def test_in_clips_time_is_an_axis_of_units() -> None:
    """Released: b t (h y2 y1 y0) (w x2 x1 x0) c -> b (y0 x0 y1 x1 y2 x2 t h w) c."""
    x = count(2, 3, 8, 16, 2)
    digits = x.reshape(2, 3, 1, 2, 2, 2, 2, 2, 2, 2, 2)  # b t h y2 y1 y0 w x2 x1 x0 c
    released = digits.permute(0, 5, 9, 4, 8, 3, 7, 1, 2, 6, 10).reshape(2, 64, 6, 2)
    assert torch.equal(CLIP.split(x), released.transpose(1, 2))


def test_a_pooled_grid_has_fewer_digits() -> None:
    """After two of three poolings a unit is 2 x 2, in the order y2 x2."""
    x = count(1, 4, 6, 1)
    wanted = x.reshape(1, 2, 2, 3, 2, 1).permute(0, 1, 3, 2, 4, 5).reshape(1, 6, 4, 1)
    assert torch.equal(PLANE.split(x, 2), wanted)
    assert torch.equal(PLANE.split(count(1, 2, 3, 1), 3).flatten(), torch.arange(6))  # row-major


# -- back ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "grid", "pools"), WAYS)
def test_merge_undoes_split_after_any_number_of_poolings(
    layout: UnitLayout, grid: tuple[int, ...], pools: int
) -> None:
    units = layout.units(grid)
    pooled = [g // p**pools for g, p in zip(grid, layout.pool, strict=True)]
    x = count(2, *pooled, 3)
    split = layout.split(x, pools)
    assert split.shape == (2, prod(units), layout.tokens(pools), 3)
    assert layout.units(pooled, pools) == units
    assert torch.equal(layout.merge(split, units, pools), x)
    assert torch.equal(split.flatten().sort().values, x.flatten())


@pytest.mark.slow
@given(
    units=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    pool=st.integers(1, 3),
    levels=st.integers(0, 2),
    rest=st.integers(1, 2),
    batch=st.integers(1, 2),
)
def test_merge_undoes_split_on_any_grid(
    units: list[int], pool: int, levels: int, rest: int, batch: int
) -> None:
    rank = len(units)
    layout = UnitLayout(unit=(rest * pool**levels,) * rank, pool=(pool,) * rank, levels=levels)
    x = count(batch, *(n * layout.unit[0] for n in units), 2)
    assert torch.equal(layout.merge(layout.split(x), units), x)


@pytest.mark.parametrize(("layout", "grid", "pools"), WAYS)
def test_inside_a_unit_tokens_lie_as_they_do_on_the_grid(
    layout: UnitLayout, grid: tuple[int, ...], pools: int
) -> None:
    side, units = layout.side(pools), layout.units(grid)
    x = count(2, *(u * s for u, s in zip(units, side, strict=True)), 3)
    inside = layout.merge_inside(layout.split(x, pools), pools)
    assert inside.shape == (2, prod(units), *side, 3)
    for index, place in enumerate(product(*(range(u) for u in units))):
        part = x
        for axis, (at, size) in enumerate(zip(place, side, strict=True)):
            part = part.narrow(1 + axis, at * size, size)
        assert torch.equal(inside[:, index], part)


def test_a_few_units_can_be_merged_inside() -> None:
    split = PLANE.split(count(2, 16, 24, 3))
    ids = torch.tensor([[4, 0], [5, 2]])
    some = PLANE.merge_inside(gather_units(split, ids))
    assert some.shape == (2, 2, 8, 8, 3)
    assert torch.equal(some[1, 0], PLANE.merge_inside(split)[1, 5])
    assert torch.equal(some[0, 1], PLANE.merge_inside(split)[0, 0])


# -- pooling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "grid", "pools"), [way for way in WAYS if way[2] > 0])
def test_pooling_is_spatial_maximum_pooling(
    rng: torch.Generator, layout: UnitLayout, grid: tuple[int, ...], pools: int
) -> None:
    x = torch.randn(2, *grid, 3, generator=rng)
    tokens, spatial = layout.split(x), x.movedim(-1, 1)
    for _ in range(pools):
        tokens = pool_tokens(tokens, layout.stride)
        spatial = MAXIMA[layout.rank](spatial, layout.pool)
    assert torch.equal(tokens, layout.split(spatial.movedim(1, -1), pools))


def test_pooling_takes_every_channel_for_itself_and_never_mixes_units() -> None:
    x = torch.tensor([[[[1.0, 9.0], [3.0, 2.0], [5.0, 0.0], [4.0, 8.0]]] * 2])
    x[0, 1] += 100
    pooled = pool_tokens(x, 4)
    assert pooled[0, :, 0].tolist() == [[5.0, 9.0], [105.0, 109.0]]
    assert pool_tokens(x, 2)[0, 0].tolist() == [[5.0, 9.0], [4.0, 8.0]]  # 0 with 2, 1 with 3
    assert pool_tokens(x, 1) is x


# -- sizes and errors ------------------------------------------------------------------------


def test_sizes_shrink_with_every_pooling() -> None:
    assert [PLANE.side(n) for n in range(4)] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    assert [PLANE.tokens(n) for n in range(4)] == [64, 16, 4, 1]
    assert [CLIP.side(n) for n in range(4)] == [(1, 8, 8), (1, 4, 4), (1, 2, 2), (1, 1, 1)]
    assert PLANE.units((56, 56)) == PLANE.units((14, 14), 2) == (7, 7)
    assert (PLANE.rank, CLIP.rank, PLANE.stride, CLIP.stride, LINE.stride) == (2, 3, 4, 4, 4)


@pytest.mark.parametrize(
    ("unit", "pool", "levels"),
    [
        ((8, 6), (2, 2), 2),  # does not divide
        ((8, 8), (2,), 1),  # axes differ in number
        ((8, 0), (2, 2), 1),
        ((8, -8), (2, 2), 1),
        ((8, 8), (2, 0), 1),
        ((8, 8), (2, 2), -1),
        ((), (), 1),
    ],
)
def test_a_unit_that_cannot_be_pooled_is_refused(
    unit: tuple[int, ...], pool: tuple[int, ...], levels: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        UnitLayout(unit=unit, pool=pool, levels=levels)
    assert f"a mask unit of {unit} tokens cannot be pooled {levels} times by {pool}; every" in str(
        caught.value
    )
