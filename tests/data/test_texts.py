"""Documents in windows: nothing lost, nothing read twice, every place a beginning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.data import AugmentConfig, make_eval_loader, make_train_loader, open_data
from perceivers.data.byte_codec import decode_ids
from perceivers.data.row_source import Part, RowSource
from perceivers.data.sources import Source
from perceivers.data.texts import TextCells, open_documents
from perceivers.errors import DataError
from perceivers.types import Bytes, ModalitySpec

LETTERS = b"abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def documents(tmp_path: Path) -> RowSource:
    """Two documents of 26 and 10 bytes."""
    (tmp_path / "a.txt").write_bytes(LETTERS)
    (tmp_path / "b.txt").write_bytes(b"0123456789")
    return open_documents([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path)


def evaluate(source: Source, length: int, **options: Any) -> list[str]:
    specs: Mapping[str, ModalitySpec] = {"bytes": Bytes(length)}
    batches = list(make_eval_loader(source, specs, batch_size=2, **options))
    return [decode_ids(row) for batch in batches for row in batch.inputs["bytes"].numpy()]


def test_documents_are_a_source_of_windows(documents: RowSource) -> None:
    assert isinstance(documents, Source)
    assert documents.cut_by == "bytes"
    assert len(documents) == 2
    smaller = documents.cut(8)
    assert len(smaller) == 4 + 2
    assert list(smaller.names) == [
        "a.txt@0",
        "a.txt@8",
        "a.txt@16",
        "a.txt@24",
        "b.txt@0",
        "b.txt@8",
    ]


@pytest.mark.parametrize("length", [1, 5, 8, 26, 100])
def test_evaluation_reads_every_byte_once(documents: RowSource, length: int) -> None:
    windows = evaluate(documents, length)
    assert "".join(windows).encode() == LETTERS + b"0123456789"
    assert len(windows) == -(-26 // length) + -(-10 // length)
    assert evaluate(documents, length, workers=1) == windows


def test_ranks_share_out_the_windows_of_the_specs_length(documents: RowSource) -> None:
    ranks = [evaluate(documents, 5, rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(ranks[0] + ranks[1]) == sorted(evaluate(documents, 5))
    assert len(ranks[0]) == len(ranks[1]) == 4


def test_training_begins_anywhere_within_a_window(documents: RowSource) -> None:
    loader = make_train_loader(
        documents,
        {"bytes": Bytes(4)},
        batch_size=10,
        seed=0,
        augment=AugmentConfig(),
        start_step=0,
        num_steps=60,
    )
    rows = torch.cat([batch.inputs["bytes"] for batch in loader]).numpy()
    texts = [decode_ids(row) for row in rows]
    assert all(text.encode() in LETTERS or text in "0123456789" for text in texts)
    starts = {text[0] for text in texts if len(text) == 4}
    # A window never runs from one document into the next, so the last bytes begin none.
    assert starts == set("abcdefghijklmnopqrstuvw" + "0123456")
    counts = np.unique(np.concatenate([b.index for b in loader]), return_counts=True)[1]
    assert counts.tolist() == [60] * 10


def test_wrapping_takes_room_from_the_text(documents: RowSource) -> None:
    loader = make_eval_loader(documents, {"bytes": Bytes(10, "cls_sep")}, batch_size=9)
    (batch,) = loader
    assert decode_ids(batch.inputs["bytes"][0].numpy()) == "abcdefgh"
    assert batch.inputs["bytes"][3].tolist() == [4, 127, 128, 5, 0, 0, 0, 0, 0, 0]


def test_the_end_of_few_documents_is_set_aside(documents: RowSource) -> None:
    assert documents.items is not None
    train, val, note = documents.items.divide(0.25, "x")
    # A quarter of 26 is 6.5, which rounds to the even 6, and 2.5 to 2.
    assert "".join(evaluate(train, 4)) == "abcdefghijklmnopqrst" + "01234567"
    assert "".join(evaluate(val, 4)) == "uvwxyz" + "89"
    assert note == "val: the last 25 % of each of 2 documents"


def test_of_enough_documents_whole_ones_are_set_aside(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(f"{i}" * 30)
    dataset = open_data(str(tmp_path), val_share=0.2)
    texts = {split: set("".join(evaluate(s, 8))) for split, s in dataset.splits.items()}
    assert len(texts["val"]) == 2
    assert texts["train"] | texts["val"] == set("0123456789")
    assert "val: 20 % of train (2 of 10 documents), chosen by a hash" in dataset.notes[-1]


def test_a_single_byte_cannot_be_divided(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="1 documents of 1 byte each, so none can be divided"):
        open_data(str(tmp_path / "a.txt"))


def test_empty_and_changed_documents_are_refused(tmp_path: Path, documents: RowSource) -> None:
    (tmp_path / "c.txt").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"c\.txt: the file is empty \(0 bytes\); fill or remove it"
    ):
        open_documents([tmp_path / "c.txt"], tmp_path)
    with pytest.raises(DataError, match=r"d\.txt: cannot be read \(No such file"):
        open_documents([tmp_path / "d.txt"], tmp_path)
    (tmp_path / "a.txt").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"a\.txt: ends before byte 26; the file has changed"):
        documents.read(0)


def test_an_empty_text_is_named_when_it_is_read() -> None:
    names = ["x.csv/0", "x.csv/1"]
    cells = TextCells(b"ab", np.array([[0, 2], [2, 2]]), names)
    texts = RowSource({"bytes": Part("bytes", cells)}, np.arange(2), names)
    assert np.asarray(texts.read(0)["bytes"]).tolist() == [97, 98]
    with pytest.raises(DataError, match=r"^x\.csv/1: the text is empty"):
        texts.read(1)
    (batch,) = make_eval_loader(texts, {"bytes": Bytes(4)}, batch_size=2)
    assert (batch.index.tolist(), len(batch.bad)) == ([0], 1)
