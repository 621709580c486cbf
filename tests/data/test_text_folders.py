"""Folders of texts as data addresses."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from perceivers.data import open_data
from perceivers.data.sources import Source
from perceivers.data.text_sources import holds_media, holds_texts, walk_files
from perceivers.errors import ConfigError, DataError

WriteFolder = Callable[[Mapping[str, bytes]], Path]


def texts(source: Source) -> list[bytes]:
    return [bytes(source.read(i)["bytes"]) for i in range(len(source))]  # pyright: ignore[reportArgumentType]


def test_documents_by_split(write_folder: WriteFolder) -> None:
    folder = write_folder({"train.txt": b"abc", "val.txt": b"de", "test.txt": b"f", "x.txt": b"g"})
    dataset = open_data(str(folder))
    assert {split: texts(source) for split, source in dataset.splits.items()} == {
        "train": [b"abc"],
        "val": [b"de"],
        "test": [b"f"],
    }
    assert dataset.classes == ()
    assert dataset.notes[0].startswith("3 unlabelled documents, read in windows")


def test_a_folder_of_texts_is_unlabelled_documents(write_folder: WriteFolder) -> None:
    folder = write_folder({"b.txt": b"bbbb", "x/a.TXT": b"aaaa", "README.md": b"", ".c.txt": b"c"})
    dataset = open_data(str(folder), val_share=0.25)
    assert texts(dataset.splits["train"]) == [b"bbb", b"aaa"]
    assert texts(dataset.splits["val"]) == [b"b", b"a"]
    assert list(dataset.splits["val"].names) == ["b.txt@3", "x/a.TXT@3"]


def test_sub_folders_of_texts_are_classes(write_folder: WriteFolder) -> None:
    files = {f"{name}/{i}.txt": f"{name}{i}".encode() for name in ("spam", "ham") for i in range(2)}
    dataset = open_data(str(write_folder(files)))
    assert dataset.classes == ("ham", "spam")
    for source in dataset.splits.values():
        assert source.labels is not None
        assert [dataset.classes[i] for i in source.labels] == [
            n.split("/")[0] for n in source.names
        ]
        assert texts(source) == [files[name] for name in source.names]
    (Path(str(dataset.address)) / "ham/0.txt").write_bytes(b"")
    (Path(str(dataset.address)) / "ham/1.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"ham/\d\.txt: the text is empty"):
        texts(dataset.splits["train"])


def test_split_folders_of_classes(write_folder: WriteFolder) -> None:
    files = {f"{split}/{name}/0.txt": b"x" for split in ("train", "val") for name in ("a", "b")}
    folder = write_folder(files)
    dataset = open_data(str(folder))
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 2,
        "val": 2,
    }
    write_folder({"val/c/0.txt": b"x"})
    with pytest.raises(
        DataError, match="val/c: class 'c' is not among the 2 training classes a, b"
    ):
        open_data(str(folder))


def test_split_folders_of_documents(write_folder: WriteFolder) -> None:
    folder = write_folder({"train/a.txt": b"a", "val/b.txt": b"b"})
    assert texts(open_data(str(folder)).splits["val"]) == [b"b"]
    (folder / "test").mkdir()
    with pytest.raises(DataError, match=r"test: no texts; add files that end in \.txt, or remove"):
        open_data(str(folder))


@pytest.mark.parametrize("other", ["x/a.png", "x/a.wav", "a.MP4"])
def test_texts_beside_media_are_notes(write_folder: WriteFolder, other: str) -> None:
    folder = write_folder({"notes.txt": b"abcd"})
    assert not holds_media(folder)
    write_folder({other: b""})
    assert holds_media(folder)


@pytest.mark.parametrize("other", ["a.npz", "x/a.csv", "x/a.jsonl", "a.tar"])
def test_texts_beside_tables_are_notes(write_folder: WriteFolder, other: str) -> None:
    folder = write_folder({"notes.txt": b"abcd", "README.md": b"", "x/LICENSE": b""})
    assert holds_texts(folder)
    write_folder({other: b""})
    assert not holds_texts(folder)


def test_empty_documents_are_refused(write_folder: WriteFolder) -> None:
    with pytest.raises(
        DataError, match=r"b\.txt: the file is empty \(0 bytes\); fill or remove it"
    ):
        open_data(str(write_folder({"a.txt": b"a", "b.txt": b""})))


def test_texts_have_no_columns_to_choose(write_folder: WriteFolder) -> None:
    folder = write_folder({"a/0.txt": b"a", "b/0.txt": b"b"})
    with pytest.raises(ConfigError, match=r"'topic' is asked for, but .* it has none to choose"):
        open_data(str(folder), labels=("topic",))


def test_links_to_folders_are_followed_once(write_folder: WriteFolder) -> None:
    folder = write_folder({"a/0.txt": b"", ".git/x.txt": b"", "__MACOSX/y.txt": b""})
    (folder / "a/loop").symlink_to(folder)
    assert list(walk_files(folder)) == [folder / "a/0.txt"]
