"""Kinds of names: of files, classes, tars' members, and what stands around data."""

import io
import os
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
from tests.fuzz.bench import Bench, kind
from tests.fuzz.signals import encode, pixels, write_photos

import perceivers as pv

ODD = (b"\xff\xfe", b"caf\xe9", b"\x80", b"a\xc3", b"\xed\xa0\x80")
JUNK = (
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "__MACOSX",
    ".ipynb_checkpoints",
    ".DS_Store",
)


@kind
def class_name_that_is_no_text(bench: Bench) -> None:
    """A class folder whose name is not UTF-8 is refused before the first step."""
    root = write_photos(bench)
    odd = os.fsencode(root) + b"/" + bench.pick(*ODD) + b"x" * bench.whole(0, 3)
    (root / "dogs").rename(os.fsdecode(odd))
    arguments = bench.pick(
        ("data", "check", root),
        ("train", "--model", "hip_nano", "--data", root, "--out", "run", "--limit", "1"),
    )
    bench.refuse(*arguments, says=(r"UTF-8",))
    assert not Path("run").exists()


@kind
def file_name_that_is_no_text(bench: Bench) -> None:
    """A sample whose file name is not UTF-8 is answered under an escaped name."""
    root = bench.folder / "new"
    root.mkdir()
    odd = bench.pick(*ODD)
    image = bench.rng.integers(0, 256, (8, 8), dtype=np.uint8)
    Path(os.fsdecode(os.fsencode(root) + b"/" + odd + b".png")).write_bytes(encode(image, "PNG"))
    run = bench.runs / "finished" / "classify_hip" / "model"
    outcome = bench.call("predict", run, root, "--out", "answers.csv")
    assert outcome.code == 0, outcome
    lines = Path("answers.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert "\\x" in lines[1]


@kind
def one_name_in_two_spellings(bench: Bench) -> None:
    """Composed and decomposed spellings of a class name are one class."""
    root = bench.folder / "photos"
    name = bench.pick("caf\u00e9", "\u00fcber", "\u00c5s", "ma\u00f1ana")
    for form in ("NFC", "NFD"):
        folder = root / bench.pick("train") / unicodedata.normalize(form, name)
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{form}{number}.png").write_bytes(encode(pixels(bench), "PNG"))
    other = root / "train" / "other"
    other.mkdir()
    for number in range(6):
        (other / f"{number}.png").write_bytes(encode(pixels(bench), "PNG"))
    assert sorted(pv.open_data(str(root)).classes) == sorted(
        [unicodedata.normalize("NFC", name), "other"]
    )


@kind
def junk_beside_samples(bench: Bench) -> None:
    """Folders and files that systems leave on disks are passed over."""
    root = write_photos(bench)
    before = pv.open_data(str(root))
    for _ in range(bench.whole(1, 4)):
        place = bench.pick(root, root / "cats")
        name = bench.pick(*JUNK)
        (place / name).mkdir(exist_ok=True)
        (place / name / "0.png").write_bytes(encode(pixels(bench), "PNG"))
        (place / f"._{bench.whole(0, 6)}.png").write_bytes(bench.noise(20))
        (place / bench.pick("Thumbs.db", "desktop.ini")).write_bytes(bench.noise(20))
    after = pv.open_data(str(root))
    assert after.classes == before.classes
    sizes = {name: len(split) for name, split in before.splits.items()}
    assert {name: len(split) for name, split in after.splits.items()} == sizes


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """Write a tar of the members in their order."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def members(bench: Bench, keys: list[str]) -> dict[str, bytes]:
    """Return an image and a class for each key."""
    made = {}
    for number, key in enumerate(keys):
        made[f"{key}.png"] = encode(pixels(bench), "PNG")
        made[f"{key}.cls"] = str(number % 2).encode()
    return made


@kind
def tar_keys_with_dots(bench: Bench) -> None:
    """Keys may hold dots: as many samples are found as were written."""
    parts = ("v1.2", "a.b", "img.0001", "x.y.z", "2024.01.05", "scan.jpg")
    keys = [f"{bench.pick(*parts)}_{number}" for number in range(12)]
    write_tar(bench.folder / "x.tar", members(bench, keys))
    splits = pv.open_data(str(bench.folder / "x.tar")).splits
    assert sum(len(split) for split in splits.values()) == len(keys)


@kind
def tar_cut(bench: Bench) -> None:
    """A tar that ends inside of a member is refused by name."""
    path = bench.folder / "x.tar"
    write_tar(path, members(bench, [f"{number:03}" for number in range(12)]))
    with tarfile.open(path) as tar:
        member = bench.pick(*(each for each in tar if each.name.endswith(".png")))
    path.write_bytes(path.read_bytes()[: member.offset_data + bench.whole(1, member.size)])
    bench.refuse("data", "check", path, says=(r"x\.tar",))


@kind
def address_of_too_many_tars(bench: Bench) -> None:
    """A range of billions of tars is refused before they are listed."""
    digits = bench.whole(8, 18)
    address = f"{bench.folder}/x-{{{'0' * digits}..{'9' * digits}}}.tar"
    bench.refuse("data", "check", address, says=(r"x-\{0+", "addresses"))
