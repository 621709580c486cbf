"""Runs of earlier versions, which go on with the data as these versions read them."""

from dataclasses import replace

from perceivers.files import read_json_file
from perceivers.models.registry import FAMILIES
from perceivers.training.config import TrainConfig
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.preparing import PREPARE, Prepared

NOTE = "this run began when the first video decided on sound for all, and goes on without sound"


def prepare_again(
    task: str, config: TrainConfig, folder: RunFolder
) -> tuple[Prepared, TrainConfig]:
    """Prepare a run to be resumed, and return the settings with which it goes on.

    Whether videos had sound was once decided by the first of them for all. A run that began so has
    a model without sound, and now names what it reads.

    Args:
        task: A name of ``TASKS``.
        config: The run's settings.
        folder: Whose last model says what is read.

    Raises:
        UserError: A setting or the data are not usable.
    """
    prepared = PREPARE[task](config)
    names = _recorded_inputs(folder)
    read = tuple(prepared.specs)
    if config.modalities or "audio" not in read or "video" not in names or "audio" in names:
        return prepared, config
    config = replace(config, modalities=names)
    prepared = PREPARE[task](config)
    prepared.notes.append(NOTE)
    return prepared, config


def _recorded_inputs(folder: RunFolder) -> tuple[str, ...]:
    """Return what the last model reads; nothing where that is not known."""
    path = folder.last_model / "config.json"
    if not path.is_file():
        return ()
    found = read_json_file(path)
    try:
        return tuple(FAMILIES[found["family"]].config.from_json(found["config"]).data_inputs)
    # A damaged folder is named where it is needed; the run's state lies elsewhere.
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()
