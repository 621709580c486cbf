"""Names from outside: escaped, refused, or found under another spelling."""

import os
import unicodedata
from pathlib import Path

import pytest

from perceivers.errors import DataError
from perceivers.text_names import (
    check_class_name,
    compose,
    describe_names,
    find_spelling,
    is_writable,
    name_bytes,
    show_name,
)

COMPOSED = "caf\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
ODD = os.fsdecode(b"caf\xe9")


def test_the_spellings_differ() -> None:
    assert COMPOSED != DECOMPOSED
    assert compose(DECOMPOSED) == compose(COMPOSED) == COMPOSED


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (COMPOSED, COMPOSED),
        (ODD, r"caf\xe9"),
        (os.fsdecode(b"\xff\xfe"), r"\xff\xfe"),
        ("a\ud800", r"a\ud800"),
    ],
)
def test_what_cannot_be_written_is_escaped(name: str, shown: str) -> None:
    assert show_name(name) == shown
    assert is_writable(show_name(name))
    assert is_writable(name) == (name == shown)


def test_a_names_bytes_are_those_of_all_its_spellings() -> None:
    assert name_bytes(DECOMPOSED) == name_bytes(COMPOSED) == COMPOSED.encode()
    assert name_bytes(ODD) == name_bytes(show_name(ODD)) == b"caf\xe9"
    assert name_bytes("cafe") != name_bytes(COMPOSED)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (ODD, r"where is 'caf\\\\xe9', which is not UTF-8 text \(in Windows-1252 it is 'caf"),
        ("\ud800", r"where is '\\\\ud800', which is not UTF-8 text;"),
        ("a\nb", r"where is 'a\\nb', which contains '\\n'; a class name must be one line"),
        ("a\0", "control characters"),
        ("a\u2028b", "one line"),
    ],
)
def test_what_cannot_name_a_class_is_refused(name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        check_class_name(name, "where")


def test_classes_are_kept_composed() -> None:
    assert check_class_name(DECOMPOSED, "x") == COMPOSED
    assert check_class_name("\u65e5\u672c a-b_c.1", "x") == "\u65e5\u672c a-b_c.1"


def test_a_file_is_found_under_another_spelling(tmp_path: Path) -> None:
    folder = tmp_path / DECOMPOSED / COMPOSED
    folder.mkdir(parents=True)
    (folder / f"{DECOMPOSED}.png").touch()
    for first in (COMPOSED, DECOMPOSED):
        for last in (COMPOSED, DECOMPOSED):
            asked = tmp_path / first / COMPOSED / f"{last}.png"
            assert find_spelling(asked) == folder / f"{DECOMPOSED}.png"
    for none in (tmp_path / COMPOSED / "x.png", tmp_path / "b" / f"{COMPOSED}.png"):
        assert find_spelling(none) == none


def test_an_exact_spelling_goes_first(tmp_path: Path) -> None:
    (tmp_path / COMPOSED).touch()
    (tmp_path / DECOMPOSED).touch()
    for name in (COMPOSED, DECOMPOSED):
        assert find_spelling(tmp_path / name).name == name


def test_odd_names_are_counted() -> None:
    assert describe_names(["a", COMPOSED]) == ""
    assert describe_names(["a", ODD, ODD]).startswith(
        r"2 file names are not UTF-8, such as caf\xe9"
    )
