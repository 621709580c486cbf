"""The task ``multilabel``: any number of labels per sample."""

from dataclasses import replace

from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.errors import DataError
from perceivers.tasks.multilabel import Multilabel, MultilabelConfig, label_names
from perceivers.training.config import MultilabelTrainConfig
from perceivers.workflows.building import classifier
from perceivers.workflows.opening import open_dataset
from perceivers.workflows.task_table import (
    Prepared,
    Record,
    TaskRow,
    model_info,
    rank_classes,
)


def prepare_multilabel(config: MultilabelTrainConfig) -> Prepared:
    """Prepare multi-label classification on label columns."""
    dataset = open_dataset(config)
    columns = dataset.columns or {"label": dataset.classes}
    names = label_names(columns) if any(columns.values()) else ()
    if len(names) < 2:
        raise DataError(
            f"{config.data} has {len(names)} labels; multi-label training needs label columns "
            f"(choose them with --labels)"
        )
    model, notes = classifier(config, dataset, len(names), "query")
    task = Multilabel(model, columns, config.multilabel)
    info = replace(model_info(config, "multilabel", names), columns=dict(columns))
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def records(loaded: Loaded, outputs: Tensor, top: int) -> list[Record]:
    """Return the labels with a probability above one half, and the first ``top``."""
    classes, chances = loaded.info.classes, outputs.float().sigmoid()
    ranked = rank_classes(chances, classes, max(top, 1))
    every = rank_classes(chances, classes, len(classes))
    return [
        {"labels": [r["class"] for r in rows if r["probability"] > 0.5], "top": best}
        for rows, best in zip(every, ranked, strict=True)
    ]


ROW = TaskRow(
    name="multilabel",
    verb="train",
    title="Multi-label",
    config=MultilabelTrainConfig,
    settings=("multilabel", MultilabelConfig),
    prepare=prepare_multilabel,
    rebuild=lambda loaded, settings: Multilabel(loaded.model, loaded.info.columns, settings),
    averages_views=True,
    records=records,
)
