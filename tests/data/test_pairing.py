"""Files of several kinds put together by name."""

from pathlib import Path

import pytest

from perceivers.data.joined import check_pairs, kind_of, pair_paths
from perceivers.errors import DataError

KINDS: tuple[str, ...] = ("image", "audio", "points")


def test_the_path_without_its_ending_is_what_files_share() -> None:
    paths = ["d.x/1.png", "d.x/1.wav", "d.x/1.b.wav", "e/1.OFF"]
    assert [kind_of(path) for path in paths] == ["image", "audio", "audio", "points"]
    assert pair_paths(paths) == {
        "d.x/1": {"image": "d.x/1.png", "audio": "d.x/1.wav"},
        "d.x/1.b": {"audio": "d.x/1.b.wav"},
        "e/1": {"points": "e/1.OFF"},
    }
    with pytest.raises(
        DataError, match=r"a/1\.jpg: has the same name as '1\.png'; .*one file of each kind"
    ):
        pair_paths(["a/1.png", "a/1.jpg"])


def test_samples_that_lack_a_kind_are_counted_by_what_they_hold() -> None:
    whole = dict.fromkeys(KINDS, "x")
    assert check_pairs([whole, whole], KINDS, Path("d")) == ""
    samples = [whole, {"image": "x", "audio": "x"}, {"image": "x"}, {"image": "x"}]
    assert check_pairs(samples, KINDS, Path("d")) == (
        "files are paired by name, but not all samples have every kind: 1 with images and audio "
        "files and point clouds, 1 with images and audio files, 2 with images"
    )


def test_names_of_which_none_is_shared_are_a_mistake() -> None:
    samples = [{"image": "x"}, {"image": "x"}, {"audio": "x"}]
    message = (
        r"^d: contains 2 images, 1 audio files, and no two of different kinds share a name; .* "
        r"such as a/1\.png and a/1\.wav\. Rename them, or put each kind into its own folder"
    )
    with pytest.raises(DataError, match=message):
        check_pairs(samples, ("image", "audio"), Path("d"))
    # One pair is enough to say that pairing is meant.
    assert check_pairs([*samples, {"image": "x", "audio": "x"}], ("image", "audio"), Path("d"))
