"""Build the model of a run: with new weights, from trained weights, or on a trained encoder."""

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from perceivers.adapters.config import change_fields
from perceivers.checkpoints.loading import Loaded, load_state, load_with_info, transfer_encoder
from perceivers.data import Dataset
from perceivers.data.modality import modality_of
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.models.registry import (
    FAMILIES,
    create_model,
    families_with,
    find_family,
    list_models,
)
from perceivers.settings import change, named
from perceivers.training.config import PretrainConfig, TrainConfig
from perceivers.types import ModalitySpec
from perceivers.workflows.opening import data_specs

# Fields of a model's config that cannot be set with model_options.
DESCRIBED_ELSEWHERE = {"inputs", "levels", "head"}


def fresh_model(config: TrainConfig, specs: Mapping[str, ModalitySpec], **settings: Any) -> Any:
    """Build a variant whose initial weights depend only on the seed.

    Args:
        config: Settings of the run.
        specs: Input modalities.
        settings: Other arguments of ``create_model``.
    """
    options = model_options(config, find_family(config.model))
    # Building a model must not change the random numbers that the caller uses afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return create_model(config.model, inputs=specs, **settings, **options)


def fresh_autoencoder(config: TrainConfig, specs: Mapping[str, ModalitySpec]) -> Any:
    """Build a variant with the decoder for masked autoencoding, if its family has one.

    Args:
        config: Settings of the run.
        specs: Input modalities.
    """
    family = FAMILIES[find_family(config.model)]
    settings = family.autoencoder or {}
    own = {key: value for key, value in settings.items() if key not in config.model_options}
    model = fresh_model(config, specs, **own)
    latent = isinstance(config, PretrainConfig) and config.mask.target == "latent"
    if not latent or family.with_latent_head is None:
        return model
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return family.module(family.with_latent_head(model.config))


def fresh_or_continued(
    config: TrainConfig,
    dataset: Dataset,
    extra: Mapping[str, ModalitySpec] | None = None,
    *,
    build: Callable[[TrainConfig, Mapping[str, ModalitySpec]], Any] = fresh_model,
) -> tuple[Any, list[str]]:
    """Build a variant, or load trained weights to continue from.

    Args:
        config: Settings of the run.
        dataset: Opened data.
        extra: Further modalities of a new variant, besides those of the data.
        build: Function that builds a variant.

    Returns:
        The model, and messages for the console.
    """
    if config.model in list_models():
        return build(config, {**data_specs(config, dataset), **(extra or {})}), []
    loaded = with_options(load_for(config, dataset), config)
    return loaded.model, [f"continuing from the weights of {loaded.folder}"]


def classifier(
    config: TrainConfig, dataset: Dataset, num_classes: int | Mapping[str, int], head: str
) -> tuple[Any, list[str]]:
    """Build a classifier with new weights, or on the trained encoder of another model.

    Args:
        config: Settings of the run.
        dataset: Opened data.
        num_classes: Number of logits, or numbers by task.
        head: ``query`` or ``mean``.

    Returns:
        The model, and messages for the console.
    """
    if config.model in list_models():
        specs = data_specs(config, dataset)
        return fresh_model(config, specs, num_classes=num_classes, head=head), []
    loaded = load_for(config, dataset)
    family = FAMILIES[loaded.model.family]
    # Options such as stochastic depth apply to the classifier only, not to the pre-trained model.
    wanted = family.as_classifier(loaded.model.config, num_classes, head)
    wanted = change_config(wanted, model_options(config, loaded.model.family))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = family.module(wanted)
    return model, [f"from {loaded.folder}: {transfer_encoder(loaded.model, model)}"]


def segmenter(
    config: TrainConfig, dataset: Dataset, num_classes: int, head: str
) -> tuple[Any, list[str]]:
    """Build a model that classifies elements, with new weights or on a trained encoder.

    Args:
        config: Settings of the run.
        dataset: Opened data.
        num_classes: Number of logits per element.
        head: ``family`` for the default of the model family, or the name of one of its heads.

    Returns:
        The model, and messages for the console.

    Raises:
        ConfigError: The model family does not support segmentation or this head, or not for these
            modalities.
    """
    loaded = None if config.model in list_models() else load_for(config, dataset)
    family = find_family(config.model) if loaded is None else loaded.model.family
    entry = FAMILIES[family]
    if entry.as_segmenter is None:
        able = families_with("as_segmenter")
        raise ConfigError(
            f"{config.model} is a {family} model, which has no output per element; segmentation is "
            f"supported by {', '.join(able)}"
        )
    base = _plain_config(config, dataset) if loaded is None else loaded.model.config
    name = masked_modality(base.data_inputs)
    wanted = entry.as_segmenter(base, num_classes, name, head)
    wanted = change_config(wanted, model_options(config, family))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = entry.module(wanted)
    if loaded is None:
        return model, []
    return model, [f"from {loaded.folder}: {transfer_encoder(loaded.model, model)}"]


def _plain_config(config: TrainConfig, dataset: Dataset) -> Any:
    """Return the config of a variant for this data; the caller replaces its head."""
    entry = FAMILIES[find_family(config.model)]
    return entry.configure(
        entry.variants[config.model],
        inputs=data_specs(config, dataset),
        num_classes=None,
        head="query",
        overrides={},
    )


def masked_modality(specs: Mapping[str, ModalitySpec]) -> str:
    """Return the one modality that segmentation masks belong to: images or points.

    Raises:
        ConfigError: There is none, or more than one.
    """
    names = [name for name, spec in specs.items() if modality_of(spec).mask is not None]
    if len(names) != 1:
        raise ConfigError(
            f"segmentation needs exactly one modality of images or points, but the modalities are "
            f"{sorted(specs)}, with {names} of these kinds; choose one with --modalities"
        )
    return names[0]


def load_for(config: TrainConfig, dataset: Dataset) -> Loaded:
    """Load trained weights for this data, resized to the input sizes in ``config``.

    Raises:
        DataError: The data lack a modality of the model.
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
            if spec.takes_size:
                changes[name] |= {"height": config.size, "width": config.size}
    return resize(loaded, changes)


def resize(loaded: Loaded, changes: Mapping[str, Mapping[str, Any]]) -> Loaded:
    """Return a model whose input specs have some fields changed.

    Args:
        loaded: Trained weights.
        changes: New values of fields by modality, such as ``{"image": {"height": 64}}``.
    """
    if not any(changes.values()):
        return loaded
    inputs = dict(loaded.model.config.inputs)
    inputs |= {n: replace(inputs[n], **c) for n, c in changes.items()}
    return replace(loaded, model=loaded.model.resized(inputs))


def with_options(loaded: Loaded, config: TrainConfig) -> Loaded:
    """Load trained weights into a model with the run's ``model_options``, such as dropout.

    Raises:
        ConfigError: As ``model_options``.
        CheckpointError: The weights do not fit the changed model.
    """
    options = model_options(config, loaded.model.family)
    if not options:
        return loaded
    changed = change_config(loaded.model.config, options)
    model = FAMILIES[loaded.model.family].module(changed)
    source = f"{loaded.folder} with model_options {options}"
    load_state(model, loaded.model.state_dict(), source=source)
    return replace(loaded, model=model)


def change_config(config: Any, options: Mapping[str, Any]) -> Any:
    """Return a model config with some fields changed; nested configs keep their other fields.

    Args:
        config: Config of any model family.
        options: Result of ``model_options``.

    Raises:
        ConfigError: A mapping has no such entry, or the values contradict each other.
    """
    changes = {}
    for key, value in options.items():
        own = getattr(config, key)
        if is_dataclass(own) and isinstance(value, Mapping):
            value = change_fields(own, value)
        elif isinstance(own, Mapping) and isinstance(value, Mapping):
            unknown = sorted(value.keys() - own.keys())
            if unknown:
                raise ConfigError(
                    f"model_options.{key} contains {unknown[0]!r}, but the trained model has "
                    f"{sorted(own)}{suggest(unknown[0], own)}"
                )
            value = {**own, **{n: change_fields(own[n], entry) for n, entry in value.items()}}
        changes[key] = value
    return change(config, named(options), **changes)


def model_options(config: TrainConfig, family: str) -> dict[str, Any]:
    """Convert ``config.model_options`` to the types of a family's config fields.

    Args:
        config: Settings of the run.
        family: Model family.

    Raises:
        ConfigError: A field is unknown or cannot be set this way, or a value has the wrong type.
    """
    hints = get_type_hints(FAMILIES[family].config)
    known = {key: hint for key, hint in hints.items() if key not in DESCRIBED_ELSEWHERE}
    return _as_fields("model_options", config.model_options, known)


def _as_fields(where: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    for key in values:
        if key not in hints:
            raise ConfigError(
                f"{where} has no setting {key!r}{suggest(str(key), hints)} (there are "
                f"{', '.join(sorted(hints))})"
            )
    return {key: _as_hinted(f"{where}.{key}", value, hints[key]) for key, value in values.items()}


def _as_hinted(where: str, value: Any, hint: Any) -> Any:
    """Convert a plain value to the type of its field; nested settings stay mappings."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in {Union, UnionType}:
        if value is None and NoneType in parts:
            return None
        return _as_hinted(where, value, next(part for part in parts if part is not NoneType))
    if kind is Literal and value not in parts:
        raise ConfigError(
            f"{where} is {value!r}; choose from {list(parts)}{suggest(str(value), parts)}"
        )
    if kind is Literal:
        return value
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _as_fields(where, value, get_type_hints(kind))
    if kind is Mapping and isinstance(value, Mapping):
        return {key: _as_hinted(f"{where}.{key}", entry, parts[1]) for key, entry in value.items()}
    if kind is tuple and isinstance(value, list | tuple):
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_as_hinted(f"{where}[{i}]", v, parts[0]) for i, v in enumerate(value))
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if is_dataclass(kind) or kind is Mapping:
        kind = dict
    if type(value) is not kind:
        raise ConfigError(
            f"{where} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}"
        )
    return value
