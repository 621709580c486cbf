"""The task ``pretrain``: masked autoencoding of raw elements (HiP) or mask units (Hiera)."""

from dataclasses import asdict, replace
from typing import Any

from perceivers.checkpoints.loading import load_with_info
from perceivers.data import make_eval_loader
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.models.registry import FAMILIES, list_models
from perceivers.report.drawings import drawings
from perceivers.report.html import Section
from perceivers.tasks import MaskedAutoencoding, MaskedAutoencodingConfig
from perceivers.training.config import PretrainConfig
from perceivers.types import Labels
from perceivers.workflows.building import fresh_autoencoder, load_for, with_options
from perceivers.workflows.opening import data_specs, open_dataset
from perceivers.workflows.reconstruction import imagine
from perceivers.workflows.task_table import (
    Prepared,
    Report,
    TaskRow,
    find_masking,
    model_info,
)

SHOWN = 10
SHOWN_SEED = 7


def prepare_pretraining(config: PretrainConfig) -> Prepared:
    """Prepare masked autoencoding of a HiP (groups of raw elements) or a Hiera (mask units)."""
    dataset = open_dataset(config)
    notes = list(dataset.notes)
    named = config.model in list_models()
    if named:
        specs = data_specs(config, dataset)
        if config.model_options.get("labels"):
            if not dataset.classes:
                raise DataError(
                    f"model_options.labels needs labelled data, but {config.data} has no classes"
                )
            specs |= {name: Labels(len(dataset.classes)) for name in config.model_options["labels"]}
        model = fresh_autoencoder(config, specs)
    else:
        loaded = with_options(load_for(config, dataset), config)
        model = loaded.model
        notes.append(f"continuing from the weights of {loaded.folder}")
    if FAMILIES[model.family].objective is None:
        raise ConfigError(
            f"--task pretrain masks the input of a HiP or a Hiera, but {config.model} is a "
            f"{model.family} model; use --task autoencode (any signal, --autoencode.mask_ratio "
            f"0.85 hides tokens) or --task mlm (texts)"
        )
    if model.decoder is None and not named:
        raise CheckpointError(
            f"{config.model} has no decoder, so it cannot reconstruct; pre-training continues from "
            f"pre-trained runs, or starts from a variant name"
        )
    teacher = load_with_info(config.mask.teacher).model if config.mask.teacher else None
    task = MaskedAutoencoding(model, config.mask, teacher)
    classes = dataset.classes if model.predicted_labels else ()
    info = model_info(config, "pretrain", classes)
    # Save resolved settings, so that a change of defaults does not affect this model. The teacher
    # is needed in training only: a saved model is evaluated by its reconstructions.
    of_training = {"teacher", "latent_weight"}
    masking = {key: value for key, value in info.objective.items() if key not in of_training}
    masking |= asdict(task.settings)
    info = replace(info, target=task.settings.target, objective=masking)
    return Prepared(task, dataset, model.config.data_inputs, info, notes)


def sections(report: Report) -> list[Section]:
    """Return reconstructions of held-out samples: images or frames, texts, and other kinds.

    Only the first modality of kinds that share a section is shown.
    """
    config, loaded = report.config, report.loaded
    assert isinstance(config, PretrainConfig)
    specs = loaded.model.config.data_inputs
    chosen: dict[Any, str] = {}
    for drawing in drawings().values():
        for name, spec in specs.items():
            if spec.kind == drawing.kind and drawing.example is not None:
                chosen.setdefault(drawing.example, name)
    if not chosen:
        return []
    source = open_dataset(config).splits["val"]
    batch = next(iter(make_eval_loader(source, specs, batch_size=SHOWN)))
    settings = find_masking(loaded, config)
    found = imagine(loaded.model, batch, settings, SHOWN_SEED)
    return [
        example(report.folder.figures, found[name], settings)
        for example, name in chosen.items()
        if len(found[name].original)
    ]


ROW = TaskRow(
    name="pretrain",
    verb="pretrain",
    title="Masked autoencoding",
    config=PretrainConfig,
    settings=("mask", MaskedAutoencodingConfig),
    prepare=prepare_pretraining,
    rebuild=lambda loaded, settings: MaskedAutoencoding(loaded.model, settings),
    report=sections,
    shows_metrics=False,
    next=("perceivers reconstruct {run} FILE... --out files/",),
)
