"""Everything that the verbs need to know of a task: one row per task.

A row names the settings, prepares runs, rebuilds the task of a trained model, and says how it is
evaluated, predicted with and reported. Loss and metrics are in ``perceivers.tasks``. To add a task,
write a file with a row and ``register`` it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from perceivers.checkpoints.loading import Loaded
from perceivers.data import Batch, Dataset, make_eval_loader
from perceivers.data.held_out import open_held_out
from perceivers.data.joined import SEPARATOR, align_classes
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models.masked import MaskSettings
from perceivers.models.saving import ModelInfo
from perceivers.report.html import Section
from perceivers.tasks import MaskedAutoencodingConfig, Task
from perceivers.training.config import RegressConfig, TrainConfig, build_config
from perceivers.training.run_folder import TASKS, RunFolder
from perceivers.types import ModalitySpec
from perceivers.workflows.opening import open_dataset


@dataclass
class Prepared:
    """A run that is ready to start.

    Attributes:
        task: Model, loss and metrics.
        dataset: The opened data.
        specs: Specs of what loaders return: the model's inputs, and targets such as flow.
        info: Metadata to save with the weights.
        notes: Notes for the console.
    """

    task: Task
    dataset: Dataset
    specs: Mapping[str, ModalitySpec]
    info: ModelInfo
    notes: list[str]


@dataclass(frozen=True)
class Report:
    """Content of a run folder that the sections of its report are made from."""

    folder: RunFolder
    config: TrainConfig
    loaded: Loaded
    records: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]


Record = dict[str, Any]


@dataclass(frozen=True)
class FileRequest:
    """Arguments of a prediction that is written to files."""

    model: str | Path
    loaded: Loaded
    paths: Sequence[str | Path]
    out: str | Path
    pad: bool
    overwrite: bool


@dataclass(frozen=True)
class FileTask:
    """A kind of prediction that is written to files.

    Attributes:
        does: What the model does, for messages.
        folder: Default output folder.
        answer: Function that writes the files and yields the records.
        describe: Returns a line on a record, for the command line.
        counted: What the summary counts; empty for no count.
        pads: Whether images smaller than the model's input may be padded.
    """

    does: str
    folder: str
    answer: Callable[[FileRequest], Iterator[Record]]
    describe: Callable[[Record], str]
    counted: str = ""
    pads: bool = False


Metrics = tuple[dict[str, Any], Tensor | None]


def plain_metrics(loaded: Loaded, task: Task, batches: Iterable[Batch]) -> Metrics:
    """Return the metrics of a task, without a confusion matrix."""
    return task.evaluate(batches), None


def open_plain(
    loaded: Loaded, config: TrainConfig, address: str
) -> tuple[Dataset, dict[str, ModalitySpec]]:
    """Open data whose classes are those of the model."""
    dataset = open_any(config, address)
    specs = dict(loaded.model.config.data_inputs)
    return align_classes(dataset, loaded.info.classes, loaded.info.columns), specs


def open_any(config: TrainConfig, address: str) -> Dataset:
    """Open data; a folder may contain only held-out splits."""
    targets = config.targets if isinstance(config, RegressConfig) else ()
    held_out = open_held_out(
        address,
        labels=config.labels,
        targets=targets,
        integer_labels=config.integer_labels,
    )
    if held_out is None:
        return open_dataset(config, address=address)
    return held_out.holding(config.modalities)


def default_config(loaded: Loaded, address: str) -> TrainConfig:
    """Return settings under which the data of a model without a run are opened."""
    columns = [] if SEPARATOR in address else list(loaded.info.columns)
    return TrainConfig(model="", data=address, out="", labels=columns)


def own_classes(loaded: Loaded, config: TrainConfig | None, dataset: Dataset) -> Dataset:
    """Return the data with the classes that the task predicts: the label's."""
    return dataset


def no_examples(report: Report) -> list[Section]:
    """Return no sections: there is nothing to draw."""
    return []


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """What the verbs need to know of one task.

    Attributes:
        name: Value of ``--task``.
        verb: ``pretrain``, or ``train`` (from scratch and fine-tuning).
        title: Name in reports.
        config: Settings of a training run.
        settings: Field of the config with the settings of loss and metrics, and its type; None if
            there are none. They are recorded with the model.
        prepare: Opens the data and builds the task of a run.
        rebuild: Builds the task of a trained model from its recorded settings.
        default_config: Settings under which data are opened for a model without a run.
        open_data: Opens data for a model, with the specs that loaders must return.
        class_dataset: Returns the data with the classes that the task predicts.
        metrics: Computes metrics, and for a classifier the confusion matrix.
        averages_views: Whether predictions of several views of a sample may be averaged.
        records: Converts the outputs of a batch to records of ``predict``; None if there are none.
        checks_choice: Whether a record needs a valid choice between classes, rather than finite
            numbers.
        fill_texts: Predicts texts with ``[MASK]`` one by one, instead of ``records``.
        files: How predictions are written to files, instead of ``records``.
        report: Sections of the report on this task, such as examples.
        shows_metrics: Whether the report has a table of all metrics before them.
        draws_positions: Whether the report shows learned position embeddings.
        next: Commands that a report suggests; ``{run}`` is the run folder.
    """

    name: str
    verb: str
    title: str
    config: type[TrainConfig]
    prepare: Callable[[Any], Prepared]
    rebuild: Callable[[Loaded, Any], Task]
    settings: tuple[str, type[Any]] | None = None
    default_config: Callable[[Loaded, str], TrainConfig] = default_config
    open_data: Callable[[Loaded, TrainConfig, str], tuple[Dataset, dict[str, ModalitySpec]]] = (
        open_plain
    )
    class_dataset: Callable[[Loaded, TrainConfig | None, Dataset], Dataset] = own_classes
    metrics: Callable[[Loaded, Task, Iterable[Batch]], Metrics] = plain_metrics
    averages_views: bool = False
    records: Callable[[Loaded, Any, int], list[Record]] | None = None
    checks_choice: bool = False
    fill_texts: Callable[[Loaded, Sequence[str | Path], Sequence[str]], Iterator[Record]] | None = (
        None
    )
    files: Callable[[Loaded], FileTask] | None = None
    report: Callable[[Report], list[Section]] = no_examples
    shows_metrics: bool = True
    draws_positions: bool = True
    next: tuple[str, ...] = ("perceivers evaluate {run}", "perceivers predict {run} FILE...")


_ROWS: dict[str, TaskRow] = {}


def tasks() -> Mapping[str, TaskRow]:
    """Return the rows of all tasks by name."""
    # On first use, because the files of the tasks import workflows that need this table.
    import_module("perceivers.workflows.by_task")
    return _ROWS


def register(row: TaskRow) -> None:
    """Add a task to all verbs.

    Raises:
        ConfigError: A task of this name exists.
    """
    tasks()  # those of the library come first, as the first task of a verb is its default
    if row.name in _ROWS:
        raise ConfigError(f"task {row.name!r} exists already; choose another name")
    _ROWS[row.name] = row
    TASKS[row.name] = row.config


def tasks_of(verb: str) -> tuple[str, ...]:
    """Return the tasks of a verb; the first is the default.

    Args:
        verb: ``pretrain``, ``train`` or ``finetune``.
    """
    kind = "pretrain" if verb == "pretrain" else "train"
    return tuple(row.name for row in tasks().values() if row.verb == kind)


def row_of(loaded: Loaded) -> TaskRow | None:
    """Return the row of the task that a model was trained for; None if it was for none."""
    return tasks().get(loaded.info.task)


def model_info(config: TrainConfig, task: str, classes: tuple[str, ...] = ()) -> ModelInfo:
    """Return the metadata that are saved with a trained model."""
    return ModelInfo(
        task=task,
        classes=classes,
        objective=describe_objective(task, config),
        license=dataset_license_note(config),
        provenance={"data": config.data, "model": config.model, "seed": config.seed},
    )


def typed_info(info: ModelInfo, typed: TrainConfig) -> ModelInfo:
    """Return model metadata with addresses as the user typed them.

    Absolute addresses would publish folder names of the user's machine with every model.
    """
    provenance = {**info.provenance, "data": typed.data, "model": typed.model}
    return replace(info, license=dataset_license_note(typed), provenance=provenance)


def dataset_license_note(config: TrainConfig) -> str:
    """Return a note on the licence of weights that the user trains."""
    return f"your own; subject to the terms of the data ({config.data})"


# -- Settings that a model was trained with, from its folder, its run, or defaults ---------------
#
# A model folder records them (``ModelInfo.objective``), so that a model without its run is
# evaluated, exported and plotted as it was trained. For folders of earlier versions, which record
# less, the run's ``config.yaml`` is used, then the defaults.

S = TypeVar("S")


def describe_objective(task: str, config: TrainConfig) -> dict[str, Any]:
    """Return a task's settings as recorded in a model folder; empty for tasks without settings."""
    settings = tasks()[task].settings
    return config.to_json()[settings[0]] if settings else {}


def recorded_settings(kind: type[S], loaded: Loaded, config: TrainConfig | None) -> S | None:
    """Return the settings that a model was trained with; None if they are not recorded.

    Args:
        kind: Type of the settings, such as ``MaskedAutoencodingConfig``.
        loaded: The model.
        config: Settings of its run, if there is one.

    Raises:
        CheckpointError: The model folder records invalid settings.
    """
    named = {
        row.settings[1]: (row.name, row.settings[0]) for row in tasks().values() if row.settings
    }
    task, name = named[kind]
    if loaded.info.task == task and loaded.info.objective:
        # A later version may have added fields; they are ignored, as everywhere in config.json.
        known = {k: v for k, v in loaded.info.objective.items() if k in _fields(kind)}
        try:
            built = build_config(TASKS[task], {"model": "", "data": "", "out": "", name: known})
        except ConfigError as error:
            raise CheckpointError(f"{loaded.folder / 'config.json'}: objective: {error}") from error
        return getattr(built, name)
    found = getattr(config, name) if isinstance(config, TASKS[task]) else None
    if kind is MaskedAutoencodingConfig:
        return _add_legacy(loaded, found)
    return found


def find_settings(kind: type[S], loaded: Loaded, config: TrainConfig | None) -> S:
    """Return the settings that a model was trained with; defaults if they are not recorded."""
    found = recorded_settings(kind, loaded, config)
    return kind() if found is None else found


def find_masking(loaded: Loaded, config: TrainConfig | None) -> MaskSettings:
    """Return the masking settings of a masked autoencoder, with its family's defaults filled in.

    Raises:
        ConfigError: The model does not mask its input.
    """
    return find_settings(MaskedAutoencodingConfig, loaded, config).settings(loaded.model)


def _fields(kind: Any) -> Mapping[str, Any]:
    return kind.__dataclass_fields__


def _add_legacy(loaded: Loaded, mask: Any) -> Any:
    """Complete masking settings with those recorded before ``ModelInfo.objective`` existed."""
    target, ratio = loaded.info.target, loaded.info.provenance.get("mask_ratio")
    if mask is None and not target and ratio is None:
        return None
    mask = mask or MaskedAutoencodingConfig()
    return replace(mask, target=target or mask.target, ratio=mask.ratio or ratio)


def rebuild_task(loaded: Loaded, config: TrainConfig | None) -> Task:
    """Rebuild the task of a trained model with its training settings, for evaluation.

    Raises:
        CheckpointError: The model was saved without a task that can be evaluated.
    """
    row = row_of(loaded)
    if row is None:
        raise CheckpointError(
            f"{loaded.folder} was saved for task {loaded.info.task or 'none'!r} and cannot be "
            f"evaluated; fine-tune it first"
        )
    settings = find_settings(row.settings[1], loaded, config) if row.settings else None
    return row.rebuild(loaded, settings)


# -- Data of trained models, and shared parts of reports and records -----------------------------


def open_for_model(
    loaded: Loaded, config: TrainConfig | None, address: str
) -> tuple[Dataset, dict[str, ModalitySpec]]:
    """Open data for a model, and return the specs that the loaders must read.

    Args:
        loaded: The model; for a flow model, frame pairs have the model's size.
        config: Settings of the model's run, or None.
        address: Data address.

    Raises:
        UserError: The data cannot be opened.
    """
    row = row_of(loaded)
    known = default_config if row is None else row.default_config
    opened = open_plain if row is None else row.open_data
    return opened(loaded, config or known(loaded, address), address)


def first_batch(loaded: Loaded, config: TrainConfig, size: int) -> Batch:
    """Return the first samples of the validation split, for a report."""
    dataset, specs = open_for_model(loaded, config, config.data)
    return next(iter(make_eval_loader(dataset.splits["val"], specs, batch_size=size)))


def rank_classes(
    probabilities: Tensor, classes: Sequence[str], top: int
) -> list[list[dict[str, Any]]]:
    """Return the most probable classes of every row, best first."""
    best = probabilities.topk(min(top, len(classes)))
    return [
        [
            {"class": classes[i], "probability": round(p, 6)}
            for p, i in zip(values, indices, strict=True)
        ]
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
