"""How much is read of what somebody else wrote: checked before anything is read or allocated.

Every limit has a generous default and an environment variable, which workers inherit.
"""

import os
from types import MappingProxyType
from typing import NamedTuple

from perceivers.errors import ConfigError, DataError, UserError

GIB = 1 << 30


class Limit(NamedTuple):
    """The variable that sets a limit, its default, and what is counted."""

    variable: str
    default: int
    unit: str


LIMITS = MappingProxyType(
    {
        # A picture, a table, a cloud: read whole. Tars, films and documents are read in parts.
        "file": Limit("PERCEIVERS_MAX_FILE_BYTES", 4 * GIB, "bytes"),
        # JSON of settings and records.
        "json": Limit("PERCEIVERS_MAX_JSON_BYTES", GIB // 4, "bytes of JSON"),
        # PyYAML takes 10 s for a million bytes.
        "yaml": Limit("PERCEIVERS_MAX_YAML_BYTES", 1 << 20, "bytes of YAML"),
        # With every alias written out, as who copies or prints the settings does.
        "yaml values": Limit("PERCEIVERS_MAX_YAML_VALUES", 100_000, "values in YAML"),
        "array": Limit("PERCEIVERS_MAX_ARRAY_BYTES", 32 * GIB, "bytes in one array"),
        # Pillow's own: three bytes for each make half a gigabyte.
        "pixels": Limit("PERCEIVERS_MAX_PIXELS", 178_956_970, "pixels"),
        # What one sample becomes for the model, as 32-bit numbers: 4 GiB.
        "values": Limit("PERCEIVERS_MAX_SAMPLE_VALUES", 1 << 30, "values in one sample"),
        "addresses": Limit("PERCEIVERS_MAX_ADDRESSES", 1_000_000, "addresses"),
        "answer": Limit("PERCEIVERS_MAX_ANSWER_BYTES", GIB, "bytes in one answer"),
    }
)


def get_limit(name: str) -> int:
    """Return one of ``LIMITS``.

    Raises:
        ConfigError: Its environment variable holds no whole number from 1.
    """
    variable, default, unit = LIMITS[name]
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    # Longer than any count of bytes, and than Python turns into a number.
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text)):
        raise ConfigError(
            f"the environment variable {variable} is {text[:40]!r}; it limits the {unit} that are "
            f"read, and must be a whole number of at least 1 (default {default})"
        )
    return int(text)


def check_limit(
    name: str, found: int, where: str, *, error: type[UserError] = DataError, remedy: str = ""
) -> None:
    """Refuse what is larger than one of ``LIMITS``.

    Args:
        name: Which limit.
        found: How many there are, or are promised.
        where: What is read, for messages.
        error: What is raised.
        remedy: What to do where the size is no mistake, besides setting the variable.

    Raises:
        UserError: It is larger; of the type that is given.
    """
    most = get_limit(name)
    if found > most:
        limit = LIMITS[name]
        raise error(
            f"{where}: {found:,} {limit.unit}, but at most {most:,} are read; "
            f"{remedy}{', or ' if remedy else ''}"
            f"set {limit.variable} where this size is meant"
        )
