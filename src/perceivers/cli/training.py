"""The verbs that train: their flags are the settings of a task, from its config class."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from perceivers.cli.parser import VerbParser, settings_of, wants_help
from perceivers.cli.signatures import Command, describe_arguments, plain
from perceivers.report.console import Shown
from perceivers.settings import tolerating
from perceivers.training.config import read_yaml
from perceivers.training.run_folder import TASKS, RunFolder
from perceivers.workflows.opening import settings_file
from perceivers.workflows.task_table import tasks_of
from perceivers.workflows.training import choose_task


class TrainingCommand(Command):
    """A verb that trains: pretrain, finetune or train."""

    def build(self) -> VerbParser:
        """Return the parser for the settings of the task that the arguments name."""
        tasks = tasks_of(self.name)
        self.argv = name_recipes(self.argv)
        task = choose_task(self.name, peek(self.argv, "task"), peek(self.argv, "model"))
        description = describe_arguments(self.function)[0] if wants_help(self.argv) else ""
        parser = VerbParser(self.name, plain(description, {}))
        parser.add_argument(
            "--config",
            action="config",
            help="YAML file with any of the settings below, or the name of a packaged recipe.",
        )
        parser.add_argument(
            "--task",
            default=task,
            choices=tasks,
            help=f"Training task ({', '.join(tasks)}); the settings below are those of '{task}'.",
        )
        parser.add_class_arguments(TASKS[task], None)
        parser.add_argument("--overwrite", action="store_true", help="Replace the run in --out.")
        parser.add_argument("--quiet", action="store_true", help="Print no progress, only errors.")
        return parser

    def parse(self) -> dict[str, Any]:
        """Return the settings, which are the keywords of the function."""
        return settings_of(self.parser.parse_args(self.argv))

    def run(self) -> Shown:
        """Parse the arguments, train, and return what to print.

        A ``config.yaml`` of an earlier version may have settings that are now without effect; these
        only cause a note, whereas the same settings given as flags are refused.
        """
        with tolerating("unused", only=recorded_names(self.argv)):
            return super().run()


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
