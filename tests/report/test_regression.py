"""Predicted against true numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceivers.errors import InputError
from perceivers.report.figures.scores import draw_regression


def test_a_panel_per_target_and_unknown_values_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20, 4))
    true[:, 3] = np.nan  # nothing is known
    true[0, 0] = np.nan
    sizes = {}
    for count in (1, 3, 4):
        path = draw_regression(
            tmp_path / f"{count}.png",
            true=true[:, :count],
            predicted=true[:, :count] + 0.1,
            names=[f"target {number}" for number in range(count)],
            title="Numbers",
        )
        with Image.open(path) as drawn:
            sizes[count] = drawn.size
    assert sizes[1][0] < sizes[3][0]
    assert sizes[4][1] > sizes[3][1]


def test_columns_must_match_the_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(3, 2\) and predictions \(3, 1\) for 2 names"):
        draw_regression(
            tmp_path / "x.png",
            true=np.zeros((3, 2)),
            predicted=np.zeros((3, 1)),
            names=["a", "b"],
            title="",
        )
