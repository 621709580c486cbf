"""Hieras in official files, timm's files and Hugging Face folders: read, and written."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
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
)
from perceivers.checkpoints.hugging_face import HuggingFaceFolder
from perceivers.checkpoints.hugging_face_config import count_labels
from perceivers.checkpoints.names import fill_model, take_from_model
from perceivers.checkpoints.torch_files import PICKLED, read_folder_tensors
from perceivers.errors import CheckpointError, ConfigError, suggest
from perceivers.files import read_json_file, write_atomic, write_json
from perceivers.models.hiera import Hiera, HieraConfig, HieraDecoder, HieraHead
from perceivers.models.saving import ModelInfo
from perceivers.settings import change
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image

# -- Hugging Face folders of the four Hiera classes: read into our model, and written ------------
#
# Nothing of that library is imported: a folder is ``config.json`` and ``model.safetensors`` (or
# ``pytorch_model.bin``, read without executing anything in it). Read in transformers 5.23
# (Apache-2.0); that library has pictures only.

NORMS = "hidden_states_norms.stage"
# A tensor that only this class has; a model without its pooler has none of them.
TELLING = {
    "classifier.weight": "HieraForImageClassification",
    "decoder.mask_token": "HieraForPreTraining",
    "embeddings.position_embeddings": "HieraModel",
}
# What a config.json leaves out has these values.
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
# Values that this library has one of only.
FIXED: Mapping[str, Any] = {
    "embed_dim_multiplier": 2.0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
# Settings of ours that change no output at the native size; they have no place in config.json.
BESIDES = {"init", "position_resize", "position_antialias", "unit_drop_rate", "pad", "layer_scale"}


def read_hiera_folder(folder: Path) -> HuggingFaceFolder:
    """Read a folder whose ``model_type`` is ``hiera``.

    Raises:
        CheckpointError: A file is missing or damaged, or the class is none of the four.
    """
    stated = read_json_file(folder / "config.json")
    tensors = read_folder_tensors(folder)
    named = stated.get("architectures") or []
    name = str(named[0]) if named else _tell_class(tensors, str(folder))
    if name not in PREFIXES:
        raise CheckpointError(
            f"{folder}: class {name!r} is unknown; known are {list(PREFIXES)}"
            + suggest(name, PREFIXES)
        )
    preprocessor = folder / "preprocessor_config.json"
    return HuggingFaceFolder(
        path=folder,
        name=name,
        stated=stated,
        preprocessor=read_json_file(preprocessor) if preprocessor.is_file() else {},
        tensors=tensors,
    )


def _tell_class(tensors: Mapping[str, Tensor], source: str) -> str:
    if any(name.startswith(NORMS) for name in tensors):
        return "HieraBackbone"
    for key, name in TELLING.items():
        if key in tensors:
            return name
    raise CheckpointError(
        f"{source}: config.json names no class under 'architectures', and no tensor tells one"
    )


def hiera_from_hugging_face(read: HuggingFaceFolder) -> Hiera:
    """Build our model and fill it; every tensor must be used, and none may be missing.

    A backbone has no norm of the mean token; ours then has no effect.

    Raises:
        CheckpointError: Missing, unexpected or misshapen tensors, each listed; or a setting that
            has no counterpart here.
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
    """Translate a ``config.json``.

    Args:
        name: The class.
        stated: The file's content.
        preprocessor: That of ``preprocessor_config.json``: mean and deviation of pictures.
        tensors: Their names tell which stages of a backbone are normalised.
        source: For messages.

    Raises:
        CheckpointError: A value has no counterpart here.
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
    """The model but its head."""
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
            f"pool; that library then cuts mask units up, which is not supported"
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
    """Stages, from 0, that a backbone gives out."""
    if any(name.startswith("hidden_states_norms.stem") for name in tensors):
        raise CheckpointError(
            f"{source}: the backbone gives out its stem, before the first stage; only stages are "
            f"supported: save it with out_features of stages"
        )
    names = {name.removeprefix(NORMS).split(".")[0] for name in tensors if name.startswith(NORMS)}
    return tuple(sorted(int(name) - 1 for name in names))


# -- writing ---------------------------------------------------------------------------------------


def save_hiera_folder(model: Hiera, folder: Path, info: ModelInfo) -> list[str]:
    """Write a folder that the class of that library loads, and return what it leaves behind.

    Raises:
        CheckpointError: No class has a place for this model; says for what.
    """
    config = model.config
    name = class_of_hiera(config)
    stated = config_to_hiera(config, name, info)
    preprocessor = _preprocessor(config)
    state = model.state_dict()
    again = config_from_hiera(name, stated, preprocessor, _foreign_names(config, name), str(folder))
    _require_same(config, again, name)
    normed = name != "HieraBackbone"
    entries = hiera_entries(config, "hf", prefix=PREFIXES[name], with_norm=normed)
    besides = () if normed else [key for key in NORM if key in state]
    tensors = take_from_model(model, entries, besides=besides)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_json(folder / "preprocessor_config.json", preprocessor)
    header = {"architectures": [name], "model_type": "hiera", "dtype": "float32"}
    write_json(folder / "config.json", {**header, **stated})
    return [f"{name} has no norm of the mean token: {', '.join(besides)} stay behind"] * bool(
        besides
    )


def class_of_hiera(config: HieraConfig) -> str:
    """Return the class that holds such a model.

    Raises:
        CheckpointError: None does.
    """
    heads = bool(config.feature_norms) + (config.decoder is not None) + (config.head.kind != "none")
    if heads > 1 or config.head.kind == "segmentation" or not isinstance(config.spec, Image):
        raise CheckpointError(
            f"Hugging Face has no class for a Hiera of inputs {dict(config.inputs)} with head "
            f"{config.head.kind!r}, feature_norms={config.feature_norms} and "
            f"{'a' if config.decoder else 'no'} decoder; it has pictures only, and one of these"
        )
    if config.decoder is not None:
        return "HieraForPreTraining"
    if config.feature_norms:
        return "HieraBackbone"
    return "HieraForImageClassification" if config.head.kind == "mean" else "HieraModel"


def config_to_hiera(config: HieraConfig, name: str, info: ModelInfo) -> dict[str, Any]:
    """Return the values of a ``config.json``."""
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
        labels = info.classes or tuple(f"LABEL_{i}" for i in range(config.head.num_outputs))
        stated["id2label"] = {str(i): label for i, label in enumerate(labels)}
        stated["label2id"] = {label: i for i, label in enumerate(labels)}
    return stated


def _foreign_names(config: HieraConfig, name: str) -> dict[str, None]:
    """The names of a class's tensors that tell its head and its norms."""
    names = [f"{NORMS}{stage + 1}.weight" for stage in config.feature_norms]
    if name == "HieraForImageClassification":
        names.append("classifier.weight")
    return dict.fromkeys(names)


def _require_same(config: HieraConfig, again: HieraConfig, name: str) -> None:
    """Refuse what config.json has no place for; the name of the input has none, and needs none."""
    mine, its = (_plain(each) for each in (config, again))
    lost = [
        f"{key} is {mine[key]!r} here and {its[key]!r} there"
        for key in mine
        if mine[key] != its[key] and key not in BESIDES
    ]
    if lost or config.layer_scale is not None:
        scaled = ["layer_scale"] * (config.layer_scale is not None)
        raise CheckpointError(f"{name} has no place for this model: {'; '.join(lost + scaled)}")


def _plain(config: HieraConfig) -> dict[str, Any]:
    data = config.to_json()
    dropout = HieraHead(kind=config.head.kind, num_outputs=config.head.num_outputs)
    spec = config.spec
    size = (spec.grid, spec.channels)
    return data | {"inputs": size, "head": dropout, "feature_norms": set(config.feature_norms)}


def _preprocessor(config: HieraConfig) -> dict[str, Any]:
    """What that library's processor does; like the released ones it resizes and crops."""
    spec = config.spec
    assert isinstance(spec, Image)
    height, width = spec.grid
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(height, width) * 256 // 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean or (0.0,) * spec.channels),
        "image_std": list(spec.std or (1.0,) * spec.channels),
    }


# -- Hieras in files of tensors by name: the official ``.pth`` and timm's, read and written ------

# What only timm's files have; without a norm at all, only its backbones.
TIMM_ALONE = ("head.fc.weight", "head.norm.weight", "pos_embed_win", "blocks.0.ls1.gamma")


def tell_library(tensors: Mapping[str, Any]) -> Library | None:
    """Return whose names these are: ``official``, ``timm``, or None where they are no Hiera's."""
    if not {STEM, "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"} <= tensors.keys():
        return None
    if any(name in tensors for name in TIMM_ALONE):
        return "timm"
    named = ("norm.weight", "encoder_norm.weight", "head.projection.weight")
    return "official" if any(name in tensors for name in named) else "timm"


def hiera_from_tensors(
    tensors: Mapping[str, Tensor], library: Library, stated: Mapping[str, Any], source: str
) -> Hiera:
    """Build our model and fill it; every tensor must be used, and none may be missing.

    A backbone without a norm leaves ours as the identity of its scale and offset.

    Args:
        tensors: The file's content.
        library: Whose names they have.
        stated: Fields of ``HieraConfig`` that shapes do not tell, or that win over them.
        source: For messages.

    Raises:
        CheckpointError: Missing, unexpected or misshapen tensors, each listed; or something is
            neither told by shapes nor stated.
        ConfigError: A stated field is unknown or impossible.
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
    """Fill a model; a file without the norm of the mean token leaves it without effect.

    Raises:
        CheckpointError: Missing, unexpected or misshapen tensors, each listed.
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
    """Return whether a file holds the norm; only models without a head may lack it."""
    name = f"{prefix}{NAMES[library]['norm']}.weight"
    needed = config.decoder is not None or config.head.kind == "mean" or library == "official"
    return needed or name in tensors


def save_official(model: Any, path: Path) -> list[str]:
    """Write a ``.pth`` as the official package loads it, the weights under ``model_state``.

    Raises:
        CheckpointError: It has no place for a part of the model.
        ConfigError: The file name has another suffix.
    """
    if path.suffix not in PICKLED:
        raise ConfigError(f"official weights are written to a .pth file, not to {path}")
    config = _hiera(model).config
    _require_official(config)
    tensors = take_from_model(model, hiera_entries(config, "official"))
    _write_pickled(path, {"model_state": tensors})
    return []


def save_timm(model: Any, path: Path) -> list[str]:
    """Write a state dict of timm's: ``.safetensors``, or ``.pth``/``.bin``; return what is left.

    Raises:
        CheckpointError: timm has no place for a part of the model.
        ConfigError: The file name has another suffix.
    """
    if path.suffix not in {*PICKLED, ".safetensors"}:
        raise ConfigError(f"timm's weights are written to .safetensors or .pth, not to {path}")
    config, notes = _hiera(model).config, []
    left = [name for name in model.state_dict() if name.startswith("decoder.")]
    if config.decoder is not None:
        # timm keeps the encoder of an auto-encoder alone, and lets its last stage pool.
        config = change(config, (), decoder=None, num_pools=None, head=HieraHead())
        notes = [f"timm has no decoder: {len(left)} tensors stay behind"]
    tensors = take_from_model(model, hiera_entries(config, "timm"), besides=left)
    if path.suffix == ".safetensors":
        write_atomic(path, save(tensors, metadata={"format": "pt"}))
    else:
        _write_pickled(path, tensors)
    return notes


def _require_official(config: HieraConfig) -> None:
    """Refuse what the official class would compute otherwise with tensors of the same names."""
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
        raise CheckpointError(f"the official Hiera has no place for {', '.join(wrong)}")


def _hiera(model: Any) -> Hiera:
    if not isinstance(model, Hiera):
        raise CheckpointError(f"this layout is of Hieras; the model's family is {model.family!r}")
    return model


def _write_pickled(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(path, buffer.getvalue())
