"""Tables as they are written, whatever their columns hold."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.tables import Places, divide_table, read_table
from perceivers.errors import DataError


def test_rows_know_their_lines(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('text,n\n"two\nlines",1\n\nb,2\n')
    table = read_table(tmp_path / "x.csv")
    assert table.columns == {"text": ["two\nlines", "b"], "n": ["1", "2"]}
    assert list(table.places) == [f"{tmp_path}/x.csv: line 3", f"{tmp_path}/x.csv: line 5"]
    assert table.names == ["x.csv/0", "x.csv/1"]
    part = table.take(np.array([1]))
    assert (list(part.places), part.names) == ([f"{tmp_path}/x.csv: line 5"], ["x.csv/1"])
    (tmp_path / "x.JSONL").write_text('\n{"a": 1}\n\n{"b": [1, 2]}\n')
    table = read_table(tmp_path / "x.JSONL")
    assert table.columns == {"a": [1, None], "b": [None, [1, 2]]}
    assert list(table.places) == [f"{tmp_path}/x.JSONL: line 2", f"{tmp_path}/x.JSONL: line 4"]


def test_places_are_small() -> None:
    places = Places("a table far away: line", np.arange(10_000))
    assert (len(places), places[9_999]) == (10_000, "a table far away: line 9999")
    assert list(places[3:5]) == ["a table far away: line 3", "a table far away: line 4"]
    assert len(pickle.dumps(places)) < 90_000


def test_rows_are_divided_by_their_split(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,split\na,train\nb, Valid\nc,test\nd,train\n")
    divided = divide_table(read_table(path), strict=True)
    assert {split: table.names for split, table in divided.items()} == {
        "train": ["x.csv/0", "x.csv/3"],
        "val": ["x.csv/1"],
        "test": ["x.csv/2"],
    }
    assert "split" not in divided["val"].columns


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", r"x\.csv: line 3: split is ''; it must be train"),
        ("test", "contains only .'test'.; some rows"),
    ],
)
def test_a_split_that_is_none_is_refused_or_a_column(
    tmp_path: Path, value: str, message: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"text,split\na,test\nb,{value}\n")
    table = read_table(path)
    assert divide_table(table, strict=False) == {"train": table}
    with pytest.raises(DataError, match=message):
        divide_table(table, strict=True)


def test_labels_are_words_and_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1, "b": 0.5, "c": "x"}\n{"a": null, "b": 1.5, "c": ""}\n')
    table = read_table(path).label_table(["p", "q"], ["c"])
    assert dict(table.columns) == {"a": ["1", ""]}
    assert table.names == ["p", "q"]
