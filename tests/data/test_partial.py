"""Samples that hold at least one of some modalities, of sources with and without gaps."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from perceivers.data import Dataset, make_eval_loader
from perceivers.data.arrays import hold_arrays
from perceivers.data.dataset import keep_holding
from perceivers.data.row_source import ArrayCells, Part, RowSource
from perceivers.errors import ConfigError, DataError
from perceivers.types import Array, Audio, Image

HELD = {
    "image": np.array([True, False, True, False]),
    "audio": np.array([False, True, True, False]),
    "array": np.array([False, False, False, True]),
}


def make_gaps(held: Mapping[str, NDArray[np.bool_]]) -> RowSource:
    """Four samples; what they hold is their number."""
    shapes = {"image": (1, 2, 2), "audio": (1, 3), "array": (2, 1)}
    parts: dict[str, Part] = {}
    for name, rows in held.items():
        dtype = np.uint8 if name == "image" else np.float32
        values = [np.full(shapes[name], i, dtype) if has else None for i, has in enumerate(rows)]
        parts[name] = Part(name, ArrayCells(values))
    targets = np.array([[0.5], [1.5], [2.5], [3.5]], np.float32)
    return RowSource(parts, np.arange(4), list("abcd"), np.arange(4), targets, may_lack=True)


GAPS = make_gaps(HELD)


def test_samples_without_any_of_the_modalities_are_left_out() -> None:
    kept = keep_holding(GAPS, ["image", "array"])
    assert list(kept.names) == ["a", "c", "d"]
    assert kept.labels is not None
    assert kept.labels.tolist() == [0, 2, 3]
    assert kept.targets is not None
    assert kept.targets.tolist() == [[0.5], [2.5], [3.5]]
    assert {name: held.tolist() for name, held in kept.present.items()} == {
        "image": [True, True, False],
        "audio": [False, True, False],
        "array": [False, False, True],
    }
    assert sorted(kept.read(1)) == ["audio", "image"]
    assert kept.read(2)["array"].tolist() == [[3.0], [3.0]]  # pyright: ignore[reportAttributeAccessIssue]
    part = kept.subset(np.array([2, 0]))
    assert (list(part.names), len(part)) == (["d", "a"], 2)
    assert part.present["image"].tolist() == [False, True]


def test_what_everything_holds_is_the_source_itself() -> None:
    assert keep_holding(GAPS, ["image", "audio", "array"]) is GAPS
    full = hold_arrays({"image": np.zeros((2, 1, 2, 2), np.uint8)}, ["a", "b"])
    assert keep_holding(full, ["image"]) is full


def test_errors_name_the_modality() -> None:
    with pytest.raises(ConfigError, match=r"'imag' is asked for.*did you mean 'image'\?"):
        keep_holding(GAPS, ["imag"])
    with pytest.raises(ConfigError, match=r"no modality is asked for; name some of \['array'"):
        keep_holding(GAPS, [])
    none = make_gaps({**HELD, "array": np.zeros(4, np.bool_)})
    with pytest.raises(DataError, match="none of the 4 samples has any of array"):
        keep_holding(none, ["array"])


def test_a_data_set_holds_less() -> None:
    lost = make_gaps({**HELD, "array": np.zeros(4, np.bool_)})
    splits = {"train": GAPS, "val": GAPS, "test": lost}
    dataset = Dataset("x", splits, ("0", "1", "2", "3"), ("first",))
    assert dataset.holding([]) is dataset
    less = dataset.holding(["array"])
    assert {name: len(source) for name, source in less.splits.items()} == {"train": 1, "val": 1}
    assert less.notes == (
        "first",
        "train: 3 of 4 samples are left out, which contain none of array",
        "val: 3 of 4 samples are left out, which contain none of array",
        "test: 4 of 4 samples are left out, which contain none of array",
    )
    with pytest.raises(DataError, match="x, split 'val': none of the 4 samples has any of array"):
        Dataset("x", {"train": GAPS, "val": lost}, (), ()).holding(["array"])


def test_specs_and_batches_of_gaps() -> None:
    dataset = Dataset("x", {"train": GAPS, "val": GAPS}, (), ())
    specs = dataset.specs()
    assert specs == {
        "image": Image(2, 2, 1, mean=(0.00392157,), std=(0.00392157,)),
        "audio": Audio(3, 1, mean=(1.5,), std=(0.5,)),
        "array": Array((2,), 1, mean=(3.0,), std=(1.0,)),
    }
    assert list(dataset.specs(modalities=["array"])) == ["array"]
    kept = keep_holding(GAPS, ["array", "image"])
    (batch,) = make_eval_loader(kept, specs, batch_size=8)
    assert batch.inputs["array"][:, 0, 0].tolist() == [0.0, 0.0, 3.0]
    assert batch.present["array"].tolist() == [False, False, True]
    assert batch.present["audio"].tolist() == [False, True, False]
    assert batch.index.tolist() == [0, 1, 2]
    assert batch.targets is not None
    assert batch.targets.tolist() == [[0.5], [2.5], [3.5]]


def test_a_modality_that_training_lacks_is_named() -> None:
    none = make_gaps({**HELD, "array": np.zeros(4, np.bool_)})
    dataset = Dataset("x", {"train": none, "val": GAPS}, (), ())
    with pytest.raises(DataError, match="no training sample has 'array'; add some, or leave"):
        dataset.specs()
    assert list(dataset.specs(modalities=["image", "audio"])) == ["image", "audio"]
