"""Masks as colours: palettes, overlays and the figure of examples."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceivers.errors import InputError
from perceivers.report.figures.scores import (
    COLOURS,
    IGNORED,
    class_colours,
    draw_masks,
    overlay_mask,
)


def test_every_class_has_a_colour_of_its_own() -> None:
    table = class_colours(60)
    assert table.shape == (256, 3)
    assert tuple(table[3]) == COLOURS[3]
    assert len({tuple(colour) for colour in table[:60].tolist()}) == 60
    assert not table[60:].any()
    assert np.array_equal(class_colours(5)[:5], table[:5])  # further classes change none
    for number in (0, 256):
        with pytest.raises(InputError, match=f"{number} classes"):
            class_colours(number)


def test_an_overlay_is_half_picture_and_half_colour() -> None:
    picture = np.full((2, 2, 3), 100, np.uint8)
    ids = np.array([[0, 1], [1, IGNORED]], np.uint8)
    laid = overlay_mask(picture, ids, 2)
    table = class_colours(2).astype(float)
    assert np.array_equal(laid[0, 0], np.rint(50 + table[0] / 2))
    assert np.array_equal(laid[0, 1], np.rint(50 + table[1] / 2))
    assert np.array_equal(laid[1, 1], [100, 100, 100])
    with pytest.raises(InputError, match=r"\(2, 2, 3\) for a mask of \(3, 2\)"):
        overlay_mask(picture, np.zeros((3, 2), np.uint8), 2)


@pytest.mark.slow
def test_the_figure_grows_with_pictures_and_classes(tmp_path: Path) -> None:
    sizes = []
    for count, names in ((1, 2), (2, 2), (2, 30)):
        ids = np.zeros((count, 8, 10), np.uint8)
        path = draw_masks(
            tmp_path / f"{count}-{names}.png",
            pictures=np.zeros((count, 3, 8, 10)),
            true=ids,
            found=ids,
            classes=[f"class {number}" for number in range(names)],
            title="Masks",
            note="",
        )
        with Image.open(path) as drawn:
            sizes.append(drawn.size[1])
    assert sizes[0] < sizes[1] < sizes[2]


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found masks have shape \(1, 4, 4\)"):
        draw_masks(
            tmp_path / "x.png",
            pictures=np.zeros((1, 3, 8, 10)),
            true=np.zeros((1, 8, 10), np.uint8),
            found=np.zeros((1, 4, 4), np.uint8),
            classes=["a", "b"],
            title="",
            note="",
        )
