"""What systems leave between data is passed over, wherever data are looked for."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from perceivers.data.address import open_data
from perceivers.data.files import find_files
from perceivers.data.system_files import is_system_file, is_system_folder, is_system_member
from perceivers.errors import DataError

Encode = Callable[..., bytes]
WriteFolder = Callable[[Mapping[str, bytes]], Path]
WriteTar = Callable[..., Path]
FOLDERS = [
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "__MACOSX",
    ".ipynb_checkpoints",
    "#recycle",
    ".Trashes",
]


def test_names_of_systems_are_told_from_those_of_data() -> None:
    assert all(map(is_system_folder, FOLDERS))
    assert all(map(is_system_file, ("Thumbs.db", "desktop.ini", "._a.jpg", ".DS_Store")))
    data = ("recycle", "lost and found", "eaDir", "$", "a", "_a")
    assert not any(map(is_system_folder, data))
    assert not any(map(is_system_file, (*data, "__a.jpg", "a.ini")))
    assert is_system_member("a/@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg")
    assert is_system_member("__MACOSX/a/._b.jpg")
    assert not any(map(is_system_member, ("./a.jpg", ".b/a.jpg", "a/b.jpg", "../a.jpg")))


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_systems_are_no_classes_and_hold_no_samples(
    write_folder: WriteFolder, encode: Encode, name: str
) -> None:
    files = {f"{c}/{n}.png": encode(n) for c in ("cat", "dog") for n in range(10)}
    plain = open_data(str(write_folder(files)))
    strange = {f"{name}/1.png": encode(1), f"cat/{name}/2.png/3.png": encode(2)}
    loose = {"cat/Thumbs.db": b"x", "desktop.ini": b"x", "cat/._1.png": b"x"}
    folder = write_folder(strange | loose)
    found = open_data(str(folder))
    assert found.classes == plain.classes == ("cat", "dog")
    assert [list(s.names) for s in found.splits.values()] == [
        list(s.names) for s in plain.splits.values()
    ]
    assert found.notes == plain.notes
    assert len(find_files([str(folder)])) == 20
    write_folder({"cat/new.png": encode(3)})
    assert len(find_files([str(folder)])) == 21


@pytest.mark.parametrize("name", FOLDERS)
def test_texts_and_masks_of_systems_are_passed_over(
    write_folder: WriteFolder, encode: Encode, name: str
) -> None:
    texts = {f"texts/{c}/{n}.txt": b"some words" for c in "ab" for n in range(10)}
    folder = write_folder({**texts, f"texts/{name}/1.txt": b"x", f"texts/a/{name}/1.txt": b"x"})
    found = open_data(str(folder / "texts"))
    assert found.classes == ("a", "b")
    assert sum(len(split) for split in found.splits.values()) == 20
    pairs = {
        f"masks/{kind}/{n}.png": encode(n, mode="L")
        for kind in ("images", "masks")
        for n in range(4)
    }
    write_folder({**pairs, f"masks/images/{name}/1.png": encode(0, mode="L")})
    masked = open_data(str(folder / "masks"))
    assert sum(len(split) for split in masked.splits.values()) == 4


@pytest.mark.parametrize("name", FOLDERS)
def test_tars_of_whole_disks_hold_only_what_was_put_there(
    tmp_path: Path, write_tar: WriteTar, encode: Encode, name: str
) -> None:
    members = {f"a/{n}.png": encode(n) for n in range(20)}
    left = {f"a/{name}/1.png/thumb.png": encode(1), f"{name}/2.png": encode(2), "a/Thumbs.db": b""}
    path = write_tar(tmp_path / "x.tar", {**members, **left, "a/._3.png": b"x"})
    found = open_data(str(path))
    assert sum(len(split) for split in found.splits.values()) == 20
    assert not any("ignored" in note for note in found.notes)


def test_a_folder_of_hidden_tars_alone_is_not_one_of_tars(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    write_tar(tmp_path / "._train.tar", {"a.png": encode()})
    with pytest.raises(DataError, match="no images, audio, videos or point clouds"):
        open_data(str(tmp_path))
