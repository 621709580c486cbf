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
    """Candidates train for equal time, the best go on, one wins."""
    parser = _parser(
        "bakeoff",
        "Find the model for some data: small models of every family train for equal time, the best "
        "on validation go on, and the winner is measured once on test. The same command continues "
        "after it was stopped.",
        BakeoffSettings,
        "runs/bakeoff",
    )
    return _run(
        parser, argv, BakeoffSettings, run_bakeoff, lambda done: done.table, (RECORD, TABLE, FIGURE)
    )


def shuffle(argv: list[str]) -> int:
    """The same training with elements in place, in one other order, and in many."""
    parser = _parser(
        "shuffle",
        "Find out how much a model leans on the order of elements: it trains with elements in "
        "place, under one permutation for all samples, and under another one for every sample. "
        "The same command continues after it was stopped.",
        ShuffleSettings,
        "runs/shuffle",
    )
    names = (SHUFFLE_RECORD, TABLE, SHUFFLE_FIGURE)
    return _run(parser, argv, ShuffleSettings, run_shuffle, lambda done: done.table, names)


def _parser(verb: str, description: str, settings: Any, out: str) -> VerbParser:
    """Return the parser of a verb that compares."""
    parser = VerbParser(verb, description)
    parser.add_argument("data", help="data address, as the training verbs take it")
    parser.add_class_arguments(settings, None, skip={"data"})
    parser.add_argument("--out", default=out, help="folder for runs, table, figure and JSON")
    parser.add_argument(
        "--overwrite", action="store_true", help="start again instead of continuing in --out"
    )
    parser.add_argument("--quiet", action="store_true", help="no line per run")
    return parser


def _run(
    parser: VerbParser,
    argv: list[str],
    kind: Any,
    start: Callable[..., Any],
    show: Callable[[Any], str],
    names: tuple[str, ...],
) -> int:
    """Parse, run, print the table, and say where everything is."""
    args = settings_of(parser.parse_args(argv))
    out, overwrite, quiet = (args.pop(name) for name in ("out", "overwrite", "quiet"))
    report = (lambda line: None) if quiet else _say
    try:
        done = start(kind(**args), out, overwrite=overwrite, report=report)
    except Interrupted as error:
        sys.stderr.write(f"perceivers: {error}; the same command continues\n")
        return INTERRUPTED
    sys.stdout.write(f"{show(done)}\n")
    for name in names:
        sys.stdout.write(f"{Path(out) / name}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
