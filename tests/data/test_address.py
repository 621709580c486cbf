"""Which reader an address is given to, where names alone would mislead."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import open_data
from perceivers.errors import DataError

WriteFolder = Callable[[Mapping[str, bytes]], Path]


@pytest.mark.parametrize("name", ["train.csv", "train.txt", "train.jsonl", "train.npz"])
def test_lists_beside_pictures_are_no_data(
    write_folder: WriteFolder, encode: Callable[..., bytes], name: str
) -> None:
    files = {f"{kind}/{i}.png": encode(i) for kind in ("ant", "bee") for i in range(2)}
    dataset = open_data(str(write_folder(files | {name: b"file,label\nant/0.png,ant\n"})))
    assert dataset.classes == ("ant", "bee")
    assert set(dataset.splits["train"].read(0)) == {"image"}


def test_a_path_that_holds_the_separator_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a + b").mkdir()
    for name in ("a + b", "."):
        (tmp_path / name / "x.csv").write_text("label,text\n0,p\n0,q\n1,r\n1,s\n")
    assert open_data(str(tmp_path / "a + b" / "x.csv")).columns == {}
    assert set(open_data(f"{tmp_path}/x.csv + {tmp_path}/x.csv").columns) == {"x", "x_2"}


@pytest.mark.parametrize("ending", ["CSV", "Txt"])
def test_endings_may_be_in_capitals(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_text("text\nabc\ndef\n")
    dataset = open_data(str(path), val_share=0.5)
    assert set(dataset.splits["val"].read(0)) == {"bytes"}
    assert dataset.splits["val"].labels is None


def test_plain_arrays_are_not_taken_for_clouds(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", points=np.zeros((4, 3, 2), np.float32))
    assert set(open_data(str(tmp_path / "train.npz")).splits["train"].read(0)) == {"points"}
    with pytest.raises(DataError, match=r"keys are \['points'\]; ragged point sets need 'offsets'"):
        open_data(str(tmp_path))


def test_an_unknown_address_is_told_every_kind_of_data() -> None:
    with pytest.raises(DataError, match="'nowhere': no such file or folder") as caught:
        open_data("nowhere")
    message = str(caught.value)
    for kind in (
        "folder of images, audio, videos, point clouds or .txt texts",
        "images/ and masks/",
        "manifest with columns of files",
        "'x.tar'",
        "'.npz'",
        "'hf:NAME'",
    ):
        assert kind in message
