"""External loggers: TensorBoard, trackio and Weights & Biases (W&B).

Each is filled from ``metrics.jsonl`` when a run starts or resumes, and then event by event. So no
step appears twice after a run was killed, and a logger can be added to a run in progress.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any

from perceivers.errors import ConfigError, RunError, UserError, suggest
from perceivers.files import write_atomic
from perceivers.foreign import read_text
from perceivers.text_names import markdown_text
from perceivers.training.events import Event, Finished, Listener, Started, as_record, records_up_to

PROJECT = "perceivers"
LOGGERS = ("tensorboard", "trackio", "wandb")
Config = Mapping[str, Any]


def check_loggers(names: Sequence[str]) -> None:
    """Check the names of loggers.

    Raises:
        ConfigError: A name is unknown (the message suggests the nearest) or given twice.
    """
    for index, name in enumerate(names):
        if name not in LOGGERS:
            raise ConfigError(
                f"loggers names {name!r}{suggest(name, LOGGERS)} (there are {', '.join(LOGGERS)}; "
                f"metrics.jsonl is always written)"
            )
        if name in names[:index]:
            raise ConfigError(f"loggers names {name!r} twice; once is enough")


def check_installed(names: Sequence[str]) -> None:
    """Check, before a run starts, that the packages of loggers are installed.

    Raises:
        UserError: A package is missing; the message gives the command that installs it.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"loggers names {name!r}, but the package {name} is not installed; install it "
                f'with: pip install "perceivers[{name}]", or leave the logger out'
            )


def make_loggers(
    names: Sequence[str], folder: Path, config: Config, note: Callable[[str], None]
) -> list[Listener]:
    """Return listeners that forward a run's metrics to loggers.

    Args:
        names: Any of ``LOGGERS``.
        folder: The run folder; TensorBoard and W&B write into it, trackio into its own folder.
        config: Settings of the run, logged with its metrics.
        note: Called with a message when a logger fails; the run continues without it.

    Raises:
        ConfigError: A name is unknown.
        UserError: The package of a logger is not installed.
    """
    check_loggers(names)
    check_installed(names)
    metrics = folder / "metrics.jsonl"
    return [Forwarder(name, _KINDS[name](folder, config), metrics, note) for name in names]


class Sink(ABC):
    """Receives metrics named like ``train/loss``, every step once and in order."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.config = config

    @abstractmethod
    def open(self) -> None:
        """Start logging; replace what an earlier process of the same run has logged."""

    @abstractmethod
    def write(self, step: int, figures: Mapping[str, float], moment: float) -> None:
        """Log the metrics of a step; ``moment`` is in seconds since 1970."""

    @abstractmethod
    def close(self) -> None:
        """Write what is buffered and release all resources."""


class Forwarder:
    """Listener that forwards records to a sink.

    Sinks call third-party code, whose errors must not end a long training run: the first failure is
    reported and the sink is not used again.

    Args:
        name: The logger's name.
        sink: Receives the metrics.
        metrics: The run's ``metrics.jsonl``.
        note: Called with a message on failure.
    """

    def __init__(self, name: str, sink: Sink, metrics: Path, note: Callable[[str], None]) -> None:
        self.name = name
        self.sink: Sink | None = sink
        self.metrics = metrics
        self.note = note
        self._began = time.time()

    def __call__(self, event: Event) -> None:
        """Forward an event."""
        if self.sink is None:
            return
        try:
            self._pass_on(event, self.sink)
        except Exception as error:
            self.sink = None
            self.note(
                f"the logger {self.name} failed and is no longer used "
                f"({type(error).__name__}: {error}); metrics are still written to {self.metrics}"
            )

    def _pass_on(self, event: Event, sink: Sink) -> None:
        if isinstance(event, Started):
            records = records_up_to(self.metrics, event.step)
            seconds = max((record.get("seconds", 0.0) for record in records), default=0.0)
            # Date earlier records back by their training time, so that time axes stay continuous.
            self._began, passed = time.time() - seconds, 0.0
            sink.open()
            for record in records:
                passed = record.get("seconds", passed)
                self._write(record, self._began + passed, sink)
        elif isinstance(event, Finished):
            sink.close()
        else:
            record = as_record(event)
            if record is not None:
                self._write(record, time.time(), sink)

    def _write(self, record: Mapping[str, Any], moment: float, sink: Sink) -> None:
        split = record["split"]
        figures = {
            f"{split}/{name}": float(value)
            for name, value in record.items()
            if name not in {"step", "split"} and isinstance(value, int | float)
        }
        sink.write(record["step"], figures, moment)


class TensorBoard(Sink):
    """Event files in the run's ``tensorboard/``; view them with ``tensorboard --logdir runs``."""

    def open(self) -> None:
        """Replace the event files, which may hold steps that a resumed run repeats."""
        from torch.utils.tensorboard.writer import SummaryWriter

        path = self.folder / "tensorboard"
        rmtree(path, ignore_errors=True)
        self._writer = SummaryWriter(str(path))
        lines = [
            f"| {markdown_text(key)} | {markdown_text(value)} |"
            for key, value in _flatten(self.config).items()
        ]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]))

    def write(self, step: int, figures: Mapping[str, float], moment: float) -> None:
        """Add a scalar per metric and flush, so that nothing is lost if the run is killed."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step, walltime=moment, new_style=True)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Trackio(Sink):
    """A run in trackio's local database; view it with ``trackio show --project perceivers``.

    ``TRACKIO_DIR`` sets the folder of the database and ``TRACKIO_PROJECT`` the project; with
    ``TRACKIO_SPACE_ID`` trackio itself sends the metrics to that space.
    """

    def open(self) -> None:
        """Replace the run of the same folder."""
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        name = str(self.folder)
        with redirect_stdout(StringIO()):  # our standard output is reserved for results
            earlier = []
            with suppress(ValueError):  # no such project yet
                earlier = [run for run in trackio.Api().runs(project) if run.name == name]
            for run in earlier:
                run.delete()
            self._run = trackio.init(
                project=project,
                name=name,
                config=dict(_flatten(self.config)),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, figures: Mapping[str, float], moment: float) -> None:
        """Add a row; ``moment`` is unused, as trackio sets times itself."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Write the remaining rows."""
        import trackio

        with redirect_stdout(StringIO()):
            trackio.finish()


class WeightsAndBiases(Sink):
    """An offline run in the run's ``wandb/``; upload it with ``wandb sync``.

    ``WANDB_MODE=online`` uploads metrics during training; ``WANDB_PROJECT`` sets the project.
    """

    def open(self) -> None:
        """Replace offline runs of the same folder; nothing is uploaded unless the user asks."""
        mode = os.environ.get("WANDB_MODE", "offline")
        quiet = mode != "online"
        if quiet:
            # Otherwise W&B sends its own error reports even from an offline run.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        identity = self._identity()
        for earlier in (self.folder / "wandb").glob(f"offline-run-*-{identity}"):
            rmtree(earlier, ignore_errors=True)
        settings = {"console": "off", "silent": quiet, "x_disable_stats": quiet}
        settings |= {"disable_git": True, "disable_code": True, "x_disable_meta": quiet}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity,
            name=str(self.folder),
            dir=str(self.folder),
            config=dict(self.config),
            mode=mode,  # pyright: ignore[reportArgumentType] - checked by wandb
            # An earlier run in this process may not have been finished.
            reinit="finish_previous",
            resume=None if quiet else "allow",
            settings=wandb.Settings(**settings),
        )

    def _identity(self) -> str:
        """Return the W&B run id, which is random but stays the same when a run is resumed."""
        path = self.folder / "wandb" / "identity"
        if not path.is_file():
            write_atomic(path, token_hex(6))
        return read_text(path, error=RunError).strip()

    def write(self, step: int, figures: Mapping[str, float], moment: float) -> None:
        """Log a row of metrics."""
        self._run.log({**figures, "_timestamp": moment}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _flatten(settings: Config, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


_KINDS: dict[str, type[Sink]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
}
