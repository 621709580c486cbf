"""Numbers to be predicted, from every kind of data that has columns."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.data import make_eval_loader, open_data
from perceivers.data.labels import Chosen, check_known, read_targets
from perceivers.errors import ConfigError, DataError

PLACES = ["x: line 2", "x: line 3", "x: line 4"]


def test_numbers_are_read_as_they_are_written() -> None:
    columns = {"a": ["1.5", "", " -2e3 "], "b": [1, None, np.float64(3)], "c": ["x", "y", "z"]}
    read = read_targets(columns, ("b", "a"), PLACES, "x")
    assert read is not None
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, [[1, 1.5], [np.nan, np.nan], [3, -2000]])
    assert read_targets(columns, (), PLACES, "x") is None
    check_known(read, ("b", "a"), "x")


@pytest.mark.parametrize("value", ["old", "inf", float("-inf"), "1e39", True, [1], "1,5", 10**400])
def test_what_is_no_number_is_refused_with_its_row(value: Any) -> None:
    with pytest.raises(DataError, match=r"x: line 3: age is .*; a target must be a finite number"):
        read_targets({"age": [1, value, 2]}, ("age",), PLACES, "x")


def test_columns_that_there_are_not_and_that_are_empty() -> None:
    with pytest.raises(
        ConfigError, match=r"target 'aeg' .* has no such column; its columns are age"
    ):
        read_targets({"age": [1, 2, 3]}, ("aeg",), PLACES, "x")
    with pytest.raises(DataError, match="x: target 'age' is empty in all 3 training samples"):
        check_known(read_targets({"age": ["", None, ""]}, ("age",), PLACES, "x"), ("age",), "x")


def test_a_column_is_a_label_or_a_target() -> None:
    with pytest.raises(ConfigError, match="'a' is asked for as a label and as a target"):
        Chosen(("a", "b"), ("a",)).check()
    with pytest.raises(ConfigError, match=r"targets are \['a', 'a'\]; name each column once"):
        Chosen((), ("a", "a")).check()
    with pytest.raises(ConfigError, match="target 'a' is asked for, but x has no such column; it"):
        Chosen((), ("a",)).refuse("x")
    with pytest.raises(ConfigError, match="label column 'b' is asked for, but x has no such"):
        Chosen(("b",)).refuse("x")


def targets_by_name(address: str, names: tuple[str, ...], **options: Any) -> dict[str, list[float]]:
    """Return the targets of every sample, as batches hold them."""
    dataset = open_data(address, targets=names, **options)
    assert dataset.targets == names
    found = {}
    specs = dataset.specs()
    for source in dataset.splits.values():
        assert source.targets is not None
        (batch,) = make_eval_loader(source, specs, batch_size=99)
        assert batch.targets is not None
        found |= {
            source.names[i].rpartition("/")[2]: row for i, row in enumerate(batch.targets.tolist())
        }
    return found


def test_targets_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,age,height,label\na,1,0.5,no\nb,2,1.5,yes\nc,3,2.5,no\n")
    found = targets_by_name(str(path), ("height", "age"), val_share=0.4)
    assert found == {"0": [0.5, 1.0], "1": [1.5, 2.0], "2": [2.5, 3.0]}
    # The column of labels may be numbers, too.
    path.write_text("text,label\na,0.25\nb,0.5\n")
    dataset = open_data(str(path), targets=("label",))
    assert dataset.classes == ()
    assert dataset.splits["train"].labels is None
    with pytest.raises(ConfigError, match=r"'text' is asked for, .* its columns are label"):
        open_data(str(path), targets=("text",))


def test_a_target_that_no_training_row_has_is_refused(tmp_path: Path) -> None:
    for split, value in (("train", ""), ("val", "1")):
        (tmp_path / f"{split}.csv").write_text(f"text,age\na,{value}\n")
    with pytest.raises(DataError, match="target 'age' is empty in all 1 training samples"):
        open_data(str(tmp_path), targets=("age",))


def test_targets_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    content: Mapping[str, Any] = {
        "array": np.zeros((4, 2, 1), np.float32),
        "age": np.array([1, 2, 3, 4]),
        "share": np.array([0.5, np.nan, 0.25, 1.0]),
        "label": np.array([0, 1, 0, 1]),
        "split": np.array(["train", "train", "val", "test"]),
    }
    np.savez(path, **content)
    found = targets_by_name(str(path), ("share", "age"))
    assert found["0"] == [0.5, 1.0]
    assert np.isnan(found["1"][0])
    assert found["3"] == [1.0, 4.0]
    assert open_data(str(path), targets=("share", "age")).classes == ("0", "1")
    np.savez(path, **{**content, "age": np.array(["1", "2", "x", "4"])})
    with pytest.raises(DataError, match=r"x\.npz/2: age is .*'x'.*; a target must be"):
        open_data(str(path), targets=("share", "age"))
    with pytest.raises(DataError, match=r"key 'age' is unknown; .* or as targets"):
        open_data(str(path))


def test_targets_of_ragged_points(tmp_path: Path) -> None:
    content = {"xyz": np.random.default_rng(0).random((8, 3)), "offsets": [0, 2, 4, 6, 8]}
    np.savez(tmp_path / "x.npz", **content, volume=[1.0, 2.0, 3.0, 4.0], label=[0, 1, 0, 1])
    found = targets_by_name(str(tmp_path / "x.npz"), ("volume",), val_share=0.5)
    assert found == {"0": [1.0], "1": [2.0], "2": [3.0], "3": [4.0]}


def test_targets_of_shards(
    tmp_path: Path,
    encode: Callable[..., bytes],
    write_tar: Callable[[Path, Mapping[str, bytes]], Path],
) -> None:
    members = {f"{i}.png": encode(i, (8, 8)) for i in range(4)}
    values = [{"age": 1, "who": "a"}, {"age": 2.5, "who": "b"}, {"age": None, "who": "a"}, {}]
    members |= {f"{i}.json": json.dumps(value).encode() for i, value in enumerate(values)}
    path = str(write_tar(tmp_path / "x.tar", members))
    found = targets_by_name(path, ("age",), val_share=0.5)
    assert [found[name] for name in "01"] == [[1.0], [2.5]]
    assert np.isnan([found["2"][0], found["3"][0]]).all()
    with pytest.raises(DataError, match=r"x\.tar/0\.json: who is 'a'; a target must be"):
        open_data(path, targets=("who",))
    with pytest.raises(ConfigError, match="target 'size' is asked for"):
        open_data(path, targets=("size",))


@pytest.mark.parametrize("address", ["digits", "digits + digits"])
def test_data_without_columns_have_no_targets(address: str) -> None:
    with pytest.raises(ConfigError, match="target 'age' is asked for"):
        open_data(address, targets=("age",))
