"""Figures of attention: scales by hand, where heat and text land, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from perceivers.errors import InputError
from perceivers.report.figures.attention import (
    Panel,
    PanelSection,
    draw_attention,
    full_colour,
    strongest_share,
)
from perceivers.report.figures.canvases import (
    ClipCanvas,
    PictureCanvas,
    PointsCanvas,
    TextCanvas,
    WaveCanvas,
    blend,
    break_lines,
    condense,
    envelope,
    split_cells,
    upsample,
    without_padding,
)
from perceivers.types import CLS, FIRST_BYTE, MASK, PAD, SEP


def even(*shape: int) -> NDArray[np.float64]:
    return np.full(shape, 1.0 / np.prod(shape))


def ids(text: str) -> NDArray[np.int64]:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64) + FIRST_BYTE


def draw(path: Path, *panels: Panel, **changes: Any) -> NDArray[np.uint8]:
    sections = [PanelSection("Heading", "How it came about.", panels)]
    draw_attention(path, sections, **{"title": "Attention", "note": "Note.", **changes})
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# -- scales ----------------------------------------------------------------------------------------


def test_the_strongest_hundredth_has_at_least_one_token() -> None:
    shares = {"a": np.array([[0.5, 0.125]]), "b": np.array([0.25, 0.125])}
    assert strongest_share(shares, 4) == 0.5
    many = {"a": np.append(np.full(2, 0.1), np.full(198, 0.8 / 198))}
    assert strongest_share(many, 200) == pytest.approx(0.2)


def test_the_full_colour_is_pale_for_an_even_map_and_not_set_by_one_token() -> None:
    assert full_colour({"a": even(10, 100)}, 1000) == pytest.approx(3 / 1000)
    assert full_colour({"a": np.array([1.0])}, 1) == 1.0
    lonely = np.full(1000, 0.2 / 999)
    lonely[7] = 0.8
    assert full_colour({"a": lonely}, 1000) == pytest.approx(0.16)
    spread = np.append(np.full(100, 0.01), np.zeros(900))
    assert full_colour({"a": spread}, 1000) == pytest.approx(0.01)


def test_tokens_cover_the_elements_they_hold() -> None:
    heat = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert upsample(heat, (4, 2)).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert upsample(np.array([1.0, 2.0]), (5,)).tolist() == [1, 1, 1, 2, 2]
    with pytest.raises(InputError, match=r"grid of \(2, 2\) .* input of \(4,\)"):
        upsample(heat, (4,))


def test_without_heat_a_picture_is_grey_and_full_heat_hides_it() -> None:
    grey = np.array([[0.0, 1.0]])
    cold, hot = blend(grey, np.zeros((1, 2))), blend(grey, np.ones((1, 2)))
    assert np.ptp(cold, axis=-1).max() == 0.0
    assert cold[0, 0, 0] < cold[0, 1, 0]
    assert (hot[..., 0] > hot[..., 2] + 0.3).all()


def test_signals_are_condensed_to_columns() -> None:
    assert condense(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [2.0, 6.0]
    assert condense(np.array([1.0, 3.0]), 4).tolist() == [1, 1, 3, 3]
    low, high = envelope(np.array([0.0, 2.0, -1.0, 1.0, 5.0, 3.0]), 3)
    assert (low.tolist(), high.tolist()) == ([0.0, -1.0, 3.0], [2.0, 1.0, 5.0])


# -- texts -----------------------------------------------------------------------------------------


def test_characters_and_special_ids_are_cells() -> None:
    text = np.concatenate([[CLS], ids("a\u00c4"), [MASK], ids("\n"), [SEP], [PAD] * 3])
    cells = split_cells(text)
    assert [cell.glyph for cell in cells] == [
        "\u25b7",
        "a",
        "\u00c4",
        "\u25a1",
        "\u21b5",
        "\u25c1",
    ]
    assert [(cell.first, cell.end) for cell in cells][2] == (2, 4)
    assert [cell.special for cell in cells] == [True, False, False, True, False, True]
    assert TextCanvas(text).caption == (
        "\u25a1 MASK; \u25b7 CLS; \u25c1 SEP; 3 padded positions at the end, ignored by attention"
    )
    assert TextCanvas(ids("plain")).caption == ""


def test_bytes_that_are_no_text_stand_alone() -> None:
    broken = np.array([0xC3, ord("a"), 0xFF, 0xE2, 0x82]) + FIRST_BYTE
    cells = split_cells(broken)
    assert [(cell.first, cell.end) for cell in cells] == [(n, n + 1) for n in range(5)]
    assert cells[1].glyph == "a"
    # A byte that would be continued by a special id.
    assert len(split_cells(np.array([0xC3 + FIRST_BYTE, MASK]))) == 2


def test_padding_inside_a_text_is_kept_and_that_at_its_end_is_not() -> None:
    assert without_padding(np.array([7, PAD, 8, PAD])).tolist() == [7, PAD, 8]
    assert split_cells(np.array([7, PAD, 8, PAD]))[1].glyph == "\u2205"
    assert without_padding(np.zeros(3, np.int64)).tolist() == []


def test_lines_break_after_spaces_and_line_feeds() -> None:
    def lines(text: str, columns: int) -> list[str]:
        return [
            "".join(c.glyph for c in line) for line in break_lines(split_cells(ids(text)), columns)
        ]

    assert lines("one two three", 8) == ["one two ", "three"]
    assert lines("unbreakable", 4) == ["unbr", "eaka", "ble"]
    assert lines("a\nb\n", 9) == ["a\u21b5", "b\u21b5"]
    assert lines("", 9) == [""]


# -- figures ---------------------------------------------------------------------------------------


def test_heat_lands_on_the_pixels_of_its_token(tmp_path: Path) -> None:
    shares = np.zeros((2, 2))
    shares[1, 0] = 1.0
    canvas = PictureCanvas(np.ones((1, 8, 8)))
    picture = draw(tmp_path / "a.png", Panel({"x": canvas}, "map", {"x": shares}, 4)).astype(int)
    plain = draw(tmp_path / "b.png", Panel({"x": canvas}, "map", {"x": even(2, 2)}, 4)).astype(int)
    assert picture.shape == plain.shape
    # Only where the token is has the picture the darkest colour of the scale.
    warm = (picture[..., 0] - picture[..., 2] > 80) & (picture[..., 0] < 190)
    rows, columns = np.nonzero(warm[: picture.shape[0] - 60])
    assert 120 < np.ptp(rows) < 180
    assert 120 < np.ptp(columns) < 180
    assert columns.max() < 200


TEXT = ids("Some words \u00e4nd others $x_1$.\n" * 9)
CANVASES: dict[str, tuple[Any, tuple[int, ...], tuple[float, ...]]] = {
    "picture": (PictureCanvas(np.random.default_rng(0).random((3, 9, 6))), (3, 2), (0.5, 0.5)),
    "tall": (PictureCanvas(np.ones((2, 90, 1))), (90, 1), (0.5, 0.5)),
    "clip": (ClipCanvas(np.ones((3, 9, 4, 6))), (3, 2, 3), (0.99, 0.5, 0.5)),
    "one frame": (ClipCanvas(np.ones((1, 1, 4, 6))), (1, 4, 6), ()),
    "wave": (WaveCanvas(np.random.default_rng(0).normal(size=(2, 5000)), 8000.0), (50,), (0.5,)),
    "silence": (WaveCanvas(np.zeros((1, 4))), (4,), ()),
    "points": (PointsCanvas(np.random.default_rng(0).normal(size=(20, 3))), (20,), (0.5,)),
    "line": (PointsCanvas(np.ones((2, 1))), (2,), ()),
    "text": (TextCanvas(TEXT), TEXT.shape, (0.3,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CANVASES)
def test_every_input_is_drawn_with_and_without_heat(kind: str, tmp_path: Path) -> None:
    canvas, grid, mark = CANVASES[kind]
    bare = Panel({"x": canvas}, "the input")
    rng = np.random.default_rng(1)
    shares = rng.random(grid) ** 4
    panel = Panel(
        {"x": canvas}, "map", {"x": shares / shares.sum()}, shares.size, ["n"], ("x", mark)
    )
    picture = draw(tmp_path / "a.png", bare, panel)
    assert 1700 < picture.shape[1] < 1800
    orange = (picture[..., 0].astype(int) - picture[..., 2]) > 60
    cold = draw(tmp_path / "b.png", bare)
    assert orange.sum() > (cold[..., 0].astype(int) - cold[..., 2] > 60).sum()


@pytest.mark.slow
def test_several_modalities_share_a_row(tmp_path: Path) -> None:
    canvases = {"v": ClipCanvas(np.ones((3, 4, 4, 4))), "a": WaveCanvas(np.ones((1, 8)))}
    shares = {"v": even(4, 1, 1) / 2, "a": even(8) / 2}
    assert draw(tmp_path / "a.png", Panel(canvases, "both", shares, 12)).shape[0] < 900


def test_a_marked_frame_is_among_those_drawn() -> None:
    clip = ClipCanvas(np.ones((1, 16, 2, 2)))
    assert clip.shown() == [2, 6, 10, 14]
    assert clip.shown((8.5 / 16, 0.5, 0.5)) == [2, 8, 10, 14]
    assert clip.caption == "4 of 16 frames drawn"
    assert ClipCanvas(np.ones((1, 4, 2, 2))).caption == ""


def test_points_say_what_a_plane_leaves_out() -> None:
    points = np.array([[0.0, 1.0, -0.5], [1.0, 0.0, 2.0], [np.nan] * 3])
    assert PointsCanvas(points).caption == "third coordinate: -0.5 to 2"
    assert PointsCanvas(points[:, :2]).caption == ""
    assert PointsCanvas(np.ones((2, 6))).caption == "values 3 to 6 not drawn"
    assert PointsCanvas(np.full((2, 3), np.nan)).caption == ""


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    canvas = {"x": PictureCanvas(np.ones((1, 2, 2)))}
    with pytest.raises(InputError, match="no attention to draw"):
        draw(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"'m' has 4 tokens and attention that sums to 0\.5"):
        draw(tmp_path / "a.png", Panel(canvas, "m", {"x": even(2, 2) / 2}, 4))
    with pytest.raises(InputError, match=r"'m' has 0 tokens"):
        draw(tmp_path / "a.png", Panel(canvas, "m", {"x": even(2, 2)}, 0))
    with pytest.raises(InputError, match=r"covers \['y'\], but the panel shows \['x'\]"):
        draw(tmp_path / "a.png", Panel(canvas, "m", {"y": even(2, 2)}, 4))
