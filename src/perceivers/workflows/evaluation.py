"""Evaluate trained models on a split of their own or other data, also per modality subset."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.checkpoints.loading import Loaded, load_with_info, split_address
from perceivers.data import Batch, Dataset, make_eval_loader
from perceivers.data.augment import Views
from perceivers.data.sources import Source
from perceivers.errors import ConfigError, DataError
from perceivers.models.compiling import Uncompiled
from perceivers.report.console import Grid, Shown, name_skipped
from perceivers.report.html import fill_table, per_class_table
from perceivers.settings import Count, Natural, checked
from perceivers.tasks.base import can_lack
from perceivers.tasks.filling import Filler
from perceivers.tasks.flow import FlowConfig, evaluate_pairs
from perceivers.training.config import TrainConfig
from perceivers.training.run_folder import RunFolder
from perceivers.workflows.comparing import average_views
from perceivers.workflows.filling import (
    FillFigures,
    describe_dropout,
    measure_fill,
    open_filler,
)
from perceivers.workflows.numerics import Note, compile_loaded, tell
from perceivers.workflows.opening import own_data, run_config
from perceivers.workflows.reporting import write_run_report
from perceivers.workflows.task_table import (
    find_settings,
    open_for_model,
    rebuild_task,
    row_of,
    tasks,
)

# -- Check that the classes of data and model agree ----------------------------------------------

Columns = Mapping[str, Sequence[str]]


def check_classes(loaded: Loaded, dataset: Dataset, config: TrainConfig | None = None) -> None:
    """Check that data have the same classes as the model.

    Args:
        loaded: The model.
        dataset: Opened data.
        config: Settings of the model's run, which define the classes that masks ignore.

    Raises:
        DataError: Names differ, or there are no labels.
    """
    row = row_of(loaded)
    dataset = dataset if row is None else row.class_dataset(loaded, config, dataset)
    columns = {name: tuple(names) for name, names in loaded.info.columns.items()}
    found = dict(dataset.columns)
    # Label columns are identified by position, so their order matters.
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
    """Abbreviate the classes of each column for error messages."""
    return {
        name: [*classes[:shown], *(["..."] if len(classes) > shown else [])]
        for name, classes in columns.items()
    }


# -- Evaluate every combination of modalities ----------------------------------------------------
#
# Paper: Perceiver (arXiv 2103.03206) Sec. 4.2 reports audio only, video only, and both.

# Each combination takes a full evaluation; 6 modalities have 63 combinations.
MAX_MODALITIES = 6


@dataclass(frozen=True)
class SubsetFigures:
    """Metrics of a model with a subset of its modalities.

    Attributes:
        modalities: Visible modalities.
        samples: Number of samples with at least one of them; all others are excluded.
        figures: Metrics by name.
    """

    modalities: tuple[str, ...]
    samples: int
    figures: dict[str, float]


@checked
def evaluate_subsets(
    model: str | Path,
    *,
    data: str | None = None,
    split: str = "test",
    batch_size: Count = 64,
    workers: Natural = 0,
    limit: Natural = 0,
) -> list[SubsetFigures]:
    """Evaluate a model with every combination of its modalities, the full set first.

    All other modalities are hidden, as if the samples did not have them.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        data: Data address; default: the data of the run.
        split: ``test``, ``val`` or ``train``.
        batch_size: Samples per batch.
        workers: Number of processes that read data.
        limit: Dry run: at most this many batches; 0 means all.

    Raises:
        ConfigError: The model reads a single modality, or more than 6.
        UserError: As ``evaluate``.
    """
    loaded = load_with_info(model)
    names = tuple(loaded.model.config.data_inputs)
    if not can_lack(loaded.model) or len(names) > MAX_MODALITIES:
        raise ConfigError(
            f"{model} reads {len(names)} modalities ({', '.join(names)}); combinations can be "
            f"evaluated for 2 to {MAX_MODALITIES}"
        )
    config = run_config(model)
    dataset, specs = open_for_model(loaded, config, data or own_data(model, config))
    source = choose_split(dataset, split)
    check_classes(loaded, dataset, config)
    task = rebuild_task(loaded, config)
    found = []
    for count in range(len(names), 0, -1):
        for shown in combinations(names, count):
            loader = make_eval_loader(source, specs, batch_size=batch_size, workers=workers)
            seen = _Counter()
            batches = seen.count(restrict(islice(loader, limit or None), shown, names))
            figures = task.evaluate(batches)
            found.append(SubsetFigures(shown, seen.samples, figures))
    return found


def restrict(
    batches: Iterable[Batch], shown: Sequence[str], names: Sequence[str]
) -> Iterator[Batch]:
    """Hide all modalities except ``shown``; samples and batches left empty are dropped.

    Args:
        batches: Batches with one view per sample.
        shown: Modalities that stay visible.
        names: All modalities of the model.
    """
    for batch in batches:
        everywhere = torch.ones(len(batch), dtype=torch.bool)
        nowhere = torch.zeros_like(everywhere)
        held = {n: batch.present.get(n, everywhere) if n in shown else nowhere for n in names}
        rows = torch.stack(list(held.values())).any(0).nonzero().flatten()
        if len(rows):
            batch.present = {**batch.present, **held}
            yield batch.take(rows)


class _Counter:
    def __init__(self) -> None:
        self.samples = 0

    def count(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.samples += len(batch)
            yield batch


# -- Evaluate a trained model on one split -------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Metrics, and the confusion matrix of a classifier.

    Attributes:
        figures: Metrics by name.
        classes: Class names of a classifier; empty for other tasks.
        matrix: Confusion matrix ``[K, K]`` of counts, rows are true classes; None for other tasks
            than single-label classification.
        skipped: Samples that could not be read, as ``path: reason``.
        fill: Errors of predicting each modality from the others, if requested.
        subsets: Metrics for every combination of modalities, if requested.
    """

    figures: dict[str, Any]
    classes: tuple[str, ...]
    matrix: Tensor | None
    skipped: list[str]
    fill: tuple[FillFigures, ...] = ()
    subsets: tuple[SubsetFigures, ...] = ()


@checked
def evaluate(
    model: str | Path,
    *,
    data: str | None = None,
    split: str = "test",
    batch_size: Count = 64,
    workers: Natural = 0,
    limit: Natural = 0,
    views: Views | None = None,
    subsets: bool = False,
    fill: bool = False,
    compile: bool = False,  # noqa: A002 - the setting's name, as in training
    note: Note | None = None,
) -> Evaluation:
    """Evaluate the best model of a run, or a model folder, on one split.

    Metrics count samples, not views. Results of the best model on the data of its run are stored in
    the run folder, except for dry runs.

    Args:
        model: Run folder, ``RUN@last`` or model folder.
        data: Data address; default: the data of the run.
        split: ``test``, ``val`` or ``train``.
        batch_size: Samples per batch; with several views per sample, views per batch.
        workers: Number of processes that read data.
        limit: Dry run: at most this many batches; 0 means all.
        views: Crops or clips of each sample over which a classifier's probabilities are averaged,
            such as ``Views(temporal=5, spatial=3)``; default: one central view.
        subsets: Also compute metrics for every combination of modalities.
        fill: Also predict each modality from all others, and compare with two baselines: the mean
            of the training split, and predictions from the input of another sample.
        compile: Compile the model for full batches; worthwhile for many batches.
        note: Called with messages on compilation time and warnings about ``fill``.

    Raises:
        UserError: There is nothing to evaluate, the data or the views do not suit the model, or the
            model cannot fill in missing modalities.
    """
    views = views or Views()
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    combined: list[SubsetFigures] = []
    if subsets:  # first, because it rejects models of one modality
        _check_subsets(views, compiled=compile)
        combined = evaluate_subsets(model, data=data, split=split, limit=limit, **reading)
    loaded = load_with_info(model)
    config = run_config(model)
    filler = _open_filler(loaded, config, views, compile, note) if fill else None
    single, loaded = loaded, average_views(loaded, views, batch_size)
    recorded = _open_record(model) if config and data is None and not limit else None
    dataset, specs = open_for_model(loaded, config, data or own_data(model, config))
    source = choose_split(dataset, split)
    check_classes(loaded, dataset, config)
    if not source.is_fitted:
        return _evaluate_flow(loaded, config, source, dataset.address, limit, compile)
    loader = make_eval_loader(source, specs, views=views, **reading)
    compiled = compile_loaded(single, batch_size, views, on=compile)
    result = _evaluate_batches(loaded, config, islice(loader, limit or None), compiled)
    tell(compiled, note)
    filled: list[FillFigures] = []
    if filler is not None:
        filled = measure_fill(filler, dataset, specs, split, limit=limit, **reading)
    result = replace(result, fill=tuple(filled), subsets=tuple(combined))
    if recorded is not None:
        _record(recorded, split, result, views)
    return result


def _evaluate_batches(
    loaded: Loaded, config: TrainConfig | None, batches: Iterable[Batch], compiled: Uncompiled
) -> Evaluation:
    """Evaluate batches in the way of the model's task."""
    skipped: list[str] = []
    task = rebuild_task(loaded, config)
    readable = compiled.batches(_collect_bad(batches, skipped))
    metrics, matrix = tasks()[loaded.info.task].metrics(loaded, task, readable)
    classes = () if matrix is None else loaded.info.classes
    return Evaluation(metrics, classes, matrix, skipped)


def _check_subsets(views: Views, *, compiled: bool) -> None:
    if compiled:
        raise ConfigError(
            "--compile has no effect with --subsets, whose batch sizes vary; leave one of them out"
        )
    if views.count > 1:
        raise ConfigError(
            f"views are {views}, but --subsets evaluates one view per sample; leave one of them out"
        )


def _open_record(model: str | Path) -> RunFolder | None:
    """Return the run that stores results; None for its last model.

    Stored results and the report describe the best model only.
    """
    path, which = split_address(model)
    if which == "last":
        return None
    folder = RunFolder(Path(path))
    folder.read_results()  # fails on a damaged file now, not after a long evaluation
    return folder


def _record(folder: RunFolder, split: str, result: Evaluation, views: Views) -> None:
    """Store the results in the run folder."""
    matrix = None if result.matrix is None else result.matrix.tolist()
    extra: dict[str, Any] = {"views": str(views)} if views.count > 1 else {}
    if result.fill:
        extra["fill"] = {each.modality: each.to_json() for each in result.fill}
    folder.add_results(split, {"figures": result.figures, "confusion": matrix, **extra})


def _evaluate_flow(
    loaded: Loaded,
    config: TrainConfig | None,
    source: Source,
    address: str,
    limit: int,
    compiled: bool,
) -> Evaluation:
    """Evaluate real frame pairs one at a time, since their sizes differ."""
    if compiled:
        raise ConfigError(
            f"compile=True has no effect on the frame pairs of {address}, which are evaluated one "
            f"at a time; leave it out"
        )
    scale = find_settings(FlowConfig, loaded, config).scale
    pairs = (
        {name: np.asarray(values) for name, values in source.read(index).items()}
        for index in range(len(source))[: limit or None]
    )
    figures = evaluate_pairs(loaded.model, pairs, scale=scale)
    return Evaluation(figures, (), None, [])


def _open_filler(
    loaded: Loaded, config: TrainConfig | None, views: Views, compiled: bool, note: Note | None
) -> Filler:
    """Create the filler, and warn if training never hid a modality."""
    if views.count > 1:
        raise ConfigError(f"views are {views}, but modalities are filled in from one view each")
    if compiled:
        raise ConfigError(
            "compile has no effect on filling in modalities, whose batches differ in size; leave "
            "out compile or fill"
        )
    filler = open_filler(loaded, config)
    warning = describe_dropout(filler, config, filler.names)
    if warning and note is not None:
        note(f"warning: {warning}")
    return filler


def choose_split(dataset: Dataset, split: str) -> Any:
    """Return the source of a split.

    Raises:
        DataError: The split does not exist.
    """
    if split not in dataset.splits:
        raise DataError(
            f"{dataset.address} has no {split!r} split; it has {sorted(dataset.splits)}. Choose "
            f"one with --split"
        )
    return dataset.splits[split]


def _collect_bad(batches: Iterable[Batch], skipped: list[str]) -> Iterator[Batch]:
    for batch in batches:
        skipped.extend(batch.bad)
        if len(batch.index):
            yield batch


# -- What the verb prints ------------------------------------------------------------------------


def show(
    result: Evaluation,
    *,
    model: str | Path,
    data: str | None,
    split: str,
    limit: int,
    views: Views | None,
) -> Shown:
    """Show metrics and tables; then write the report of the run again if it has new results.

    Args:
        result: From ``evaluate``.
        model: As for ``evaluate``.
        data: As for ``evaluate``.
        split: As for ``evaluate``.
        limit: As for ``evaluate``.
        views: As for ``evaluate``.
    """
    folder = RunFolder(Path(split_address(model)[0]))
    has_new = folder.config.is_file() and data is None and not limit

    def lines() -> Iterator[str | Grid]:
        yield from _show_figures(result, split, views or Views())
        if has_new:
            yield f"report: {write_run_report(folder)}"

    return Shown(lines(), name_skipped(result.skipped))


def _show_figures(result: Evaluation, split: str, views: Views) -> Iterator[str | Grid]:
    for name, value in result.figures.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        yield f"{name}: {shown}"
    if views.count > 1:
        yield f"views: {views} of each sample, probabilities averaged"
    if result.subsets:
        yield _show_subsets(result.subsets, split)
    if result.fill:
        table = fill_table({each.modality: each.to_json() for each in result.fill})
        yield Grid(table.header, table.rows, title=f"Filled in, {split}")
        yield table.note
    if result.matrix is not None:
        table = per_class_table(result.matrix.numpy(), result.classes)
        yield Grid(table.header, table.rows, title=f"Per class, {split}")


def _show_subsets(found: Sequence[SubsetFigures], split: str) -> Grid:
    """Return a row for each combination of modalities that was visible to the model."""
    names = list(dict.fromkeys(name for each in found for name in each.figures))
    rows = [
        [
            " + ".join(each.modalities),
            str(each.samples),
            *(f"{each.figures[name]:.4f}" if name in each.figures else "" for name in names),
        ]
        for each in found
    ]
    header = ["visible modalities", "samples with any", *names]
    return Grid(header, rows, title=f"By modality, {split}")
