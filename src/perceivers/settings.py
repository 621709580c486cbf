"""Declaring and checking ranges of settings and the conditions under which they have an effect.

A config is a frozen dataclass derived from ``Settings``, whose fields declare their ranges and
conditions with ``Annotated``; functions decorated with ``checked`` do the same for arguments. The
settings themselves are defined elsewhere.
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

# Larger integers do not fit any tensor type.
LARGEST_INT = 2**63 - 1
P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


class Range:
    """Allowed numbers of a setting: finite and within bounds.

    Args:
        least: Inclusive lower bound.
        most: Inclusive upper bound.
        above: Exclusive lower bound.
        below: Exclusive upper bound.
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
        """Return the rule as help shows it."""
        return str(self).removeprefix("be ").replace("not be", "not")

    def __contains__(self, value: float) -> bool:
        if isinstance(value, int):
            # ``isfinite`` would overflow for an integer of 400 digits.
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
        """Return the rule as it follows 'it must'."""
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
    """Declares that a setting has an effect only if another setting has certain values.

    Args:
        field: The other setting: a field or property of the same config.
        values: Values of the other setting with which this one has an effect.
        above: Alternatively, a number that the other setting must exceed.
        otherwise: Text after 'has no effect' in the message; by default it names the other setting.
        part: Name of a field if the annotated field is a nested config and only that field of it is
            conditional.
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
        """Return the condition as help shows it."""
        if self.otherwise:
            return f"no effect {self.otherwise}"
        if self.above is not None:
            return f"with {self.field} above {self.above}"
        return f"with {self.field} {' or '.join(map(str, self.values))}"

    def holds(self, config: Any) -> bool:
        """Return whether the setting has an effect in a config."""
        value = getattr(config, self.field)
        return value in self.values if self.above is None else value > self.above

    def explain(self, config: Any, prefix: str) -> str:
        """Return why the setting has no effect, and what to change."""
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
    """Declares that a setting has an effect only on certain kinds of modalities, such as ``image``.

    A config does not know the data, so the code that opens the data checks this with ``kinds_of``.

    Args:
        kinds: Values of ``ModalitySpec.kind``.
    """

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def __repr__(self) -> str:
        """Return the condition as help shows it."""
        return f"for {' and '.join(self.kinds)}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
# More than nothing, less than all.
Part = Annotated[float, Range(above=0, below=1)]
# For dropout or the decay of an average, where 1 would leave nothing.
Rate = Annotated[float, Range(0, below=1)]
# Seeds that both torch and NumPy accept.
Seed = Annotated[int, Range(0, 2**64 - 1)]
Finite = Annotated[float, Range()]


@dataclass(frozen=True)
class Settings:
    """Base class of all configs: checks every field when the config is created.

    A subclass with its own ``__post_init__`` must call this one first. Its ``prefix`` precedes
    field names in messages; the default is the class name.
    """

    def __init_subclass__(cls, prefix: str | None = None) -> None:
        super().__init_subclass__()
        if prefix is not None:
            cls._prefix = prefix

    def __post_init__(self) -> None:
        """Check types, choices and ranges, then that every changed setting has an effect.

        Raises:
            ConfigError: Names the field, its value, the rule and what to change.
        """
        if is_compiling():
            # torch.compile cannot trace the checks. Configs created while tracing are made of
            # constants or of settings that were checked before.
            return
        prefix, hints = prefix_of(type(self)), hints_of(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list) and _is_tuple(hints[field.name]):
                value = tuple(value)  # lists are accepted, but would compare unequal to tuples
                object.__setattr__(self, field.name, value)
            name, hint = prefix + field.name, hints[field.name]
            _tolerate(name, lambda n=name, v=value, h=hint, f=field: _check(n, v, h, f))
        for name, message in unused(self).items():
            refuse_unused(prefix + name, message)


class RangeError(ConfigError):
    """A number outside the range of its setting."""


@dataclass(frozen=True)
class _Tolerance:
    """Kinds of faults that are noted instead of raised, for all settings (None) or for some."""

    kinds: tuple[str, ...]
    only: frozenset[str] | None
    notes: list[str]


_TOLERANCES: ContextVar[tuple[_Tolerance, ...]] = ContextVar("tolerances", default=())


@contextmanager
def tolerating(
    *kinds: Literal["range", "unused"], only: Iterable[str] | None = None
) -> Iterator[list[str]]:
    """Accept invalid settings that were saved under earlier rules, and note each one.

    Contexts can be nested.

    Args:
        kinds: ``range``: numbers out of range; ``unused``: settings without effect.
        only: Names of the settings to accept; None accepts all.
    """
    found = _Tolerance(kinds, None if only is None else frozenset(only), [])
    token = _TOLERANCES.set((*_TOLERANCES.get(), found))
    try:
        yield found.notes
    finally:
        _TOLERANCES.reset(token)


def tolerated() -> list[str]:
    """Return the notes of all active ``tolerating`` contexts, without duplicates."""
    return list(dict.fromkeys(note for each in _TOLERANCES.get() for note in each.notes))


def refuse_unused(name: str, message: str) -> None:
    """Raise for a setting without effect, unless it is tolerated.

    Raises:
        ConfigError: With the given message.
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
    """Return the annotations of a config's fields, including ``Annotated`` metadata."""
    return get_type_hints(kind, include_extras=True)


def prefix_of(kind: type) -> str:
    """Return the prefix of a config's field names in messages."""
    own = getattr(kind, "_prefix", None)
    return f"{kind.__name__}." if own is None else own


def declared(hint: Any, marker: type[C]) -> list[C]:
    """Return the ``Annotated`` metadata of one type on a field, not on parts of its value."""
    return [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, marker)]


def default_of(field: Field[Any]) -> Any:
    """Return a field's default, or ``MISSING``."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def unused(config: Any) -> dict[str, str]:
    """Return the fields that differ from their defaults but have no effect, with the reason.

    Args:
        config: Instance of a ``Settings`` class.
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
    """Return the reasons why settings of a config and its nested configs have no effect."""
    found = list(unused(config).values())
    for field in fields(config):
        inner = getattr(config, field.name)
        found += all_unused(inner) if isinstance(inner, Settings) else []
    return found


def check_again(config: Any) -> None:
    """Check the ranges of a config and its nested configs, which were tolerated before.

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
    """Return whether a field, or its nested field ``part``, differs from its default."""
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
    """Return the modality kinds that each changed setting applies to.

    Settings that have no effect anyway are left out.

    Args:
        config: Instance of a ``Settings`` class.
    """
    hints, idle = hints_of(type(config)), unused(config)
    return {
        field.name: rule.kinds
        for field in fields(config)
        for rule in declared(hints[field.name], UsedFor)
        if getattr(config, field.name) != default_of(field) and field.name not in idle
    }


def settle(kind: type[C], values: Mapping[str, Any], given: Iterable[str] | None = ()) -> C:
    """Build a config in which only the fields that the caller gave must have an effect.

    The others come from a variant or a saved model; they are kept even if they have no effect now.

    Args:
        kind: Class of the config.
        values: Values of all fields.
        given: Fields that the caller gave, as listed by ``named``; None means all.

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
    """Return the names of settings, and dotted names of those in nested mappings.

    ``name.*`` means all fields of a nested config.
    """
    nested = [
        f"{name}.{part}"
        for name, value in settings.items()
        for part in (value if isinstance(value, Mapping) else ["*"])
    ]
    return (*settings, *nested)


def change(config: C, given: Iterable[str] | None = None, **changes: Any) -> C:
    """Return a copy of a config with changed fields, which must have an effect.

    Args:
        config: Instance of a ``Settings`` class.
        given: As for ``settle``; None means all changes.
        changes: New values by field.
    """
    assert is_dataclass(config)
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
    return settle(type(config), {**values, **changes}, named(changes) if given is None else given)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to check arguments whose annotations declare a ``Range``.

    Calls raise ``ConfigError``, naming the argument, if one is out of range.
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
    """Return every ``Range`` in an annotation, including those of parts of the value."""
    found = declared(hint, Range)
    for part in get_args(hint):
        found += [] if isinstance(part, Range) else find_ranges(part)
    return found


def check_number(name: str, value: Any, hint: Any) -> None:
    """Check a number that is not a field of a config, such as an entry of a settings table.

    Args:
        name: Name for messages.
        value: The value.
        hint: Annotation with a ``Range``.

    Raises:
        ConfigError: Names the setting, its value and the rule.
    """
    _check(name, value, hint, None)


def _is_tuple(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in {Annotated, Union, UnionType} else ()
    return get_origin(hint) is tuple or any(_is_tuple(part) for part in parts)


def _check(
    name: str, value: Any, hint: Any, field: Field[Any] | None, limits: Range | None = None
) -> None:
    """Check a value against its annotation: numbers, choices, and containers of them."""
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
    """Check a value against the alternative of its type; if none fits, against the first."""
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
    """Format a number; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and abs(value) > LARGEST_INT**2:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _default(field: Field[Any] | None) -> str:
    found = MISSING if field is None else default_of(field)
    return "" if found is MISSING or found is None else f" (default {found!r})"
