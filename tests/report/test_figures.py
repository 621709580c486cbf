"""Figures are valid, sensibly sized pictures, for ordinary and for degenerate results."""

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from perceivers.errors import InputError
from perceivers.report import style
from perceivers.report.figures import (
    draw_confusion,
    draw_curves,
    draw_mistakes,
    draw_positions,
    draw_reconstructions,
    reconstruction,
)
from perceivers.report.figures.curves import smooth
from perceivers.report.figures.positions import colours, principal_components, similarity
from perceivers.report.figures.reconstruction import to_pictures


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 0, "the picture is blank"
        assert max(image.size) <= 4000
        assert min(image.size) >= 100
        return image.size


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_reconstructions_draw_any_number_of_channels(
    tmp_path: Path, rng: np.random.Generator, channels: int
) -> None:
    images = rng.normal(0.5, 1.0, (3, channels, 8, 8))
    path = draw_reconstructions(
        tmp_path / "new" / "a.png",
        original=images,
        visible=rng.random((3, 1, 8, 8)) < 0.5,
        reconstructed=images,
        names=["$x", "a very long name that cannot fit above so small a picture", "\u72d7"],
        title="Title",
        note="",
    )
    assert path == tmp_path / "new" / "a.png"
    size_of(path)


def test_a_fourth_row_makes_the_figure_taller_and_columns_stop_at_the_limit(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "MAX_COLUMNS", 3)

    def draw(count: int, pasted: bool) -> tuple[int, int]:
        images = rng.random((count, 1, 8, 8))
        path = draw_reconstructions(
            tmp_path / "a.png",
            original=images,
            visible=images > 0.5,
            reconstructed=images,
            masked_only=images if pasted else None,
            title="Title",
            note="Note",
        )
        return size_of(path)

    three, four = draw(3, pasted=False), draw(3, pasted=True)
    assert four[0] == three[0]
    assert four[1] > three[1] + 50
    assert draw(4, pasted=False) == three


def test_hidden_pixels_are_drawn_grey_and_visible_ones_as_they_are(tmp_path: Path) -> None:
    white = np.ones((1, 1, 8, 8))
    grey = (np.asarray(style.HIDDEN) * 255).round()
    counts: list[int] = []
    for keep in (True, False):
        path = draw_reconstructions(
            tmp_path / "a.png",
            original=white,
            visible=np.full((1, 1, 8, 8), keep),
            reconstructed=white,
            title="Title",
            note="",
        )
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(float)
        counts.append(int((np.abs(pixels - grey).max(axis=-1) <= 1).sum()))
    assert counts[0] < 500
    assert counts[1] > 20_000


def test_reconstructions_of_other_shapes_are_refused(tmp_path: Path) -> None:
    images = np.zeros((2, 1, 8, 8))
    with pytest.raises(InputError, match=r"visible has shape \(2, 1, 4, 4\)"):
        draw_reconstructions(
            tmp_path / "a.png",
            original=images,
            visible=np.ones((2, 1, 4, 4), dtype=bool),
            reconstructed=images,
            title="Title",
            note="",
        )


def test_pictures_are_clipped_and_non_numbers_are_black() -> None:
    image = np.array([-1.0, 0.25, 2.0, math.nan]).reshape(1, 1, 2, 2)
    expected = np.array([[0.0, 0.25], [1.0, 0.0]])
    np.testing.assert_array_equal(to_pictures(image)[0, :, :, 2], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "channels"),
    [
        ((8, 8), 16),
        ((4, 16), 2),
        ((16, 4), 1),
        ((32,), 8),
        ((1, 9), 3),
        ((2, 3, 4), 6),
        ((1,), 2),
        ((2, 900), 2),
    ],
)
@pytest.mark.parametrize("with_before", [True, False])
def test_positions_are_drawn_on_any_grid(
    tmp_path: Path,
    rng: np.random.Generator,
    grid: tuple[int, ...],
    channels: int,
    with_before: bool,
) -> None:
    after = rng.normal(size=(math.prod(grid), channels))
    before = rng.normal(size=after.shape) if with_before else None
    size_of(
        draw_positions(tmp_path / "a.png", before=before, after=after, grid=grid, title="Title")
    )


@pytest.mark.slow
def test_constant_tables_are_drawn_and_hold_no_variance(tmp_path: Path) -> None:
    table = np.full((16, 4), 0.3)
    path = tmp_path / "a.png"
    size_of(draw_positions(path, before=0 * table, after=table, grid=(4, 4), title="Title"))
    components = principal_components(table)
    assert components.variances.sum() == 0
    np.testing.assert_array_equal(colours(components), np.full((16, 3), 0.5))


def test_position_tables_that_do_not_fit_the_grid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \(16, 4\) for grid \(4, 5\).*\[20, channels\]"):
        draw_positions(
            tmp_path / "a.png", before=None, after=np.ones((16, 4)), grid=(4, 5), title="Title"
        )
    with pytest.raises(InputError, match=r"\(16, 3\) and \(16, 4\)"):
        draw_positions(
            tmp_path / "a.png",
            before=np.ones((16, 3)),
            after=np.ones((16, 4)),
            grid=(4, 4),
            title="Title",
        )


def test_principal_components_find_the_direction_of_a_line() -> None:
    along = np.arange(5.0) - 2
    components = principal_components(np.outer(along, [3.0, 4.0]) + 7)
    np.testing.assert_allclose(components.variances, [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(components.scores[:, 0], 5 * along)


def test_similarity_is_one_for_itself_minus_one_for_the_opposite_and_zero_for_zeros() -> None:
    table = np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(similarity(table, 0), [1, -1, 0, 0])


def make_records(steps: int, rng: np.random.Generator) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    for step in range(steps):
        loss = float(np.exp(-step / 20) + rng.random() / 10)
        records.append({"step": step, "split": "train", "loss": loss, "lr": 1e-3 * step})
        if step % 10 == 0:
            records.append({"step": step, "split": "val", "loss": loss, "top1": 0.5})
    return records


@pytest.mark.parametrize("log_y", [False, True])
def test_curves_have_a_row_more_for_every_two_keys(
    tmp_path: Path, rng: np.random.Generator, log_y: bool
) -> None:
    records = make_records(60, rng)
    heights = [
        size_of(
            draw_curves(tmp_path / "a.png", records=records, keys=keys, title="Title", log_y=log_y)
        )[1]
        for keys in (["loss", "lr"], ["loss", "lr", "top1"], ["loss", "lr", "top1", "none"])
    ]
    assert heights[0] + 300 < heights[1] == heights[2]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"step": 3, "split": "train", "loss": 0.5}],
        [{"step": 0, "loss": math.nan}, {"step": 1, "loss": None}, {"loss": 1.0}, {}],
        [{"step": step, "split": "train", "loss": 0.0} for step in range(50)],
        [{"step": step, "split": split, "loss": -1e-7} for step in (1, 2) for split in "abcde"],
    ],
)
def test_curves_tolerate_missing_few_and_constant_values(
    tmp_path: Path, records: list[dict[str, object]]
) -> None:
    path = tmp_path / "a.png"
    size_of(draw_curves(path, records=records, keys=["loss"], title="Title", log_y=True))
    size_of(draw_curves(path, records=records, keys=["loss", "no"], title="Title"))


def test_smoothing_keeps_constants_and_calms_noise(rng: np.random.Generator) -> None:
    np.testing.assert_allclose(smooth(np.full(50, 3.0)), 3.0)
    noise = rng.normal(size=400)
    assert smooth(noise).shape == noise.shape
    assert smooth(noise).std() < 0.5 * noise.std()


@pytest.mark.parametrize(
    "matrix",
    [
        np.array([[3]]),
        np.array([[0]]),
        np.array([[5, 1], [0, 0]]),
        np.diag(np.arange(20)),
        np.diag(np.arange(90)),
        np.zeros((0, 0), dtype=int),
    ],
)
def test_confusions_of_any_size_are_drawn_with_empty_rows(
    tmp_path: Path, matrix: NDArray[np.int64]
) -> None:
    classes = [f"<class> number {index} $" for index in range(len(matrix))]
    size_of(draw_confusion(tmp_path / "a.png", matrix=matrix, classes=classes, title="Title"))


def test_a_confusion_that_does_not_fit_its_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 2\) for 3 classes"):
        draw_confusion(tmp_path / "a.png", matrix=np.eye(2), classes=["a", "b", "c"], title="Title")


@pytest.mark.parametrize("count", [0, 1, 9, 45])
def test_mistakes_are_drawn_up_to_the_limit(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(reconstruction, "MAX_MISTAKES", 10)
    _, height = size_of(
        draw_mistakes(
            tmp_path / "a.png",
            images=rng.random((count, 3, 6, 8)),
            truth=["a cat with a long name"] * count,
            predicted=["dog"] * count,
            confidence=[0.999] * count,
            title="Title",
        )
    )
    assert height < 800


def test_mistakes_without_one_label_each_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 images, 1 true classes"):
        draw_mistakes(
            tmp_path / "a.png",
            images=np.zeros((2, 1, 4, 4)),
            truth=["a"],
            predicted=["b", "b"],
            confidence=[1.0, 1.0],
            title="Title",
        )


def test_drawing_leaves_the_global_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    draw_curves(tmp_path / "a.png", records=[], keys=["loss"], title="Title")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (3.75e-5, "3.75e-5"), (12345.6, "12,346"), (-1.5, "-1.5")],
)
def test_numbers_are_written_for_readers(value: float, text: str) -> None:
    assert style.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.978, "97.8 %"), (0.99996, "99.996 %")]
)
def test_only_all_is_a_hundred_percent(share: float, text: str) -> None:
    assert style.percent(share) == text


def test_text_is_cut_and_wrapped_to_measured_widths() -> None:
    words = "a sentence that is longer than one inch"
    assert style.text_width(style.shorten(words, 1.0, 9.5), 9.5) <= 1.0
    assert style.shorten("short", 1.0, 9.5) == "short"
    lines = style.wrap(words, 1.0, 9.5)
    assert " ".join(lines) == words
    assert max(style.text_width(line, 9.5) for line in lines) <= 1.0
