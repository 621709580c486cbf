"""Verbs that train several models and compare them: bakeoff, shuffle."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perceivers.cli.parser import VerbParser, settings_of
from perceivers.training.loop import Interrupted
from perceivers.workflows.arms import TABLE
from perceivers.workflows.bakeoff import run_bakeoff
from perceivers.workflows.bakeoff_state import FIGURE, RECORD, BakeoffSettings
from perceivers.workflows.shuffling import FIGURE as SHUFFLE_FIGURE
from perceivers.workflows.shuffling import RECORD as SHUFFLE_RECORD
from perceivers.workflows.shuffling import ShuffleSettings, run_shuffle

INTERRUPTED = 130


def bakeoff(argv: list[str]) -> int:
    """Find the best model for some data by successive halving."""
    parser = _parser(
        "bakeoff",
        "Find the best model for some data: small models of every family train for equal time, the "
        "best on validation continue, and the winner is evaluated once on the test split. After an "
        "interruption, run the same command again to continue.",
        BakeoffSettings,
        "runs/bakeoff",
    )
    return _run(
        parser, argv, BakeoffSettings, run_bakeoff, lambda done: done.table, (RECORD, TABLE, FIGURE)
    )


def shuffle(argv: list[str]) -> int:
    """Compare training on ordered elements, on one fixed permutation, and on one per sample."""
    parser = _parser(
        "shuffle",
        "Measure how much a model depends on the order of elements: it is trained on the original "
        "order, on one permutation for all samples, and on a different permutation per sample. "
        "After an interruption, run the same command again to continue.",
        ShuffleSettings,
        "runs/shuffle",
    )
    names = (SHUFFLE_RECORD, TABLE, SHUFFLE_FIGURE)
    return _run(parser, argv, ShuffleSettings, run_shuffle, lambda done: done.table, names)


def _parser(verb: str, description: str, settings: Any, out: str) -> VerbParser:
    parser = VerbParser(verb, description)
    parser.add_argument("data", help="data address, as for the training verbs")
    parser.add_class_arguments(settings, None, skip={"data"})
    parser.add_argument("--out", default=out, help="folder for runs, table, figure and JSON")
    parser.add_argument(
        "--overwrite", action="store_true", help="start again instead of continuing in --out"
    )
    parser.add_argument("--quiet", action="store_true", help="do not print a line per run")
    return parser


def _run(
    parser: VerbParser,
    argv: list[str],
    kind: Any,
    start: Callable[..., Any],
    show: Callable[[Any], str],
    names: tuple[str, ...],
) -> int:
    args = settings_of(parser.parse_args(argv))
    out, overwrite, quiet = (args.pop(name) for name in ("out", "overwrite", "quiet"))
    report = (lambda line: None) if quiet else _say
    try:
        done = start(kind(**args), out, overwrite=overwrite, report=report)
    except Interrupted as error:
        sys.stderr.write(f"perceivers: {error}; run the same command again to continue\n")
        return INTERRUPTED
    sys.stdout.write(f"{show(done)}\n")
    for name in names:
        sys.stdout.write(f"{Path(out) / name}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
