"""Verbs that train: demo, pretrain, finetune, train, resume."""

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from perceivers.cli.parser import VerbParser, settings_of
from perceivers.settings import tolerating
from perceivers.training.config import read_yaml
from perceivers.training.launching import is_main_process
from perceivers.training.loop import Interrupted
from perceivers.training.run_folder import TASKS, RunFolder
from perceivers.workflows import training as workflows
from perceivers.workflows.demo import run_demo
from perceivers.workflows.opening import settings_file
from perceivers.workflows.run import Run
from perceivers.workflows.task_table import tasks_of

INTERRUPTED = 130


def _train(verb: str, description: str, argv: list[str]) -> int:
    tasks = tasks_of(verb)
    argv = name_recipes(argv)
    task = workflows.choose_task(verb, peek(argv, "task"), peek(argv, "model"))
    parser = VerbParser(verb, description)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the settings below, or the name of a packaged recipe",
    )
    parser.add_argument(
        "--task",
        default=task,
        choices=tasks,
        help=f"training task ({', '.join(tasks)}); the settings below are those of '{task}'",
    )
    parser.add_class_arguments(TASKS[task], None)
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress, errors only")
    # A config.yaml of an earlier version may have settings that are now without effect; these only
    # cause a note, whereas the same settings given as flags are refused.
    with tolerating("unused", only=recorded_names(argv)):
        settings = settings_of(parser.parse_args(argv))
        return _finish(lambda: getattr(workflows, verb)(**settings), settings.get("out", ""))


def recorded_names(argv: list[str]) -> set[str]:
    """Return names of settings that come only from the ``config.yaml`` of a run, not from flags.

    Args:
        argv: Arguments of a training verb.
    """
    found: set[str] = set()
    flags = [word.partition("=") for word in argv if word.startswith("--")]
    for word, value in pairwise([*argv, ""]):
        path = Path(word.partition("=")[2] or value)
        if word.partition("=")[0] == "--config" and is_record(path):
            found |= flat_names(read_yaml(path))
    given = {flag.removeprefix("--") for flag, _, _ in flags}
    return {name for name in found if not {name, name.partition(".")[0]} & given}


def is_record(path: Path) -> bool:
    """Check whether a file is the recorded configuration of a run."""
    return RunFolder(path.parent).config == path and (path.parent / "environment.json").is_file()


def flat_names(settings: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of nested settings."""
    names: set[str] = set()
    for name, value in settings.items():
        names.add(f"{prefix}{name}")
        if isinstance(value, Mapping):
            names |= flat_names(value, f"{prefix}{name}.")
    return names


def name_recipes(argv: list[str]) -> list[str]:
    """Replace names of packaged recipes after ``--config`` by their files."""
    found = list(argv)
    for index, word in enumerate(found):
        if word.startswith("--config="):
            found[index] = f"--config={settings_file(word.partition('=')[2])}"
        elif word == "--config" and index + 1 < len(found):
            found[index + 1] = str(settings_file(found[index + 1]))
    return found


def peek(argv: list[str], name: str) -> str | None:
    """Read one setting before parsing, from its flag or from a ``--config`` file.

    The parser depends on the task, so the task must be known first.
    """
    found = None
    for index, word in enumerate(argv):
        flag, given, value = word.partition("=")
        if flag not in {"--config", f"--{name}"}:
            continue
        if not given:
            value = argv[index + 1] if index + 1 < len(argv) else ""
        if not value:
            continue  # the parser reports the missing value
        found = read_yaml(Path(value)).get(name, found) if flag == "--config" else value
    return None if found is None else str(found)


def _finish(start: Any, out: str) -> int:
    try:
        run: Run = start()
    except Interrupted as error:
        if not is_main_process():
            return INTERRUPTED
        sys.stderr.write(f"perceivers: {error}; continue with: perceivers resume {out}\n")
        return INTERRUPTED
    if is_main_process():
        sys.stdout.write(f"run: {run.path}\nreport: {run.folder.report}\n")
    return 0


def pretrain(argv: list[str]) -> int:
    """Pre-train a model on unlabelled data."""
    return _train("pretrain", "Pre-train a model on unlabelled data.", argv)


def finetune(argv: list[str]) -> int:
    """Fine-tune a trained model for a task."""
    return _train("finetune", "Fine-tune a trained model for a task.", argv)


def train(argv: list[str]) -> int:
    """Train a model for a task from scratch."""
    return _train("train", "Train a model for a task from scratch.", argv)


def resume(argv: list[str]) -> int:
    """Resume a stopped run."""
    parser = VerbParser("resume", "Resume a stopped run from its last checkpoint.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--devices", type=int, help="resume with this number of devices per node")
    parser.add_argument("--nodes", type=int, help="resume with this number of machines")
    parser.add_argument("--strategy", choices=["auto", "ddp", "fsdp"], help="how to distribute")
    parser.add_argument("--batch_size", type=int, help="new number of samples per step and process")
    parser.add_argument("--accumulate", type=int, help="number of micro-batches per step")
    parser.add_argument("--data", help="new address of the data, if they moved")
    parser.add_argument("--model", help="new path of the initial model, if it moved")
    parser.add_argument(
        "--accept_changed_data",
        action="store_true",
        help="resume although the data changed; the changes are recorded in data.json",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, errors only")
    settings = settings_of(parser.parse_args(argv))
    run = settings.pop("run")
    return _finish(lambda: workflows.resume(run, **settings), run)


def demo(argv: list[str]) -> int:
    """Pre-train, fine-tune and test on built-in data."""
    parser = VerbParser(
        "demo", "Pre-train, fine-tune and test a small HiP on scikit-learn's scanned digits."
    )
    parser.add_argument("--out", default="runs/demo", help="folder for the runs and the report")
    parser.add_argument(
        "--compare", action="store_true", help="also train the same model from scratch"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
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
