"""Haiku parameters of DeepMind's Perceiver and Perceiver IO: names, and descriptions in bundles.

Names are those of google-deepmind/deepmind-research, folder ``perceiver`` (Apache-2.0). Haiku
numbers modules with the same name (``linear``, ``linear_1``; in attention: query, key, value and
output) and marks modules created in a constructor with ``~``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceivers.adapters.config import PositionConfig, TokenConfig
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
from perceivers.checkpoints.parity import OWN_KIND, own_config, require, write_parameters
from perceivers.errors import CheckpointError, UserError, suggest
from perceivers.models import (
    DecoderConfig,
    Output,
    Perceiver,
    PerceiverConfig,
    PerceiverIO,
    PerceiverIOConfig,
)
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.models.perceiver_io.variants import VARIANTS, configure
from perceivers.settings import change, tolerating
from perceivers.types import Array, Audio, Bytes, Image, Video

# -- Tensor names --------------------------------------------------------------------------------

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
        return expand(_classic_parts(config), CLASSIC_SCHEME, config.trunk.depth, fused)
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
        "language": _language_parts,
        "image_classes": _image_classes_parts,
        "flow": _flow_parts,
        "multimodal": _multimodal_parts,
    }
    return expand(parts + makers[kind](config), SCHEME, config.trunk.depth, fused)


def _classic_parts(config: PerceiverConfig) -> list[Part]:
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


def _language_parts(config: PerceiverIOConfig) -> list[Part]:
    (name,), (out,) = config.inputs, config.outputs
    reader = f"inputs.readers.{name}"
    return [
        Part("array", f"{reader}.content.rows.weight", "embed:embeddings"),
        Part("array", f"{reader}.positions.source.table", POSITIONS),
        Part("array", f"decoder.queries.{out}.table", f"basic_decoder/~/{POSITIONS}"),
        Part("read", "decoder.read", "basic_decoder/cross_attention"),
        Part("array", f"decoder.heads.{out}.bias", "embedding_decoder:bias"),
    ]


def _classes_parts(config: PerceiverIOConfig) -> list[Part]:
    (out,) = config.outputs
    return [
        Part("array", f"decoder.queries.{out}.table", f"{CLASSES}/~/{POSITIONS}"),
        Part("read", "decoder.read", f"{CLASSES}/cross_attention"),
        Part("linear", f"decoder.heads.{out}", f"{CLASSES}/output"),
    ]


def _image_classes_parts(config: PerceiverIOConfig) -> list[Part]:
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
    return parts + _classes_parts(config)


def _flow_parts(config: PerceiverIOConfig) -> list[Part]:
    (name,), (out,) = config.inputs, config.outputs
    root = "flow_decoder/~/basic_decoder"
    return [
        Part("linear", f"inputs.readers.{name}.linear", f"{IMAGES}/patches_linear"),
        Part("read", "decoder.read", f"{root}/cross_attention"),
        Part("linear", f"decoder.heads.{out}", f"{root}/output"),
    ]


def _multimodal_parts(config: PerceiverIOConfig) -> list[Part]:
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
        config = with_flavour(config, flavour)
        return cast(PerceiverIO, model_from_entries(config, arrays, source))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. The names are those of {variant}; parameters of other sizes need --config"
        ) from error


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


# -- Model descriptions in parity bundles --------------------------------------------------------
#
# Sizes are arguments of the released modules, with their defaults. Inputs have no mean or
# deviation, because the arrays in a bundle are already normalised.

AnyConfig = PerceiverConfig | PerceiverIOConfig
Shapes = Mapping[str, Sequence[int]]


def config_from_kind(stated: Mapping[str, Any], shapes: Shapes, source: str) -> AnyConfig:
    """Translate the description in a bundle to our config.

    Args:
        stated: The bundle's ``config_json``.
        shapes: Input shapes by name, batch first.
        source: File name for error messages.

    Raises:
        CheckpointError: The kind is unknown, or a required entry is missing or invalid.
    """
    kind = require(stated, "kind", source)
    if kind == OWN_KIND:
        return own_config(stated, source)
    if kind not in KINDS:
        raise CheckpointError(
            f"{source}: kind {kind!r} is unknown; expected one of {sorted(KINDS)}"
            + suggest(str(kind), KINDS)
        )
    try:
        # Descriptions by other libraries may contain settings that have no effect.
        with tolerating("unused"):
            return KINDS[kind](stated, shapes, source)
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: the model description is invalid: {error}") from error


def _shape(shapes: Shapes, name: str, rank: int, source: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(
            f"{source} does not give the shape of input {name!r}; add it under 'shapes'"
        )
    if len(shapes[name]) != rank:
        raise CheckpointError(
            f"{source}: input {name!r} has shape {list(shapes[name])}; it needs {rank} axes, batch "
            f"first and channels last"
        )
    return tuple(int(size) for size in shapes[name])


@dataclass(frozen=True)
class _Sizes:
    """Required whole numbers of a description, by name."""

    stated: Mapping[str, Any]
    source: str

    def __getitem__(self, name: str) -> int:
        return int(require(self.stated, name, self.source))


def _trunk(stated: Mapping[str, Any], source: str) -> TrunkConfig:
    """Encoder of the kinds that give its sizes at the top level."""
    given = _Sizes(stated, source)
    return TrunkConfig(
        num_latents=given["z_index_dim"],
        latent_dim=given["num_z_channels"],
        depth=given["num_self_attends_per_block"],
        num_blocks=int(stated.get("num_blocks", 1)),
        num_heads=given["num_self_attend_heads"],
        num_cross_heads=int(stated.get("num_cross_attend_heads", 1)),
    )


def _classifier_config(stated: Mapping[str, Any], shapes: Shapes, source: str) -> PerceiverIOConfig:
    encoder, decoder = require(stated, "encoder", source), require(stated, "decoder", source)
    _, height, width, channels = _shape(shapes, "images", 4, source)
    shape = str(encoder.get("cross_attention_shape_for_attn", "kv"))
    if shape not in {"kv", "q"}:
        raise CheckpointError(f"{source}: cross_attention_shape_for_attn is {shape!r}, not kv or q")
    sizes = _Sizes(encoder, source)
    trunk = TrunkConfig(
        num_latents=sizes["z_index_dim"],
        latent_dim=sizes["num_z_channels"],
        depth=sizes["num_self_attends_per_block"],
        num_blocks=sizes["num_blocks"],
        num_heads=sizes["num_self_attend_heads"],
        num_cross_heads=sizes["num_cross_attend_heads"],
        qk_dim=encoder.get("qk_channels"),
        v_dim=encoder.get("v_channels"),
        attention_width="tokens" if shape == "kv" else "latents",
        mlp_ratio=int(encoder.get("self_attend_widening_factor", 1)),
        cross_mlp_ratio=int(encoder.get("cross_attend_widening_factor", 1)),
        residual=bool(encoder.get("use_query_residual", True)),
        dropout_rate=float(encoder.get("dropout_prob", 0.0)),
    )
    query = _Sizes(require(decoder, "trainable_position_encoding_kwargs", source), source)
    return PerceiverIOConfig(
        inputs={"image": Image(height, width, channels)},
        tokens={"image": _image_tokens(require(stated, "preprocessor", source), source)},
        trunk=trunk,
        outputs={
            "classes": Output(
                dim=query["num_channels"], channels=_Sizes(stated, source)["num_classes"]
            )
        },
        decoder=DecoderConfig(residual=bool(decoder.get("use_query_residual", False))),
        init="paper",
    )


def _image_tokens(stated: Mapping[str, Any], source: str) -> TokenConfig:
    """Translate the arguments of ``ImagePreprocessor``."""
    prep = require(stated, "prep_type", source)
    step, positions = int(stated.get("spatial_downsample", 4)), _image_positions(stated, source)
    width = int(stated.get("num_channels", 64))
    stride = () if step == 1 else (step, step)
    if prep == "pixels":
        return TokenConfig(stride=stride, positions=positions)
    if prep == "conv1x1":
        return TokenConfig(stride=stride, dim=width, positions=positions)
    if prep == "conv":
        return TokenConfig(
            content="conv",
            dim=width,
            num_convs=round(log(step, 4)),
            batch_norm=bool(stated.get("conv2d_use_batchnorm", True)),
            positions=positions,
        )
    if prep == "patches":
        after = width if stated.get("conv_after_patching", False) else 0
        return TokenConfig(content="patches", patch=(step, step), dim=after, positions=positions)
    raise CheckpointError(f"{source}: prep_type is {prep!r}, not pixels, conv1x1, conv or patches")


def _image_positions(stated: Mapping[str, Any], source: str) -> PositionConfig:
    kind = require(stated, "position_encoding_type", source)
    more: dict[str, Any] = {
        "project": max(int(stated.get("project_pos_dim", -1)), 0),
        "extra_layers": int(stated.get("n_extra_pos_mlp", 0)),
        "combine": stated.get("concat_or_add_pos", "concat"),
    }
    if kind == "trainable":
        table = require(stated, "trainable_position_encoding_kwargs", source)
        width = int(require(table, "num_channels", source))
        return PositionConfig(kind="learned", dim=width, **more)
    waves = require(stated, "fourier_position_encoding_kwargs", source)
    resolution = require(waves, "max_resolution", source)
    return PositionConfig(
        kind="fourier",
        num_bands=int(require(waves, "num_bands", source)),
        max_resolution=None if resolution is None else tuple(resolution),
        sine_only=bool(waves.get("sine_only", False)),
        keep_coordinates=bool(waves.get("concat_pos", True)),
        **more,
    )


def _classic_config(stated: Mapping[str, Any], shapes: Shapes, source: str) -> PerceiverConfig:
    """Translate an original Perceiver that was composed of the released modules."""
    given = _Sizes(stated, source)
    repeats, (_, length, channels) = given["repeats"], _shape(shapes, "x", 3, source)
    shared = bool(require(stated, "first_cross_attend_shared_with_rest", source))
    return PerceiverConfig(
        inputs={"x": Array((length,), channels)},
        tokens={"x": TokenConfig()},
        trunk=TrunkConfig(
            num_latents=given["z_index_dim"],
            latent_dim=given["num_z_channels"],
            depth=given["self_attends_per_block"],
            num_blocks=repeats,
            num_reads=repeats,
            share_reads="all" if shared else "all_but_first",
            num_heads=given["num_self_attend_heads"],
        ),
        num_outputs=given["num_classes"],
        init="paper",
    )


def _flow_config(stated: Mapping[str, Any], shapes: Shapes, source: str) -> PerceiverIOConfig:
    given = _Sizes(stated, source)
    _, frames, height, width, channels = _shape(shapes, "frames", 5, source)
    positions = PositionConfig(
        kind="fourier",
        num_bands=given["num_bands"],
        max_resolution=tuple(require(stated, "image_size", source)),
    )
    dim, scale = given["patch_linear_channels"], float(require(stated, "rescale_factor", source))
    return PerceiverIOConfig(
        inputs={"video": Video(frames, height, width, channels)},
        tokens={"video": TokenConfig(content="frame_patches", dim=dim, positions=positions)},
        trunk=_trunk(stated, source),
        outputs={"flow": Output(queries="tokens", modality="video", channels=2, divide_by=scale)},
        init="paper",
    )


def _language_config(stated: Mapping[str, Any], _shapes: Shapes, source: str) -> PerceiverIOConfig:
    given = _Sizes(stated, source)
    width, heads, length = given["d_model"], given["heads"], given["L"]
    places = PositionConfig(kind="learned", dim=width, combine="add")
    return PerceiverIOConfig(
        inputs={"bytes": Bytes(length)},
        tokens={"bytes": TokenConfig(content="embedding", dim=width, positions=places)},
        trunk=TrunkConfig(
            num_latents=given["z_index_dim"],
            latent_dim=given["d_latents"],
            depth=given["num_self_attends_per_block"],
            num_heads=heads,
            num_cross_heads=heads,
            qk_dim=given["qk_channels"],
            v_dim=given["v_channels_encoder"],
        ),
        outputs={"bytes": Output(length=length, dim=width, modality="bytes", head="tied")},
        decoder=DecoderConfig(
            num_heads=heads, qk_dim=given["qk_channels"], v_dim=given["v_channels_decoder"]
        ),
        init="paper",
    )


def _multimodal_config(
    stated: Mapping[str, Any], _shapes: Shapes, source: str
) -> PerceiverIOConfig:
    given = _Sizes(stated, source)
    frames, size, length = given["T"], given["S"], given["samples"]
    # max_resolution counts pixels and samples of the raw signals, not patches.
    pixels = PositionConfig(
        kind="fourier", num_bands=given["image_bands"], max_resolution=(frames, size, size)
    )
    bands = given["audio_bands"]
    samples = PositionConfig(kind="fourier", num_bands=bands, max_resolution=(length,))
    rates = {k: float(v) for k, v in (require(stated, "mask_probs", source) or {}).items()}
    patch, step = (given["samples_per_patch"],), given["spatial_downsample"]
    tokens = {
        "audio": TokenConfig(content="patches", patch=patch, positions=samples),
        "video": TokenConfig(content="patches", patch=(1, step, step), positions=pixels),
        "label": TokenConfig(),
    }
    # The released code places queries on a grid from -1 to 1 with both ends if it decodes the whole
    # output, but at -1 + 2 index / size, which never reaches 1, if it decodes selected indices.
    asked: dict[str, Any] = {"queries": "positions", "sampled": "grid"}
    if require(stated, "subsampled_image", source) is not None:
        asked["sampled"] = "cell"
    return PerceiverIOConfig(
        # Labels are floats, not class indices: the released code reads one-hot vectors, and the
        # bundles contain arbitrary values.
        inputs={
            "audio": Audio(length),
            "video": Video(frames, size, size),
            "label": Array((1,), given["num_classes"]),
        },
        tokens={
            name: change(how, (), mask_rate=rates.get("image" if name == "video" else name, 0.0))
            for name, how in tokens.items()
        },
        trunk=_trunk(stated, source),
        outputs={
            "audio": Output(modality="audio", positions=samples, patch=patch, channels=1, **asked),
            "video": Output(modality="video", positions=pixels, channels=3, **asked),
            "label": Output(dim=given["label_query_channels"], channels=given["num_classes"]),
        },
        decoder=DecoderConfig(
            project=given["decoder_output_num_channels"],
            min_padding=given["min_padding_size_decoder"],
        ),
        min_padding=given["min_padding_size_preprocessor"],
        mask_tokens=bool(rates),
        init="paper",
    )


KINDS: Mapping[str, Callable[[Mapping[str, Any], Shapes, str], AnyConfig]] = {
    "ImagePreprocessor+PerceiverEncoder+ClassificationDecoder": _classifier_config,
    "COMPOSED classic Perceiver": _classic_config,
    "optical flow": _flow_config,
    "masked language model": _language_config,
    "multimodal autoencoder": _multimodal_config,
}
