"""Other programs' loggers: TensorBoard, trackio, Weights & Biases. ``metrics.jsonl`` is the record.

Each is filled from that record when a run starts or resumes, and then event by event. So none has a
step twice, whenever a run was killed, and a logger may be added to a run that is under way.
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
from perceivers.escaping import markdown_text
from perceivers.files import write_atomic
from perceivers.foreign import read_text
from perceivers.training.events import Event, Finished, Listener, Started
from perceivers.training.listeners import as_record, records_up_to

PROJECT = "perceivers"
LOGGERS = ("tensorboard", "trackio", "wandb")
Config = Mapping[str, Any]


def check_loggers(names: Sequence[str]) -> None:
    """Reject names that are no logger.

    Raises:
        ConfigError: A name is unknown (says the nearest) or given twice.
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
    """Reject loggers whose package is missing, before a run is begun.

    Raises:
        UserError: Names the package and the command that installs it.
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
    """Return listeners that pass a run's figures on.

    Args:
        names: Any of ``LOGGERS``.
        folder: The run folder; TensorBoard and W&B write into it, trackio into its own home.
        config: Settings of the run, shown beside its figures.
        note: Told when a logger fails; the run goes on without it.

    Raises:
        ConfigError: A name is unknown.
        UserError: The package of a logger is not installed.
    """
    check_loggers(names)
    check_installed(names)
    metrics = folder / "metrics.jsonl"
    return [Forwarder(name, _KINDS[name](folder, config), metrics, note) for name in names]


class Sink(ABC):
    """Where figures go. Names read ``train/loss``; every step comes once, in order."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.config = config

    @abstractmethod
    def open(self) -> None:
        """Start anew; what an earlier start of the same run wrote is replaced."""

    @abstractmethod
    def write(self, step: int, figures: Mapping[str, float], moment: float) -> None:
        """Take figures of a step; ``moment`` is in seconds since 1970."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and let go."""


class Forwarder:
    """A listener that passes records on to a sink.

    A sink is foreign code, and a day of training shall not end by it: when one fails, that is noted
    once and the sink is left alone.

    Args:
        name: The logger's name.
        sink: Takes the figures.
        metrics: The run's ``metrics.jsonl``.
        note: Told of a failure.
    """

    def __init__(self, name: str, sink: Sink, metrics: Path, note: Callable[[str], None]) -> None:
        self.name = name
        self.sink: Sink | None = sink
        self.metrics = metrics
        self.note = note
        self._began = time.time()

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if self.sink is None:
            return
        try:
            self._pass_on(event, self.sink)
        except Exception as error:
            self.sink = None
            self.note(
                f"the logger {self.name} failed and gets nothing more "
                f"({type(error).__name__}: {error}); {self.metrics} goes on"
            )

    def _pass_on(self, event: Event, sink: Sink) -> None:
        """Open, replay, write or close."""
        if isinstance(event, Started):
            records = records_up_to(self.metrics, event.step)
            seconds = max((record.get("seconds", 0.0) for record in records), default=0.0)
            # Earlier figures keep their distance in training time from those to come.
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
        """Name the figures after their split."""
        split = record["split"]
        figures = {
            f"{split}/{name}": float(value)
            for name, value in record.items()
            if name not in {"step", "split"} and isinstance(value, int | float)
        }
        sink.write(record["step"], figures, moment)


class TensorBoard(Sink):
    """Event files in the run's ``tensorboard/``; see them by ``tensorboard --logdir runs``."""

    def open(self) -> None:
        """Replace the event files, as those of a killed run may hold steps that come again."""
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
        """Add a scalar per figure; flushed at once, so that a kill loses none."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step, walltime=moment, new_style=True)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Trackio(Sink):
    """A run in trackio's local data base; see it by ``trackio show --project perceivers``.

    ``TRACKIO_DIR`` says where the data base is and ``TRACKIO_PROJECT`` names another project; with
    ``TRACKIO_SPACE_ID`` trackio itself sends the figures there.
    """

    def open(self) -> None:
        """Replace the run of the same folder."""
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        name = str(self.folder)
        with redirect_stdout(StringIO()):  # ours is for results
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
        """Add a row; trackio times rows itself."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Write the rows that wait."""
        import trackio

        with redirect_stdout(StringIO()):
            trackio.finish()


class WeightsAndBiases(Sink):
    """An offline run in the run's ``wandb/``; ``wandb sync`` sends it when you want that.

    ``WANDB_MODE=online`` sends the figures as they come, ``WANDB_PROJECT`` names another project.
    """

    def open(self) -> None:
        """Replace offline runs of the same folder; nothing is sent unless the user says so."""
        mode = os.environ.get("WANDB_MODE", "offline")
        quiet = mode != "online"
        if quiet:
            # W&B's own error reports would go out even from an offline run.
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
            # Another run of this program may have ended without saying so.
            reinit="finish_previous",
            resume=None if quiet else "allow",
            settings=wandb.Settings(**settings),
        )

    def _identity(self) -> str:
        """Return the run's name at W&B: drawn once, and kept when it is resumed."""
        path = self.folder / "wandb" / "identity"
        if not path.is_file():
            write_atomic(path, token_hex(6))
        return read_text(path, error=RunError).strip()

    def write(self, step: int, figures: Mapping[str, float], moment: float) -> None:
        """Add to the history."""
        self._run.log({**figures, "_timestamp": moment}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _flatten(settings: Config, prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
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
