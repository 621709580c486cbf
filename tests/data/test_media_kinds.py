"""Which columns are modalities, and what these are called."""

import pytest

from perceivers.data.media_kinds import find_kinds, kind_of_name, name_modalities


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/b.JPG", "image"),
        ("b.flac", "audio"),
        ("http://x.org/v.mp4?token=a.b", "video"),
        ("c:\\clouds\\x.ply", "points"),
        ("story.txt", "bytes"),
        (".png", None),
        ("b.xlsx", None),
        ("png", None),
    ],
)
def test_the_ending_says_the_kind(path: str, kind: str | None) -> None:
    assert kind_of_name(path) == kind


def test_columns_by_name_and_by_cells() -> None:
    columns = {
        "Image": ["1", "two"],
        "audio": ["3", 4.5],
        "video": ["", None],
        "text": ["hello", ""],
        "left": ["a.png", "", "b.jpg"],
        "mixed": ["a.png", "b.wav"],
        "almost": ["a.png", "b"],
        "label": ["x", "y"],
        "number": [1, 2],
    }
    kinds, notes = find_kinds(columns)
    assert kinds == {"Image": "image", "text": "bytes", "left": "image"}
    assert notes == [
        "column 'video' is empty in every row, so it is left out",
        "column 'mixed' is not a modality: its cells look like files (audio, image) of "
        "several kinds",
        "column 'almost' is not a modality: its cells look like files (image), but 'b' does not",
    ]


def test_the_only_column_of_a_kind_is_called_so() -> None:
    assert name_modalities({"photo": "image", "text": "bytes"}) == {
        "photo": "image",
        "text": "bytes",
    }
    assert name_modalities({"left": "image", "the right": "image", "sound": "audio"}) == {
        "left": "left",
        "the right": "the_right",
        "sound": "audio",
    }
    assert name_modalities({"image": "image", "depth": "image"}) == {
        "image": "image",
        "depth": "depth",
    }
