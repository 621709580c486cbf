"""Space to depth: the released code's order of values, its inverse, and sizes that do not fit."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceivers.errors import InputError
from perceivers.nn.patches import depth_to_space, space_to_depth

GOLDEN = Path(__file__).parents[1] / "golden" / "dmr_blocks.npz"


def golden(name: str) -> Tensor:
    with np.load(GOLDEN) as file:
        return torch.from_numpy(file[name])


def channels_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


@pytest.mark.parametrize(
    ("kind", "result", "factors"),
    [("image", "out_s4", (4, 4)), ("video", "out_t2_s2", (2, 2, 2))],
)
def test_values_come_in_the_order_of_the_released_code(
    kind: str, result: str, factors: tuple[int, ...]
) -> None:
    x = channels_first(golden(f"space_to_depth_{kind}/in"))
    expected = golden(f"space_to_depth_{kind}/{result}").flatten(1, -2)
    assert torch.equal(space_to_depth(x, factors), expected)
    assert not torch.equal(space_to_depth(x.flip(-1), factors), expected)


def test_depth_to_space_puts_values_where_the_released_code_does() -> None:
    tokens = golden("space_to_depth_video/out_t2_s2").flatten(1, -2)
    expected = channels_first(golden("reverse_space_to_depth_video/out_t2_s2"))
    assert torch.equal(depth_to_space(tokens, expected.shape[2:], (2, 2, 2)), expected)


def test_one_axis_by_hand() -> None:
    x = torch.tensor([[[1, 2, 3, 4], [10, 20, 30, 40]]])  # two channels of four samples
    assert space_to_depth(x, (2,)).tolist() == [[[1, 10, 2, 20], [3, 30, 4, 40]]]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
def test_the_inverse_undoes_it_for_any_number_of_axes(axes: list[tuple[int, int]]) -> None:
    grid, factors = [n * f for n, f in axes], [f for _, f in axes]
    x = torch.arange(2 * 3 * prod(grid)).reshape(2, 3, *grid)
    tokens = space_to_depth(x, factors)
    assert tokens.shape == (2, prod(n for n, _ in axes), 3 * prod(factors))
    assert torch.equal(depth_to_space(tokens, grid, factors), x)


def test_sizes_that_do_not_divide_name_the_nearest_that_do() -> None:
    with pytest.raises(
        InputError, match=r"grid \(7, 10\) .* blocks \(4, 4\); .* are \(4, 8\) and \(8, 12\)"
    ):
        space_to_depth(torch.zeros(1, 3, 7, 10), (4, 4))
    with pytest.raises(InputError, match=r"nearest grids that do are \(4,\) and \(4,\)"):
        space_to_depth(torch.zeros(1, 3, 3), (4,))


@pytest.mark.parametrize("factors", [(2,), (2, 0), (2, 2, 2)])
def test_a_block_needs_one_size_per_axis(factors: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one size of at least 1 for each of its 2 axes"):
        space_to_depth(torch.zeros(1, 1, 4, 4), factors)


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 6)])
def test_tokens_of_another_grid_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected 4 tokens of a multiple of 4 values"):
        depth_to_space(torch.zeros(shape), (4, 4), (2, 2))
