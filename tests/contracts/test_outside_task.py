"""A task that is registered from outside runs through all verbs."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import perceivers as pv
from perceivers.checkpoints.loading import Loaded
from perceivers.cli.main import main
from perceivers.errors import ConfigError
from perceivers.report.metrics import read_metrics
from perceivers.settings import Positive
from perceivers.tasks.base import Losses, Task, TaskBatch
from perceivers.training.config import TrainConfig
from perceivers.training.run_folder import TASKS
from perceivers.workflows import task_table
from perceivers.workflows.building import classifier
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import (
    Prepared,
    TaskRow,
    model_info,
    register,
)

ROOT = Path(__file__).parents[2]


class Brightness(Task):
    """Predict the mean of an image, ``[B, 1]``."""

    best_metric = "mse"
    higher_is_better = False

    def _error(self, batch: TaskBatch) -> Tensor:
        truth = batch.inputs["image"].float().flatten(1).mean(1, keepdim=True) / 255
        return (self.model(batch.inputs) - truth).square().mean()

    def forward(self, batch: TaskBatch, generator: torch.Generator) -> Losses:
        """Return the squared error."""
        error = self._error(batch)
        return Losses(total=error, parts={})

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TaskBatch]) -> dict[str, float]:
        """Return the mean squared error."""
        self.eval()
        errors = [float(self._error(batch)) for batch in batches]
        return {"mse": sum(errors) / len(errors)}


@dataclass(frozen=True, kw_only=True)
class BrightnessTrainConfig(TrainConfig):
    """Brightness of images."""

    unit: Positive = 1.0
    """Unit of predictions."""


def prepare(config: BrightnessTrainConfig) -> Prepared:
    dataset = open_dataset(config)
    model, notes = classifier(config, dataset, 1, "query")
    info = model_info(config, "brightness")
    return Prepared(Brightness(model), dataset, model.config.data_inputs, info, notes)


def records(loaded: Loaded, outputs: Tensor, top: int) -> list[dict[str, Any]]:
    return [{"brightness": value} for value in outputs.flatten().tolist()]


ROW = TaskRow(
    name="brightness",
    verb="train",
    title="Brightness",
    config=BrightnessTrainConfig,
    prepare=prepare,
    rebuild=lambda loaded, settings: Brightness(loaded.model),
    records=records,
)


@pytest.fixture
def registered() -> Iterator[None]:
    register(ROW)
    yield
    del task_table._ROWS[ROW.name], TASKS[ROW.name]


@pytest.mark.usefixtures("registered")
def test_a_task_from_outside_runs_through_all_verbs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="'brightness' exists already"):
        register(ROW)
    out = str(tmp_path / "run")
    common = ["--model", "perceiver_io_nano", "--data", "digits", "--steps", "30"]
    assert main(["train", "--task", "brightness", "--help"]) == 0
    assert "Unit of predictions" in capsys.readouterr().out
    assert main(["train", "--task", "brightness", *common, "--out", out, "--quiet"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h1>Brightness: perceiver_io_nano" in page
    assert ">Metrics<" in page
    assert ">mse<" in page
    run = pv.Run(out)
    assert run.task == "brightness"
    losses = [r["loss"] for r in read_metrics(run.folder.metrics) if r["split"] == "train"]
    assert losses[-1] < losses[0]
    found = pv.evaluate(out)
    assert found.figures["mse"] < 0.05
    image = torch.full((8, 8), 128, dtype=torch.uint8)
    Image.fromarray(image.numpy()).save(tmp_path / "grey.png")
    (record,) = pv.predict(out, [tmp_path / "grey.png"])
    assert isinstance(record["brightness"], float)
    assert main(["predict", out, str(tmp_path / "grey.png")]) == 0
    assert '"brightness": ' in capsys.readouterr().out
    assert main(["resume", out, "--quiet"]) in {0, 2}
    other = str(tmp_path / "other")
    settings: dict[str, Any] = {"model": out, "data": "digits", "steps": 2, "quiet": True}
    assert pv.finetune(task="brightness", out=other, **settings).task == "brightness"


def test_a_task_from_outside_never_becomes_the_default_of_a_verb() -> None:
    """In a process of its own, where nothing else has loaded the tasks of the library."""
    script = (
        "from tests.contracts.test_outside_task import ROW\n"
        "from perceivers.workflows.task_table import register, tasks_of\n"
        "register(ROW)\n"
        "print(*tasks_of('train'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    names = done.stdout.split()
    assert (names[0], names[-1]) == ("classify", "brightness")


def test_without_the_row_the_task_is_unknown() -> None:
    with pytest.raises(ConfigError, match="not 'brightness'"):
        pv.train(task="brightness", model="perceiver_io_nano", data="digits", out="unused")
