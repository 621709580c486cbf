"""Open the data and build what is trained, for every task; nothing is written yet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_origin, get_type_hints

import torch

from perceivers.checkpoints.loading import Loaded, load_with_info, transfer_encoder
from perceivers.data import Dataset
from perceivers.errors import CheckpointError, ConfigError, DataError, suggest
from perceivers.models.hip import HiP
from perceivers.models.registry import FAMILIES, create_model, find_family, list_models
from perceivers.models.saving import ModelInfo
from perceivers.tasks import (
    Autoencoding,
    AutoencodingConfig,
    Classification,
    FlowConfig,
    MaskedAutoencoding,
    MaskedAutoencodingConfig,
    MaskedLanguage,
    MaskedLanguageConfig,
    Multitask,
    OpticalFlow,
    Task,
)
from perceivers.tasks.classification import balanced_weights
from perceivers.tasks.flow import TARGET, flow_modality
from perceivers.tasks.multilabel import Multilabel, MultilabelConfig, label_names
from perceivers.training.config import (
    AutoencodeConfig,
    ClassifyConfig,
    FlowTrainConfig,
    MlmConfig,
    MultilabelTrainConfig,
    MultitaskConfig,
    PretrainConfig,
    TrainConfig,
)
from perceivers.types import Array, Labels, ModalitySpec, Video
from perceivers.workflows.opening import data_specs, open_dataset

# Fields of a model's config that are described elsewhere than in model_options.
DESCRIBED_ELSEWHERE = {"inputs", "levels", "head"}


@dataclass
class Prepared:
    """A run ready to start.

    Attributes:
        task: Model, loss and metrics.
        dataset: Opened data.
        specs: What the loaders bring: the model's inputs, and targets such as flow.
        info: What is saved with the weights.
        notes: Sentences for the console.
    """

    task: Task
    dataset: Dataset
    specs: Mapping[str, ModalitySpec]
    info: ModelInfo
    notes: list[str]


def prepare_pretraining(config: PretrainConfig) -> Prepared:
    """Masked auto-encoding of groups (HiP)."""
    dataset = open_dataset(config)
    notes = list(dataset.notes)
    if config.model in list_models():
        specs = data_specs(config, dataset)
        if config.model_options.get("labels"):
            if not dataset.classes:
                raise DataError(
                    f"model_options.labels needs labelled data, but {config.data} has no classes"
                )
            specs |= {name: Labels(len(dataset.classes)) for name in config.model_options["labels"]}
        model = _fresh(config, specs)
    else:
        loaded = load_for(config, dataset)
        if isinstance(loaded.model, HiP) and loaded.model.decoder is None:
            raise CheckpointError(
                f"{config.model} has no decoder, so it cannot reconstruct; pre-training continues "
                f"from pre-trained runs, or starts from a variant name"
            )
        model = loaded.model
        notes.append(f"continuing from the weights of {loaded.folder}")
    if not isinstance(model, HiP):
        raise ConfigError(
            f"--task pretrain masks the groups of a HiP, but {config.model} is a {model.family} "
            f"model; use --task autoencode (any signal, --autoencode.mask_ratio 0.85 hides tokens) "
            f"or --task mlm (texts)"
        )
    info = _info(config, "pretrain", dataset.classes if model.config.labels else ())
    info = replace(info, target=config.mask.target)
    task = MaskedAutoencoding(model, config.mask)
    return Prepared(task, dataset, model.config.data_inputs, info, notes)


def prepare_mlm(config: MlmConfig) -> Prepared:
    """Masked language modelling on bytes."""
    dataset = open_dataset(config)
    model, notes = _fresh_or_continued(config, dataset)
    task = MaskedLanguage(model, config.mlm)
    notes = [*dataset.notes, *notes]
    return Prepared(task, dataset, model.config.data_inputs, _info(config, "mlm"), notes)


def prepare_autoencoding(config: AutoencodeConfig) -> Prepared:
    """Auto-encoding through the latents; labelled data add their label as a modality."""
    dataset = open_dataset(config)
    extra = {"label": Labels(len(dataset.classes))} if dataset.classes else {}
    model, notes = _fresh_or_continued(config, dataset, extra)
    task = Autoencoding(model, config.autoencode)
    info = _info(config, "autoencode", dataset.classes if task.labels else ())
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_classification(config: ClassifyConfig) -> Prepared:
    """One class per sample, from trained weights or fresh."""
    dataset = open_dataset(config)
    if dataset.columns or len(dataset.classes) < 2:
        found = list(dataset.columns) or f"{len(dataset.classes)} classes"
        raise DataError(
            f"{config.data} has {found}; classification needs one label with at least 2 classes "
            f"(class sub-folders, .cls entries in shards, 'label' in an .npz), or choose a column "
            f"with --labels; several at once: --task multitask or multilabel"
        )
    model, notes = _classifier(config, dataset, len(dataset.classes), config.head)
    weights = None
    if config.loss.class_weights == "balanced":
        labels = dataset.splits["train"].labels
        assert labels is not None
        weights = balanced_weights(torch.as_tensor(labels), len(dataset.classes))
    task = Classification(model, len(dataset.classes), config.loss, weights)
    info = _info(config, "classify", dataset.classes)
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_multilabel(config: MultilabelTrainConfig) -> Prepared:
    """Any number of labels per sample, from label columns."""
    dataset = open_dataset(config)
    columns = dataset.columns or {"label": dataset.classes}
    names = label_names(columns)
    if len(names) < 2:
        raise DataError(
            f"{config.data} has {len(names)} labels; multi-label training needs label columns "
            f"(choose them with --labels)"
        )
    model, notes = _classifier(config, dataset, len(names), "query")
    task = Multilabel(model, columns, config.multilabel)
    info = replace(_info(config, "multilabel", names), columns=dict(columns))
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_multitask(config: MultitaskConfig) -> Prepared:
    """One classification per label column."""
    dataset = open_dataset(config)
    if len(dataset.columns) < 2:
        raise DataError(
            f"{config.data} has {len(dataset.columns)} label columns; multitask needs several: "
            f"join data sets with 'A + B', or name columns with --labels"
        )
    sizes = {name: len(classes) for name, classes in dataset.columns.items()}
    model, notes = _classifier(config, dataset, sizes, "query")
    task = Multitask(model, dataset.columns, config.label_smoothing)
    info = replace(_info(config, "multitask"), columns=dict(dataset.columns))
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_flow(config: FlowTrainConfig) -> Prepared:
    """Optical flow on generated or measured pairs."""
    if config.model in list_models():
        asked = config.inputs.get("video", {})
        own = FAMILIES[find_family(config.model)].variants[config.model].get("inputs", {})
        video = own.get("video")
        if not isinstance(video, Video):
            raise ConfigError(
                f"{config.model} is no flow model; use one of {list_models('*flow*')}"
            )
        inputs = {"video": replace(video, **asked)}
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = create_model(config.model, inputs=inputs, **model_options(config))
        notes = []
    else:
        loaded = load_with_info(config.model)
        model, notes = loaded.model, [f"continuing from the weights of {loaded.folder}"]
    task = OpticalFlow(model, config.flow)
    spec = model.config.inputs[flow_modality(model)]
    _, height, width = spec.grid
    dataset = open_dataset(config, frame_size=(height, width))
    specs = {**model.config.inputs, TARGET: Array((2, height), width)}
    return Prepared(task, dataset, specs, _info(config, "flow"), [*dataset.notes, *notes])


def _info(config: TrainConfig, task: str, classes: tuple[str, ...] = ()) -> ModelInfo:
    return ModelInfo(
        task=task,
        classes=classes,
        license=dataset_license_note(config),
        provenance={"data": config.data, "model": config.model, "seed": config.seed},
    )


def dataset_license_note(config: TrainConfig) -> str:
    """What can honestly be said of the licence of weights trained here."""
    return f"your own; subject to the terms of the data ({config.data})"


def _fresh(config: TrainConfig, specs: Mapping[str, ModalitySpec], **settings: Any) -> Any:
    """Build a variant whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return create_model(config.model, inputs=specs, **settings, **model_options(config))


def _fresh_or_continued(
    config: TrainConfig, dataset: Dataset, extra: Mapping[str, ModalitySpec] | None = None
) -> tuple[Any, list[str]]:
    """Build a variant, or continue from trained weights."""
    if config.model in list_models():
        return _fresh(config, {**data_specs(config, dataset), **(extra or {})}), []
    loaded = load_for(config, dataset)
    return loaded.model, [f"continuing from the weights of {loaded.folder}"]


def _classifier(
    config: TrainConfig, dataset: Dataset, num_classes: int | Mapping[str, int], head: str
) -> tuple[Any, list[str]]:
    """Build a classifier with fresh weights, or around the trained latents of another model."""
    if config.model in list_models():
        specs = data_specs(config, dataset)
        return _fresh(config, specs, num_classes=num_classes, head=head), []
    loaded = load_for(config, dataset)
    family = FAMILIES[loaded.model.family]
    kept = replace(loaded.model.config, **model_options(config))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = family.module(family.as_classifier(kept, num_classes, head))
    return model, [f"from {loaded.folder}: {transfer_encoder(loaded.model, model)}"]


def load_for(config: TrainConfig, dataset: Dataset) -> Loaded:
    """Load trained weights for this data, at another size when one is asked for.

    Raises:
        DataError: The model reads other modalities than the data hold.
    """
    loaded = load_with_info(config.model)
    wanted = loaded.model.config.data_inputs
    native = data_specs(config, dataset)
    missing = sorted(wanted.keys() - native.keys())
    if missing:
        raise DataError(
            f"{config.model} reads {sorted(wanted)}, but {config.data} holds {sorted(native)}"
        )
    changes = {name: dict(config.inputs.get(name, {})) for name in wanted}
    if config.size is not None:
        for name, spec in wanted.items():
            if spec.kind == "image":
                changes[name] |= {"height": config.size, "width": config.size}
    if not any(changes.values()):
        return loaded
    inputs = dict(loaded.model.config.inputs)
    inputs |= {n: replace(inputs[n], **c) for n, c in changes.items()}  # pyright: ignore[reportArgumentType]
    return Loaded(loaded.model.resized(inputs), loaded.info, loaded.folder)


def model_options(config: TrainConfig) -> dict[str, Any]:
    """Model options as the family's config wants them.

    Raises:
        ConfigError: An unknown field, one that is described otherwise, or a value of another type.
    """
    if config.model in list_models():
        family = find_family(config.model)
    else:
        family = load_with_info(config.model).model.family if config.model_options else "hip"
    hints = get_type_hints(FAMILIES[family].config)
    options = {}
    for key, value in config.model_options.items():
        known = sorted(hints.keys() - DESCRIBED_ELSEWHERE)
        if key not in known:
            raise ConfigError(
                f"model_options has no setting {key!r}{suggest(key, known)} (there are "
                f"{', '.join(known)})"
            )
        options[key] = _as_hinted(key, value, hints[key])
    return options


def _as_hinted(key: str, value: Any, hint: Any) -> Any:
    """Return a plain value in the type of its field; nested settings stay plain."""
    if hint is float and type(value) is int:
        value = float(value)
    if isinstance(value, list):
        value = tuple(value)
    kind: Any = get_origin(hint) or hint
    if kind is Literal:
        kind = str
    if hasattr(kind, "__dataclass_fields__") or kind is Mapping:
        kind = dict
    if not isinstance(kind, type) or type(value) is not kind:
        raise ConfigError(
            f"model_options.{key} is {value!r}; it must be of type "
            f"{getattr(kind, '__name__', kind)}"
        )
    return value


def rebuild_task(name: str, model: Any, config: TrainConfig | None, info: ModelInfo) -> Task:
    """Return the task of a trained model, to evaluate it; defaults where no run says more.

    Raises:
        CheckpointError: The model was saved without a task that can be evaluated.
    """
    if name == "pretrain":
        mask = config.mask if isinstance(config, PretrainConfig) else MaskedAutoencodingConfig()
        return MaskedAutoencoding(model, mask)
    if name == "mlm":
        return MaskedLanguage(
            model, config.mlm if isinstance(config, MlmConfig) else MaskedLanguageConfig()
        )
    if name == "autoencode":
        known = config.autoencode if isinstance(config, AutoencodeConfig) else AutoencodingConfig()
        return Autoencoding(model, known)
    if name == "multilabel":
        return Multilabel(model, info.columns, MultilabelConfig())
    if name == "multitask":
        return Multitask(model, info.columns)
    if name == "flow":
        return OpticalFlow(
            model, config.flow if isinstance(config, FlowTrainConfig) else FlowConfig()
        )
    raise CheckpointError(
        f"a model saved for task {name or 'none'!r} has nothing to evaluate; fine-tune it first"
    )


# Task name -> how its run is prepared; the names are those of ``training.run_folder.TASKS``.
PREPARE: dict[str, Callable[[Any], Prepared]] = {
    "pretrain": prepare_pretraining,
    "mlm": prepare_mlm,
    "autoencode": prepare_autoencoding,
    "classify": prepare_classification,
    "multilabel": prepare_multilabel,
    "multitask": prepare_multitask,
    "flow": prepare_flow,
}
