"""Names that are not UTF-8, and names in two spellings: one policy when data are opened."""

import io
import json
import os
import tarfile
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import open_data
from perceivers.data.dataset import Dataset
from perceivers.data.files import find_files, pair_files
from perceivers.data.joined import align_classes
from perceivers.errors import ConfigError, DataError

Encode = Callable[..., bytes]
COMPOSED = ("caf\u00e9", "\u00fcber")
DECOMPOSED = tuple(unicodedata.normalize("NFD", name) for name in COMPOSED)
ODD = os.fsdecode(b"caf\xe9")


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def by_name(data: Dataset, split: str) -> dict[str, str]:
    """The class of every sample of a split, by its composed name."""
    source = data.splits[split]
    assert source.labels is not None
    return {
        unicodedata.normalize("NFC", name): data.classes[label]
        for name, label in zip(source.names, source.labels, strict=True)
    }


@pytest.fixture(params=["png", "txt"])
def content(request: pytest.FixtureRequest, encode: Encode) -> tuple[str, bytes]:
    """An ending, and the content of such a file."""
    return request.param, encode(0) if request.param == "png" else b"words"


def test_a_class_folder_that_is_no_utf_8_is_refused(
    content: tuple[str, bytes], tmp_path: Path
) -> None:
    ending, data = content
    write(tmp_path, {f"{name}/{i}.{ending}": data for name in (ODD, "b") for i in range(2)})
    with pytest.raises(
        DataError, match=r"class folder is 'caf\\\\xe9'.*in Windows-1252 it is 'caf"
    ):
        open_data(str(tmp_path))


def test_a_file_name_that_is_no_utf_8_is_escaped(
    content: tuple[str, bytes], tmp_path: Path
) -> None:
    ending, data = content
    write(tmp_path, {f"{name}/{ODD}{i}.{ending}": data for name in "ab" for i in range(2)})
    opened = open_data(str(tmp_path), val_share=0.5)
    names = [name for source in opened.splits.values() for name in source.names]
    assert sorted(names) == [f"{n}/caf\\xe9{i}.{ending}" for n in "ab" for i in range(2)]
    for source in opened.splits.values():
        assert source.read(0)


def test_file_names_that_are_no_utf_8_are_counted(tmp_path: Path, encode: Encode) -> None:
    write(tmp_path, {f"{ODD}.png": encode(0), "b.png": encode(1)})
    (note,) = [n for n in open_data(str(tmp_path), val_share=0.5).notes if "UTF-8" in n]
    assert note.startswith("1 file names are not UTF-8, such as ")


def test_the_split_of_odd_names_is_that_of_their_bytes(tmp_path: Path, encode: Encode) -> None:
    # As before names were escaped, so that a run goes on with its own validation samples.
    names = [os.fsdecode(bytes([byte])) for byte in range(0x80, 0xA0)]
    write(tmp_path, {f"{name}.png": encode(0) for name in names})
    val = open_data(str(tmp_path), val_share=0.25).splits["val"].names
    from hashlib import sha256

    hashed = sorted(names, key=lambda n: sha256(os.fsencode(f"{n}.png")).digest())
    assert sorted(val) == sorted(f"\\x{ord(n) - 0xDC00:02x}.png" for n in hashed[:8])


def test_spellings_of_a_class_folder_are_one_class(
    content: tuple[str, bytes], tmp_path: Path
) -> None:
    ending, data = content
    files = {f"train/{name}/{i}.{ending}": data for name in COMPOSED for i in range(2)}
    files |= {f"train/{DECOMPOSED[0]}/9.{ending}": data}
    files |= {f"val/{name}/{i}.{ending}": data for name in DECOMPOSED for i in range(2)}
    opened = open_data(str(write(tmp_path, files)))
    assert sorted(opened.classes) == sorted(COMPOSED)
    assert len(opened.splits["train"].names) == 5
    for split in ("train", "val"):
        assert all(name.split("/")[1] == word for name, word in by_name(opened, split).items())


def test_a_macs_folder_has_the_split_of_a_composed_one(tmp_path: Path, encode: Encode) -> None:
    found = []
    for root, names in (("linux", COMPOSED), ("mac", DECOMPOSED)):
        files = {f"{n}/{n}{i}.png": encode(i) for n in names for i in range(10)}
        opened = open_data(str(write(tmp_path / root, files)), val_share=0.2)
        found.append(by_name(opened, "val"))
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_kinds_are_paired_by_name_in_any_spelling(tmp_path: Path, encode: Encode) -> None:
    root = write(
        tmp_path,
        {
            **{f"train/images/{name}.png": encode(0) for name in COMPOSED},
            **{f"train/masks/{name}.png": encode(0)[:0] for name in DECOMPOSED},
        },
    )
    from perceivers.data.folders import _read_split

    pairs = _read_split(root, root / "train/images", root / "train/masks")
    assert len(pairs) == 2
    files = [tmp_path / f"{COMPOSED[0]}.png", tmp_path / f"{DECOMPOSED[0]}.wav"]
    assert len(pair_files(files, ["image", "audio"])) == 1


def test_a_manifest_finds_files_in_another_spelling(tmp_path: Path, encode: Encode) -> None:
    rows = "".join(f"{COMPOSED[0]}/{COMPOSED[1]}{i}.png\n" for i in range(4))
    files = {f"{DECOMPOSED[0]}/{DECOMPOSED[1]}{i}.png": encode(i) for i in range(4)}
    write(tmp_path, {**files, "x.csv": f"image\n{rows}".encode()})
    assert open_data(str(tmp_path / "x.csv")).splits["train"].read(0)
    assert find_files([str(tmp_path / COMPOSED[0])]) == find_files([str(tmp_path / DECOMPOSED[0])])


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_labels_in_two_spellings_are_one_class(ending: str, tmp_path: Path) -> None:
    labels = [*COMPOSED, *DECOMPOSED]
    path = tmp_path / f"x.{ending}"
    if ending == "csv":
        text = "text,label\n" + "".join(f"a,{label}\n" for label in labels)
    else:
        text = "".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels)
    path.write_text(text, encoding="utf-8")
    opened = open_data(str(path), val_share=0.5)
    assert sorted(opened.classes) == sorted(COMPOSED)


def test_columns_are_chosen_in_any_spelling(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"text,{DECOMPOSED[0]}\na,x\nb,y\nc,x\nd,y\n", encoding="utf-8")
    assert open_data(str(path), labels=[COMPOSED[0]]).classes == ("x", "y")
    with pytest.raises(ConfigError, match="label column 'cafe'"):
        open_data(str(path), labels=["cafe"])


def test_labels_in_tars_are_one_class_in_any_spelling(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, label in enumerate([*COMPOSED, *DECOMPOSED]):
            for name, data in (
                (f"{i}.txt", b"a"),
                (f"{i}.json", json.dumps({"k": label}).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    opened = open_data(str(tmp_path / "x.tar"), labels=["k"], val_share=0.5)
    assert sorted(opened.classes) == sorted(COMPOSED)


CP1252 = "text,label\na,x\nb,caf\u00e9\nc,x\n".encode("cp1252")


UTF16 = CP1252.decode("cp1252").encode("utf-16")
HEADER = "text,caf\u00e9\na,b\n".encode("cp1252")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", CP1252, r"line 3: label is 'caf\\\\xe9', .*in Windows-1252 it is 'caf\u00e9"),
        ("x.csv", HEADER, r"line 1: the name of a column is 'caf"),
        ("x.csv", UTF16, r"x\.csv: is in UTF-16; save it as UTF-8"),
        ("x.csv", b'text,label\na,"b\nc"\n', r"line 3: label is 'b\\nc', which contains '\\n'"),
        ("x.jsonl", b'{"text": "a", "label": "\\ud800"}\n', r"line 1: label is '\\\\ud800',"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', "half of a surrogate"),
        ("x.jsonl", b'{"text": "a", "\\ud800": 1}\n', r"a key is '\\\\ud800'"),
        ("x.jsonl", b'{"text": "a", "label": "a\\u0000b"}\n', r"contains '\\x00'"),
        ("x.jsonl", b'{"text": "a", "label": "a", "label": "b"}\n', "has the key 'label' twice"),
        ("x.jsonl", b'{"text": "a"}\n'.decode().encode("utf-16"), "is in UTF-16"),
        ("x.jsonl", b'{"text": "a", "label": %s}\n' % (b"9" * 5000), "an integer has 5000 digits"),
    ],
)  # fmt: skip
def test_names_that_no_record_could_hold_are_refused(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_data(str(tmp_path / name), labels=["label"] if b"label" in data else [])


@pytest.mark.parametrize("digits", [20, 5000])
def test_a_label_of_too_many_digits_is_a_name(digits: int, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"text,label\na,{'9' * digits}\nb,1\n" * 2)
    text = (tmp_path / "x.csv").read_text().replace("text,label\n", "")
    (tmp_path / "x.csv").write_text(f"text,label\n{text}")
    assert open_data(str(tmp_path / "x.csv"), val_share=0.5).classes == ("1", "9" * digits)


def test_a_table_with_a_mark_is_read_as_one_without(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbflabel,text\nx,a\ny,b\nx,c\ny,d\n")
    assert open_data(str(tmp_path / "x.csv")).classes == ("x", "y")


def test_classes_of_an_npz_file_are_checked(tmp_path: Path) -> None:
    arrays = {"audio": np.zeros((4, 1, 8), np.float32), "label": np.array([0, 1, 0, 1])}
    np.savez(tmp_path / "a.npz", **arrays, classes=np.array(DECOMPOSED))
    assert open_data(str(tmp_path / "a.npz")).classes == COMPOSED
    np.savez(tmp_path / "b.npz", **arrays, classes=np.array(["a", "\ud800"]))
    with pytest.raises(DataError, match=r"a class is '\\\\ud800'"):
        open_data(str(tmp_path / "b.npz"))
    np.savez(tmp_path / "c.npz", **arrays, classes=np.array([COMPOSED[0], DECOMPOSED[0]]))
    with pytest.raises(DataError, match="same name, so give them the same"):
        open_data(str(tmp_path / "c.npz"))


def test_classes_txt_is_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\na,0\nb,1\nc,0\nd,1\n")
    (tmp_path / "classes.txt").write_bytes(b"a\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"classes\.txt: line 2 is not UTF-8 \(byte 0xe9"):
        open_data(str(tmp_path / "x.csv"))


def test_classes_in_the_order_of_a_macs_folder_are_those_of_a_composed_one(
    tmp_path: Path, encode: Encode
) -> None:
    # Decomposed, the accent comes after its letter, so that the folder is sorted before "f".
    words = ("\u00e9toile", "fleur")
    opened = {}
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, word) for word in words]
        files = {f"{s}/{n}/{n}.png": encode(0) for n in names for s in ("train", "val")}
        opened[form] = open_data(str(write(tmp_path / form, files)))
    assert opened["NFC"].classes == opened["NFD"].classes[::-1]
    aligned = align_classes(opened["NFD"], opened["NFC"].classes, {})
    assert aligned.classes == opened["NFC"].classes
    for split in ("train", "val"):
        assert by_name(aligned, split) == by_name(opened["NFC"], split)
