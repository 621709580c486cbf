"""Digits and .npz files as data addresses, and addresses that are understood by none."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.data import open_data
from perceivers.errors import ConfigError, DataError
from perceivers.types import Array, Audio, Image, Points, Video

# Imported here, so that no test pays for it.
pytest.importorskip("sklearn.datasets")


def save(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_the_digits_have_a_fixed_stratified_split() -> None:
    dataset = open_data("digits")
    counts = {name: len(split) for name, split in dataset.splits.items()}
    assert counts == {"train": 1259, "val": 179, "test": 359}
    assert dataset.notes == (
        "digits: fixed stratified split, train / val / test 1259 / 179 / 359 scans of 8x8 pixels",
    )
    names = [name for split in dataset.splits.values() for name in split.names]
    assert sorted(names) == sorted(f"digits/{i}" for i in range(1797))
    assert list(dataset.splits["test"].names[:3]) == ["digits/0", "digits/1", "digits/4"]
    for split in dataset.splits.values():
        assert split.labels is not None
        shares = np.bincount(split.labels) / len(split)
        assert np.abs(shares - 0.1).max() < 0.01


def test_digits_reach_from_black_to_white() -> None:
    source = open_data("digits").splits["train"]
    values = np.stack([np.asarray(source.read(i)["image"]) for i in range(200)])
    assert (values.shape, values.dtype) == ((200, 1, 8, 8), np.uint8)
    assert (values.min(), values.max()) == (0, 255)
    assert set(np.unique(values)) <= {round(v * 255 / 16) for v in range(17)}


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r'run pip install "perceivers\[demo\]"'):
        open_data("digits")


def test_every_modality_of_an_npz_gets_its_spec(
    tmp_path: Path, numpy_rng: np.random.Generator
) -> None:
    address = save(
        tmp_path / "x.npz",
        image=numpy_rng.integers(0, 256, (6, 5, 4, 3), np.uint8),
        video=numpy_rng.random((6, 3, 2, 4, 4), np.float32),
        audio=numpy_rng.integers(-100, 100, (6, 1, 50), np.int16),
        points=numpy_rng.random((6, 7, 3)),
        array=numpy_rng.random((6, 2, 2, 2, 9)),
        label=[0, 1, 0, 1, 0, 1],
        classes=["ant", "bee"],
    )
    dataset = open_data(address)
    specs = dataset.specs()
    assert {kind: (type(spec), spec.raw_shape) for kind, spec in specs.items()} == {
        "image": (Image, (5, 4, 3)),
        "video": (Video, (3, 2, 4, 4)),
        "audio": (Audio, (1, 50)),
        "points": (Points, (7, 3)),
        "array": (Array, (2, 2, 2, 9)),
    }
    assert dataset.classes == ("ant", "bee")
    sample = dataset.splits["train"].read(0)
    assert np.asarray(sample["points"]).dtype == np.float32
    assert np.asarray(sample["audio"]).dtype == np.int16
    assert dataset.splits["val"].names[0].startswith("x.npz/")


def test_an_npz_may_name_its_splits(tmp_path: Path) -> None:
    image = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    split = ["train", "test", "train", "val"]
    dataset = open_data(save(tmp_path / "x.npz", image=image, split=split))
    names = {name: list(source.names) for name, source in dataset.splits.items()}
    assert names == {"train": ["x.npz/0", "x.npz/2"], "val": ["x.npz/3"], "test": ["x.npz/1"]}
    assert int(np.asarray(dataset.splits["test"].read(0)["image"]).item()) == 1
    assert (dataset.notes, dataset.classes) == ((), ())


def test_keys_of_an_npz_are_chosen_as_label_columns(tmp_path: Path) -> None:
    address = save(
        tmp_path / "x.npz",
        image=np.zeros((6, 1, 2, 2), np.uint8),
        label=[0, 1, 0, 1, 0, 1],
        colour=["red", "blue", "", "red", "red", "blue"],
        weight=np.zeros((6, 2)),
        split=["train"] * 4 + ["val"] * 2,
    )
    both = open_data(address, labels=("colour", "label"))
    assert (both.classes, dict(both.columns)) == (
        (),
        {"colour": ("blue", "red"), "label": ("0", "1")},
    )
    assert both.splits["train"].labels is not None
    assert both.splits["train"].labels.tolist() == [[1, 0], [0, 1], [-1, 0], [1, 1]]
    one = open_data(address, labels=("label",))
    assert (one.classes, one.columns) == (("0", "1"), {})
    assert one.splits["val"].labels is not None
    assert one.splits["val"].labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"x\.npz/2: colour '' is not a class"):
        open_data(address, labels=("colour",))
    with pytest.raises(ConfigError, match=r"'weight' is asked for, .* columns are label, colour"):
        open_data(address, labels=("weight",))
    with pytest.raises(
        DataError, match=r"key 'colour' is unknown; .*; to read other keys, choose them as label"
    ):
        open_data(address)


def test_built_in_data_have_no_columns_to_choose() -> None:
    with pytest.raises(ConfigError, match="'label' is asked for, but digits has no such column"):
        open_data("digits", labels=("label",))


IMAGE = np.zeros((4, 1, 2, 2), np.uint8)
NAN = np.zeros((4, 3, 2), np.float32)
NAN[2, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGE}, r"key 'images' is unknown; keys are image, .*did you mean 'image'\?"),
        ({"label": [0, 1]}, r"no modality; give at least one of image, video"),
        ({"image": IMAGE[0]}, r"'image' has shape \(1, 2, 2\); its layout is \[n, C, H, W\]"),
        ({"image": IMAGE[:, :0]}, r"'image' has shape \(4, 0, 2, 2\); no axis may be empty"),
        ({"image": IMAGE[:0]}, r"rows are \{'image': 0\}; every key needs"),
        ({"image": IMAGE.astype(np.int64)}, r"'image' has dtype int64; use uint8 \(0\.\.255\) or"),
        ({"audio": np.zeros((4, 1, 2), bool)}, r"'audio' has dtype bool; use uint8 .*, int16 or"),
        ({"points": NAN}, r"'points' holds NaN or infinite values in 1 of 4 rows, first row 2"),
        ({"image": IMAGE, "label": [0]}, r"rows are \{'image': 4, 'label': 1\}"),
        ({"image": IMAGE, "label": [0.5] * 4}, r"'label' has shape \(4,\) and dtype float64"),
        ({"image": IMAGE, "label": [np.nan] * 4}, r"'label' has shape \(4,\) and dtype float64"),
        ({"image": IMAGE, "label": [[0]] * 4}, r"'label' has shape \(4, 1\) and dtype int64"),
        (
            {"image": IMAGE, "label": [0, 2, 0, 0], "classes": ["a", "b"]},
            r"x\.npz/1: label '2' is not a class; the 2 classes, numbered from 0, are a, b",
        ),
        ({"image": IMAGE, "split": ["val"] * 4}, r"'split' holds \['val'\]; .* some must be train"),
        ({"image": IMAGE, "split": ["train", "x"] * 2}, r"'split' holds \['train', 'x'\]"),
        ({"image": np.array([None] * 4)}, r"x\.npz: not an \.npz file of plain arrays"),
    ],
)
def test_an_npz_that_breaks_the_format_is_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    address = save(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_data(address)


def test_a_cut_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    address = save(path, image=np.zeros((40, 1, 8, 8), np.uint8))
    assert len(open_data(address).splits["train"]) == 36
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"x\.npz: not an \.npz file of plain arrays"):
        open_data(address)


def test_an_unknown_address_lists_what_is_understood(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_data("digit")
    message = str(caught.value)
    assert "'digit': no such file or folder; did you mean 'digits'?" in message
    assert all(word in message for word in ("class sub-folders", "x-{000..012}.tar", ".npz"))
    with pytest.raises(DataError, match="'elsewhere': no such file or folder\nAddresses: 'digits'"):
        open_data("elsewhere")
    (tmp_path / "x.doc").write_text("")
    with pytest.raises(DataError, match=r"files of type '\.doc' are not supported"):
        open_data(str(tmp_path / "x.doc"))
    with pytest.raises(ConfigError, match=r"val_share is 1\.5"):
        open_data("digits", val_share=1.5)


def test_an_npy_file_is_one_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(24, dtype=np.float64).reshape(4, 3, 2))
    train = open_data(str(path), val_share=0.25).splits["train"]
    assert len(train) == 3
    row = int(train.names[0].rpartition("/")[2])
    np.testing.assert_array_equal(
        train.read(0)["array"], np.arange(6).reshape(3, 2) + 6 * row, strict=False
    )
    np.save(path, np.zeros((4, 3), np.uint8))
    assert open_data(str(path)).specs()["array"].raw_shape == (3, 1)
    with pytest.raises(ConfigError, match="'label' is asked for"):
        open_data(str(path), labels=("label",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(4), r"x\.npy: has shape \(4,\); an \.npy file is a modality 'array'"),
        (np.array([[1.0, np.inf]] * 2), r"'array' holds NaN or infinite values in 2 of 2 rows"),
        (np.array([["a", "b"]] * 2), r"'array' has dtype <U1"),
        (np.array([{}, {}]), r"not an \.npy file of a plain array"),
    ],
)
def test_an_npy_file_of_anything_else_is_refused(
    tmp_path: Path, content: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        open_data(str(tmp_path / "x.npy"))
