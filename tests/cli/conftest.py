"""The command line in-process: tiny trained runs, tiny data, and what a refusal looks like."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.workflows.conftest import (
    clip_run,
    cloud_run,
    flow_run,
    made,
    mlm_run,
    multilabel_run,
    multitask_run,
    picture_run,
    runs,
    text_run,
)

from perceivers.cli.main import main
from perceivers.workflows import run as run_module

# Fixtures of the workflows' tests: a run of every task, and the data it was made from.
__all__ = [
    "clip_run",
    "cloud_run",
    "flow_run",
    "made",
    "mlm_run",
    "multilabel_run",
    "multitask_run",
    "picture_run",
    "runs",
    "text_run",
]

SMALL = ["--batch_size", "8", "--device", "cpu"]


@dataclass(frozen=True)
class Outcome:
    """What one command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs one command and never lets a traceback pass as a message."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: Any) -> Outcome:
        capsys.readouterr()
        argv = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["perceivers", *argv])
        code = main(argv)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(code, out, err)

    return run


@pytest.fixture
def refuse(call: Callable[..., Outcome]) -> Callable[..., str]:
    """Return a function that runs a command and asserts a refusal: status 2, one message, ours."""

    def run(arguments: list[Any], *patterns: str) -> str:
        outcome = call(*arguments)
        assert outcome.code == 2, outcome
        # Notes on the data may come first; the message is the last thing said.
        assert len(re.findall(r"^perceivers: ", outcome.err, re.M)) == 1, outcome.err
        assert outcome.out == ""
        for pattern in patterns:
            assert re.search(pattern, outcome.err), (pattern, outcome.err)
        return outcome.err

    return run


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report of a training run out: it is tested by itself and draws for a second."""
    monkeypatch.setattr(run_module, "write_run_report", lambda folder: folder.report)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of a dozen small gray pictures."""
    root = tmp_path_factory.mktemp("pictures")
    draw_pictures(root, ("cats", "dogs"), 12)
    return root


def draw_pictures(root: Path, classes: tuple[str, ...], count: int, mode: str = "L") -> None:
    """Write ``count`` random 8 x 8 pictures per class."""
    rng = np.random.default_rng(0)
    shape = (8, 8) if mode == "L" else (8, 8, 3)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


def cut(path: Path, size: int = 60) -> Path:
    """Truncate a file."""
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run pre-trained for two steps, report and all."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    argv = ["pretrain", "--model", "hip_nano", "--data", "digits", "--out", str(out)]
    assert main([*argv, *SMALL, "--limit", "2", "--quiet"]) == 0
    return out


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """A run fine-tuned from it for two steps."""
    out = tmp_path_factory.mktemp("runs") / "classifier"
    argv = ["finetune", "--model", str(pretrained), "--data", "digits", "--out", str(out)]
    assert main([*argv, *SMALL, "--limit", "2", "--quiet"]) == 0
    return out


@pytest.fixture
def starting(tmp_path: Path) -> Callable[..., list[str]]:
    """Return the arguments of a training command into ``tmp_path / run``, cheap if it started."""

    def make(verb: str = "pretrain", data: Any = "digits", **changes: Any) -> list[str]:
        settings = {
            "model": "hip_nano",
            "data": data,
            "out": tmp_path / "run",
            "limit": 2,
            "batch_size": 8,
            "device": "cpu",
            **changes,
        }
        pairs = [(f"--{name}", str(value)) for name, value in settings.items()]
        return [verb, *(word for pair in pairs for word in pair)]

    return make


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an ``.npz`` data file."""

    def write(**arrays: Any) -> Path:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return path

    return write


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
