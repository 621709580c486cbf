"""Ranges of settings, and conditions under which a setting has an effect: declared and checked.

A config is a frozen dataclass that derives from ``Settings``. Its fields declare with ``Annotated``
what they allow; a function does the same for its arguments under ``checked``. Nothing here knows
which settings there are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache, wraps
from inspect import signature
from math import isfinite
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from torch.compiler import is_compiling

from perceivers.errors import ConfigError, suggest

# Integers beyond it have no tensor type.
LARGEST_INT = 2**63 - 1
P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


class Range:
    """Numbers that a setting allows: finite ones within bounds.

    Args:
        least: Lower bound, allowed itself.
        most: Upper bound, allowed itself.
        above: Lower bound, not allowed itself.
        below: Upper bound, not allowed itself.
    """

    def __init__(
        self,
        least: float | None = None,
        most: float | None = None,
        *,
        above: float | None = None,
        below: float | None = None,
    ) -> None:
        self.least, self.most, self.above, self.below = least, most, above, below

    def __repr__(self) -> str:
        """The rule, as help shows it."""
        return str(self).removeprefix("be ").replace("not be", "not")

    def __contains__(self, value: float) -> bool:
        """Whether a number is finite and within the bounds."""
        if isinstance(value, int):
            # float() of an integer of 400 digits overflows.
            if not -LARGEST_INT <= value <= (self.most or LARGEST_INT):
                return False
        elif not isfinite(value):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The rule, to follow 'it must'."""
        low = self.above if self.least is None else self.least
        high = self.below if self.most is None else self.most
        if low is not None and high is not None:
            ends = "[" if self.above is None else "(", "]" if self.below is None else ")"
            return f"be in {ends[0]}{low}, {high}{ends[1]}"
        if self.least is not None:
            return "not be negative" if self.least == 0 else f"be at least {self.least}"
        if self.above is not None:
            return "be positive" if self.above == 0 else f"be above {self.above}"
        if high is not None:
            return f"be at most {high}" if self.below is None else f"be below {high}"
        return "be finite"


class UsedIf:
    """A setting has an effect only where another one has a certain value.

    Args:
        field: The other one: a field or a property of the same config.
        values: What it may be.
        above: Or the number that it must exceed.
        otherwise: Follows 'has no effect' in the message; by default names the other setting.
        part: The condition is one on this field of a nested config.
    """

    def __init__(
        self,
        field: str,
        *values: object,
        above: float | None = None,
        otherwise: str = "",
        part: str = "",
    ) -> None:
        self.field, self.values, self.above = field, values, above
        self.otherwise, self.part = otherwise, part

    def __repr__(self) -> str:
        """The condition, as help shows it."""
        if self.otherwise:
            return f"no effect {self.otherwise}"
        if self.above is not None:
            return f"with {self.field} above {self.above}"
        return f"with {self.field} {' or '.join(map(str, self.values))}"

    def holds(self, config: Any) -> bool:
        """Whether the setting has an effect in a config."""
        value = getattr(config, self.field)
        return value in self.values if self.above is None else value > self.above

    def explain(self, config: Any, prefix: str) -> str:
        """Say why there is no effect, and what to change."""
        if self.otherwise:
            return f"has no effect {self.otherwise}; leave it out"
        found = f"{prefix}{self.field}={getattr(config, self.field)!r}"
        wanted = (
            f"above {self.above}"
            if self.above is not None
            else f"to {' or '.join(map(repr, self.values))}"
        )
        return f"has no effect with {found}; leave it out, or set {prefix}{self.field} {wanted}"


class UsedFor:
    """A setting has an effect only on modalities of these kinds, such as ``image``.

    Configs do not know the data; whoever opens them asks ``kinds_of``.

    Args:
        kinds: Of ``ModalitySpec``.
    """

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def __repr__(self) -> str:
        """The condition, as help shows it."""
        return f"for {' and '.join(self.kinds)}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
# Some, but not all.
Part = Annotated[float, Range(above=0, below=1)]
# A fraction of 1 would leave nothing: a dropout, the decay of an average.
Rate = Annotated[float, Range(0, below=1)]
# What torch and NumPy take alike.
Seed = Annotated[int, Range(0, 2**64 - 1)]
Finite = Annotated[float, Range()]


@dataclass(frozen=True)
class Settings:
    """Base of all configs: checks every field where the config is made.

    A subclass that has a ``__post_init__`` of its own calls this one first. Its ``prefix`` stands
    before the names of fields in messages; by default the name of the class.
    """

    def __init_subclass__(cls, prefix: str | None = None) -> None:
        super().__init_subclass__()
        if prefix is not None:
            cls._prefix = prefix

    def __post_init__(self) -> None:
        """Check types, choices and ranges, then that no setting is given in vain.

        Raises:
            ConfigError: Names the field, its value, the rule and what to change.
        """
        if is_compiling():
            # Tracing cannot follow the checks. What a compiled function makes, it makes of
            # settings that were checked outside, or of constants.
            return
        prefix, hints = prefix_of(type(self)), hints_of(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list) and _is_tuple(hints[field.name]):
                value = tuple(value)  # lists are welcome, and compare unequal to tuples
                object.__setattr__(self, field.name, value)
            name, hint = prefix + field.name, hints[field.name]
            _tolerate(name, lambda n=name, v=value, h=hint, f=field: _check(n, v, h, f))
        for name, message in unused(self).items():
            refuse_unused(prefix + name, message)


class RangeError(ConfigError):
    """A number outside the range of its setting."""


@dataclass(frozen=True)
class _Tolerance:
    """What is noted instead of refused: kinds of faults, of all settings or of some."""

    kinds: tuple[str, ...]
    only: frozenset[str] | None
    notes: list[str]


_TOLERANCES: ContextVar[tuple[_Tolerance, ...]] = ContextVar("tolerances", default=())


@contextmanager
def tolerating(
    *kinds: Literal["range", "unused"], only: Iterable[str] | None = None
) -> Iterator[list[str]]:
    """Accept settings that were recorded before today's rules, and note each; nests.

    Args:
        kinds: ``range``: numbers out of range; ``unused``: settings without effect.
        only: Names of the settings that were recorded; all when None.
    """
    found = _Tolerance(kinds, None if only is None else frozenset(only), [])
    token = _TOLERANCES.set((*_TOLERANCES.get(), found))
    try:
        yield found.notes
    finally:
        _TOLERANCES.reset(token)


def tolerated() -> list[str]:
    """Return what has been tolerated so far, each once."""
    return list(dict.fromkeys(note for each in _TOLERANCES.get() for note in each.notes))


def refuse_unused(name: str, message: str) -> None:
    """Refuse a setting without effect, unless such are tolerated.

    Raises:
        ConfigError: With the message.
    """
    _refuse(name, "unused", ConfigError(message))


def _refuse(name: str, kind: str, error: ConfigError) -> None:
    for each in reversed(_TOLERANCES.get()):
        if kind in each.kinds and (each.only is None or name in each.only):
            each.notes.append(str(error))
            return
    raise error


def _tolerate(name: str, check: Callable[[], None]) -> None:
    try:
        check()
    except RangeError as error:
        _refuse(name, "range", error)


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the annotations of a config's fields, with their declarations."""
    return get_type_hints(kind, include_extras=True)


def prefix_of(kind: type) -> str:
    """Return what stands before the name of a config's field in messages."""
    own = getattr(kind, "_prefix", None)
    return f"{kind.__name__}." if own is None else own


def declared(hint: Any, marker: type[C]) -> list[C]:
    """Return the declarations of one type on a field itself, not on parts of its value."""
    return [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, marker)]


def default_of(field: Field[Any]) -> Any:
    """Return a field's default; ``MISSING`` where it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def unused(config: Any) -> dict[str, str]:
    """Return the fields that differ from their defaults and have no effect, with the reason.

    Args:
        config: Of a class that derives from ``Settings``.
    """
    found: dict[str, str] = {}
    hints, prefix = hints_of(type(config)), prefix_of(type(config))
    for field in fields(config):
        for rule in declared(hints[field.name], UsedIf) if field.init else ():
            name = f"{field.name}.{rule.part}" if rule.part else field.name
            if name not in found and _differs(config, field, rule.part) and not rule.holds(config):
                found[name] = (
                    f"{prefix}{name}={_get(config, name)!r} {rule.explain(config, prefix)}"
                )
    return found


def all_unused(config: Any) -> list[str]:
    """Return why settings have no effect, of a config and of those that it holds."""
    found = list(unused(config).values())
    for field in fields(config):
        inner = getattr(config, field.name)
        found += all_unused(inner) if isinstance(inner, Settings) else []
    return found


def check_again(config: Any) -> None:
    """Check the ranges of a config, and of those that it holds, whose numbers were tolerated.

    Raises:
        ConfigError: A number is out of range.
    """
    with tolerating("unused"):
        config.__post_init__()
    for field in fields(config):
        inner = getattr(config, field.name)
        if isinstance(inner, Settings):
            check_again(inner)


def _differs(config: Any, field: Field[Any], part: str) -> bool:
    """Whether a field, or a part of it, has another value than by default."""
    value = getattr(config, field.name)
    if part:
        if value is None:
            return False
        field = next(each for each in fields(value) if each.name == part)
        value = getattr(value, part)
    default = default_of(field)
    return default is not MISSING and value != default


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def kinds_of(config: Any) -> dict[str, tuple[str, ...]]:
    """Return the kinds of modalities that each setting with an effect is for.

    Args:
        config: Of a class that derives from ``Settings``.
    """
    hints, idle = hints_of(type(config)), unused(config)
    return {
        field.name: rule.kinds
        for field in fields(config)
        for rule in declared(hints[field.name], UsedFor)
        if getattr(config, field.name) != default_of(field) and field.name not in idle
    }


def settle(kind: type[C], values: Mapping[str, Any], given: Iterable[str] | None = ()) -> C:
    """Build a config of which only some fields were asked for: those must have an effect.

    The others come from a variant or a stored model. They stay as they are: they say how it would
    be if it were otherwise.

    Args:
        kind: Class of the config.
        values: Its fields.
        given: Fields that the caller asked for, as ``named`` lists them; all when None.

    Raises:
        ConfigError: As for ``kind``.
    """
    if given is None:
        return kind(**values)
    with tolerating("unused"):
        made = kind(**values)
    asked = set(given)
    for name, message in unused(made).items():
        if {name, f"{name.split('.')[0]}.*"} & asked:
            raise ConfigError(message)
    return made


def named(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of settings, and with dots of those in nested mappings.

    ``name.*`` stands for all that a nested config holds.
    """
    nested = [
        f"{name}.{part}"
        for name, value in settings.items()
        for part in (value if isinstance(value, Mapping) else ["*"])
    ]
    return (*settings, *nested)


def change(config: C, given: Iterable[str] | None = None, **changes: Any) -> C:
    """Return a config with other values, which must have an effect; the others need not.

    Args:
        config: Of a class that derives from ``Settings``.
        given: As in ``settle``; all of the changes when None.
        changes: Fields.
    """
    assert is_dataclass(config)
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
    return settle(type(config), {**values, **changes}, named(changes) if given is None else given)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a function whose annotations declare a range.

    Args:
        function: Whose ``ConfigError`` names the argument.
    """
    own = signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _argument_hints(function)
        for name, value in own.bind(*args, **kwargs).arguments.items():
            if name in hints:
                _check(name, value, hints[name], None)
        return function(*args, **kwargs)

    return call


@cache
def _argument_hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(function, include_extras=True)
    return {name: hint for name, hint in hints.items() if find_ranges(hint)}


def find_ranges(hint: Any) -> list[Range]:
    """Return every range in an annotation, of parts of the value too."""
    found = declared(hint, Range)
    for part in get_args(hint):
        found += [] if isinstance(part, Range) else find_ranges(part)
    return found


def check_number(name: str, value: Any, hint: Any) -> None:
    """Check a number that is no field: an entry of a table of settings.

    Args:
        name: How a user knows it.
        value: What was found.
        hint: Annotation with a ``Range``.

    Raises:
        ConfigError: Names it, its value and the rule.
    """
    _check(name, value, hint, None)


def _is_tuple(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in {Annotated, Union, UnionType} else ()
    return get_origin(hint) is tuple or any(_is_tuple(part) for part in parts)


def _check(
    name: str, value: Any, hint: Any, field: Field[Any] | None, limits: Range | None = None
) -> None:
    """Compare a value with its annotation, as far as that says anything of numbers or choices."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        found = declared(hint, Range)
        _check(name, value, parts[0], field, found[0] if found else limits)
    elif kind in {Union, UnionType}:
        _check_union(name, value, parts, field, limits)
    elif kind is Literal:
        if value not in parts:
            near = suggest(str(value), [str(part) for part in parts])
            raise ConfigError(f"{name} is {value!r}; choose from {list(parts)}{near}")
    elif kind in {int, float}:
        _check_number(name, value, kind, field, limits or Range())
    elif kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; it must be true or false")
    elif kind in {tuple, list, Sequence}:
        _check_sequence(name, value, kind, parts, field, limits)
    elif kind in {dict, Mapping}:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}; it must be a mapping from names to values")
        for key, each in value.items() if len(parts) == 2 else ():
            _check(f"{name}[{key!r}]", each, parts[1], None, limits)
    elif isinstance(kind, type) and issubclass(kind, Settings) and not isinstance(value, kind):
        raise ConfigError(f"{name} is {value!r}; it must be a {kind.__name__}")


def _check_union(
    name: str, value: Any, parts: Sequence[Any], field: Field[Any] | None, limits: Range | None
) -> None:
    """Check a value against the one alternative that is of its type; the last where none is."""
    if value is None and NoneType in parts:
        return
    others = [part for part in parts if part is not NoneType]
    fitting = [part for part in others if _is_like(value, part)]
    _check(name, value, (fitting or others)[0], field, limits)


def _is_like(value: Any, hint: Any) -> bool:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    kind = get_origin(hint) or hint
    if kind is float:
        return isinstance(value, int | float)
    if kind is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str)
    return isinstance(kind, type) and isinstance(value, kind)


def _check_sequence(
    name: str,
    value: Any,
    kind: Any,
    parts: Sequence[Any],
    field: Field[Any] | None,
    limits: Range | None,
) -> None:
    """Check the length of a tuple, and every entry."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{name} is {value!r}; it must be a list of values")
    hints = list(parts)
    if kind is not tuple or (len(parts) == 2 and parts[1] is Ellipsis):
        hints = list(parts[:1]) * len(value)
    if len(hints) != len(value):
        raise ConfigError(f"{name} is {value!r}; it must be {len(hints)} values{_default(field)}")
    for index, (each, hint) in enumerate(zip(value, hints, strict=True)):
        _check(f"{name}[{index}]", each, hint, None, limits)


def _check_number(
    name: str, value: Any, kind: type, field: Field[Any] | None, limits: Range
) -> None:
    allowed = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        noun = "an integer" if kind is int else "a number"
        raise ConfigError(f"{name} is {value!r}; it must be {noun}{_default(field)}")
    if value in limits:
        return
    first = ""
    if isinstance(value, float) and not isfinite(value):
        first = "be finite, and it must "
    elif abs(value) > LARGEST_INT and kind is int and limits.most is None:
        first = "be below 2**63, and it must "
    raise RangeError(f"{name} is {_shorten(value)}; it must {first}{limits}{_default(field)}")


def _shorten(value: float) -> str:
    """Show a number; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and abs(value) > LARGEST_INT**2:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _default(field: Field[Any] | None) -> str:
    """Name the default, as a value that is right."""
    found = MISSING if field is None else default_of(field)
    return "" if found is MISSING or found is None else f" (default {found!r})"
