r"""Names from outside: what cannot be written is escaped, and spellings of one name are one name.

Names of files are bytes. Python reads those that are no UTF-8 as halves of surrogate pairs, with
which the file is found, but which no text file takes. So a name is escaped where it becomes the id
of a sample (``caf\xe9.png``), and refused where it names a class. Accented letters have two
spellings, composed (NFC, as most systems write) and decomposed (NFD, as a Mac writes); names are
compared, and classes kept, in the first.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perceivers.errors import ConfigError, DataError, UserError

ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")


def compose(name: str) -> str:
    """Return the composed spelling (NFC) of a name."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_writable(name: str) -> bool:
    """Tell whether a name is text that UTF-8 can write."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def show_name(name: str) -> str:
    r"""Return a name that can be written anywhere: bytes that are no UTF-8 become ``\xff``."""
    if is_writable(name):
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        # Half of a pair that never was a byte, as only JSON and YAML can write it.
        return name.encode("utf-8", "backslashreplace").decode()


def show_all(value: Any) -> Any:
    """Return what is to be written as JSON, with all its strings as ``show_name`` shows them."""
    if isinstance(value, str):
        return show_name(value)
    if isinstance(value, Mapping):
        return {show_all(key): show_all(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [show_all(held) for held in value]
    return value


def name_bytes(name: str) -> bytes:
    """Return bytes that are the same for all spellings of a name, escaped or not.

    They are those of the file's name where it is composed, or no UTF-8.
    """
    data = show_name(compose(name)).encode()
    return ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), data)


def check_writable(name: str, where: str, *, error: type[UserError] = DataError) -> str:
    """Return the composed spelling of what names a column or a class.

    Args:
        name: The name.
        where: What it is, for messages, such as ``x.csv: line 3: label``.
        error: What is raised.

    Raises:
        UserError: It is no text in UTF-8; of the type that is given.
    """
    if not is_writable(name):
        raise error(
            f"{where} is {show_name(name)!r}, which is no text in UTF-8{guess_encoding(name)}; "
            f"names of classes and columns are written into models and records, so write it in "
            f"UTF-8"
        )
    return compose(name)


def check_class_name(name: str, where: str, *, error: type[UserError] = DataError) -> str:
    """Return the composed spelling of what names a class.

    Raises:
        UserError: As ``check_writable``, or it holds a line break or another control character.
    """
    # Line separators are no control characters, but break lines for whoever splits them.
    bad = [character for character in name if unicodedata.category(character) in {"Cc", "Zl", "Zp"}]
    if bad:
        raise error(
            f"{where} is {name[:60]!r}, which holds {bad[0]!r}; a class name is one line of text, "
            f"without control characters"
        )
    return check_writable(name, where, error=error)


def check_written_path(path: str | os.PathLike[str], what: str) -> None:
    """Refuse the name of a file or folder that is to be written, where others could not open it.

    Raises:
        ConfigError: It is no UTF-8, which libraries of tensors and of figures cannot open.
    """
    if not is_writable(os.fspath(path)):
        raise ConfigError(
            f"{what} is {show_name(os.fspath(path))!r}, which is no UTF-8; what is written gets a "
            f"name in UTF-8, so choose another"
        )


def check_class_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the composed spelling of all names of classes.

    Raises:
        DataError: As ``check_class_name``, or two of them are spellings of one name.
    """
    found = tuple(check_class_name(name, where) for name in names)
    for name, spellings in group_spellings(names).items():
        if len(set(spellings)) > 1:
            raise DataError(
                f"{where} is {name!r}, and so is another, in composed and in decomposed Unicode; "
                f"they are one name, so give them one number"
            )
    return found


def group_spellings(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the spellings of every name by the composed one, in the order of the first."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(compose(name), []).append(name)
    return found


def guess_encoding(name: str) -> str:
    """Return ``: in Windows-1252 it is 'x'`` for bytes that are no UTF-8; nothing for others."""
    try:
        guess = name.encode("utf-8", "surrogateescape").decode("cp1252")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return ""
    return f" (in Windows-1252 it is {guess!r})" if guess.isprintable() else ""


def find_spelling(path: Path) -> Path:
    """Return the path under which a file is found, where a part of it is spelled otherwise.

    Args:
        path: A path as a table or a label names it.

    Returns:
        The path itself where it exists, or where nothing else is found.
    """
    text = str(path)
    if text.isascii() or os.path.lexists(text):
        return path
    for form in ("NFC", "NFD"):
        if os.path.lexists(other := unicodedata.normalize(form, text)):
            return Path(other)
    # Parts may differ, as in a decomposed folder with composed names.
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        step = found / part
        if not os.path.lexists(step):
            step = found / (_find_part(found, compose(part)) or part)
        found = step
    return found if os.path.lexists(found) else path


def describe_names(names: Iterable[str]) -> str:
    """Return a sentence on file names that are no UTF-8, with the first; nothing without any."""
    odd = [show_name(name) for name in names if not is_writable(name)]
    if not odd:
        return ""
    return (
        f"{len(odd)} file names are no UTF-8, such as {odd[0]}; they are written with such bytes "
        f"escaped"
    )


def _find_part(folder: Path, name: str) -> str | None:
    """Return an entry of a folder by its composed name."""
    try:
        entries = [entry.name for entry in folder.iterdir()]
    except OSError:
        return None
    return next((entry for entry in entries if compose(entry) == name), None)
