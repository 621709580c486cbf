"""Names from the data stay text wherever another program interprets the file."""

import csv
import io
from pathlib import Path

import pytest

from perceivers.text_names import csv_cell, markdown_text, write_csv

SOURCE = Path(__file__).parents[1] / "src" / "perceivers"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd", "@SUM(A1)", "\t=1", "\r=1", "-", "-2+3"])
def test_a_text_that_looks_like_a_formula_gets_an_apostrophe(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "value", ["cat", "a=b", "", "-1", "+2.5", "-1e-3", "-inf", "-0.5; -0.25", -3, 0.5, "nan"]
)
def test_numbers_and_plain_texts_stay(value: object) -> None:
    assert csv_cell(value) == str(value)


def test_rows_are_read_back_cell_by_cell() -> None:
    file = io.StringIO()
    write_csv(file, [["name", "=x"], ['a,"b"', -1.5]])
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [["name", "'=x"], ['a,"b"', "-1.5"]]


def test_markdown_has_no_markup_left() -> None:
    assert markdown_text("<img src=x>") == r"\<img src=x\>"
    assert markdown_text("[a](http://b) | `c` **d**") == r"\[a\](http://b) \| \`c\` \*\*d\*\*"
    assert markdown_text("_a_ b\n# c &lt;") == r"\_a\_ b # c \&lt;"
    assert markdown_text("hip_nano, runs/a-b.npz") == "hip_nano, runs/a-b.npz"


def test_nobody_else_writes_csv() -> None:
    users = [path.name for path in SOURCE.rglob("*.py") if "csv.writer" in path.read_text()]
    assert users == ["text_names.py"]
