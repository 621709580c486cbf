"""Build the model of a run: with fresh weights, from trained ones, or around trained latents."""

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from perceivers.adapters.config import change_fields
from perceivers.checkpoints.loading import Loaded, load_state, load_with_info, transfer_encoder
from perceivers.data import Dataset
from perceivers.errors import ConfigError, DataError, suggest
from perceivers.models.registry import FAMILIES, create_model, find_family, list_models
from perceivers.settings import change, named
from perceivers.training.config import PretrainConfig, TrainConfig
from perceivers.types import Image, ModalitySpec, Points
from perceivers.workflows.opening import data_specs

# Fields of a model's config that are described elsewhere than in model_options.
DESCRIBED_ELSEWHERE = {"inputs", "levels", "head"}


def fresh_model(config: TrainConfig, specs: Mapping[str, ModalitySpec], **settings: Any) -> Any:
    """Build a variant whose weights depend on the seed alone.

    Args:
        config: The run's settings.
        specs: What it reads.
        settings: Other arguments of ``create_model``.
    """
    options = model_options(config, find_family(config.model))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return create_model(config.model, inputs=specs, **settings, **options)


def fresh_autoencoder(config: TrainConfig, specs: Mapping[str, ModalitySpec]) -> Any:
    """Build a variant with the decoder of masked auto-encoding, if its family has one.

    Args:
        config: The run's settings.
        specs: What it reads.
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
    """Build a variant, or continue from trained weights; also return sentences for the console.

    Args:
        config: The run's settings.
        dataset: Opened data.
        extra: Modalities of a variant beside those of the data.
        build: Builds a variant.
    """
    if config.model in list_models():
        return build(config, {**data_specs(config, dataset), **(extra or {})}), []
    loaded = with_options(load_for(config, dataset), config)
    return loaded.model, [f"continuing from the weights of {loaded.folder}"]


def classifier(
    config: TrainConfig, dataset: Dataset, num_classes: int | Mapping[str, int], head: str
) -> tuple[Any, list[str]]:
    """Build a classifier with fresh weights, or around the trained latents of another model.

    Args:
        config: The run's settings.
        dataset: Opened data.
        num_classes: Logits, or logits by task.
        head: ``query`` or ``mean``.

    Returns:
        The model, and sentences for the console.
    """
    if config.model in list_models():
        specs = data_specs(config, dataset)
        return fresh_model(config, specs, num_classes=num_classes, head=head), []
    loaded = load_for(config, dataset)
    family = FAMILIES[loaded.model.family]
    # Options such as dropped units may suit the classifier and not what was pre-trained.
    wanted = family.as_classifier(loaded.model.config, num_classes, head)
    wanted = change_config(wanted, model_options(config, loaded.model.family))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = family.module(wanted)
    return model, [f"from {loaded.folder}: {transfer_encoder(loaded.model, model)}"]


def segmenter(
    config: TrainConfig, dataset: Dataset, num_classes: int, head: str
) -> tuple[Any, list[str]]:
    """Build a model that answers element by element, fresh or around trained latents.

    Args:
        config: The run's settings.
        dataset: Opened data.
        num_classes: Logits per element.
        head: ``family``, or the name of a read-out that the model's system has.

    Returns:
        The model, and sentences for the console.

    Raises:
        ConfigError: The system, or this data's modalities, have no such read-out.
    """
    loaded = None if config.model in list_models() else load_for(config, dataset)
    family = find_family(config.model) if loaded is None else loaded.model.family
    entry = FAMILIES[family]
    if entry.as_segmenter is None:
        able = [name for name, each in FAMILIES.items() if each.as_segmenter is not None]
        raise ConfigError(
            f"{config.model} is a {family} model, which has no answer per element; segmentation is "
            f"for {', '.join(able)}"
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
    """Return the config of a variant for this data, before its read-out is chosen."""
    entry = FAMILIES[find_family(config.model)]
    return entry.configure(
        entry.variants[config.model],
        inputs=data_specs(config, dataset),
        num_classes=None,
        head="query",
        overrides={},
    )


def masked_modality(specs: Mapping[str, ModalitySpec]) -> str:
    """Return the one modality that masks belong to: the pictures, or the points.

    Raises:
        ConfigError: There are none, or several.
    """
    names = [name for name, spec in specs.items() if isinstance(spec, Image | Points)]
    if len(names) != 1:
        raise ConfigError(
            f"masks say what is in a picture, or of what kind points are, but the modalities are "
            f"{sorted(specs)}, of which {names} are such; choose one with --modalities"
        )
    return names[0]


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
    return resize(loaded, changes)


def resize(loaded: Loaded, changes: Mapping[str, Mapping[str, Any]]) -> Loaded:
    """Return a model for inputs some of whose fields were changed.

    Args:
        loaded: Trained weights.
        changes: Fields by modality.
    """
    if not any(changes.values()):
        return loaded
    inputs = dict(loaded.model.config.inputs)
    inputs |= {n: replace(inputs[n], **c) for n, c in changes.items()}
    return replace(loaded, model=loaded.model.resized(inputs))


def with_options(loaded: Loaded, config: TrainConfig) -> Loaded:
    """Return trained weights in a model with other options, such as dropout.

    Raises:
        ConfigError: As ``model_options``.
        CheckpointError: The weights do not fit such a model.
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
    """Return a model's config with some fields changed; nested ones field by field.

    Args:
        config: Of any family.
        options: From ``model_options``.

    Raises:
        ConfigError: A table has no such entry, or the values contradict one another.
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
                    f"model_options.{key} speaks of {unknown[0]!r}, but the trained model has "
                    f"{sorted(own)}{suggest(unknown[0], own)}"
                )
            value = {**own, **{n: change_fields(own[n], entry) for n, entry in value.items()}}
        changes[key] = value
    return change(config, named(options), **changes)


def model_options(config: TrainConfig, family: str) -> dict[str, Any]:
    """Return model options as a family's config wants them.

    Args:
        config: The run's settings.
        family: Of the model.

    Raises:
        ConfigError: An unknown field, one that is described otherwise, or a value of another type.
    """
    hints = get_type_hints(FAMILIES[family].config)
    known = {key: hint for key, hint in hints.items() if key not in DESCRIBED_ELSEWHERE}
    return _as_fields("model_options", config.model_options, known)


def _as_fields(where: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values in the types of the fields they are for."""
    for key in values:
        if key not in hints:
            raise ConfigError(
                f"{where} has no setting {key!r}{suggest(str(key), hints)} (there are "
                f"{', '.join(sorted(hints))})"
            )
    return {key: _as_hinted(f"{where}.{key}", value, hints[key]) for key, value in values.items()}


def _as_hinted(where: str, value: Any, hint: Any) -> Any:
    """Return a plain value in the type of its field; nested settings stay plain."""
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
