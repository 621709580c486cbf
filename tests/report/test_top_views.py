"""Which point is seen from above."""

import numpy as np
import pytest

from perceivers.errors import InputError
from perceivers.report.figures.canvases import choose_side, look_down, shade_heights


def test_the_highest_point_is_seen_and_y_goes_up() -> None:
    cloud = np.array([[0, 0, 9], [0, 0, 1], [3, 0, 2], [0, 3, 3]], np.float32)
    seen = look_down(cloud, 4)
    assert (seen[3, 0], seen[3, 3], seen[0, 0]) == (0, 2, 3)
    assert 1 not in seen


def test_gaps_of_one_pixel_are_filled_and_larger_ones_stay() -> None:
    seen = look_down(np.array([[0.0, 0.0, 1.0], [7.0, 7.0, 1.0]]), 8)
    assert seen[7].tolist()[:3] == [0, 0, -1]
    assert seen[0, 7] == 1
    # Neighbours do not reach around the edge.
    assert seen[0, 0] == -1


def test_rows_of_nan_are_no_points() -> None:
    cloud = np.array([[np.nan, np.nan, np.nan], [1.0, 1.0, 1.0]])
    assert set(np.unique(look_down(cloud, 4))) <= {-1, 1}
    assert np.all(look_down(cloud[:1], 4) == -1)


def test_a_part_of_a_cloud_stands_where_it_stands_in_the_whole() -> None:
    whole = np.array([[0, 0, 0], [2, 1, 5], [7, 7, 10], [np.nan] * 3], np.float32)
    part = np.where(np.arange(4)[:, None] == 1, whole, np.nan)
    seen = look_down(part, 8, whole)
    assert seen[6, 2] == 1
    assert shade_heights(part, seen, whole)[0, 6, 2] == pytest.approx(0.575, abs=0.02)
    assert look_down(part, 8)[7, 0] == 1  # alone it fills the view
    beyond = whole + np.float32(100)
    assert look_down(beyond, 8, whole)[0, 7] == 2


def test_heights_are_shades() -> None:
    cloud = np.array([[0, 0, 0], [3, 3, 10]], np.float32)
    shades = shade_heights(cloud, look_down(cloud, 4))
    assert shades.shape == (1, 4, 4)
    assert shades[0, 0, 3] == pytest.approx(1.0, abs=0.02)
    assert shades[0, 3, 0] == pytest.approx(0.15, abs=0.02)
    assert shades[0, 0, 0] == 0
    assert not shade_heights(cloud, np.full((4, 4), -1)).any()


def test_sides_and_single_values() -> None:
    assert (choose_side(1), choose_side(4096), choose_side(10**9)) == (32, 91, 1024)
    with pytest.raises(InputError, match="2 or more"):
        look_down(np.zeros((3, 1)), 4)
