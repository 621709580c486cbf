"""Comparing a converted SAM 2 trunk with Hugging Face's own class, run on the same fresh picture.

Needs the library transformers, which nothing else here imports. Meta's names are turned into that
library's by code that shares nothing with our table.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from math import lcm
from typing import Any

import torch
from torch import Tensor

from perceivers.checkpoints.sam2 import Sam2Weights, split_trunk
from perceivers.checkpoints.verify import Difference, Precision, compare_live, in_precision
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models import HieraDet, HieraDetConfig

# Pixels along the shorter side, or the next size that is made of whole windows: windows of later
# stages are filled up there, and the 1024 of the release would take minutes in float64.
LEAST_PIXELS = 192
META_TO_HUGGING_FACE = (
    ("patch_embed.proj.", "patch_embed.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".mlp.layers.0.", ".mlp.proj_in."),
    (".mlp.layers.1.", ".mlp.proj_out."),
)


def load_hugging_face_trunk(read: Sam2Weights, config: HieraDetConfig) -> Any:
    """Build that library's class, all of whose weights must come from the file, and no others.

    Args:
        read: The file or folder.
        config: What a file without ``config.json`` was recognised as.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: The weights do not fit its class.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            "comparing with Hugging Face needs its library: pip install 'transformers>=4.57'; "
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
    """Return that library's settings of a trunk."""
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
    """Run both on one fresh random picture and compare the map of every stage.

    Args:
        read: The file or folder that the model was converted from.
        model: Ours; it comes back in its own precision.
        dtype: Precision of both.
        seed: Of the picture.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: Maps differ in shape, or the weights do not fit its class.
    """
    precision = getattr(torch, dtype)
    theirs = load_hugging_face_trunk(read, model.config).to(precision)
    spec, size = model.config.spec, picture_size(model.config)
    draw = torch.Generator().manual_seed(seed)
    raw = torch.rand(1, spec.channels, *size, generator=draw, dtype=precision)
    # Statistics are kept in float32, as everywhere.
    mean, std = (
        torch.tensor(values).to(precision).reshape(1, -1, 1, 1)
        for values in (spec.mean or (0.0,), spec.std or (1.0,))
    )
    stored = theirs((raw - mean) / std).intermediate_hidden_states
    with in_precision(model, precision):
        maps = model.forward_features(raw).maps
    return compare_live(
        {f"stage {stage}": x for stage, x in enumerate(maps)},
        {f"stage {stage}": x.movedim(-1, 1) for stage, x in enumerate(stored)},
        dtype,
    )


def verify_sam2_tensors(
    tensors: Mapping[str, Tensor], model: HieraDet, *, dtype: Precision = "float64"
) -> list[Difference]:
    """Do as ``verify_sam2`` for the tensors of a file.

    Raises:
        ConfigError: The library is not installed.
        CheckpointError: As ``verify_sam2``; or there is no trunk.
    """
    return verify_sam2(split_trunk(tensors, "the file"), model, dtype=dtype)


def picture_size(config: HieraDetConfig) -> tuple[int, ...]:
    """Return a size that both run: whole windows of the first stage that never become odd."""
    pools = len(config.depths) - 1
    units = [
        stride * lcm(config.windows[0], pool**pools)
        for stride, pool in zip(config.patch_stride, config.pool, strict=True)
    ]
    # The last side is one unit longer, so that rows and columns are told apart.
    counts = [-(-LEAST_PIXELS // unit) for unit in units]
    counts[-1] += 1
    return tuple(unit * count for unit, count in zip(units, counts, strict=True))
