"""Kinds of settings: out of range, misspelt, and given in vain."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from tests.fuzz.bench import Bench, kind

from perceivers.training.run_folder import TASKS

VERBS = {"pretrain": "pretrain", "mlm": "pretrain", "autoencode": "pretrain"}
WHOLE = (int, int | None)
NUMBERS = (*WHOLE, float, float | None)
START = ("--model", "hip_nano", "--data", "digits", "--out", "run", "--limit", "1")
# Settings that do nothing beside the others that are given.
VAIN: tuple[tuple[str, ...], ...] = (
    ("--schedule.constant", "0.3"),
    ("--augment.magnitude", "7"),
    ("--model_options.num_bands", "8"),
)


def number_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of all numbers of a config class, and their types."""
    hints = get_type_hints(config)
    for each in fields(config):
        kind_of = hints[each.name]
        if is_dataclass(kind_of):
            yield from number_settings(kind_of, f"{prefix}{each.name}.")
        elif kind_of in NUMBERS:
            yield f"{prefix}{each.name}", kind_of


def any_number(bench: Bench) -> tuple[str, str, Any]:
    """Return a task, and the name and type of one of its settings."""
    task = bench.pick(*TASKS)
    return task, *bench.pick(*number_settings(TASKS[task]))


def start(task: str) -> list[str]:
    """Return the beginning of a command that trains a task."""
    return [VERBS.get(task, "train"), "--task", task, *START]


@kind
def number_that_is_not_finite(bench: Bench) -> None:
    """NaN and infinity are refused for every number, by the name of the setting."""
    task, name, _ = any_number(bench)
    value = bench.pick(".nan", ".inf", "-.inf")
    bench.refuse(*start(task), f"--{name}", value, says=(name.replace(".", r"\."),))
    assert not Path("run").exists()


@kind
def number_out_of_every_range(bench: Bench) -> None:
    """A number beyond any sensible range is refused, by the name of the setting."""
    task, name, kind_of = any_number(bench)
    value = -(10**20) if kind_of in WHOLE else bench.pick(-1e20, -1e30)
    bench.refuse(*start(task), f"--{name}", value, says=(name.replace(".", r"\."),))
    assert not Path("run").exists()


@kind
def number_that_is_none(bench: Bench) -> None:
    """Words, lists, truth values and fractions in place of numbers are refused by name."""
    task, name, kind_of = any_number(bench)
    wrong: list[Any] = ["many", [1, 2], {"a": 1}, True]
    if kind_of in WHOLE:
        wrong.append(1.5)
    content: Any = bench.pick(*wrong)
    for part in reversed(name.split(".")):
        content = {part: content}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    bench.refuse(*start(task), "--config", "mine.yaml", says=(name.rpartition(".")[2],))
    assert not Path("run").exists()


@kind
def setting_misspelt(bench: Bench) -> None:
    """A misspelt setting is refused, with the nearest name."""
    task, name, _ = any_number(bench)
    place = bench.whole(1, len(name.rpartition(".")[2]))
    place += len(name) - len(name.rpartition(".")[2])
    wrong = name[:place] + "q" + name[place:]
    bench.refuse(*start(task), f"--{wrong}", "1", says=(wrong.replace(".", r"\."), "did you mean"))
    assert not Path("run").exists()


@kind
def setting_in_vain(bench: Bench) -> None:
    """A setting that the others leave without effect is refused with the reason."""
    option = bench.pick(*VAIN)
    verb = bench.pick("train", "pretrain")
    name = option[0].rpartition(".")[2]
    bench.refuse(verb, *START, *option, says=(name,))
    assert not Path("run").exists()


@kind
def option_out_of_range(bench: Bench) -> None:
    """Numbers of the verbs that use models are refused below their range."""
    run = bench.runs / "finished" / "classify_hip" / "model"
    options = bench.pick(
        ("evaluate", run, "--data", "digits", "--limit"),
        ("evaluate", run, "--data", "digits", "--batch_size"),
        ("evaluate", run, "--data", "digits", "--workers"),
        ("evaluate", run, "--data", "digits", "--temporal_views"),
        ("predict", run, "x.png", "--top"),
        ("data", "check", "digits", "--limit"),
    )
    value = -bench.whole(1, 10**6)
    bench.refuse(*options, value, says=(str(value),))
