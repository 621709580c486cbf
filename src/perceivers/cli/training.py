"""Verbs that train, and the one that plans it: demo, plan, pretrain, finetune, train, resume."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from perceivers.cli.parser import VerbParser, print_table, settings_of
from perceivers.files import write_json
from perceivers.plan.estimates import USABLE, PlanSettings
from perceivers.settings import tolerating
from perceivers.training.config import read_yaml
from perceivers.training.launching import is_main_process
from perceivers.training.loop import Interrupted
from perceivers.training.run_folder import TASKS, RunFolder
from perceivers.workflows import training as workflows
from perceivers.workflows.demo import run_demo
from perceivers.workflows.opening import settings_file
from perceivers.workflows.planning import Plan, plan_training, settings_from_recipe
from perceivers.workflows.run import Run

# -- The verb ``plan``: what a training run will take --------------------------------------------


UNITS = ("", "k", "M", "G", "T", "P", "E")
LEAST = 1000.0


def plan(argv: list[str]) -> int:
    """Tokens, parameters, operations, memory, hours and cost of a run, before it starts."""
    parser = VerbParser(
        "plan",
        "Count what a training run takes, without training: tokens, parameters, operations, "
        "memory, the largest batch that fits, hours and cost.",
    )
    parser.add_argument(
        "--recipe", default=None, help="YAML file of a training verb, or a packaged recipe"
    )
    parser.add_class_arguments(PlanSettings, None, skip={"model"})
    parser.add_argument("--model", default=None, help="a variant name ('perceivers models')")
    parser.add_argument("--json", default=None, help="file to write the plan to")
    given = settings_of(parser.parse_args(argv))
    recipe, path = given.pop("recipe"), given.pop("json")
    if recipe is not None:
        # Flags win over the file; what they leave at its default does not.
        defaults = settings_of(parser.get_defaults())
        chosen = {k: v for k, v in given.items() if v != defaults.get(k)}
        read = settings_from_recipe(read_yaml(settings_file(recipe)))
        if "epochs" in chosen:
            read.pop("steps", None)  # a flag wins over what would make it idle
        given = {**given, **read, **chosen}
    if not given.get("model"):
        parser.error("the following arguments are required: model")
    found = plan_training(PlanSettings(**given))
    _show(found)
    if path is not None:
        write_json(Path(path), plan_to_json(found))
        sys.stdout.write(f"{path}\n")
    return 0


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data; bytes, operations, hours and seconds.

    Args:
        plan: From ``plan_training``.
    """
    data: Mapping[str, Any] = asdict(plan)
    return {**data, "tokens": [modality._asdict() for modality in plan.tokens]}


def scaled(value: float, unit: str) -> str:
    """Return a number with a unit and the prefix that makes it short, in steps of 1000.

    Args:
        value: Not negative.
        unit: Such as ``B`` or ``FLOP``.
    """
    power = 0
    while value >= LEAST and power < len(UNITS) - 1:
        value, power = value / LEAST, power + 1
    return f"{value:.3g} {UNITS[power]}{unit}".strip()


def _show(plan: Plan) -> None:
    """Print a plan."""
    settings = plan.settings
    rows = [(t.name, f"{t.elements:,}", f"{t.tokens:,}", str(t.groups)) for t in plan.tokens]
    print_table(("modality", "elements", "tokens", "groups"), rows)
    part = settings.batch_size // settings.accumulate
    split = f" in {settings.accumulate} parts" if settings.accumulate > 1 else ""
    recomputed = ", layers recomputed" if settings.recompute else ""
    counted = "counted by torch" if plan.exact else "counted by torch on 2 and 4 samples"
    per_sample = plan.step.step / part
    memory, where = plan.memory, f"of {scaled(plan.device_memory, 'B')}"
    shared = f", divided by {settings.devices}" if settings.sharded else ""
    what = [
        ("task", plan.task, f"{settings.model}, {settings.precision}{recomputed}"),
        ("parameters", f"{plan.weights.count:,}", f"{plan.weights.trained:,} trained"),
        ("forward pass", scaled(plan.step.forward / part, "FLOP"), f"per sample, {counted}"),
        ("training step", scaled(per_sample, "FLOP"), "per sample, forward and backward"),
        ("batch", f"{settings.batch_size:,}", f"per device{split}, on {settings.devices} devices"),
        ("weights", scaled(memory.weights, "B"), f"per device{shared}"),
        ("gradients", scaled(memory.gradients, "B"), f"per device{shared}"),
        ("optimizer", scaled(memory.optimizer, "B"), f"per device{shared}: two moments"),
        ("activations", scaled(memory.kept, "B"), "kept for the backward pass"),
        ("peak memory", scaled(memory.peak, "B"), where + _too_much(plan)),
        ("largest batch", f"{plan.largest_batch:,}", f"at one time, in {USABLE:.0%} {where}"),
    ]
    print_table(("what", "value", "note"), [*what, *_run_rows(plan)])


def _too_much(plan: Plan) -> str:
    """Say that a batch does not fit."""
    fits = plan.memory.peak <= USABLE * plan.device_memory
    return "" if fits else ": too much; use --accumulate, --recompute true or a smaller batch"


def _run_rows(plan: Plan) -> list[tuple[str, str, str]]:
    """Return the rows about the whole run."""
    settings, run = plan.settings, plan.duration
    how = f"{settings.utilisation:.0%} of the peak, assumed (--utilisation)"
    if plan.seconds:
        how = f"{plan.seconds:.3g} s per step, measured on this machine"
    rows = [("speed", scaled(plan.rate, "FLOP/s"), f"per device: {how}")]
    if run is None:
        return [*rows, ("run", "-", "give --samples, or --steps, for hours and cost")]
    rows += [
        (
            "run",
            scaled(run.operations, "FLOP"),
            f"{plan.samples:,.0f} samples, {run.steps:,} steps",
        ),
        ("samples per second", f"{run.samples_per_second:,.1f}", "that loaders must bring"),
        ("hours", f"{run.hours:,.3g}", f"{run.hours * settings.devices:,.3g} device hours"),
    ]
    if run.bandwidth:
        rows += [
            ("bandwidth", scaled(run.bandwidth, "B/s"), "of all loaders"),
            ("storage", scaled(run.storage, "B"), f"{plan.stored:,.0f} samples"),
        ]
    if settings.hourly_cost:
        formula = f"hours x {settings.devices} devices x {settings.hourly_cost:g}"
        rows.append(("cost", f"{run.cost:,.0f}", formula))
    return rows


# -- Verbs that train: demo, pretrain, finetune, train, resume -----------------------------------


INTERRUPTED = 130


def _train(verb: str, description: str, argv: list[str]) -> int:
    """Parse a training verb's settings and run its workflow."""
    tasks = workflows.VERB_TASKS[verb]
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
        help=f"what to learn ({', '.join(tasks)}); the settings below are those of '{task}'",
    )
    parser.add_class_arguments(TASKS[task], None)
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress, errors only")
    # What an earlier run recorded may have no effect by today's rules; that is noted.
    with tolerating("unused", only=recorded_names(argv)):
        settings = settings_of(parser.parse_args(argv))
        return _finish(lambda: getattr(workflows, verb)(**settings), settings.get("out", ""))


def recorded_names(argv: list[str]) -> set[str]:
    """Return the settings that come from the config.yaml of a run, and from no flag.

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
    """Tell whether a file is the settings that a run recorded."""
    return RunFolder(path.parent).config == path and (path.parent / "environment.json").is_file()


def flat_names(settings: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Return the names of nested settings, with dots."""
    names: set[str] = set()
    for name, value in settings.items():
        names.add(f"{prefix}{name}")
        if isinstance(value, Mapping):
            names |= flat_names(value, f"{prefix}{name}.")
    return names


def name_recipes(argv: list[str]) -> list[str]:
    """Put the files of packaged recipes in the place of their names."""
    found = list(argv)
    for index, word in enumerate(found):
        if word.startswith("--config="):
            found[index] = f"--config={settings_file(word.partition('=')[2])}"
        elif word == "--config" and index + 1 < len(found):
            found[index + 1] = str(settings_file(found[index + 1]))
    return found


def peek(argv: list[str], name: str) -> str | None:
    """Return a setting before the others are parsed: its flag, or its line in a --config file.

    The task decides which settings there are, so it must be known first.
    """
    found = None
    for index, word in enumerate(argv):
        flag, given, value = word.partition("=")
        if flag not in {"--config", f"--{name}"}:
            continue
        if not given:
            value = argv[index + 1] if index + 1 < len(argv) else ""
        if not value:
            continue  # the parser says what is missing
        found = read_yaml(Path(value)).get(name, found) if flag == "--config" else value
    return None if found is None else str(found)


def _finish(start: Any, out: str) -> int:
    """Run, and say where the result is."""
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
    """Learning without labels."""
    return _train("pretrain", "Pre-train a model on unlabelled data.", argv)


def finetune(argv: list[str]) -> int:
    """A task from trained weights."""
    return _train("finetune", "Fine-tune a trained model for a task.", argv)


def train(argv: list[str]) -> int:
    """A task from scratch."""
    return _train("train", "Train a model for a task from scratch.", argv)


def resume(argv: list[str]) -> int:
    """Continue a stopped run."""
    parser = VerbParser("resume", "Continue a stopped run from its last checkpoint, exactly.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--devices", type=int, help="go on with this many devices per node")
    parser.add_argument("--nodes", type=int, help="go on with this many machines")
    parser.add_argument("--strategy", choices=["auto", "ddp", "fsdp"], help="share the work so")
    parser.add_argument("--batch_size", type=int, help="samples per step and process from here on")
    parser.add_argument("--accumulate", type=int, help="parts in which a batch is computed")
    parser.add_argument("--data", help="where the run's data are now, if they moved")
    parser.add_argument("--model", help="where the model it started from is now, if it moved")
    parser.add_argument(
        "--accept_changed_data",
        action="store_true",
        help="go on although the data changed; what changed is kept in data.json",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, errors only")
    settings = settings_of(parser.parse_args(argv))
    run = settings.pop("run")
    return _finish(lambda: workflows.resume(run, **settings), run)


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
