"""Hugging Face's seven Perceiver classes: tensor names, configurations and folders.

Many values are not in ``config.json`` but fixed in the classes, such as decoder heads and
residuals, Fourier bands and patch widths; they are constants here (transformers 5.23, Apache-2.0).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.checkpoints.names import (
    Entry,
    Flavour,
    Kind,
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
from perceivers.checkpoints.torch_files import (
    HuggingFaceFolder,
    count_labels,
    describe_preprocessor,
    name_labels,
    read_hugging_face_folder,
    write_hugging_face_folder,
)
from perceivers.errors import CheckpointError, suggest
from perceivers.files import write_json
from perceivers.models import DecoderConfig, Output, PerceiverIO, PerceiverIOConfig
from perceivers.models.flat.trunk import TrunkConfig
from perceivers.models.saving import ModelInfo
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

# -- Tensor names in Hugging Face's seven Perceiver classes --------------------------------------

ATTENTION = {"attention.out": ".attention.output.dense"}
MLP = {"norm_mlp": ".layernorm", "mlp.hidden": ".mlp.dense1", "mlp.out": ".mlp.dense2"}
SCHEME = Scheme(
    parameter=".",
    linear=("weight", "bias"),
    norm=("weight", "bias"),
    weight="same",
    pixel="pixel",
    kernel="same",
    vector="same",
    averages=(".running_mean", ".running_var"),
    read={
        "norm_query": ".attention.self.layernorm1",
        "norm_tokens": ".attention.self.layernorm2",
        "attention.q": ".attention.self.query",
        "attention.k": ".attention.self.key",
        "attention.v": ".attention.self.value",
        **ATTENTION,
        **MLP,
    },
    layer={
        "norm_attention": ".attention.self.layernorm1",
        "attention.qkv#0": ".attention.self.query",
        "attention.qkv#1": ".attention.self.key",
        "attention.qkv#2": ".attention.self.value",
        **ATTENTION,
        **MLP,
    },
    index=str,
)
READER = "perceiver.input_preprocessor"
TABLE = "position_embeddings.position_embeddings"
QUERIES = "output_position_encodings.position_embeddings"
COUNTER = f"{READER}.convnet.batchnorm.num_batches_tracked"


def hugging_face_entries(config: PerceiverIOConfig) -> list[Entry]:
    """Return the name table of a configuration, one entry per tensor.

    Raises:
        CheckpointError: No model of this kind was released.
    """
    kind = kind_of(config)
    decoder = "perceiver.decoder" + ("" if kind == "language" else ".decoder")
    parts = [
        Part("array", "trunk.latents", "perceiver.embeddings.latents"),
        Part("read", "trunk.reads.0", "perceiver.encoder.cross_attention"),
        Part("layers", "trunk.blocks.0", "perceiver.encoder.self_attends.{}"),
        Part("read", "decoder.read", f"{decoder}.decoding_cross_attention"),
    ]
    fused = fused_rows(config.trunk)
    if kind == "multimodal":
        return expand(parts + _multimodal_parts(config), SCHEME, config.trunk.depth, fused)
    (name,), (out,) = config.inputs, config.outputs
    reader = f"inputs.readers.{name}"
    if kind in {"language", "text_classes"}:
        parts += [
            Part("array", f"{reader}.content.rows.weight", f"{READER}.embeddings.weight"),
            Part(
                "array",
                f"{reader}.positions.source.table",
                f"{READER}.position_embeddings.weight",
            ),
        ]
    elif kind == "flow":
        parts.append(Part("linear", f"{reader}.linear", f"{READER}.conv_after_patches"))
    else:
        parts += _pixels(config, reader)
    if kind != "flow":
        parts.append(Part("array", f"decoder.queries.{out}.table", f"{decoder}.{QUERIES}"))
    if kind == "language":
        parts.append(Part("array", f"decoder.heads.{out}.bias", "embedding_decoder.bias"))
    else:
        parts.append(Part("linear", f"decoder.heads.{out}", f"{decoder}.final_layer"))
    return expand(parts, SCHEME, config.trunk.depth, fused)


def _pixels(config: PerceiverIOConfig, reader: str) -> list[Part]:
    (tokens,) = config.tokens.values()
    if tokens.content == "conv":
        norm = f"{reader}.content.norms.0"
        return [
            Part("conv", f"{reader}.content.convs.0", f"{READER}.convnet.conv"),
            Part("batch_norm", norm, f"{READER}.convnet.batchnorm"),
            Part("array", f"{norm}.num_batches_tracked", COUNTER),
        ]
    if tokens.positions.kind == "learned":
        places = f"{reader}.positions"
        return [
            Part("pixel", f"{reader}.linear", f"{READER}.convnet_1x1"),
            Part("array", f"{places}.source.table", f"{READER}.{TABLE}"),
            Part("linear", f"{places}.project", f"{READER}.positions_projection"),
        ]
    return []


def _multimodal_parts(config: PerceiverIOConfig) -> list[Part]:
    parts = [Part("linear", "decoder.project", "perceiver.decoder.decoder.final_layer")]
    for name, spec in config.inputs.items():
        role = modality_role(spec)
        head = f"perceiver.output_postprocessor.modalities.{role}.classifier"
        parts += [
            Part("row", f"inputs.padding.{name}", f"{READER}.padding.{role}"),
            Part("row", f"inputs.mask.{name}", f"{READER}.mask.{role}"),
            Part("row", f"decoder.padding.{name}", f"perceiver.decoder.padding.{role}"),
            Part("linear", f"decoder.heads.{name}", head),
        ]
        if role == "label":
            theirs = f"perceiver.decoder.modalities.label.decoder.{QUERIES}"
            parts.append(Part("array", f"decoder.queries.{name}.table", theirs))
    return parts


# -- Configurations ------------------------------------------------------------------------------

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


# -- Reading folders -----------------------------------------------------------------------------

# Entries that are no parameters; some versions of transformers write them.
TOLERATED = (".position_ids", ".attention_mask_value", COUNTER)

# Tensors that identify a class if config.json does not name it. Order matters: the last two also
# occur in earlier classes.
TELLING = {
    "embedding_decoder.bias": "PerceiverForMaskedLM",
    f"{READER}.convnet.conv.weight": "PerceiverForImageClassificationConvProcessing",
    f"{READER}.convnet_1x1.weight": "PerceiverForImageClassificationLearned",
    f"{READER}.conv_after_patches.weight": "PerceiverForOpticalFlow",
    f"{READER}.padding.audio": "PerceiverForMultimodalAutoencoding",
    f"{READER}.embeddings.weight": "PerceiverForSequenceClassification",
    f"perceiver.decoder.decoder.{QUERIES}": "PerceiverForImageClassificationFourier",
}


def read_hugging_face(folder: Path) -> HuggingFaceFolder:
    """Read a folder whose ``model_type`` is ``perceiver``.

    Raises:
        CheckpointError: A file is missing or damaged, or the class is not one of the seven.
    """
    return read_hugging_face_folder(folder, CLASSES, TELLING)


def model_from_hugging_face(read: HuggingFaceFolder, flavour: Flavour = "hf") -> PerceiverIO:
    """Build our model in evaluation mode and load the weights; all names and shapes must match.

    Args:
        read: Contents of the folder.
        flavour: ``hf`` computes the outputs of transformers, ``official`` those of the released
            code with the same weights.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape (all listed).
    """
    config = config_from_hugging_face(read.name, read.stated, read.preprocessor, str(read.path))
    if flavour == "official":
        config = with_flavour(config, flavour)
    entries = hugging_face_entries(config)
    wanted = {entry.theirs for entry in entries}
    found = {k: x for k, x in read.tensors.items() if k in wanted or not k.endswith(TOLERATED)}
    if COUNTER in wanted:  # does not affect outputs, so files without it are accepted
        found.setdefault(COUNTER, torch.zeros((), dtype=torch.int64))
    model = PerceiverIO(config)
    fill_model(model, entries, found, source=str(read.path))
    return model.eval()


# -- Writing folders -----------------------------------------------------------------------------


def save_hugging_face(model: PerceiverIO, folder: Path, info: ModelInfo) -> list[str]:
    """Write a folder that a Hugging Face class can load.

    Returns:
        Notes on what that class computes differently.

    Raises:
        CheckpointError: No Hugging Face class supports this model; lists the unsupported settings.
    """
    kind = kind_of(model.config)
    name = class_of(model.config, kind)
    stated = config_to_hugging_face(model.config, kind)
    channels = list(model.config.outputs.values())[-1].channels
    if kind in {"text_classes", "image_classes", "multimodal"}:
        stated |= name_labels(info.classes, channels)
    preprocessor = _preprocessor(model.config) if kind == "image_classes" else {}
    # Translated back and compared, so that no setting is lost silently.
    again = config_from_hugging_face(name, stated, preprocessor, "the written config.json")
    notes = describe_differences(model.config, again, name)
    tensors = take_from_model(model, hugging_face_entries(model.config))
    header = {"architectures": [name], "model_type": "perceiver"}
    write_hugging_face_folder(folder, {**header, **stated}, tensors, preprocessor)
    if kind in {"language", "text_classes"}:
        length = stated["max_position_embeddings"]
        tokenizer = {"tokenizer_class": "PerceiverTokenizer", "model_max_length": length}
        write_json(folder / "tokenizer_config.json", tokenizer)
    return notes


def _preprocessor(config: PerceiverIOConfig) -> dict[str, Any]:
    (spec,) = config.inputs.values()
    assert isinstance(spec, Image)
    height, width = spec.grid
    # PerceiverImageProcessor crops before it resizes, to size / crop_size of the shorter side; the
    # released fraction is 224/256.
    crop = {"height": height * 256 // 224, "width": width * 256 // 224}
    return describe_preprocessor(
        "PerceiverImageProcessor",
        spec,
        size={"height": height, "width": width},
        crop_size=crop,
    )
