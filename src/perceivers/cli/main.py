"""Entry point: ``perceivers VERB ...``. ``--help`` and ``--version`` do not import torch."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

from perceivers.errors import LicenseWarning, UserError, is_users, suggest
from perceivers.text_names import check_written_path, show_name
from perceivers.version import __version__

# verb -> (module, function, one line)
VERBS: dict[str, tuple[str, str, str]] = {
    "demo": ("training", "demo", "pre-train, fine-tune and test on built-in real data"),
    "models": ("tools", "models", "list the named models"),
    "recipes": ("tools", "recipes", "list, show or copy packaged training settings"),
    "pretrain": ("training", "pretrain", "learn from unlabelled data"),
    "finetune": ("training", "finetune", "fine-tune a trained model for a task"),
    "train": ("training", "train", "train a model for a task from scratch"),
    "resume": ("training", "resume", "resume a stopped run from its last checkpoint"),
    "bakeoff": ("comparing", "bakeoff", "find the best small model for some data"),
    "shuffle": ("comparing", "shuffle", "measure how much a model depends on element order"),
    "evaluate": ("using", "evaluate", "compute metrics on a held-out split"),
    "predict": ("using", "predict", "classify files, fill in masked text, compute flow"),
    "embed": ("features", "embed", "write the features of files or a data set"),
    "probe": ("features", "probe", "evaluate frozen features with k-NN and a linear probe"),
    "anomaly": ("features", "anomaly", "score files by masked reconstruction error"),
    "reconstruct": ("using", "reconstruct", "reconstruct files with a masked autoencoder"),
    "explain": ("explaining", "explain", "draw attention maps"),
    "report": ("using", "report", "regenerate a run's report, or compare runs"),
    "export": ("using", "export", "write ONNX or torch.export, run it and compare"),
    "plan": ("planning", "plan", "estimate operations, memory, hours and the largest batch"),
    "bench": ("benchmarking", "bench", "compare time and memory of models on this machine"),
    "data": ("data", "data", "check the data at an address and propose commands"),
    "convert": ("tools", "convert", "convert released weights and verify them"),
    "doctor": ("tools", "doctor", "check this machine and installation"),
}
INTERRUPTED = 130


def usage() -> str:
    """Return the top-level help."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, _, line) in VERBS.items()]
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
    module, function, _ = VERBS[verb]
    plain = warnings.showwarning

    def show(message: Any, category: Any, *rest: Any) -> None:
        if issubclass(category, LicenseWarning):
            sys.stderr.write(f"perceivers: note: {message}\n")
        else:
            plain(message, category, *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always", LicenseWarning)
        warnings.showwarning = show
        return _run_verb(verb, module, function, arguments)


def _run_verb(verb: str, module: str, function: str, arguments: list[str]) -> int:
    try:
        from perceivers.cli.parser import describe_flags

        run: Callable[[list[str]], int] = getattr(
            import_module(f"perceivers.cli.{module}"), function
        )
        for flag, value in pairwise([*arguments, ""]):
            if flag == "--out" or flag.startswith("--out="):
                check_written_path(flag.partition("=")[2] or value, "--out")
        describe_flags(arguments)
        return run(arguments)
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
