"""Errors a user can mend: each says what was found, the rule, and the remedy.

Every class is a ``ValueError``, so library users can catch that; the command line turns a
``UserError`` into one message and exit status 2, and everything else into a traceback (our bug).
"""

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches

# Failures of a disk. They arise while an open file is written, so they may not name it.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class UserError(ValueError):
    """The caller's mistake: the message holds values, the rule and the remedy."""


class InputError(UserError):
    """A tensor or a sample that does not fit its declared modality."""


class ConfigError(UserError):
    """A setting that contradicts another, is out of range or unknown."""


class DataError(UserError):
    """A data address that cannot be read, or holds too little."""


class RemoteError(UserError):
    """A server that does not answer, or no longer has what it had."""


class CheckpointError(UserError):
    """A file that is not the checkpoint it should be."""


class RunError(UserError):
    """A run folder in the wrong state for what was asked."""


class FolderLostError(RunError):
    """A run folder that was moved, removed or taken over while a process was training in it."""

    agreed = False
    """Whether all processes of the run know of it."""


class LicenseWarning(UserWarning):
    """The weights at hand may not be used for everything."""


def is_users(error: OSError) -> bool:
    """Tell whether the user can mend a system error: it names a file, or the disk failed."""
    return error.filename is not None or error.errno in DISK_ERRORS


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


# Terminal escapes first, so that no part of one is left; then all other control characters.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# What torch's unpickler found, inside of what torch says about it.
_TORCH_FOUND = (
    (re.compile(r"Unsupported global: GLOBAL (\S+)"), "it asks for {}, which no weights need"),
    (re.compile(r"unsupported GLOBAL (\S+)"), "it asks for {}, which no weights need"),
    (re.compile(r"WeightsUnpickler error:\s*([^\n]*)"), "{}"),
)
_ADVICE = re.compile(r"weights_only|weights only|safe_globals|trust", re.IGNORECASE)
LONGEST_REASON = 300


def plain_reason(error: BaseException) -> str:
    """Return one printable line on why a library failed, without its advice to trust the file.

    Torch explains at length, partly in bold, how to load a file without its safety check. Nobody
    should be told to do that to a damaged or hostile file.
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
