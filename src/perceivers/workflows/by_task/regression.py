"""The task ``regress``: numbers per sample."""

from dataclasses import replace

import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import make_eval_loader
from perceivers.errors import DataError
from perceivers.report.figures.scores import draw_regression
from perceivers.report.html import Section
from perceivers.tasks import Regression, RegressionConfig
from perceivers.tasks.base import answer, held_modalities
from perceivers.tasks.regression import measure_targets
from perceivers.training.config import RegressConfig
from perceivers.workflows.building import classifier
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import (
    Prepared,
    Record,
    Report,
    TaskRow,
    model_info,
    open_for_model,
    rebuild_task,
)

SHOWN = 8
NUMBERS_SHOWN = 512


def prepare_regression(config: RegressConfig) -> Prepared:
    """Prepare regression of one or more numbers per sample."""
    dataset = open_dataset(config)
    source = dataset.splits["train"]
    targets = source.targets
    if targets is None or not dataset.targets:
        raise DataError(
            f"{config.data} has no targets; name the table columns with the numbers to predict, "
            f"such as --targets '[\"age\"]'"
        )
    measured = measure_targets(torch.from_numpy(targets), dataset.targets)
    model, notes = classifier(config, dataset, len(measured), config.head)
    task = Regression(model, measured, config.regress)
    info = replace(model_info(config, "regress"), targets=measured)
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def config_of(loaded: Loaded, address: str) -> RegressConfig:
    """Return settings that read the columns of numbers a model was trained on."""
    return RegressConfig(model="", data=address, out="", targets=list(loaded.info.targets))


def records(loaded: Loaded, outputs: Tensor, top: int) -> list[Record]:
    """Return a number per target, in its original unit."""
    targets = loaded.info.targets.items()
    return [
        {
            name: float(f"{value * deviation + mean:.7g}")
            for value, (name, (mean, deviation)) in zip(row, targets, strict=True)
        }
        for row in outputs.double().tolist()
    ]


@torch.no_grad()
def _numbers(report: Report) -> Section:
    """Plot predicted against true numbers."""
    loaded, config, folder = report.loaded, report.config, report.folder.figures
    task = rebuild_task(loaded, config)
    assert isinstance(task, Regression)
    dataset, specs = open_for_model(loaded, config, config.data)
    true, made, count = [], [], 0
    for batch in make_eval_loader(dataset.splits["val"], specs, batch_size=SHOWN * 8):
        if batch.targets is None or count >= NUMBERS_SHOWN:
            break
        answers = answer(loaded.model, batch.inputs, held_modalities(loaded.model, batch))
        true.append(batch.targets)
        made.append(task.restore(answers))
        count += len(batch)
    path = draw_regression(
        folder / "numbers.png",
        true=torch.cat(true).numpy(),
        predicted=torch.cat(made).numpy(),
        names=task.names,
        title="Predicted and true numbers",
    )
    text = f"{count} validation samples, not used in training; points on the line are exact."
    return Section(title="Predictions", text=text, figures=[(path, "One point per sample.")])


def sections(report: Report) -> list[Section]:
    """Return predicted against true numbers."""
    return [_numbers(report)]


ROW = TaskRow(
    name="regress",
    verb="train",
    title="Regression",
    config=RegressConfig,
    settings=("regress", RegressionConfig),
    prepare=prepare_regression,
    rebuild=lambda loaded, settings: Regression(loaded.model, loaded.info.targets, settings),
    default_config=config_of,
    records=records,
    report=sections,
)
