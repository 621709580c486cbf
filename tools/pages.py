"""Write what the documentation repeats of the code: option tables and the list of public names.

    python tools/pages.py            # or: make pages

Tables of docs/cli.md below ``<!-- verbs -->`` and ``<!-- options: VERB -->`` come from the command
line, docs/api.md comes from the public names of the package. ``tests/test_docs.py`` fails where a
page differs from what this writes.
"""

import re
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import perceivers
from perceivers.cli.main import VERBS, open_command
from perceivers.cli.parser import VerbParser
from perceivers.workflows.task_table import tasks_of

DOCS = Path(__file__).parent.parent / "docs"
CLI = DOCS / "cli.md"
API = DOCS / "api.md"
TABLE = re.compile(r"(<!-- (verbs|options: [^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# Options that a table leaves out: help, and what jsonargparse adds to every parser.
UNLISTED = {"help", "version"}
Option = tuple[str, str, str, str]
TRAINING = ("pretrain", "train", "finetune")

API_SECTIONS: dict[str, tuple[str, ...]] = {
    "Models": ("create_model", "list_models", "load", "HiP", "HiPConfig", "HiPLevel", "HiPHead"),
    "Modalities": ("Image", "Video", "Audio", "Points", "Array", "Bytes", "Labels"),
    "Masks and losses": (
        "MaskPlan",
        "draw_mask_plan",
        "draw_unit_plan",
        "mae_losses",
        "MaskedAutoencodingConfig",
        "ClassificationConfig",
    ),
    "Training": (
        "pretrain",
        "finetune",
        "train",
        "resume",
        "Run",
        "PretrainConfig",
        "ClassifyConfig",
        "OptimizerConfig",
        "ScheduleConfig",
        "AugmentConfig",
    ),
    "Using models": (
        "evaluate",
        "evaluate_subsets",
        "predict",
        "reconstruct",
        "embed",
        "probe",
        "find_anomalies",
        "AnomalySettings",
        "explain",
        "export",
        "convert",
        "Views",
    ),
    "Data and comparisons": (
        "open_data",
        "check_data",
        "plan_training",
        "bakeoff",
        "shuffle",
        "compare_runs",
    ),
    "Errors": ("UserError",),
}


@cache
def options_of(verb: str, task: str | None = None) -> list[Option]:
    """Return (flag, default, values, meaning) of every option of a verb."""
    arguments = ["--task", task, "--help"] if task else ["--help"]
    return list(_options(open_command(verb, arguments).parser))


def _options(parser: VerbParser) -> Iterator[Option]:
    for action in parser._actions:
        flags = [flag for flag in action.option_strings if flag.startswith("--")]
        flags = [flag for flag in flags if not flag.endswith("+")]
        if not flags or action.dest in UNLISTED:
            continue
        if type(action).__name__ == "_ActionConfigLoad":
            continue  # a group from a file: said once, in the text
        names = ", ".join(f"`{flag}`" for flag in flags)
        required = action.required
        text = " ".join((action.help or "").split()).rstrip(".")
        if type(action).__name__ == "_ActionPrintConfig":
            text = "print the settings as YAML and stop"
        yield names, "required" if required else default_of(action), values_of(action), text


def default_of(action: Any) -> str:
    """Return an option's default as it would be typed."""
    value = action.default
    if type(action).__name__ == "_StoreTrueAction":
        return "off"
    if value is None or value == "==SUPPRESS==" or value == "":
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"`{each}`" if isinstance(each, str) else f"{each:g}" for each in value)
    return f"`{value}`" if isinstance(value, str) else str(value)


def values_of(action: Any) -> str:
    """Return the values that an option takes: choices, or the type and its rule."""
    if action.choices:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    return describe_type(getattr(action, "_typehint", None) or action.type)


def describe_type(kind: Any) -> str:
    """Return a type annotation in words, such as 'int, at least 1'."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is typing.Annotated:
        rules = [repr(rule) for rule in kind.__metadata__]
        return ", ".join([describe_type(kind.__origin__), *rules])
    if origin is tuple:
        return " and ".join(dict.fromkeys(describe_type(each) for each in arguments))
    if origin is not None and type(None) in arguments:
        return " or ".join(describe_type(each) for each in arguments if each is not type(None))
    if origin is list:
        return f"list of {describe_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if arguments:
        return " or ".join(describe_type(each) for each in arguments)
    name = getattr(kind, "__name__", "")
    return {"str": "text", "bool": "`true`, `false`", "_boolean_type": ""}.get(name, name)


def table(options: list[Option]) -> str:
    """Return options as a Markdown table."""
    lines = ["| option | default | values | meaning |", "|---|---|---|---|"]
    for option in options:
        cells = [cell.replace("|", "\\|").replace("<", "&lt;") for cell in option]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def training_options(task: str | None) -> list[Option]:
    """Return the options that all tasks share, or those that a task adds to them."""
    verb_of = {task: verb for verb in TRAINING for task in tasks_of(verb)}
    by_task = {task: options_of(verb, task) for task, verb in verb_of.items()}
    names = [{option[0] for option in options} for options in by_task.values()]
    shared = set.intersection(*names)
    if task is None:
        varying = ("`--task`",)
        found = [option for option in by_task["classify"] if option[0] in shared]
        return [option for option in found if option[0] not in varying]
    return [option for option in by_task[task] if option[0] not in shared]


def verb_table() -> str:
    """Return every verb with its line of help, linked to its section."""
    lines = ["| verb | what it does |", "|---|---|"]
    for verb, row in VERBS.items():
        section = "pretrain-finetune-train" if verb in TRAINING else verb
        lines.append(f"| [`{verb}`](#{section}) | {row.line} |")
    return "\n".join(lines) + "\n"


def fill(text: str) -> str:
    """Return a page with its tables of verbs and options replaced by those of the code."""

    def replace(match: re.Match[str]) -> str:
        if match[2] == "verbs":
            return match[1] + verb_table() + match[4]
        verb, _, task = match[2].removeprefix("options: ").partition(" ")
        options = training_options(task or None) if verb in TRAINING else options_of(verb)
        return match[1] + table(options) + match[4]

    return TABLE.sub(replace, text)


def api_page() -> str:
    """Return docs/api.md: the public names by section, described by their docstrings."""
    listed = {name for names in API_SECTIONS.values() for name in names}
    missing = set(perceivers.__all__) - listed - {"__version__"}
    if missing or listed - set(perceivers.__all__):
        raise SystemExit(f"API_SECTIONS does not match perceivers.__all__: {sorted(missing)}")
    lines = [
        "# Python",
        "",
        "The names of `import perceivers as pv`. Keywords of the training functions are the",
        "settings of the [command line](cli.md#pretrain-finetune-train); nested ones are",
        "dictionaries or config classes.",
    ]
    for title, names in API_SECTIONS.items():
        lines += ["", f"## {title}"]
        for name in names:
            value = getattr(perceivers, name)
            lines += ["", f"::: {value.__module__}.{name}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the pages."""
    CLI.write_text(fill(CLI.read_text()))
    API.write_text(api_page())


if __name__ == "__main__":
    main()
