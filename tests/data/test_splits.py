"""The validation split by hash."""

import numpy as np
import pytest

from perceivers.data.splits import carve_validation
from perceivers.errors import ConfigError, DataError

NAMES = [f"c/{i}.png" for i in range(40)]
LABELS = np.array([0] * 30 + [1] * 10)


def chosen(names: list[str], labels: np.ndarray, share: float = 0.1) -> set[str]:
    _, validation, _ = carve_validation(names, labels, share, "x")
    return {names[int(i)] for i in validation}


def test_the_split_does_not_depend_on_the_order_of_the_samples() -> None:
    order = np.random.default_rng(0).permutation(40)
    shuffled = [NAMES[i] for i in order]
    assert chosen(shuffled, LABELS[order]) == chosen(NAMES, LABELS)
    renamed = [f"d/{i}.png" for i in range(40)]
    assert {n[1:] for n in chosen(renamed, LABELS)} != {n[1:] for n in chosen(NAMES, LABELS)}


def test_the_split_is_the_same_in_every_version() -> None:
    assert chosen(NAMES, LABELS) == {"c/21.png", "c/4.png", "c/5.png", "c/36.png"}


def test_every_class_gives_its_share_and_nothing_is_lost() -> None:
    kept, validation, note = carve_validation(NAMES, LABELS, 0.1, "x")
    assert np.bincount(LABELS[validation]).tolist() == [3, 1]
    assert sorted([*kept, *validation]) == list(range(40))
    assert note.startswith("val: stratified 10 % of train (4 of 40 samples), chosen by a hash")


def test_a_class_of_two_gives_one_and_a_class_of_one_none() -> None:
    labels = np.array([0, 0, 1])
    kept, validation, _ = carve_validation(["a", "b", "c"], labels, 0.1, "x")
    assert labels[validation].tolist() == [0]
    assert labels[kept].tolist() == [0, 1]
    kept, validation, _ = carve_validation(["a", "b", "c"], labels, 0.99, "x")
    assert labels[validation].tolist() == [0]


def test_unlabelled_samples_are_one_class() -> None:
    _, validation, note = carve_validation(NAMES, None, 0.25, "x")
    assert len(validation) == 10
    assert note.startswith("val: 25 % of train (10 of 40 samples)")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=f"val_share is {share}; it must lie between 0 and 1"):
        carve_validation(NAMES, LABELS, share, "x")


def test_too_few_samples_for_a_split_are_refused() -> None:
    with pytest.raises(DataError, match="x: 2 training samples and no class with two"):
        carve_validation(["a", "b"], np.array([0, 1]), 0.1, "x")


def test_in_several_columns_the_first_known_one_counts() -> None:
    # Classes 0 and 1 of column 0, class 0 of column 1, and nothing known.
    rows = [[0, -1]] * 20 + [[1, 0]] * 10 + [[-1, 0]] * 8 + [[-1, -1]] * 2
    kept, validation, note = carve_validation(NAMES, np.array(rows), 0.25, "x")
    counts = [
        sum(first <= i < end for i in validation)
        for first, end in ((0, 20), (20, 30), (30, 38), (38, 40))
    ]
    assert counts == [5, 2, 2, 1]
    assert sorted([*kept, *validation]) == list(range(40))
    assert note.startswith("val: stratified 25 % of train (10 of 40 samples)")


def test_one_column_divides_like_plain_labels() -> None:
    _, plain, _ = carve_validation(NAMES, LABELS, 0.1, "x")
    _, column, _ = carve_validation(NAMES, LABELS[:, None], 0.1, "x")
    assert np.array_equal(plain, column)
