"""The task ``multitask``: one class per label column."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.errors import DataError
from perceivers.tasks import Multitask
from perceivers.training.config import MultitaskConfig
from perceivers.workflows.building import classifier
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import (
    Prepared,
    Record,
    TaskRow,
    model_info,
    rank_classes,
)


def prepare_multitask(config: MultitaskConfig) -> Prepared:
    """Prepare one classification per label column."""
    dataset = open_dataset(config)
    if len(dataset.columns) < 2:
        raise DataError(
            f"{config.data} has {len(dataset.columns)} label columns; multitask needs several: "
            f"join data sets with 'A + B', or name columns with --labels"
        )
    sizes = {name: len(classes) for name, classes in dataset.columns.items()}
    model, notes = classifier(config, dataset, sizes, "query")
    task = Multitask(model, dataset.columns, config.label_smoothing)
    info = replace(model_info(config, "multitask"), columns=dict(dataset.columns))
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def records(loaded: Loaded, outputs: Mapping[str, Tensor], top: int) -> list[Record]:
    """Return the most probable class of every column."""
    columns = loaded.info.columns
    tables = {n: rank_classes(outputs[n].float().softmax(-1), columns[n], 1) for n in outputs}
    return [
        {name: rows[index][0] for name, rows in tables.items()}
        for index in range(len(next(iter(tables.values()))))
    ]


ROW = TaskRow(
    name="multitask",
    verb="train",
    title="Several tasks",
    config=MultitaskConfig,
    prepare=prepare_multitask,
    rebuild=lambda loaded, settings: Multitask(loaded.model, loaded.info.columns),
    averages_views=True,
    records=records,
    checks_choice=True,
)
