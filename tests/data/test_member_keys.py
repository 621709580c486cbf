"""Where the keys of a tar's members end: at the first dot, unless what follows says otherwise."""

from collections.abc import Callable
from pathlib import Path

import pytest

from perceivers.data.address import open_data
from perceivers.data.media_kinds import place_members
from perceivers.data.shards import read_shards

Encode = Callable[..., bytes]
WriteTar = Callable[..., Path]


def place(*names: str) -> list[str]:
    return [" ".join(found) for found in place_members(names)[0]]


@pytest.mark.parametrize(
    ("names", "expected", "lost"),
    [
        # As ever.
        (["a.jpg", "a.cls"], ["a jpg", "a cls"], []),
        (["d.1/a.JPG", "d.1/a.seg.png"], ["d.1/a jpg", "d.1/a seg.png"], []),
        (["a.jpg", "a.jpg.json"], ["a jpg", "a jpg.json"], ["a.jpg.json"]),
        (["a.pdf", "a.b.pdf", "README"], ["a pdf", "a b.pdf", "README "], []),
        # Keys with dots in them.
        (["i.v1.2.jpg"], ["i.v1.2 jpg"], []),
        (["i.v1.jpg", "i.v2.jpg"], ["i.v1 jpg", "i.v2 jpg"], []),
        (["a.b.jpg", "a.b.cls", "a.c.jpg"], ["a.b jpg", "a.b cls", "a.c jpg"], []),
        (["a.b.jpg", "a.b.seg.png"], ["a.b jpg", "a.b seg.png"], []),
        (["f/A.B.MP4", "f/A.B.json"], ["f/A.B mp4", "f/A.B json"], []),
        (
            ["a.jpg", "a.cls", "a.v2.jpg", "a.v2.cls"],
            ["a jpg", "a cls", "a.v2 jpg", "a.v2 cls"],
            [],
        ),
        # Endings that say more than they must.
        (["0.image.jpg", "0.cls"], ["0 jpg", "0 cls"], []),
        (["0.image.jpg", "0.txt"], ["0 jpg", "0 txt"], []),
        (["0.left.jpg", "0.cls"], ["0 jpg", "0 cls"], []),
        (["0.image.jpg", "0.label.cls"], ["0 jpg", "0 cls"], []),
        (["0.photo.png", "0.depth.png"], ["0 png", "0 depth.png"], ["0.depth.png"]),
        (["0.rgb.jpg", "0.mask.png", "0.cls"], ["0 jpg", "0 mask.png", "0 cls"], []),
        (["0.jpg", "0.cls", "0.depth.png"], ["0 jpg", "0 cls", "0 depth.png"], ["0.depth.png"]),
        (
            ["0.left.jpg", "0.right.jpg", "0.cls"],
            ["0 left.jpg", "0 right.jpg", "0 cls"],
            ["0.left.jpg", "0.right.jpg"],
        ),
    ],
)
def test_members_are_placed(names: list[str], expected: list[str], lost: list[str]) -> None:
    assert place(*names) == expected
    assert place_members(names)[1] == lost
    # Order plays no part.
    assert place(*names[::-1]) == expected[::-1]


def test_keys_with_dots_are_samples_and_what_is_lost_is_named(
    tmp_path: Path, write_tar: WriteTar, encode: Encode
) -> None:
    members = {f"img.v1.{n}.jpg": encode(n, kind="JPEG") for n in range(20)}
    labels = {f"img.v1.{n}.cls": b"%d" % (n % 2) for n in range(20)}
    data = open_data(str(write_tar(tmp_path / "x.tar", members | labels)))
    assert sum(len(split) for split in data.splits.values()) == 20
    assert len(data.classes) == 2
    source, _, notes = read_shards([tmp_path / "x.tar"], ())
    assert source.names[11] == "x.tar/img.v1.11"
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1] * 10
    assert notes == []
    beside = {"a.png": encode(0), "a.cls": b"0", "a.depth.png": encode(1)}
    source, _, notes = read_shards([write_tar(tmp_path / "y.tar", beside)], ())
    assert source.names == ["y.tar/a"]
    assert len(notes) == 1
    assert "1 files are not read" in notes[0]
    assert notes[0].endswith("another sample has the same name: a.depth.png")
