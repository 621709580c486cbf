"""Verbs that train: demo, pretrain, finetune, train, resume."""

import sys
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from perceivers.cli.parser import VerbParser, fail, settings_of
from perceivers.errors import OUT_OF_REACH
from perceivers.training.config import ClassifyConfig, PretrainConfig, TrainConfig
from perceivers.training.loop import Interrupted
from perceivers.training.run_folder import RunFolder
from perceivers.workflows import training as workflows
from perceivers.workflows.demo import run_demo
from perceivers.workflows.run import Run

INTERRUPTED = 130


def _train(verb: str, description: str, kind: type[TrainConfig], argv: list[str]) -> int:
    """Parse a training verb's settings and run its workflow."""
    parser = VerbParser(verb, description)
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the settings below"
    )
    parser.add_class_arguments(kind, None)
    # A run's config.yaml names its task; given back, it must be that of the verb.
    task = "pretrain" if kind is PretrainConfig else "classify"
    parser.add_argument("--task", default=task, choices=[task], help=SUPPRESS)
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress, errors only")
    settings = settings_of(parser.parse_args(argv))
    del settings["task"]
    return _finish(lambda: getattr(workflows, verb)(**settings), settings.get("out", ""))


def _finish(start: Any, out: str) -> int:
    """Run, and say where the result is."""
    try:
        run: Run = start()
    except Interrupted as error:
        sys.stderr.write(f"perceivers: {error}; continue with: perceivers resume {out}\n")
        return INTERRUPTED
    except OSError as error:
        if error.errno not in OUT_OF_REACH or not RunFolder(Path(out)).checkpoint.is_file():
            raise
        fail(
            f"{error}; the last complete checkpoint is kept, 'perceivers resume {out}' continues "
            f"from there"
        )
    sys.stdout.write(f"run: {run.path}\nreport: {run.folder.report}\n")
    return 0


def pretrain(argv: list[str]) -> int:
    """Masked auto-encoding."""
    return _train("pretrain", "Pre-train a model by masked auto-encoding.", PretrainConfig, argv)


def finetune(argv: list[str]) -> int:
    """Classification from trained weights."""
    return _train("finetune", "Fine-tune a pre-trained run as a classifier.", ClassifyConfig, argv)


def train(argv: list[str]) -> int:
    """Classification from scratch."""
    return _train("train", "Train a classifier from scratch.", ClassifyConfig, argv)


def resume(argv: list[str]) -> int:
    """Continue a stopped run."""
    parser = VerbParser("resume", "Continue a stopped run from its last checkpoint, exactly.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--quiet", action="store_true", help="no progress, errors only")
    args = parser.parse_args(argv)
    return _finish(lambda: workflows.resume(args.run, quiet=args.quiet), args.run)


def demo(argv: list[str]) -> int:
    """The whole path on built-in data."""
    parser = VerbParser(
        "demo", "Pre-train, fine-tune and test a small HiP on scikit-learn's scanned digits."
    )
    parser.add_argument("--out", default="runs/demo", help="folder for the runs and the report")
    parser.add_argument(
        "--compare", action="store_true", help="also train the same model from scratch"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--limit", type=int, default=0, help="dry run: at most this many steps")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    try:
        result = run_demo(
            args.out,
            compare=args.compare,
            seed=args.seed,
            limit=args.limit,
            overwrite=args.overwrite,
            quiet=args.quiet,
        )
    except Interrupted as error:
        sys.stderr.write(f"perceivers: {error}\n")
        return INTERRUPTED
    sys.stdout.write(result.summary())
    return 0
