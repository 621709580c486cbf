"""Cells of tables: files on this machine and on servers, texts, arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.serving import serve

from perceivers.data import make_eval_loader, open_data
from perceivers.data import row_source as cells_module
from perceivers.data.row_source import ArrayCells, PathCells
from perceivers.data.sources import Encoded
from perceivers.data.texts import TextCells
from perceivers.errors import DataError

PLACES = ["x.csv: line 2", "x.csv: line 3", "x.csv: line 4"]


def test_paths_are_relative_or_absolute(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"abc")
    cells = PathCells(str(tmp_path), ["a.wav", "", str(tmp_path / "a.wav")], PLACES, "audio")
    assert cells.present.tolist() == [True, False, True]
    stored = Encoded(str(tmp_path / "a.wav"), b"abc")
    assert [cells.load(0), cells.load(2)] == [stored, stored]


def test_long_clips_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "MAX_READ", 2)
    (tmp_path / "a.wav").write_bytes(b"abc")
    path = str(tmp_path / "a.wav")
    assert PathCells("", [path], PLACES, "audio").load(0) == Encoded(path, None)
    assert PathCells("", [path], PLACES, "image").load(0) == Encoded(path, b"abc")


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("no.wav", "audio", "cannot be read .No such file or directory.; it is named in x.csv: l"),
        ("no.png", "image", "cannot be read .No such file or directory.; it is named in x.csv: l"),
        ("a\0b.wav", "audio", r"null byte\); it is named in x.csv: line 2"),
    ],
)
def test_what_cannot_be_read_says_where_it_is_named(
    tmp_path: Path, path: str, kind: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        PathCells(str(tmp_path), [path], PLACES, kind).load(0)


def test_cells_may_lie_on_a_server(tmp_path: Path, encode: Any) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(encode(i, (8, 8)))
    with serve(folder) as server:
        rows = [f"{server.url}/{i}.png" for i in range(3)] + [f"{server.url}/no.png"]
        path = tmp_path / "x.csv"
        path.write_text("\n".join(["image", *rows]) + "\n")
        dataset = open_data(str(path), val_share=0.1)
        specs = dataset.specs(size=8)
        read, bad = 0, []
        for source in dataset.splits.values():
            for index in range(len(source)):
                try:
                    read += set(source.read(index)) == {"image"}
                except DataError as error:
                    bad.append(str(error))
        assert read == 3
        assert bad == [f"{server.url}/no.png: no such file; it is named in {path}: line 5"]
        batches = list(make_eval_loader(dataset.splits["train"], specs, batch_size=4, workers=1))
        assert sum(len(batch) for batch in batches) >= 2


def test_texts_and_arrays() -> None:
    texts = TextCells.join([b"one", b"", "zw\u00f6lf".encode()])
    assert texts.present.tolist() == [True, False, True]
    assert texts.load(2).tobytes().decode() == "zw\u00f6lf"
    arrays = ArrayCells([None, np.ones((2, 3))])
    assert arrays.present.tolist() == [False, True]
    assert arrays.load(1).shape == (2, 3)
