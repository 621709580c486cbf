"""Where the state of a run goes when its folder was moved or removed while it was training."""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from perceivers.errors import RunError
from perceivers.files import write_atomic
from perceivers.reading import read_file
from perceivers.training.config import TrainConfig
from perceivers.training.run_folder import TASKS, RunFolder


def keep_records(folder: RunFolder) -> dict[str, bytes]:
    """Return the small files that a run writes once, when it starts."""
    paths = (folder.addresses, folder.data_record, folder.data_names, folder.numerics)
    return {path.name: read_file(path) for path in paths if path.is_file()}


def make_rescue_folder(
    lost: RunFolder, config: TrainConfig, records: Mapping[str, bytes]
) -> RunFolder:
    """Make a run folder beside a lost one, with the run's settings and ``records``.

    Where nothing can be written there, it is made in the working directory, or among temporary
    files.

    Raises:
        RunError: There is no place to write.
    """
    path = Path(os.path.abspath(lost.path))  # noqa: PTH100 - links stay links
    beside = next(parent for parent in path.parents if parent.is_dir())
    name = f"{path.name}.rescued-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    task = next(task for task, kind in TASKS.items() if type(config) is kind)
    for parent in (beside, Path.cwd(), Path(tempfile.gettempdir())):
        with suppress(OSError):
            (parent / name).mkdir()
            folder = RunFolder(parent / name)
            folder.create(task, replace(config, out=str(folder.path)))
            for name, content in records.items():
                write_atomic(folder.path / name, content)
            return folder
    raise RunError(f"{lost.path} is gone, and no folder could be made to save its state in")
