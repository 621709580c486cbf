"""Conversion of the released HiP code: constructor arguments to our config, Haiku names to ours.

Names are those of google-deepmind/hierarchical_perceiver (Apache-2.0). That code attends to
padding, deals the groups to the modalities present in a call, chooses a position projection by
the place of a modality in the call, and ignores ``activation_name``; the config reproduces this.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.bundle import Inputs, require
from perceivers.errors import CheckpointError, suggest
from perceivers.models.hip import HiP, HiPConfig, HiPLevel
from perceivers.settings import settle
from perceivers.types import Array, ModalitySpec

# Per-level arguments; the released classes have no defaults for them.
LEVEL_KWARGS = {
    "num_self_attends_per_block": "depth",
    "z_index_dim": "num_latents",
    "num_z_channels": "latent_dim",
    "num_cross_attend_heads": "num_cross_heads",
    "num_self_attend_heads": "num_heads",
    "cross_attend_widening_factor": "cross_mlp_ratio",
    "self_attend_widening_factor": "mlp_ratio",
}
# Keyword-only arguments with their released defaults.
SHARED_KWARGS: dict[str, Any] = {
    "num_position_encoding_channels": None,
    "activation_name": "sq_relu",
    "dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}
HIERARCHY_KWARGS: dict[str, Any] = {
    "regroup_type": "reshape",
    "processor_index_dim_train": None,
    "processor_index_dim_eval": None,
}
FLAT_KWARGS: dict[str, Any] = {"z_index_dim_train": None, "z_index_dim_eval": None}
CLASSES = {
    "HiP": ("num_groups",),
    "HiPClassBottleneck": ("num_groups", "label_modalities"),
    "PerceiverIO": (),
}

Datasets = tuple[tuple[str, Inputs], ...]


def config_from_haiku(model: str, kwargs: Mapping[str, Any], datasets: Datasets) -> HiPConfig:
    """Translate a released class and its arguments to our config.

    Args:
        model: Name of the released class.
        kwargs: Its constructor arguments.
        datasets: The modalities and shapes of every call.

    Raises:
        CheckpointError: The class or an argument is unknown, a required argument is missing, or
            a modality has two different shapes.
    """
    if model not in CLASSES:
        raise CheckpointError(
            f"model {model!r} is not of this family; expected one of {list(CLASSES)}"
            + suggest(model, CLASSES)
        )
    flat = model == "PerceiverIO"
    optional = {**SHARED_KWARGS, **(FLAT_KWARGS if flat else HIERARCHY_KWARGS)}
    required = {*LEVEL_KWARGS, "num_embedding_channels", *CLASSES[model]}
    unknown = sorted(kwargs.keys() - optional.keys() - required)
    if unknown:
        raise CheckpointError(
            f"{model} has no argument {unknown[0]!r}{suggest(unknown[0], [*optional, *required])}"
        )
    given = {key: require(kwargs, key, f"{model} arguments") for key in sorted(required)}
    given |= {key: kwargs.get(key, default) for key, default in optional.items()}
    labels = tuple(given.get("label_modalities", ()))
    inputs = _collect_inputs(datasets)
    embedding = int(given["num_embedding_channels"])
    positions = given["num_position_encoding_channels"]
    projected = positions is not None and positions != embedding
    # A flat model has one group: there is nothing to deal, pad or regroup.
    dealt: dict[str, Any] = {
        "deal_over": "present",
        "mask_padding": False,
        "regroup": given.get("regroup_type", "reshape"),
    }
    values: dict[str, Any] = dict(
        inputs=inputs,
        levels=_levels(given, flat=flat),
        token_dim=embedding,
        # The released position embeddings are as wide as the token embedding, whatever
        # num_position_encoding_channels says.
        position_dim=embedding,
        project_positions="slot" if projected else "none",
        position_slots=max(sum(name not in labels for name, _ in call) for _, call in datasets)
        if projected
        else 0,
        grouping="concatenate" if flat else "deal",
        **({} if flat else dealt),
        labels=tuple(name for name in inputs if name in labels),
        activation="squared_relu",
        dropout_rate=float(given["dropout_prob"]),
        drop_path_rate=float(given["drop_path_rate"]),
        drop_path_rescale=False,
        init="paper",
    )
    return settle(HiPConfig, values)


def _collect_inputs(datasets: Datasets) -> dict[str, ModalitySpec]:
    # The order of first appearance matters: it fixes the order of the modalities in the model.
    inputs: dict[str, ModalitySpec] = {}
    for dataset, modalities in datasets:
        for name, (_, length, channels) in modalities:
            spec = Array(shape=(length,), channels=channels)
            if inputs.setdefault(name, spec) != spec:
                raise CheckpointError(
                    f"modality {name!r} of data set {dataset!r} is {length} x {channels} here and "
                    f"{inputs[name].num_tokens} x {inputs[name].channels} elsewhere; a model has "
                    f"one set of position embeddings per name, so the shapes must agree"
                )
    return inputs


def _levels(given: Mapping[str, Any], *, flat: bool) -> tuple[HiPLevel, ...]:
    """Turn parallel tuples into levels, and apply the overrides of the middle level."""
    columns = {ours: given[theirs] for theirs, ours in LEVEL_KWARGS.items()}
    columns["num_groups"] = 1 if flat else given["num_groups"]
    if flat:
        columns = {name: [value] for name, value in columns.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise CheckpointError(f"level arguments have different lengths: {lengths}")
    rows = [
        {name: int(column[i]) for name, column in columns.items()}
        for i in range(lengths["num_groups"])
    ]
    prefix = "z_index_dim" if flat else "processor_index_dim"
    train, evaluation = given[f"{prefix}_train"], given[f"{prefix}_eval"]
    if train is not None and evaluation is not None:
        raise CheckpointError(f"only one of {prefix}_train and {prefix}_eval may be given")
    middle = rows[len(rows) // 2]
    default = middle["num_latents"]
    middle["num_latents"] = evaluation or default
    if train is not None or evaluation is not None:
        middle["train_latents"] = train or default
    return tuple(settle(HiPLevel, row) for row in rows)


# Haiku module to ours, by kind of block. A number after # is the position of the query, key or
# value in our fused projection.
READ_NAMES = {
    "layer_norm": "norm_query",
    "layer_norm_1": "norm_tokens",
    "layer_norm_2": "norm_mlp",
    "attention/query_linear": "attention.q",
    "attention/key_linear": "attention.k",
    "attention/value_linear": "attention.v",
    "attention/attention_output_linear": "attention.out",
    "dense/mlp_hidden_linear": "mlp.hidden",
    "dense/mlp_output_linear": "mlp.out",
    "pre_attention_residual_linear": "skip",
}
LAYER_NAMES = {
    "layer_norm": "norm_attention",
    "layer_norm_1": "norm_mlp",
    "attention/query_linear": "attention.qkv#0",
    "attention/key_linear": "attention.qkv#1",
    "attention/value_linear": "attention.qkv#2",
    "attention/attention_output_linear": "attention.out",
    "dense/mlp_hidden_linear": "mlp.hidden",
    "dense/mlp_output_linear": "mlp.out",
}
PARAMETER_NAMES = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}


@dataclass(frozen=True)
class Converted:
    """Weights under our names, and the Haiku names that have no counterpart."""

    state: dict[str, Tensor]
    unexpected: list[str]


def state_from_haiku(
    params: Mapping[str, NDArray[Any]], config: HiPConfig, datasets: Datasets
) -> Converted:
    """Rename, transpose and fuse Haiku parameters.

    Raises:
        CheckpointError: A label modality would need two sets of weights, the latents do not divide
            into the groups, or a part of a fused projection is missing.
    """
    places = _label_places(config, datasets)
    state: dict[str, Tensor] = {}
    fused: dict[str, dict[int, Tensor]] = {}
    unexpected = []
    for key, array in params.items():
        ours = _our_name(key, config, places)
        if ours is None:
            unexpected.append(key)
            continue
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if key.endswith(":w"):  # Haiku's Linear weights are [in, out]
            tensor = tensor.T.contiguous()
        if ours.endswith(".latents"):
            index = int(re.findall(r"block_(\d+)/", key)[0])
            groups = config.levels[index].num_groups
            if len(tensor) % groups:
                raise CheckpointError(f"{key} has {len(tensor)} rows for {groups} groups")
            tensor = tensor.unflatten(0, (groups, -1))
        if "#" in ours:
            name, _, rest = ours.partition("#")
            fused.setdefault(f"{name}.{rest[2:]}", {})[int(rest[0])] = tensor
        else:
            state[ours] = tensor
    for name, parts in fused.items():
        if len(parts) != 3:
            raise CheckpointError(f"{name} needs query, key and value; found {len(parts)} of 3")
        state[name] = torch.cat([parts[i] for i in range(3)])
    return Converted(state=state, unexpected=unexpected)


def _label_places(config: HiPConfig, datasets: Datasets) -> dict[int, set[str]]:
    # In the released code the k-th label of a call uses ``embedder_k``, whatever its name. Returns
    # k -> names; each name must have one k only.
    places: dict[int, set[str]] = {}
    seen: dict[str, int] = {}
    for _, modalities in datasets:
        labels = [name for name, _ in modalities if name in config.labels]
        for place, name in enumerate(labels, start=1):
            if seen.setdefault(name, place) != place:
                raise CheckpointError(
                    f"label {name!r} is number {seen[name]} in one call and {place} in another; "
                    f"the release then uses two sets of weights for it, which one model cannot hold"
                )
            places.setdefault(place, set()).add(name)
    return places


def _our_name(key: str, config: HiPConfig, places: Mapping[int, set[str]]) -> str | None:
    """Translate one parameter name; None if the model has no such parameter."""
    module, _, parameter = key.rpartition(":")
    _, _, path = module.partition("/")  # drop the root module's name
    suffix = PARAMETER_NAMES.get(parameter, parameter)
    if match := re.fullmatch(r"(?:perceiver_)?block_(\d+)/~/(.+)", path):
        return _block_name(int(match[1]), match[2], suffix, config)
    if match := re.fullmatch(r"embedder(?:_(\d+))?/~(un)?embed/(?:un)?embed_(.+)", path):
        home = _home(match[1], match[3], config, places)
        if home is None:
            return None
        if match[2]:
            readout = "readout" if home == "inputs" else "label_readout"
            return f"decoder.{readout}.unembed.{match[3]}.{suffix}"
        return f"encoder.{home}.embed.{match[3]}.{suffix}"
    if match := re.fullmatch(r"position_encoder(?:_(\d+))?/pos_emb_mae_(.+)", path):
        home = _home(match[1], match[2], config, places)
        return home and f"encoder.{home}.positions.{match[2]}.table"
    if match := re.fullmatch(r"position_encoder/position_encoding_linear(?:_(\d+))?", path):
        return f"encoder.inputs.project.{match[1] or 0}.{suffix}"
    if match := re.fullmatch(r"reconstruction_head(_1)?/hi_p_cross_attention/(.+)", path):
        # With bottleneck labels, the first head that is constructed is that of the labels.
        labels = bool(config.labels) and not match[1]
        name = READ_NAMES.get(match[2])
        return name and f"decoder.{'label_readout' if labels else 'readout'}.read.{name}.{suffix}"
    return None


def _home(
    place: str | None, name: str, config: HiPConfig, places: Mapping[int, set[str]]
) -> str | None:
    # The submodule (``inputs`` or ``labels``) with a modality's embedding and positions.
    if place is None:
        return "inputs" if name in config.grouped_inputs else None
    return "labels" if name in places.get(int(place), set()) else None


def _block_name(index: int, path: str, suffix: str, config: HiPConfig) -> str | None:
    if index >= len(config.levels):
        return None
    after = index - config.processor - 1
    block = f"encoder.blocks.{index}" if after < 0 else f"decoder.blocks.{after}"
    part, _, rest = path.partition("/")
    if part == "hi_p_cross_attention":
        if rest == "query_inputs":
            return f"{block}.latents"
        return f"{block}.read.{READ_NAMES[rest]}.{suffix}" if rest in READ_NAMES else None
    if match := re.fullmatch(r"self_attend_id_(\d+)", part):
        name = LAYER_NAMES.get(rest)
        if name is None:
            return None
        if "#" in name:
            return f"{block}.layers.{match[1]}.{name}.{suffix}"
        return f"{block}.layers.{match[1]}.{name}.{suffix}"
    return None


def model_from_haiku(
    params: Mapping[str, NDArray[Any]], model: str, kwargs: Mapping[str, Any], datasets: Datasets
) -> HiP:
    """Build the model in evaluation mode and load the parameters; all names must match.

    Raises:
        CheckpointError: Parameters are missing, unexpected or have another shape (all listed).
    """
    config = config_from_haiku(model, kwargs, datasets)
    converted = state_from_haiku(params, config, datasets)
    built = HiP(config)
    wanted = built.state_dict()
    missing = sorted(wanted.keys() - converted.state.keys())
    shapes = [
        f"{name}: file {tuple(tensor.shape)}, model {tuple(wanted[name].shape)}"
        for name, tensor in converted.state.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    extra = sorted(converted.state.keys() - wanted.keys()) + converted.unexpected
    if missing or extra or shapes:
        raise CheckpointError(
            f"parameters do not fit the configuration: missing {missing or 'none'}; unexpected "
            f"{extra or 'none'}; of another shape {shapes or 'none'}"
        )
    built.load_state_dict(converted.state)
    return built.eval()
