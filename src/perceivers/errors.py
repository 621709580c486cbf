"""Errors that a user can fix: messages state what was found, what was expected and what to do.

Every class is a ``ValueError``. The command line prints a ``UserError`` as one message with exit
status 2; any other exception is a bug and prints a traceback.
"""

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches

# Disk errors. Raised while writing to an open file, they may not name it.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class UserError(ValueError):
    """Base class: an error that the user can fix."""


class InputError(UserError):
    """A tensor or sample does not match its declared modality."""


class ConfigError(UserError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(UserError):
    """Data cannot be read, or do not contain what is needed."""


class RemoteError(UserError):
    """A server does not respond, or its file is missing or has changed."""


class CheckpointError(UserError):
    """A file is not the expected checkpoint."""


class RunError(UserError):
    """A run folder is in the wrong state for the requested operation."""


class FolderLostError(RunError):
    """A run folder was moved, removed or taken over while a process was training in it."""

    agreed = False
    """Whether all processes of the run know about it."""


class LicenseWarning(UserWarning):
    """The license of the weights restricts their use."""


def is_users(error: OSError) -> bool:
    """Return whether the user can fix a system error: it names a file, or the disk failed."""
    return error.filename is not None or error.errno in DISK_ERRORS


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


# Terminal escapes come first, or parts of them would remain; then all other control characters.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# Extracts the finding of torch's unpickler from its long message.
_TORCH_FOUND = (
    (re.compile(r"Unsupported global: GLOBAL (\S+)"), "it refers to {}, which no weights need"),
    (re.compile(r"unsupported GLOBAL (\S+)"), "it refers to {}, which no weights need"),
    (re.compile(r"WeightsUnpickler error:\s*([^\n]*)"), "{}"),
)
_ADVICE = re.compile(r"weights_only|weights only|safe_globals|trust", re.IGNORECASE)
LONGEST_REASON = 300


def plain_reason(error: BaseException) -> str:
    """Return the reason of a library's failure in one printable line.

    Torch's advice on loading a file without its safety check is removed: nobody should do that to a
    damaged or malicious file.
    """
    text = str(error)
    for pattern, words in _TORCH_FOUND:
        if found := pattern.search(text):
            text = words.format(found[1])
            break
    text = _CONTROL.sub(" ", text.strip().partition("\n")[0])
    text = text.encode("utf-8", "backslashreplace").decode().strip()
    if not text or _ADVICE.search(text):
        text = type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
