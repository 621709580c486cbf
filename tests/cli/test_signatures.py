"""Flags come from the signatures and docstrings of functions; the table of verbs fits both."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any, Literal

import pytest

from perceivers.cli.main import VERBS, open_command
from perceivers.cli.signatures import Command, alternatives, plain, read_word
from perceivers.cli.verbs import ACTIONS, Verb
from perceivers.errors import ConfigError
from perceivers.report.console import Shown
from perceivers.settings import Count

ROWS = {**VERBS, **{f"{v} {a}": row for v, rows in ACTIONS.items() for a, row in rows.items()}}


@pytest.mark.parametrize("name", ROWS)
def test_every_option_is_explained_in_words_of_the_command_line(name: str) -> None:
    verb, *action = name.split()
    parser = open_command(verb, [*action, "--help"]).parser
    assert parser.description
    for each in parser._actions:
        text = each.help or ""
        assert text or type(each).__name__ == "_ActionConfigLoad", each.option_strings
        assert "As for" not in text
        assert "``" not in text


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_row_names_arguments_and_functions_that_exist(row: Verb) -> None:
    parameters = signature(row.load_function()).parameters
    named = {*row.skip, *([row.typed] if row.typed else [])}
    assert named <= set(parameters)
    if row.show:
        _, *wanted = signature(row.load(row.show)).parameters
        assert set(wanted) <= set(parameters)
    if row.described:
        assert row.load(row.described).__doc__


@dataclass(frozen=True)
class Room:
    """Size of a room.

    Args:
        wide: Width in metres.
    """

    wide: Count = 2


def paint(
    model: str,
    paths: list[str],
    out: str = "painted",
    *,
    colour: Literal["red", "blue"] = "red",
    coats: Annotated[int, "any"] | None = None,
    dry: bool = False,
    tidy: bool = True,
    room: Room | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Paint ``paths``, with ``coats`` in a ``colour``.

    Args:
        model: Brush.
        paths: Walls.
        out: Folder; not with ``dry``.
        colour: Colour.
        coats: Number of coats.
        dry: Wait.
        tidy: Clean up.
        room: Its size.
        note: Called with remarks.
    """
    assert note is not None
    note("painting")
    return locals()


def show(painted: dict[str, Any], *, out: str) -> Shown:
    """Show all arguments."""
    return Shown([f"{out}: {painted}"])


class Row(Verb):
    """A row whose function is in this module."""

    def load(self, name: str) -> Any:
        """Return it."""
        return {"paint": paint, "show": show}[name]


def test_a_signature_becomes_flags(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("here:paint", "paint walls")
    words = ["brush", "a", "b", "--coats", "3", "--no-tidy", "--dry", "--wide_room", "5"]
    (line,) = Command("paint", row, words).run().lines
    assert capsys.readouterr().err == "painting\n"
    assert str(line).startswith("painted: {'model': 'brush', 'paths': ['a', 'b'], 'out': 'painted'")
    for part in ("'coats': 3", "'dry': True", "'tidy': False", "Room(wide=5)", "'colour': 'red'"):
        assert part in str(line)
    parser = Command("paint", row, ["--help"]).parser
    helps = {each.dest: each.help for each in parser._actions}
    assert parser.description == "Paint files, with --coats in a --colour."
    assert helps["out"] == "Folder; not with --dry."
    assert helps["wide_room"] == "Width in metres."
    assert "note" not in helps
    with pytest.raises(SystemExit):
        Command("paint", row, ["brush", "a", "--colour", "green"]).run()
    assert "invalid choice: 'green'" in capsys.readouterr().err


def test_words_and_types_are_read() -> None:
    assert alternatives(Count | str | None) == [int, str]
    assert plain("Use ``a``,\n   ``b c``.", {"a": "--a"}) == "Use --a, b c."
    assert [read_word("x", "3", int), read_word("x", "3", str)] == [3, "3"]
    with pytest.raises(ConfigError, match="x: '3' is unknown; choose from"):
        read_word("x", "3", Literal["4"])
    with pytest.raises(ConfigError, match="x: 'a' is not a whole number"):
        read_word("x", "a", int)
