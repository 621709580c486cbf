"""Entry point: ``perceivers VERB ...``. ``--help`` and ``--version`` do not import torch."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from perceivers.cli.verbs import ACTIONS, VERBS
from perceivers.errors import ConfigError, LicenseWarning, UserError, is_users, suggest
from perceivers.text_names import check_written_path, show_name
from perceivers.version import __version__

if TYPE_CHECKING:
    from perceivers.cli.signatures import Command

INTERRUPTED = 130


def usage() -> str:
    """Return the top-level help."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {row.line}" for verb, row in VERBS.items()]
    return "\n".join(
        [
            "perceivers: general perception in PyTorch, from raw elements of any signal",
            "",
            "usage: perceivers VERB [options]      perceivers VERB --help",
            "",
            *lines,
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status.

    The status is 0 on success, 2 for a user error (one message) and 130 after an interruption with
    the state saved. Any other exception is a bug of the library and keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # Names of files and classes may contain characters that the terminal cannot encode; escape
        # them rather than lose the output.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(usage())
        return 0
    if arguments[0] in {"-V", "--version"}:
        sys.stdout.write(f"perceivers {__version__}\n")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        sys.stderr.write(f"perceivers: unknown verb {verb!r}{suggest(verb, VERBS)}\n\n{usage()}")
        return 2
    return run_verb(verb, arguments[1:])


def run_verb(verb: str, arguments: list[str]) -> int:
    """Run a verb, and print licence warnings as plain notes."""
    plain = warnings.showwarning

    def show(message: Any, category: Any, *rest: Any) -> None:
        if issubclass(category, LicenseWarning):
            sys.stderr.write(f"perceivers: note: {message}\n")
        else:
            plain(message, category, *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always", LicenseWarning)
        warnings.showwarning = show
        return _run_verb(verb, arguments)


def open_command(verb: str, arguments: list[str]) -> "Command":
    """Return a verb with its parser, which parses nothing yet.

    Raises:
        ConfigError: The second word of a verb such as ``data`` is unknown.
    """
    from perceivers.cli.parser import describe_flags

    describe_flags(arguments)
    row, name = VERBS[verb], verb
    if verb in ACTIONS:
        action = arguments[0] if arguments and not arguments[0].startswith("-") else ""
        if action and action not in ACTIONS[verb]:
            raise ConfigError(
                f"{verb}: {action!r} is unknown; choose from {' and '.join(ACTIONS[verb])}"
                f"{suggest(action, ACTIONS[verb])}"
            )
        arguments = arguments[1:] if action else arguments
        action = action or next(iter(ACTIONS[verb]))
        row, name = ACTIONS[verb][action], f"{verb} {action}"
    if row.trains:
        from perceivers.cli.training import TrainingCommand

        return TrainingCommand(name, row, arguments)
    from perceivers.cli.signatures import Command

    return Command(name, row, arguments)


def _run_verb(verb: str, arguments: list[str]) -> int:
    try:
        for flag, value in pairwise([*arguments, ""]):
            if flag == "--out" or flag.startswith("--out="):
                check_written_path(flag.partition("=")[2] or value, "--out")
        command = open_command(verb, arguments)
        from perceivers.cli.printing import print_shown

        return print_shown(command.run())
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("perceivers"):
            raise
        sys.stderr.write(
            f"perceivers: '{verb}' needs the package {error.name!r}; install it with: "
            f'pip install "perceivers[demo]"\n'
        )
        return 2
    except UserError as error:
        sys.stderr.write(f"perceivers: {show_name(str(error))}\n")
        return 2
    except BrokenPipeError:
        # The reader closed the pipe ('| head'). Python flushes stdout at exit, which would raise
        # again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not is_users(error):
            raise
        sys.stderr.write(f"perceivers: {show_name(str(error))}\n")
        return 2
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except KeyboardInterrupt:
        sys.stderr.write("perceivers: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
