"""Whatever bytes stand in a checkpoint: the values that were saved, or a refusal in plain words."""

import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from perceivers.checkpoints.pickles import check_dense, read_pickled
from perceivers.checkpoints.torch_files import read_tensor_file
from perceivers.errors import CheckpointError, plain_reason

VALUES = {"w": torch.arange(40.0), "n": {"step": 3, "names": ["a", "b"]}}


def saved(value: Any = VALUES, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def same(found: Any) -> bool:
    return isinstance(found, dict) and found["n"] == VALUES["n"] and found["w"].equal(VALUES["w"])


def refusal(path: Path, *, intact: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pickled(path, intact=intact)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert said.isprintable()
    assert not any(word in said for word in ("weights_only", "option", "trust", "safe_globals"))
    assert len(said) < len(str(path)) + 500
    return said


def damaged(seed: int) -> bytes:
    """A whole file with bits turned, bytes lost, or others put in their place."""
    draw = random.Random(seed)
    data = bytearray(saved())
    way = seed % 4
    if way == 0:
        return bytes(data[: draw.randrange(len(data))])
    if way == 1:
        for _ in range(draw.choice((1, 1, 1, 8, 64))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(data)
    if way == 2:
        place, size = draw.randrange(len(data)), draw.choice((1, 16, 300))
        data[place : place + size] = draw.randbytes(draw.choice((size, size, 0, 2 * size)))
        return bytes(data)
    head = draw.choice((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"", b"ustar", saved()[:60]))
    return head + draw.randbytes(draw.randrange(600))


# The rest of a suite's time is for others; raise this to search for longer.
SEEDS = int(os.environ.get("PERCEIVERS_FUZZ", "160"))


@pytest.mark.parametrize("first", range(0, SEEDS, 40))
def test_damaged_files_are_refused_or_hold_what_was_saved(tmp_path: Path, first: int) -> None:
    path = tmp_path / "x.pt"
    refused = 0
    for seed in range(first, first + 40):
        path.write_bytes(damaged(seed))
        try:
            found = read_pickled(path, intact=True)
        except CheckpointError:
            refusal(path, intact=True)
            refused += 1
        else:
            # A bit of padding may have turned; every value has its checksum.
            assert same(found), seed
        try:
            read_pickled(path)
        except CheckpointError:
            refusal(path, intact=False)
    assert refused > 25


def test_a_whole_file_is_read_and_keeps_its_values_when_the_file_is_written_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(saved())
    found = read_pickled(path, intact=True)
    assert same(found)
    path.write_bytes(b"")
    assert same(found)
    path.write_bytes(saved(_use_new_zipfile_serialization=False))
    assert same(read_pickled(path))
    assert "start like a file by torch.save" in refusal(path, intact=True)


def test_a_turned_bit_in_a_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    data = bytearray(saved())
    place = data.find(struct.pack("<f", 17.0))
    data[place] ^= 1
    path.write_bytes(bytes(data))
    assert "checksum" in refusal(path, intact=True)


def edited(old: bytes, new: bytes, **others: bytes) -> bytes:
    """The same archive with other bytes in its pickle, and right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.arange(8.0)}))) as source:
        kind = zipfile.ZIP_DEFLATED if others.pop("deflate", b"") else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", kind) as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith("data.pkl"):
                    assert old in content
                    content = content.replace(old, new)
                target.writestr(entry.filename, content)
    return file.getvalue()


EIGHT, HUGE = b"K\x08", b"J\xff\xff\xff\x7f"
VAST = b"\x8a\x08" + struct.pack("<q", 2**60)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        edited(EIGHT, HUGE),  # storage and shape
        edited(EIGHT, VAST),
        edited(EIGHT + b"\x85", HUGE + b"\x85"),  # the shape alone
        edited(EIGHT, b"J\xff\xff\xff\xff"),  # less than nothing
        edited(EIGHT, EIGHT, deflate=b"yes"),
        b"PK\x03\x04",
        b"",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        saved(VALUES)[:-40],
    ],
)
def test_sizes_that_lie_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    refusal(path, intact=False)
    refusal(path, intact=True)


@pytest.mark.parametrize(
    "content",
    [edited(EIGHT + b"tq", HUGE + b"tq"), edited(b"FloatStorage", b"DoubleStorage")],
    ids=["numel", "dtype"],
)
def test_a_storage_that_claims_more_than_it_has_ends_where_the_file_ends(
    tmp_path: Path, content: bytes
) -> None:
    """Torch alone would read beyond the memory that it has."""
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    held = read_pickled(path)["w"].untyped_storage().nbytes()
    assert held < len(content)


class Canary:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_by_name_and_not_run(tmp_path: Path, legacy: bool) -> None:
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    path.write_bytes(
        saved({"w": Canary(canary)}, _use_new_zipfile_serialization=not legacy, pickle_protocol=2)
    )
    assert "refers to posix.mkdir" in refusal(path, intact=False)
    path.write_bytes(pickle.dumps(Canary(canary), protocol=2))
    refusal(path, intact=False)
    assert not canary.exists()


def test_pipes_folders_and_nothing_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "nothing"):
        refusal(tmp_path / name, intact=False)
    refusal(Path("/dev/zero"), intact=True)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(1).expand(10**12), "fewer values"),
        (torch.zeros(3, 3).to_sparse(), "not an ordinary tensor"),
        (torch.zeros(10**9, device="meta"), "not an ordinary tensor"),
        (3, "is a int, not a tensor"),
    ],
)
def test_only_tensors_with_their_values_are_weights(
    tmp_path: Path, tensor: Any, words: str
) -> None:
    with pytest.raises(CheckpointError, match=f"x.pt: 'w' {words}|{words}"):
        check_dense("x.pt", {"w": tensor})
    torch.save({"w": tensor}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        read_tensor_file(tmp_path / "x.pt")
    torch.save({"w": tensor}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        read_tensor_file(tmp_path / "x.pt")
    check_dense("x.pt", {"w": torch.zeros(3), "b": torch.nn.Parameter(torch.zeros(2))})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Weights only load failed. In future, set weights_only=False to ...", "ValueError"),
        ("a \x1b[1mbold\x1b[0m word\x07 and\ttab\nsecond line", "a  bold  word  and tab"),
        ("\udc80 half", "\\udc80 half"),
        ("", "ValueError"),
        ("x" * 1000, "x" * 300 + "..."),
        (
            "Weights only load failed. two options, \x1b[1mdo those\x1b[0m\n\tWeightsUnpickler "
            "error: Unsupported global: GLOBAL os.system was not allowed. Please use add_safe",
            "it refers to os.system, which no weights need",
        ),
        (
            "Weights only load failed. Re-running ... WeightsUnpickler error: \n\nTrying to load "
            "unsupported GLOBAL posix.system whose module posix is blocked.",
            "it refers to posix.system, which no weights need",
        ),
    ],
)
def test_reasons_of_libraries_are_one_printable_line_without_advice(text: str, reason: str) -> None:
    assert plain_reason(ValueError(text)) == reason
