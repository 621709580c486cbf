"""Which files of a tar's samples are read."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from perceivers.data.media_kinds import choose_kinds, choose_media
from perceivers.errors import DataError


@dataclass
class Files:
    """The files of one key."""

    parts: dict[str, Any]
    media: dict[str, Any] = field(default_factory=dict)
    key: str = "a"

    def __post_init__(self) -> None:
        self.media = {**choose_media(self.parts), **self.media}


def test_of_each_kind_the_first_is_read() -> None:
    assert choose_media({"png": 1, "jpg": 2, "cls": 3, "txt": 4}) == {"image": 2, "bytes": 4}
    assert choose_media({"cls": 1}) == {}


def test_the_kinds_of_most_samples_are_read_and_the_rest_is_noted() -> None:
    sounds = [Files({"wav": 1, "txt": 1}) for _ in range(3)]
    kinds, notes = choose_kinds([*sounds, Files({"jpg": 1, "wav": 1, "txt": 1})], "x")
    assert kinds == ("audio", "bytes")
    assert notes == ["x: only 1 of 4 samples have images, so these are ignored"]


def test_masks_without_their_pictures_are_left_out() -> None:
    sounds = [Files({"wav": 1}) for _ in range(3)]
    masked = Files({"jpg": 1, "wav": 1}, {"mask": 2})
    kinds, notes = choose_kinds([*sounds, masked], "x")
    assert kinds == ("audio",)
    assert "x: only 1 of 4 samples have masks, so these are ignored" in notes
    kinds, notes = choose_kinds([masked, masked], "x")
    assert kinds == ("image", "audio", "mask")
    assert notes == []


def test_nothing_known_is_an_error() -> None:
    with pytest.raises(DataError, match=r"extensions found .*: 'pdf', 'cls'; supported"):
        choose_kinds([Files({"pdf": 1, "cls": 2})], "x")


def test_many_endings_are_not_all_listed() -> None:
    found = [Files({f"{number}.pdf": 1}) for number in range(48)]
    with pytest.raises(DataError, match=r"'0\.pdf', .*'4\.pdf' and 43 more; supported: \.jpg"):
        choose_kinds(found, "x")
