"""Folders of real frame pairs: what is found, in which order, and what is refused."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.data.samples import read_arrays

from perceivers.data.flow_pairs import open_flow_pairs, write_flow
from perceivers.data.sources import Source
from perceivers.errors import DataError

Encode = Callable[..., bytes]
WriteFolder = Callable[[Mapping[str, bytes]], Path]


def add_flow(path: Path, height: int = 10, width: int = 12) -> np.ndarray:
    flow = np.random.default_rng(0).uniform(-4, 4, (2, height, width)).astype(np.float32)
    flow[:, 1, 2] = np.nan
    write_flow(path, flow)
    return flow


def test_pairs_of_several_folders_are_read(encode: Encode, write_folder: WriteFolder) -> None:
    root = write_folder(
        {
            "b/frame1.png": encode(1),
            "b/frame2.png": encode(2),
            "a/frame10.png": encode(3),
            "a/frame11.png": encode(4, mode="L"),
            "c/without.png": encode(5),
        }
    )
    flows = [add_flow(root / "a" / "flow10.flo"), add_flow(root / "b" / "flow.flo")]
    source = open_flow_pairs(root)
    assert isinstance(source, Source)
    assert list(source.names) == ["a", "b"]
    assert len(source) == 2
    assert source.labels is None
    samples = [read_arrays(source, index) for index in range(2)]
    for sample, flow in zip(samples, flows, strict=True):
        assert sample["video"].dtype == np.uint8
        assert sample["video"].shape == (3, 2, 10, 12)
        np.testing.assert_array_equal(sample["flow"], flow)
    gray = samples[0]["video"][:, 1]
    assert np.array_equal(gray[0], gray[2])
    assert not np.array_equal(samples[1]["video"][0], samples[1]["video"][2])


def test_frame_1_is_the_first_by_name(encode: Encode, write_folder: WriteFolder) -> None:
    root = write_folder({"frame2.png": encode(2), "frame1.png": encode(1)})
    add_flow(root / "flow.flo")
    swapped = write_folder({"s/frame1.png": encode(2), "s/frame2.png": encode(1)}) / "s"
    add_flow(swapped / "flow.flo")
    here, there = read_arrays(open_flow_pairs(root), 0), read_arrays(open_flow_pairs(swapped), 0)
    assert list(open_flow_pairs(swapped).names) == ["."]
    assert np.array_equal(here["video"], there["video"][:, ::-1])
    assert not np.array_equal(here["video"], there["video"])


def test_a_kitti_picture_is_the_flow_and_no_frame(
    encode: Encode, write_folder: WriteFolder
) -> None:
    pytest.importorskip("av")
    root = write_folder({"000_10.png": encode(1), "000_11.png": encode(2)})
    flow = add_flow(root / "flow_000_10.png")
    sample = read_arrays(open_flow_pairs(root), 0)
    np.testing.assert_allclose(sample["flow"], flow, atol=1 / 128)


def test_frames_of_another_size_are_refused(encode: Encode, write_folder: WriteFolder) -> None:
    root = write_folder({"1.png": encode(1), "2.png": encode(2)})
    add_flow(root / "flow.flo", 10, 11)
    with pytest.raises(DataError, match=r"flow of \(10, 11\) pixels for frames of \(10, 12\)"):
        read_arrays(open_flow_pairs(root), 0)


def test_folders_that_hold_no_pair_are_refused(encode: Encode, write_folder: WriteFolder) -> None:
    root = write_folder({"1.png": encode(1), "2.png": encode(2), "3.png": encode(3)})
    with pytest.raises(DataError, match=r"no flow file .* in 0 folders"):
        open_flow_pairs(root)
    add_flow(root / "flow.flo")
    with pytest.raises(DataError, match="1 flow files and 3 images"):
        open_flow_pairs(root)
    with pytest.raises(DataError, match="nowhere: cannot be listed"):
        open_flow_pairs(root / "nowhere")
