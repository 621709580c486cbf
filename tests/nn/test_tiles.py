"""Tiles: even spacing, full cover, weights by hand, and blending that changes nothing constant."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perceivers.errors import ConfigError, InputError
from perceivers.nn.patches import (
    blend_tiles,
    crop_to_size,
    cut_tiles,
    pad_to_tile,
    tile_places,
    tile_starts,
    tile_weights,
)


def test_a_sintel_frame_takes_six_evenly_spaced_tiles() -> None:
    assert tile_starts(436, 368, 20) == (0, 68)
    assert tile_starts(1024, 496, 20) == (0, 264, 528)
    places = tile_places((436, 1024), (368, 496), 20)
    assert places == ((0, 0), (0, 264), (0, 528), (68, 0), (68, 264), (68, 528))


def test_a_picture_of_the_tile_size_is_one_tile() -> None:
    assert tile_starts(368, 368, 20) == (0,)
    assert tile_places((368, 496), (368, 496), 20) == ((0, 0),)


def test_no_place_is_used_twice_where_the_released_code_repeats_one() -> None:
    assert tile_starts(716, 368, 20) == (0, 348)
    assert tile_starts(717, 368, 20) == (0, 175, 349)


@given(st.integers(1, 40), st.integers(0, 39), st.integers(0, 200))
def test_tiles_cover_an_axis_evenly_with_as_few_as_possible(
    tile: int, overlap: int, extra: int
) -> None:
    overlap = min(overlap, tile - 1)
    starts = tile_starts(tile + extra, tile, overlap)
    steps = [b - a for a, b in pairwise(starts)]
    assert starts[0] == 0
    assert starts[-1] == extra
    assert all(0 < step <= tile - overlap for step in steps)
    assert not steps or max(steps) - min(steps) <= 1
    assert extra > (len(steps) - 1) * (tile - overlap) or not steps  # one fewer would not do


def test_a_picture_smaller_than_the_tile_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"300 pixels are fewer than a tile of 368; .*pad_to_tile"):
        tile_starts(300, 368, 20)


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_impossible_overlap_is_refused(overlap: int) -> None:
    with pytest.raises(ConfigError, match=rf"min_overlap is {overlap} for .* in 0\.\.7"):
        tile_starts(20, 8, overlap)


def test_weights_are_distances_to_the_nearest_edge_from_one() -> None:
    assert tile_weights(3, 5).tolist() == [[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]
    assert tile_weights(4, 4).sum() == 12 * 1 + 4 * 2
    assert tile_weights(368, 496).max() == 184


@settings(max_examples=25)
@given(st.tuples(st.integers(4, 20), st.integers(5, 20)), st.integers(0, 2))
def test_cutting_and_blending_gives_any_picture_back(size: tuple[int, int], overlap: int) -> None:
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])
    picture = torch.randn(2, *size, generator=generator)
    picture[1] = 3.25
    places = tile_places(size, (4, 5), overlap)
    tiles = cut_tiles(picture, places, (4, 5))
    assert tiles.shape == (len(places), 2, 4, 5)
    torch.testing.assert_close(blend_tiles(tiles, places, size), picture)


def test_blending_weighs_by_hand() -> None:
    """Two tiles of 1 x 3 that share two pixels; all weights are 1 in a single row."""
    tiles = torch.tensor([[[[0.0, 0.0, 0.0]]], [[[8.0, 8.0, 8.0]]]])
    assert blend_tiles(tiles, [(0, 0), (0, 1)], (1, 4)).tolist() == [[[0.0, 4.0, 4.0, 8.0]]]
    square = torch.stack([torch.zeros(1, 3, 3), torch.full((1, 3, 3), 9.0)])
    middle = blend_tiles(square, [(0, 0), (0, 1)], (3, 4))[0, 1]
    assert middle.tolist() == [0.0, 3.0, 6.0, 9.0]  # weights 2 : 1, then 1 : 2


def test_half_precision_stays_and_does_not_round_sums() -> None:
    places = tile_places((64, 70), (64, 64), 20)
    tiles = torch.full((len(places), 1, 64, 64), 1.5, dtype=torch.bfloat16)
    blended = blend_tiles(tiles, places, (64, 70))
    assert blended.dtype == torch.bfloat16
    assert (blended == 1.5).all()


def test_pixels_without_a_tile_are_refused() -> None:
    with pytest.raises(InputError, match="4 of 12 pixels are covered by no tile"):
        blend_tiles(torch.zeros(1, 1, 2, 4), [(0, 0)], (3, 4))
    with pytest.raises(InputError, match="1 tiles for 2 places"):
        blend_tiles(torch.zeros(1, 1, 2, 4), [(0, 0), (1, 0)], (3, 4))


@pytest.mark.parametrize("place", [(-1, 0), (2, 0), (0, 1)])
def test_tiles_beyond_the_picture_are_refused(place: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="reaches beyond"):
        cut_tiles(torch.zeros(1, 3, 4), [place], (2, 4))
    with pytest.raises(InputError, match="reaches beyond"):
        blend_tiles(torch.zeros(1, 1, 2, 4), [place], (3, 4))
    with pytest.raises(InputError, match="at least one place"):
        cut_tiles(torch.zeros(1, 3, 4), [], (2, 4))


def test_padding_repeats_the_last_pixels_and_cropping_undoes_it() -> None:
    video = torch.arange(12).reshape(1, 2, 2, 3)
    padded = pad_to_tile(video, (3, 5))
    assert padded[0, 0].tolist() == [[0, 1, 2, 2, 2], [3, 4, 5, 5, 5], [3, 4, 5, 5, 5]]
    assert torch.equal(crop_to_size(padded, (2, 3)), video)
    assert pad_to_tile(video, (2, 3)) is video
    assert pad_to_tile(video, (1, 4)).shape == (1, 2, 2, 4)
    with pytest.raises(InputError, match=r"\(2, 3\) cannot be cropped to \(2, 4\)"):
        crop_to_size(video, (2, 4))
