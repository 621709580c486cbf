"""The verb ``bench``: compare the speed and memory of models on this machine."""

import shlex
import sys
from typing import Any, get_args

from jsonargparse import ActionYesNo

from perceivers.bench.settings import BenchSettings, Pass
from perceivers.cli.parser import VerbParser
from perceivers.errors import ConfigError
from perceivers.workflows.benchmarking import FIGURE, RECORD, TABLE, run_bench

DEFAULTS = BenchSettings()


def bench(argv: list[str]) -> int:
    """Measure forward passes and training steps of several models at several image sizes."""
    settings, out, overwrite, quiet = parse(argv)

    def report(line: str) -> None:
        if not quiet:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    done = run_bench(
        settings,
        out,
        overwrite=overwrite,
        command=shlex.join(["perceivers", "bench", *argv]),
        report=report,
    )
    sys.stdout.write(f"{done.table}\n")
    for name in (RECORD, TABLE, FIGURE):
        sys.stdout.write(f"{done.folder / name}\n")
    return 1 if done.failures else 0


def parse(argv: list[str]) -> tuple[BenchSettings, str, bool, bool]:
    """Return the settings, the output folder, and the flags ``overwrite`` and ``quiet``."""
    parser = VerbParser(
        "bench",
        "Compare models, each in its own process: time and peak memory of a "
        "forward pass and of a training step (forward and backward, without an optimizer).",
    )
    many = "one or more, separated by spaces or commas"
    parser.add_argument(
        "--models", nargs="+", default=list(DEFAULTS.models), help=f"model names; {many}"
    )
    parser.add_argument(
        "--sizes", nargs="+", default=["224", "512"], help=f"image sides in pixels; {many}"
    )
    parser.add_argument(
        "--passes",
        nargs="+",
        default=list(DEFAULTS.passes),
        help="forward (without gradients), step (forward and backward), or both",
    )
    parser.add_argument("--rounds", type=int, default=DEFAULTS.rounds, help="interleaved rounds")
    parser.add_argument(
        "--peers",
        action=ActionYesNo(no_prefix="no-"),
        default=DEFAULTS.peers,
        help="also measure the same models in other installed libraries, and ResNet-50",
    )
    parser.add_argument(
        "--reference", default="", help="model to which speeds are relative (the Perceiver IO)"
    )
    parser.add_argument(
        "--memory_limit",
        nargs="+",
        default=[],
        help="one or more limits in GB: find the largest image that can be trained within each",
    )
    parser.add_argument(
        "--batch_size", type=int, default=DEFAULTS.batch_size, help="images per pass"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    helps = {"precision": "bf16 on CUDA, float32 elsewhere", "device": "cuda if a GPU is available"}
    for name, text in helps.items():
        kinds = get_args(BenchSettings.__annotations__[name])
        parser.add_argument(f"--{name}", choices=kinds, default="auto", help=f"auto: {text}")
    parser.add_argument(
        "--timeout", type=float, default=DEFAULTS.timeout, help="seconds allowed per measurement"
    )
    parser.add_argument("--out", default="runs/bench", help="folder for table, figure and JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier benchmark")
    parser.add_argument("--quiet", action="store_true", help="do not print a line per measurement")
    args = parser.parse_args(argv).as_dict()
    out, overwrite, quiet = (args.pop(name) for name in ("out", "overwrite", "quiet"))
    return BenchSettings(**{**args, **read_lists(args)}), out, overwrite, quiet


def read_lists(args: dict[str, Any]) -> dict[str, Any]:
    """Parse the options that take several values into tuples.

    Raises:
        ConfigError: If a pass is unknown, or a size or limit is not a number.
    """
    lists = {
        name: tuple(word for text in args[name] for word in str(text).split(",") if word)
        for name in ("models", "sizes", "passes", "memory_limit")
    }
    passes: tuple[Any, ...] = lists["passes"]
    unknown = sorted(set(passes) - set(get_args(Pass)))
    if unknown:
        raise ConfigError(f"passes: {unknown[0]!r} is unknown; choose from {list(get_args(Pass))}")
    sizes = tuple(read_number("sizes", word, int) for word in lists["sizes"])
    limits = tuple(read_number("memory_limit", word, float) for word in lists["memory_limit"])
    return {"models": lists["models"], "sizes": sizes, "passes": passes, "memory_limit": limits}


def read_number(name: str, word: str, kind: Any) -> Any:
    """Convert a word with ``kind``, int or float.

    Raises:
        ConfigError: If the word is not such a number.
    """
    try:
        return kind(word)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name}: {word!r} is not {what}") from None
