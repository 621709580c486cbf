"""Label columns: integers, names, files of names, unknown values."""

from pathlib import Path

import numpy as np
import pytest

from perceivers.data.labels import Labelling, LabelTable, index_labels, name_file, read_names
from perceivers.errors import ConfigError, DataError


def index(tmp_path: Path, *chosen: str, **splits: dict[str, list[str]]) -> Labelling:
    tables = {
        split: LabelTable(
            [f"{split}/{i}" for i in range(len(next(iter(columns.values()))))], columns
        )
        for split, columns in splits.items()
    }
    return index_labels(tables, chosen, tmp_path, "here")


def test_integers_are_indices_named_by_themselves(tmp_path: Path) -> None:
    found = index(tmp_path, train={"label": ["2", "0"]}, val={"label": ["3"]})
    assert found.classes == ("0", "1", "2", "3")
    assert {s: None if v is None else v.tolist() for s, v in found.labels.items()} == {
        "train": [2, 0],
        "val": [3],
    }
    assert found.notes == ("no classes.txt: 4 classes, named by their numbers",)
    assert found.columns == {}


def test_words_are_sorted_and_those_of_training_count(tmp_path: Path) -> None:
    found = index(tmp_path, "kind", train={"kind": ["bee", "ant", "bee"]}, val={"kind": ["ant"]})
    labels = found.labels["train"]
    assert labels is not None
    assert found.classes == ("ant", "bee")
    assert labels.tolist() == [1, 0, 1]
    with pytest.raises(
        DataError, match=r"val/0: kind 'cow' is no class; the 1 classes, .* are ant"
    ):
        index(tmp_path, "kind", train={"kind": ["ant"]}, val={"kind": ["cow"]})


def test_a_file_beside_the_data_names_the_classes(tmp_path: Path) -> None:
    (tmp_path / "kinds.txt").write_text("cow\nant\nbee\n")
    numbers = index(tmp_path, "kind", train={"kind": ["2", "0"]})
    words = index(tmp_path, "kind", train={"kind": ["bee", "cow"]})
    for found in (numbers, words):
        assert found.classes == ("cow", "ant", "bee")
        labels = found.labels["train"]
        assert labels is not None
        assert labels.tolist() == [2, 0]
    (tmp_path / "classes.txt").write_text("x\ny\n")
    assert index(tmp_path, "size", train={"size": ["1"]}).classes == ("x", "y")
    with pytest.raises(DataError, match="train/1: size '2' is no class; the 2 classes"):
        index(tmp_path, "size", train={"size": ["1", "2"]})


def test_several_columns_may_be_unknown_in_places(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("x\n")
    columns = {"kind": ["ant", "", "bee"], "size": ["1", "0", "-1"]}
    found = index(tmp_path, "size", "kind", train=columns, val={"kind": [""], "size": ["0"]})
    assert found.classes == ()
    # classes.txt names the only column, never one of several.
    assert found.columns == {"size": ("0", "1"), "kind": ("ant", "bee")}
    train, val = found.labels["train"], found.labels["val"]
    assert train is not None
    assert val is not None
    assert (train.dtype, train.tolist()) == (np.int64, [[1, 0], [0, -1], [-1, 1]])
    assert val.tolist() == [[0, -1]]


@pytest.mark.parametrize("value", ["", "-1"])
def test_the_only_column_must_be_known(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=f"train/1: label '{value}' is no class"):
        index(tmp_path, train={"label": ["0", value]})


def test_without_a_column_the_data_are_unlabelled(tmp_path: Path) -> None:
    found = index(tmp_path, train={"kind": ["a"]})
    assert (found.labels, found.classes) == ({"train": None}, ())
    assert found.notes == ("unlabelled; label columns to choose from: kind",)


def test_splits_must_agree_on_their_columns(tmp_path: Path) -> None:
    message = r"'test' does not agree with 'train' on the label column 'label' .*'test': 'unlabelle"
    with pytest.raises(DataError, match=message):
        index(tmp_path, train={"label": ["0"], "kind": ["a"]}, test={"kind": ["0"]})
    with pytest.raises(DataError, match="'val' does not agree"):
        index(tmp_path, train={"kind": ["0"]}, val={"label": ["0"]})


def test_columns_that_cannot_be_chosen_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'kinds' is asked for, .* are kind; did you mean 'kind'"
    ):
        index(tmp_path, "kinds", train={"kind": ["0"]})
    with pytest.raises(ConfigError, match="name each column once"):
        index(tmp_path, "kind", "kind", train={"kind": ["0"]})


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("label", "classes.txt"),
        ("class", "classes.txt"),
        ("character", "characters.txt"),
        ("category", "categories.txt"),
        ("day", "days.txt"),
        ("genus", "genuses.txt"),
        ("box", "boxes.txt"),
    ],
)
def test_files_of_names_are_plurals(column: str, name: str) -> None:
    assert name_file(column) == name


def test_a_file_of_names_must_name_each_class_once(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    assert read_names(path) == ()
    path.write_text("a\n\n b \n")
    assert read_names(path) == ("a", "b")
    path.write_text("a\na\n")
    with pytest.raises(DataError, match=r"2 class names, repeated: \['a'\]"):
        read_names(path)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"classes\.txt: line 1 is no UTF-8 \(byte 0xff"):
        read_names(path)
