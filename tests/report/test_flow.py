"""Flow as colours: the published wheel by hand, scale, unknown pixels; and the figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceivers.errors import InputError
from perceivers.report.figures import flow as figure
from perceivers.report.figures.flow import colour_wheel, draw_flow, flow_to_colour


def test_the_wheel_is_the_published_one() -> None:
    wheel = colour_wheel()
    assert wheel.shape == (55, 3)
    starts = [0, 15, 21, 25, 36, 49]
    pure = [[255, 0, 0], [255, 255, 0], [0, 255, 0], [0, 255, 255], [0, 0, 255], [255, 0, 255]]
    assert wheel[starts].tolist() == pure
    assert wheel[1].tolist() == [255, 17, 0]  # a fifteenth of the way to yellow
    assert wheel[16].tolist() == [255 - 42, 255, 0]
    assert wheel[54].tolist() == [255, 0, 255 - 212]


def test_directions_have_middlebury_s_colours() -> None:
    """Right is red, down is yellow-green, left is cyan-blue, up is violet; still is white."""
    flow = np.array([[[1.0, 0.0, -1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, -1.0, 0.0]]])
    right, down, left, up, still = flow_to_colour(flow)[0].astype(int)
    assert right.tolist() == [255, 0, 0]
    assert down[1] > 200
    assert down[0] > down[2]
    assert left[2] > 200
    assert left[0] < 50
    assert up[0] > 50
    assert up[2] > 200
    assert still.tolist() == [255, 255, 255]


def test_strength_is_length_and_beyond_the_largest_is_darker() -> None:
    flow = np.array([[[1.0, 2.0, 4.0]], [[0.0, 0.0, 0.0]]])
    assert flow_to_colour(flow, 2.0)[0].tolist() == [[255, 127, 127], [255, 0, 0], [191, 0, 0]]
    assert flow_to_colour(flow)[0, 2].tolist() == [255, 0, 0]


def test_the_wheel_closes_without_a_seam() -> None:
    angles = np.linspace(0, 2 * np.pi, 721)
    colours = flow_to_colour(np.stack([np.cos(angles), np.sin(angles)])[:, None], 1.0)[0]
    assert np.abs(np.diff(colours.astype(int), axis=0)).max() <= 10
    assert np.abs(colours[0].astype(int) - colours[-1]).max() <= 10


def test_unknown_flow_is_black_and_does_not_set_the_scale() -> None:
    flow = np.array([[[np.nan, 1.0, np.inf]], [[0.0, 0.0, 0.0]]])
    assert flow_to_colour(flow)[0].tolist() == [[0, 0, 0], [255, 0, 0], [0, 0, 0]]
    assert (flow_to_colour(np.zeros((2, 3, 3))) == 255).all()
    assert (flow_to_colour(np.full((2, 3, 3), np.nan)) == 0).all()


def test_what_is_no_flow_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 4, 4\); it must be \[2, H, W\]"):
        flow_to_colour(np.zeros((3, 4, 4)))
    for largest in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=f"largest is {largest}; .* above 0"):
            flow_to_colour(np.zeros((2, 4, 4)), largest)


def draw(path: Path, count: int = 2, **changes: Any) -> tuple[int, int]:
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 3, (count, 2, 12, 16))
    flow[0, :, :3] = np.nan
    arguments = {
        "video": rng.integers(0, 256, (count, 3, 2, 12, 16), np.uint8),
        "true": flow,
        "predicted": rng.normal(0, 3, (count, 2, 12, 16)),
        "title": "Flow",
        **changes,
    }
    with Image.open(draw_flow(path, **arguments)) as picture:
        assert picture.format == "PNG"
        return picture.size


@pytest.mark.slow
def test_the_figure_grows_with_rows_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure, "MAX_ROWS", 3)
    path = tmp_path / "new" / "a.png"
    one, two = draw(path, 1), draw(path, 2, names=["first", "$x"])
    most, more = draw(path, 3), draw(path, 4, note="Note.")
    assert one[0] == two[0] == most[0]
    assert one[1] < two[1] < most[1]
    assert more[1] > most[1]  # a line that says how many there are
    assert more[1] - most[1] < 100


@pytest.mark.parametrize("missing", ["true", "predicted"])
def test_one_flow_is_enough(tmp_path: Path, missing: str) -> None:
    assert draw(tmp_path / "a.png", 2, **{missing: None})[0] > 1000


@pytest.mark.slow
def test_degenerate_flow_is_drawn(tmp_path: Path) -> None:
    zero, unknown = np.zeros((2, 2, 12, 16)), np.full((2, 2, 12, 16), np.nan)
    floats = np.full((2, 3, 2, 12, 16), np.nan)
    for true, predicted in ((zero, zero), (unknown, zero), (zero, unknown)):
        draw(tmp_path / "a.png", video=floats, true=true, predicted=predicted)


def test_the_colours_of_the_figure_follow_the_true_flow(tmp_path: Path) -> None:
    """Everything moves right by the longest motion: the third column is pure red."""
    true = np.zeros((1, 2, 12, 16))
    true[:, 0] = 2.0
    path = tmp_path / "a.png"
    draw(path, 1, true=true, predicted=true * 2)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(axis=1).sum() > 20_000
    assert (pixels == [191, 0, 0]).all(axis=1).sum() > 20_000  # the prediction goes beyond


def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match="no flow to draw"):
        draw(path, true=None, predicted=None)
    with pytest.raises(InputError, match=r"flow has shape \(2, 2, 12, 15\) .* \(2, 2, 12, 16\)"):
        draw(path, predicted=np.zeros((2, 2, 12, 15)))
    with pytest.raises(InputError, match=r"frame pairs have shape \(2, 3, 12, 16\)"):
        draw(path, video=np.zeros((2, 3, 12, 16)))
    with pytest.raises(InputError, match="1 names for 2 frame pairs"):
        draw(path, names=["one"])
    assert not path.exists()
