"""Pre-train, fine-tune, train from scratch and resume.

Combines data, model and task (``preparing``), checks (``starting``) and the training loop
(``perceivers.training.loop``).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perceivers.checkpoints.loading import split_address
from perceivers.data import Batch, make_eval_loader, make_train_loader
from perceivers.data.fingerprints import take_fingerprint
from perceivers.data.fitting import SampleReader
from perceivers.errors import ConfigError, RunError, is_users, suggest
from perceivers.files import make_folder, real_path, remove_leftovers
from perceivers.models.registry import FAMILIES, find_family, list_models
from perceivers.report.console import Shown
from perceivers.settings import (
    all_unused,
    check_again,
    check_number,
    hints_of,
    tolerated,
    tolerating,
)
from perceivers.tasks import MaskedAutoencoding
from perceivers.tasks.base import dropout_rates
from perceivers.training.config import Strategy, TrainConfig, build_config
from perceivers.training.events import (
    ConsoleProgress,
    Event,
    JsonlWriter,
    Listener,
    Noted,
    Started,
    UnreadableWriter,
    check_records,
)
from perceivers.training.launching import (
    as_typed,
    fit_to_launcher,
    given_processes,
    is_main_process,
    make_absolute,
)
from perceivers.training.loggers import check_installed, make_loggers
from perceivers.training.loop import Loaders, Trainer
from perceivers.training.run_folder import TASKS, RunFolder, write_fingerprint
from perceivers.training.run_lock import RunLock, refuse_if_in_use
from perceivers.training.runtime import Runtime
from perceivers.workflows.numerics import choose_numerics, recall_numerics, write_numerics
from perceivers.workflows.run import Run
from perceivers.workflows.starting import (
    check_effects,
    check_memory,
    check_presence,
    compare_data,
    prepare_again,
)
from perceivers.workflows.task_table import Prepared, tasks, tasks_of, typed_info

START_POSITIONS = "positions_before.npz"
# Settings that may change when a run is resumed: how its work is distributed.
CHANGEABLE = ("devices", "nodes", "strategy", "batch_size", "accumulate")
# Addresses that may change when a run is resumed, if its data or its initial model have moved.
MOVABLE = ("data", "model")
VERBS = ("pretrain", "train", "finetune")


def pretrain(config: TrainConfig | None = None, **settings: Any) -> Run:
    """Pre-train a model: masked autoencoding, autoencoding through latents, or masked bytes.

    Args:
        config: Complete settings; alternatively, give them as keywords.
        settings: ``task`` (pretrain, autoencode or mlm; by default the one that suits the model),
            fields of that task's config (``PretrainConfig``, ``AutoencodeConfig``, ``MlmConfig``),
            and ``overwrite``, ``quiet`` and ``report`` (default on; off skips ``report.html``).

    Raises:
        UserError: A setting, the data or the run folder cannot be used; nothing was written.
    """
    return _start("pretrain", config, settings)


def finetune(config: TrainConfig | None = None, **settings: Any) -> Run:
    """Fine-tune a trained model: everything up to its latents is kept, and gets a new head.

    Args:
        config: Complete settings; alternatively, give them as keywords.
        settings: ``task`` (classify, multilabel, multitask, flow, segment or regress), fields of
            that task's config, and ``overwrite``, ``quiet`` and ``report``.

    Raises:
        UserError: As for ``pretrain``.
    """
    return _start("finetune", config, settings)


def train(config: TrainConfig | None = None, **settings: Any) -> Run:
    """Train a model from scratch.

    Args:
        config: Complete settings; alternatively, give them as keywords.
        settings: As for ``finetune``.

    Raises:
        UserError: As for ``pretrain``.
    """
    return _start("train", config, settings)


def choose_task(verb: str, task: str | None, model: str | None) -> str:
    """Return the task to train; if ``task`` is None, the verb's default for this model.

    Raises:
        ConfigError: The verb does not train this task.
    """
    known = tasks_of(verb)
    if task is None:
        named = verb == "pretrain" and model in list_models()
        masks = not named or FAMILIES[find_family(str(model))].autoencoder is not None
        return known[0] if masks else "autoencode"
    if task not in known:
        home = [other for other in VERBS if task in tasks_of(other)]
        hint = f"; that is for 'perceivers {home[0]}'" if home else suggest(task, known)
        raise ConfigError(f"{verb} trains {', '.join(known)}, not {task!r}{hint}")
    return task


def _task_of(verb: str, config: TrainConfig, others: list[str]) -> str:
    """Return the task of a complete config, which excludes further keywords."""
    if others:
        raise ConfigError(
            f"{verb} got a config and also {', '.join(others)}; put everything into the config, "
            f"or give keywords alone"
        )
    for name, kind in TASKS.items():
        if type(config) is kind:
            return name
    raise ConfigError(
        f"{verb} got a {type(config).__name__}; give one of "
        f"{', '.join(kind.__name__ for kind in TASKS.values())}"
    )


def _check_model(verb: str, model: str) -> None:
    named = model in list_models()
    if verb == "finetune" and named:
        raise ConfigError(
            f"finetune needs trained weights, but {model!r} is a variant name; give a run "
            f"or model folder, or use 'train' to start from scratch"
        )
    if verb == "train" and not named:
        raise ConfigError(
            f"train starts from a variant name, but {model!r} is not one ('perceivers models' "
            f"lists them); to start from trained weights use 'finetune'"
        )


def resume(
    run: str | Path,
    *,
    devices: int | None = None,
    nodes: int | None = None,
    strategy: Strategy | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    data: str | None = None,
    model: str | Path | None = None,
    accept_changed_data: bool = False,
    quiet: bool = False,
    report: bool = True,
    **others: Any,
) -> Run:
    """Resume a run exactly from its last checkpoint.

    Settings that may change are saved in the run's config.

    Args:
        run: Run folder.
        devices: Resume with this number of devices per node.
        nodes: Resume with this number of machines.
        strategy: How to distribute the work.
        batch_size: New number of samples per step and process.
        accumulate: Number of micro-batches per step.
        data: New address of the data, if they moved.
        model: New path of the initial model, if it moved.
        accept_changed_data: Resume although samples, labels or classes have changed since the run
            was started; the changes are recorded in the run's ``data.json``.
        quiet: Print no progress, only errors.
        report: Write ``report.html`` at the end.
        others: Other settings cannot change.

    Raises:
        UserError: The folder is not a run or has no checkpoint, the data have changed, or another
            setting is given.
    """
    changes = {
        "devices": devices,
        "nodes": nodes,
        "strategy": strategy,
        "batch_size": batch_size,
        "accumulate": accumulate,
        **others,
    }
    asked = {name: value for name, value in changes.items() if value is not None}
    given = zip(MOVABLE, (data, model), strict=True)
    moved = {name: str(value) for name, value in given if value is not None}
    check_changes(asked)
    folder = RunFolder(Path(run))
    task, before = folder.read_config()
    if not folder.has_checkpoint:
        refuse_if_in_use(folder.path)
        raise RunError(
            f"{run} stopped before its first checkpoint; start it again with --overwrite"
        )
    check_again(before)
    options = {"accept": accept_changed_data, "quiet": quiet, "report": report}
    return _resume(folder, task, before, asked, moved, **options)


def _resume(
    folder: RunFolder,
    task: str,
    before: TrainConfig,
    asked: Mapping[str, Any],
    moved: Mapping[str, str],
    *,
    accept: bool,
    quiet: bool,
    report: bool,
) -> Run:
    """Resume a run with changed settings and addresses."""
    with tolerating("unused"):  # the run's settings without effect are only noted, below
        typed = as_typed(change_processes(before, asked), folder.read_addresses())
        typed = replace(typed, **moved)
        config = make_absolute(replace(change_processes(before, asked), **moved))
    check_presence(folder, config)
    runtime = Runtime(config)
    with readable_disk_errors(folder), ExitStack() as held:
        with runtime.guarded():
            if runtime.is_main:
                held.enter_context(RunLock(folder.path, note_on(quiet)))
            prepared, config = prepare_again(task, config, folder)
            prepared.info = typed_info(prepared.info, typed)
            prepared.notes.extend(note_on_batches(before, config))
            prepared.notes.extend(folder.describe_older_settings())
            prepared.notes.extend(all_unused(config))
            record: list[Callable[[], object]] = []
            if runtime.is_main:
                record.append(compare_data(folder, prepared, accept=accept))
                remove_leftovers(folder.path)
                prepared.notes.extend(check_records(folder.metrics))
                if config != before:
                    with tolerating("unused"):
                        now = replace(config, **moved)
                    record.append(partial(folder.write_config, task, now))
            numerics, notes = runtime.from_main(
                recall_numerics(folder, runtime.device.type, runtime.precision)
                if runtime.is_main
                else None
            )
            prepared.notes.extend(notes)
            runtime.use_precision(numerics.precision)
            with numerics.used():
                _run(config, task, prepared, folder, runtime, record, quiet=quiet, resuming=True)
        return _finish(folder, runtime, report=report)


def change_processes(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a run's settings for the processes that continue it.

    Raises:
        ConfigError: Another setting would change, or does not fit what torchrun or Slurm started.
    """
    check_changes(changes)
    if given_processes() is not None:
        # The config has the earlier number of processes; the launcher sets the present one.
        changes = {"devices": 1, "nodes": 1, **changes}
    # Settings without effect were accepted when the run was started, so they are not refused now.
    with tolerating("unused"):
        return fit_to_launcher(replace(config, **changes))


def check_changes(changes: Mapping[str, Any]) -> None:
    """Check that settings may be changed when a run is resumed, and are in range.

    Raises:
        ConfigError: A setting may not be changed or is out of range.
    """
    for name, value in changes.items():
        if name not in CHANGEABLE:
            raise ConfigError(f"resume cannot change {name}; it may change {', '.join(CHANGEABLE)}")
        check_number(name, value, hints_of(TrainConfig)[name])


def note_on_batches(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Return a note if the total batch size of a resumed run changes."""
    old, new = (each.batch_size * each.devices * each.nodes for each in (before, now))
    if old == new:
        return []
    return [
        f"the batch of a step was {old} samples and is {new} from here on "
        f"(batch_size={now.batch_size} per process); to keep it, give --batch_size "
        f"{max(old // (now.devices * now.nodes), 1)}"
    ]


def _start(verb: str, config: TrainConfig | None, settings: dict[str, Any]) -> Run:
    overwrite, quiet = (bool(settings.pop(name, False)) for name in ("overwrite", "quiet"))
    report = bool(settings.pop("report", True))
    asked = settings.pop("task", None)
    if config is not None:
        asked = _task_of(verb, config, [*settings, *(["task"] if asked else [])])
    task = choose_task(verb, asked, settings.get("model"))
    config = config or build_config(TASKS[task], settings)
    _check_model(verb, config.model)
    typed = fit_to_launcher(config)
    config = make_absolute(typed)
    folder = RunFolder(Path(config.out))
    # With a launcher, all processes must learn of a failure, so the lock is checked in
    # ``guarded`` below instead.
    if given_processes() is None:
        refuse_if_in_use(folder.path)
    runtime = Runtime(config)
    with readable_disk_errors(folder), ExitStack() as held:
        with runtime.guarded():
            prepared = tasks()[task].prepare(config)
            prepared.info = typed_info(prepared.info, typed)
            record: list[Callable[[], object]] = []
            if runtime.is_main:
                check_start(config, prepared)
                check_memory(config, prepared, runtime.device, runtime.precision)
                found = take_fingerprint(prepared.dataset)
                record.append(partial(write_fingerprint, folder, found))
                folder.check_free(overwrite=overwrite)
            numerics = choose_numerics(config, prepared, runtime)
            runtime.use_precision(numerics.precision)
            if runtime.is_main:
                record.append(partial(write_numerics, folder, numerics))
                make_folder(folder.path)
                held.enter_context(RunLock(folder.path, note_on(quiet)))
                folder.create(task, typed, overwrite=overwrite)
                save_positions(prepared.task.model, folder)
            runtime.barrier()
            with numerics.used():
                _run(config, task, prepared, folder, runtime, record, quiet=quiet, resuming=False)
        return _finish(folder, runtime, report=report)


def note_on(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints notes before the progress bar exists."""
    console = ConsoleProgress("training", quiet=quiet)
    return lambda text: console(Noted(text))


@contextmanager
def readable_disk_errors(folder: RunFolder) -> Iterator[None]:
    """Convert disk errors to errors that say which checkpoint is left.

    Raises:
        RunError: A file could not be read or written.
    """
    try:
        yield
    except OSError as error:
        if not is_users(error):
            raise
        kept = ""
        if folder.has_checkpoint:
            kept = (
                f"; the last complete checkpoint is kept, 'perceivers resume {folder.path}' "
                f"continues from there"
            )
        raise RunError(f"{error}{kept}") from error


def check_start(config: TrainConfig, prepared: Prepared) -> None:
    """Find errors that would stop the first step, before anything is written or replaced.

    Raises:
        UserError: The data do not fit the model, an input cannot be masked, or the run would
            replace its initial model.
    """
    check_installed(config.loggers)
    source = real_path(split_address(config.model)[0])
    out = real_path(config.out)
    if config.model not in list_models() and source.is_relative_to(out):
        raise RunError(
            f"--out {config.out} holds the model that training starts from ({config.model}); "
            f"choose another --out"
        )
    for split in ("train", "val"):
        # The constructor checks that the data fit the specs.
        SampleReader(prepared.dataset.splits[split], prepared.specs, config.augment)
    check_effects(config, prepared)
    prepared.notes.extend(tolerated())
    task = prepared.task
    dropout_rates(task.model, config.modality_dropout)
    if isinstance(task, MaskedAutoencoding):
        # Sampling a mask fails if an input cannot be masked at this ratio.
        blank = {n: torch.zeros(1, *spec.raw_shape) for n, spec in prepared.specs.items()}
        task.objective.draw(blank, task.settings, torch.Generator())


def save_positions(model: Any, folder: RunFolder) -> None:
    """Save the position embeddings before training, for the report."""
    tables: Mapping[str, Any] = {
        name: module().detach().numpy() for name, module in model.position_tables().items()
    }
    make_folder(folder.figures)
    np.savez(folder.figures / START_POSITIONS, **tables)


def _run(
    config: TrainConfig,
    task: str,
    prepared: Prepared,
    folder: RunFolder,
    runtime: Runtime,
    record: Sequence[Callable[[], object]],
    *,
    quiet: bool,
    resuming: bool,
) -> None:
    """Train; ``record`` is called after the state is loaded, so that a failure changes nothing."""
    label = "pre-training" if tasks()[task].verb == "pretrain" else "training"
    console = ConsoleProgress(label, quiet=quiet)
    listeners: list[Listener] = [
        console,
        JsonlWriter(folder.metrics),
        UnreadableWriter(folder.unreadable),
    ]
    listeners += make_loggers(
        config.loggers, folder.path, config.to_json(), lambda text: console(Noted(text))
    )
    listeners.insert(0, partial(call_at_start, record))
    trainer = Trainer(
        prepared.task,
        config,
        make_loaders(config, prepared, runtime),
        folder,
        runtime,
        prepared.info,
        listeners,
    )
    for note in prepared.notes if runtime.is_main else ():
        console(Noted(note))
    trainer.run(resume=resuming)


def _finish(folder: RunFolder, runtime: Runtime, *, report: bool) -> Run:
    """Return the run; only the main process writes its report."""
    run = Run(folder.path)
    if report and runtime.is_main:
        run.write_report()
    return run


def show(run: Run) -> Shown:
    """Show the run and its report; only the main process prints."""
    return Shown([f"run: {run.path}", f"report: {run.folder.report}"] if is_main_process() else [])


def call_at_start(record: Sequence[Callable[[], object]], event: Event) -> None:
    """Call all functions in ``record`` when training starts, after the state is loaded."""
    if isinstance(event, Started):
        for write in record:
            write()


def make_loaders(config: TrainConfig, prepared: Prepared, runtime: Runtime) -> Loaders:
    """Return the loaders of training and validation batches."""
    splits = prepared.dataset.splits

    def train_batches(start: int) -> Iterable[Batch]:
        return make_train_loader(
            splits["train"],
            prepared.specs,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config.augment,
            start_step=start,
            num_steps=config.total_steps,
            workers=config.workers,
            rank=runtime.rank,
            world_size=runtime.world_size,
        )

    def val_batches() -> Iterable[Batch]:
        # With sharded parameters, all processes must call the model equally often, so each of them
        # evaluates the whole split.
        sharers = 1 if runtime.is_sharded else runtime.world_size
        batches = make_eval_loader(
            splits["val"],
            prepared.specs,
            batch_size=config.batch_size,
            workers=config.workers,
            rank=runtime.rank % sharers,
            world_size=sharers,
        )
        return islice(batches, -(-config.limit // sharers) if config.limit else None)

    return Loaders(train=train_batches, val=val_batches)
