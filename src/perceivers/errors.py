"""Errors a user can mend: each says what was found, the rule, and the remedy.

Every class is a ``ValueError``, so library users can catch that; the command line turns a
``UserError`` into one message and exit status 2, and everything else into a traceback (our bug).
"""

import errno
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


class LicenseWarning(UserWarning):
    """The weights at hand may not be used for everything."""


def is_users(error: OSError) -> bool:
    """Tell whether the user can mend a system error: it names a file, or the disk failed."""
    return error.filename is not None or error.errno in DISK_ERRORS


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
