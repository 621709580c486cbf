"""Heat over a sample: where it lies, how strong it is, and that every kind can be drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from perceivers.errors import InputError
from perceivers.report.figures.anomaly import Heat, draw_heat, overlay

WORDS = {"unit": "squared error", "title": "x.png: 3.1", "note": "Where it was wrong."}


def test_heat_covers_what_is_wrong_and_leaves_the_rest() -> None:
    picture, errors = np.full((3, 4, 4), 0.5), np.zeros((4, 4))
    errors[1, 2], errors[3, 3] = 10.0, np.nan
    hot = overlay(picture, errors, 2.0)
    assert hot.shape == (4, 4, 3)
    untouched = np.ones((4, 4), bool)
    untouched[1, 2] = False
    assert np.allclose(hot[untouched], 0.5)
    # Dark red at its strongest, of which a fifth of the picture shines through.
    red, green, blue = hot[1, 2]
    assert red > 0.45
    assert red > 2 * green
    assert red > 2 * blue


def test_half_the_limit_is_half_as_opaque() -> None:
    picture = np.zeros((1, 1, 2))
    weak, strong = overlay(picture, np.array([[1.0, 2.0]]), 2.0)[0]
    assert 0 < weak.max() <= 0.4 + 1e-6 < strong.max() <= 0.8 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "signal", "errors", "rate"),
    [
        ("image", (3, 8, 12), (8, 12), 0.0),
        ("image", (1, 8, 8), (8, 8), 0.0),
        ("video", (3, 8, 6, 6), (8, 6, 6), 12.5),
        ("video", (3, 8, 6, 6), (4, 6, 6), 0.0),
        ("audio", (1, 3000), (3000,), 8000.0),
        ("audio", (2, 1), (1,), 0.0),
        ("points", (20, 3), (20,), 0.0),
        ("points", (20, 1), (20,), 0.0),
        ("array", (5, 4, 2), (5, 4), 0.0),
    ],
)
def test_every_kind_is_drawn(
    kind: str, signal: Any, errors: Any, rate: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    heat = Heat(kind, rng.random(signal), rng.random(errors), rate)
    path = draw_heat(tmp_path / "heat.png", heat, limit=1.0, **WORDS)
    with Pillow.open(path) as picture:
        assert min(picture.size) > 100


def test_points_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((6, 3))
    points[2:] = np.nan
    heat = Heat("points", points, np.where(np.arange(6) < 2, 1.0, np.nan))
    assert draw_heat(tmp_path / "heat.png", heat, limit=1.0, **WORDS).is_file()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    heat = Heat("image", np.zeros((3, 8, 8)), np.zeros((4, 4)))
    with pytest.raises(InputError, match=r"errors of shape \(4, 4\) for a image of grid \(8, 8\)"):
        draw_heat(tmp_path / "heat.png", heat, limit=1.0, **WORDS)
    with pytest.raises(InputError, match=r"stands for 0\.0"):
        draw_heat(tmp_path / "heat.png", heat, limit=0.0, **WORDS)
