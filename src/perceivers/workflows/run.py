"""The class ``Run``: a finished or stopped run, to evaluate, predict, reconstruct and report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceivers.checkpoints.loading import load_with_info
from perceivers.data import Views
from perceivers.training.config import TrainConfig
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.evaluation import evaluate
from perceivers.workflows.prediction import predict
from perceivers.workflows.reconstructing import reconstruct
from perceivers.workflows.reporting import write_run_report


class Run:
    """Handle on a run folder.

    Args:
        path: The run folder.

    Raises:
        RunError: The folder is not a run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder(Path(path))
        self.task, self.config = self.folder.read_config()

    config: TrainConfig

    def __repr__(self) -> str:
        """Return the folder and the task."""
        return f"Run({str(self.folder.path)!r}, task={self.task!r})"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    def model(self, which: str = "best") -> Any:
        """Load the ``best`` or the ``last`` model."""
        return load_with_info(f"{self.folder.path}@{which}").model

    def evaluate(
        self,
        data: str | None = None,
        *,
        split: str = "test",
        views: Views | None = None,
        fill: bool = False,
    ) -> dict[str, Any]:
        """Return metrics on a split; see ``perceivers.evaluate``.

        With ``fill``, the metrics of filled-in modalities are under ``fill``, by name.
        """
        found = evaluate(self.path, data=data, split=split, views=views, fill=fill)
        filled = {each.modality: each.to_json() for each in found.fill}
        return {**found.figures, "fill": filled} if fill else found.figures

    def predict(
        self,
        paths: Sequence[str | Path] = (),
        *,
        texts: Sequence[str] = (),
        top: int = 5,
        views: Views | None = None,
        out: str | Path | None = None,
        pad: bool = False,
        overwrite: bool = False,
    ) -> list[dict[str, Any]]:
        """Return a record per file and per text; see ``perceivers.predict``."""
        options = {"out": out, "pad": pad, "overwrite": overwrite}
        return list(predict(self.path, paths, texts=texts, top=top, views=views, **options))

    def reconstruct(
        self,
        paths: Sequence[str | Path],
        out: str | Path,
        *,
        fill: Sequence[str] = (),
        seed: int = 0,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write reconstructions of files; see ``perceivers.reconstruct``."""
        return reconstruct(self.path, paths, out, fill=fill, seed=seed, overwrite=overwrite)

    def write_report(self) -> Path:
        """Redraw the figures and write ``report.html`` again."""
        return write_run_report(self.folder)
