"""Hiera's positions: exact where they were learned, and in step with the mask units elsewhere."""

from typing import Any

import pytest
import torch
from tests.models.hiera_making import CLASSES, DECODER, EXACT, build_hiera, draw_one
from torch import Tensor
from torch.nn import functional as F

from perceivers.errors import ConfigError
from perceivers.models.hiera.positions import (
    HieraPositions,
    resize_absolute,
    split_window,
    tile_window,
)
from perceivers.types import Image, Video

UNIT = (4, 4)
WINDOW: dict[str, Any] = {"positions": "window", "position_grid": (3, 5)}


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def positions_of(model: Any) -> HieraPositions:
    assert isinstance(model.encoder.positions, HieraPositions)
    return model.encoder.positions


# -- plain tables ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["window", "plain"])
def test_a_table_is_exact_on_its_own_grid(rng: torch.Generator, kind: Any) -> None:
    table = draw(rng, 96, 3)
    found = resize_absolute(table, (8, 12), (8, 12), UNIT, kind)
    assert torch.equal(found, table.reshape(8, 12, 3))
    model = build_hiera(position_resize=kind)
    assert torch.equal(positions_of(model)((8, 12)).flatten(0, 1), positions_of(model).table)


@pytest.mark.parametrize("grid", [(4, 4), (12, 8), (24, 36)])
def test_a_pattern_that_repeats_keeps_its_period_at_any_size(
    rng: torch.Generator, grid: tuple[int, int]
) -> None:
    """A table that is nothing but a pattern of one unit stays that pattern."""
    pattern = draw(rng, 16, 3)
    table = tile_window(pattern, UNIT, (8, 12)).reshape(96, 3)
    found = resize_absolute(table, (8, 12), grid, UNIT, "window")
    torch.testing.assert_close(found, tile_window(pattern, UNIT, grid), **EXACT)
    stretched = resize_absolute(table, (8, 12), grid, UNIT, "plain")
    assert not torch.allclose(stretched, found)


def test_a_smooth_table_is_stretched_by_both(rng: torch.Generator) -> None:
    """Control: what does not repeat is interpolated, not tiled."""
    ramp = torch.arange(8.0, dtype=torch.float64)[:, None, None].expand(8, 12, 1).reshape(96, 1)
    tall = resize_absolute(ramp, (8, 12), (16, 12), UNIT, "plain")
    assert (tall.diff(dim=0) > 0).all()
    rest, window = split_window(ramp, (8, 12), UNIT)
    wanted = F.interpolate(rest.T.reshape(1, 1, 8, 12), size=(16, 12), mode="bicubic")
    found = resize_absolute(ramp, (8, 12), (16, 12), UNIT, "window")
    torch.testing.assert_close(
        found[..., 0], wanted[0, 0] + tile_window(window, UNIT, (16, 12))[..., 0], **EXACT
    )


@pytest.mark.parametrize(
    ("grid", "unit"), [((12,), (4,)), ((8, 12), (4, 4)), ((8, 12), (2, 6)), ((3, 4, 8), (1, 4, 2))]
)
def test_a_table_is_its_pattern_and_the_rest(
    rng: torch.Generator, grid: tuple[int, ...], unit: tuple[int, ...]
) -> None:
    table = draw(rng, torch.Size(grid).numel(), 3)
    rest, window = split_window(table, grid, unit)
    tiled = tile_window(window, unit, grid)
    torch.testing.assert_close(rest + tiled.reshape(-1, 3), table, **EXACT)
    # The rest holds no pattern of its own, and the pattern repeats.
    assert float(split_window(rest, grid, unit)[1].abs().max()) < 1e-12
    shifted = tiled.roll(unit, dims=tuple(range(len(grid))))
    assert torch.equal(shifted, tiled)


# -- frames apart from the plane -------------------------------------------------------------


def test_separable_positions_are_a_sum_of_frame_and_place(rng: torch.Generator) -> None:
    positions = positions_of(build_hiera("clip"))
    assert (positions.temporal.shape, positions.spatial.shape) == ((2, 8), (96, 8))
    found = positions((2, 8, 12))
    for frame in range(2):
        wanted = positions.spatial + positions.temporal[frame]
        torch.testing.assert_close(found[frame].flatten(0, 1), wanted, **EXACT)
    longer = positions((4, 8, 12))
    assert longer.shape == (4, 8, 12, 8)
    # The plane stays, frames are interpolated: the first and the last keep their row.
    torch.testing.assert_close(longer[0], found[0], **EXACT)
    torch.testing.assert_close(longer[3], found[1], **EXACT)
    torch.testing.assert_close(longer[1], 0.75 * found[0] + 0.25 * found[1], **EXACT)
    wider = positions((2, 8, 24)) - positions.temporal[:, None, None]
    torch.testing.assert_close(wider[0], wider[1], **EXACT)


# -- a stretched and a tiled table -----------------------------------------------------------


def test_window_positions_tile_one_table_and_stretch_the_other() -> None:
    positions = positions_of(build_hiera(**WINDOW))
    assert (positions.table.shape, positions.window.shape) == ((15, 8), (16, 8))
    for grid in ((8, 12), (16, 4)):
        found = positions(grid)
        rows = positions.table.T.reshape(1, 8, 3, 5)
        stretched = F.interpolate(rows, size=grid, mode="bicubic", antialias=True)
        tiled = positions.window.reshape(4, 4, 8).tile(grid[0] // 4, grid[1] // 4, 1)
        torch.testing.assert_close(found, stretched[0].movedim(0, -1) + tiled, **EXACT)


@torch.no_grad()
def test_antialiasing_sees_what_lies_between_where_the_table_shrinks() -> None:
    """Of ten columns per token, bicubic interpolation looks at four in the middle."""
    found = []
    for antialias in (True, False):
        settings = {"position_grid": (4, 40), "position_antialias": antialias}
        positions = positions_of(build_hiera(positions="window", **settings))
        for table in positions.parameters():
            table.zero_()
        positions.table.unflatten(0, (4, 40))[:, 0] = 1.0
        found.append(positions((4, 4)))
    assert bool((found[0][:, 0] > 0.02).all())
    assert not found[1].any()


def test_the_stretched_table_has_the_native_grid_unless_told() -> None:
    assert positions_of(build_hiera(positions="window")).table.shape == (96, 8)
    assert build_hiera(positions="window").config.position_grid == (8, 12)


# -- from one form to another ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sound", "picture"])
@pytest.mark.parametrize("resize", ["window", "plain"])
def test_taking_the_table_apart_changes_nothing_at_the_native_size(
    rng: torch.Generator, kind: str, resize: Any
) -> None:
    model = build_hiera(kind, head=CLASSES, position_resize=resize)
    apart = model.with_window_positions()
    x = draw_one(model, rng)
    torch.testing.assert_close(apart(x), model(x), **EXACT)
    assert apart.config.positions == "window"
    assert apart.config.position_grid == model.config.native_grid
    assert not apart.training
    assert model.train().with_window_positions().training
    with pytest.raises(ConfigError, match=r"positions are 'window'; only absolute positions can"):
        apart.with_window_positions()


def test_a_table_taken_apart_serves_other_sizes_as_it_did_whole(rng: torch.Generator) -> None:
    for kind, size in (("sound", (640,)), ("picture", (32, 48)), ("picture", (8, 8))):
        model = build_hiera(kind, head=CLASSES)
        apart, x = model.with_window_positions(), draw_one(model, rng, size)
        torch.testing.assert_close(apart(x), model(x), rtol=0.0, atol=1e-9)
        plain = build_hiera(kind, head=CLASSES, position_resize="plain")
        plain.load_state_dict(model.state_dict())
        assert not torch.allclose(plain(x), model(x))
    again = apart.resized({"image": Image(32, 48, 2, mean=(0.4, 0.2), std=(0.3, 0.5))})
    assert again.config.position_grid == (8, 12)
    torch.testing.assert_close(again(x), apart(x), **EXACT)


@pytest.mark.parametrize("resize", ["window", "plain"])
@pytest.mark.parametrize("settings", [{}, {"decoder": True}])
def test_a_resized_copy_carries_its_tables(
    rng: torch.Generator, resize: Any, settings: dict[str, Any]
) -> None:
    made: dict[str, Any] = {"decoder": DECODER} if settings else {"head": CLASSES}
    spec = Image(24, 8, 2, mean=(0.4, 0.2), std=(0.3, 0.5))
    model = build_hiera(position_resize=resize, **made)
    other = model.resized({"image": spec})
    assert positions_of(other).table.shape == (48, 8)
    x = draw_one(other, rng)
    ours, theirs = other(x), model(x)
    torch.testing.assert_close(ours, theirs, **EXACT)
    back = other.resized(model.config.inputs)
    assert not torch.allclose(positions_of(back).table, positions_of(model).table)


def test_resizing_clips_carries_frames_and_plane_apart() -> None:
    model = build_hiera("clip")
    spec = Video(8, 8, 24, 2, mean=(0.4,), std=(0.3,))
    other = positions_of(model.resized({"video": spec}))
    assert (other.temporal.shape, other.spatial.shape) == ((4, 8), (48, 8))
    torch.testing.assert_close(other((4, 4, 12)), positions_of(model)((4, 4, 12)), **EXACT)


def test_gradients_reach_every_table_at_another_size(rng: torch.Generator) -> None:
    for kind, settings, size in (
        ("picture", {}, (24, 8)),
        ("picture", WINDOW, (24, 8)),
        ("clip", {}, (2, 8, 8)),
    ):
        model = build_hiera(kind, **settings)
        model(draw_one(model, rng, size)).square().sum().backward()
        for table in positions_of(model).parameters():
            assert table.grad is not None
            assert bool(table.grad.any())
