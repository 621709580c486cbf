"""The preview of data: a sheet per split of what a model would be given, for every modality."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.workflows import making

import perceivers as pv
from perceivers.errors import ConfigError
from perceivers.report.figures.samples import SampleBox, draw_parts
from perceivers.workflows.checking import check_data, describe_labels


def write_masked(root: Path) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        ids = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
        Image.fromarray(np.stack([ids * 80] * 3, -1)).save(root / "images" / f"{number}.png")
        Image.fromarray(ids).save(root / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("preview")
    making.write_photographs(root / "photographs", 6)
    making.write_clips(root / "clips", 3)
    making.write_sounds(root / "sounds", 3)
    making.write_clouds(root / "clouds.npz")
    making.write_one_label(root / "texts.csv", ("sky", "wood"))
    write_masked(root / "masked")
    return root


@pytest.mark.parametrize(
    "address", ["photographs", "clips", "sounds", "clouds.npz", "texts.csv", "masked", "warps"]
)
def test_every_kind_of_data_has_sheets(data: Path, address: str, tmp_path: Path) -> None:
    place = f"warps:{data / 'photographs'}" if address == "warps" else str(data / address)
    report = check_data(place, preview=tmp_path / "out")
    names = [Path(sheet).name for sheet in report.sheets]
    assert (names[0], names[-1]) == ("train.png", "index.html")
    for sheet in report.sheets[:-1]:
        values = np.asarray(Image.open(sheet).convert("L"))
        assert values.std() > 1
    assert "data:image/png" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(ConfigError, match=r"index\.html exists; pass --overwrite"):
        check_data(place, preview=tmp_path / "out")


def test_nothing_is_written_without_being_asked(data: Path, tmp_path: Path) -> None:
    assert check_data(str(data / "photographs")).sheets == ()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; give a folder for the sheets"):
        check_data(str(data / "photographs"), preview=tmp_path / "file")


def test_labels_are_captions(data: Path) -> None:
    opened = pv.open_data(str(data / "texts.csv"))
    source = opened.splits["train"]
    assert source.labels is not None
    captions = [describe_labels(opened, source, index) for index in range(4)]
    assert captions == [opened.classes[label] for label in source.labels[:4]]
    assert set(captions) == {"sky", "wood"}
    assert describe_labels(pv.open_data(str(data / "photographs")), source, 0) == ""


def test_masks_lie_over_their_images_and_points() -> None:
    mask = np.array([[0, 255], [1, 1]], np.uint8)
    image = np.full((3, 2, 2), 100, np.uint8)
    box = SampleBox({"image": image, "mask": mask}, {"image": "image", "mask": "mask"}, "", "")
    plain, over = draw_parts(box, 2)
    assert not isinstance(plain, str)
    assert not isinstance(over, str)
    np.testing.assert_array_equal(plain, np.full((2, 2, 3), 100))
    np.testing.assert_array_equal(over[0, 1], plain[0, 1])
    assert (over[0, 0] != plain[0, 0]).any()
    cloud = np.array([[0.0, 0, 0], [1, 1, 1]], np.float32)
    arrays = {"points": cloud, "mask": np.array([0, 1], np.uint8)}
    (view,) = draw_parts(SampleBox(arrays, {"points": "points", "mask": "point_mask"}, "", ""), 2)
    assert not isinstance(view, str)
    assert len(np.unique(view.reshape(-1, 3), axis=0)) == 3  # two classes, and nothing


def test_flow_is_proposed_for_frame_pairs(data: Path) -> None:
    report = check_data(f"warps:{data / 'photographs'}")
    assert report.proposal is not None
    assert report.proposal.task == "flow"
    assert report.proposal.commands[0].startswith("perceivers train --config optical_flow --data ")
