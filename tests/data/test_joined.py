"""Several data sets as one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.data import AugmentConfig, make_eval_loader, make_train_loader, open_data
from perceivers.errors import ConfigError, DataError
from perceivers.types import Bytes, Image, ModalitySpec, Points

SPECS: Mapping[str, ModalitySpec] = {"bytes": Bytes(4)}


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    """Two labelled tables, of 4 and 2 training texts; only the first has a test split."""
    first = "label,text\n0,a0\n1,a1\n2,a2\n0,a3\n"
    second = "label,text\nno,b0\nyes,b1\n"
    for name, table in (("one-way", first), ("2 ways", second)):
        (tmp_path / name).mkdir()
        for split in ("train", "val", "test")[: 3 if name == "one-way" else 2]:
            (tmp_path / name / f"{split}.csv").write_text(table)
    return [str(tmp_path / "one-way"), str(tmp_path / "2 ways")]


def test_every_part_has_its_column(parts: list[str]) -> None:
    dataset = open_data(" + ".join(parts))
    assert dataset.classes == ()
    assert dict(dataset.columns) == {"one_way": ("0", "1", "2"), "_2_ways": ("no", "yes")}
    train = dataset.splits["train"]
    assert train.labels is not None
    assert train.labels.tolist() == [[0, -1], [1, -1], [2, -1], [0, -1], [-1, 0], [-1, 1]]
    assert list(train.names[3:5]) == ["one_way/train.csv/3", "_2_ways/train.csv/0"]
    assert len(dataset.splits["test"]) == 4
    assert "test: without _2_ways, which do not have this split" in dataset.notes
    assert "one_way: no classes.txt: 3 classes, named by their numbers" in dataset.notes
    assert dataset.specs(overrides={"bytes": {"length": 9}}) == {"bytes": Bytes(9)}


def test_an_epoch_reads_every_row_of_every_part_once(parts: list[str]) -> None:
    source = open_data(" + ".join(parts)).splits["train"]
    loader = make_train_loader(
        source, SPECS, batch_size=3, seed=0, augment=AugmentConfig(), start_step=0, num_steps=2
    )
    batches = list(loader)
    rows = torch.cat([batch.inputs["bytes"] for batch in batches])[:, :2] - 6
    labels = torch.cat([b.labels for b in batches if b.labels is not None])
    found = {bytes(r): label for r, label in zip(rows.tolist(), labels.tolist(), strict=True)}
    assert found == {
        b"a0": [0, -1],
        b"a1": [1, -1],
        b"a2": [2, -1],
        b"a3": [0, -1],
        b"b0": [-1, 0],
        b"b1": [-1, 1],
    }


def test_the_same_name_twice_is_numbered(parts: list[str]) -> None:
    assert list(open_data(f"{parts[0]} + {parts[0]}/train.csv").columns) == ["one_way", "one_way_2"]


def test_unlabelled_documents_are_joined_in_windows(tmp_path: Path) -> None:
    for name, text in (("a", "abcdefghij"), ("b", "0123456789")):
        (tmp_path / f"{name}.txt").write_text(text)
    dataset = open_data(f"{tmp_path}/a.txt + {tmp_path}/b.txt", val_share=0.2)
    assert (dataset.columns, dataset.splits["train"].labels) == ({}, None)
    (batch,) = make_eval_loader(dataset.splits["train"], SPECS, batch_size=9)
    rows = [bytes(int(i) - 6 for i in row if i) for row in batch.inputs["bytes"]]
    assert rows == [b"abcd", b"efgh", b"0123", b"4567"]
    assert batch.labels is None


def test_pictures_are_joined_as_files(tmp_path: Path, encode: Any) -> None:
    for name in ("ants", "bees"):
        for i in range(4):
            path = tmp_path / name / f"{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(i))
    dataset = open_data(f"{tmp_path}/ants + {tmp_path}/bees")
    spec = dataset.specs(size=8)["image"]
    assert isinstance(spec, Image)
    (batch,) = make_eval_loader(dataset.splits["train"], {"image": spec}, batch_size=9)
    assert batch.inputs["image"].shape == (4, 3, 8, 8)
    with pytest.raises(DataError, match=r"'ants': \['image \(files\)'\], 'digits': \['image'\]"):
        open_data(f"{tmp_path}/ants + digits")


def test_joined_clouds_fit_the_largest(tmp_path: Path) -> None:
    for name, size in (("a", 8), ("b", 24)):
        np.savez(
            tmp_path / f"{name}.npz",
            xyz=np.random.default_rng(0).random((4 * size, 3)),
            offsets=np.arange(5) * size,
            label=[0, 1, 0, 1],
        )
    spec = open_data(f"{tmp_path}/a.npz + {tmp_path}/b.npz").specs()["points"]
    assert isinstance(spec, Points)
    assert spec.points == 24
    with pytest.raises(DataError, match=r"point sets with .* cannot be joined"):
        open_data(f"{tmp_path}/a.npz + selection").specs()


def test_data_that_do_not_match_are_refused(parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'one_way': \['bytes'\], 'digits': \['image'\]"):
        open_data(f"{parts[0]} + digits")
    (tmp_path / "x.txt").write_text("abcdefgh")
    with pytest.raises(DataError, match="only one_way of one_way, x have plain labels"):
        open_data(f"{parts[0]} + {tmp_path}/x.txt")
    with pytest.raises(ConfigError, match="'label' is asked for, but the joined data"):
        open_data(" + ".join(parts), labels=("label",))
    with pytest.raises(DataError, match="data address 'nowhere': no such file"):
        open_data(f"{parts[0]} + nowhere")


def test_an_unreadable_first_sample_does_not_decide_for_all(
    tmp_path: Path, encode_sound: Any
) -> None:
    addresses = []
    for name in ("a", "b"):
        for label in ("x", "y"):
            for number in range(4):
                path = tmp_path / name / label / f"{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_sound(np.ones((1, 20)), kind="WAV"))
        addresses.append(str(tmp_path / name))
    joined = " + ".join(addresses)
    first = open_data(joined).splits["train"].names
    broken = open_data(addresses[0]).splits["train"].names[0]
    (tmp_path / "a" / broken).unlink()
    (tmp_path / "a" / broken).symlink_to(tmp_path / "nowhere.wav")
    assert open_data(joined).splits["train"].names == first
