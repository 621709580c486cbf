"""Conversion of the trunk in SAM 2's released weights to a HieraDet; other parts are not used.

Meta's ``.pt`` files and Hugging Face's folders (both Apache-2.0) name the tensors differently. The
weights do not show heads and windows: a file without ``config.json`` must have the shapes of a
released trunk, or these settings must be given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from math import lcm
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from perceivers.adapters.config import build_nested
from perceivers.checkpoints.names import Entry, fill_model, grid_layout
from perceivers.checkpoints.parity import (
    Difference,
    Precision,
    compare_live,
    in_precision,
    normalise,
)
from perceivers.checkpoints.torch_files import read_folder_tensors, read_preprocessor
from perceivers.errors import CheckpointError, ConfigError
from perceivers.files import read_json_file
from perceivers.models import HieraDet, HieraDetConfig
from perceivers.models.hiera_det.config import SAM2_INPUT, VARIANTS
from perceivers.types import IMAGENET_MEAN, IMAGENET_STD, Image, spec_from_json

# -- Tensor names of SAM 2's trunk in Meta's files and in Hugging Face's folders -----------------
#
# Names are those of facebookresearch/sam2 (``modeling/backbones/hieradet.py``) and transformers
# 5.23 (``models/sam2``), both Apache-2.0. The fused projection has the same row order everywhere.

Sam2Naming = Literal["meta", "hf"]


@dataclass(frozen=True)
class TrunkNames:
    """Names of the modules in a library's trunk.

    Attributes:
        stem: Name of the patch convolution.
        block: Our names to theirs inside a block; each module has a weight and a bias.
    """

    stem: str
    block: Mapping[str, str]


ATTENTION = {"attention.qkv": "attn.qkv", "attention.out": "attn.proj", "shortcut": "proj"}
TRUNK_NAMES: Mapping[Sam2Naming, TrunkNames] = {
    "meta": TrunkNames(
        stem="patch_embed.proj",
        block={
            "norm_attention": "norm1",
            **ATTENTION,
            "norm_mlp": "norm2",
            "mlp.hidden": "mlp.layers.0",
            "mlp.out": "mlp.layers.1",
        },
    ),
    "hf": TrunkNames(
        stem="patch_embed.projection",
        block={
            "norm_attention": "layer_norm1",
            **ATTENTION,
            "norm_mlp": "layer_norm2",
            "mlp.hidden": "mlp.proj_in",
            "mlp.out": "mlp.proj_out",
        },
    ),
}
TABLE, WINDOW = "pos_embed", "pos_embed_window"


def sam2_entries(config: HieraDetConfig, naming: Sam2Naming) -> list[Entry]:
    """Return the name table of a trunk, without prefix; one entry per tensor.

    Args:
        config: The trunk's configuration.
        naming: The library whose names to use.
    """
    names, rank = TRUNK_NAMES[naming], len(config.patch_kernel)
    # Only the first block of a later stage changes the width, so only it has a shortcut projection.
    openers = {end + 1 for end in config.stage_ends}
    modules = [("encoder.stem", names.stem)]
    modules += [
        (f"encoder.blocks.{index}.{own}", f"blocks.{index}.{foreign}")
        for index in range(sum(config.depths))
        for own, foreign in names.block.items()
        if own != "shortcut" or index in openers
    ]
    positions = "encoder.positions"
    return [
        Entry(f"{positions}.table", TABLE, grid_layout(config.position_grid)),
        Entry(f"{positions}.window", WINDOW, grid_layout([config.windows[0]] * rank)),
        *(
            Entry(f"{own}.{kind}", f"{foreign}.{kind}")
            for own, foreign in modules
            for kind in ("weight", "bias")
        ),
    ]


# -- Reading the trunk ---------------------------------------------------------------------------

# ``model_type`` of a folder, and the path to the trunk's settings in its config.json.
SAM2_FOLDERS: Mapping[str, Sequence[str]] = {
    "sam2": ("vision_config", "backbone_config"),
    "sam2_video": ("vision_config", "backbone_config"),
    "sam2_vision_model": ("backbone_config",),
    "sam2_hiera_det_model": (),
}
# Values of settings that a config.json omits.
TRUNK_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 96,
    "num_attention_heads": 1,
    "num_channels": 3,
    "image_size": (1024, 1024),
    "patch_kernel_size": (7, 7),
    "patch_stride": (4, 4),
    "patch_padding": (3, 3),
    "query_stride": (2, 2),
    "window_positional_embedding_background_size": (7, 7),
    "num_query_pool_stages": 3,
    "blocks_per_stage": (1, 2, 7, 2),
    "embed_dim_per_stage": (96, 192, 384, 768),
    "num_attention_heads_per_stage": (1, 2, 4, 8),
    "window_size_per_stage": (8, 4, 14, 7),
    "global_attention_blocks": (5, 7, 9),
    "mlp_ratio": 4.0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
# Settings that may be one number for both axes.
PAIRS = (
    "image_size",
    "patch_kernel_size",
    "patch_stride",
    "patch_padding",
    "query_stride",
    "window_positional_embedding_background_size",
)


# Settings that tensor shapes do not determine.
UNTOLD = ("num_heads", "windows", "global_blocks")


@dataclass(frozen=True)
class Sam2Weights:
    """The tensors of a file or folder, divided into the trunk and unused parts.

    Attributes:
        source: File name for error messages.
        naming: The library whose names they have.
        trunk: The trunk's tensors by name without prefix.
        unused: Number of tensors and of values in every other part, by part.
        stated: The trunk's settings from ``config.json``; empty for a file.
        preprocessor: Content of ``preprocessor_config.json``; empty for a file.
    """

    source: str
    naming: Sam2Naming
    trunk: Mapping[str, Tensor]
    unused: Mapping[str, tuple[int, int]]
    stated: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One note for every part that is not used."""
        return [
            f"{part} is not used: {values:,} values in {tensors} tensor{'s' * (tensors > 1)}"
            for part, (tensors, values) in sorted(self.unused.items())
        ]


def find_trunk(tensors: Mapping[str, Any]) -> str | None:
    """Return the prefix of a SAM 2 trunk, such as ``image_encoder.trunk.``, or None without one.

    Raises:
        CheckpointError: There are several trunks.
    """
    prefixes = [name.removesuffix(WINDOW) for name in tensors if name.split(".")[-1] == WINDOW]
    if len(prefixes) > 1:
        raise CheckpointError(f"several trunks, below {prefixes}; give a file with one of them")
    return prefixes[0] if prefixes else None


def split_trunk(tensors: Mapping[str, Tensor], source: str) -> Sam2Weights:
    """Divide the tensors of a file into the trunk and the unused rest.

    Args:
        tensors: All tensors by name.
        source: File name for error messages.

    Raises:
        CheckpointError: There is no trunk, or there are several.
    """
    prefix = find_trunk(tensors)
    if prefix is None:
        raise CheckpointError(
            f"{source} holds no trunk of SAM 2: none of its {len(tensors)} tensors is named "
            f"{WINDOW}, with or without a prefix"
        )
    trunk = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
    unused: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            part = _part(name, prefix)
            count, values = unused.get(part, (0, 0))
            unused[part] = (count + 1, values + tensor.numel())
    is_hf = f"{TRUNK_NAMES['hf'].stem}.weight" in trunk
    return Sam2Weights(source, "hf" if is_hf else "meta", trunk, unused)


def _part(name: str, prefix: str) -> str:
    # The part of SAM 2 that a tensor belongs to: the first component of its name, or the first two
    # if it shares the first one with the trunk.
    first, *rest = name.split(".")
    return ".".join([first, *rest[:1]]) if prefix.startswith(f"{first}.") else first


def read_sam2_folder(folder: Path) -> Sam2Weights:
    """Read a Hugging Face folder of SAM 2, or of a part of it that contains the trunk.

    Raises:
        CheckpointError: A file is missing or damaged, or there is no trunk in it.
    """
    stated = _trunk_settings(read_json_file(folder / "config.json"), folder)
    read = split_trunk(read_folder_tensors(folder), str(folder))
    return replace(read, stated=stated, preprocessor=read_preprocessor(folder))


def _trunk_settings(stated: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the trunk's settings in a ``config.json``, completed by the defaults."""
    kind = str(stated.get("model_type"))
    if kind not in SAM2_FOLDERS:
        raise CheckpointError(
            f"{path}: model_type is {kind!r}; expected one of SAM 2's, {list(SAM2_FOLDERS)}"
        )
    for key in SAM2_FOLDERS[kind]:
        stated = stated.get(key) or {}
    own = stated.get("model_type", "sam2_hiera_det_model")
    if own != "sam2_hiera_det_model":
        raise CheckpointError(
            f"{path}: the trunk's model_type is {own!r}; only 'sam2_hiera_det_model' is converted"
        )
    return {k: v if stated.get(k) is None else stated[k] for k, v in TRUNK_DEFAULTS.items()}


def sam2_from_tensors(
    tensors: Mapping[str, Tensor], stated: Mapping[str, Any], source: str
) -> tuple[HieraDet, list[str]]:
    """Build our model from a file's tensors; return it with notes on unused parts.

    Args:
        tensors: All tensors by name.
        stated: Fields of ``HieraDetConfig``; they take precedence over those of the shapes and of
            the matching variant.
        source: File name for error messages.

    Raises:
        CheckpointError: There is no trunk, there are several, or as for ``model_from_sam2``.
        ConfigError: A given field is unknown or invalid.
    """
    read = split_trunk(tensors, source)
    return model_from_sam2(read, stated), read.notes


def model_from_sam2(read: Sam2Weights, stated: Mapping[str, Any] | None = None) -> HieraDet:
    """Build our model in evaluation mode and load the trunk; all names and shapes must match.

    Args:
        read: The trunk.
        stated: Fields of ``HieraDetConfig``, for files only; they take precedence over those of the
            shapes and of the matching variant.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape (all listed); or a
            file matches no released trunk and heads, windows or global blocks are not given.
        ConfigError: A given field is unknown or invalid.
    """
    config = _config_from_folder(read) if read.stated else _config_from_shapes(read, stated or {})
    model = HieraDet(config)
    fill_model(model, sam2_entries(config, read.naming), read.trunk, source=read.source)
    return model.eval()


def _config_from_shapes(read: Sam2Weights, stated: Mapping[str, Any]) -> HieraDetConfig:
    """Infer settings from shapes; the others come from a variant of these shapes or ``stated``."""
    blocks = {int(n.split(".")[1]) for n in read.trunk if n.startswith("blocks.")}
    openers = [i for i in sorted(blocks) if f"blocks.{i}.proj.weight" in read.trunk]
    ends = [*openers, max(blocks, default=-1) + 1]
    shape = tuple(read.trunk[TABLE].shape) if TABLE in read.trunk else (1, 0)
    told: dict[str, Any] = {
        "dim": shape[1],
        "depths": tuple(end - start for start, end in zip([0, *openers], ends, strict=True)),
        "position_grid": shape[2:],
    }
    known: Mapping[str, Any] = next((v for v in VARIANTS.values() if _has_shapes(v, told)), {})
    lacking = [key for key in UNTOLD if key not in {**known, **stated}]
    if not known and lacking:
        raise CheckpointError(
            f"{read.source}: a trunk of {told} is none of {list(VARIANTS)}, and its shapes do not "
            f"determine {lacking}; give them with --config, or convert a Hugging Face folder with "
            f"config.json"
        )
    values = {"inputs": SAM2_INPUT, **known, **told, **stated}
    values["inputs"] = {
        name: spec_from_json(spec) if isinstance(spec, Mapping) else spec
        for name, spec in values["inputs"].items()
    }
    return build_nested(HieraDetConfig, values)


def _has_shapes(variant: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    config = HieraDetConfig(**{"inputs": SAM2_INPUT, **variant})
    return all(getattr(config, key) == value for key, value in told.items())


def _config_from_folder(read: Sam2Weights) -> HieraDetConfig:
    said: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in read.stated.items()
    }
    try:
        for key in PAIRS:
            said[key] = _pair(said[key])
        _check_implied(said)
        return HieraDetConfig(
            inputs={"image": _picture(said, read.preprocessor)},
            dim=said["hidden_size"],
            num_heads=said["num_attention_heads"],
            depths=said["blocks_per_stage"],
            windows=said["window_size_per_stage"],
            global_blocks=said["global_attention_blocks"],
            patch_kernel=said["patch_kernel_size"],
            patch_stride=said["patch_stride"],
            pool=said["query_stride"],
            position_grid=said["window_positional_embedding_background_size"],
            mlp_ratio=int(said["mlp_ratio"]),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{read.source}/config.json: {error}") from error


def _picture(said: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Image:
    # Unless the preprocessor config says otherwise, three channels have ImageNet's statistics.
    channels: int = said["num_channels"]
    mean, std = (
        tuple(preprocessor.get(key) or (default if channels == len(default) else ()))
        for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
    )
    height, width = said["image_size"]
    return Image(height, width, channels, mean=mean, std=std)


def _check_implied(said: Mapping[str, Any]) -> None:
    # A HieraDet has no settings for these values; it derives them from others or fixes them.
    stages = range(len(said["blocks_per_stage"]))
    implied = {
        "embed_dim_per_stage": tuple(said["hidden_size"] * 2**i for i in stages),
        "num_attention_heads_per_stage": tuple(said["num_attention_heads"] * 2**i for i in stages),
        "num_query_pool_stages": len(stages) - 1,
        "patch_padding": tuple(size // 2 for size in said["patch_kernel_size"]),
        "mlp_ratio": int(said["mlp_ratio"]),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    wrong = [f"{k}={said[k]!r} (not {value!r})" for k, value in implied.items() if said[k] != value]
    if wrong:
        raise CheckpointError(f"HieraDet does not support {', '.join(wrong)}")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


# -- Comparing a converted SAM 2 trunk with its Hugging Face class on a random image -------------
#
# Needs transformers, as above. Meta's names are translated to Hugging Face's without our name
# table, so that an error in it cannot cancel out.

# Minimum size of the shorter side, rounded up to whole windows. At this size, windows of later
# stages need padding, which is compared as well; the released 1024 takes minutes in float64.
LEAST_PIXELS = 192
META_TO_HUGGING_FACE = (
    ("patch_embed.proj.", "patch_embed.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".mlp.layers.0.", ".mlp.proj_in."),
    (".mlp.layers.1.", ".mlp.proj_out."),
)


def load_hugging_face_trunk(read: Sam2Weights, config: HieraDetConfig) -> Any:
    """Build Hugging Face's class of the trunk and load the weights; all names must match.

    Args:
        read: The trunk's weights.
        config: Our configuration, used if ``read`` comes from a file without ``config.json``.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: The weights do not fit its class.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            "comparing with Hugging Face needs transformers: pip install 'transformers>=4.57'; "
            "converting does not"
        )
    library = import_module("transformers.models.sam2.modeling_sam2")
    settings = import_module("transformers").Sam2HieraDetConfig
    model = library.Sam2HieraDetModel(settings(**(read.stated or describe_trunk(config))))
    state = dict(read.trunk)
    if read.naming == "meta":
        state = {_rename(name): tensor for name, tensor in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{read.source} does not fit Sam2HieraDetModel: {error}") from error
    return model.eval()


def _rename(name: str) -> str:
    for meta, theirs in META_TO_HUGGING_FACE:
        name = name.replace(meta, theirs)
    return name


def describe_trunk(config: HieraDetConfig) -> dict[str, Any]:
    """Translate our config to the settings of Hugging Face's ``Sam2HieraDetConfig``."""
    stages = range(len(config.depths))
    return {
        "hidden_size": config.dim,
        "num_attention_heads": config.num_heads,
        "num_channels": config.spec.channels,
        "image_size": list(config.spec.grid),
        "patch_kernel_size": list(config.patch_kernel),
        "patch_stride": list(config.patch_stride),
        "patch_padding": [size // 2 for size in config.patch_kernel],
        "query_stride": list(config.pool),
        "window_positional_embedding_background_size": list(config.position_grid),
        "num_query_pool_stages": len(stages) - 1,
        "blocks_per_stage": list(config.depths),
        "embed_dim_per_stage": list(config.dims),
        "num_attention_heads_per_stage": [config.num_heads * 2**stage for stage in stages],
        "window_size_per_stage": list(config.windows),
        "global_attention_blocks": list(config.global_blocks),
        "mlp_ratio": float(config.mlp_ratio),
    }


@torch.no_grad()
def verify_sam2(
    read: Sam2Weights, model: HieraDet, *, dtype: Precision = "float64", seed: int = 0
) -> list[Difference]:
    """Compare the feature maps of every stage with Hugging Face's on a random image.

    Args:
        read: The weights that the model was converted from.
        model: The converted model; its precision is restored afterwards.
        dtype: Precision of both models.
        seed: Seed of the image.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: Feature maps differ in shape, or the weights do not fit the class.
    """
    precision = getattr(torch, dtype)
    theirs = load_hugging_face_trunk(read, model.config).to(precision)
    spec, size = model.config.spec, picture_size(model.config)
    draw = torch.Generator().manual_seed(seed)
    raw = torch.rand(1, spec.channels, *size, generator=draw, dtype=precision)
    stored = theirs(normalise(raw, spec)).intermediate_hidden_states
    with in_precision(model, precision):
        maps = model.forward_features(raw).maps
    return compare_live(
        {f"stage {stage}": x for stage, x in enumerate(maps)},
        {f"stage {stage}": x.movedim(-1, 1) for stage, x in enumerate(stored)},
        dtype,
    )


def picture_size(config: HieraDetConfig) -> tuple[int, ...]:
    """Return an input size that both implementations accept.

    It consists of whole windows of the first stage, and stays divisible in every pooling step.
    """
    pools = len(config.depths) - 1
    units = [
        stride * lcm(config.windows[0], pool**pools)
        for stride, pool in zip(config.patch_stride, config.pool, strict=True)
    ]
    # Not square, so that swapped rows and columns are detected.
    counts = [-(-LEAST_PIXELS // unit) for unit in units]
    counts[-1] += 1
    return tuple(unit * count for unit, count in zip(units, counts, strict=True))
