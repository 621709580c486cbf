"""Parsing what somebody else wrote: everything that its parsers can raise is the user's to mend."""

import json
from typing import Any

import pytest
import yaml

from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.foreign import decode_text, parse_json, parse_yaml, read_float, read_int, shorten

MANY = "9" * 5000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (MANY, "an integer has 5000 digits"),
        (f'{{"a": -{MANY}}}', "an integer has 5001 digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("NaN", "NaN is not a number in JSON"),
        ("[-Infinity]", "-Infinity is not a number in JSON"),
        ("1e999", "too large"),
        (r'"\ud800"', "half of a surrogate pair"),
        (r'{"\udfff": 1}', "half of a surrogate pair"),
        (r'[[{"a": "b\uDCFF"}]]', "half of a surrogate pair"),
        ('"\ud800"', "half of a surrogate pair"),
        ('{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice"),
        ('{"a": {"b": 1, "b": 1}}', "has the key 'b' twice"),
        ("", "Expecting value"),
        ('{"a": 1', "Expecting"),
        ("{'a': 1}", "Expecting property name"),
        ("1 2", "Extra data"),
        ('"a\nb"', "Invalid control character"),
    ],
)
def test_what_is_no_json_is_refused(text: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^here is not JSON \(.*{reason}"):
        parse_json(text, "here", error=CheckpointError)


def test_json_is_read_as_the_standard_library_does() -> None:
    text = r'{"a": [1, -2.5e3, true, null, "\u00e9\ud83d\ude00"], "b": {"a": 12345678901234567890}}'
    assert parse_json(text, "x") == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf" + text.encode(), "x") == json.loads(text)


def test_what_we_wrote_may_hold_nan_and_escaped_names() -> None:
    found = parse_json(
        r'{"a": NaN, "b": Infinity, "c": "\udcff"}', "x", constants=True, halves=True
    )
    assert str(found) == "{'a': nan, 'b': inf, 'c': '\\udcff'}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, r"x: [\d,]+ values in YAML, but at most 100,000 are read"),
        ("a: &a [*a]", "an alias is inside the value that it refers to"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: 2024-02-30 25:00:00", "day is out of range|hour must be"),
        (f"a: {MANY}", "4300 digits"),
        ("a: 1\nb: 2\na: 3", "line 3 has the key 'a' twice"),
        ("a:\n  b: 1\n  b: 2", "line 3 has the key 'b' twice"),
        ("a: !!int ''", "x is not readable YAML"),
        ("a: !!bool maybe", "x is not readable YAML"),
        ("a: !!timestamp never", "x is not readable YAML"),
        ("a: !!float x", "could not convert"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("{[1]: 2}", "unhashable key"),
        ("a: \x07", "special characters are not allowed"),
        ("a: 'b", "while scanning"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\nb: 1", "expected a single document"),
    ],
)
def test_what_is_no_yaml_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_yaml(text, "x")


def test_yaml_is_read_as_the_library_does() -> None:
    text = "a: &a {x: 1, y: [1.5, no, 2024-01-02]}\nb: {<<: *a, z: *a}\nc:\n"
    assert parse_yaml(text, "x") == yaml.safe_load(text)
    assert parse_yaml("", "x") is None
    # A bomb that is small enough is only a few aliases.
    few = "\n".join(BOMB.splitlines()[:4])
    assert parse_yaml(few, "x") == yaml.safe_load(few)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("a\ncaf\u00e9".encode("cp1252"), r"line 2 is not UTF-8 \(byte 0xe9; .*'caf\u00e9'\)"),
        ("a\r\nb".encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        ("a\r\nb".encode("utf-16-be"), "zero byte at 0"),
        (b"ab\0", "zero byte at 2"),
        (b"a\xed\xa0\x80", "line 1 is not UTF-8"),
    ],
)
def test_text_in_another_encoding_is_refused_with_its_line(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=rf"^x: .*{reason}"):
        decode_text(data, "x")


def test_text_in_utf_8_is_read_without_its_mark() -> None:
    assert decode_text(b"\xef\xbb\xbfcaf\xc3\xa9\n", "x") == "caf\u00e9\n"


@pytest.mark.parametrize(("value", "number"), [("7", 7), (" -3 ", -3), ("+0", 0), (5, 5), (2.0, 2)])
def test_whole_numbers_are_read(value: Any, number: int) -> None:
    assert read_int(value, "x") == number


@pytest.mark.parametrize(
    "value",
    ["", "1.5", "1e3", "1_000", "\u0663", MANY, int("9" * 4000), 2**63, True, None, [], 1.5, "nan"],
)
def test_what_is_no_whole_number_of_64_bits_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^x is .{1,80}; it must be a whole number of 64 bits"):
        read_int(value, "x")


def test_a_range_is_held() -> None:
    assert read_int("3", "x", low=0, high=3) == 3
    with pytest.raises(ConfigError, match="x is '4'; it must be a whole number from 0 to 3"):
        read_int("4", "x", low=0, high=3, error=ConfigError)


@pytest.mark.parametrize(("value", "number"), [("1.5", 1.5), ("-2e3", -2000.0), (7, 7.0)])
def test_numbers_are_read(value: Any, number: float) -> None:
    assert read_float(value, "x") == number


@pytest.mark.parametrize("value", ["", "x", "nan", "-inf", "1e999", 10**4000, True, None, [1.0]])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^x is .{1,80}; it must be a finite number"):
        read_float(value, "x")


def test_long_values_are_shortened() -> None:
    assert shorten("a" * 100) == "'" + "a" * 56 + "..."
    assert shorten(1 << 20_000) == "an integer of 20001 bits"
    assert shorten(12) == "12"
