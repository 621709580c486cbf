"""Ragged point sets as data addresses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.data import make_eval_loader, open_data
from perceivers.errors import ConfigError, DataError
from perceivers.types import Points

OFFSETS = np.array([0, 2, 5, 6, 10])
POINTS = np.arange(20, dtype=np.float32).reshape(10, 2)
CONTENT: dict[str, Any] = {
    "xyz": POINTS,
    "offsets": OFFSETS,
    "label": np.array([1, 0, 1, 0]),
    "kind": np.array(["a", "b", "b", "a"]),
    "each": np.zeros(10),
}


def save(path: Path, **changes: Any) -> str:
    content = {key: v for key, v in (CONTENT | changes).items() if v is not None}
    np.savez(path, **content)
    return str(path)


def test_a_file_of_clouds_is_divided_and_read(tmp_path: Path) -> None:
    dataset = open_data(save(tmp_path / "x.npz"), val_share=0.5)
    found = {
        name: (int(label), np.asarray(source.read(i)["points"]).tolist())
        for source in dataset.splits.values()
        if source.labels is not None
        for i, (name, label) in enumerate(zip(source.names, source.labels, strict=True))
    }
    assert found == {
        f"x.npz/{i}": (CONTENT["label"][i], POINTS[OFFSETS[i] : OFFSETS[i + 1]].tolist())
        for i in range(4)
    }
    assert dataset.classes == ("0", "1")


def test_the_spec_holds_most_clouds_whole_and_scales_them(tmp_path: Path) -> None:
    sizes = [*range(1, 100), 1000]
    offsets = np.cumsum([0, *sizes])
    points = np.random.default_rng(0).random((offsets[-1], 3)) * [1, 10, 1000]
    for split in ("train", "val"):
        save(
            tmp_path / f"{split}.npz",
            xyz=None,
            xyt=points,
            offsets=offsets,
            label=None,
            kind=None,
            each=None,
        )
    dataset = open_data(str(tmp_path))
    spec = dataset.specs()["points"]
    assert isinstance(spec, Points)
    # 95.05 of the sizes rounds up to 96, a multiple of 8 already.
    assert (spec.points, spec.channels, spec.ragged, spec.scale) == (96, 3, True, "unit")
    loader = make_eval_loader(dataset.splits["train"], {"points": spec}, batch_size=100)
    (batch,) = loader
    values = batch.inputs["points"].numpy()
    assert (~np.isnan(values[:, :, 0])).sum(axis=1).tolist() == [*range(1, 97), 96, 96, 96, 96]
    assert np.nanmax(np.abs(values[1:]), axis=(0, 1)) == pytest.approx(np.ones(3))
    rows = values[~np.isnan(values).any(axis=2)]
    assert spec.mean == pytest.approx(rows.mean(axis=0), abs=1e-5)
    assert spec.std == pytest.approx(rows.std(axis=0), rel=1e-4)


def test_label_columns_are_chosen(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        save(tmp_path / f"{split}.npz")
    (tmp_path / "kinds.txt").write_text("z\nb\na\n")
    one = open_data(str(tmp_path), labels=("kind",))
    assert one.classes == ("z", "b", "a")
    assert one.splits["test"].labels is not None
    assert one.splits["test"].labels.tolist() == [2, 1, 1, 2]
    two = open_data(str(tmp_path), labels=("label", "kind"))
    assert dict(two.columns) == {"label": ("0", "1"), "kind": ("z", "b", "a")}
    with pytest.raises(
        ConfigError, match=r"'each' is asked for, .* its label columns are label, k"
    ):
        open_data(str(tmp_path), labels=("each",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": POINTS}, "need 'offsets' and exactly one of points, xyz, xyt"),
        ({"xyz": None}, "exactly one of points, xyz, xyt"),
        (
            {"xyz": POINTS.astype(int)},
            r"'xyz' has shape \(10, 2\) and dtype int64; it must be float",
        ),
        ({"xyz": POINTS[:, 0]}, r"'xyz' has shape \(10,\)"),
        ({"xyz": np.where(POINTS == 7, np.nan, POINTS)}, "in 1 of 10 points, first point 3"),
        ({"offsets": OFFSETS[:-1]}, "and runs from 0 to 6; it must be integers from 0 to 10, the"),
        ({"offsets": OFFSETS[1:]}, "and runs from 2 to 10"),
        ({"offsets": OFFSETS.astype(float)}, "'offsets' has shape .* and dtype float64; it must"),
        ({"offsets": np.array([0, 2, 2, 10])}, "cloud 1 runs from point 2 to 2, so it is empty"),
        ({"offsets": np.array([0, 7, 5, 10])}, "cloud 1 runs from point 7 to 5"),
    ],
)
def test_clouds_that_break_the_format_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(save(tmp_path / "x.npz", **changes))


def test_splits_need_the_same_values_per_point(tmp_path: Path) -> None:
    save(tmp_path / "train.npz")
    save(tmp_path / "val.npz", xyz=np.zeros((10, 3)))
    with pytest.raises(DataError, match=r"values per point are \{'train': 2, 'val': 3\}"):
        open_data(str(tmp_path))
