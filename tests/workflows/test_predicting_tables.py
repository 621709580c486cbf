"""Tables, arrays and tars that are to be answered: all rows, in order, whatever their labels."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import perceivers as pv
from perceivers.data import open_samples
from perceivers.errors import DataError

WORDS = ["green tree", "blue sky", "red house", "dark wood"]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ["text", "green tree"],
        ["text,label", *(f"{text},{i}" for i, text in enumerate(WORDS))],
        ["text,label", "green tree,", "blue sky,cow"],
        ["text,split", "green tree,test", "blue sky,train", "red house,val"],
    ],
    ids=["one row", "a class each", "no class", "splits"],
)
def test_every_row_is_answered_in_order(text_run: pv.Run, tmp_path: Path, lines: list[str]) -> None:
    table = write(tmp_path / "t.csv", lines)
    records = list(pv.predict(text_run.path, [table]))
    texts = [line.split(",")[0] for line in lines[1:]]
    assert [record["file"] for record in records] == [f"t.csv/{row}" for row in range(len(texts))]
    alone = list(pv.predict(text_run.path, texts=texts))
    assert [r["class"] for r in records] == [r["class"] for r in alone]
    # Rounded to six digits; other batches may round the last one otherwise.
    alone_too = pytest.approx([r["probability"] for r in alone], abs=2e-6)
    assert [r["probability"] for r in records] == alone_too


def test_many_rows_keep_their_order(text_run: pv.Run, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{WORDS[row % 4]} {row}", "label": row % 2}) for row in range(40)]
    records = pv.predict(text_run.path, [write(tmp_path / "t.jsonl", lines)], batch_size=7)
    assert [record["file"] for record in records] == [f"t.jsonl/{row}" for row in range(40)]


def test_a_long_row_is_refused_and_the_others_answered(text_run: pv.Run, tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", ["text", "green tree", "blue " * 20, "dark wood"])
    records = {record["file"]: record for record in pv.predict(text_run.path, [table])}
    assert set(records) == {"t.csv/0", "t.csv/1", "t.csv/2"}
    assert "has 100 bytes, and the model reads at most" in records["t.csv/1"]["error"]
    assert "class" in records["t.csv/2"]


def test_arrays_are_read_without_what_is_said_of_them(tmp_path: Path) -> None:
    images = np.zeros((3, 1, 4, 4), np.uint8)
    path = tmp_path / "x.npz"
    np.savez(path, image=images, label=[5, -3, 9], other=np.arange(3))
    (source,) = open_samples(str(path)).values()
    assert (len(source), source.labels) == (3, None)
    points = {"xyz": np.zeros((5, 3), np.float32), "offsets": [0, 2, 5]}
    np.savez(path, **points, label=["ant", "ant"], character=[1, 2])
    (source,) = open_samples(str(path)).values()
    assert (len(source), source.labels) == (2, None)


def test_tars_are_read_without_their_labels(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (("b.png", buffer.getvalue()), ("b.cls", b"no"), ("a.png", b"broken")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (source,) = open_samples(str(tmp_path / "x.tar")).values()
    assert list(source.names) == ["x.tar/b", "x.tar/a"]
    assert source.labels is None
    with pytest.raises(DataError, match=r"has no label|label is 'no'"):
        pv.open_data(str(tmp_path / "x.tar"))
