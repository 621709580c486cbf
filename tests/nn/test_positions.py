"""Positions: Fourier features by hand, learned tables, resizing on the native grid."""

from math import cos, pi, sin

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError
from perceivers.nn.positions import (
    FourierPositions,
    InterpolatedPositions,
    LearnedPositions,
    fourier_dim,
    fourier_features,
    fourier_rows,
    grid_coordinates,
    resize_table,
)

GRIDS = {"1-D": ((6,), (9,)), "2-D": ((4, 6), (8, 9)), "3-D": ((3, 4, 5), (4, 8, 6))}


def test_fourier_features_by_hand_on_one_axis() -> None:
    """Five places -1..1, bands 1 and 5/2: coordinate, sines, cosines."""
    expected = [
        [x, sin(pi * x), sin(pi * 2.5 * x), cos(pi * x), cos(pi * 2.5 * x)]
        for x in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ]
    features = fourier_features(grid_coordinates((5,)), 2, (5,))
    torch.testing.assert_close(features, torch.tensor(expected), rtol=0.0, atol=1e-6)


def test_fourier_features_by_hand_on_two_axes() -> None:
    """Row-major places; coordinates of both axes, then sines axis by axis, then cosines."""
    features = fourier_features(grid_coordinates((2, 3)), 2, (2, 3))
    assert features.shape == (6, fourier_dim(2, 2)) == (6, 10)
    y, x = -1.0, 1.0  # place 2: first row, last column
    rows, cols = (1.0, 1.0), (1.0, 1.5)  # bands from 1 to half the axis
    angles = [pi * band * y for band in rows] + [pi * band * x for band in cols]
    expected = [y, x, *map(sin, angles), *map(cos, angles)]
    torch.testing.assert_close(features[2], torch.tensor(expected), rtol=0.0, atol=1e-6)


def test_coordinates_of_a_grid_reach_both_ends_row_by_row() -> None:
    places = grid_coordinates((2, 3))
    assert places.tolist() == [[y, x] for y in (-1.0, 1.0) for x in (-1.0, 0.0, 1.0)]


def test_cosines_and_coordinates_can_be_left_out() -> None:
    places = grid_coordinates((2, 3))
    whole = fourier_features(places, 2, (8, 8))
    sines = fourier_features(places, 2, (8, 8), sine_only=True, keep_coordinates=False)
    assert torch.equal(sines, whole[:, 2:6])
    assert fourier_dim(2, 2, sine_only=True, keep_coordinates=False) == 4
    assert torch.equal(fourier_features(places, 2, (8, 8), keep_coordinates=False), whole[:, 2:])


def test_the_highest_band_is_half_the_resolution_whatever_the_grid() -> None:
    places = torch.tensor([[0.25]])
    features = fourier_features(places, 3, (16,))
    angles = [pi * band * 0.25 for band in (1.0, 4.5, 8.0)]
    expected = torch.tensor([[0.25, *map(sin, angles), *map(cos, angles)]])
    torch.testing.assert_close(features, expected, rtol=0.0, atol=1e-6)


def test_places_of_every_sample_may_differ(rng: torch.Generator) -> None:
    places = torch.rand(3, 4, 2, generator=rng)
    features = fourier_features(places, 2, (8, 8))
    assert features.shape == (3, 4, 10)
    assert torch.equal(features[1], fourier_features(places[1], 2, (8, 8)))
    assert not torch.equal(features[1], features[2])


def test_fourier_positions_are_padded_to_the_common_width_and_not_stored() -> None:
    positions = FourierPositions(grid=(4,), num_bands=3, dim=14)
    assert positions().shape == (4, 14)
    assert torch.equal(positions()[:, :7], fourier_features(grid_coordinates((4,)), 3, (4,)))
    assert not positions()[:, 7:].any()
    assert not positions.state_dict()
    assert not list(positions.parameters())


def test_learned_positions_are_one_trainable_row_per_element() -> None:
    positions = LearnedPositions(num_tokens=5, dim=3)
    assert positions() is positions.table
    assert positions.table.shape == (5, 3)
    assert positions.table.requires_grad


@pytest.mark.parametrize(("old", "new"), GRIDS.values(), ids=GRIDS.keys())
def test_resizing_to_the_same_grid_is_identity(
    rng: torch.Generator, old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    table = torch.rand(torch.Size(old).numel(), 2, generator=rng)
    assert torch.equal(resize_table(table, old, old), table)
    assert resize_table(table, old, new).shape == (torch.Size(new).numel(), 2)


@pytest.mark.parametrize(("old", "new"), GRIDS.values(), ids=GRIDS.keys())
def test_resizing_keeps_constants(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    table = torch.tensor([[0.5, -2.0]]).expand(torch.Size(old).numel(), -1)
    resized = resize_table(table, old, new)
    torch.testing.assert_close(resized, torch.tensor([[0.5, -2.0]]).expand_as(resized))


def ramp(grid: tuple[int, ...], axis: int) -> Tensor:
    """Half-cell coordinates 0..1 of one axis, as one channel of a table."""
    places = [(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in grid]
    return torch.meshgrid(*places, indexing="ij")[axis].reshape(-1, 1)


@pytest.mark.parametrize(("old", "new"), GRIDS.values(), ids=GRIDS.keys())
def test_resizing_a_ramp_gives_the_ramp_inside_and_stays_monotonic(
    old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    """A gradient over the picture stays that gradient on a finer grid, along its own axis only."""
    for axis in range(len(old)):
        table = resize_table(ramp(old, axis), old, new).reshape(new)
        expected = ramp(new, axis).reshape(new)
        steps = table.diff(dim=axis)
        assert (steps >= -0.02).all()  # bicubic may overshoot a little at the border
        for other in range(len(old)):
            if other != axis:
                assert table.diff(dim=other).abs().max() < 1e-6
        # Away from the clamped border (two old cells) the ramp is exact; torch's cubic kernel
        # (a = -0.75) keeps one only to a few hundredths of an old cell.
        far = (expected > 2.0 / old[axis]) & (expected < 1.0 - 2.0 / old[axis])
        allowed = 0.06 / old[axis] if len(old) == 2 else 1e-6
        torch.testing.assert_close(table[far], expected[far], rtol=0.0, atol=allowed)


def test_resizing_keeps_the_table_s_precision(rng: torch.Generator) -> None:
    table = torch.rand(6, 2, generator=rng, dtype=torch.float64)
    wide = resize_table(table, (6,), (9,))
    assert wide.dtype == torch.float64
    narrow = resize_table(table.float(), (6,), (9,))
    torch.testing.assert_close(wide.float(), narrow)
    assert not torch.equal(wide, narrow.double())
    assert resize_table(table.bfloat16(), (6,), (9,)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (16,)), ((4,), (2, 2)), ((2, 2, 2, 2), (3, 3, 3, 3))]
)
def test_grids_of_other_rank_are_refused(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    shown = "a position table on grid " + str(old).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ConfigError, match=shown):
        resize_table(torch.zeros(torch.Size(old).numel(), 2), old, new)


@pytest.mark.parametrize(
    ("grid", "mode"), [((11,), "linear"), ((6, 9), "bilinear"), ((3, 5, 8), "trilinear")]
)
def test_interpolated_rows_are_those_of_torch_and_any_part_of_them(
    rng: torch.Generator, grid: tuple[int, ...], mode: str
) -> None:
    positions = InterpolatedPositions(grid=grid, dim=4, stride=3).double()
    table = torch.randn(*positions.table.shape, generator=rng, dtype=torch.float64)
    positions.table.data = table
    coarse = table.T.reshape(1, 4, *(-(-size // 3) for size in grid))
    expected = F.interpolate(coarse, size=grid, mode=mode, align_corners=False)
    rows = positions()
    torch.testing.assert_close(rows, expected[0].flatten(1).T, rtol=0.0, atol=1e-6)
    for start, stop in ((0, 1), (4, 11), (len(rows) - 3, len(rows))):
        assert torch.equal(positions.part(start, stop), rows[start:stop])


def test_fourier_rows_hold_waves_of_every_axis_from_one_cycle_to_a_quarter_of_its_cells() -> None:
    rows = fourier_rows((8, 16), 10)  # two frequencies an axis; two channels are left over
    y, x = (2 + 0.5) / 8, (5 + 0.5) / 16
    angles = [2 * pi * f * place for place, last in ((y, 2), (x, 4)) for f in (1, last)]
    pairs = [angles[:2], angles[2:]]
    expected = [wave(angle) for pair in pairs for wave in (sin, cos) for angle in pair]
    found = rows[2 * 16 + 5].tolist()
    assert found == pytest.approx([*expected, 0.0, 0.0], abs=1e-6)
    assert float(rows[:, :8].square().mean()) == pytest.approx(0.5, abs=1e-3)
