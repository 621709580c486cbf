"""The verb ``plan``: estimate the cost of a training run."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perceivers.cli.parser import VerbParser, print_table, settings_of
from perceivers.files import write_json
from perceivers.plan.estimates import USABLE, PlanSettings
from perceivers.training.config import read_yaml
from perceivers.workflows.opening import settings_file
from perceivers.workflows.planning import Plan, plan_training, settings_from_recipe

UNITS = ("", "k", "M", "G", "T", "P", "E")
LEAST = 1000.0


def plan(argv: list[str]) -> int:
    """Estimate operations, memory, time and cost of a training run before it starts."""
    parser = VerbParser(
        "plan",
        "Estimate what a training run needs, without training: tokens, parameters, operations, "
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
        # A flag overrides the file, unless its value is the default.
        defaults = settings_of(parser.get_defaults())
        chosen = {k: v for k, v in given.items() if v != defaults.get(k)}
        read = settings_from_recipe(read_yaml(settings_file(recipe)))
        if "epochs" in chosen:
            read.pop("steps", None)  # steps in the file would make the flag unused
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
    """Return a plan for JSON, in bytes, operations, hours and seconds.

    Args:
        plan: From ``plan_training``.
    """
    data: Mapping[str, Any] = asdict(plan)
    return {**data, "tokens": [modality._asdict() for modality in plan.tokens]}


def scaled(value: float, unit: str) -> str:
    """Format a number with a decimal unit prefix, such as ``1.5 GB``.

    Args:
        value: Not negative.
        unit: For example ``B`` or ``FLOP``.
    """
    power = 0
    while value >= LEAST and power < len(UNITS) - 1:
        value, power = value / LEAST, power + 1
    return f"{value:.3g} {UNITS[power]}{unit}".strip()


def _show(plan: Plan) -> None:
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
        ("activations", scaled(memory.kept, "B"), "stored for the backward pass"),
        ("peak memory", scaled(memory.peak, "B"), where + _too_much(plan)),
        ("largest batch", f"{plan.largest_batch:,}", f"at one time, in {USABLE:.0%} {where}"),
    ]
    print_table(("what", "value", "note"), [*what, *_run_rows(plan)])


def _too_much(plan: Plan) -> str:
    fits = plan.memory.peak <= USABLE * plan.device_memory
    return "" if fits else ": too much; use --accumulate, --recompute true or a smaller batch"


def _run_rows(plan: Plan) -> list[tuple[str, str, str]]:
    settings, run = plan.settings, plan.duration
    how = f"{settings.utilisation:.0%} of the peak, assumed (--utilisation)"
    if plan.seconds:
        how = f"{plan.seconds:.3g} s per step, measured on this machine"
    rows = [("speed", scaled(plan.rate, "FLOP/s"), f"per device: {how}")]
    if run is None:
        return [*rows, ("run", "-", "give --samples or --steps to estimate hours and cost")]
    rows += [
        (
            "run",
            scaled(run.operations, "FLOP"),
            f"{plan.samples:,.0f} samples, {run.steps:,} steps",
        ),
        ("samples per second", f"{run.samples_per_second:,.1f}", "needed from the data loaders"),
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
