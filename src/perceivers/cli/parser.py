"""Argument parsing: typed flags from dataclasses, no abbreviations, typos answered with a suggestion."""

import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

USER_MISTAKE = 2


class VerbParser(ArgumentParser):
    """One verb's parser; a mistake is one message on stderr and exit status 2."""

    def __init__(self, verb: str, description: str) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            prog=f"perceivers {verb}", description=description, allow_abbrev=False
        )
        self.verb = verb

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake and the nearest known flag."""
        text = str(ex or message).strip()
        fail(f"{text}{self._suggestion(text)}\nSee: perceivers {self.verb} --help")

    def _suggestion(self, text: str) -> str:
        known = [flag for action in self._actions for flag in action.option_strings]
        known += [flag.removeprefix("--") for flag in known]
        for word in re.findall(r"--?[\w.\-]+|[\w.]+", text):
            if word in known:
                continue
            close = get_close_matches(word, known, n=1, cutoff=0.75)
            if close:
                return f"\nDid you mean '{close[0]}'?"
        return ""


def fail(message: str) -> NoReturn:
    """Say what is wrong and leave with the status of a user's mistake."""
    sys.stderr.write(f"perceivers: {message}\n")
    raise SystemExit(USER_MISTAKE)


def settings_of(args: Any) -> dict[str, Any]:
    """Return parsed arguments as plain nested dictionaries."""
    return {key: value for key, value in args.as_dict().items() if key != "config"}
