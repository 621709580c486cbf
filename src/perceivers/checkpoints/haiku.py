"""Conversion of the released HiP code: constructor arguments to our config, Haiku names to ours.

Names are those of google-deepmind/hierarchical_perceiver (Apache-2.0). That code attends to
padding, deals the groups to the modalities present in a call, chooses a position projection by
the place of a modality in the call, and ignores ``activation_name``; the config reproduces this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.names import (
    Entry,
    Part,
    Scheme,
    Turn,
    expand,
    fill_model,
    take_from_model,
)
from perceivers.checkpoints.parity import (
    RELATIVE_TOLERANCE,
    Bundle,
    Difference,
    Inputs,
    compare_output,
    require,
    write_parameters,
)
from perceivers.errors import CheckpointError, suggest
from perceivers.models.hip import HiP, HiPConfig, HiPLevel
from perceivers.models.hip.encoder import HiPEncoded
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


# -- Tensor names --------------------------------------------------------------------------------

MLP = {"mlp.hidden": "/dense/mlp_hidden_linear", "mlp.out": "/dense/mlp_output_linear"}
OUT = {"attention.out": "/attention/attention_output_linear"}
SCHEME = Scheme(
    parameter=":",
    linear=("w", "b"),
    norm=("scale", "offset"),
    weight="turned",
    read={
        "norm_query": "/layer_norm",
        "norm_tokens": "/layer_norm_1",
        "norm_mlp": "/layer_norm_2",
        "attention.q": "/attention/query_linear",
        "attention.k": "/attention/key_linear",
        "attention.v": "/attention/value_linear",
        **OUT,
        **MLP,
    },
    layer={
        "norm_attention": "/layer_norm",
        "norm_mlp": "/layer_norm_1",
        "attention.qkv#0": "/attention/query_linear",
        "attention.qkv#1": "/attention/key_linear",
        "attention.qkv#2": "/attention/value_linear",
        **OUT,
        **MLP,
    },
    index=str,
)
# Name of the root module in released files; files with another one are read, too.
ROOT = "perceiver"
READ = "hi_p_cross_attention"


def hip_entries(config: HiPConfig, places: Mapping[str, int] | None = None) -> list[Entry]:
    """Return the name table of a configuration, one entry per tensor.

    Args:
        config: The model's configuration.
        places: Number of each label within its call, counted from 1; the default is its number
            among all labels.
    """
    if places is None:
        places = {name: place for place, name in enumerate(config.labels, start=1)}
    entries = _block_entries(config)
    for name in config.inputs:
        entries += _modality_entries(config, name, places.get(name, 0))
    if config.project_positions == "slot":
        for slot in range(config.position_slots):
            theirs = f"{ROOT}/position_encoder/position_encoding_linear{_number(slot)}:w"
            entries.append(Entry(f"encoder.inputs.project.{slot}.weight", theirs, "turned"))
    # The first head that is constructed is that of the labels, if there are any.
    heads = ["label_readout"] * bool(config.labels) + ["readout"]
    for number, head in enumerate(heads if config.decoder else ()):
        theirs = f"{ROOT}/reconstruction_head{_number(number)}/{READ}"
        entries += expand([Part("read", f"decoder.{head}.read", theirs)], SCHEME, 0, ())
    return entries


def _number(index: int) -> str:
    # Haiku numbers modules of the same name from the second one on.
    return f"_{index}" if index else ""


def _block_entries(config: HiPConfig) -> list[Entry]:
    entries = []
    prefix = "perceiver_block" if config.labels else "block"
    for index, level in enumerate(config.levels):
        after = index - config.processor - 1
        if after >= 0 and not config.decoder:
            break
        ours = f"encoder.blocks.{index}" if after < 0 else f"decoder.blocks.{after}"
        theirs = f"{ROOT}/{prefix}_{index}/~"
        parts = [
            Part("read", f"{ours}.read", f"{theirs}/{READ}"),
            Part("layers", f"{ours}.layers", f"{theirs}/self_attend_id_{{}}"),
        ]
        # The skip connection of an upper level is projected if its width changes.
        if after >= 0 and config.levels[-1 - index].latent_dim != level.latent_dim:
            skip = f"{theirs}/{READ}/pre_attention_residual_linear"
            parts.append(Part("linear", f"{ours}.read.skip", skip))
        width = level.latent_dim
        fused = [(third * width, (third + 1) * width) for third in range(3)]
        latents = f"{theirs}/{READ}/query_inputs:pos_embs"
        entries.append(Entry(f"{ours}.latents", latents, _grouped(level.num_groups)))
        entries += expand(parts, SCHEME, level.depth, fused)
    return entries


def _modality_entries(config: HiPConfig, name: str, place: int) -> list[Entry]:
    # The k-th label of a call has an embedder and a position encoder of its own; the other
    # modalities share the first.
    home, readout = ("labels", "label_readout") if place else ("inputs", "readout")
    embedder = f"{ROOT}/embedder{_number(place)}"
    parts = [Part("linear", f"encoder.{home}.embed.{name}", f"{embedder}/~embed/embed_{name}")]
    if config.decoder:
        theirs = f"{embedder}/~unembed/unembed_{name}"
        parts.append(Part("linear", f"decoder.{readout}.unembed.{name}", theirs))
    table = f"{ROOT}/position_encoder{_number(place)}/pos_emb_mae_{name}:pos_embs"
    parts.append(Part("array", f"encoder.{home}.positions.{name}.table", table))
    return expand(parts, SCHEME, 0, ())


def _grouped(groups: int) -> Turn:
    """Return the conversion of latents from ``[G N, C]`` to our ``[G, N, C]``."""

    def into(x: Tensor) -> Tensor:
        if len(x) % groups:
            raise CheckpointError(f"has {len(x)} rows for {groups} groups")
        return x.unflatten(0, (groups, -1))

    return Turn(into, lambda x: x.flatten(0, 1))


def label_places(config: HiPConfig, datasets: Datasets) -> dict[str, int]:
    """Return the number of each label within its call, counted from 1.

    In the released code the k-th label of a call uses ``embedder_k``, whatever its name.

    Raises:
        CheckpointError: A label has different numbers in two calls.
    """
    places: dict[str, int] = {}
    for _, modalities in datasets:
        labels = [name for name, _ in modalities if name in config.labels]
        for place, name in enumerate(labels, start=1):
            if places.setdefault(name, place) != place:
                raise CheckpointError(
                    f"label {name!r} is number {places[name]} in one call and {place} in another; "
                    f"the release then uses two sets of weights for it, which one model cannot hold"
                )
    return places


# -- Reading and writing -------------------------------------------------------------------------


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
    state: dict[str, Tensor] = {}
    fused: dict[str, list[Tensor]] = {}
    left = {_plain(key): key for key in params}
    for entry in hip_entries(config, label_places(config, datasets)):
        key = left.pop(_plain(entry.theirs), None)
        if key is None:
            continue
        tensor = torch.from_numpy(np.ascontiguousarray(params[key]))
        try:
            tensor = entry.turn.into(tensor).contiguous()
        except CheckpointError as error:
            raise CheckpointError(f"{key} {error}") from error
        if entry.rows is None:
            state[entry.ours] = tensor
        else:
            fused.setdefault(entry.ours, []).append(tensor)
    for name, parts in fused.items():
        if len(parts) != 3:
            raise CheckpointError(f"{name} needs query, key and value; found {len(parts)} of 3")
        state[name] = torch.cat(parts)
    return Converted(state=state, unexpected=list(left.values()))


def _plain(key: str) -> str:
    """Return a name without the root module; blocks have the same name in all classes."""
    path = key.partition("/")[2]
    return path.removeprefix("perceiver_") if path.startswith("perceiver_block_") else path


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


# Settings that tensors do not show, with their values in the released code. The first two may
# differ in a written file, which the notes then say.
NOTED: Mapping[str, Any] = {"deal_over": "present", "mask_padding": False}
FIXED: Mapping[str, Any] = {
    "position_stride": 1,
    "element_order": "raster",
    "query_residual": False,
    "query_heads": 1,
    "activation": "squared_relu",
}


def save_hip(model: HiP, path: Path) -> list[str]:
    """Write Haiku parameters, as ``write_parameters`` does.

    Labels are numbered as in a call with all modalities.

    Returns:
        Notes on what DeepMind's code computes differently with these weights.

    Raises:
        CheckpointError: DeepMind's code does not support the model.
    """
    config = model.config
    wrong = _describe(config, FIXED)
    for index, level in enumerate(config.levels):
        below = config.levels[index - 1].latent_dim if index else config.input_dim
        if level.cross_dim not in {None, below}:
            wrong.append(f"levels.{index}.cross_dim is {level.cross_dim} here and {below} there")
    if config.position_dim != config.token_dim:
        wrong.append(f"position_dim is {config.position_dim} here and {config.token_dim} there")
    lacking = [name for name in config.inputs if model.adapter(name).may_lack]
    if lacking:
        wrong.append(f"elements of {lacking} may be missing here and not there")
    if wrong:
        raise CheckpointError(f"DeepMind's code does not support this model: {'; '.join(wrong)}")
    taken = take_from_model(model, hip_entries(config))
    write_parameters(model, {name: tensor.numpy() for name, tensor in taken.items()}, path)
    # A flat model has one group, for which these settings have no meaning.
    noted = _describe(config, NOTED) if config.grouping == "deal" else []
    return [f"DeepMind's code runs these weights differently: {line}" for line in noted]


def _describe(config: HiPConfig, released: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is {getattr(config, name)!r} here and {value!r} there"
        for name, value in released.items()
        if getattr(config, name) != value
    ]


def hip_from_entries(config: HiPConfig, params: Mapping[str, NDArray[Any]], source: str) -> HiP:
    """Build a model in evaluation mode and load the parameters that ``save_hip`` wrote.

    Raises:
        CheckpointError: Parameters are missing, unexpected or have another shape (all listed).
    """
    model = HiP(config)
    found = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in params.items()}
    fill_model(model, hip_entries(config), found, source=source)
    return model.eval()


# -- Comparing a model with the outputs in its parity bundle -------------------------------------


@torch.no_grad()
def verify_bundle(model: HiP, bundle: Bundle) -> list[Difference]:
    """Run the model on the stored inputs and compare every stored output.

    Raises:
        CheckpointError: Outputs of the bundle and of the model differ in names or shapes, or an
            output is empty.
    """
    allowed = RELATIVE_TOLERANCE * bundle.absmax
    differences = []
    compared = set()
    for dataset, modalities in bundle.datasets:
        inputs = {
            name: torch.from_numpy(bundle.inputs[f"{dataset}/{name}"]) for name, _ in modalities
        }
        encoded = model.encode(inputs)
        made = {
            "input_reconstruction": model.reconstruct(encoded),
            "latents": official_latents(encoded, model.decode(encoded)),
        }
        for kind, outputs in made.items():
            for name, tensor in outputs.items():
                key = f"{dataset}/{kind}/{name}"
                if key not in bundle.outputs:
                    raise CheckpointError(
                        f"the bundle lacks output/{key}, which the model computes"
                    )
                compared.add(key)
                if kind == "latents" and tensor.numel() == bundle.outputs[key].size == 0:
                    # The released code may cut off all latents (see official_latents); the other
                    # outputs still depend on them.
                    differences.append(Difference(key, 0.0, allowed, is_empty=True))
                    continue
                differences.append(compare_output(key, tensor, bundle.outputs[key], allowed))
    unknown = sorted(bundle.outputs.keys() - compared)
    if unknown:
        raise CheckpointError(
            f"the bundle stores outputs that the model does not compute: {unknown}"
        )
    return differences


def official_latents(encoded: HiPEncoded, latents: Tensor) -> Mapping[str, Tensor]:
    """Cut the last latents by modality as the released code does.

    The released code removes as many latents as there are *padded inputs*, so latents are lost
    whenever there is padding. A negative end counts from the back, as in any slice. The model
    itself returns all latents.
    """
    cut = {}
    start = 0
    for share in encoded.layout.shares:
        if encoded.layout.axis == "slots":
            cut[share.name] = latents[:, 0, start : start + share.length]
            start += share.length
            continue
        own = encoded.layout.part(latents, share.name)  # [B, g, N, C]
        if share.group_padding:
            own = own[:, :, : own.shape[2] - share.group_padding]
        own = own.flatten(1, 2)
        if share.final_padding:
            own = own[:, : own.shape[1] - share.final_padding]
        cut[share.name] = own
    return cut
