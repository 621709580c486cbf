"""Argument parsing: typed flags from dataclasses, no abbreviations, suggestions for typos."""

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

USER_MISTAKE = 2


class VerbParser(ArgumentParser):
    """Parser of one verb; an error prints one message to stderr and exits with status 2."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"perceivers {verb}", description=description, allow_abbrev=False)
        self.verb = verb

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error with the closest known flag, and exit."""
        text = plain_message(str(ex or message).strip())
        required = "the following arguments are required: "
        if text.startswith(required):
            names = text.removeprefix(required).split(", ")
            text = required + ", ".join(
                f"--{name}" if f"--{name}" in self._option_string_actions else name
                for name in names
            )
        fail(f"{text}{self._suggestion(text)}\nSee: perceivers {self.verb} --help")

    def _suggestion(self, text: str) -> str:
        """Suggest the flag or key closest to the first unknown one in a message."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        known = {flag: flag for flag in flags}
        known |= {flag.removeprefix("--"): flag.removeprefix("--") for flag in flags}
        inside = re.search(r"Group '([\w.]+)'", text)
        prefix = f"{inside[1]}." if inside else ""
        words = re.findall(r"--[\w.\-]+|(?<=ption ')[\w.]+", text)
        for word in [word if word.startswith("--") else prefix + word for word in words]:
            close = get_close_matches(word, known, n=1, cutoff=0.7)
            if word not in known and close:
                return f"; did you mean '{close[0]}'?"
        return ""


def plain_message(text: str) -> str:
    """Rewrite a message of jsonargparse without Python type syntax."""
    typed = re.fullmatch(
        r'Parser key "([\w.]+)":\s+Expected an? (.+?)\. Got value: (.*)', text, re.S
    )
    if typed:
        key, kind, value = typed.groups()
        kind = re.sub(r"<class '(\w+)'>", r"\1", kind)
        kind = re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", kind)
        return f"{key}: expected {kind}, found {value!r}"
    several = re.match(
        r'Parser key "([\w.]+)":\s+Does not validate against any of the Union subtypes\s+'
        r"Subtypes: \[(.*?)\]\s+Errors:.*Given value: (.*)$",
        text,
        re.S,
    )
    if several:
        key, kinds, value = several.groups()
        return f"{key}: expected {_plain_kinds(kinds)}, found {value!r}"
    if text.startswith("Unexpected config:"):
        return f"a config file must hold 'setting: value' lines, found:\n{text.partition(':')[2]}"
    return text


def _plain_kinds(text: str) -> str:
    """Format the members of a union: 'int or null'."""
    text = re.sub(r"typing\.Annotated\[(\w+)(?:, [^\[\]]*(?:\[[^\]]*\)?)?)?\]", r"\1", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "null")
    return " or ".join(text.split(", "))


def fail(message: str) -> NoReturn:
    """Print an error message and exit with the status of a user error."""
    sys.stderr.write(f"perceivers: {message}\n")
    raise SystemExit(USER_MISTAKE)


def wants_help(arguments: Sequence[str]) -> bool:
    """Return whether help is asked for; help texts are read only then, because it takes long."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def describe_flags(arguments: Sequence[str]) -> None:
    """Let jsonargparse read the attribute docstrings only if ``--help`` is given.

    Reading them takes longer than the rest of parsing.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=wants_help(arguments))


def settings_of(args: Any) -> dict[str, Any]:
    """Return parsed arguments as plain nested dictionaries."""
    return {key: value for key, value in args.as_dict().items() if key != "config"}
