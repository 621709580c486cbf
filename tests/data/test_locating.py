"""Addresses that mean the same in every folder."""

from pathlib import Path

import pytest

from perceivers.data.address import absolute_address, is_present


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some data, which is the current one."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "a b.csv").touch()
    (tmp_path / "x + y").mkdir()
    (tmp_path / "t-00.tar").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "absolute"),
    [
        ("photos", "{0}/photos"),
        ("./photos/", "{0}/photos"),
        (".", "{0}"),
        ("~/photos", "{0}/photos"),
        ("/data/photos", "/data/photos"),
        ("warps:photos", "warps:{0}/photos"),
        ("photos + a b.csv", "{0}/photos + {0}/a b.csv"),
        ("photos + digits", "{0}/photos + digits"),
        ("x + y", "{0}/x + y"),
        ("warps:x + y", "warps:{0}/x + y"),
        ("t-{00..03}.tar", "{0}/t-{{00..03}}.tar"),
        ("hf:photos", "hf:{0}/photos"),
        ("hf:photos:train[:5]", "hf:{0}/photos:train[:5]"),
        ("hf:owner/name:train", "hf:owner/name:train"),
        ("digits", "digits"),
        ("http://host/t-{00..03}.tar", "http://host/t-{{00..03}}.tar"),
        ("", ""),
    ],
)
def test_only_local_paths_are_made_absolute(here: Path, typed: str, absolute: str) -> None:
    found = absolute_address(typed)
    assert found == absolute.format(here)
    assert absolute_address(found) == found


@pytest.mark.parametrize(
    ("address", "present"),
    [
        ("photos", True),
        ("nowhere", False),
        ("photos + nowhere", False),
        ("warps:nowhere", False),
        ("t-{00..03}.tar", True),
        ("t-{01..03}.tar", False),
        ("hf:owner/name", True),
        ("hf:/no/folder", False),
        ("digits", True),
        ("http://host/x.tar", True),
        ("n" * 5000, False),
        ("~nobody-here/x", False),
    ],
)
def test_missing_files_are_noticed(address: str, present: bool) -> None:
    assert is_present(address) is present
