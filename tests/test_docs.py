"""The documentation: links resolve, snippets run, commands and flags exist, options are listed."""

import re
import runpy
import shlex
import tomllib
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import perceivers
from perceivers.checkpoints.catalogue import own_names
from perceivers.cli.main import VERBS, main
from perceivers.data import modality
from perceivers.errors import ConfigError
from perceivers.training.run_folder import TASKS
from perceivers.workflows import training
from perceivers.workflows.opening import list_recipes
from perceivers.workflows.task_table import tasks_of

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLE = ROOT / "examples" / "own_loop.py"
RUNNABLE = "<!-- runnable -->\n"
COMMAND = re.compile(r"`(perceivers [a-z][^`]*)`")


def blocks(text: str, language: str, before: str = "") -> list[str]:
    """Return the fenced blocks of a language, that follow ``before`` when it is given."""
    return re.findall(rf"{before}^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the page's headings as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith("http")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {index.parent / link for link in links(index.read_text())}
    assert listed == {page for page in PAGES if page.parent == index.parent} - {index}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_ascii(page: Path) -> None:
    assert page.read_text().isascii()


def marks_of(code: str) -> list[pytest.MarkDecorator]:
    """Exports cannot run under the hook that checks shapes; training many models is slow."""
    marks = [pytest.mark.unhooked] if "pv.export(" in code else []
    return [*marks, pytest.mark.slow] if "pv.bakeoff(" in code else marks


SNIPPETS = [
    pytest.param(
        code,
        id=f"{page.stem}-{number}",
        marks=marks_of(code),
    )
    for page in PAGES
    for number, code in enumerate(blocks(page.read_text(), "python", RUNNABLE))
]


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) > 8


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_runnable_snippet_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two steps instead of many, without reports, beside a picture ``digit.png``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.Run, "write_report", lambda run: run.folder.report)
    # A modality of a snippet is forgotten after it.
    monkeypatch.setattr(modality, "_ROWS", dict(modality.modalities()))
    monkeypatch.setattr(modality, "SPECS", dict(modality.SPECS))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("digit.png")
    code = re.sub(r"\bsteps=\d+", "steps=2", code)
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


@cache
def options(verb: str, task: str | None = None) -> frozenset[str]:
    """Return the flags that a verb's help names for a task."""
    text = StringIO()
    with redirect_stdout(text):
        assert main([verb, *(["--task", task] if task else []), "--help"]) == 0
    return frozenset(re.findall(r"--[a-z][\w.\-]*", text.getvalue()))


def check_command(line: str) -> None:
    """Fail unless the verb exists, trains the task, and has every flag for it."""
    verb, *words = shlex.split(line, comments=True)[1:]
    assert verb in VERBS, line
    task = None
    if verb in training.VERBS:
        given = dict(pairwise(words))
        task = training.choose_task(verb, given.get("--task"), given.get("--model"))
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= options(verb, task), line


def commands(text: str) -> list[str]:
    """Return the command lines of shell blocks, continued ones as one, and of running text."""
    joined = [re.sub(r"\\\n\s*", "", block) for block in blocks(text, "bash")]
    lines = [line for block in joined for line in block.splitlines()]
    found = [line for line in lines if line.startswith("perceivers ")]
    return found + [" ".join(inline.split()) for inline in COMMAND.findall(text)]


COMMANDS = [
    pytest.param(line, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, line in enumerate(commands(page.read_text()))
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_names_a_real_verb_and_real_flags(line: str) -> None:
    check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "perceivers pretend",
        "perceivers pretrain --mask.rate 0.5",
        "perceivers pretrain --task mlm --mask.ratio 0.5",
        "perceivers pretrain --model perceiver_io_nano --mask.ratio 0.5",
        "perceivers train --max_flow 3",
        "perceivers train --task mlm",
    ],
)
def test_an_invented_verb_flag_or_task_is_noticed(line: str) -> None:
    with pytest.raises((AssertionError, ConfigError)):
        check_command(line)


@cache
def generator() -> dict[str, Any]:
    """Return the names of the script that writes the generated parts of pages."""
    return runpy.run_path(str(ROOT / "tools" / "pages.py"), run_name="pages")


def test_generated_parts_of_pages_are_up_to_date() -> None:
    """``make pages`` writes them again."""
    page = (ROOT / "docs" / "cli.md").read_text()
    assert generator()["fill"](page.replace("| 2000 |", "| 2001 |")) == page
    assert generator()["api_page"]() == (ROOT / "docs" / "api.md").read_text()


def test_the_command_line_page_has_a_table_for_every_verb_and_task() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    found = re.findall(r"<!-- options: ([^>]*) -->", page)
    verbs = set(VERBS) - {"pretrain", "finetune", "doctor"}
    tasks = {f"train {task}" for verb in training.VERBS for task in tasks_of(verb)}
    assert sorted(found) == sorted(verbs | tasks)


def test_workflow_and_citation_state_what_the_package_supports() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = workflow["jobs"]["fast"]["strategy"]["matrix"]
    pythons = {line.rpartition(" ")[2] for line in project["classifiers"] if "3." in line}
    assert set(matrix["python"]) == pythons
    (torch,) = [line for line in project["dependencies"] if line.startswith("torch")]
    assert matrix["include"][0]["torch"] == torch.replace(">=", "==") + ".0"
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    targets = {word for run in runs if run.startswith("make") for word in run.split()[2:]}
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == perceivers.__version__
    assert citation["license"] == project["license"]


def test_the_site_lists_every_page() -> None:
    nav = re.findall(r"(?<=[ :])[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(nav) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_command_line_page_lists_every_task_and_recipe() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    tasks = {task for verb in training.VERBS for task in tasks_of(verb)}
    names = tasks | {recipe.name for recipe in list_recipes()}
    assert {name for name in names if f"| `{name}` |" not in text} == set()


def test_the_documented_loop_is_the_example() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    assert EXAMPLE.read_text() in blocks(text, "python")


@pytest.mark.slow
def test_the_example_runs_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["own_loop.py", "12"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 2
    assert losses[1] < 0.95 * losses[0]
    assert (tmp_path / "digits_mae" / "model.safetensors").is_file()


# -- counts, paths and names in prose --------------------------------------------------------------

PROSE = [page for page in PAGES if page.name != "CHANGELOG.md"]
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
COUNTED = rf"\b({'|'.join(NUMBERS)}|\d+) (tasks|verbs|packaged recipes|recipes)\b( of `(\w+)`)?"
MODELS_OF_OURS = rf"\b({'|'.join(NUMBERS)}|\d+) small models of ours\b"
SUFFIXES = r"`([\w/.-]+/[\w.-]+\.(?:py|md|yaml|toml|sh))`"
DOTTED = r"`((?:pv|perceivers)\.[A-Za-z_][\w.]*)"


def number(word: str) -> int:
    return int(word) if word.isdigit() else NUMBERS.index(word.lower())


def wrong_counts(text: str) -> list[str]:
    """Return the counts in a text that the code does not have."""
    tasks = {verb: len(tasks_of(verb)) for verb in training.VERBS}
    recipes = len(list_recipes())
    known = {"tasks": len(TASKS), "verbs": len(VERBS), "recipes": recipes}
    known["packaged recipes"] = recipes
    wrong = []
    for match in re.finditer(COUNTED, text, re.IGNORECASE):
        word, what, _, verb = match.groups()
        wanted = tasks[verb] if what == "tasks" and verb in tasks else known[what.lower()]
        if number(word) != wanted:
            wrong.append(f"{match[0]} (there are {wanted})")
    for match in re.finditer(MODELS_OF_OURS, text, re.IGNORECASE):
        if number(match[1]) != len(own_names()):
            wrong.append(f"{match[0]} (there are {len(own_names())})")
    return wrong


def missing_paths(text: str) -> list[str]:
    """Return the paths of this repository in backticks that do not exist."""
    package = ROOT / "src" / "perceivers"
    folders = {path.name for base in (ROOT, package) for path in base.iterdir() if path.is_dir()}
    named = [path for path in re.findall(SUFFIXES, text) if path.split("/")[0] in folders]
    return [path for path in named if not any((base / path).exists() for base in (ROOT, package))]


def unknown_names(text: str) -> list[str]:
    """Return the dotted names of this package in backticks that do not resolve."""
    return [name for name in re.findall(DOTTED, text) if not resolves(name.rstrip("."))]


def resolves(name: str) -> bool:
    found: object = perceivers
    parts = name.split(".")[1:]
    for number_of_parts, part in enumerate(parts, start=1):
        if not hasattr(found, part):
            try:
                found = import_module(".".join(["perceivers", *parts[:number_of_parts]]))
            except ModuleNotFoundError:
                return False
        else:
            found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.stem)
def test_counts_paths_and_names_are_those_of_the_code(page: Path) -> None:
    text = page.read_text()
    assert wrong_counts(text) == []
    assert missing_paths(text) == []
    assert unknown_names(text) == []


def test_a_wrong_count_path_or_name_is_noticed() -> None:
    assert wrong_counts("Nine tasks, of them six tasks of `train`.") == []
    assert wrong_counts("seven tasks and four tasks of `train`") == [
        "seven tasks (there are 9)",
        "four tasks of `train` (there are 6)",
    ]
    assert wrong_counts("Seven small models of ours") != []
    assert missing_paths("`training/runtime.py` and `tests/test_docs.py`") == []
    assert missing_paths("`training/nosuch.py`, `yours/x.py`") == ["training/nosuch.py"]
    assert unknown_names("`pv.open_data(x)`, `perceivers.data.open_data`") == []
    assert unknown_names("`pv.open_date`, `perceivers.nosuch.thing`") == [
        "pv.open_date",
        "perceivers.nosuch.thing",
    ]


def test_some_page_states_counts() -> None:
    texts = [page.read_text() for page in PROSE]
    assert sum(len(re.findall(COUNTED, text, re.IGNORECASE)) for text in texts) >= 3


def test_the_layers_of_contributing_are_the_packages() -> None:
    (table,) = re.findall(r"^```text\n(cli .*?)^```$", CONTRIBUTING, re.DOTALL | re.MULTILINE)
    package = ROOT / "src" / "perceivers"
    names = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    names |= {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    # Recipes are data files that are imported as a package.
    missing = {name for name in names - {"recipes"} if not re.search(rf"\b{name}\b", table)}
    assert missing == set()
    first = {line.split()[0] for line in table.splitlines() if "," not in line.split()[0]}
    assert first <= names | {"text_names"}
