"""Generated flow pairs: exact correspondence, occlusion, equal readings, settings out of range."""

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.samples import read_arrays

from perceivers.data.address import open_data
from perceivers.data.arrays import hold_arrays
from perceivers.data.flow_pairs import WarpCells, make_warps
from perceivers.data.folders import read_folder
from perceivers.data.row_source import RowSource
from perceivers.data.sources import Source
from perceivers.errors import ConfigError, DataError
from perceivers.nn.patches import pixel_places, sample_pixels

HEIGHT, WIDTH = 40, 56
WriteFolder = Callable[[Mapping[str, bytes]], Path]


def smooth_photograph(seed: int) -> bytes:
    """A colourful picture without sharp edges, so that filters hardly matter."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((120, 90), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photographs(write_folder: WriteFolder) -> Source:
    folder = write_folder({f"{n}.png": smooth_photograph(n) for n in range(3)})
    return read_folder(folder).sources["train"]


def cells(photographs: Source, **settings: Any) -> WarpCells:
    return WarpCells(photographs, HEIGHT, WIDTH, **{"max_flow": 5.0, "jitter": False, **settings})


def pairs(photographs: Source, **settings: Any) -> RowSource:
    return cells(photographs, **settings).as_source()


def looked_up(sample: Mapping[str, np.ndarray], sign: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Error of frame 1 against frame 2 where the flow points, and which places lie in frame 2."""
    frame1, frame2 = torch.from_numpy(sample["video"]).double().transpose(0, 1)
    flow = torch.from_numpy(sample["flow"]).double()
    places = pixel_places(HEIGHT, WIDTH).double() + sign * flow
    found = sample_pixels(frame2[None], places[None], "bicubic")[0].clamp(0, 255)
    x, y = places
    inside = (x >= 1) & (x < WIDTH - 2) & (y >= 1) & (y < HEIGHT - 2)
    return (found - frame1).abs().amax(0).numpy(), inside.numpy()


def test_a_sample_has_the_declared_layout(photographs: RowSource) -> None:
    source = pairs(photographs)
    sample = read_arrays(source, 0)
    assert isinstance(source, Source)
    assert {name: (a.dtype, a.shape) for name, a in sample.items()} == {
        "video": (np.uint8, (3, 2, HEIGHT, WIDTH)),
        "flow": (np.float32, (2, HEIGHT, WIDTH)),
    }
    assert source.labels is None


def test_frame_1_is_what_frame_2_shows_where_the_flow_points(photographs: RowSource) -> None:
    for index in range(12):
        sample = read_arrays(pairs(photographs, repeats=4, layered=0.0), index)
        error, inside = looked_up(sample)
        assert inside.mean() > 0.6
        assert error[inside].max() <= 0.51  # frame 1 is rounded to whole steps
        wrong, inside = looked_up(sample, sign=-1.0)
        if np.hypot(*sample["flow"]).max() > 1:
            assert wrong[inside].max() > 5


def test_the_piece_in_front_moves_exactly_and_hides_little(photographs: RowSource) -> None:
    jumps = 0
    for index in range(9):
        sample = read_arrays(pairs(photographs, repeats=3, layered=1.0), index)
        error, inside = looked_up(sample)
        assert np.median(error[inside]) <= 1.0
        # The rest is the rim, and background that the piece covers in frame 2.
        assert (error[inside] > 1.5).mean() < 0.2
        jumps += np.abs(np.diff(sample["flow"], axis=2)).max() > 1.0
    assert jumps >= 5  # motion is discontinuous where the piece ends
    smooth = read_arrays(pairs(photographs, layered=0.0), 0)["flow"]
    assert np.abs(np.diff(smooth, axis=2)).max() < 0.5


def test_nothing_moves_farther_than_asked(photographs: RowSource) -> None:
    for longest in (0.5, 5.0, 20.0):
        source = pairs(photographs, max_flow=longest, repeats=5)
        found = [float(np.hypot(*read_arrays(source, i)["flow"]).max()) for i in range(len(source))]
        assert max(found) <= longest + 1e-5
        assert max(found) > 0.5 * longest


def test_no_border_is_invented(write_folder: WriteFolder) -> None:
    """White photographs give white frames, to the last pixel."""
    file = io.BytesIO()
    Image.new("RGB", (50, 70), "white").save(file, "PNG")
    folder = write_folder({"a.png": file.getvalue(), "b.png": file.getvalue()})
    source = pairs(read_folder(folder).sources["train"], max_flow=15.0, repeats=5)
    assert all(read_arrays(source, index)["video"].min() == 255 for index in range(len(source)))


def test_readings_are_equal_and_every_repeat_is_new(photographs: RowSource) -> None:
    source = pairs(photographs, repeats=2, jitter=True)
    assert len(source) == 6
    assert source.names[:4] == ["0.png#warp0", "1.png#warp0", "2.png#warp0", "0.png#warp1"]
    again = pickle.loads(pickle.dumps(source))
    for index in range(6):
        for name, values in read_arrays(source, index).items():
            assert np.array_equal(values, read_arrays(again, index)[name])
    flows = [read_arrays(source, index)["flow"] for index in range(6)]
    assert all(np.abs(a - b).max() > 0.05 for i, a in enumerate(flows) for b in flows[:i])
    other = read_arrays(pairs(photographs, repeats=2, jitter=True, seed=1), 0)
    assert np.abs(other["flow"] - flows[0]).max() > 0.05


def test_jitter_changes_frames_a_little_and_flow_not_at_all(photographs: RowSource) -> None:
    plain, noisy = (read_arrays(pairs(photographs, jitter=jitter), 1) for jitter in (False, True))
    assert np.array_equal(plain["flow"], noisy["flow"])
    change = noisy["video"].astype(float) - plain["video"]
    assert 0.5 < np.abs(change).mean() < 20
    by_frame = change.mean(axis=(0, 2, 3))
    assert abs(by_frame[0] - by_frame[1]) > 0.1


def test_a_single_photograph_has_nothing_to_cut_from(photographs: RowSource) -> None:
    single = photographs.subset(np.array([1]))
    flow = read_arrays(pairs(single, layered=1.0), 0)["flow"]
    assert np.abs(np.diff(flow, axis=2)).max() < 0.5


def test_only_training_is_repeated(photographs: RowSource) -> None:
    splits = make_warps(
        {"train": photographs, "val": photographs},
        height=HEIGHT,
        width=WIDTH,
        max_flow=3.0,
        seed=7,
        repeats=4,
    )
    assert {split: len(source) for split, source in splits.items()} == {"train": 12, "val": 3}
    expected = WarpCells(photographs, HEIGHT, WIDTH, max_flow=3.0, seed=7, repeats=4).load(5)
    assert np.array_equal(read_arrays(splits["train"], 5)["video"], expected["video"])


def test_tars_work_like_folders(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    write_tar(tmp_path / "train.tar", {f"{n}.png": smooth_photograph(n) for n in range(4)})
    splits = make_warps(open_data(str(tmp_path)).splits, height=16, width=16)
    assert sorted(splits) == ["train", "val"]
    assert read_arrays(splits["train"], 0)["video"].shape == (3, 2, 16, 16)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 15}, "frames of 15 x 56 .* at least 16"),
        ({"max_flow": 0.0}, r"max_flow is 0\.0; .* above 0 and at most 20"),
        ({"max_flow": 20.5}, r"max_flow is 20\.5"),
        ({"max_flow": float("nan")}, "max_flow is nan"),
        ({"repeats": 0}, "repeats is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"layered": 1.5}, r"layered is 1\.5"),
    ],
)
def test_settings_out_of_range_are_refused(
    photographs: RowSource, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(cells(photographs), **settings)


def test_only_picture_files_can_be_warped(photographs: RowSource) -> None:
    arrays = hold_arrays({"image": np.zeros((2, 3, 8, 8), np.uint8)}, ["a", "b"], None)
    with pytest.raises(DataError, match="made from image files, not from arrays of images"):
        pairs(arrays)
    with pytest.raises(DataError, match="at least 1 image"):
        pairs(photographs.subset(np.array([], np.int64)))


def test_damage_is_reported_by_path_and_missing_pairs_are_refused(
    write_folder: WriteFolder,
) -> None:
    folder = write_folder({"bad.png": smooth_photograph(0)[:200]})
    source = pairs(read_folder(folder).sources["train"])
    with pytest.raises(DataError, match=r"bad\.png: cannot be decoded"):
        read_arrays(source, 0)
    with pytest.raises(IndexError):
        read_arrays(source, 1)
