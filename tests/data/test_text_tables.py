"""Tables of texts as data addresses."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from perceivers.data import make_eval_loader, open_data
from perceivers.data.sources import Source
from perceivers.errors import ConfigError, DataError
from perceivers.types import Bytes

WriteFolder = Callable[[Mapping[str, bytes]], Path]
ROWS = b'label,text\n0,plain\n1,"with, comma"\n1,"two\nlines and ""quotes"""\n0,caf\xc3\xa9\n'
TEXTS = [b"plain", b"with, comma", b'two\nlines and "quotes"', b"caf\xc3\xa9"]


def texts(*sources: Source) -> set[bytes]:
    return {bytes(s.read(i)["bytes"]) for s in sources for i in range(len(s))}  # pyright: ignore[reportArgumentType]


def open_bytes(folder: Path, name: str, content: bytes, **options: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return open_data(str(folder / name), **options)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_csv_with_quotes_lines_and_marks(tmp_path: Path, mark: bytes, end: bytes) -> None:
    content = mark + ROWS.replace(b"\n", end)
    dataset = open_bytes(tmp_path, "x.csv", content, val_share=0.5)
    assert texts(*dataset.splits.values()) == {text.replace(b"\n", end) for text in TEXTS}
    assert dataset.classes == ("0", "1")
    for split in dataset.splits.values():
        assert sorted(split.labels) == [0, 1]
    assert dataset.splits["train"].names[0].startswith("x.csv/")
    assert dataset.specs() == {"bytes": Bytes(512)}


def test_bytes_that_are_no_utf8_are_read_as_they_are(tmp_path: Path) -> None:
    rows = b"text\n\xff\xfe\nb\xe9\n"
    assert texts(*open_bytes(tmp_path, "x.csv", rows).splits.values()) == {b"\xff\xfe", b"b\xe9"}
    lines = b'{"text": "\xff"}\n\n{"text": "\\u00e9"}\n'
    dataset = open_bytes(tmp_path, "x.jsonl", lines)
    assert texts(*dataset.splits.values()) == {b"\xff", b"\xc3\xa9"}


def test_a_folder_of_splits_with_names_of_classes(write_folder: WriteFolder) -> None:
    table = b"text,label\na,1\nb,0\n"
    folder = write_folder(
        {
            "train.csv": table,
            "test.csv": b"label,text\n1,c\n",
            "val.csv": table,
            "classes.txt": b"no\nyes\n",
        }
    )
    dataset = open_data(str(folder))
    assert dataset.classes == ("no", "yes")
    assert {
        k: (len(v), list(v.labels)) for k, v in dataset.splits.items() if v.labels is not None
    } == {
        "train": (2, [1, 0]),
        "val": (2, [1, 0]),
        "test": (1, [1]),
    }
    assert dataset.notes == ()


def test_columns_are_chosen_and_follow_into_batches(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "topic": "sport", "stars": 2},
        {"text": "b", "topic": None, "stars": 0},
        {"text": "c", "stars": 1},
        {"text": "d", "topic": "art", "stars": 1},
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    plain = open_bytes(tmp_path, "x.jsonl", content)
    assert plain.classes == ()
    assert plain.notes[0] == "unlabelled; label columns to choose from: topic, stars"
    stars = open_bytes(tmp_path, "x.jsonl", content, labels=("stars",))
    assert (stars.classes, stars.columns) == (("0", "1", "2"), {})
    both = open_bytes(tmp_path, "x.jsonl", content, labels=("stars", "topic"), val_share=0.5)
    assert (both.classes, both.columns) == (
        (),
        {"stars": ("0", "1", "2"), "topic": ("art", "sport")},
    )
    found = {}
    for source in both.splits.values():
        (batch,) = make_eval_loader(source, {"bytes": Bytes(1)}, batch_size=4)
        assert batch.labels is not None
        found |= {
            chr(ids[0] - 6): row
            for ids, row in zip(batch.inputs["bytes"].tolist(), batch.labels.tolist(), strict=True)
        }
    assert found == {"a": [2, 1], "b": [0, -1], "c": [1, -1], "d": [1, 0]}
    with pytest.raises(ConfigError, match=r"'topics' is asked for, .*did you mean 'topic'\?"):
        open_bytes(tmp_path, "x.jsonl", content, labels=("topics",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.csv: the file is empty \(0 bytes\)"),
        (b"text\n", r"x\.csv: the table has no rows"),
        (
            b"label,txt\n0,a\n",
            r"the header is \['label', 'txt'\]; .* did you mean 'txt'\?|one is 'text'",
        ),
        (b"text,text\na,b\n", r"the header is \['text', 'text'\]; .*each column once"),
        (b"label,text\n0,a,b\n", r"x\.csv: line 2 has 3 fields and the header has 2; put fields"),
        (b"label,text\n0,a\n1\n", r"x\.csv: line 3 has 1 fields"),
        (b'text\n"a\n', r"x\.csv: line 2 is not valid CSV \(unexpected end of data\); close every"),
        (b'text\n"a"b\n', r"x\.csv: line 2 is not valid CSV \(',' expected"),
        (
            b"text\n" + b"a" * 140_000,
            r"not valid CSV \(field larger than field limit .*\.jsonl",
        ),
        (
            "text\nabc".encode("utf-16-le"),
            r"x\.csv: contains a zero byte at 1, as in UTF-16",
        ),
        (b"label,text\n0,a\nx,b\n,c\n", r"x\.csv: line 4: label '' is not a class"),
    ],
)
def test_a_csv_that_breaks_the_format_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_bytes(tmp_path, "x.csv", content)


def test_labels_beyond_the_named_classes_are_refused(write_folder: WriteFolder) -> None:
    folder = write_folder({"x.csv": b"label,text\n0,a\n2,b\n", "classes.txt": b"no\nyes\n"})
    with pytest.raises(
        DataError, match=r"x\.csv: line 3: label '2' is not a class; the 2 .* are no, yes"
    ):
        open_data(str(folder / "x.csv"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", r"x\.jsonl: the file is empty \(0 bytes\)"),
        (b'{"text": "a"}\n{"text"\n', r"x\.jsonl: line 2 is not JSON \("),
        (b"[1]", r"x\.jsonl: line 1 is of type list; every line must be an object with"),
        (b'{"txt": "a"}', r"line 1 has \['txt'\]; every line"),
        (b'{"text": 3}', r"line 1 has \['text'\]"),
        (b'{"text": "a\\ud83d"}', r"x\.jsonl: text 0 contains '\\ud83d' at character 1, half of a"),
        (b"[" * 100_000, r"x\.jsonl: line 1 is not JSON"),
        (b'{"text": "a", "label": 0}\n{"text": "b"}', r"x\.jsonl: line 2: label '' is not a class"),
    ],
)
def test_json_lines_that_break_the_format_are_refused(
    tmp_path: Path, line: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_bytes(tmp_path, "x.jsonl", line)
