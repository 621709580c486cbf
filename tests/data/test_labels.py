"""Label columns: integers, names, files of names, unknown values."""

from pathlib import Path

import numpy as np
import pytest

from perceivers.data.labels import (
    IntegerLabels,
    Labelling,
    LabelTable,
    index_labels,
    name_file,
    read_names,
)
from perceivers.errors import ConfigError, DataError


def index(
    tmp_path: Path,
    *chosen: str,
    integers: IntegerLabels = "values",
    **splits: dict[str, list[str]],
) -> Labelling:
    tables = {
        split: LabelTable(
            [f"{split}/{i}" for i in range(len(next(iter(columns.values()))))], columns
        )
        for split, columns in splits.items()
    }
    return index_labels(tables, chosen, tmp_path, "here", integers=integers)


def test_integers_are_indices_named_by_themselves(tmp_path: Path) -> None:
    found = index(tmp_path, train={"label": ["2", "0"]}, val={"label": ["1", "3"]})
    assert found.classes == ("0", "1", "2", "3")
    assert {s: None if v is None else v.tolist() for s, v in found.labels.items()} == {
        "train": [2, 0],
        "val": [1, 3],
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
        DataError, match=r"val/0: kind 'cow' is not a class; the 1 classes, .* are ant"
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
    with pytest.raises(DataError, match="train/1: size '2' is not a class; the 2 classes"):
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


IDS = {
    "ids": (["2007", "1007", "3007"], ("1007", "2007", "3007"), [1, 0, 2]),
    "signs": (["1", "-1"], ("-1", "1"), [1, 0]),
    "three signs": (["0", "-1", "1"], ("-1", "0", "1"), [1, 0, 2]),
    "from one": (["3", "1", "2"], ("1", "2", "3"), [2, 0, 1]),
    "one missing": (["0", "3", "1"], ("0", "1", "3"), [0, 2, 1]),
    "by size": (["10", "9", "100"], ("9", "10", "100"), [1, 0, 2]),
    "whole floats": (["2.0", "1.0"], ("1", "2"), [1, 0]),
    "whole floats from 0": (["1.0", "0.0"], ("0", "1"), [1, 0]),
    "huge": (["123456789012345678901234", "5"], ("123456789012345678901234", "5"), [0, 1]),
    "endless": (["7" * 5000, "5"], ("5", "7" * 5000), [1, 0]),
    "words too": (["10", "9", "cow"], ("10", "9", "cow"), [0, 1, 2]),
    "truth": (["True", "False"], ("False", "True"), [1, 0]),
}


@pytest.mark.parametrize("kind", IDS)
def test_integers_that_do_not_count_are_classes_by_their_values(tmp_path: Path, kind: str) -> None:
    written, names, labels = IDS[kind]
    found = index(tmp_path, train={"label": written}, val={"label": written[:1]})
    assert found.classes == names
    assert {s: v.tolist() for s, v in found.labels.items() if v is not None} == {
        "train": labels,
        "val": labels[:1],
    }
    said = any("each distinct value is a class" in note for note in found.notes)
    assert said == (kind not in {"whole floats from 0", "huge", "endless", "words too", "truth"})


def test_an_id_that_training_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"val/0: label '4007' is not a class; the 2 .* are 1007, 2007"
    ):
        index(tmp_path, train={"label": ["2007", "1007"]}, val={"label": ["4007"]})


def test_names_that_are_ids_name_themselves(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("2007\n1007\n3007\n")
    found = index(tmp_path, train={"label": ["1007", "2007"]})
    labels = found.labels["train"]
    assert found.classes == ("2007", "1007", "3007")
    assert labels is not None
    assert labels.tolist() == [1, 0]
    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    counted = index(tmp_path, train={"label": ["1", "2", "0"]}).labels["train"]
    assert counted is not None
    assert counted.tolist() == [1, 2, 0]  # indices, as they all may be


def test_integers_can_be_kept_as_indices(tmp_path: Path) -> None:
    found = index(tmp_path, train={"label": ["3", "0"]}, integers="indices")
    assert found.classes == ("0", "1", "2", "3")
    with pytest.raises(DataError, match=r"train/1: label '-1' is not a class; the 1 classes"):
        index(tmp_path, train={"label": ["0", "-1"]}, integers="indices")
    with pytest.raises(DataError, match=r"the highest label is 99999999, which would make"):
        index(tmp_path, train={"label": ["0", "99999999"]}, integers="indices")


def test_of_several_columns_minus_one_is_unknown_where_the_rest_counts(tmp_path: Path) -> None:
    columns = {"counted": ["1", "-1", "0"], "signs": ["1", "-1", "1"]}
    found = index(tmp_path, "counted", "signs", train=columns)
    assert found.columns == {"counted": ("0", "1"), "signs": ("-1", "1")}
    labels = found.labels["train"]
    assert labels is not None
    assert labels.tolist() == [[1, 1], [-1, 0], [0, 1]]


def test_the_only_column_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train/1: label '' is not a class"):
        index(tmp_path, train={"label": ["0", ""]})


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
    with pytest.raises(DataError, match=r"classes\.txt: line 1 is not UTF-8 \(byte 0xff"):
        read_names(path)
