"""The documentation: links resolve, snippets run, commands and flags exist."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from perceivers.cli.main import VERBS, main

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


RUNNABLE = [
    (page.name, code)
    for page in PAGES
    for code in blocks(page, "python")
    if code.startswith("# runnable")
]


@pytest.mark.parametrize(("name", "code"), RUNNABLE, ids=[name for name, _ in RUNNABLE])
def test_snippets_run(name: str, code: str) -> None:
    exec(compile(code, name, "exec"), {})


@cache
def options(verb: str) -> str:
    from contextlib import redirect_stdout
    from io import StringIO

    text = StringIO()
    with redirect_stdout(text):
        assert main([verb, "--help"]) == 0
    return text.getvalue()


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
        lines += re.findall(r"`(perceivers [a-z][^`\n]*)`", page.read_text())
        found += [(page.name, line) for line in lines if line.startswith("perceivers ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_name_real_verbs_and_flags(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "VERB":
        return
    assert words[0] in VERBS
    for word in words[1:]:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", options(words[0])), word


def test_the_documented_loop_is_the_example() -> None:
    example = (ROOT / "examples" / "own_loop.py").read_text().strip()
    assert example in (ROOT / "docs" / "training.md").read_text()


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "own_loop.py"), "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 2: loss" in done.stdout
    assert (tmp_path / "digits_mae" / "model.safetensors").is_file()
