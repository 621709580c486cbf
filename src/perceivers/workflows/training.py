"""Pre-train, fine-tune, train from scratch, resume: model, data, task and engine together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import numpy as np
import torch

from perceivers.checkpoints.loading import Loaded, load_with_info, split_address, transfer_encoder
from perceivers.data import Batch, Dataset, make_eval_loader, make_train_loader, open_data
from perceivers.data.fitting import SampleReader
from perceivers.errors import CheckpointError, ConfigError, DataError, RunError, suggest
from perceivers.masking import draw_mask_plan
from perceivers.models.hip import HiP, HiPConfig, HiPHead
from perceivers.models.registry import FAMILIES, create_model, list_models
from perceivers.models.saving import ModelInfo
from perceivers.nn.positions import LearnedPositions
from perceivers.tasks import Classification, MaskedAutoencoding, Task
from perceivers.tasks.classification import balanced_weights
from perceivers.training.config import ClassifyConfig, PretrainConfig, TrainConfig, build_config
from perceivers.training.events import Listener, Noted
from perceivers.training.listeners import ConsoleProgress, JsonlWriter
from perceivers.training.loop import Loaders, Trainer
from perceivers.training.run_folder import RunFolder
from perceivers.training.runtime import Runtime
from perceivers.types import Image, Labels, ModalitySpec
from perceivers.workflows.run import Run

START_POSITIONS = "positions_before.npz"


@dataclass
class Prepared:
    """A run ready to start."""

    task: Task
    dataset: Dataset
    specs: Mapping[str, ModalitySpec]
    info: ModelInfo
    notes: list[str]


def pretrain(config: PretrainConfig | None = None, **settings: Any) -> Run:
    """Pre-train a model by masked auto-encoding.

    Args:
        config: Complete settings; or give them as keywords.
        settings: Fields of ``PretrainConfig``, and ``overwrite`` and ``quiet``.

    Raises:
        UserError: A setting, the data or the run folder is not usable; nothing was written.
    """
    options = _pop_options(settings)
    config = config or build_config(PretrainConfig, settings)
    return _start(config, "pretrain", prepare_pretraining(config), **options)


def finetune(config: ClassifyConfig | None = None, **settings: Any) -> Run:
    """Fine-tune the encoder of a pre-trained run or model folder as a classifier.

    Args:
        config: Complete settings; or give them as keywords.
        settings: Fields of ``ClassifyConfig``, and ``overwrite`` and ``quiet``.

    Raises:
        UserError: As for ``pretrain``.
    """
    options = _pop_options(settings)
    config = config or build_config(ClassifyConfig, settings)
    if config.model in list_models():
        raise ConfigError(
            f"finetune needs trained weights, but {config.model!r} is a variant name; give a run "
            f"or model folder, or use 'train' to start from scratch"
        )
    return _start(config, "classify", prepare_classification(config), **options)


def train(config: ClassifyConfig | None = None, **settings: Any) -> Run:
    """Train a classifier from scratch.

    Args:
        config: Complete settings; or give them as keywords.
        settings: Fields of ``ClassifyConfig``, and ``overwrite`` and ``quiet``.

    Raises:
        UserError: As for ``pretrain``.
    """
    options = _pop_options(settings)
    config = config or build_config(ClassifyConfig, settings)
    if config.model not in list_models():
        raise ConfigError(
            f"train starts from a variant name, but {config.model!r} is none ('perceivers models' "
            f"lists them); to start from trained weights use 'finetune'"
        )
    return _start(config, "classify", prepare_classification(config), **options)


def resume(run: str | Path, *, quiet: bool = False) -> Run:
    """Continue a run from its last checkpoint, exactly.

    Raises:
        UserError: Not a run folder, or nothing to resume from.
    """
    folder = RunFolder(Path(run))
    task, config = folder.read_config()
    if not folder.checkpoint.is_file():
        raise RunError(
            f"{run} stopped before its first checkpoint; start it again with --overwrite"
        )
    prepare = prepare_pretraining if task == "pretrain" else prepare_classification
    return _run(config, task, prepare(config), folder, quiet=quiet, resuming=True)  # pyright: ignore[reportArgumentType]


def prepare_pretraining(config: PretrainConfig) -> Prepared:
    """Open the data and build the masked auto-encoder."""
    dataset = open_data(config.data, val_share=config.val_share)
    notes = list(dataset.notes)
    if config.model in list_models():
        specs = dict(dataset.specs(size=config.size, channels=config.channels))
        if config.model_options.get("labels"):
            if not dataset.classes:
                raise DataError(
                    f"model_options.labels needs labelled data, but {config.data} has no classes"
                )
            specs |= {name: Labels(len(dataset.classes)) for name in config.model_options["labels"]}
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = create_model(config.model, inputs=specs, **_options(config))
    else:
        loaded = _load_for(config, dataset)
        if loaded.model.decoder is None:
            raise CheckpointError(
                f"{config.model} has no decoder, so it cannot reconstruct; pre-training continues "
                f"from pre-trained runs, or starts from a variant name"
            )
        model = loaded.model
        notes.append(f"continuing from the weights of {loaded.folder}")
    info = ModelInfo(
        task="pretrain",
        classes=dataset.classes if model.config.labels else (),
        target=config.mask.target,
        license=dataset_license_note(config),
        provenance={"data": config.data, "model": config.model, "seed": config.seed},
    )
    task = MaskedAutoencoding(model, config.mask)
    return Prepared(task, dataset, model.config.data_inputs, info, notes)


def prepare_classification(config: ClassifyConfig) -> Prepared:
    """Open the data and build the classifier, from trained weights or fresh."""
    dataset = open_data(config.data, val_share=config.val_share)
    notes = list(dataset.notes)
    if len(dataset.classes) < 2:
        raise DataError(
            f"{config.data} has {len(dataset.classes)} classes; classification needs at least 2 "
            f"(class sub-folders, .cls entries in shards, or 'label' in an .npz)"
        )
    num_classes = len(dataset.classes)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        if config.model in list_models():
            specs = dataset.specs(size=config.size, channels=config.channels)
            model = create_model(
                config.model,
                inputs=specs,
                num_classes=num_classes,
                head=config.head,
                **_options(config),
            )
        else:
            loaded = _load_for(config, dataset)
            head = HiPHead(kind=config.head, num_outputs=num_classes)
            settings = {"decoder": False, "head": head, **_options(config)}
            model = FAMILIES[loaded.model.family].module(replace(loaded.model.config, **settings))
            notes.append(f"from {loaded.folder}: {transfer_encoder(loaded.model, model)}")
    info = ModelInfo(
        task="classify",
        classes=dataset.classes,
        license=dataset_license_note(config),
        provenance={"data": config.data, "model": config.model, "seed": config.seed},
    )
    weights = None
    if config.loss.class_weights == "balanced":
        labels = dataset.splits["train"].labels
        assert labels is not None
        weights = balanced_weights(torch.as_tensor(labels), num_classes)
    task = Classification(model, num_classes, config.loss, weights)
    return Prepared(task, dataset, model.config.data_inputs, info, notes)


def dataset_license_note(config: TrainConfig) -> str:
    """What can honestly be said of the licence of weights trained here."""
    return f"your own; subject to the terms of the data ({config.data})"


def _options(config: TrainConfig) -> dict[str, Any]:
    """Model options as the config classes want them.

    Raises:
        ConfigError: An unknown field, one that is described otherwise, or a value of another type.
    """
    hints = get_type_hints(HiPConfig)
    options = {}
    for key, value in config.model_options.items():
        if key not in hints or key in {"inputs", "levels", "head"}:
            known = sorted(hints.keys() - {"inputs", "levels", "head"})
            raise ConfigError(
                f"model_options has no setting {key!r}{suggest(key, known)} (there are "
                f"{', '.join(known)})"
            )
        hint = hints[key]
        if hint is float and type(value) is int:
            value = float(value)
        if isinstance(value, list):
            value = tuple(value)
        kind = get_origin(hint) or hint
        if kind is Literal:
            kind = str
        if type(value) is not kind:
            raise ConfigError(
                f"model_options.{key} is {value!r}; it must be of type {kind.__name__}"
            )
        options[key] = value
    return options


def _load_for(config: TrainConfig, dataset: Dataset) -> Loaded:
    """Load trained weights for this data, at another picture size when one is asked for."""
    loaded = load_with_info(config.model)
    specs = dict(loaded.model.config.data_inputs)
    native = dataset.specs(size=config.size, channels=config.channels)
    if set(specs) != set(native):
        raise DataError(
            f"{config.model} reads {sorted(specs)}, but {config.data} holds {sorted(native)}"
        )
    if config.size is None:
        return loaded
    resized = {
        name: replace(spec, height=config.size, width=config.size)
        if isinstance(spec, Image)
        else spec
        for name, spec in loaded.model.config.inputs.items()
    }
    return Loaded(loaded.model.resized(resized), loaded.info, loaded.folder)


def _pop_options(settings: dict[str, Any]) -> dict[str, bool]:
    return {name: bool(settings.pop(name, False)) for name in ("overwrite", "quiet")}


def _start(
    config: TrainConfig, task: str, prepared: Prepared, *, overwrite: bool, quiet: bool
) -> Run:
    """Create the run folder and run."""
    folder = RunFolder(Path(config.out))
    check_start(config, prepared)
    folder.create(task, config, overwrite=overwrite)
    save_positions(prepared.task.model, folder)
    return _run(config, task, prepared, folder, quiet=quiet, resuming=False)


def check_start(config: TrainConfig, prepared: Prepared) -> None:
    """Find what would stop the first step, before anything is written or replaced.

    Raises:
        UserError: The data do not fit the model, an input cannot be masked, or the run would
            replace the model that it starts from.
    """
    source = Path(split_address(config.model)[0]).resolve()
    out = Path(config.out).resolve()
    if config.model not in list_models() and source.is_relative_to(out):
        raise RunError(
            f"--out {config.out} holds the model that training starts from ({config.model}); "
            f"choose another --out"
        )
    for split in ("train", "val"):
        SampleReader(prepared.dataset.splits[split], prepared.specs, config.augment)
    if isinstance(config, PretrainConfig):
        draw_mask_plan(
            prepared.task.model.layout(),
            1,
            ratio=config.mask.ratio,
            kind=config.mask.kind,
            generator=torch.Generator(),
        )


def save_positions(model: HiP, folder: RunFolder) -> None:
    """Keep the position tables as they are before training, for the report."""
    tables = {
        name: module().detach().numpy()
        for name, module in model.encoder.inputs.positions.items()
        if isinstance(module, LearnedPositions)
    }
    folder.figures.mkdir(parents=True, exist_ok=True)
    np.savez(folder.figures / START_POSITIONS, **tables)


def _run(
    config: TrainConfig,
    task: str,
    prepared: Prepared,
    folder: RunFolder,
    *,
    quiet: bool,
    resuming: bool,
) -> Run:
    """Train, then write the run's report."""
    label = {"pretrain": "pre-training", "classify": "training"}[task]
    runtime = Runtime(config)
    console = ConsoleProgress(label, quiet=quiet)
    listeners: list[Listener] = [console, JsonlWriter(folder.metrics)]
    trainer = Trainer(
        prepared.task,
        config,
        make_loaders(config, prepared, runtime),
        folder,
        runtime,
        prepared.info,
        listeners,
    )
    for note in prepared.notes:
        console(Noted(note))
    trainer.run(resume=resuming)
    run = Run(folder.path)
    if runtime.is_main:
        run.write_report()
    return run


def make_loaders(config: TrainConfig, prepared: Prepared, runtime: Runtime) -> Loaders:
    """Bind the data to the loop."""
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
        batches = make_eval_loader(
            splits["val"], prepared.specs, batch_size=config.batch_size, workers=config.workers
        )
        return islice(batches, config.limit or None)

    return Loaders(train=train_batches, val=val_batches)
