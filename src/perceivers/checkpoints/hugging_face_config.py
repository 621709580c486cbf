"""Translation between ``config.json`` of Hugging Face's seven Perceiver classes and our config.

Many values are not in that file but fixed in the classes, such as decoder heads and residuals,
Fourier bands and patch widths; they are constants here (transformers 5.23, Apache-2.0).
"""

from collections.abc import Mapping
from typing import Any

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.checkpoints.names import Kind, modality_role
from perceivers.errors import CheckpointError, suggest
from perceivers.models import DecoderConfig, Output, PerceiverIOConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.settings import tolerating
from perceivers.types import (
    BYTE_VOCABULARY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Audio,
    Bytes,
    Image,
    Labels,
    Video,
)

CLASSES: Mapping[str, Kind] = {
    "PerceiverForMaskedLM": "language",
    "PerceiverForSequenceClassification": "text_classes",
    "PerceiverForImageClassificationLearned": "image_classes",
    "PerceiverForImageClassificationFourier": "image_classes",
    "PerceiverForImageClassificationConvProcessing": "image_classes",
    "PerceiverForOpticalFlow": "flow",
    "PerceiverForMultimodalAutoencoding": "multimodal",
}
# Values of settings that a config.json omits.
DEFAULTS: Mapping[str, Any] = {
    "num_latents": 256,
    "d_latents": 1280,
    "d_model": 768,
    "num_blocks": 1,
    "num_self_attends_per_block": 26,
    "num_self_attention_heads": 8,
    "num_cross_attention_heads": 8,
    "qk_channels": None,
    "v_channels": None,
    "cross_attention_shape_for_attention": "kv",
    "self_attention_widening_factor": 1,
    "cross_attention_widening_factor": 1,
    "hidden_act": "gelu",
    "use_query_residual": True,
    "vocab_size": BYTE_VOCABULARY,
    "max_position_embeddings": 2048,
    "image_size": 56,
    "train_size": (368, 496),
    "num_frames": 16,
    "audio_samples_per_frame": 1920,
    "samples_per_patch": 16,
    "output_shape": (1, 16, 224, 224),
    "output_num_channels": 512,
    "_label_trainable_num_channels": 1024,
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
    "silu": "silu",
}
# Values fixed in the Hugging Face classes.
LANGUAGE_HEADS, LANGUAGE_QK = 8, 256
IMAGE_BANDS, IMAGE_RESOLUTION, CONV_RESOLUTION = 64, (224, 224), (56, 56)
PIXEL_WIDTH, CONV_WIDTH, FLOW_WIDTH = 256, 64, 64
FLOW_DIVISOR = 100.0
VIDEO_BANDS, AUDIO_BANDS, VIDEO_PATCH = 32, 192, 4
INPUT_PADDING, QUERY_PADDING = 4, 2
# Input size of the released vision models, which config.json does not contain.
IMAGE_SIZE = 224


def config_from_hugging_face(
    name: str, stated: Mapping[str, Any], preprocessor: Mapping[str, Any], source: str
) -> PerceiverIOConfig:
    """Translate a ``config.json`` to our config in flavour ``hf``.

    Args:
        name: Name of the Hugging Face class.
        stated: Content of ``config.json``.
        preprocessor: Content of ``preprocessor_config.json`` (image size, mean and deviation).
        source: File name for error messages.

    Raises:
        CheckpointError: A value is invalid or not supported.
    """
    given = {key: stated.get(key, default) for key, default in DEFAULTS.items()}
    if given["vocab_size"] != BYTE_VOCABULARY:
        raise CheckpointError(
            f"{source}: vocab_size is {given['vocab_size']}; texts are bytes here, with exactly "
            f"{BYTE_VOCABULARY} ids (6 special ones and 256 bytes)"
        )
    makers = {
        "language": _language,
        "text_classes": _text_classes,
        "image_classes": _image_classes,
        "flow": _flow,
        "multimodal": _multimodal,
    }
    given |= {"class": name, "num_labels": count_labels(stated), "preprocessor": preprocessor}
    try:
        # config.json may contain settings that have no effect.
        with tolerating("unused"):
            return PerceiverIOConfig(
                trunk=_trunk(given, source), init="paper", **makers[CLASSES[name]](given, source)
            )
    except CheckpointError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: config.json does not fit {name}: {error}") from error


def count_labels(stated: Mapping[str, Any]) -> int:
    """Return the number of classes: length of ``id2label``, else ``num_labels``, else 2."""
    labels = stated.get("id2label")
    return len(labels) if isinstance(labels, Mapping) else int(stated.get("num_labels", 2))


def _trunk(given: Mapping[str, Any], source: str) -> TrunkConfig:
    act, shape = given["hidden_act"], given["cross_attention_shape_for_attention"]
    if act not in ACTIVATIONS:
        raise CheckpointError(
            f"{source}: hidden_act is {act!r}; expected one of {sorted(ACTIVATIONS)}"
            + suggest(str(act), ACTIVATIONS)
        )
    if shape not in {"kv", "q"}:
        raise CheckpointError(
            f"{source}: cross_attention_shape_for_attention is {shape!r}, not kv or q"
        )
    return TrunkConfig(
        num_latents=given["num_latents"],
        latent_dim=given["d_latents"],
        depth=given["num_self_attends_per_block"],
        num_blocks=given["num_blocks"],
        num_heads=given["num_self_attention_heads"],
        num_cross_heads=given["num_cross_attention_heads"],
        qk_dim=given["qk_channels"],
        v_dim=given["v_channels"],
        attention_width="tokens" if shape == "kv" else "latents",
        mlp_ratio=given["self_attention_widening_factor"],
        cross_mlp_ratio=given["cross_attention_widening_factor"],
        residual=bool(given["use_query_residual"]),
        activation=ACTIVATIONS[act],
    )


def _decoder(given: Mapping[str, Any], query_dim: int, **settings: Any) -> DecoderConfig:
    # One head. Its width is that of the latents or, for shape "q", that of the queries.
    by_query = given["cross_attention_shape_for_attention"] == "q"
    return DecoderConfig(qk_dim=query_dim if by_query else None, **settings)


def _text(given: Mapping[str, Any]) -> dict[str, Any]:
    positions = PositionConfig(kind="learned", dim=given["d_model"], combine="add")
    tokens = TokenConfig(content="embedding", dim=given["d_model"], positions=positions)
    return {
        "inputs": {"bytes": Bytes(given["max_position_embeddings"], wrap="cls_sep")},
        "tokens": {"bytes": tokens},
    }


def _language(given: Mapping[str, Any], _source: str) -> dict[str, Any]:
    output = Output(
        length=given["max_position_embeddings"],
        dim=given["d_model"],
        modality="bytes",
        head="tied",
        mask_padding=False,
    )
    decoder = DecoderConfig(num_heads=LANGUAGE_HEADS, qk_dim=LANGUAGE_QK, v_dim=given["d_model"])
    return {**_text(given), "outputs": {"bytes": output}, "decoder": decoder}


def _classes(given: Mapping[str, Any]) -> dict[str, Any]:
    width = given["d_latents"]
    output = Output(dim=width, channels=given["num_labels"])
    return {"outputs": {"classes": output}, "decoder": _decoder(given, width, residual=True)}


def _text_classes(given: Mapping[str, Any], _source: str) -> dict[str, Any]:
    return {**_text(given), **_classes(given)}


def _image_classes(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    size = _sides(given["preprocessor"].get("size", IMAGE_SIZE), source)
    waves: dict[str, Any] = {"kind": "fourier", "num_bands": IMAGE_BANDS}
    if given["class"].endswith("Learned"):
        size = _sides(given["image_size"], source)
        positions = PositionConfig(kind="learned", dim=PIXEL_WIDTH, project=PIXEL_WIDTH)
        tokens = TokenConfig(dim=PIXEL_WIDTH, positions=positions)
    elif given["class"].endswith("ConvProcessing"):
        positions = PositionConfig(max_resolution=CONV_RESOLUTION, **waves)
        tokens = TokenConfig(content="conv", dim=CONV_WIDTH, padding="hf", positions=positions)
    else:
        positions = PositionConfig(max_resolution=IMAGE_RESOLUTION, **waves)
        tokens = TokenConfig(positions=positions)
    mean = tuple(given["preprocessor"].get("image_mean", IMAGENET_MEAN))
    std = tuple(given["preprocessor"].get("image_std", IMAGENET_STD))
    return {
        "inputs": {"image": Image(*size, 3, mean=mean, std=std)},
        "tokens": {"image": tokens},
        **_classes(given),
    }


def _sides(size: Any, source: str) -> tuple[int, int]:
    """Return height and width; files give one number, or a mapping of both."""
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    if isinstance(size, int):
        return size, size
    raise CheckpointError(
        f"{source}: the image size is {size!r}; give one number, or height and width"
    )


def _flow(given: Mapping[str, Any], _source: str) -> dict[str, Any]:
    height, width = given["train_size"]
    positions = PositionConfig(
        kind="fourier", num_bands=IMAGE_BANDS, max_resolution=(height, width)
    )
    tokens = TokenConfig(content="frame_patches", dim=FLOW_WIDTH, positions=positions)
    output = Output(
        queries="tokens",
        modality="video",
        channels=2,
        divide_by=FLOW_DIVISOR,
    )
    return {
        "inputs": {"video": Video(2, height, width, 3, mean=(0.5,) * 3, std=(0.5,) * 3)},
        "tokens": {"video": tokens},
        "outputs": {"flow": output},
        "decoder": _decoder(given, FLOW_WIDTH + 2 + 4 * IMAGE_BANDS),
    }


def _multimodal(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    _, frames, height, width = given["output_shape"]
    if frames != given["num_frames"]:
        raise CheckpointError(
            f"{source}: num_frames is {given['num_frames']}, but output_shape "
            f"{given['output_shape']} has {frames}; they must be equal"
        )
    samples = frames * given["audio_samples_per_frame"]
    size, patch = given["image_size"], (given["samples_per_patch"],)
    audio = PositionConfig(kind="fourier", num_bands=AUDIO_BANDS, max_resolution=(samples,))
    video = PositionConfig(
        kind="fourier", num_bands=VIDEO_BANDS, max_resolution=(frames, size, size)
    )
    asked: dict[str, Any] = {"queries": "positions", "sampled": "cell"}
    label = given["_label_trainable_num_channels"]
    query_dim = max(1 + 2 * AUDIO_BANDS, 3 + 6 * VIDEO_BANDS, label) + QUERY_PADDING
    return {
        "inputs": {
            "audio": Audio(samples, sample_rate=48000),
            "video": Video(frames, height, width, 3, frame_rate=25.0),
            "label": Labels(given["num_labels"]),
        },
        "tokens": {
            "audio": TokenConfig(content="patches", patch=patch, positions=audio),
            "video": TokenConfig(
                content="patches",
                patch=(1, VIDEO_PATCH, VIDEO_PATCH),
                positions=video,
            ),
            "label": TokenConfig(mask_rate=1.0),
        },
        "outputs": {
            "audio": Output(modality="audio", positions=audio, patch=patch, channels=1, **asked),
            "video": Output(modality="video", positions=video, channels=3, **asked),
            "label": Output(dim=label, channels=given["num_labels"]),
        },
        "decoder": _decoder(
            given, query_dim, project=given["output_num_channels"], min_padding=QUERY_PADDING
        ),
        "min_padding": INPUT_PADDING,
        "mask_tokens": True,
    }


def class_of(config: PerceiverIOConfig, kind: Kind) -> str:
    """Return the name of the Hugging Face class for a model of this kind."""
    if kind == "image_classes":
        (tokens,) = config.tokens.values()
        if tokens.content == "conv":
            return "PerceiverForImageClassificationConvProcessing"
        learned = tokens.positions.kind == "learned"
        return f"PerceiverForImageClassification{'Learned' if learned else 'Fourier'}"
    return next(name for name, other in CLASSES.items() if other == kind)


def config_to_hugging_face(config: PerceiverIOConfig, kind: Kind) -> dict[str, Any]:
    """Translate our config to the values of a ``config.json``.

    Settings that the file cannot store are dropped silently; to find them, translate the result
    back with ``config_from_hugging_face`` and compare.
    """
    trunk, specs = config.trunk, list(config.inputs.values())
    acts = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    values: dict[str, Any] = {
        "num_latents": trunk.num_latents,
        "d_latents": trunk.latent_dim,
        "num_blocks": trunk.num_blocks,
        "num_self_attends_per_block": trunk.depth,
        "num_self_attention_heads": trunk.num_heads,
        "num_cross_attention_heads": trunk.num_cross_heads,
        "qk_channels": trunk.qk_dim,
        "v_channels": trunk.v_dim,
        "cross_attention_shape_for_attention": "kv" if trunk.attention_width == "tokens" else "q",
        "self_attention_widening_factor": trunk.mlp_ratio,
        "cross_attention_widening_factor": trunk.cross_mlp_ratio,
        "hidden_act": acts.get(trunk.activation, trunk.activation),
        "use_query_residual": trunk.residual,
        "attention_probs_dropout_prob": 0.0,
        "vocab_size": BYTE_VOCABULARY,
    }
    for spec, tokens in zip(specs, config.tokens.values(), strict=True):
        if isinstance(spec, Bytes):
            values |= {"max_position_embeddings": spec.length, "d_model": tokens.dim}
        elif isinstance(spec, Image):
            values["image_size"] = spec.height
    if kind == "flow":
        values["train_size"] = list(specs[0].grid[1:])
    if kind == "multimodal":
        values |= _multimodal_values(config)
    return values


def _multimodal_values(config: PerceiverIOConfig) -> dict[str, Any]:
    named = {modality_role(spec): name for name, spec in config.inputs.items()}
    audio, video, label = (named[role] for role in ("audio", "image", "label"))
    frames, height, width = config.inputs[video].grid
    return {
        "num_frames": frames,
        "audio_samples_per_frame": config.inputs[audio].num_tokens // frames,
        "samples_per_patch": (config.tokens[audio].patch or (0,))[0],
        "image_size": (config.tokens[video].positions.max_resolution or (0, height))[1],
        "output_shape": [1, frames, height, width],
        "output_num_channels": config.decoder.project,
        "_label_trainable_num_channels": config.outputs[label].dim,
    }
