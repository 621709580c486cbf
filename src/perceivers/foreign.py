"""Parsing untrusted JSON, YAML, numbers and text; no other module calls these parsers directly.

Whatever a parser raises becomes a ``UserError``: for deep nesting, integers of thousands of digits,
dates that do not exist or lone surrogates.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from math import isfinite
from typing import Any

import yaml

from perceivers.errors import ConfigError, DataError, UserError
from perceivers.reading import check_limit, read_file
from perceivers.text_names import is_writable

BYTE_ORDERS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# No sensible number has more; Python itself refuses 4,300.
MAX_DIGITS = 100
WHOLE = re.compile(r"\s*[+-]?[0-9]{1,100}\s*")
HALF = re.compile(r"\\u[dD][89a-fA-F]")
LOWEST, HIGHEST = -(2**63), 2**63 - 1


def decode_text(data: bytes, where: str, *, error: type[UserError] = DataError) -> str:
    """Decode UTF-8 text, without a byte order mark.

    Raises:
        UserError: The text has another encoding; names the line and the probable encoding.
    """
    if data[:2] in BYTE_ORDERS or b"\0" in data:
        found = BYTE_ORDERS.get(data[:2])
        zero = f"contains a zero byte at {data.find(0)}, as in UTF-16"
        raise error(
            f"{where}: {f'is in {found}' if found else zero}; save it as UTF-8 (iconv -f UTF-16 "
            f"-t UTF-8)"
        )
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as reason:
        first = data.rfind(b"\n", 0, reason.start) + 1
        line = data[first:].partition(b"\n")[0][:60]
        raise error(
            f"{where}: line {data.count(10, 0, reason.start) + 1} is not UTF-8 (byte "
            f"0x{data[reason.start]:02x}; in Windows-1252 the line is "
            f"{line.decode('cp1252', 'replace').strip()!r}); save it as UTF-8, for example with "
            f"iconv -f WINDOWS-1252 -t UTF-8"
        ) from reason


def read_text(path: str | os.PathLike[str], *, error: type[UserError] = DataError) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        UserError: The file cannot be read, is too large, or has another encoding.
    """
    return decode_text(read_file(path, limit="json", error=error), os.fspath(path), error=error)


def parse_json(
    text: str | bytes,
    where: str,
    *,
    error: type[UserError] = DataError,
    constants: bool = False,
    halves: bool = False,
) -> Any:
    """Parse JSON.

    Args:
        text: The text, or its bytes in UTF-8.
        where: Its location, for messages.
        error: Type of the error.
        constants: Accept ``NaN`` and ``Infinity``, which are not JSON, but which Python writes.
        halves: Accept lone surrogates in strings; the caller must handle them.

    Raises:
        UserError: The text is not JSON, an object has a key twice, or a number is too large.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where, error=error)
    try:
        value = _decoder(constants).decode(text)
        if not halves and (HALF.search(text) or not is_writable(text)):
            _check_strings(value)
    # The parser raises ValueError, and RecursionError or MemoryError for deeply nested text.
    except (ValueError, RecursionError, MemoryError) as reason:
        said = "it is nested too deeply" if isinstance(reason, RecursionError) else reason
        raise error(f"{where} is not JSON ({said})") from reason
    return value


def parse_yaml(text: str | bytes, where: str, *, error: type[UserError] = ConfigError) -> Any:
    """Parse YAML; tags that refer to code are rejected.

    Raises:
        UserError: The text is not YAML, a mapping has a key twice, or aliases make it too large.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where, error=error)
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            size = _count_nodes(node, {}) if node is not None else 0
            check_limit("yaml values", size, where, error=error)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except UserError:
        raise
    # PyYAML lets errors of its conversions through, as of dates and tagged numbers (ValueError,
    # KeyError, IndexError, AttributeError, RecursionError and its own).
    except Exception as reason:
        # Python's advice on long integers does not help the author of the file.
        said = str(reason).partition("; use sys.")[0]
        said = "it is nested too deeply" if isinstance(reason, RecursionError) else said
        raise error(f"{where} is not readable YAML: {said}") from reason


def read_int(
    value: object,
    what: str,
    *,
    low: int = LOWEST,
    high: int = HIGHEST,
    error: type[UserError] = DataError,
) -> int:
    """Convert text, or a value parsed from JSON or YAML, to an integer.

    Args:
        value: Digits with an optional sign, an integer, or a float without fraction.
        what: Name of the value, for messages.
        low: Lowest allowed value; default is that of a signed 64-bit integer.
        high: Highest allowed value; default is that of a signed 64-bit integer.
        error: Type of the error.

    Raises:
        UserError: The value is not a whole number, or out of range.
    """
    number: int | None = None
    if isinstance(value, str) and WHOLE.fullmatch(value):
        number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    if number is None or not low <= number <= high:
        rule = f"from {low} to {high}" if (low, high) != (LOWEST, HIGHEST) else "of 64 bits"
        raise error(f"{what} is {shorten(value)}; it must be a whole number {rule}")
    return number


def read_float(value: object, what: str, *, error: type[UserError] = DataError) -> float:
    """Convert text, or a value parsed from JSON or YAML, to a finite float.

    Raises:
        UserError: The value is not a number, or not finite.
    """
    number = float("nan")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not isfinite(number):
        raise error(f"{what} is {shorten(value)}; it must be a finite number")
    return number


def shorten(value: object, most: int = 60) -> str:
    """Return the ``repr`` of a value, shortened to ``most`` characters."""
    if isinstance(value, int) and value.bit_length() > 4 * MAX_DIGITS:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


@cache
def _decoder(constants: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_as_dict,
        parse_int=_parse_int,
        parse_float=_parse_float,
        parse_constant=None if constants else _refuse_constant,
    )


def _as_dict(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {double[:60]!r} twice")
    return found


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits; at most {MAX_DIGITS} are read")
    return int(text)


def _parse_float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON; write null, or leave the key out")


def _check_strings(value: Any) -> None:
    for text in _strings(value):
        if not is_writable(text):
            raise ValueError(f"{text[:60]!a} contains half of a surrogate pair, which is not text")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, held in value.items():
            yield key
            yield from _strings(held)
    elif isinstance(value, list):
        for held in value:
            yield from _strings(held)


def _count_nodes(node: Any, known: dict[int, int | None]) -> int:
    """Count the values below a YAML node, counting every alias as often as it is used."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError("an alias is inside the value that it refers to")
        return size
    known[id(node)] = None
    size = 1
    if isinstance(node.value, list):
        keys = set()
        for child in node.value:
            pair = child if isinstance(child, tuple) else (child,)
            if len(pair) == 2 and isinstance(pair[0].value, str):
                key = (pair[0].tag, pair[0].value)
                if key in keys:
                    line = pair[0].start_mark.line + 1
                    raise ValueError(f"line {line} has the key {pair[0].value!r} twice")
                keys.add(key)
            size += sum(_count_nodes(part, known) for part in pair)
    known[id(node)] = size
    return size
