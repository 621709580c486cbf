"""Fitting texts, points and ready sound to their specs."""

from typing import Any

import numpy as np
import pytest

from perceivers.data.augment import Look
from perceivers.data.by_modality.points import scale_cloud
from perceivers.data.fits import fit_raw
from perceivers.data.modality import modality_of
from perceivers.errors import ConfigError, DataError
from perceivers.types import Array, Audio, Bytes, Image, ModalitySpec, Points, Video

TEXT = np.frombuffer(b"abcdefgh", np.uint8)
CLOUD = np.arange(12, dtype=np.float32).reshape(6, 2)


def fit(raw: Any, spec: ModalitySpec, seed: int | None = None) -> Any:
    return fit_raw(raw, "x/0", spec, Look(None if seed is None else np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("spec", "ids"),
    [
        (Bytes(10), [*range(103, 111), 0, 0]),
        (Bytes(8), [*range(103, 111)]),
        (Bytes(3), [103, 104, 105]),
        (Bytes(11, "cls_sep"), [4, *range(103, 111), 5, 0]),
        (Bytes(4, "cls_sep"), [4, 103, 104, 5]),
    ],
)
def test_a_text_is_cut_wrapped_and_padded(spec: Bytes, ids: list[int]) -> None:
    fitted = fit(TEXT, spec)
    assert fitted.tolist() == ids
    assert (fitted.dtype, fitted.shape) == (np.int64, spec.raw_shape)
    # Wider integers are ids already.
    assert fit(TEXT.astype(np.int32) + 6, spec).tolist() == ids


def test_training_reads_every_part_of_a_long_text() -> None:
    starts = {int(fit(TEXT, Bytes(6), seed)[0]) - 103 for seed in range(40)}
    assert starts == {0, 1, 2}
    window = fit(TEXT, Bytes(6), 3)
    assert np.diff(window).tolist() == [1] * 5


def test_a_text_without_room_is_refused() -> None:
    with pytest.raises(DataError, match="a length of 2 leaves no room for text"):
        fit(TEXT, Bytes(2, "cls_sep"))


def test_a_whole_text_is_asked_for_and_a_longer_one_named() -> None:
    for spec in (Bytes(8), Audio(1)):
        modality_of(spec).check_whole(TEXT, "x/0", spec)
    with pytest.raises(DataError, match=r"^x/0: the text has 8 bytes, .* at most 7 \(length 9, wr"):
        modality_of(Bytes(9)).check_whole(TEXT, "x/0", Bytes(9, "cls_sep"))


def test_fewer_points_are_followed_by_rows_of_nan() -> None:
    fitted = fit(CLOUD, Points(8, 2, ragged=True))
    assert fitted.shape == (8, 2)
    assert np.array_equal(fitted[:6], CLOUD)
    assert np.isnan(fitted[6:]).all()
    with pytest.raises(DataError, match="x/0: 6 points, but the spec has 8 and ragged=False"):
        fit(CLOUD, Points(8, 2))


def test_of_more_points_evaluation_sees_evenly_spaced_ones() -> None:
    assert fit(CLOUD, Points(3, 2))[:, 0].tolist() == [0, 4, 10]
    assert fit(CLOUD, Points(6, 2)) is CLOUD
    assert fit(CLOUD.astype(np.float64), Points(6, 2)).dtype == np.float32


def test_of_more_points_training_draws_some_in_order() -> None:
    drawn = [fit(CLOUD, Points(4, 2), seed)[:, 0].tolist() for seed in range(30)]
    assert all(rows == sorted(set(rows)) for rows in drawn)
    assert {row for rows in drawn for row in rows} == set(CLOUD[:, 0].tolist())
    assert len({tuple(rows) for rows in drawn}) > 5


def test_clouds_are_scaled_axis_by_axis() -> None:
    cloud = np.array([[0, 5e6, 7], [1, 5e6 + 100, 7], [8, 5e6 + 200, 7]])
    scaled = scale_cloud(cloud)
    assert scaled == pytest.approx(np.array([[-0.6, -1, 0], [-0.4, 0, 0], [1, 1, 0]]))
    assert scaled.dtype == np.float32
    assert np.array_equal(scale_cloud(cloud[:1]), np.zeros((1, 3)))
    fitted = fit(cloud, Points(4, 3, ragged=True, scale="unit"))
    assert np.array_equal(fitted[:3], scaled)
    # All points count for the scale, also those that are left out.
    assert fit(cloud, Points(1, 3, scale="unit")).tolist() == [scaled[0].tolist()]


def test_heights_count_from_the_floor_and_keep_their_unit() -> None:
    rng = np.random.default_rng(0)
    cloud = np.column_stack([rng.uniform(500, 600, (1000, 2)), 40 + rng.uniform(0, 10, 1000)])
    cloud[0, 2] = -100.0  # a point that is wrong
    fitted = fit(cloud.astype(np.float32), Points(1000, 3, scale="floor"))
    assert fitted[:, :2].mean(0) == pytest.approx(0, abs=1e-3)
    assert np.diff(fitted[1:], axis=0) == pytest.approx(np.diff(cloud[1:], axis=0), abs=1e-3)
    assert np.quantile(fitted[:, 2], 0.02) == pytest.approx(0, abs=1e-3)
    centred = fit(cloud.astype(np.float32), Points(1000, 3, scale="centre"))
    assert centred.mean(0) == pytest.approx(0, abs=1e-3)
    with_gaps = np.concatenate([cloud, np.full((5, 3), np.nan)]).astype(np.float32)
    assert fit(with_gaps, Points(1005, 3, scale="floor"))[:1000] == pytest.approx(fitted, abs=1e-4)


def test_a_floor_needs_coordinates_only() -> None:
    with pytest.raises(ConfigError, match=r"'floor' and channels is 6; .* at most 3"):
        Points(4, 6, scale="floor")


def test_integer_points_are_scaled_as_models_would() -> None:
    cloud = np.array([[0, 255], [51, 0]], np.uint8)
    assert fit(cloud, Points(2, 2)).dtype == np.uint8
    fitted = fit(cloud, Points(3, 2, ragged=True))
    assert fitted[:2] == pytest.approx(np.array([[0, 1], [0.2, 0]]))


def test_ready_sound_is_cut_in_the_middle_or_anywhere_and_filled_with_silence() -> None:
    sound = np.arange(8, dtype=np.int16).reshape(1, 8)
    assert fit(sound, Audio(4)).tolist() == [[2, 3, 4, 5]]
    assert fit(sound, Audio(10)).tolist() == [[*range(8), 0, 0]]
    assert fit(sound, Audio(10)).dtype == np.int16
    assert {int(fit(sound, Audio(6), seed)[0, 0]) for seed in range(30)} == {0, 1, 2}


def test_other_arrays_are_not_resized() -> None:
    spec = Array((3, 2))
    ready = np.zeros(spec.raw_shape)
    assert fit(ready, spec) is ready
    with pytest.raises(DataError, match=r"x/0: array has shape \(1,\), but the spec expects"):
        fit(np.zeros(1), spec)


@pytest.mark.parametrize("shape", [(2, 1, 2, 3), (1, 2, 3)])
def test_frames_of_other_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"^x/0: video has shape .* but the spec has 1 channels"):
        fit(np.zeros(shape, np.uint8), Video(1, 2, 3, 1))


def test_images_without_augmentation_are_looked_at_in_the_middle() -> None:
    image = np.arange(4, dtype=np.uint8).reshape(1, 1, 4)
    seen = fit(image, Image(1, 2, 1), seed=0)
    assert seen.shape == (1, 1, 2)
    assert np.array_equal(seen, fit(image, Image(1, 2, 1)))
