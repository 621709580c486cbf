"""The task ``pretrain``: masked autoencoding of raw elements (HiP) or mask units (Hiera)."""

from dataclasses import asdict, replace

from perceivers.checkpoints.loading import load_with_info
from perceivers.data import make_eval_loader
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.models.registry import FAMILIES, list_models
from perceivers.report.html import Section
from perceivers.tasks import MaskedAutoencoding, MaskedAutoencodingConfig
from perceivers.training.config import PretrainConfig
from perceivers.types import Bytes, Labels
from perceivers.workflows.building import fresh_autoencoder, load_for, with_options
from perceivers.workflows.by_task.mlm import list_texts
from perceivers.workflows.opening import data_specs, open_dataset
from perceivers.workflows.reconstruction import (
    TARGET_NOTES,
    as_pictures,
    draw_imagined,
    imagine,
    picture_modality,
)
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


def pictures_section(report: Report) -> Section | None:
    """Show held-out images or video frames: original, masked, reconstructed; None without any."""
    config, loaded = report.config, report.loaded
    assert isinstance(config, PretrainConfig)
    try:
        name = picture_modality(loaded.model)
    except DataError:
        return None
    dataset = open_dataset(config)
    loader = make_eval_loader(
        dataset.splits["val"], loaded.model.config.data_inputs, batch_size=SHOWN
    )
    batch = next(iter(loader))
    settings = find_masking(loaded, config)
    made = imagine(loaded.model, batch, settings, SHOWN_SEED)[name]
    if not len(made.original):
        return None
    pictures = as_pictures(made)
    share = f"{100 * (1 - settings.ratio):.0f} %"
    path = draw_imagined(
        report.folder.figures / "reconstructions.png",
        pictures,
        title=f"Reconstructed from {share} of the input",
        note=TARGET_NOTES[settings.target],
    )
    text = (
        f"Validation images, not used in training. Masking is {settings.kind}: {share} of the "
        f"input was visible, and the model reconstructed the rest. {TARGET_NOTES[settings.target]}"
    )
    return Section(title="Reconstruction", text=text, figures=[(path, "Held-out images.")])


def texts_section(report: Report) -> Section | None:
    """Show held-out texts: masked, reconstructed, original; None without a text input."""
    config, loaded = report.config, report.loaded
    assert isinstance(config, PretrainConfig)
    specs = loaded.model.config.data_inputs
    name = next((n for n, spec in specs.items() if isinstance(spec, Bytes)), None)
    if name is None:
        return None
    source = open_dataset(config).splits["val"]
    batch = next(iter(make_eval_loader(source, specs, batch_size=SHOWN)))
    settings = find_masking(loaded, config)
    found = imagine(loaded.model, batch, settings, SHOWN_SEED)[name]
    text = (
        f"Validation texts, not used in training. Masking is {settings.kind}: "
        f"{100 * (1 - settings.ratio):.0f} % of the input was visible; hidden bytes are "
        f"underscores, and each is replaced by the most likely byte."
    )
    code = list_texts(found.original, ~found.visible, found.reconstructed)
    return Section(title="Reconstructed texts", text=text, code=code)


def sections(report: Report) -> list[Section]:
    """Return reconstructed images and texts."""
    found = (pictures_section(report), texts_section(report))
    return [section for section in found if section]


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
