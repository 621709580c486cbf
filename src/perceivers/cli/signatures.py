"""A verb's flags from the signature and docstring of its function, and the call of the function.

| argument of the function | on the command line |
|---|---|
| positional | positional; a sequence takes several words |
| keyword, and ``out`` with a default | ``--name`` |
| false by default; true by default | ``--name``; ``--name`` and ``--no-name`` |
| ``settings``, another settings class ``x`` | a flag per field: ``--field``, ``--field_x`` |
| ``**options`` | a flag per field of ``Verb.settings``, with values as in YAML |
| a function that is called with lines or progress | none: they go to stderr |
"""

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter, getdoc, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import DocstringStyle, parse, parse_from_object
from jsonargparse import ActionYesNo

from perceivers.cli.parser import VerbParser, wants_help
from perceivers.cli.printing import drawing_progress, say
from perceivers.cli.verbs import Verb
from perceivers.errors import ConfigError
from perceivers.report.console import Shown
from perceivers.settings import default_of

INTERRUPTED = 130
# Names that are shorter on the command line.
SHORT = {"model": "run", "paths": "files"}
SEQUENCES = {Sequence, list, tuple}


@dataclass(frozen=True)
class Argument:
    """One argument of a function, or one field of a settings class that it takes.

    Args:
        flag: Name on the command line.
        name: Name of the argument or field.
        owner: Argument whose settings class has the field; empty for an argument.
        hint: Its annotation.
        default: Its default, or ``Parameter.empty``.
        is_positional: Whether it is given without a flag.
        text: Its docstring.
    """

    flag: str
    name: str
    owner: str
    hint: Any
    default: Any
    is_positional: bool
    text: str

    def options(self) -> dict[str, Any]:
        """Return the keywords of ``add_argument``."""
        kinds = alternatives(self.hint)
        found = dict[str, Any]()
        is_required = self.default is Parameter.empty
        several = any(get_origin(kind) in SEQUENCES for kind in kinds)
        if not is_required:
            found["default"] = (list(self.default or ()) or None) if several else self.default
        if self.is_positional:
            if several:
                found["nargs"] = "+" if is_required else "*"
            elif not is_required:
                found["nargs"] = "?"
        elif bool in kinds:
            found["action"] = ActionYesNo(no_prefix="no-") if self.default else "store_true"
        elif several and str not in kinds:
            found |= {"type": list[str], "default": list(self.default or ())}
        elif get_origin(kinds[0]) is Literal:
            found["choices"] = get_args(kinds[0])
        elif kinds[0] in {int, float}:
            found["type"] = kinds[0]
        return found


def alternatives(hint: Any) -> list[Any]:
    """Return the types of a union, without None and without ranges."""
    if get_origin(hint) is Annotated:
        return alternatives(get_args(hint)[0])
    if get_origin(hint) in {Union, UnionType}:
        return [kind for part in get_args(hint) for kind in alternatives(part)]
    return [] if hint is NoneType else [hint]


def describe_arguments(thing: Any) -> tuple[str, dict[str, str]]:
    """Return the description of a function or settings class, and of its arguments or fields."""
    # The docstrings below fields are in the source only, and finding them there takes time.
    has_fields = is_dataclass(thing) and "Args:" not in (getdoc(thing) or "")
    found = (
        parse_from_object(thing)
        if has_fields
        else parse(getdoc(thing) or "", DocstringStyle.GOOGLE)
    )
    texts = {each.arg_name: each.description or "" for each in found.params}
    return found.description or "", texts


def plain(text: str, flags: Mapping[str, str]) -> str:
    """Return a docstring on one line, without markup.

    Args:
        text: The docstring, with names of arguments in double backticks.
        flags: The arguments as they are written on the command line.
    """
    text = re.sub(r"``(\w+)``", lambda match: flags.get(match[1], match[1]), text)
    return " ".join(text.replace("``", "").split())


class Command:
    """A verb with some arguments: its parser, and the call of its function.

    Args:
        name: The verb, for messages.
        verb: Its row of the table.
        argv: Its arguments.
    """

    def __init__(self, name: str, verb: Verb, argv: Sequence[str]) -> None:
        self.name, self.verb, self.argv = name, verb, list(argv)
        self.function = verb.load_function()
        self.parser = self.build()

    def build(self) -> VerbParser:
        """Return the parser."""
        description, self.arguments = self._read_signature()
        typed = {
            each.name: each.flag if each.is_positional else f"--{each.flag}"
            for each in self.arguments
        }
        parser = VerbParser(self.name, plain(description, typed))
        for each in self.arguments:
            options = each.options() | dict(self.verb.flags.get(each.name, {}))
            options |= {"help": plain(each.text, typed)}
            options.pop("flag", None)
            if "nargs" in options:
                options.pop("type", None)  # of the words, not of the list
            parser.add_argument(typed[each.name], **options)
        if self.verb.settings:
            taken: set[str | int] = {each.name for each in self.arguments}
            parser.add_class_arguments(self.verb.load(self.verb.settings), None, skip=taken)
        if self.verb.quiet:
            parser.add_argument("--quiet", action="store_true", help=self.verb.quiet)
        return parser

    def _read_signature(self) -> tuple[str, list[Argument]]:
        """Return the description of the verb, and its arguments."""
        description, texts = "", dict[str, str]()
        if wants_help(self.argv):
            description, texts = describe_arguments(self.function)
        if wants_help(self.argv) and self.verb.described:
            other, more = describe_arguments(self.verb.load(self.verb.described))
            description = description if texts else other
            texts = {**more, **{n: t for n, t in texts.items() if not t.startswith("As for")}}
        hints = get_type_hints(self.function, include_extras=True)
        found: list[Argument] = []
        for name, each in signature(self.function).parameters.items():
            kinds = alternatives(hints[name])
            if (
                each.kind is Parameter.VAR_KEYWORD
                or name in {*self.verb.skip, self.verb.typed}
                or any(get_origin(kind) is Callable for kind in kinds)
            ):
                continue
            if is_dataclass(kinds[0]):
                found += self._read_fields(name, kinds[0])
                continue
            is_flag = each.kind is Parameter.KEYWORD_ONLY
            is_flag |= name == "out" and each.default is not Parameter.empty
            flag = self.verb.flags.get(name, {}).get("flag")
            flag = flag or (name if is_flag else SHORT.get(name, name))
            text = texts.get(name, "")
            found.append(Argument(flag, name, "", hints[name], each.default, not is_flag, text))
        return description, found

    def _read_fields(self, owner: str, kind: Any) -> Iterator[Argument]:
        texts = describe_arguments(kind)[1] if wants_help(self.argv) else {}
        hints = get_type_hints(kind, include_extras=True)
        for each in fields(kind):
            flag = each.name if owner == "settings" else f"{each.name}_{owner}"
            text = texts.get(each.name, "")
            default = default_of(each)
            default = Parameter.empty if default is MISSING else default
            yield Argument(flag, each.name, owner, hints[each.name], default, False, text)

    def run(self) -> Shown:
        """Parse the arguments, call the function, and return what to print.

        Raises:
            SystemExit: An argument is wrong, or the function was interrupted; the message has been
                printed.
            UserError: From the function.
        """
        from perceivers.training.watchdog import Interrupted

        given = self.parse()
        is_quiet = bool(self.verb.quiet) and given.pop("quiet")
        try:
            with ExitStack() as held:
                more = {} if is_quiet else self._callbacks(held)
                result = self.function(**given, **more)
        except Interrupted as error:
            from perceivers.training.launching import is_main_process

            if is_main_process():
                sys.stderr.write(f"perceivers: {error}{self.verb.interrupted.format(**given)}\n")
            raise SystemExit(INTERRUPTED) from None
        if not self.verb.show:
            return result
        show = self.verb.load(self.verb.show)
        bound = signature(self.function).bind(**given)
        bound.apply_defaults()
        _, *wanted = signature(show).parameters
        return show(result, **{name: bound.arguments[name] for name in wanted})

    def parse(self) -> dict[str, Any]:
        """Return the arguments of the function, and ``quiet`` if the verb has such a flag.

        Raises:
            SystemExit: An argument is wrong; the message has been printed.
            ConfigError: A word is not of the type of its list, or a setting is out of range.
        """
        parsed = self.parser.parse_args(self.argv).as_dict()
        given = dict[str, Any]()
        parts: dict[str, dict[str, Any]] = {}
        for each in self.arguments:
            value = parsed.pop(each.flag)
            if each.owner:
                parts.setdefault(each.owner, {})[each.name] = read_field(each, value)
            elif value is not None:  # else the function's default
                given[each.name] = value
        hints = get_type_hints(self.function)
        given |= {name: alternatives(hints[name])[0](**held) for name, held in parts.items()}
        if self.verb.typed:
            given[self.verb.typed] = shlex.join(["perceivers", self.name, *self.argv])
        if self.verb.quiet:
            given["quiet"] = parsed.pop("quiet")
        defaults: Mapping[str, Any] = self.parser.get_defaults().as_dict() if parsed else {}
        return given | {name: value for name, value in parsed.items() if value != defaults[name]}

    def _callbacks(self, held: ExitStack) -> dict[str, Any]:
        """Return the functions that print lines or progress to stderr, by argument."""
        found = dict[str, Any]()
        for name, hint in get_type_hints(self.function).items():
            for kind in alternatives(hint):
                if get_origin(kind) is Callable and name not in {"return", *self.verb.skip}:
                    is_line = len(get_args(kind)[0]) == 1
                    found[name] = say if is_line else held.enter_context(drawing_progress())
        return found


def read_field(argument: Argument, value: Any) -> Any:
    """Convert the words of a list, separated by spaces or commas; other values stay unchanged.

    Raises:
        ConfigError: A word is unknown, or not a number.
    """
    (kind, *_) = alternatives(argument.hint)
    if get_origin(kind) is not tuple:
        return value
    (of,) = alternatives(get_args(kind)[0])
    words = [word for text in value for word in str(text).split(",") if word]
    return tuple(read_word(argument.flag, word, of) for word in words)


def read_word(name: str, word: str, kind: Any) -> Any:
    """Convert a word to an int or float, or check that it is one of the choices.

    Raises:
        ConfigError: It is not.
    """
    if get_origin(kind) is Literal and word not in get_args(kind):
        raise ConfigError(f"{name}: {word!r} is unknown; choose from {list(get_args(kind))}")
    try:
        return kind(word) if kind in {int, float} else word
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name}: {word!r} is not {what}") from None
