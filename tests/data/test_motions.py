"""Motions and shapes: values by hand, limits that hold for every draw, equal draws."""

import numpy as np
import pytest

from perceivers.data.motions import (
    STEEPEST,
    Blob,
    Motion,
    draw_blob,
    draw_motion,
    frame_places,
)


def still(**parts: np.ndarray) -> Motion:
    """Nothing moves, except for what is given."""
    zero = {"centre": np.zeros(2), "shift": np.zeros(2), "linear": np.zeros((2, 2))}
    bumps = {"bumps": np.zeros((0, 2)), "widths": np.zeros(0), "pushes": np.zeros((0, 2))}
    return Motion(**{**zero, **bumps, **parts})


def test_places_are_x_before_y() -> None:
    assert frame_places(2, 3).tolist() == [[[0, 1, 2], [0, 1, 2]], [[0, 0, 0], [1, 1, 1]]]


def test_a_turn_by_hand() -> None:
    """Around (1, 0), a tenth of a pixel per pixel: what lies right goes down."""
    turn = still(centre=np.array([1.0, 0.0]), linear=np.array([[0.0, -0.1], [0.1, 0.0]]))
    flow = turn(frame_places(2, 3))
    np.testing.assert_allclose(flow[:, 0, 2], [0.0, 0.1])
    np.testing.assert_allclose(flow[:, 0, 1], [0.0, 0.0])
    np.testing.assert_allclose(flow[:, 1, 1], [-0.1, 0.0])
    np.testing.assert_allclose(turn.scaled(-3.0)(frame_places(2, 3)), -3.0 * flow)


def test_a_bump_pushes_its_middle_and_falls_off() -> None:
    bump = still(
        shift=np.array([1.0, 0.0]),
        bumps=np.array([[2.0, 0.0]]),
        widths=np.array([2.0]),
        pushes=np.array([[0.0, 3.0]]),
    )
    flow = bump(frame_places(1, 5))
    np.testing.assert_allclose(flow[0, 0], 1.0)
    fall = 3.0 * np.exp(-0.5)
    np.testing.assert_allclose(flow[1, 0, [0, 2, 4]], [fall, 3.0, fall])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 64), (100, 20)])
def test_no_draw_exceeds_the_longest_motion_or_folds(height: int, width: int) -> None:
    longest = []
    for seed in range(60):
        motion = draw_motion(np.random.default_rng(seed), height, width, 6.0)
        flow = motion(frame_places(height, width))
        longest.append(np.hypot(*flow).max())
        for axis in (1, 2):
            assert np.abs(np.diff(flow, axis=axis)).max() <= STEEPEST + 1e-9
    assert max(longest) <= 6.0 + 1e-9
    assert max(longest) > 4.0
    assert min(longest) < 2.0


def test_draws_depend_on_the_generator_alone() -> None:
    places = frame_places(20, 30)
    flows = [draw_motion(np.random.default_rng(s), 20, 30, 5.0)(places) for s in (1, 1, 2)]
    assert np.array_equal(flows[0], flows[1])
    assert np.abs(flows[0] - flows[2]).max() > 0.1


def test_a_round_blob_by_hand() -> None:
    circle = Blob(centre=np.array([5.0, 5.0]), radius=3.0, waves=np.zeros((4, 2)))
    row = circle(frame_places(11, 11))[5]
    np.testing.assert_allclose(row, [0, 0, 0.5, 1, 1, 1, 1, 1, 0.5, 0, 0])


def test_drawn_blobs_fill_a_part_of_the_frame_and_differ() -> None:
    places = frame_places(40, 60)
    shapes = [draw_blob(np.random.default_rng(seed), 40, 60)(places) for seed in range(40)]
    shares = [shape.mean() for shape in shapes]
    assert all(shape.min() >= 0 and shape.max() == 1 for shape in shapes)
    assert 0.02 < min(shares) < max(shares) < 0.35
    assert not np.array_equal(shapes[0], shapes[1])
