"""Where a model comes from: the settings of its run, and the data that the run was trained on."""

from pathlib import Path

from perceivers.checkpoints.loading import split_address
from perceivers.errors import RunError
from perceivers.training.config import TrainConfig
from perceivers.training.run_folder import RunFolder


def run_config(model: str | Path) -> TrainConfig | None:
    """Return the settings of a run; None for a bare model folder.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
    """
    folder = RunFolder(Path(split_address(model)[0]))
    return folder.read_config()[1] if folder.config.is_file() else None


def own_data(model: str | Path, config: TrainConfig | None) -> str:
    """Return the address that a run was trained on.

    Args:
        model: Names the model, for the message.
        config: The settings of its run, if there is one.

    Raises:
        RunError: There is no run.
    """
    if config is None:
        raise RunError(
            f"{model} is a model folder without a run; say which data, by their address (evaluate: "
            f"--data)"
        )
    return config.data
