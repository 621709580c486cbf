"""Size limits for untrusted input, checked before anything is read or allocated.

Every limit has a generous default and an environment variable, which worker processes inherit.
"""

import os
from types import MappingProxyType
from typing import NamedTuple

from perceivers.errors import ConfigError, DataError, UserError

GIB = 1 << 30


class Limit(NamedTuple):
    """Environment variable of a limit, its default and its unit."""

    variable: str
    default: int
    unit: str


LIMITS = MappingProxyType(
    {
        # For images, tables and point clouds, which are read whole; tars, videos and texts are not.
        "file": Limit("PERCEIVERS_MAX_FILE_BYTES", 4 * GIB, "bytes"),
        # Settings and records.
        "json": Limit("PERCEIVERS_MAX_JSON_BYTES", GIB // 4, "bytes of JSON"),
        # PyYAML takes 10 s for a million bytes.
        "yaml": Limit("PERCEIVERS_MAX_YAML_BYTES", 1 << 20, "bytes of YAML"),
        # Counted with aliases expanded, as when settings are copied or printed.
        "yaml values": Limit("PERCEIVERS_MAX_YAML_VALUES", 100_000, "values in YAML"),
        "array": Limit("PERCEIVERS_MAX_ARRAY_BYTES", 32 * GIB, "bytes in one array"),
        # Pillow's own limit: half a gigabyte at three bytes per pixel.
        "pixels": Limit("PERCEIVERS_MAX_PIXELS", 178_956_970, "pixels"),
        # Size of one sample as model input: 4 GiB of 32-bit numbers.
        "values": Limit("PERCEIVERS_MAX_SAMPLE_VALUES", 1 << 30, "values in one sample"),
        "addresses": Limit("PERCEIVERS_MAX_ADDRESSES", 1_000_000, "addresses"),
        "answer": Limit("PERCEIVERS_MAX_ANSWER_BYTES", GIB, "bytes in one response"),
    }
)


def get_limit(name: str) -> int:
    """Return one of ``LIMITS``.

    Raises:
        ConfigError: Its environment variable is not a positive integer.
    """
    variable, default, unit = LIMITS[name]
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    # Python refuses to convert strings of thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text)):
        raise ConfigError(
            f"the environment variable {variable} is {text[:40]!r}; it limits the {unit} to read, "
            f"and must be a whole number of at least 1 (default {default})"
        )
    return int(text)


def check_limit(
    name: str, found: int, where: str, *, error: type[UserError] = DataError, remedy: str = ""
) -> None:
    """Raise if a size exceeds one of ``LIMITS``.

    Args:
        name: Name of the limit.
        found: The size, as measured or as declared by a header.
        where: Name of what is read, for messages.
        error: Type of the error.
        remedy: What else the user can do if the size is intended, besides setting the variable.

    Raises:
        UserError: The size exceeds the limit; of type ``error``.
    """
    most = get_limit(name)
    if found > most:
        limit = LIMITS[name]
        raise error(
            f"{where}: {found:,} {limit.unit}, but at most {most:,} are read; "
            f"{remedy}{', or ' if remedy else ''}"
            f"set {limit.variable} if this size is intended"
        )
