"""Train one arm (one of several runs that are compared) to its end, and compute its baseline.

The outcome of each arm is stored in a JSON file beside its run folder. When the same command runs
again after an interruption, it reads finished arms and resumes the unfinished one.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from perceivers.data.fitting import cut_windows
from perceivers.data.masks import count_pixels
from perceivers.data.sources import Source
from perceivers.errors import (
    ConfigError,
    DataError,
    FolderLostError,
    InputError,
    RunError,
)
from perceivers.files import make_folder, read_json_file, write_json
from perceivers.report.metrics import read_metrics
from perceivers.tasks import (
    Autoencoding,
    Classification,
    MaskedAutoencoding,
    MaskedLanguage,
    Multitask,
    OpticalFlow,
    Regression,
    Segmentation,
    Task,
)
from perceivers.tasks.metrics import UNKNOWN
from perceivers.tasks.multilabel import Multilabel, to_multi_hot
from perceivers.tasks.segmentation import TARGET as MASKS
from perceivers.text_names import check_written_path
from perceivers.training.launching import given_processes
from perceivers.training.run_folder import RunFolder
from perceivers.workflows import training
from perceivers.workflows.comparing import summarise
from perceivers.workflows.evaluation import evaluate
from perceivers.workflows.task_table import Prepared, tasks

# Messages of torch when CPU memory runs out: it raises a plain RuntimeError.
NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
TABLE = "table.md"
OF_TASK: Mapping[str, type[Task]] = {
    "pretrain": MaskedAutoencoding,
    "autoencode": Autoencoding,
    "mlm": MaskedLanguage,
    "classify": Classification,
    "multilabel": Multilabel,
    "multitask": Multitask,
    "flow": OpticalFlow,
    "segment": Segmentation,
    "regress": Regression,
}
# Set for all arms by the comparison, or impossible because one process trains the arms in turn.
DECIDED = (
    *("model", "task", "data", "out", "seed", "labels", "targets", "steps", "minutes", "limit"),
    *("eval_every", "log_every", "checkpoint_every", "devices", "nodes", "strategy"),
    *("overwrite", "quiet", "report"),
)


@dataclass(frozen=True)
class Arm:
    """One training run of a comparison.

    Args:
        name: Unique name; also the name of the run folder.
        task: The task.
        settings: Fields of the task's config, without ``out``.
        folder: Parent folder of ``runs/NAME`` and ``results/NAME.json``.
    """

    name: str
    task: str
    settings: Mapping[str, Any]
    folder: Path

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / self.name

    @property
    def record(self) -> Path:
        """File that stores the outcome."""
        return self.folder / "results" / f"{self.name}.json"


@dataclass(frozen=True)
class Outcome:
    """Result of an arm, or the reason why it failed.

    Args:
        name: Name of the arm.
        reason: Why there is no result; empty if there is one.
        value: Validation metric of the best model.
        steps: Optimizer steps.
        best_step: Step of the best model.
        parameters: Number of model parameters.
        seconds: Training time, excluding evaluation and waiting for data.
        wall_seconds: Duration from start to end of the last process that trained the arm.
        metrics: Metrics by split.
        curve: Step, training time in seconds and validation metric of each evaluation.
    """

    name: str
    reason: str = ""
    value: float | None = None
    steps: int = 0
    best_step: int = 0
    parameters: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curve: Sequence[tuple[int, float, float]] = ()

    @property
    def has_failed(self) -> bool:
        """Whether there is no result to compare."""
        return self.value is None or not isfinite(self.value)


def metric_of(task: str) -> tuple[str, bool]:
    """Return the validation metric that selects the best model, and whether higher is better."""
    kind = OF_TASK[task]
    return kind.best_metric, kind.higher_is_better


def verb_of(task: str) -> str:
    """Return the verb that trains a task from scratch: ``pretrain`` or ``train``."""
    return tasks()[task].verb


def check_shared(settings: Mapping[str, Any]) -> None:
    """Check that the settings contain none that the comparison sets for all arms.

    Raises:
        ConfigError: They do; the message names the first.
    """
    for name in DECIDED:
        if name in settings:
            raise ConfigError(
                f"settings hold {name!r}, which is the same for all arms; give it as a separate "
                f"option if there is one, otherwise leave it out"
            )


def prepare_folder(
    folder: Path,
    record: str,
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
    may_change: Sequence[str] = (),
) -> None:
    """Create the folder of a comparison, or check that an existing one has the same settings.

    Args:
        folder: Parent folder of runs, results and the record.
        record: Name of the file that stores the settings.
        settings: Settings of this call.
        overwrite: Delete the results of an earlier call.
        may_change: Settings that may differ from those of the earlier call.

    Raises:
        RunError: The folder holds other files or was begun with other settings, or several
            processes were started.
    """
    check_written_path(folder, "--out")
    if given_processes() is not None:
        raise RunError(
            "several processes were started for this (torchrun or Slurm), but its runs train one "
            "after the other in one process; start it without them"
        )
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder} is a file; give a folder to create")
    path = folder / record
    if path.exists() and overwrite:
        for name in ("runs", "results"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for old in (path, path.with_suffix(".png"), folder / TABLE):
            old.unlink(missing_ok=True)
    if path.exists():
        before = read_json_file(path).get("settings", {})
        changed = [
            key
            for key, value in settings.items()
            if key not in may_change
            and json.dumps(before.get(key), sort_keys=True) != json.dumps(value, sort_keys=True)
        ]
        if changed:
            key = changed[0]
            raise RunError(
                f"{folder} was begun with {key}={before.get(key)!r}, but this call has "
                f"{settings[key]!r}; repeat the settings to continue, give another --out, or "
                f"--overwrite"
            )
    elif folder.is_dir() and any(e.name[:5] != ".lock" for e in folder.iterdir()):
        raise RunError(f"{folder} already holds other files; give another --out")
    make_folder(folder)


def run_arm(arm: Arm, *, splits: Sequence[str] = ()) -> Outcome:
    """Train an arm to its end, or read the outcome of an earlier call.

    Args:
        arm: The arm.
        splits: Further splits on which to evaluate the best model.

    Returns:
        The outcome. A failed arm states the reason and is not tried again.

    Raises:
        Interrupted: Training was stopped; its state is saved, and the next call resumes it.
        UserError: A disk or a folder failed, so the arm itself is not to blame.
    """
    if arm.record.exists():
        return read_outcome(arm.record)
    began = time.perf_counter()
    failures: list[str] = []
    with collecting_failures(failures):
        _train(arm)
        outcome = _describe(arm, _evaluate(arm, splits), time.perf_counter() - began)
    if failures:
        outcome = Outcome(arm.name, reason=failures[0])
    write_json(arm.record, asdict(outcome))
    return outcome


def read_outcome(path: Path) -> Outcome:
    """Read an outcome that ``run_arm`` stored."""
    found = read_json_file(path)
    return Outcome(**{**found, "curve": [tuple(point) for point in found["curve"]]})


@contextmanager
def collecting_failures(found: list[str]) -> Iterator[None]:
    """Record why a model cannot be trained instead of stopping the comparison.

    Args:
        found: List to which the reason is appended.

    Raises:
        UserError: The error concerns a disk or a folder, not the model.
    """
    try:
        yield
    except (ConfigError, DataError, InputError, RunError) as error:
        # A full or lost disk would make every later arm fail too, so the comparison stops.
        if isinstance(error, FolderLostError) or isinstance(error.__cause__, OSError):
            raise
        found.append(str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        found.append(f"out of memory: {_first_line(error)}")
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        found.append(f"out of memory: {_first_line(error)}")


def _train(arm: Arm) -> None:
    folder = RunFolder(arm.run)
    if folder.has_checkpoint:
        training.resume(arm.run, quiet=True, report=False)
        return
    start = getattr(training, verb_of(arm.task))
    start(
        task=arm.task,
        **arm.settings,
        out=str(arm.run),
        overwrite=folder.config.is_file(),  # it was killed before its first checkpoint
        quiet=True,
        report=False,
    )


def _evaluate(arm: Arm, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {split: evaluate(arm.run, split=split).figures for split in splits}


def _describe(arm: Arm, metrics: Mapping[str, Any], wall: float) -> Outcome:
    folder, (metric, _) = RunFolder(arm.run), metric_of(arm.task)
    found = summarise(folder, arm.name)
    plain = {
        split: {name: float(v) for name, v in values.items() if isinstance(v, int | float)}
        for split, values in metrics.items()
    }
    return Outcome(
        arm.name,
        value=found.best.get(metric),
        steps=found.steps,
        best_step=found.best_step or 0,
        parameters=found.parameters or 0,
        seconds=found.seconds,
        wall_seconds=round(wall, 2),
        metrics={"val": dict(found.best), **plain},
        curve=_read_curve(folder, metric),
    )


def _read_curve(folder: RunFolder, metric: str) -> list[tuple[int, float, float]]:
    records = read_metrics(folder.metrics)
    seconds = {r["step"]: float(r["seconds"]) for r in records if r["split"] == "train"}
    return [
        (int(r["step"]), seconds.get(r["step"], 0.0), float(r[metric]))
        for r in records
        if r["split"] == "val" and metric in r
    ]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


# -- Constant baselines: most common class, mean target, mean signal -----------------------------
#
# They are the floor of a comparison: a model that does not beat them has learned nothing from its
# inputs.
#
# Legend: n samples, T label or target columns, K outputs.


def describe_constant(prepared: Prepared) -> str:
    """Describe the constant baseline of a task; empty if there is none."""
    task = prepared.task
    if isinstance(task, Classification | Multitask):
        return "most common class"
    if isinstance(task, Multilabel):
        return "the same scores for all samples"
    if isinstance(task, Regression):
        return "mean of the training targets"
    if isinstance(task, Segmentation):
        return "most common class everywhere"
    if isinstance(task, MaskedAutoencoding) and task.settings.target != "raw":
        return "mean of the training data"
    return ""


def score_constant(prepared: Prepared, split: str) -> float | None:
    """Return the model selection metric of the constant baseline on a split.

    Args:
        prepared: Prepared run of any model on the data.
        split: ``val`` or ``test``.

    Returns:
        The metric; None for tasks without a constant baseline (masked language modelling,
        autoencoding, optical flow, masked autoencoding with errors in raw units).
    """
    train, held = (
        cut_windows(prepared.dataset.splits[name], prepared.specs) for name in ("train", split)
    )
    task = prepared.task
    if isinstance(task, Classification | Multitask):
        return _majority(_columns(train), _columns(held))
    if isinstance(task, Multilabel):
        return _prevalence(_columns(held), task)
    if isinstance(task, Regression):
        return _mean_error(held, task)
    if isinstance(task, Segmentation):
        spec: Any = prepared.specs[MASKS]
        common = int(count_pixels(train, spec).argmax())
        counts = count_pixels(held, spec)
        # Mean IoU over the classes in the labels or the prediction: only `common` is above 0.
        occurring = np.count_nonzero(counts) + (counts[common] == 0)
        return float(counts[common] / counts.sum() / occurring)
    if isinstance(task, MaskedAutoencoding) and task.settings.target != "raw":
        # Errors are in units of the variance, so predicting the mean scores 1 per modality.
        return float(sum(task.config.weights.get(name, 1.0) for name in task.model.config.inputs))
    return None


def _columns(source: Source) -> NDArray[np.int64]:
    assert source.labels is not None
    return source.labels.reshape(len(source.labels), -1)


def _majority(train: NDArray[np.int64], held: NDArray[np.int64]) -> float:
    """Return the accuracy of predicting the most common training class, mean over columns."""
    shares = []
    for known, wanted in zip(train.T, held.T, strict=True):
        known, truth = known[known != UNKNOWN], wanted[wanted != UNKNOWN]
        if len(known) and len(truth):
            answer = np.bincount(known).argmax()
            shares.append(float((truth == answer).mean()))
    return sum(shares) / max(len(shares), 1)


def _prevalence(held: NDArray[np.int64], task: Multilabel) -> float:
    """Return the mAP of equal scores, which is the mean prevalence of the labels that occur."""
    targets, known = to_multi_hot(torch.from_numpy(held), task.columns)
    counts, totals = (targets * known).sum(0), known.sum(0)
    occurs = counts > 0
    return float((counts[occurs] / totals[occurs]).mean()) if bool(occurs.any()) else 0.0


def _mean_error(held: Source, task: Regression) -> float:
    """Return the loss of predicting the training mean, which is 0 after standardisation."""
    assert held.targets is not None
    targets = torch.from_numpy(held.targets)
    wanted = ((targets - task.mean) / task.deviation)[~targets.isnan()]
    answers = torch.zeros_like(wanted)
    if task.config.loss == "mse":
        return float(F.mse_loss(answers, wanted))
    if task.config.loss == "mae":
        return float(F.l1_loss(answers, wanted))
    return float(F.huber_loss(answers, wanted, delta=task.config.delta))
