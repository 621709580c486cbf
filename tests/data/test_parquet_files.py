"""Parquet tables: paths, embedded files, class names, groups of rows."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from perceivers.data import make_eval_loader, open_data, parquet_files
from perceivers.data.sources import Encoded
from perceivers.errors import DataError


def write(path: Path, columns: dict[str, Any], features: Any = None, **options: Any) -> str:
    table = pa.table(columns)
    if features:
        note = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": note})
    parquet.write_table(table, path, **options)
    return str(path)


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keep no more than the group of rows that was read last; return what is kept."""
    monkeypatch.setattr(parquet_files, "KEPT_BYTES", 1)
    kept = parquet_files._Groups()
    monkeypatch.setattr(parquet_files, "_KEPT", kept)
    return kept


def test_paths_and_labels(tmp_path: Path, encode: Any) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
    columns = {"image": [f"{i}.png" for i in range(4)], "label": [0, 1, 0, 1], "age": [1.5] * 4}
    dataset = open_data(write(tmp_path / "x.parquet", columns), targets=("age",))
    train = dataset.splits["train"]
    assert train.is_pictures
    assert train.names[0].startswith("x.parquet/")
    assert (dataset.classes, dataset.targets) == (("0", "1"), ("age",))
    assert train.encoded(0).path.startswith(str(tmp_path))


def test_embedded_files_are_read_group_by_group(
    tmp_path: Path, encode: Any, encode_sound: Any, forget: Any
) -> None:
    sound = encode_sound(np.zeros((1, 9)))
    cells = [{"bytes": encode(i), "path": f"{i}.png"} for i in range(6)] + [None]
    sounds = [sound, None, sound, None, {}.get("x"), b"", sound]
    columns = {"photo": cells, "audio": sounds, "label": [1, 0, 1, 0, 1, 0, 1]}
    features = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    path = write(tmp_path / "x.parquet", columns, features, row_group_size=2)
    dataset = open_data(path)
    assert dataset.classes == ("no", "yes")
    rows = {
        int(n.rpartition("/")[2]): (s, i)
        for s in dataset.splits.values()
        for i, n in enumerate(s.names)
    }
    source, place = rows[3]
    assert source.present
    picture = source.read(place)["image"]
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(open_picture(encode(3))))
    # Of all that was read to find out what is there, one group is left.
    assert list(forget.held) == [(path, Path(path).stat().st_mtime_ns, "photo", 1)]
    clip = rows[6][0].read(rows[6][1])
    assert set(clip) == {"audio"}
    assert clip["audio"] == Encoded(f"{path}/6/audio", sound, "audio")
    held = {row: sorted(source.read(i)) for row, (source, i) in rows.items()}
    assert held == {i: ["audio", "image"] if i in {0, 2} else ["image"] for i in range(6)} | {
        6: ["audio"]
    }
    assert len(pickle.dumps(source)) < 5_000


def open_picture(data: bytes) -> Any:
    from perceivers.data.pictures import read_picture

    return read_picture(data, "x.png")


def test_embedded_files_are_read_by_workers(tmp_path: Path, encode: Any) -> None:
    columns = {"image": [{"bytes": encode(i, (8, 8)), "path": None} for i in range(8)]}
    dataset = open_data(write(tmp_path / "x.parquet", columns, row_group_size=3))
    train, specs = dataset.splits["train"], dataset.specs(size=8)
    here = list(make_eval_loader(train, specs, batch_size=3))
    there = list(make_eval_loader(train, specs, batch_size=3, workers=1))
    assert len(here) == 3
    for first, second in zip(here, there, strict=True):
        np.testing.assert_array_equal(first.inputs["image"], second.inputs["image"])


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path, encode: Any) -> None:
    found = []
    for seed in range(2):
        columns = {"image": [encode(seed, (8, 8))] * 2}
        train = open_data(write(tmp_path / "x.parquet", columns)).splits["train"]
        assert train.is_pictures
        found.append(train.encoded(0).data)
    assert found == [encode(0, (8, 8)), encode(1, (8, 8))]


def test_large_groups_are_noted(
    tmp_path: Path, encode: Any, forget: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "LARGE_GROUP", 1000)
    columns = {"image": [encode(i, (20, 20)) for i in range(4)]}
    large = open_data(write(tmp_path / "x.parquet", columns))
    assert "write the file with row_group_size=100" in large.notes[0]
    small = open_data(write(tmp_path / "y.parquet", {"text": ["a", "b"]}))
    assert not any("row_group_size" in note for note in small.notes)


def test_texts_in_parquet_are_a_table_of_texts(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "vector": [[1.0], [2.0]], "label": ["x", "x"]}
    dataset = open_data(write(tmp_path / "x.parquet", columns))
    assert dataset.classes == ("x",)
    assert {bytes(s.read(0)["bytes"]) for s in dataset.splits.values()} == {b"a", b"b"}  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PAR1 and nothing", r"x\.parquet: cannot be read as Parquet"), (b"", r"x\.parquet: cannot")],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_data(str(tmp_path / "x.parquet"))


def test_a_table_without_rows_or_modality_is_refused(tmp_path: Path) -> None:
    empty = write(tmp_path / "x.parquet", {"text": pa.array([], pa.string())})
    with pytest.raises(DataError, match=r"x\.parquet: the table has no rows"):
        open_data(empty)
    odd = write(tmp_path / "y.parquet", {"blob": [b"abc", b"def"]})
    with pytest.raises(DataError, match=r"y\.parquet: the header is \[\]"):
        open_data(odd)


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.parquet", {"text": ["a"]})

    def fail(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(parquet_files, "import_module", fail)
    with pytest.raises(DataError, match=r'pip install "perceivers\[tables\]"'):
        open_data(path)
