"""Open the data and build the task of a training run or a trained model; nothing is written."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch

from perceivers.checkpoints.loading import Loaded, load_with_info
from perceivers.data import Dataset
from perceivers.data.clouds import PointMask
from perceivers.data.masks import Mask, count_pixels, kept_classes
from perceivers.data.measuring import override_spec
from perceivers.data.sources import TargetSource
from perceivers.errors import CheckpointError, ConfigError, DataError
from perceivers.models.masked import MaskSettings
from perceivers.models.registry import FAMILIES, find_family, list_models
from perceivers.models.saving import ModelInfo
from perceivers.tasks import (
    Autoencoding,
    AutoencodingConfig,
    Classification,
    ClassificationConfig,
    FlowConfig,
    MaskedAutoencoding,
    MaskedAutoencodingConfig,
    MaskedLanguage,
    MaskedLanguageConfig,
    Multitask,
    OpticalFlow,
    Regression,
    RegressionConfig,
    Segmentation,
    SegmentationConfig,
    Task,
)
from perceivers.tasks.classification import balanced_weights
from perceivers.tasks.flow import TARGET, flow_modality
from perceivers.tasks.multilabel import Multilabel, MultilabelConfig, label_names
from perceivers.tasks.regression import measure_targets
from perceivers.tasks.segmentation import TARGET as MASKS
from perceivers.training.config import (
    AutoencodeConfig,
    ClassifyConfig,
    FlowTrainConfig,
    MlmConfig,
    MultilabelTrainConfig,
    MultitaskConfig,
    PretrainConfig,
    RegressConfig,
    SegmentConfig,
    TrainConfig,
    build_config,
)
from perceivers.training.run_folder import TASKS
from perceivers.types import Array, Labels, ModalitySpec, Points
from perceivers.workflows.building import (
    classifier,
    fresh_autoencoder,
    fresh_model,
    fresh_or_continued,
    load_for,
    masked_modality,
    resize,
    segmenter,
    with_options,
)
from perceivers.workflows.opening import data_specs, open_dataset


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
    info = _info(config, "pretrain", classes)
    # Save resolved settings, so that a change of defaults does not affect this model. The teacher
    # is needed in training only: a saved model is evaluated by its reconstructions.
    of_training = {"teacher", "latent_weight"}
    masking = {key: value for key, value in info.objective.items() if key not in of_training}
    masking |= asdict(task.settings)
    info = replace(info, target=task.settings.target, objective=masking)
    return Prepared(task, dataset, model.config.data_inputs, info, notes)


def prepare_mlm(config: MlmConfig) -> Prepared:
    """Prepare masked language modelling on bytes."""
    dataset = open_dataset(config)
    model, notes = fresh_or_continued(config, dataset, build=fresh_autoencoder)
    task = MaskedLanguage(model, config.mlm)
    notes = [*dataset.notes, *notes]
    return Prepared(task, dataset, model.config.data_inputs, _info(config, "mlm"), notes)


def prepare_autoencoding(config: AutoencodeConfig) -> Prepared:
    """Prepare autoencoding through the latents; a label of the data becomes a modality."""
    dataset = open_dataset(config)
    extra = {"label": Labels(len(dataset.classes))} if dataset.classes else {}
    model, notes = fresh_or_continued(config, dataset, extra)
    task = Autoencoding(model, config.autoencode)
    known = [model.config.inputs[name].num_classes for name in task.labels]
    if known and known[0] != len(dataset.classes):
        raise DataError(
            f"{config.model} auto-encodes a label of {known[0]} classes, but {config.data} has "
            f"{len(dataset.classes)}; give data with those classes, or start from a variant"
        )
    info = _info(config, "autoencode", dataset.classes if task.labels else ())
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_classification(config: ClassifyConfig) -> Prepared:
    """Prepare classification with one class per sample."""
    dataset = open_dataset(config)
    if dataset.columns or len(dataset.classes) < 2:
        found = list(dataset.columns) or f"{len(dataset.classes)} classes"
        raise DataError(
            f"{config.data} has {found}; classification needs one label with at least 2 classes "
            f"(class sub-folders, .cls entries in shards, 'label' in an .npz), or choose a column "
            f"with --labels; several at once: --task multitask or multilabel"
        )
    model, notes = classifier(config, dataset, len(dataset.classes), config.head)
    weights = None
    if config.loss.class_weights == "balanced":
        labels = dataset.splits["train"].labels
        assert labels is not None
        weights = balanced_weights(torch.as_tensor(labels), len(dataset.classes))
    task = Classification(model, len(dataset.classes), config.loss, weights)
    info = _info(config, "classify", dataset.classes)
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_multilabel(config: MultilabelTrainConfig) -> Prepared:
    """Prepare multi-label classification on label columns."""
    dataset = open_dataset(config)
    columns = dataset.columns or {"label": dataset.classes}
    names = label_names(columns) if any(columns.values()) else ()
    if len(names) < 2:
        raise DataError(
            f"{config.data} has {len(names)} labels; multi-label training needs label columns "
            f"(choose them with --labels)"
        )
    model, notes = classifier(config, dataset, len(names), "query")
    task = Multilabel(model, columns, config.multilabel)
    info = replace(_info(config, "multilabel", names), columns=dict(columns))
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_multitask(config: MultitaskConfig) -> Prepared:
    """Prepare one classification per label column."""
    dataset = open_dataset(config)
    if len(dataset.columns) < 2:
        raise DataError(
            f"{config.data} has {len(dataset.columns)} label columns; multitask needs several: "
            f"join data sets with 'A + B', or name columns with --labels"
        )
    sizes = {name: len(classes) for name, classes in dataset.columns.items()}
    model, notes = classifier(config, dataset, sizes, "query")
    task = Multitask(model, dataset.columns, config.label_smoothing)
    info = replace(_info(config, "multitask"), columns=dict(dataset.columns))
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_segmentation(config: SegmentConfig) -> Prepared:
    """Prepare segmentation of images or point clouds."""
    dataset = open_dataset(config)
    classes, spec = mask_spec(dataset, config.segment)
    model, notes = segmenter(config, dataset, len(classes), config.head)
    sized = sized_mask(model, spec)
    specs = {**model.config.data_inputs, MASKS: sized}
    weights = None
    if config.segment.class_weights == "balanced":
        counts = torch.from_numpy(count_pixels(dataset.splits["train"], sized)).float()
        mean = counts.sum() / len(classes)
        # Inverse frequencies; classes that do not occur get weight 0 instead of infinity.
        weights = torch.where(counts > 0, mean / counts.clamp(min=1), 0.0)
    task = Segmentation(model, classes, config.segment, weights)
    info = _info(config, "segment", classes)
    return Prepared(task, dataset, specs, info, [*dataset.notes, *notes])


def mask_spec(dataset: Dataset, config: SegmentationConfig) -> tuple[tuple[str, ...], Mask]:
    """Return the classes that are not ignored, and a mask spec with a size of one pixel.

    Raises:
        DataError: The data have no masks, or the ignored class does not exist.
    """
    if not dataset.mask_classes:
        raise DataError(
            f"{dataset.address} holds no masks; segmentation needs a folder with images/ and "
            f"masks/ paired by name, KEY.png beside KEY.jpg in tars, or ragged .npz point clouds "
            f"with a label per point"
        )
    classes, ignored = kept_classes(dataset.mask_classes, config.ignore)
    return classes, Mask(1, 1, len(classes), ignored, config.exif_masks)


def find_mask_spec(
    loaded: Loaded, config: TrainConfig | None, dataset: Dataset
) -> tuple[tuple[str, ...], Mask]:
    """Return ``mask_spec`` for the settings that a model was trained with."""
    return mask_spec(dataset, find_settings(SegmentationConfig, loaded, config))


def sized_mask(model: Any, spec: Mask) -> Mask | PointMask:
    """Return the mask spec at the size of the model's images or points."""
    inputs = model.config.data_inputs
    own = inputs[masked_modality(inputs)]
    if isinstance(own, Points):
        return PointMask(own.points, spec.num_classes, spec.ignore)
    height, width = own.grid
    return replace(spec, height=height, width=width)


def prepare_regression(config: RegressConfig) -> Prepared:
    """Prepare regression of one or more numbers per sample."""
    dataset = open_dataset(config)
    source = dataset.splits["train"]
    targets = source.targets if isinstance(source, TargetSource) else None
    if targets is None or not dataset.targets:
        raise DataError(
            f"{config.data} has no targets; name the table columns with the numbers to predict, "
            f"such as --targets '[\"age\"]'"
        )
    measured = measure_targets(torch.from_numpy(targets), dataset.targets)
    model, notes = classifier(config, dataset, len(measured), config.head)
    task = Regression(model, measured, config.regress)
    info = replace(_info(config, "regress"), targets=measured)
    return Prepared(task, dataset, model.config.data_inputs, info, [*dataset.notes, *notes])


def prepare_flow(config: FlowTrainConfig) -> Prepared:
    """Prepare optical flow on generated or measured frame pairs."""
    unused = {"size": None, "channels": None, "labels": [], "modalities": []}
    given = [name for name, value in unused.items() if getattr(config, name) != value]
    if given or config.inputs.keys() - {"video"}:
        what = given[0] if given else f"inputs {sorted(config.inputs.keys() - {'video'})}"
        raise ConfigError(
            f"flow reads only frame pairs and does not use {what}; set their size with inputs: "
            f"{{video: {{height: 48, width: 64}}}}"
        )
    model, notes = _flow_model(config)
    task = OpticalFlow(model, config.flow)
    spec = model.config.inputs[flow_modality(model)]
    _, height, width = spec.grid
    dataset = open_dataset(config, frame_size=(height, width))
    specs = {**model.config.inputs, TARGET: Array((2, height), width)}
    return Prepared(task, dataset, specs, _info(config, "flow"), [*dataset.notes, *notes])


def _flow_model(config: FlowTrainConfig) -> tuple[Any, list[str]]:
    """Return a flow model, from a variant or trained weights, and notes for the console."""
    asked = config.inputs.get("video", {})
    if config.model not in list_models():
        loaded = load_with_info(config.model)
        name = flow_modality(loaded.model)
        # Only for its error message, which names a wrong field.
        override_spec(name, loaded.model.config.inputs[name], asked)
        loaded = with_options(resize(loaded, {name: asked}), config)
        return loaded.model, [f"continuing from the weights of {loaded.folder}"]
    own = FAMILIES[find_family(config.model)].variants[config.model]
    if "flow" not in own.get("outputs", {}):
        raise ConfigError(f"{config.model} is not a flow model; use one of {list_models('*flow*')}")
    inputs = {"video": override_spec("video", own["inputs"]["video"], asked)}
    return fresh_model(config, inputs), []


def _info(config: TrainConfig, task: str, classes: tuple[str, ...] = ()) -> ModelInfo:
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


# Task name -> function that prepares its run; the names are those of ``run_folder.TASKS``.
PREPARE: dict[str, Callable[[Any], Prepared]] = {
    "pretrain": prepare_pretraining,
    "mlm": prepare_mlm,
    "autoencode": prepare_autoencoding,
    "classify": prepare_classification,
    "multilabel": prepare_multilabel,
    "multitask": prepare_multitask,
    "flow": prepare_flow,
    "segment": prepare_segmentation,
    "regress": prepare_regression,
}


# ------------------------------------------------------------------------------------------------
# Settings of the objective that a model was trained with, from its folder, its run, or defaults.
#
# A model folder records them (``ModelInfo.objective``), so that a model without its run is
# evaluated, exported and plotted as it was trained. For folders of earlier versions, which record
# less, the run's ``config.yaml`` is used, then the defaults.

S = TypeVar("S")


@dataclass(frozen=True)
class Objective:
    """Settings of a task: their field in the run's config, and their type."""

    field: str
    kind: type[Any]


RECORDED: Mapping[str, Objective] = {
    "pretrain": Objective("mask", MaskedAutoencodingConfig),
    "mlm": Objective("mlm", MaskedLanguageConfig),
    "autoencode": Objective("autoencode", AutoencodingConfig),
    "classify": Objective("loss", ClassificationConfig),
    "multilabel": Objective("multilabel", MultilabelConfig),
    "segment": Objective("segment", SegmentationConfig),
    "regress": Objective("regress", RegressionConfig),
    "flow": Objective("flow", FlowConfig),
}


def describe_objective(task: str, config: TrainConfig) -> dict[str, Any]:
    """Return a task's settings as recorded in a model folder; empty for tasks without settings."""
    return config.to_json()[RECORDED[task].field] if task in RECORDED else {}


def recorded_settings(kind: type[S], loaded: Loaded, config: TrainConfig | None) -> S | None:
    """Return the settings that a model was trained with; None if they are not recorded.

    Args:
        kind: Type of the settings, such as ``MaskedAutoencodingConfig``.
        loaded: The model.
        config: Settings of its run, if there is one.

    Raises:
        CheckpointError: The model folder records invalid settings.
    """
    task = next(task for task, objective in RECORDED.items() if objective.kind is kind)
    name = RECORDED[task].field
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
    name, model, info = loaded.info.task, loaded.model, loaded.info
    if name == "multitask":
        return Multitask(model, info.columns)
    if name not in RECORDED:
        raise CheckpointError(
            f"{loaded.folder} was saved for task {name or 'none'!r} and cannot be evaluated; "
            f"fine-tune it first"
        )
    settings = find_settings(RECORDED[name].kind, loaded, config)
    if name == "pretrain":
        return MaskedAutoencoding(model, settings)
    if name == "mlm":
        return MaskedLanguage(model, settings)
    if name == "autoencode":
        return Autoencoding(model, settings)
    if name == "classify":
        # Mixing and class weights are for training; metrics use neither.
        return Classification(model, len(info.classes), ClassificationConfig())
    if name == "multilabel":
        return Multilabel(model, info.columns, settings)
    if name == "segment":
        return Segmentation(model, info.classes, settings)
    if name == "regress":
        return Regression(model, info.targets, settings)
    return OpticalFlow(model, settings)
