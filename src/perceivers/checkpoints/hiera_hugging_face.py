"""Hugging Face folders of the four Hiera classes: read into our model, and written.

Nothing of that library is imported: a folder is ``config.json`` and ``model.safetensors`` (or
``pytorch_model.bin``, read without executing anything in it). Read in transformers 5.23
(Apache-2.0); that library has pictures only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from perceivers.checkpoints.hiera_arguments import count_local
from perceivers.checkpoints.hiera_files import fill_hiera
from perceivers.checkpoints.hiera_names import NORM, PREFIXES, hiera_entries
from perceivers.checkpoints.hugging_face import HuggingFaceFolder
from perceivers.checkpoints.hugging_face_config import count_labels
from perceivers.checkpoints.names import take_from_model
from perceivers.checkpoints.torch_files import read_folder_tensors
from perceivers.errors import CheckpointError, suggest
from perceivers.files import read_json_file, write_atomic, write_json
from perceivers.models.hiera import Hiera, HieraConfig, HieraDecoder, HieraHead
from perceivers.models.saving import ModelInfo
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image

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
