"""Settings of the objective that a model was trained with, from its folder, its run, or defaults.

A model folder records them (``ModelInfo.objective``), so that a model without its run is evaluated,
exported and drawn as it was trained. Folders of earlier versions record less: there the run's
``config.yaml`` decides, then the defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from perceivers.checkpoints.loading import Loaded
from perceivers.errors import CheckpointError, ConfigError
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
from perceivers.tasks.masked import MaskSettings
from perceivers.tasks.multilabel import Multilabel, MultilabelConfig
from perceivers.training.config import TrainConfig, build_config
from perceivers.training.run_folder import TASKS

S = TypeVar("S")


@dataclass(frozen=True)
class Objective:
    """Where a task's settings are: the field of its run's config, and their type."""

    field: str
    kind: type[Any]


OBJECTIVES: Mapping[str, Objective] = {
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
    """Return a task's settings as the model folder records them; empty for tasks without."""
    return config.to_json()[OBJECTIVES[task].field] if task in OBJECTIVES else {}


def recorded_settings(kind: type[S], loaded: Loaded, config: TrainConfig | None) -> S | None:
    """Return the settings that a model was trained with; None where nothing records them.

    Args:
        kind: Type of the settings, such as ``MaskedAutoencodingConfig``.
        loaded: The model.
        config: Its run's settings, if there is a run.

    Raises:
        CheckpointError: The model folder records impossible settings.
    """
    task = next(task for task, objective in OBJECTIVES.items() if objective.kind is kind)
    name = OBJECTIVES[task].field
    if loaded.info.task == task and loaded.info.objective:
        # Fields of later versions are ignored, as everywhere in config.json.
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
    """Return the settings that a model was trained with; defaults where nothing records them."""
    found = recorded_settings(kind, loaded, config)
    return kind() if found is None else found


def find_masking(loaded: Loaded, config: TrainConfig | None) -> MaskSettings:
    """Return how a masked autoencoder was masked, with its model family's defaults filled in.

    Raises:
        ConfigError: The model does not mask its input.
    """
    return find_settings(MaskedAutoencodingConfig, loaded, config).settings(loaded.model)


def _fields(kind: Any) -> Mapping[str, Any]:
    return kind.__dataclass_fields__


def _add_legacy(loaded: Loaded, mask: Any) -> Any:
    """Complete masking by what folders before ``ModelInfo.objective`` record."""
    target, ratio = loaded.info.target, loaded.info.provenance.get("mask_ratio")
    if mask is None and not target and ratio is None:
        return None
    mask = mask or MaskedAutoencodingConfig()
    return replace(mask, target=target or mask.target, ratio=mask.ratio or ratio)


def rebuild_task(loaded: Loaded, config: TrainConfig | None) -> Task:
    """Return the task of a trained model with the settings it was trained with, to evaluate it.

    Raises:
        CheckpointError: The model was saved without a task that can be evaluated.
    """
    name, model, info = loaded.info.task, loaded.model, loaded.info
    if name == "multitask":
        return Multitask(model, info.columns)
    if name not in OBJECTIVES:
        raise CheckpointError(
            f"{loaded.folder} was saved for task {name or 'none'!r} and has nothing to evaluate; "
            f"fine-tune it first"
        )
    settings = find_settings(OBJECTIVES[name].kind, loaded, config)
    if name == "pretrain":
        return MaskedAutoencoding(model, settings)
    if name == "mlm":
        return MaskedLanguage(model, settings)
    if name == "autoencode":
        return Autoencoding(model, settings)
    if name == "classify":
        # Mixing and class weights belong to training, and metrics use neither.
        return Classification(model, len(info.classes), ClassificationConfig())
    if name == "multilabel":
        return Multilabel(model, info.columns, settings)
    if name == "segment":
        return Segmentation(model, info.classes, settings)
    if name == "regress":
        return Regression(model, info.targets, settings)
    return OpticalFlow(model, settings)
