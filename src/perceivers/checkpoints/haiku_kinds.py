"""Translation of the model descriptions in parity bundles of DeepMind's Perceiver code.

A bundle gives its sizes as arguments of the released modules; optional arguments have the released
defaults. Inputs have no mean or deviation, because the arrays in a bundle are already normalised.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.checkpoints.bundle import OWN_KIND, own_config, require
from perceivers.errors import CheckpointError, UserError, suggest
from perceivers.models import DecoderConfig, Output, PerceiverConfig, PerceiverIOConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.settings import change, tolerating
from perceivers.types import Array, Audio, Bytes, Image, Video

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


def _trunk(stated: Mapping[str, Any], source: str) -> TrunkConfig:
    """Encoder of the kinds that give its sizes at the top level."""
    width = int(require(stated, "num_z_channels", source))
    return TrunkConfig(
        num_latents=int(require(stated, "z_index_dim", source)),
        latent_dim=width,
        depth=int(require(stated, "num_self_attends_per_block", source)),
        num_blocks=int(stated.get("num_blocks", 1)),
        num_heads=int(require(stated, "num_self_attend_heads", source)),
        num_cross_heads=int(stated.get("num_cross_attend_heads", 1)),
    )


def _classifier(stated: Mapping[str, Any], shapes: Shapes, source: str) -> PerceiverIOConfig:
    encoder, decoder = require(stated, "encoder", source), require(stated, "decoder", source)
    _, height, width, channels = _shape(shapes, "images", 4, source)
    shape = str(encoder.get("cross_attention_shape_for_attn", "kv"))
    if shape not in {"kv", "q"}:
        raise CheckpointError(f"{source}: cross_attention_shape_for_attn is {shape!r}, not kv or q")
    trunk = TrunkConfig(
        num_latents=int(require(encoder, "z_index_dim", source)),
        latent_dim=int(require(encoder, "num_z_channels", source)),
        depth=int(require(encoder, "num_self_attends_per_block", source)),
        num_blocks=int(require(encoder, "num_blocks", source)),
        num_heads=int(require(encoder, "num_self_attend_heads", source)),
        num_cross_heads=int(require(encoder, "num_cross_attend_heads", source)),
        qk_dim=encoder.get("qk_channels"),
        v_dim=encoder.get("v_channels"),
        attention_width="tokens" if shape == "kv" else "latents",
        mlp_ratio=int(encoder.get("self_attend_widening_factor", 1)),
        cross_mlp_ratio=int(encoder.get("cross_attend_widening_factor", 1)),
        residual=bool(encoder.get("use_query_residual", True)),
        dropout_rate=float(encoder.get("dropout_prob", 0.0)),
    )
    query = require(decoder, "trainable_position_encoding_kwargs", source)
    return PerceiverIOConfig(
        inputs={"image": Image(height, width, channels)},
        tokens={"image": _image_tokens(require(stated, "preprocessor", source), source)},
        trunk=trunk,
        outputs={
            "classes": Output(
                dim=int(require(query, "num_channels", source)),
                channels=int(require(stated, "num_classes", source)),
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


def _classic(stated: Mapping[str, Any], shapes: Shapes, source: str) -> PerceiverConfig:
    """Translate an original Perceiver that was composed of the released modules."""
    _, length, channels = _shape(shapes, "x", 3, source)
    repeats = int(require(stated, "repeats", source))
    shared = bool(require(stated, "first_cross_attend_shared_with_rest", source))
    return PerceiverConfig(
        inputs={"x": Array((length,), channels)},
        tokens={"x": TokenConfig()},
        trunk=TrunkConfig(
            num_latents=int(require(stated, "z_index_dim", source)),
            latent_dim=int(require(stated, "num_z_channels", source)),
            depth=int(require(stated, "self_attends_per_block", source)),
            num_blocks=repeats,
            num_reads=repeats,
            share_reads="all" if shared else "all_but_first",
            num_heads=int(require(stated, "num_self_attend_heads", source)),
        ),
        num_outputs=int(require(stated, "num_classes", source)),
        init="paper",
    )


def _flow(stated: Mapping[str, Any], shapes: Shapes, source: str) -> PerceiverIOConfig:
    _, frames, height, width, channels = _shape(shapes, "frames", 5, source)
    positions = PositionConfig(
        kind="fourier",
        num_bands=int(require(stated, "num_bands", source)),
        max_resolution=tuple(require(stated, "image_size", source)),
    )
    dim = int(require(stated, "patch_linear_channels", source))
    scale = float(require(stated, "rescale_factor", source))
    return PerceiverIOConfig(
        inputs={"video": Video(frames, height, width, channels)},
        tokens={"video": TokenConfig(content="frame_patches", dim=dim, positions=positions)},
        trunk=_trunk(stated, source),
        outputs={"flow": Output(queries="tokens", modality="video", channels=2, divide_by=scale)},
        init="paper",
    )


def _language(stated: Mapping[str, Any], _shapes: Shapes, source: str) -> PerceiverIOConfig:
    given = {
        key: int(require(stated, key, source))
        for key in (
            "L",
            "d_latents",
            "d_model",
            "heads",
            "qk_channels",
            "v_channels_encoder",
            "v_channels_decoder",
            "num_self_attends_per_block",
            "z_index_dim",
        )
    }
    width, heads = given["d_model"], given["heads"]
    places = PositionConfig(kind="learned", dim=width, combine="add")
    return PerceiverIOConfig(
        inputs={"bytes": Bytes(given["L"])},
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
        outputs={"bytes": Output(length=given["L"], dim=width, modality="bytes", head="tied")},
        decoder=DecoderConfig(
            num_heads=heads, qk_dim=given["qk_channels"], v_dim=given["v_channels_decoder"]
        ),
        init="paper",
    )


MULTIMODAL_SIZES = (
    "T",
    "S",
    "samples",
    "samples_per_patch",
    "num_classes",
    "audio_bands",
    "image_bands",
    "spatial_downsample",
    "label_query_channels",
    "decoder_output_num_channels",
    "min_padding_size_preprocessor",
    "min_padding_size_decoder",
)


def _multimodal(stated: Mapping[str, Any], _shapes: Shapes, source: str) -> PerceiverIOConfig:
    given = {key: int(require(stated, key, source)) for key in MULTIMODAL_SIZES}
    frames, size = given["T"], given["S"]
    # max_resolution counts pixels and samples of the raw signals, not patches.
    pixels = PositionConfig(
        kind="fourier", num_bands=given["image_bands"], max_resolution=(frames, size, size)
    )
    samples = PositionConfig(
        kind="fourier", num_bands=given["audio_bands"], max_resolution=(given["samples"],)
    )
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
            "audio": Audio(given["samples"]),
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
    "ImagePreprocessor+PerceiverEncoder+ClassificationDecoder": _classifier,
    "COMPOSED classic Perceiver": _classic,
    "optical flow": _flow,
    "masked language model": _language,
    "multimodal autoencoder": _multimodal,
}
