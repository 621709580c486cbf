"""Random erasing: boxes, how often, and what takes their place."""

import numpy as np
import pytest
from numpy.typing import NDArray

from perceivers.data.augment import AugmentConfig, Look
from perceivers.data.erasing import draw_box, erase_box
from perceivers.types import Image, Video

ALWAYS = AugmentConfig(erase=1.0)
STATISTICS = {"mean": (0.5, 0.25, 0.5), "std": (0.1, 0.1, 0.2)}


def erase(
    values: NDArray, spec: Image | Video, seed: int = 0, augment: AugmentConfig = ALWAYS
) -> NDArray:
    return erase_box(values, spec, Look(np.random.default_rng(seed), augment))


def test_boxes_have_the_areas_and_aspects_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    boxes = [draw_box(200, 300, rng) for _ in range(2000)]
    sides = np.array([(b[0].stop - b[0].start, b[1].stop - b[1].start) for b in boxes if b])
    assert len(sides) == 2000
    areas, aspects = sides.prod(1) / 60_000, sides[:, 0] / sides[:, 1]
    assert 0.019 < areas.min() < 0.025
    assert 0.30 < areas.max() < 0.335
    assert 0.28 < aspects.min() < 0.34
    assert 2.9 < aspects.max() < 3.5
    assert np.median(aspects) == pytest.approx(1.0, abs=0.1)  # log-uniform, not uniform
    assert areas.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    places = np.array([(b[0].start, b[1].start) for b in boxes if b])
    ends = np.array([(b[0].stop, b[1].stop) for b in boxes if b])
    assert places.min() == 0
    assert ends.max(0).tolist() == [200, 300]


def test_a_picture_of_one_pixel_has_no_box() -> None:
    assert draw_box(1, 1, np.random.default_rng(0)) is None
    single = np.full((3, 1, 1), 7, np.uint8)
    assert erase(single, Image(1, 1)) is single


def test_pictures_are_erased_as_often_as_asked_and_never_in_evaluation() -> None:
    spec = Image(16, 16, 1)
    picture = np.zeros((1, 16, 16), np.uint8)
    quarter = AugmentConfig(erase=0.25)
    erased = sum(erase(picture, spec, seed, quarter).any() for seed in range(400))
    assert 70 < erased < 130
    assert all(erase(picture, spec, seed).any() for seed in range(20))
    assert erase_box(picture, spec, Look(None, ALWAYS)) is picture
    rng = np.random.default_rng(0)
    assert erase_box(picture, spec, Look(rng, AugmentConfig())) is picture
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn
    assert not picture.any()


def test_noise_is_standard_normal_for_the_model() -> None:
    spec = Image(200, 200, 3, mean=STATISTICS["mean"], std=STATISTICS["std"])
    picture = np.full((3, 200, 200), 255, np.uint8)
    erased = erase(picture, spec, 1)
    inside = (erased != 255).any(0)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = erased[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert 0.02 * 40_000 < box[0].size < 40_000 / 3
    seen = (box / 255 - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    assert seen.mean((1, 2)) == pytest.approx(np.zeros(3), abs=0.1)
    assert seen.std((1, 2)) == pytest.approx(np.ones(3), abs=0.1)
    assert np.abs(np.corrcoef(box.reshape(3, -1)) - np.eye(3)).max() < 0.1
    outside = np.ones_like(inside)
    outside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
    assert (erased[:, outside] == 255).all()


def test_noise_without_statistics_is_uniform_over_the_range() -> None:
    erased = erase(np.zeros((1, 200, 200), np.uint8), Image(200, 200, 1), 1)
    values = erased[erased > 0]
    assert (values.min(), values.max()) == (1, 255)
    assert values.mean() == pytest.approx(128, abs=5)
    assert values.std() == pytest.approx(256 / 12**0.5, abs=3)
    floats = np.zeros((1, 20, 20), np.float32)
    floats[0, 0] = (-2.0, 3.0) * 10
    found = erase(floats, Image(20, 20, 1), 1)
    assert found.dtype == np.float32
    assert found.min() >= -2.0
    assert found.max() <= 3.0
    assert not np.array_equal(found, floats)


def test_floats_are_not_cut_off() -> None:
    spec = Image(64, 64, 1, mean=(10.0,), std=(2.0,))
    erased = erase(np.zeros((1, 64, 64), np.float32), spec, 1)
    values = erased[erased != 0]
    assert values.mean() == pytest.approx(10.0, abs=0.3)
    assert values.std() == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_a_clip_loses_the_same_box_in_all_frames_to_noise_of_their_own(kind: type) -> None:
    spec = Video(4, 32, 32, 1, mean=(0.5,), std=(0.1,))
    clip = np.zeros((1, 4, 32, 32), kind)
    erased = erase(clip, spec, 3)
    assert erased.dtype == kind
    boxes = erased[0] != 0
    assert boxes[0].any()
    assert (boxes == boxes[0]).all()
    assert not np.array_equal(erased[0, 0], erased[0, 1])
    scale = 255 if kind is np.uint8 else 32768
    assert erased[0][boxes].mean() / scale == pytest.approx(0.5, abs=0.05)


def test_the_generator_alone_decides() -> None:
    spec, picture = Image(16, 16, 1), np.zeros((1, 16, 16), np.uint8)
    assert np.array_equal(erase(picture, spec, 5), erase(picture, spec, 5))
    assert not np.array_equal(erase(picture, spec, 5), erase(picture, spec, 6))
