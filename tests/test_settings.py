"""Ranges, conditions, what is tolerated of records, and arguments of functions."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from perceivers.errors import ConfigError
from perceivers.settings import (
    Count,
    Fraction,
    Natural,
    Positive,
    Range,
    Rate,
    Seed,
    Settings,
    UsedIf,
    all_unused,
    change,
    check_again,
    checked,
    named,
    settle,
    tolerated,
    tolerating,
)


@dataclass(frozen=True, kw_only=True)
class Inner(Settings, prefix="inner."):
    """A nested config."""

    kind: str = "a"
    width: Annotated[Count, UsedIf("kind", "b")] = 3


@dataclass(frozen=True, kw_only=True)
class Outer(Settings, prefix=""):
    """A config with one of everything."""

    rate: Rate = 0.5
    pair: tuple[Fraction, Fraction] = (0.0, 1.0)
    sizes: tuple[Count, ...] = ()
    table: dict[str, Positive] = field(default_factory=dict)
    size: Count | None = None
    word: Annotated[int, Range(0, 9)] | str = "x"
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0}, r"^rate is 1\.0; it must be in \[0, 1\) \(default 0\.5\)$"),
        ({"rate": math.nan}, r"^rate is nan; it must be finite, and it must be in \[0, 1\)"),
        ({"rate": True}, r"^rate is True; it must be a number"),
        ({"rate": "0.3"}, r"^rate is '0\.3'; it must be a number"),
        ({"pair": (0.2, 1.5)}, r"^pair\[1\] is 1\.5; it must be in \[0, 1\]$"),
        ({"pair": (0.2,)}, r"^pair is \(0\.2,\); it must be 2 values \(default \(0\.0, 1\.0\)\)$"),
        ({"pair": "ab"}, r"^pair is 'ab'; it must be a list of values$"),
        ({"sizes": (3, 0)}, r"^sizes\[1\] is 0; it must be at least 1$"),
        ({"table": {"a": 0.0}}, r"^table\['a'\] is 0\.0; it must be positive$"),
        ({"table": [1.0]}, r"^table is \[1\.0\]; it must be a mapping"),
        ({"size": 2.0}, r"^size is 2\.0; it must be an integer$"),
        (
            {"size": 2**63},
            r"^size is 9223372036854775808; it must be below 2\*\*63, and it must be",
        ),
        ({"size": 10**5000}, r"^size is an integer of 16610 bits; it must be below 2\*\*63"),
        ({"word": 10}, r"^word is 10; it must be in \[0, 9\]"),
        ({"inner": {"width": 3}}, r"^inner is \{'width': 3\}; it must be a Inner$"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Outer(**changes)


def test_right_values_stay_as_they_are() -> None:
    made = Outer(rate=0, pair=(0, 1.0), sizes=(3,), table={"a": 1e30}, size=2**63 - 1, word="any")
    assert type(made.rate) is int
    assert Outer(sizes=[1, 2]).sizes == (1, 2)  # pyright: ignore[reportArgumentType]
    assert Outer(size=None) == Outer()


def test_without_effect_is_without_effect_only_beside_a_default() -> None:
    message = r"^inner\.width=4 has no effect with inner\.kind='a'; leave it out, or set inner\.kin"
    with pytest.raises(ConfigError, match=message):
        Inner(width=4)
    assert Inner(kind="b", width=4).width == 4
    assert Inner(width=3) == Inner()


def test_what_was_recorded_is_tolerated_and_noted() -> None:
    with tolerating("range", "unused") as notes:
        old = Outer(rate=1.0, inner=Inner(width=4))
        assert tolerated() == notes
    assert [note.split(" ")[0] for note in notes] == ["inner.width=4", "rate"]
    assert old.rate == 1.0
    assert all_unused(old) == notes[:1]
    with pytest.raises(ConfigError, match=r"rate is 1\.0"):
        check_again(old)
    with pytest.raises(ConfigError, match=r"rate is 1\.0"), tolerating("unused"):
        Outer(rate=1.0)
    with tolerating("unused", only=["inner.width"]) as notes:
        Inner(width=4)
    with pytest.raises(ConfigError, match="no effect"), tolerating("unused", only=["width"]):
        Inner(width=4)
    assert tolerated() == []


def test_only_what_was_asked_for_must_have_an_effect() -> None:
    kept = settle(Inner, {"width": 4})
    assert kept.width == 4
    assert change(kept, kind="c").width == 4
    with pytest.raises(ConfigError, match="no effect"):
        settle(Inner, {"width": 4}, named({"width": 4}))
    with pytest.raises(ConfigError, match="no effect"):
        settle(Inner, {"width": 4}, None)
    with pytest.raises(ConfigError, match="no effect"):
        change(kept, width=5)
    assert named({"a": 1, "b": {"c": 2}}) == ("a", "b", "a.*", "b.c")


@checked
def run(path: str, *, count: Count = 1, limit: Natural = 0, seed: Seed = 0, top: Any = 0) -> str:
    """Return the path."""
    return f"{path} {count} {limit} {seed} {top}"


def test_arguments_are_checked_alike() -> None:
    assert run("x", count=2, top=-1) == "x 2 0 0 -1"
    for name, value in {"count": 0, "limit": -1, "seed": 2**64}.items():
        with pytest.raises(ConfigError, match=rf"^{name} is -?\d+; it must"):
            run("x", **{name: value})
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        run("x", counts=3)  # pyright: ignore[reportCallIssue]
