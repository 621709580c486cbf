"""Limits: their defaults, their variables, and what is said of what lies beyond."""

import re
from pathlib import Path

import pytest

from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.reading import LIMITS, check_limit, get_limit


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_is_set_by_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, default, _ = LIMITS[name]
    assert get_limit(name) == default > 7
    check_limit(name, 8, "x")
    monkeypatch.setenv(variable, "7")
    assert get_limit(name) == 7
    check_limit(name, 7, "x")
    with pytest.raises(DataError, match=rf"^x: 8 .*at most 7 are read; set {variable} if"):
        check_limit(name, 8, "x")


def test_the_error_and_the_remedy_are_the_callers() -> None:
    with pytest.raises(CheckpointError, match="are read; cut it, or set PERCEIVERS_MAX_PIXELS"):
        check_limit("pixels", 10**12, "x", error=CheckpointError, remedy="cut it")


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "4 GB", "9" * 5000, "\u0663"])
def test_a_variable_that_is_no_count_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEIVERS_MAX_PIXELS", text)
    with pytest.raises(ConfigError, match=r"PERCEIVERS_MAX_PIXELS is .*whole number of at least 1"):
        get_limit("pixels")


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEIVERS_MAX_PIXELS", " ")
    assert get_limit("pixels") == LIMITS["pixels"].default


def test_the_page_on_errors_lists_every_limit_with_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(PERCEIVERS_MAX_\w+)` \| (\d+) \|", page, re.M))
    assert listed == {limit.variable: str(limit.default) for limit in LIMITS.values()}
