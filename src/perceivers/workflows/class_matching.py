"""Compare the classes of data with a model's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Dataset
from perceivers.errors import DataError
from perceivers.training.config import TrainConfig
from perceivers.workflows.preparing import find_mask_spec

Columns = Mapping[str, Sequence[str]]


def check_classes(loaded: Loaded, dataset: Dataset, config: TrainConfig | None = None) -> None:
    """Refuse data whose classes are not the model's.

    Args:
        loaded: The model.
        dataset: Opened data.
        config: The settings of the model's run, which say what masks ignore.

    Raises:
        DataError: Names differ, or there are no labels.
    """
    if loaded.info.task == "segment":
        masks = find_mask_spec(loaded, config, dataset)[0]
        dataset = replace(dataset, classes=masks, columns={})
    columns = {name: tuple(names) for name, names in loaded.info.columns.items()}
    found = dict(dataset.columns)
    # Labels are told apart by their place, so the order of the columns counts.
    if columns and list((found or {"label": dataset.classes}).items()) != list(columns.items()):
        raise DataError(
            f"the model knows the label columns {_shorten(columns)}, but {dataset.address} has "
            f"{_shorten(found) or list(dataset.classes)}; evaluation needs the same columns and "
            f"classes in the same order"
        )
    if columns:
        return
    knows = loaded.info.task == "classify" or bool(loaded.info.classes)
    if knows and dataset.classes != loaded.info.classes:
        raise DataError(
            f"the model knows the classes {list(loaded.info.classes)}, but {dataset.address} has "
            f"{list(dataset.classes)}; evaluation needs the same names in the same order"
        )


def _shorten(columns: Columns, shown: int = 4) -> dict[str, list[str]]:
    """Columns with their first classes, for messages."""
    return {
        name: [*classes[:shown], *(["..."] if len(classes) > shown else [])]
        for name, classes in columns.items()
    }
