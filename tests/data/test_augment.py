"""Augmentation: settings, views, and where pixels end up."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceivers.data.augment import AugmentConfig, View, centre_view, random_view
from perceivers.data.drawing import fit_array
from perceivers.errors import ConfigError
from perceivers.types import Image

WHOLE = View(0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"crop_scale": (0.0, 1.0)},
            r"augment.crop_scale is \(0.0, 1.0\); .* 0 < low <= high <= 1",
        ),
        ({"crop_scale": (0.9, 0.5)}, r"augment.crop_scale is \(0.9, 0.5\)"),
        ({"crop_scale": (0.5, 1.5)}, r"augment.crop_scale\[1\] is 1.5; it must be in \[0, 1\]"),
        ({"crop_ratio": (1.0, float("inf"))}, r"augment.crop_ratio\[1\] is inf; it must be finite"),
        ({"rotate": 181.0}, r"augment.rotate is 181.0; it must be in \[0, 180\] \(default 0.0\)"),
        ({"rotate": float("nan")}, r"augment.rotate is nan"),
        ({"shift": -0.1}, r"augment.shift is -0.1; it must be in \[0, 1\]"),
        ({"rand_augment": -1}, r"augment.rand_augment is -1; it must not be negative"),
        ({"rand_augment": 2, "magnitude": 11}, r"augment.magnitude is 11; it must be in \[0, 10\]"),
        ({"erase": 1.5}, r"augment.erase is 1.5; it must be in \[0, 1\]"),
        ({"erase": -0.25}, r"augment.erase is -0.25"),
        ({"copies": 0}, r"augment.copies is 0; it must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**values)


@pytest.mark.unhooked
def test_a_range_of_one_number_is_refused() -> None:
    values: Any = (0.5,)
    with pytest.raises(ConfigError, match=r"augment.crop_ratio is \(0.5,\); it must be 2 values"):
        AugmentConfig(crop_ratio=values)


def test_the_defaults_change_nothing_and_every_setting_changes_something() -> None:
    assert not AugmentConfig().active
    changes: tuple[dict[str, Any], ...] = (
        {"crop_scale": (0.5, 1.0)},
        {"crop_ratio": (0.5, 2.0)},
        {"crop_from": "picture"},
        {"flip": True},
        {"rotate": 5.0},
        {"shift": 0.1},
    )
    for setting in changes:
        augment = AugmentConfig(**setting)
        assert augment.active
        views = {random_view((9, 7), (5, 5), augment, np.random.default_rng(i)) for i in range(8)}
        assert len(views) > 1
    assert AugmentConfig(rand_augment=1).active  # tests/data/test_rand_augment.py
    assert AugmentConfig(erase=0.1).active  # tests/data/test_erasing.py
    assert not AugmentConfig(copies=2).active  # tests/data/test_loaders.py
    plain = random_view((9, 7), (5, 5), AugmentConfig(), np.random.default_rng(0))
    assert plain == centre_view((9, 7), (5, 5))


@pytest.mark.unhooked
def test_an_unknown_origin_of_crops_is_refused() -> None:
    origin: Any = "whole"
    with pytest.raises(ConfigError, match=r"augment.crop_from is 'whole'; choose from"):
        AugmentConfig(crop_from=origin)


@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    target=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    low=st.floats(0.05, 1.0),
    ratio=st.floats(0.25, 1.0),
    seed=st.integers(0, 1000),
    origin=st.sampled_from(("largest", "picture")),
)
def test_every_box_lies_in_the_picture(
    size: tuple[int, int],
    target: tuple[int, int],
    low: float,
    ratio: float,
    seed: int,
    origin: Literal["largest", "picture"],
) -> None:
    augment = AugmentConfig(
        crop_scale=(low, 1.0), crop_ratio=(ratio, 1 / ratio), crop_from=origin, flip=True
    )
    for view in (
        centre_view(size, target),
        random_view(size, target, augment, np.random.default_rng(seed)),
    ):
        assert view.left >= 0
        assert view.top >= 0
        assert 0 < view.width <= 1
        assert view.left + view.width <= 1 + 1e-12
        assert view.top + view.height <= 1 + 1e-12


def test_the_area_of_a_crop_is_the_asked_share_of_the_largest_one() -> None:
    augment = AugmentConfig(crop_scale=(0.25, 0.25))
    view = random_view((300, 200), (64, 64), augment, np.random.default_rng(0))
    assert (view.width * 300, view.height * 200) == pytest.approx((100, 100))


def test_inception_crops_are_shares_of_the_whole_picture() -> None:
    """A wide picture: the largest square is 0.4 of it, and crops of 0.08 to 0.4 occur beside."""
    augment = AugmentConfig(crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), crop_from="picture")
    size = (500, 200)
    views = [random_view(size, (64, 64), augment, np.random.default_rng(i)) for i in range(400)]
    areas = np.array([view.width * view.height for view in views])
    ratios = np.array([view.width * 500 / (view.height * 200) for view in views])
    assert 0.08 <= areas.min() < 0.1
    assert 0.4 < areas.max() <= 0.4 * 4 / 3
    assert 3 / 4 <= ratios.min() < 0.8
    assert 1.25 < ratios.max() <= 4 / 3 + 1e-9
    # Small areas all fit, so they are uniform, and their places cover the picture.
    small = areas[areas < 0.3]
    assert small.mean() == pytest.approx(0.19, abs=0.01)
    assert max(view.left + view.width for view in views) > 0.98
    exact = AugmentConfig(crop_scale=(0.25, 0.25), crop_from="picture")
    view = random_view((300, 200), (64, 64), exact, np.random.default_rng(0))
    assert (view.width * 300) * (view.height * 200) == pytest.approx(0.25 * 300 * 200)


def test_a_crop_that_never_fits_is_the_largest_and_later_draws_are_the_same() -> None:
    augment = AugmentConfig(crop_scale=(0.9, 1.0), crop_from="picture", rotate=10.0)
    wide = random_view((500, 200), (64, 64), augment, np.random.default_rng(0))
    assert (wide.width, wide.height) == pytest.approx((0.4, 1.0))
    square = random_view((200, 200), (64, 64), augment, np.random.default_rng(0))
    assert square.width == pytest.approx(square.height)
    assert square.width < 1.0
    assert wide.angle == square.angle


def test_the_same_generator_draws_the_same_view_and_another_a_different_one() -> None:
    augment = AugmentConfig(crop_scale=(0.3, 1.0), flip=True, rotate=10.0, shift=0.1)
    views = [random_view((9, 7), (5, 5), augment, np.random.default_rng(i)) for i in (1, 1, 2)]
    assert views[0] == views[1]
    assert views[0] != views[2]


def test_a_shift_by_whole_pixels_moves_them_and_fills_with_zero(
    numpy_rng: np.random.Generator,
) -> None:
    array = numpy_rng.integers(1, 256, (1, 8, 8), np.uint8)
    found = fit_array(array, Image(8, 8, 1), replace(WHOLE, shift=(0.25, 0.125)))
    assert np.array_equal(found[0, 1:, 2:], array[0, :-1, :-2])
    assert not found[0, 0].any()
    assert not found[0, :, :2].any()


def test_a_quarter_turn_equals_turning_the_array(numpy_rng: np.random.Generator) -> None:
    array = numpy_rng.random((2, 8, 8), np.float32)
    found = fit_array(array, Image(8, 8, 2), replace(WHOLE, angle=np.pi / 2))
    turned = np.rot90(array, axes=(1, 2))
    assert np.abs(found - turned).max() < 1e-4
    assert np.abs(found - array).max() > 0.1


def test_a_mirrored_turned_view_is_the_mirror_of_the_source(numpy_rng: np.random.Generator) -> None:
    array = numpy_rng.random((1, 8, 8), np.float32)
    spec = Image(8, 8, 1)
    mirrored = fit_array(array, spec, replace(WHOLE, flip=True))
    assert np.array_equal(mirrored, array[:, :, ::-1])
    shifted = fit_array(array, spec, replace(WHOLE, flip=True, shift=(0.25, 0.0)))
    assert np.abs(shifted[:, :, 2:] - mirrored[:, :, :-2]).max() < 1e-5


def test_a_turned_view_of_a_large_picture_does_not_skip_pixels() -> None:
    stripes = np.zeros((1, 64, 64), np.uint8)
    stripes[:, :, ::2] = 255
    found = fit_array(stripes, Image(8, 8, 1), replace(WHOLE, shift=(0.01, 0.0)))
    assert np.abs(found[0, 2:6, 2:6].astype(int) - 127).max() <= 8
