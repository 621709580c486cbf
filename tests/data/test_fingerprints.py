"""Fingerprints tell whether two data sets are the same, and what differs."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from perceivers.data import fingerprints, open_data
from perceivers.data.dataset import Dataset
from perceivers.data.fingerprints import Fingerprint, compare_fingerprints, take_fingerprint
from perceivers.data.sources import RawSample, Source


@dataclass
class Listed(Source):
    """Names and labels without samples."""

    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None

    def read(self, index: int) -> RawSample:
        """Fail."""
        raise AssertionError("fingerprints read no sample")


def dataset(names: str, labels: str = "", classes: str = "cat dog", **fields: Any) -> Dataset:
    numbers = np.array([int(digit) for digit in labels], np.int64) if labels else None
    source = Listed(names.split(), numbers)
    return Dataset(
        "x", {"train": source, "val": Listed(["v"])}, tuple(classes.split()), (), **fields
    )


BEFORE = dataset("a b c", "001")


def differences(now: Dataset, before: Dataset = BEFORE) -> list[str]:
    """Compare as a resumed run does: with what JSON made of the first."""
    old = take_fingerprint(before)
    stored = Fingerprint(json.loads(json.dumps(old.digests)), json.loads(json.dumps(old.samples)))
    return compare_fingerprints(stored, take_fingerprint(now))


def test_the_same_data_do_not_differ() -> None:
    assert differences(dataset("a b c", "001")) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (dataset("a c", "01"), ["train: 3 samples before, 2 now", "train: samples missing: 1 (b)"]),
        (
            dataset("a b c d", "0011"),
            ["train: 3 samples before, 4 now", "train: samples new: 1 (d)"],
        ),
        (
            dataset("a c b", "010"),
            [
                "train: the order of the samples differs, first at index 1, which was b and is c",
            ],
        ),
        (
            dataset("a b c", "011"),
            ["train: 1 samples have a different label, such as b, which was cat and is dog"],
        ),
        (
            dataset("a b c", "001", "cat emu"),
            ["classes missing: dog", "classes new: emu"],
        ),
        (dataset("a b c", "001", "dog cat"), ["classes: the order was cat, dog and is dog, cat"]),
        (
            dataset("a b c"),
            ["train: 3 samples have a different label, such as a, which was cat and is None"],
        ),
        (dataset("a b c", "001", mask_classes=("sky",)), ["mask classes new: sky"]),
        (dataset("a b c", "001", columns={"k": ("x",)}), ["label columns new: k"]),
    ],
)
def test_what_differs_is_said(now: Dataset, said: list[str]) -> None:
    assert differences(now) == said


def test_a_split_that_came_or_went_is_said() -> None:
    less = replace(BEFORE, splits={"train": BEFORE.splits["train"]})
    assert differences(less) == ["the split 'val' no longer exists"]
    assert differences(BEFORE, less) == ["the split 'val' is new"]


def test_targets_count_and_unknown_ones_are_equal() -> None:
    def make(*values: float) -> Dataset:
        targets = np.array(values, np.float32)[:, None]
        return replace(BEFORE, splits={"train": Listed(["a", "b"], None, targets)})

    assert differences(make(1, float("nan")), make(1, -float("nan"))) == []
    assert differences(make(1, 3), make(1, 2)) == ["train: the targets differ"]


def test_two_spellings_of_a_name_are_one() -> None:
    assert differences(dataset("caf\u00e9"), dataset("cafe\u0301")) == []
    assert differences(dataset("caf\u00e9"), dataset("cafe")) != []


def test_names_that_are_no_utf8_are_taken() -> None:
    assert differences(dataset("a\udcff"), dataset("a\udcff")) == []
    assert differences(dataset("a\udcff"), dataset("a\udcfe")) != []


def test_of_very_many_samples_only_counts_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MAX_LISTED", 2)
    assert differences(dataset("a b c", "001")) == []
    assert differences(dataset("a b d", "001")) == ["train: the names of the samples differ"]
    assert differences(dataset("a b c", "000")) == ["train: the labels differ"]


def test_a_text_that_grew_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("x" * 3000)
    before = open_data(str(path))
    path.write_text("x" * 3001)
    assert differences(open_data(str(path)), before)
    path.write_text("x" * 3000)
    assert differences(open_data(str(path)), before) == []


def test_200_000_samples_take_seconds() -> None:
    names = [f"class_{i % 100}/picture_{i}.jpg" for i in range(200_000)]
    large = Listed(names, np.arange(200_000) % 100)
    began = time.process_time()
    found = take_fingerprint(Dataset("x", {"train": large}, (), ()))
    assert time.process_time() - began < 5
    assert compare_fingerprints(found, found) == []


def test_built_in_data_have_a_fingerprint() -> None:
    found: Mapping[str, Any] = take_fingerprint(open_data("digits")).digests["splits"]
    assert {split: entry["samples"] for split, entry in found.items()} == {
        "train": 1259,
        "val": 179,
        "test": 359,
    }
