"""Label columns from the JSON files of tars."""

import numpy as np
import pytest

from perceivers.data.labels import index_entries, parse_entries
from perceivers.errors import ConfigError, DataError

NAMES = ["t/0.json", "t/1.json", "t/2.json", "t/3.json"]
ENTRIES = [
    {"digit": 10, "colour": "red"},
    {"digit": 9, "colour": "blue", "text": "x"},
    {"digit": 10},
    {"digit": 2, "colour": None},
]


def test_one_column_gives_plain_labels_numbers_by_size() -> None:
    labels, columns, notes = index_entries(ENTRIES, NAMES, ["digit"], {}, "t")
    assert columns == {"digit": ("2", "9", "10")}
    assert labels.dtype == np.int64
    assert labels.tolist() == [2, 1, 2, 0]
    assert notes == []


def test_several_columns_stand_in_the_order_asked_for_with_unknown_values() -> None:
    labels, columns, notes = index_entries(ENTRIES, NAMES, ["colour", "digit"], {}, "t")
    assert list(columns.items()) == [("colour", ("blue", "red")), ("digit", ("2", "9", "10"))]
    assert labels.tolist() == [[1, 2], [0, 1], [-1, 2], [-1, 0]]
    assert notes == [
        "t: colour is unknown (-1) in 2 of 4 samples: missing, or not a training class"
    ]


def test_names_that_are_settled_are_kept() -> None:
    known = {"digit": ("9", "10", "11")}
    labels, columns, notes = index_entries(ENTRIES, NAMES, ["digit"], known, "t")
    assert columns == known
    assert labels.tolist() == [1, 0, 1, -1]
    assert "digit is unknown (-1) in 1 of 4" in notes[0]


def test_numbers_and_words_of_the_same_spelling_are_one_class() -> None:
    entries = [{"a": 1}, {"a": "1"}, {"a": "x"}, {"a": 0}]
    labels, columns, _ = index_entries(entries, NAMES, ["a"], {}, "t")
    assert (labels.tolist(), columns) == ([1, 1, 2, 0], {"a": ("0", "1", "x")})


@pytest.mark.parametrize("value", [1.5, float("nan"), ["red"], {"a": 1}])
def test_a_value_that_is_no_class_is_refused(value: object) -> None:
    entries = [*ENTRIES[:3], {"digit": value}]
    with pytest.raises(DataError, match=r"t/3\.json: 'digit' is .*; a label is a string or an int"):
        index_entries(entries, NAMES, ["digit"], {}, "t")


def test_whole_floats_and_truth_values_name_classes() -> None:
    entries = [{"a": 1.0}, {"a": 0}, {"a": True}, {}]
    labels, columns, _ = index_entries(entries, NAMES, ["a"], {}, "t")
    assert (labels.tolist(), columns) == ([1, 0, 2, -1], {"a": ("0", "1", "True")})


def test_values_that_training_lacks_are_named() -> None:
    known = {"a": ("1007",)}
    entries = [{"a": 1007}, {"a": 4007}, {"a": 1007}, {}]
    _, _, notes = index_entries(entries, NAMES, ["a"], known, "t")
    assert notes == [
        "t: a is unknown (-1) in 2 of 4 samples: missing, or not a training class (4007)"
    ]


def test_a_column_that_no_sample_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"label column 'digits' .*; did you mean 'digit'\?"):
        index_entries(ENTRIES, NAMES, ["digits"], {}, "t")


def test_entries_are_read_from_objects_alone() -> None:
    assert parse_entries(b'{"a": 1}', "x") == {"a": 1}
    assert parse_entries(b"7", "x") == {}
    with pytest.raises(DataError, match=r"^x is not JSON"):
        parse_entries(b"{", "x")
