"""Augmentation of point clouds: known values, and draws that depend on the sample alone."""

from typing import Any

import numpy as np
import pytest

from perceivers.data.arrays import hold_arrays
from perceivers.data.augment import AugmentConfig, Look
from perceivers.data.augment_signals import drop_points, move_points, turn_points
from perceivers.data.by_modality.points import fit_points
from perceivers.data.fitting import SampleReader
from perceivers.errors import ConfigError
from perceivers.types import Audio, Points

CLOUD = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Highest(np.random.Generator):
    """A generator whose uniform draws are the upper end."""

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Return the upper end."""
        assert low <= high
        assert size is None
        return high


@pytest.mark.parametrize(
    ("axis", "expected"), [("x", [[5, 5, 7]]), ("y", [[6, 5, 6]]), ("z", [[5, 6, 6]])]
)
def test_a_quarter_turn_goes_from_one_axis_to_the_next(axis: Any, expected: list) -> None:
    """A unit step along y, z and x from the middle (5, 5, 6) becomes one along the next axis."""
    step = np.roll(np.eye(3), -1, axis=0)["xyz".index(axis)]
    middle = np.array([5, 5, 6])
    cloud = np.stack([middle + step, middle - step])
    upper = Highest(np.random.PCG64(0))
    turned = turn_points(cloud, AugmentConfig(turn=90.0, turn_axis=axis), upper)
    assert turned[:1] == pytest.approx(np.array(expected))
    assert turned.mean(axis=0) == pytest.approx([5, 5, 6])


def test_turning_keeps_distances_and_the_axis() -> None:
    turned = turn_points(CLOUD, AugmentConfig(turn=180.0, turn_axis="y"), rng())
    assert turned.dtype == np.float32
    assert np.array_equal(turned[:, 1], CLOUD[:, 1])
    assert not np.allclose(turned[:, 0], CLOUD[:, 0])
    lengths = [np.linalg.norm(c - c.mean(axis=0), axis=1) for c in (turned, CLOUD)]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)
    partial = CLOUD.copy()
    partial[30:] = np.nan
    turned = turn_points(partial, AugmentConfig(turn=180.0), rng())
    assert np.isfinite(turned[:30]).all()
    assert np.isnan(turned[30:]).all()


def test_points_are_dropped_or_replaced_but_never_all() -> None:
    augment = AugmentConfig(point_drop=0.9)
    sizes = [len(drop_points(CLOUD, augment, rng(s), ragged=True)) for s in range(100)]
    assert 0.5 < np.mean(sizes) / 50 < 0.6
    assert min(sizes) < 15
    fixed = drop_points(CLOUD, augment, rng(3), ragged=False)
    kept = drop_points(CLOUD, augment, rng(3), ragged=True)
    assert fixed.shape == CLOUD.shape
    assert {tuple(p) for p in fixed} == {tuple(p) for p in kept}
    last = AugmentConfig(point_drop=0.999)
    assert {len(drop_points(CLOUD[:1], last, rng(s), ragged=True)) for s in range(50)} == {1}
    padded = np.concatenate([CLOUD[:2], np.full((40, 3), np.nan, np.float32)])
    assert all(len(drop_points(padded, last, rng(s), ragged=True)) >= 1 for s in range(50))


def test_scale_and_jitter_have_the_asked_size() -> None:
    scaled = move_points(CLOUD, AugmentConfig(point_scale=(2.0, 2.0)), rng())
    assert np.array_equal(scaled, CLOUD * 2)
    large = np.zeros((20_000, 3), np.float32)
    moved = move_points(large, AugmentConfig(jitter=0.01), rng())
    assert moved.dtype == np.float32
    assert moved.std() == pytest.approx(0.01, rel=0.02)
    assert np.abs(moved).max() <= 0.05 + 1e-6


def test_clouds_are_turned_before_and_moved_after_they_are_scaled() -> None:
    spec = Points(50, 3, scale="unit")
    turned = fit_points(CLOUD, "a", spec, Look(rng(), AugmentConfig(turn=180.0)))
    assert np.abs(turned).max(axis=0) == pytest.approx([1, 1, 1])
    assert not np.allclose(turned, fit_points(CLOUD, "a", spec))
    doubled = fit_points(CLOUD, "a", spec, Look(rng(), AugmentConfig(point_scale=(2.0, 2.0))))
    assert doubled == pytest.approx(2 * fit_points(CLOUD, "a", spec))


def test_fewer_points_fill_up_with_no_points_and_draws_repeat() -> None:
    spec = Points(50, 3, ragged=True)
    augment = AugmentConfig(point_drop=0.5, jitter=0.1, turn=30.0)
    first = fit_points(CLOUD, "a", spec, Look(rng(5), augment))
    gone = int(np.isnan(first).any(axis=1).sum())
    assert gone > 0
    assert np.isnan(first[50 - gone :]).all()
    again = fit_points(CLOUD, "a", spec, Look(rng(5), augment))
    assert np.array_equal(first, again, equal_nan=True)
    other = fit_points(CLOUD, "a", spec, Look(rng(6), augment))
    assert not np.array_equal(first, other, equal_nan=True)
    assert np.array_equal(fit_points(CLOUD, "a", spec, Look(None, augment)), CLOUD)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"turn": 181.0}, r"augment.turn is 181.0; it must be in \[0, 180\]"),
        ({"point_scale": (0.0, 1.0)}, r"augment.point_scale\[0\] is 0.0; it must be positive"),
        ({"jitter": float("nan")}, "augment.jitter is nan; it must be finite"),
        ({"point_drop": 1.0}, r"augment.point_drop is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_a_setting_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**values)


def test_what_does_not_fit_the_points_is_refused() -> None:
    def reader(channels: int, **values: Any) -> SampleReader:
        source = hold_arrays({"points": np.zeros((2, 8, channels), np.float32)}, ["a", "b"])
        return SampleReader(source, {"points": Points(8, channels)}, AugmentConfig(**values))

    reader(2, turn=10.0)
    reader(6, point_drop=0.5)
    with pytest.raises(ConfigError, match=r"turn about 'y' needs 3 coordinates, .* 2 channels"):
        reader(2, turn=10.0, turn_axis="y")
    with pytest.raises(ConfigError, match=r"'points' has 6 channels, and the others"):
        reader(6, jitter=0.1)
    sounds = hold_arrays({"audio": np.zeros((2, 1, 8), np.float32)}, ["a", "b"])
    message = r"augment.jitter changes points, but the modalities are \['audio'\]"
    with pytest.raises(ConfigError, match=message):
        SampleReader(sounds, {"audio": Audio(8)}, AugmentConfig(jitter=0.1))
