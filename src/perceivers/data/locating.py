"""Local paths inside data addresses: making them absolute, and finding out whether they exist."""

from collections.abc import Callable
from pathlib import Path

from perceivers.data.address import BUILT_IN
from perceivers.data.http_ranges import is_remote
from perceivers.data.hugging_face import HUGGING_FACE
from perceivers.data.joined import SEPARATOR
from perceivers.data.shards import BRACES
from perceivers.data.warps import WARPS
from perceivers.errors import suggest


def absolute_address(address: str) -> str:
    """Return a data address that means the same in every folder.

    Args:
        address: As for ``open_data``; relative paths start at the current folder. Names of built-in
            data, of data sets of the hub and of files on servers stay as they are, and so does
            what does not exist and resembles a built-in name.
    """

    def settle(path: str) -> str:
        is_misspelt = bool(suggest(path, BUILT_IN)) and not _is_there(path)
        return path if is_misspelt else absolute_path(path)

    return change_paths(address, settle)


def is_present(address: str) -> bool:
    """Tell whether all local files and folders that an address names exist."""
    found: list[bool] = []

    def look(path: str) -> str:
        found.append(_is_there(path))
        return path

    change_paths(address, look)
    return all(found)


def absolute_path(path: str) -> str:
    """Return a path from the root, without following links."""
    return str(Path.cwd() / _expand(path))


def change_paths(address: str, change: Callable[[str], str]) -> str:
    """Return an address with every local path in it changed.

    Args:
        address: As for ``open_data``, or ``warps:`` and such an address.
        change: Called with each path.
    """
    if address.startswith(WARPS):
        return WARPS + change_paths(address.removeprefix(WARPS), change)
    if SEPARATOR in address and not _exists(address):
        parts = [part.strip() for part in address.split(SEPARATOR)]
        return SEPARATOR.join(change_paths(part, change) for part in parts)
    if address in BUILT_IN or is_remote(address) or not address.strip():
        return address
    if not address.startswith(HUGGING_FACE):
        return change(address)
    rest = address.removeprefix(HUGGING_FACE).strip()
    path, mark, split = (rest, "", "") if _exists(rest) else rest.partition(":")
    # What is no folder is a name of the hub.
    is_folder = _exists(path) or Path(path).is_absolute()
    return f"{HUGGING_FACE}{change(path)}{mark}{split}" if is_folder else address


def _is_there(path: str) -> bool:
    # The first tar stands for the range.
    return _exists(path) or _exists(BRACES.sub(lambda match: match[1], path))


def _exists(path: str) -> bool:
    try:
        return _expand(path).exists()
    except OSError:  # a name that is too long
        return False


def _expand(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)
