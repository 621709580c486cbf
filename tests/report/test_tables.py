"""Numbers by class, worked out by hand."""

import numpy as np
import pytest

from perceivers.errors import InputError
from perceivers.report.html import per_class_table


def test_numbers_by_class_are_those_worked_out_by_hand() -> None:
    matrix = np.array([[8, 2, 0], [1, 3, 4], [0, 0, 2]])
    table = per_class_table(matrix, ["ant", "bee", "cow"])
    assert list(table.header)[:4] == ["class", "support", "recall", "precision"]
    assert table.rows == [
        ("ant", "10", "80.0 %", "88.9 %", "bee (2)"),
        ("bee", "8", "37.5 %", "60.0 %", "cow (4)"),
        ("cow", "2", "100 %", "33.3 %", "-"),
    ]
    assert table.note == "13 of 20 samples are correct: accuracy 65.0 %."


def test_ratios_without_a_denominator_are_dashes() -> None:
    table = per_class_table(np.array([[0, 0], [1500, 0]]), ["never there", "never found"])
    assert table.rows == [
        ("never there", "0", "-", "0 %", "-"),
        ("never found", "1,500", "0 %", "-", "never there (1,500)"),
    ]


def test_one_class_and_none_are_fine() -> None:
    assert per_class_table(np.array([[3]]), ["a"]).rows == [("a", "3", "100 %", "100 %", "-")]
    empty = per_class_table(np.zeros((0, 0)), [])
    assert (empty.rows, empty.note) == ([], "No samples.")


def test_matrices_that_are_no_counts_of_these_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3\) for 2 classes"):
        per_class_table(np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(InputError, match="negative or non-finite"):
        per_class_table(np.array([[-1.0]]), ["a"])
