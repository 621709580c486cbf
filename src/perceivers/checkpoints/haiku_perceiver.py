"""Reading and writing Haiku parameters of DeepMind's Perceiver and Perceiver IO.

Names are those of google-deepmind/deepmind-research, folder ``perceiver`` (Apache-2.0). Haiku
numbers modules with the same name (``linear``, ``linear_1``; in attention: query, key, value and
output) and marks modules created in a constructor with ``~``.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.checkpoints.bundle import write_parameters
from perceivers.checkpoints.names import (
    Entry,
    Flavour,
    Part,
    Scheme,
    describe_differences,
    expand,
    fill_model,
    fused_rows,
    kind_of,
    modality_role,
    take_from_model,
    with_flavour,
)
from perceivers.errors import CheckpointError
from perceivers.models import Perceiver, PerceiverConfig, PerceiverIO, PerceiverIOConfig
from perceivers.models.perceiver_io.variants import VARIANTS, configure

MLP = {"mlp.hidden": "/mlp/linear", "mlp.out": "/mlp/linear_1"}
SCHEME = Scheme(
    parameter=":",
    linear=("w", "b"),
    norm=("scale", "offset"),
    weight="turned",
    pixel="turned_pixel",
    kernel="kernel",
    vector="channel",
    averages=("/~/mean_ema:average", "/~/var_ema:average"),
    read={
        "norm_query": "/layer_norm",
        "norm_tokens": "/layer_norm_1",
        "norm_mlp": "/layer_norm_2",
        "attention.q": "/attention/linear",
        "attention.k": "/attention/linear_1",
        "attention.v": "/attention/linear_2",
        "attention.out": "/attention/linear_3",
        **MLP,
    },
    layer={
        "norm_attention": "/layer_norm",
        "norm_mlp": "/layer_norm_1",
        "attention.qkv#0": "/attention/linear",
        "attention.qkv#1": "/attention/linear_1",
        "attention.qkv#2": "/attention/linear_2",
        "attention.out": "/attention/linear_3",
        **MLP,
    },
    index=lambda i: f"_{i}" if i else "",
)
# The classic Perceiver of the parity bundle numbers its layers from 0; the released modules give
# the first layer no number.
CLASSIC_SCHEME = replace(SCHEME, index=str)

POSITIONS = "trainable_position_encoding:pos_embs"
IMAGES = "image_preprocessor"
CLASSES = "classification_decoder/~/basic_decoder"
# Not used in evaluation: moving averages before bias correction, and step counters.
UNUSED_STATE = ("_ema:hidden", "_ema:counter")

# A module by which a release is recognised; order matters, because later modules also occur in
# earlier releases.
RELEASES = {
    "multimodal_preprocessor": "perceiver_io_multimodal",
    "flow_decoder": "perceiver_io_flow",
    "embedding_decoder": "perceiver_io_language",
    "image_preprocessor/~/conv2_d_downsample": "perceiver_io_imagenet_conv",
    "image_preprocessor/~/conv2_d": "perceiver_io_imagenet_learned",
    "classification_decoder": "perceiver_io_imagenet_fourier",
}


def haiku_entries(config: PerceiverConfig | PerceiverIOConfig) -> list[Entry]:
    """Return the name table of a configuration, one entry per tensor.

    Raises:
        CheckpointError: No model of this kind was released.
    """
    kind, fused = kind_of(config), fused_rows(config.trunk)
    if isinstance(config, PerceiverConfig):
        return expand(_classic(config), CLASSIC_SCHEME, config.trunk.depth, fused)
    if kind == "text_classes":
        raise CheckpointError(
            "no Haiku parameters of a text classifier were released, so their names are unknown; "
            "Hugging Face has a class for it (--to hf)"
        )
    encoder = "encoder" if kind == "multimodal" else "perceiver_encoder"
    parts = [
        Part("array", "trunk.latents", f"{encoder}/~/{POSITIONS}"),
        Part("read", "trunk.reads.0", f"{encoder}/~/cross_attention"),
        Part("layers", "trunk.blocks.0", f"{encoder}/~/self_attention{{}}"),
    ]
    makers = {
        "language": _language,
        "image_classes": _image_classes,
        "flow": _flow,
        "multimodal": _multimodal,
    }
    return expand(parts + makers[kind](config), SCHEME, config.trunk.depth, fused)


def _classic(config: PerceiverConfig) -> list[Part]:
    reads = ("cross_attend_first", "cross_attend_rest")
    used = 1 + max(index for step, index in config.trunk.steps if step == "read")
    parts = [Part("read", f"trunk.reads.{i}", reads[i]) for i in range(min(used, 2))]
    head = [Part("linear", "head", "logits")] if config.num_outputs else []
    return [
        Part("array", "trunk.latents", "latents:pos_embs"),
        *parts,
        Part("layers", "trunk.blocks.0", "self_attend_{}"),
        *head,
    ]


def _language(config: PerceiverIOConfig) -> list[Part]:
    (name,), (out,) = config.inputs, config.outputs
    reader = f"inputs.readers.{name}"
    return [
        Part("array", f"{reader}.content.rows.weight", "embed:embeddings"),
        Part("array", f"{reader}.positions.source.table", POSITIONS),
        Part("array", f"decoder.queries.{out}.table", f"basic_decoder/~/{POSITIONS}"),
        Part("read", "decoder.read", "basic_decoder/cross_attention"),
        Part("array", f"decoder.heads.{out}.bias", "embedding_decoder:bias"),
    ]


def _classes(config: PerceiverIOConfig) -> list[Part]:
    (out,) = config.outputs
    return [
        Part("array", f"decoder.queries.{out}.table", f"{CLASSES}/~/{POSITIONS}"),
        Part("read", "decoder.read", f"{CLASSES}/cross_attention"),
        Part("linear", f"decoder.heads.{out}", f"{CLASSES}/output"),
    ]


def _image_classes(config: PerceiverIOConfig) -> list[Part]:
    (name,) = config.inputs
    tokens, reader = config.tokens[name], f"inputs.readers.{name}"
    parts = []
    if tokens.content == "conv":
        root = f"{IMAGES}/~/conv2_d_downsample/~"
        for i in range(tokens.num_convs):
            number = SCHEME.index(i)
            parts.append(Part("conv", f"{reader}.content.convs.{i}", f"{root}/conv{number}"))
            if tokens.batch_norm:
                norm = f"{reader}.content.norms.{i}"
                parts.append(Part("batch_norm", norm, f"{root}/batchnorm{number}"))
    elif tokens.dim and tokens.content == "elements":
        parts.append(Part("pixel", f"{reader}.linear", f"{IMAGES}/~/conv2_d"))
    elif tokens.dim:
        parts.append(Part("linear", f"{reader}.linear", f"{IMAGES}/patches_linear"))
    places, root = tokens.positions, f"{IMAGES}/~_build_network_inputs"
    if places.kind == "learned":
        parts.append(Part("array", f"{reader}.positions.source.table", f"{root}/{POSITIONS}"))
    if places.project:
        projector = f"{root}/position_encoding_projector/linear"
        parts.append(Part("linear", f"{reader}.positions.project", projector))
    for i in range(places.extra_layers):
        linear = f"{root}/linear{SCHEME.index(i)}"
        parts.append(Part("linear", f"{reader}.positions.extra.{i}", linear))
    return parts + _classes(config)


def _flow(config: PerceiverIOConfig) -> list[Part]:
    (name,), (out,) = config.inputs, config.outputs
    root = "flow_decoder/~/basic_decoder"
    return [
        Part("linear", f"inputs.readers.{name}.linear", f"{IMAGES}/patches_linear"),
        Part("read", "decoder.read", f"{root}/cross_attention"),
        Part("linear", f"decoder.heads.{out}", f"{root}/output"),
    ]


def _multimodal(config: PerceiverIOConfig) -> list[Part]:
    heads = {
        "audio": "audio_postprocessor/linear",
        "image": "projection_postprocessor/linear",
        "label": "classification_postprocessor/linear",
    }
    root = "multimodal_decoder/~/basic_decoder"
    parts = [
        Part("read", "decoder.read", f"{root}/cross_attention"),
        Part("linear", "decoder.project", f"{root}/output"),
    ]
    for name, spec in config.inputs.items():
        role = modality_role(spec)
        inside = f"multimodal_preprocessor/{role}"
        parts.append(Part("row", f"inputs.padding.{name}", f"{inside}_padding:pos_embs"))
        if config.mask_tokens:
            parts.append(Part("row", f"inputs.mask.{name}", f"{inside}_mask_token:pos_embs"))
        query = f"multimodal_decoder/~decoder_query/{role}_padding:pos_embs"
        parts.append(Part("row", f"decoder.padding.{name}", query))
        parts.append(Part("linear", f"decoder.heads.{name}", heads[role]))
        if role == "label":
            parts.append(Part("array", f"decoder.queries.{name}.table", f"{CLASSES}/~/{POSITIONS}"))
    return parts


def model_from_entries(
    config: PerceiverConfig | PerceiverIOConfig, arrays: Mapping[str, NDArray[Any]], source: str
) -> Perceiver | PerceiverIO:
    """Build a model in evaluation mode and load Haiku parameters and state.

    Args:
        config: The model's configuration.
        arrays: Arrays by ``module/path:name``.
        source: File name for error messages.

    Raises:
        CheckpointError: Arrays are missing, unexpected or have another shape (all listed).
    """
    model = Perceiver(config) if isinstance(config, PerceiverConfig) else PerceiverIO(config)
    found: dict[str, Tensor] = {
        name: torch.from_numpy(np.ascontiguousarray(array))
        for name, array in arrays.items()
        if not name.endswith(UNUSED_STATE)
    }
    fill_model(model, haiku_entries(config), found, source=source)
    return model.eval()


def find_release(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Return the released variant identified by its module names, or None."""
    modules = [name.rpartition(":")[0] for name in arrays]
    for root, variant in RELEASES.items():
        if any(module == root or module.startswith(f"{root}/") for module in modules):
            return variant
    return None


def model_from_release(
    arrays: Mapping[str, NDArray[Any]], source: str, flavour: Flavour = "official"
) -> PerceiverIO:
    """Build the released model that these parameters belong to.

    Args:
        arrays: Arrays by ``module/path:name``.
        source: File name for error messages.
        flavour: ``official`` computes the outputs of the released code, ``hf`` those of
            Hugging Face's classes with the same weights.

    Raises:
        CheckpointError: The release is not recognised, or its sizes differ.
    """
    variant = find_release(arrays)
    if variant is None:
        raise CheckpointError(
            f"{source} holds parameters of none of {sorted(RELEASES.values())}, and a pickle "
            f"contains no description of the model; give --config with a JSON file holding "
            f"'model', 'kwargs' and 'datasets' (HiP) or 'kind' (Perceiver), as in a parity bundle"
        )
    config = configure(VARIANTS[variant], inputs=None, num_classes=None, head="query", overrides={})
    try:
        model = model_from_entries(with_flavour(config, flavour), arrays, source)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. The names are those of {variant}; parameters of other sizes need --config"
        ) from error
    return cast(PerceiverIO, model)


def params_from_model(model: Perceiver | PerceiverIO) -> dict[str, NDArray[Any]]:
    """Return a model's weights as Haiku parameters and state by ``module/path:name``.

    Raises:
        CheckpointError: No model of this kind was released.
    """
    taken = take_from_model(model, haiku_entries(model.config))
    return {name: tensor.numpy() for name, tensor in taken.items()}


def save_haiku(model: Perceiver | PerceiverIO, path: Path) -> list[str]:
    """Write Haiku parameters and state, as ``write_parameters`` does.

    Returns:
        Notes on what DeepMind's code computes differently with these weights.

    Raises:
        CheckpointError: No model of this kind was released.
    """
    notes = []
    if isinstance(model.config, PerceiverIOConfig):
        official = with_flavour(model.config, "official")
        notes = describe_differences(model.config, official, "DeepMind's code")
    write_parameters(model, params_from_model(model), path)
    return notes
