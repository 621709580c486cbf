"""RandAugment: every operation at M = 5 pixel by pixel, who decides what, and crops before it."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from perceivers.data.augment import AugmentConfig, View
from perceivers.data.rand_augment import OPERATIONS, apply, as_picture, augment_crop
from perceivers.errors import ConfigError

SIDE = 224
IDENTITIES = {"Color", "Contrast", "Brightness", "Sharpness"}


class Fixed(np.random.Generator):
    """A generator whose uniform draws are given."""

    def __init__(self, *draws: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.draws = list(draws)

    def random(self, *args: object, **kwargs: object) -> float:  # type: ignore[override]
        """Return the next of the given draws."""
        return self.draws.pop(0)


PLUS, MINUS = 0.2, 0.8


@pytest.fixture
def picture(numpy_rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(numpy_rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def run(name: str, picture: Image.Image, *draws: float, magnitude: float = 5.0) -> NDArray:
    return np.asarray(OPERATIONS[name](picture, magnitude, Fixed(*draws)))


def test_there_are_the_sixteen_of_the_released_script() -> None:
    assert len(OPERATIONS) == 16
    assert list(OPERATIONS)[:3] == ["AutoContrast", "Equalize", "Invert"]


def test_values_are_changed_as_the_table_says(picture: Image.Image) -> None:
    values = np.asarray(picture).astype(int)
    assert np.array_equal(run("Invert", picture), 255 - values)
    assert np.array_equal(run("Posterize", picture), values // 64 * 64)  # 2 bits
    solarized = np.where(values < 128, values, 255 - values)
    assert np.array_equal(run("Solarize", picture), solarized)
    assert np.array_equal(run("SolarizeAdd", picture), np.where(values < 128, values + 55, values))


@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_enhancements_change_nothing_at_five_and_something_elsewhere(
    name: str, picture: Image.Image
) -> None:
    assert np.array_equal(run(name, picture), np.asarray(picture))
    for magnitude in (3.0, 7.0):
        assert not np.array_equal(run(name, picture, magnitude=magnitude), np.asarray(picture))


def test_brightness_at_ten_is_a_factor_of_1_9() -> None:
    grey = Image.new("RGB", (3, 3), (100, 20, 200))
    assert run("Brightness", grey, magnitude=10.0)[0, 0].tolist() == [190, 38, 255]
    assert run("Brightness", grey, magnitude=0.0)[0, 0].tolist() == [10, 2, 20]


def test_contrast_is_stretched_per_channel() -> None:
    values = np.zeros((1, 3, 3), np.uint8)
    values[0, :, 0], values[0, :, 1], values[0, :, 2] = (50, 75, 101), (0, 128, 255), 7
    found = run("AutoContrast", Image.fromarray(values))[0]
    assert found[:, 0].tolist() == [0, 125, 255]
    assert found[:, 1].tolist() == [0, 128, 255]
    assert found[:, 2].tolist() == [7, 7, 7]


def test_equalized_values_are_spread_evenly() -> None:
    """Four dark values, each as frequent as the others, become four equal steps."""
    values = np.repeat(np.arange(4, dtype=np.uint8), 256).reshape(32, 32)
    found = np.unique(run("Equalize", Image.fromarray(values))).astype(int)
    assert found[0] == 0
    assert found[-1] >= 250
    assert np.abs(np.diff(found) - 85).max() <= 2


@pytest.mark.parametrize(("draw", "sign"), [(PLUS, 1), (MINUS, -1)])
def test_translations_are_fifty_pixels(picture: Image.Image, draw: float, sign: int) -> None:
    values = np.asarray(picture)
    moved = np.full_like(values, 128)
    if sign > 0:
        moved[:, :-50] = values[:, 50:]
    else:
        moved[:, 50:] = values[:, :-50]
    assert np.array_equal(run("TranslateX", picture, draw), moved)
    turned = Image.fromarray(values.transpose(1, 0, 2))
    assert np.array_equal(run("TranslateY", turned, draw), moved.transpose(1, 0, 2))


@pytest.mark.parametrize(("size", "pixels"), [((448, 224), 100), ((32, 224), 7)])
def test_translations_scale_with_the_side(size: tuple[int, int], pixels: int) -> None:
    """50 of 224 is 100 of 448 and 7.14, so 7, of 32."""
    white = Image.new("L", size, 255)
    assert int((run("TranslateX", white, PLUS)[0] == 128).sum()) == pixels
    assert int((run("TranslateY", white, PLUS)[:, 0] == 128).sum()) == 50


def test_shears_are_fifteen_percent_from_the_upper_left_corner(picture: Image.Image) -> None:
    values = np.asarray(picture)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5  # Pillow looks up the centres of pixels
    source = np.floor(columns + 0.15 * rows).astype(int)
    inside = source < SIDE
    looked_up = values[np.arange(SIDE)[:, None], source.clip(max=SIDE - 1)]
    expected = np.where(inside[..., None], looked_up, 128)
    # A share of a pixel's edge may fall on either side.
    found = run("ShearX", picture, PLUS)
    assert (found != expected).any(-1).mean() < 0.01
    assert (run("ShearX", picture, MINUS) != expected).any(-1).mean() > 0.5
    turned = Image.fromarray(values.transpose(1, 0, 2))
    assert np.array_equal(run("ShearY", turned, PLUS), found.transpose(1, 0, 2))


@pytest.mark.parametrize(("draw", "angle"), [(PLUS, 15.0), (MINUS, -15.0)])
def test_rotations_are_fifteen_degrees(draw: float, angle: float) -> None:
    """A bright spot at radius 80 to the right of the centre turns by the angle."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[108:116, 188:196] = 255
    found = run("Rotate", Image.fromarray(values), draw)
    rows, columns = np.nonzero(found == 255)
    turned = np.degrees(np.arctan2(111.5 - rows.mean(), columns.mean() - 111.5))
    assert turned == pytest.approx(angle, abs=0.5)
    assert found[0, 0] == 128


def test_a_cutout_is_forty_pixels_wide_and_cut_off_at_the_border() -> None:
    black = Image.new("RGB", (SIDE, SIDE))
    covered = run("Cutout", black, 100.5 / SIDE, 60.5 / SIDE)  # centre (100, 60)
    expected = np.zeros((SIDE, SIDE, 3), np.uint8)
    expected[40:80, 80:120] = 128
    assert np.array_equal(covered, expected)
    corner = run("Cutout", black, 0.0, 0.999)  # centre (0, 223)
    assert int((corner[..., 0] == 128).sum()) == 20 * 21
    assert np.asarray(black).max() == 0  # the picture given is as it was


def test_weak_posterizing_keeps_a_bit_and_full_solarizing_inverts_nothing() -> None:
    values = np.arange(256, dtype=np.uint8)[None]
    picture = Image.fromarray(values)
    assert np.unique(run("Posterize", picture, magnitude=1.0)).tolist() == [0, 128]
    assert np.array_equal(run("Solarize", picture, magnitude=10.0), values)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (40, 30)])
def test_every_operation_keeps_mode_and_size(mode: str, size: tuple[int, int]) -> None:
    picture = Image.new(mode, size, 77)
    for name, operation in OPERATIONS.items():
        for magnitude in (0.0, 5.0, 10.0):
            found = operation(picture, magnitude, np.random.default_rng(0))
            assert (found.mode, found.size) == (mode, size), name


def test_the_generator_alone_decides(picture: Image.Image) -> None:
    config = AugmentConfig(rand_augment=4)
    first, again, other = (
        np.asarray(apply(picture, config, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # What is drawn afterwards does not depend on the picture.
    left = np.random.default_rng(3)
    apply(picture, config, left)
    right = np.random.default_rng(3)
    apply(Image.new("L", (5, 9)), config, right)
    assert left.random() == right.random()


def test_every_operation_is_drawn_and_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in OPERATIONS:
        monkeypatch.setitem(
            OPERATIONS,  # type: ignore[arg-type]
            name,
            lambda picture, magnitude, rng, name=name: (
                calls.append(f"{name} {magnitude}") or picture
            ),
        )
    rng, picture = np.random.default_rng(0), Image.new("L", (2, 2))
    for _ in range(400):
        apply(picture, AugmentConfig(rand_augment=4, magnitude=7), rng)
    assert len(calls) == 1600
    counts = {name: calls.count(f"{name} 7.0") for name in OPERATIONS}
    assert min(counts.values()) > 60  # 100 each, standard deviation 9.7
    assert sum(counts.values()) == 1600


def test_without_operations_nothing_happens(picture: Image.Image) -> None:
    rng = np.random.default_rng(0)
    assert apply(picture, AugmentConfig(), rng) is picture
    view = View(0.1, 0.2, 0.3, 0.4)
    assert augment_crop(picture, view, AugmentConfig(), rng) == (picture, view)
    assert augment_crop(picture, view, AugmentConfig(rand_augment=4), None) == (picture, view)
    assert rng.random() == np.random.default_rng(0).random()


def test_the_crop_is_cut_out_before(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pixels that the box touches, and a view of all of them that still turns."""
    monkeypatch.setattr("perceivers.data.rand_augment.apply", lambda picture, config, rng: picture)
    view = View(10.4 / SIDE, 20 / SIDE, 30 / SIDE, 40 / SIDE, flip=True, angle=0.1)
    config, rng = AugmentConfig(rand_augment=1), np.random.default_rng(0)
    crop, rest = augment_crop(picture, view, config, rng)
    assert np.array_equal(np.asarray(crop), np.asarray(picture)[20:60, 10:41])
    assert rest == replace(view, left=0.0, top=0.0, width=1.0, height=1.0)
    whole, _ = augment_crop(picture, View(0.0, 0.0, 1.0, 1.0), config, rng)
    assert whole.size == picture.size


def test_the_crop_is_changed(picture: Image.Image) -> None:
    config = AugmentConfig(rand_augment=8)
    crop, _ = augment_crop(picture, View(0.0, 0.0, 0.5, 0.5), config, np.random.default_rng(0))
    plain = picture.crop((0, 0, SIDE // 2, SIDE // 2))
    expected = apply(plain, config, np.random.default_rng(0))
    assert np.array_equal(np.asarray(crop), np.asarray(expected))
    assert not np.array_equal(np.asarray(crop), np.asarray(plain))


def test_other_modes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rand_augment is 2, but the image has mode 'I;16'"):
        apply(Image.new("I;16", (4, 4)), AugmentConfig(rand_augment=2), np.random.default_rng(0))


def test_arrays_become_pictures_where_they_can() -> None:
    colours = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    picture = as_picture(colours)
    assert (picture.mode, picture.size) == ("RGB", (4, 2))
    assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), colours)
    assert as_picture(colours[:1]).mode == "L"
    with pytest.raises(ConfigError, match=r"the data are float32 with 1 channels; set"):
        as_picture(np.zeros((1, 2, 2), np.float32))
    with pytest.raises(ConfigError, match=r"the data are uint8 with 4 channels"):
        as_picture(np.zeros((4, 2, 2), np.uint8))


def test_operations_that_keep_the_shape_leave_every_pixel_in_its_place() -> None:
    values = np.full((9, 11, 3), 90, np.uint8)
    values[3, 7] = 220
    picture = Image.fromarray(values)
    config = AugmentConfig(rand_augment=2, magnitude=8)
    moved = 0
    for seed in range(40):
        kept = np.asarray(apply(picture, config, np.random.default_rng(seed), keep_shape=True))
        # Sharpness reaches one pixel far; elsewhere all stays equal.
        calm = kept.copy()
        calm[2:5, 6:9] = kept[0, 0]
        assert (calm == kept[0, 0]).all()
        free = np.asarray(apply(picture, config, np.random.default_rng(seed)))
        free = free.copy()
        free[2:5, 6:9] = free[0, 0]
        moved += not (free == free[0, 0]).all()
    assert moved > 5
