r"""Names from outside: escaping what UTF-8 cannot encode, and unifying Unicode spellings.

File names are bytes. Python decodes bytes that are not UTF-8 to lone surrogates, which find the
file again but cannot be written to a text file. So such names are escaped as sample ids
(``caf\xe9.png``) and rejected as class names. Accented letters have two spellings, composed (NFC,
on most systems) and decomposed (NFD, on macOS); names are compared and classes stored in NFC.
"""

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from perceivers.errors import ConfigError, DataError, UserError

ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")


def compose(name: str) -> str:
    """Return the composed spelling (NFC) of a name."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_writable(name: str) -> bool:
    """Return whether UTF-8 can encode a name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def show_name(name: str) -> str:
    r"""Return a name that UTF-8 can encode, with other bytes escaped, such as ``\xff``."""
    if is_writable(name):
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        # A lone surrogate that does not encode a byte; only JSON and YAML can produce one.
        return name.encode("utf-8", "backslashreplace").decode()


def show_all(value: Any) -> Any:
    """Apply ``show_name`` to all strings of a nested value, before it is written as JSON."""
    if isinstance(value, str):
        return show_name(value)
    if isinstance(value, Mapping):
        return {show_all(key): show_all(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [show_all(held) for held in value]
    return value


def name_bytes(name: str) -> bytes:
    """Return bytes that are the same for all spellings of a name, escaped or not.

    They equal the bytes of the file name if it is composed, or is not UTF-8.
    """
    data = show_name(compose(name)).encode()
    return ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), data)


def check_writable(name: str, where: str, *, error: type[UserError] = DataError) -> str:
    """Return the composed spelling of a column or class name.

    Args:
        name: The name.
        where: Its location, for messages, such as ``x.csv: line 3: label``.
        error: Type of the error.

    Raises:
        UserError: UTF-8 cannot encode the name; of type ``error``.
    """
    if not is_writable(name):
        raise error(
            f"{where} is {show_name(name)!r}, which is not UTF-8 text{guess_encoding(name)}; "
            f"names of classes and columns are stored in models and records, so encode it as UTF-8"
        )
    return compose(name)


def check_class_name(name: str, where: str, *, error: type[UserError] = DataError) -> str:
    """Return the composed spelling of a class name.

    Raises:
        UserError: As for ``check_writable``, or the name contains a line break or another control
            character.
    """
    # Unicode line separators are not control characters, but ``str.splitlines`` splits at them.
    bad = [character for character in name if unicodedata.category(character) in {"Cc", "Zl", "Zp"}]
    if bad:
        raise error(
            f"{where} is {name[:60]!r}, which contains {bad[0]!r}; a class name must be one line "
            f"without control characters"
        )
    return check_writable(name, where, error=error)


def check_written_path(path: str | os.PathLike[str], what: str) -> None:
    """Raise if a file or folder to be written has a name that some libraries could not open.

    Raises:
        ConfigError: The name is not UTF-8, which safetensors and Matplotlib cannot open.
    """
    if not is_writable(os.fspath(path)):
        raise ConfigError(
            f"{what} is {show_name(os.fspath(path))!r}, which is not UTF-8; output files need "
            f"names in UTF-8, so choose another name"
        )


def check_class_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the composed spelling of all class names.

    Raises:
        DataError: As for ``check_class_name``, or two names differ only in their spelling.
    """
    found = tuple(check_class_name(name, where) for name in names)
    for name, spellings in group_spellings(names).items():
        if len(set(spellings)) > 1:
            raise DataError(
                f"{where} is {name!r} in both composed and decomposed Unicode; these are the same "
                f"name, so give them the same number"
            )
    return found


def group_spellings(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by their composed spelling, in order of first occurrence."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(compose(name), []).append(name)
    return found


def guess_encoding(name: str) -> str:
    """Return `` (in Windows-1252 it is 'x')`` for a name that is not UTF-8, otherwise nothing."""
    try:
        guess = name.encode("utf-8", "surrogateescape").decode("cp1252")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return ""
    return f" (in Windows-1252 it is {guess!r})" if guess.isprintable() else ""


def find_spelling(path: Path) -> Path:
    """Return the path of an existing file whose name may differ in its Unicode spelling.

    Args:
        path: A path as written in a table or as a label.

    Returns:
        The path of the file, or ``path`` if it exists or no spelling does.
    """
    text = str(path)
    if text.isascii() or os.path.lexists(text):
        return path
    for form in ("NFC", "NFD"):
        if os.path.lexists(other := unicodedata.normalize(form, text)):
            return Path(other)
    # The spelling may vary by part, such as a decomposed folder with composed file names.
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        step = found / part
        if not os.path.lexists(step):
            step = found / (_find_part(found, compose(part)) or part)
        found = step
    return found if os.path.lexists(found) else path


def describe_names(names: Iterable[str]) -> str:
    """Return a note on file names that are not UTF-8; empty if there are none."""
    odd = [show_name(name) for name in names if not is_writable(name)]
    if not odd:
        return ""
    return (
        f"{len(odd)} file names are not UTF-8, such as {odd[0]}; their other bytes are escaped in "
        f"output"
    )


def _find_part(folder: Path, name: str) -> str | None:
    try:
        entries = [entry.name for entry in folder.iterdir()]
    except OSError:
        return None
    return next((entry for entry in entries if compose(entry) == name), None)


# -- Cells of CSV files --------------------------------------------------------------------------


# Spreadsheets treat cells that start like this as formulas, which may run programs.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")


def write_csv(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, with an apostrophe before text that a spreadsheet would run as a formula.

    Args:
        file: File opened with ``newline=""``.
        rows: Rows of texts and numbers; numbers are unchanged, including those given as text.
    """
    csv.writer(file).writerows([csv_cell(cell) for cell in row] for row in rows)


def csv_cell(value: object) -> str:
    """Return a cell's text, with an apostrophe in front if it looks like a formula."""
    text = show_name(str(value))
    if not text.startswith(FORMULA_STARTS) or all(map(_is_number, text.split("; "))):
        return text
    return f"'{text}"


def markdown_text(value: object) -> str:
    """Escape text so that Markdown and HTML made from it show it unchanged, in one line."""
    text = " ".join(str(value).split())
    return _MARKUP.sub(lambda match: f"\\{match[0]}", text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
