"""Reading and writing Hiera weights: official files, timm files and Hugging Face folders.

Tensor names and the translation of configurations are in ``hiera_names``.
"""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.checkpoints.hiera_names import (
    NAMES,
    NORM,
    PREFIXES,
    STEM,
    Library,
    config_from_shapes,
    count_local,
    hiera_entries,
    name_variant,
)
from perceivers.checkpoints.names import fill_model, take_from_model
from perceivers.checkpoints.torch_files import (
    PICKLED,
    HuggingFaceFolder,
    count_labels,
    describe_preprocessor,
    name_labels,
    read_hugging_face_folder,
    write_hugging_face_folder,
    write_safetensors,
)
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import write_atomic
from perceivers.models.hiera import Hiera, HieraConfig, HieraDecoder, HieraHead
from perceivers.models.saving import ModelInfo
from perceivers.settings import change
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image

# -- Hugging Face folders of the four Hiera classes ----------------------------------------------
#
# The format is that of transformers 5.23 (Apache-2.0), whose Hieras support images only.

NORMS = "hidden_states_norms.stage"
# Beginnings of tensor names that identify the class if config.json does not name it.
TELLING = {
    NORMS: "HieraBackbone",
    "classifier.weight": "HieraForImageClassification",
    "decoder.mask_token": "HieraForPreTraining",
    "embeddings.position_embeddings": "HieraModel",
}
# Values of settings that a config.json omits.
DEFAULTS: Mapping[str, Any] = {
    "embed_dim": 96,
    "image_size": [224, 224],
    "patch_size": [7, 7],
    "patch_stride": [4, 4],
    "patch_padding": [3, 3],
    "mlp_ratio": 4.0,
    "depths": [2, 3, 16, 3],
    "num_heads": [1, 2, 4, 8],
    "num_query_pool": 3,
    "query_stride": [2, 2],
    "masked_unit_size": [8, 8],
    "masked_unit_attention": [True, True, False, False],
    "drop_path_rate": 0.0,
    "num_channels": 3,
    "decoder_hidden_size": None,
    "decoder_depth": None,
    "decoder_num_heads": None,
}
# Settings for which this library supports one value only.
FIXED: Mapping[str, Any] = {
    "embed_dim_multiplier": 2.0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
# Our settings that config.json cannot store and that do not affect outputs at the native size, or
# that are checked separately (layer_scale).
BESIDES = {"init", "position_resize", "position_antialias", "unit_drop_rate", "pad", "layer_scale"}


def read_hiera_folder(folder: Path) -> HuggingFaceFolder:
    """Read a folder whose ``model_type`` is ``hiera``.

    Raises:
        CheckpointError: A file is missing or damaged, or the class is not one of the four.
    """
    return read_hugging_face_folder(folder, PREFIXES, TELLING)


def hiera_from_hugging_face(read: HuggingFaceFolder) -> Hiera:
    """Build our model in evaluation mode and load the weights; all names and shapes must match.

    A backbone does not store the norm of the mean token; its scale is then 1 and its offset 0.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape (all listed), or a
            setting is not supported.
    """
    source = str(read.path)
    model = Hiera(
        config_from_hiera(read.name, read.stated, read.preprocessor, read.tensors, source)
    )
    fill_hiera(model, read.tensors, "hf", source=source, prefix=PREFIXES[read.name])
    return model.eval()


def config_from_hiera(
    name: str,
    stated: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    tensors: Mapping[str, Any],
    source: str,
) -> HieraConfig:
    """Translate a ``config.json`` to our config.

    Args:
        name: Name of the Hugging Face class.
        stated: Content of ``config.json``.
        preprocessor: Content of ``preprocessor_config.json`` (image mean and deviation).
        tensors: Tensors by name; the names show which stages a backbone normalises, and whether
            there is a classifier.
        source: File name for error messages.

    Raises:
        CheckpointError: A value is not supported.
    """
    given = {key: stated.get(key, default) for key, default in DEFAULTS.items()}
    for key, only in FIXED.items():
        if stated.get(key, only) != only:
            raise CheckpointError(f"{source}: {key} is {stated[key]!r}; only {only!r} is supported")
    try:
        config = _config(name, given, preprocessor, source)
    except CheckpointError:
        raise
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: config.json does not fit {name}: {error}") from error
    settings = config.to_json()
    if name == "HieraForImageClassification" and "classifier.weight" in tensors:
        settings["head"] = {"kind": "mean", "num_outputs": count_labels(stated)}
    if name == "HieraBackbone":
        settings["feature_norms"] = _normed_stages(tensors, source)
    return HieraConfig.from_json(settings)


def _config(
    name: str, given: Mapping[str, Any], preprocessor: Mapping[str, Any], source: str
) -> HieraConfig:
    heads, kernel = given["num_heads"], given["patch_size"]
    if list(heads) != [heads[0] * 2**i for i in range(len(given["depths"]))]:
        raise CheckpointError(f"{source}: num_heads {heads} do not double from stage to stage")
    if [size // 2 for size in kernel] != list(given["patch_padding"]):
        raise CheckpointError(
            f"{source}: patch_padding {given['patch_padding']} is not half of patch_size {kernel}"
        )
    if given["mlp_ratio"] != int(given["mlp_ratio"]):
        raise CheckpointError(f"{source}: mlp_ratio is {given['mlp_ratio']}; give a whole number")
    local, pools = count_local(given["masked_unit_attention"], source), given["num_query_pool"]
    if pools < local and pools < len(given["depths"]) - 1:
        raise CheckpointError(
            f"{source}: {local} stages attend inside mask units but only {pools} stage changes "
            f"pool; that library then divides mask units, which is not supported"
        )
    decoder = None
    if name == "HieraForPreTraining":
        decoder = HieraDecoder(
            dim=given["decoder_hidden_size"],
            depth=given["decoder_depth"],
            num_heads=given["decoder_num_heads"],
        )
    mean = tuple(preprocessor.get("image_mean", IMAGENET_MEAN))
    std = tuple(preprocessor.get("image_std", IMAGENET_STD))
    size = given["image_size"]
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    return HieraConfig(
        inputs={"image": Image(height, width, given["num_channels"], mean=mean, std=std)},
        dim=given["embed_dim"],
        num_heads=heads[0],
        depths=tuple(given["depths"]),
        patch_kernel=tuple(kernel),
        patch_stride=tuple(given["patch_stride"]),
        mask_unit=tuple(given["masked_unit_size"]),
        pool=tuple(given["query_stride"]),
        num_pools=pools,
        local_stages=local,
        mlp_ratio=int(given["mlp_ratio"]),
        drop_path_rate=given["drop_path_rate"],
        decoder=decoder,
        init="paper" if decoder is None else "autoencoder",
    )


def _normed_stages(tensors: Mapping[str, Any], source: str) -> tuple[int, ...]:
    """Return the output stages of a backbone, counted from 0."""
    if any(name.startswith("hidden_states_norms.stem") for name in tensors):
        raise CheckpointError(
            f"{source}: the backbone outputs its stem; only stages are supported. Save it with "
            f"stages alone in out_features"
        )
    names = {name.removeprefix(NORMS).split(".")[0] for name in tensors if name.startswith(NORMS)}
    return tuple(sorted(int(name) - 1 for name in names))


# -- Writing Hugging Face folders ----------------------------------------------------------------


def save_hiera_folder(model: Hiera, folder: Path, info: ModelInfo) -> list[str]:
    """Write a folder that a Hugging Face class can load; return notes on weights left out.

    Raises:
        CheckpointError: No Hugging Face class supports this model; lists the unsupported settings.
    """
    config = model.config
    name = class_of_hiera(config)
    stated = config_to_hiera(config, name, info)
    preprocessor = _preprocessor(config)
    state = model.state_dict()
    # Translated back and compared, so that no setting is lost silently.
    again = config_from_hiera(name, stated, preprocessor, _foreign_names(config, name), str(folder))
    _require_same(config, again, name)
    normed = name != "HieraBackbone"
    entries = hiera_entries(config, "hf", prefix=PREFIXES[name], with_norm=normed)
    besides = () if normed else [key for key in NORM if key in state]
    tensors = take_from_model(model, entries, besides=besides)
    header = {"architectures": [name], "model_type": "hiera"}
    write_hugging_face_folder(folder, {**header, **stated}, tensors, preprocessor)
    return [f"{name} has no norm of the mean token: {', '.join(besides)} are not written"] * bool(
        besides
    )


def class_of_hiera(config: HieraConfig) -> str:
    """Return the name of the Hugging Face class for such a model.

    Raises:
        CheckpointError: There is no such class.
    """
    heads = bool(config.feature_norms) + (config.decoder is not None) + (config.head.kind != "none")
    if heads > 1 or config.head.kind == "segmentation" or not isinstance(config.spec, Image):
        raise CheckpointError(
            f"Hugging Face has no class for a Hiera of inputs {dict(config.inputs)} with head "
            f"{config.head.kind!r}, feature_norms={config.feature_norms} and "
            f"{'a' if config.decoder else 'no'} decoder; its classes read images only and have at "
            f"most one of these"
        )
    if config.decoder is not None:
        return "HieraForPreTraining"
    if config.feature_norms:
        return "HieraBackbone"
    return "HieraForImageClassification" if config.head.kind == "mean" else "HieraModel"


def config_to_hiera(config: HieraConfig, name: str, info: ModelInfo) -> dict[str, Any]:
    """Translate our config to the values of a ``config.json``."""
    depth = len(config.depths)
    stated: dict[str, Any] = {
        **FIXED,
        "embed_dim": config.dim,
        "image_size": list(config.spec.grid),
        "patch_size": list(config.patch_kernel),
        "patch_stride": list(config.patch_stride),
        "patch_padding": [size // 2 for size in config.patch_kernel],
        "mlp_ratio": float(config.mlp_ratio),
        "depths": list(config.depths),
        "num_heads": [config.num_heads * 2**stage for stage in range(depth)],
        "num_query_pool": config.pools,
        "query_stride": list(config.pool),
        "masked_unit_size": list(config.mask_unit),
        "masked_unit_attention": [stage < config.local_stages for stage in range(depth)],
        "drop_path_rate": config.drop_path_rate,
        "num_channels": config.spec.channels,
    }
    if config.decoder is not None:
        stated |= {
            "decoder_hidden_size": config.decoder.dim,
            "decoder_depth": config.decoder.depth,
            "decoder_num_heads": config.decoder.num_heads,
            "normalize_pixel_loss": info.target != "per-channel",
        }
    if name == "HieraBackbone":
        stated["out_features"] = [f"stage{stage + 1}" for stage in sorted(config.feature_norms)]
    if name == "HieraForImageClassification":
        stated |= name_labels(info.classes, config.head.num_outputs)
    return stated


def _foreign_names(config: HieraConfig, name: str) -> dict[str, None]:
    # Names alone: config_from_hiera reads the head and the normalised stages from them.
    names = [f"{NORMS}{stage + 1}.weight" for stage in config.feature_norms]
    if name == "HieraForImageClassification":
        names.append("classifier.weight")
    return dict.fromkeys(names)


def _require_same(config: HieraConfig, again: HieraConfig, name: str) -> None:
    # config.json does not store the input's name either; _plain leaves it out.
    mine, its = (_plain(each) for each in (config, again))
    lost = [
        f"{key} is {mine[key]!r} here and {its[key]!r} there"
        for key in mine
        if mine[key] != its[key] and key not in BESIDES
    ]
    if lost or config.layer_scale is not None:
        scaled = ["layer_scale"] * (config.layer_scale is not None)
        raise CheckpointError(f"{name} does not support this model: {'; '.join(lost + scaled)}")


def _plain(config: HieraConfig) -> dict[str, Any]:
    data = config.to_json()
    dropout = HieraHead(kind=config.head.kind, num_outputs=config.head.num_outputs)
    spec = config.spec
    size = (spec.grid, spec.channels)
    return data | {"inputs": size, "head": dropout, "feature_norms": set(config.feature_norms)}


def _preprocessor(config: HieraConfig) -> dict[str, Any]:
    # The released processors resize the shorter side to 256/224 of the input size, then crop.
    spec = config.spec
    assert isinstance(spec, Image)
    height, width = spec.grid
    return describe_preprocessor(
        "BitImageProcessor",
        spec,
        size={"shortest_edge": min(height, width) * 256 // 224},
        crop_size={"height": height, "width": width},
    )


# -- State dicts: official ``.pth`` files and timm files -----------------------------------------

# Names that occur in timm's files only. A file without any final norm is timm's as well: only its
# backbones omit it.
TIMM_ALONE = ("head.fc.weight", "head.norm.weight", "pos_embed_win", "blocks.0.ls1.gamma")


def tell_library(tensors: Mapping[str, Any]) -> Library | None:
    """Return the library with these tensor names, or None if they are not those of a Hiera."""
    if not {STEM, "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"} <= tensors.keys():
        return None
    if any(name in tensors for name in TIMM_ALONE):
        return "timm"
    named = ("norm.weight", "encoder_norm.weight", "head.projection.weight")
    return "official" if any(name in tensors for name in named) else "timm"


def hiera_from_tensors(
    tensors: Mapping[str, Tensor], library: Library, stated: Mapping[str, Any], source: str
) -> Hiera:
    """Build our model in evaluation mode and load the weights; all names and shapes must match.

    If a backbone lacks the norm of the mean token, ours gets scale 1 and offset 0.

    Args:
        tensors: Tensors by name.
        library: The library whose names they have.
        stated: Fields of ``HieraConfig``; they take precedence over what the shapes imply.
        source: File name for error messages.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape (all listed), or a
            required setting is neither given nor implied by the shapes.
        ConfigError: A given field is unknown or invalid.
    """
    config = config_from_shapes(tensors, stated, source)
    model = Hiera(config)
    fill_hiera(model, tensors, library, source=source)
    return model.eval()


def fill_hiera(
    model: Hiera,
    tensors: Mapping[str, Tensor],
    library: Library,
    *,
    source: str,
    prefix: str = "",
) -> None:
    """Load weights into a model; without a norm of the mean token, ours gets scale 1 and offset 0.

    Args:
        model: The model, changed in place.
        tensors: Tensors by name.
        library: The library whose names they have.
        source: File name for error messages.
        prefix: Prefix of the encoder's names (Hugging Face).

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape (all listed).
    """
    normed = has_norm(model.config, tensors, library, prefix)
    entries = hiera_entries(model.config, library, prefix=prefix, with_norm=normed)
    besides = () if normed else NORM
    fill_model(model, entries, tensors, source=source, besides=besides)
    if not normed and model.norm is not None:
        nn.init.ones_(model.norm.weight)
        nn.init.zeros_(model.norm.bias)


def has_norm(
    config: HieraConfig, tensors: Mapping[str, Tensor], library: Library, prefix: str = ""
) -> bool:
    """Return whether a file must or does contain the norm; only headless models may omit it."""
    name = f"{prefix}{NAMES[library]['norm']}.weight"
    needed = config.decoder is not None or config.head.kind == "mean" or library == "official"
    return needed or name in tensors


def save_official(model: Any, path: Path) -> list[str]:
    """Write a ``.pth`` file for the official package, with the weights under ``model_state``.

    Raises:
        CheckpointError: The official package does not support a part of the model.
        ConfigError: The file name has another suffix.
    """
    if path.suffix not in PICKLED:
        raise ConfigError(f"official weights are written to a .pth file, not to {path}")
    config = model.config
    _require_official(config)
    tensors = take_from_model(model, hiera_entries(config, "official"))
    _write_pickled(path, {"model_state": tensors})
    return []


def save_timm(model: Any, path: Path) -> list[str]:
    """Write a state dict for timm; return notes on weights left out.

    The suffix of ``path`` selects the format: ``.safetensors``, or a pickle (``.pth``, ``.bin``).

    Raises:
        CheckpointError: timm does not support a part of the model.
        ConfigError: The file name has another suffix.
    """
    if path.suffix not in {*PICKLED, ".safetensors"}:
        raise ConfigError(f"timm's weights are written to .safetensors or .pth, not to {path}")
    config, notes = model.config, []
    left = [name for name in model.state_dict() if name.startswith("decoder.")]
    if config.decoder is not None:
        # Of an autoencoder, timm has the encoder only, and its last stage pools, too.
        config = change(config, (), decoder=None, num_pools=None, head=HieraHead())
        notes = [f"timm has no decoder: {len(left)} tensors are not written"]
    tensors = take_from_model(model, hiera_entries(config, "timm"), besides=left)
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors)
    else:
        _write_pickled(path, tensors)
    return notes


def _require_official(config: HieraConfig) -> None:
    # Tensors of the same names and shapes would load, but give other outputs.
    wrong = []
    if config.shortcut != "project":
        wrong.append(f"shortcut={config.shortcut!r} (it projects)")
    if config.decoder is not None:
        video = len(config.mask_unit) == 3
        order = "channels_last" if video else "channels_first"
        if config.decoder.order != order:
            wrong.append(f"decoder order={config.decoder.order!r} (here it has {order!r})")
        if video and config.decoder.all_frames:
            wrong.append("decoder all_frames=True (it predicts the first of a patch)")
    if wrong:
        raise CheckpointError(f"the official Hiera does not support {', '.join(wrong)}")


def with_hiera_task(model: Hiera, info: ModelInfo) -> ModelInfo:
    """Add the variant, task and classes of a Hiera to its metadata."""
    variant = name_variant(model.config)
    if variant:
        info = replace(info, provenance={**info.provenance, "variant": variant})
    if model.config.decoder is not None:
        return replace(info, task="pretrain", target=info.target or "patch-normalised")
    if not model.config.num_classes:
        return info
    # Most files have no class names; the indices of the logits stand in for them.
    numbers = tuple(str(number) for number in range(model.config.num_classes))
    return replace(info, task="classify", classes=info.classes or numbers)


def _write_pickled(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(path, buffer.getvalue())
