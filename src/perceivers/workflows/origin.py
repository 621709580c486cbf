"""Find the settings and the training data of the run that a model comes from."""

from pathlib import Path

from perceivers.checkpoints.loading import split_address
from perceivers.errors import RunError
from perceivers.training.config import TrainConfig
from perceivers.training.run_folder import RunFolder


def run_config(model: str | Path) -> TrainConfig | None:
    """Return the settings of a model's run; None for a model folder without a run.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
    """
    folder = RunFolder(Path(split_address(model)[0]))
    return folder.read_config()[1] if folder.config.is_file() else None


def own_data(model: str | Path, config: TrainConfig | None) -> str:
    """Return the data address that a model was trained on.

    Args:
        model: Name of the model, for the message.
        config: Settings of its run, if there is one.

    Raises:
        RunError: The model has no run.
    """
    if config is None:
        raise RunError(
            f"{model} is a model folder without a run; give a data address (evaluate: --data)"
        )
    return config.data
